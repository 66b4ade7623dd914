"""Shapes that users give, checked."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import Any

import torch

from sciflow.errors import ShapeError

__all__ = ["checked_draws", "checked_shape"]

_MOST_ELEMENTS = 1 << 30  # of one event


def checked_shape(shape: Sequence[int], name: str) -> torch.Size:
    """Return the shape of an event or a context as torch has it.

    Args:
        shape: What a user gave.
        name: What the argument is called, in messages.

    Raises:
        ShapeError: It is no shape, or one that no memory holds.

    Example:
        >>> checked_shape([2, 3], "event_shape")
        torch.Size([2, 3])
    """
    if isinstance(shape, int):
        raise ShapeError(f"{name} must be a sequence, such as ({shape},); got {shape}")
    try:
        sizes = tuple(operator.index(n) for n in shape)
    except TypeError:
        raise ShapeError(f"{name} must be a sequence of whole numbers, such as (3,); got {shape!r}") from None
    if len(sizes) == 0 or min(sizes) < 1:
        raise ShapeError(f"{name} must hold at least one dimension, each of 1 or more; got {sizes}")
    if math.prod(sizes) > _MOST_ELEMENTS:
        raise ShapeError(f"{name} must hold at most {_MOST_ELEMENTS:,} elements; got {sizes!r:.80}")
    return torch.Size(sizes)


def checked_draws(n: Any) -> tuple[int, ...]:
    """Return the shape of what is drawn, a number or a shape.

    Raises:
        ShapeError: It is neither.

    Example:
        >>> checked_draws(5), checked_draws((2, 3))
        ((5,), (2, 3))
    """
    try:
        shape = (
            tuple(operator.index(size) for size in n) if isinstance(n, Sequence | torch.Size) else (operator.index(n),)
        )
    except TypeError:
        raise ShapeError(f"cannot draw {n!r} events: give a whole number, or a shape") from None
    if any(size < 0 for size in shape):
        raise ShapeError(f"cannot draw {n} events: ask for 0 or more")
    return shape
