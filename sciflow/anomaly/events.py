"""Flagged cells and times that touch, merged into events: what a reader counts, names, and looks into."""

from __future__ import annotations

import itertools
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sciflow.anomaly.axes import Axis, as_results, axes_of, require_results, text_of, time_axis
from sciflow.anomaly.reasons import reasons, values_at
from sciflow.errors import DataError, SciflowError
from sciflow.files import written_whole

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

    from sciflow.anomaly.detection import Detection

__all__ = ["merge_events", "write_events"]

Integers = NDArray[np.int64]


def merge_events(
    found: Detection | xr.Dataset,
    *,
    gap: int = 0,
    diagonals: bool = True,
    neighbours: Collection[str] | None = None,
    periodic: Collection[str] | None = None,
) -> pd.DataFrame:
    """Merge flagged cells that are neighbours into events, one row each, the highest peak first.

    Neighbours lie next to each other along dimensions with an order (see ``neighbours``), and at the same position of
    all others: each row of a table without an order is an event of its own. Times that the results leave out count as
    steps without a flag.

    An event is called by the cell where it begins, the earliest and among those the first, so that later times or
    other events do not change its ``id``.

    Args:
        found: What a detector's ``predict`` returns; or such results as a dataset over their sample dimensions:
            ``score``, ``p_value`` and ``flag``, with ``extrapolated`` and ``attribution`` where there are. Only flagged
            cells are read of all but ``flag``.
        gap: Steps without a flag that an event may have in time: along the first dimension of times, or else the
            first with an order that is no dimension of space.
        diagonals: Whether cells that touch at a corner are neighbours, too: what has moved from one time to the next.
        neighbours: Dimensions along which positions next to each other are neighbours; None for those with an order:
            times, and numbers that only rise or only fall. No order have names, dimensions without a coordinate,
            whole numbers without a unit that only count (0, 1, 2, ...), and the numbers of a table's rows.
        periodic: Dimensions whose last position is a neighbour of the first; None for longitudes that go round.

    Returns:
        A table with the columns

        - ``id``: where the event begins;
        - ``peak``: its highest score; ``p_value``: its lowest; ``extrapolated``: whether one of its p-values is;
        - ``cells``: how many are flagged;
        - ``duration``: from the beginning of its first time to the end of its last, in the time's own unit; missing
          where the results have one time alone, or none;
        - ``DIM_start``, ``DIM_stop``, ``DIM_extent``, ``DIM_peak`` for each dimension: its first and last label (the
          lower and the higher; from west to east across a periodic seam), the number of positions from one to the
          other, both included, and the label of its highest score. Dates of other calendars are text;
        - ``features``: the elements that its attribution is largest for, as text with their shares, and
          ``attribution``: the same as JSON.

    Raises:
        DataError: A variable is missing or of another kind, or there is no time for a gap.
        LayoutError: There is no dimension of a name.

    Example:
        >>> import xarray as xr
        >>> days = np.arange("2019-03-01", "2019-03-07", dtype="datetime64[D]").astype("datetime64[ns]")
        >>> score = ("day", [0.0, 5.0, 7.0, 1.0, 0.0, 6.0])
        >>> p_value = ("day", [0.9, 0.02, 0.01, 0.5, 0.8, 0.015])
        >>> flag = ("day", [False, True, True, False, False, True])
        >>> found = xr.Dataset({"score": score, "p_value": p_value, "flag": flag}, {"day": days})
        >>> merge_events(found)[["id", "peak", "cells", "duration"]]
                       id  peak  cells duration
        0  day=2019-03-02   7.0      2   2 days
        1  day=2019-03-06   6.0      1   1 days
        >>> len(merge_events(found, gap=2))
        1
    """
    found = as_results(found)
    axes = axes_of(found, neighbours, periodic)
    require_results(found, axes)
    time = time_axis(axes)
    if gap < 0:
        raise DataError(f"gap = {gap}: 0 or more steps expected")
    if gap and time is None:
        dims = ", ".join(axis.name for axis in axes)
        raise DataError(f"gap = {gap}: none of the dimensions ({dims}) is a time; name the one that is, in neighbours")
    cells = np.nonzero(found["flag"].values)
    event = _components(cells, axes, time, gap, diagonals)
    order = np.argsort(event, kind="stable")
    begins = np.flatnonzero(np.diff(event[order], prepend=-1))
    table = _table(found, axes, time, tuple(index[order] for index in cells), begins)
    return table.sort_values(["peak", "id"], ascending=[False, True], kind="stable", ignore_index=True)


def write_events(table: pd.DataFrame, folder: str | Path) -> None:
    """Write ``events.parquet`` and ``events.csv`` into a folder: each appears whole, and equal tables make equal files.

    Raises:
        SciflowError: A file cannot be written.
    """
    table = table.copy(deep=False)
    table.attrs = {}
    for name in ("events.parquet", "events.csv"):
        path = Path(folder, name)
        try:
            with written_whole(path) as beside:
                if path.suffix == ".csv":
                    table.to_csv(beside, index=False, lineterminator="\n")
                else:
                    table.to_parquet(beside, index=False)
        except OSError as error:
            raise SciflowError(f"{path}: cannot write the events: {error.strerror or error}") from error


def _components(
    cells: tuple[Integers, ...], axes: tuple[Axis, ...], time: Axis | None, gap: int, diagonals: bool
) -> Integers:
    """Number the connected components of cells, given in C order.

    Cells have keys that rise in C order, so that the neighbours at one offset are found by one search among them: the
    cost depends on how many cells are flagged, and not on how many there are.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    num_cells = len(cells[0])
    far = [(min(gap, len(axis.ticks)) if axis is time else 0) + axis.is_ordered for axis in axes]
    steps = [
        _steps(axis, reach) if axis is time else np.arange(len(axis.ticks))
        for axis, reach in zip(axes, far, strict=True)
    ]
    places = [step[index] for step, index in zip(steps, cells, strict=True)]
    # Beyond the last position there is room for a step too far, which then meets no cell.
    sizes = [
        len(step) if axis.is_periodic else int(step[-1:].sum()) + 1 + reach
        for axis, step, reach in zip(axes, steps, far, strict=True)
    ]
    keys = _keys(places, sizes)
    event, num_events = np.arange(num_cells), num_cells
    for offset in itertools.product(*(range(-reach, reach + 1) for reach in far)):
        # Of an offset and its opposite one is enough.
        if offset <= (0,) * len(offset) or (not diagonals and np.count_nonzero(offset) > 1):
            continue
        moved = [
            (place + by) % size if axis.is_periodic else place + by
            for axis, place, by, size in zip(axes, places, offset, sizes, strict=True)
        ]
        wanted = _keys(moved, sizes)
        there = np.searchsorted(keys, wanted).clip(max=num_cells - 1)
        here = np.flatnonzero(keys[there] == wanted)
        if len(here):
            pairs = (event[here], event[there[here]])
            graph = coo_array((np.ones(len(here), bool), pairs), (num_events, num_events))
            num_events, merged = connected_components(graph, directed=False)
            event = merged[event].astype(np.int64)
    return event


def _steps(axis: Axis, reach: int) -> Integers:
    """Positions along an axis, as many steps apart as its ticks are, but no further than cannot be reached."""
    sizes = np.abs(np.diff(axis.ticks)).astype(np.float64)
    if axis.is_periodic or not axis.step > 0:
        return np.arange(len(axis.ticks))
    return np.append(0, np.cumsum(np.clip(np.floor(sizes / axis.step + 0.5), 1, reach + 1))).astype(np.int64)


def _keys(places: list[Integers], sizes: list[int]) -> Integers:
    keys = np.zeros_like(places[0])
    for place, size in zip(places, sizes, strict=True):
        keys = keys * size + place
    return keys


def _table(
    found: xr.Dataset, axes: tuple[Axis, ...], time: Axis | None, cells: tuple[Integers, ...], begins: Integers
) -> pd.DataFrame:
    """One row an event, of cells that are sorted by their event; ``begins`` says where each event's do."""
    import pandas as pd

    dims = tuple(axis.name for axis in axes)
    num_cells = len(cells[0])
    counts = np.diff(begins, append=num_cells)
    event = np.repeat(np.arange(len(begins)), counts)
    score, p_value = (values_at(found[name], dims, cells) for name in ("score", "p_value"))
    moment = np.zeros(num_cells) if time is None else time.ticks[cells[axes.index(time)]]
    first, peak = np.lexsort((moment, event))[begins], np.lexsort((moment, -score, event))[begins]
    extrapolated = (
        values_at(found["extrapolated"], dims, cells) if "extrapolated" in found else np.zeros(num_cells, bool)
    )
    columns: dict[str, Any] = {
        "id": _texts([_name(axes, [index[i] for index in cells]) for i in first]),
        "peak": score[peak],
        "p_value": np.fmin.reduceat(p_value, begins) if num_cells else p_value,
        "extrapolated": np.logical_or.reduceat(extrapolated, begins) if num_cells else extrapolated,
        "cells": counts,
        "duration": np.full(len(begins), np.nan),
    }
    for axis, index in zip(axes, cells, strict=True):
        start, stop, extent = _extent(axis, index, begins)
        if axis is time:
            columns["duration"] = _duration(axis, start, stop)
        for what, place in (("start", start), ("stop", stop), ("peak", index[peak])):
            labels = axis.labels[place]
            columns[f"{axis.name}_{what}"] = _texts(labels) if labels.dtype == object else labels
        columns[f"{axis.name}_extent"] = extent
    columns["features"], columns["attribution"] = map(_texts, reasons(found, dims, cells, begins))
    return pd.DataFrame(columns)


def _name(axes: tuple[Axis, ...], place: list[int]) -> str:
    return ",".join(f"{axis.name}={text_of(axis.labels[i])}" for axis, i in zip(axes, place, strict=True))


def _texts(texts: Any) -> pd.Series:
    import pandas as pd

    return pd.Series(list(texts), dtype="str")


def _extent(axis: Axis, index: Integers, begins: Integers) -> tuple[Integers, Integers, Integers]:
    """First and last position of every event along an axis, and the number of positions from one to the other."""
    if not len(index):
        return index, index, index
    size, ends = len(axis.ticks), np.append(begins[1:], len(index))
    start, stop = np.minimum.reduceat(index, begins), np.maximum.reduceat(index, begins)
    extent = stop - start + 1
    for i in np.flatnonzero((extent == size) & axis.is_periodic):
        # It touches both ends: it goes round the seam, from the end of the widest space that it leaves.
        places = np.unique(index[begins[i] : ends[i]])
        spaces = np.diff(places, append=places[0] + size)
        widest = int(np.argmax(spaces))
        if spaces[widest] > 1:
            start[i], stop[i] = places[(widest + 1) % len(places)], places[widest]
            extent[i] = size - spaces[widest] + 1
    return (start, stop, extent) if axis.ticks[-1] >= axis.ticks[0] else (stop, start, extent)


def _duration(axis: Axis, start: Integers, stop: Integers) -> NDArray[Any]:
    """From the beginning of the first step to the end of the last."""
    span = axis.ticks[stop] - axis.ticks[start] + axis.step
    if axis.is_periodic:
        span = np.where(stop < start, span + len(axis.ticks) * axis.step, span)
    return span if axis.unit is None else span.astype(f"timedelta64[{axis.unit}]")
