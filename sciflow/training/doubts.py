"""What in the training rows no density can do right by: constants, copies, and values that come again and again."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch

from sciflow.data.layout import Layout
from sciflow.degenerate import MANY_COLUMNS, constants, copies
from sciflow.errors import DataError

__all__ = ["complain", "doubts"]

# Of a standard deviation: with larger steps, log p is about the rounding.
LARGEST_SPACING = 0.02
# Two rows of a normal that is rounded to steps of s standard deviations agree with a probability of 0.28 s.
AGREEMENT = 0.01
# Share of the rows that have another's value, at which whole numbers count as a grid, wide as it may be.
TIED_WHOLE_NUMBERS = 0.05
LOOKED_AT = 1 << 22
NAMED = 3


def doubts(
    columns: np.ndarray,
    extrema: tuple[np.ndarray, np.ndarray] | None,
    dequantized: bool,
    event_shape: Sequence[int],
    layout: Layout | None = None,
) -> list[str]:
    """Say what is wrong with the elements of an event, one sentence for each kind of fault.

    Args:
        columns: A sample of the training rows, ``[n, num_elements]``.
        extrema: Least and largest value of every element over all training rows, where they are known.
        dequantized: Whether the density adds noise to values on a grid.
        event_shape: Shape of one event.
        layout: Names the event's elements, where they have names.
    """
    names = _Names(torch.Size(event_shape), layout)
    low, high = (columns.min(0), columns.max(0)) if extrema is None else extrema
    coarse = _coarse(columns)
    found = [
        _of_constants(low.reshape(-1), high.reshape(-1), names),
        _of_rare_changes(columns, low.reshape(-1) < high.reshape(-1), names),
        _of_coarse(columns, coarse, names),
        _of_copies(columns, names),
        None if dequantized else _of_grids(columns, coarse, names),
    ]
    return [doubt for doubt in found if doubt is not None]


def complain(found: Sequence[str], degenerate: Literal["error", "warn"], stacklevel: int) -> None:
    """Raise the first doubt as an error, or warn of each.

    Args:
        found: What :func:`doubts` said.
        degenerate: Which of the two.
        stacklevel: Of the caller whose line a warning shows, counted from this function.

    Raises:
        DataError: There is a doubt, and ``degenerate`` is "error".
    """
    for doubt in found:
        if degenerate == "error":
            raise DataError(f"{doubt}; or go on all the same with training.degenerate=warn")
        warnings.warn(doubt, stacklevel=stacklevel + 1)


def _of_constants(low: np.ndarray, high: np.ndarray, names: _Names) -> str | None:
    constant = np.flatnonzero(low == high)
    if not len(constant):
        return None
    more = f", and so are {names.of(constant[1:])}" if len(constant) > 1 else ""
    return (
        f"{names.of(constant[:1])} is constant, always {low[constant[0]]:g}{more}: its density has no limit but that "
        "of the noise which training adds, so log p says nothing of it; better leave it out"
    )


def _of_rare_changes(columns: np.ndarray, varies: np.ndarray, names: _Names) -> str | None:
    """Constant in the sample, from which scales are taken, though not in all rows."""
    seeming = [column for column in constants(columns) if varies[column]] if len(columns) > 1 else []
    if not seeming:
        return None
    value = columns[0, seeming[0]]
    return (
        f"{names.of(seeming)}: always {value:g} in the {len(columns):,} rows that scales are taken from, though not in "
        "all: too rare a change to be learned, so training adds noise as to a constant; better leave it out"
    )


def _coarse(columns: np.ndarray) -> np.ndarray:
    """Which columns' values the floating type cannot tell apart: seconds since 1970 are 128 apart in float32."""
    center, spread = columns.mean(0, dtype=np.float64), columns.std(0, dtype=np.float64)
    spacing = np.finfo(columns.dtype).eps * np.abs(center)
    found: np.ndarray = (spacing > LARGEST_SPACING * spread) & (spread > 0) & (len(columns) > 1)
    return found


def _of_coarse(columns: np.ndarray, coarse: np.ndarray, names: _Names) -> str | None:
    if not coarse.any():
        return None
    first = int(np.flatnonzero(coarse)[0])
    values = columns[:, first].astype(np.float64)
    spacing = np.finfo(columns.dtype).eps * abs(values.mean())
    return (
        f"{names.of([first])}: values about {values.mean():.4g} spread over {values.std():.2g}, which {columns.dtype} "
        f"tells apart in steps of {spacing:.2g} only: take off an offset, or use float64"
    )


def _of_copies(columns: np.ndarray, names: _Names) -> str | None:
    found = copies(columns)
    if not found:
        return None
    copy, original = next(iter(found.items()))
    more = f" (as are {names.of(list(found)[1:])} of it or of others)" if len(found) > 1 else ""
    return (
        f"{names.of([copy])} is a copy of {names.of([original])}{more}: their joint density has no limit but that of "
        "the noise which training adds, so log p rises by no merit of the model; better leave it out"
    )


def _of_grids(columns: np.ndarray, coarse: np.ndarray, names: _Names) -> str | None:
    """Values that come again and again: whole numbers, rounded measurements, a share of exact zeros."""
    step = max(1, columns.shape[1] // MANY_COLUMNS)
    most = max(500, LOOKED_AT // columns.shape[1])
    rows = columns if len(columns) <= most else np.random.default_rng(0).choice(columns, most, replace=False)
    grids: dict[int, int] = {}
    for column in range(0, columns.shape[1], step):
        values, counts = np.unique(rows[:, column], return_counts=True)
        if len(values) > 1 and not coarse[column] and _is_grid(values, counts):
            grids[column] = len(values)
    if not grids:
        return None
    first, count = next(iter(grids.items()))
    of_first = f" of {names.of([first])}" if len(grids) > 1 else ""
    return (
        f"{names.of(list(grids))}: the same values again and again ({count:,} different ones in {len(rows):,} rows"
        f"{of_first}): a density can rise without limit at each of them, so log p diverges the longer it is "
        'trained, and says nothing; spread every value over its cell with preprocess=["dequantize", "standardize"]'
    )


def _is_grid(values: np.ndarray, counts: np.ndarray) -> bool:
    num_rows = int(counts.sum())
    pairs = counts.astype(np.float64) * (counts - 1)
    if pairs.sum() > AGREEMENT * num_rows * (num_rows - 1):
        return True
    tied = counts[counts > 1].sum()
    return bool(tied > TIED_WHOLE_NUMBERS * num_rows and (values == np.rint(values)).all())


class _Names:
    """Names of the elements of an event."""

    def __init__(self, event_shape: torch.Size, layout: Layout | None) -> None:
        self.event_shape = event_shape
        self.layout = layout if layout is not None and layout.event_shape == tuple(event_shape) else None

    def of(self, columns: Sequence[int] | np.ndarray) -> str:
        """The first few of them: ``variable 'u10', variable 'v10' and 4 more``."""
        named = [self._one(int(column)) for column in columns[:NAMED]]
        if len(columns) > NAMED:
            return f"{', '.join(named)} and {len(columns) - NAMED:,} more"
        return " and ".join(filter(None, [", ".join(named[:-1]), named[-1]]))

    def _one(self, column: int) -> str:
        """``variable 't2m' at time+3``."""
        place = [int(i) for i in np.unravel_index(column, self.event_shape)]
        if self.layout is None:
            return f"element {place} of the event"
        variable = self.layout.variables[place.pop(0) if self.layout.has_variable_axis else 0]
        steps = ", ".join(f"{dim.name}+{step}" for dim, step in zip(self.layout.event_dims, place, strict=True))
        return f"variable '{variable}'" + (f" at {steps}" if steps else "")
