"""The mode of a module, for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

__all__ = ["in_evaluation_mode"]


@contextmanager
def in_evaluation_mode(module: nn.Module) -> Iterator[None]:
    """Be without dropout, and let layers learn nothing from what passes; then be as before.

    Example:
        >>> module = nn.Dropout(0.5)
        >>> with in_evaluation_mode(module):
        ...     print(module.training)
        False
        >>> module.training
        True
    """
    training = module.training
    if training:
        module.eval()
    try:
        yield
    finally:
        if training:
            module.train()
