"""Where numbers are computed, checked when it is named."""

from __future__ import annotations

from typing import Any

import torch

from sciflow.errors import ConfigError, first_line

__all__ = ["checked_device"]


def checked_device(device: Any) -> torch.device:
    """Return a device that is here.

    Args:
        device: Its name, or a ``torch.device``.

    Raises:
        ConfigError: There is none of that name.

    Example:
        >>> checked_device("cpu")
        device(type='cpu')
    """
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except (AssertionError, TypeError, RuntimeError) as error:
        raise ConfigError(f"device {device!r}: {first_line(error)}; give one that is here, such as 'cpu'") from None
    return found
