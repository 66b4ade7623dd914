"""The mode of a module, for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

__all__ = ["in_evaluation_mode"]


@contextmanager
def in_evaluation_mode(module: nn.Module) -> Iterator[None]:
    """Be without dropout, and let layers learn nothing from what passes; then every layer is as it was before.

    Example:
        >>> module = nn.Sequential(nn.Dropout(0.5), nn.BatchNorm1d(2).eval())
        >>> with in_evaluation_mode(module):
        ...     [part.training for part in module]
        [False, False]
        >>> [part.training for part in module]
        [True, False]
    """
    modes = {part: part.training for part in module.modules()} if module.training else {}
    if modes:
        module.eval()
    try:
        yield
    finally:
        for part, training in modes.items():
            part.training = training
