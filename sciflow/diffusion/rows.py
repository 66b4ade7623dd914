"""What is done to the rows of a batch, whatever their events are."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sciflow.density import Density
from sciflow.errors import ConfigError

__all__ = ["deviation", "in_parts", "over_events", "require_given", "some_left_out"]

_VALUES_AT_A_TIME = 1 << 20  # of events that are drawn together; networks hold some hundred times as many
_ROWS_AT_A_TIME = 1 << 14


def over_events(per_row: Tensor, events: Tensor) -> Tensor:
    """Return ``[n]`` as ``[n, 1, ...]``, to be broadcast over events.

    Example:
        >>> over_events(torch.ones(5), torch.ones(5, 2, 3)).shape
        torch.Size([5, 1, 1])
    """
    return per_row.reshape(-1, *[1] * (events.ndim - 1))


def in_parts(n: int, values: int, context: Tensor | None) -> list[tuple[range, Tensor | None]]:
    """Cut draws into parts that memory holds, one at the least: which rows, and their contexts.

    Args:
        n: Number of draws.
        values: That one of them takes.
        context: ``[n, *context_shape]`` or None.

    Example:
        >>> [rows for rows, _ in in_parts(5, 1 << 19, None)]
        [range(0, 2), range(2, 4), range(4, 5)]
    """
    size = max(1, _VALUES_AT_A_TIME // values)
    parts = [range(start, min(start + size, n)) for start in range(0, n, size)] or [range(0)]
    return [(rows, None if context is None else context[rows.start : rows.stop]) for rows in parts]


def some_left_out(context: Tensor | None, probability: float) -> Tensor | None:
    """Return contexts of which some, by chance, are not given: networks learn to do without.

    Source: Ho and Salimans, arXiv:2207.12598.

    Args:
        context: ``[n, *context_shape]`` or None.
        probability: With which the context of a row is left out.
    """
    if context is None or probability == 0:
        return context
    out = torch.rand(len(context), device=context.device) < probability
    return context.masked_fill(over_events(out, context), torch.nan)


def require_given(density: Density, context: Tensor | None, dropout: float | None, whose: str) -> None:
    """Refuse contexts of which a part is not given, where none was ever left out while training.

    Args:
        density: Knows which those are.
        context: ``[n, *context_shape]`` or None.
        dropout: Probability with which contexts were left out; None where that is not known.
        whose: What to call the density in messages.

    Raises:
        ConfigError: There are such contexts.
    """
    if dropout == 0 and context is not None and not density.knows(context).all():
        raise ConfigError(
            f"context: {whose} was trained with context_dropout 0, so it knows nothing without a context: give all of "
            "it, or train with 0.1"
        )


def deviation(preprocess: nn.Module, rows: Tensor) -> float:
    """Return the standard deviation about 0 of rows in normalised units; 1 where they have none."""
    squares, count = 0.0, 0
    with torch.no_grad():
        for part in rows.split(_ROWS_AT_A_TIME):
            y, _ = preprocess(part)
            finite = torch.isfinite(y)
            squares += float(torch.where(finite, y, 0).double().square().sum())
            count += int(finite.sum())
    return (squares / count) ** 0.5 if squares > 0 else 1.0
