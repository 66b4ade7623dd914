"""Whether the steps of a window are steps of equal length: order, repetitions and gaps along a dimension."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from sciflow.data.layout import Layout
from sciflow.errors import DataError

__all__ = ["Gap", "find_gap"]

# Months differ by a tenth, the latitudes of a Gaussian grid by less; where a value is left out the step is 2.
LARGEST_STEP = 1.5


@dataclass(frozen=True)
class Gap:
    """Windows that lie across a place where their dimension leaves something out.

    Attributes:
        events: ``[num_grid_events]``, True where the event's window does.
        where: The first such place, in words.
    """

    events: np.ndarray
    where: str


def find_gap(layout: Layout, coordinates: Mapping[str, np.ndarray], name: str) -> Gap | None:
    """Look along the windowed dimensions of a layout.

    Args:
        layout: What is counted.
        coordinates: Values along the windowed dimensions, those that are known.
        name: What to call the source in messages.

    Returns:
        What is broken by gaps, or None.

    Raises:
        DataError: A coordinate runs back or repeats itself, so that windows along it are no stretches of the data.

    Example:
        >>> from sciflow.data.layout import EventDim, SampleDim
        >>> layout = Layout(("x",), ("",), (SampleDim("hours", "hour", 3),), (EventDim("hour", 2, 2),))
        >>> find_gap(layout, {"hour": np.array([0, 1, 2, 5, 6, 7])}, "x.nc")
        Gap(events=array([False,  True, False]), where="x.nc: dimension 'hour' jumps from 2 to 5, in steps of 1")
    """
    broken = np.zeros(layout.grid_shape, bool)
    where = ""
    for window in layout.event_dims:
        values = coordinates.get(window.name)
        if window.stride is None or values is None or values.dtype.kind not in "fiuM" or len(values) < 2:
            continue
        # Small and unsigned integers would wrap.
        steps = np.diff(values.astype(np.int64) if values.dtype.kind in "iu" else values)
        sizes = np.abs(steps.astype(np.float64))
        _require_order(values, steps.astype(np.float64), f"{name}: dimension '{window.name}'")
        jumps = np.flatnonzero(sizes > LARGEST_STEP * np.median(sizes))
        if not len(jumps):
            continue
        axis = [dim.source for dim in layout.sample_dims].index(window.name)
        first = np.arange(layout.grid_shape[axis]) * window.stride
        across = np.searchsorted(jumps, first) < np.searchsorted(jumps, first + window.size - 1)
        broken |= across.reshape([-1 if place == axis else 1 for place in range(broken.ndim)])
        usual = np.sort(steps)[len(steps) // 2]
        here, after = values[jumps[0]], values[jumps[0] + 1]
        where = where or f"{name}: dimension '{window.name}' jumps from {here} to {after}, in steps of {usual}"
    return Gap(broken.reshape(-1), where) if broken.any() else None


def _require_order(values: np.ndarray, steps: np.ndarray, what: str) -> None:
    if (steps > 0).all() or (steps < 0).all():
        return
    up = np.count_nonzero(steps > 0) >= np.count_nonzero(steps < 0)
    place = int(np.flatnonzero(steps <= 0 if up else steps >= 0)[0])
    here, after = values[place], values[place + 1]
    problem = f"has {here} twice" if here == after else f"is not in order, {here} is followed by {after}"
    raise DataError(f"{what} {problem} (position {place + 1}): windows along it need it sorted, and each value once")
