"""Which figures suit results: a series where there is a time, maps where there are two more dimensions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sciflow.anomaly.axes import Axis, text_of, time_axis
from sciflow.anomaly.figures.maps import PeakMap, overview, peak_maps
from sciflow.anomaly.figures.marks import Mark, marks_of
from sciflow.anomaly.figures.series import score_series

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

__all__ = ["where_figures"]

MOST_EVENTS, MOST_MAPS = 10, 6


def where_figures(
    score: NDArray[Any], flag: NDArray[np.bool_], events: pd.DataFrame, axes: Sequence[Axis], title: str = "score"
) -> list[Figure]:
    """Draw where the events are: as a series, in an overview, and on maps at their peaks, as far as there can be any.

    Dimensions that a figure does not show are taken at their highest score; on a map at a peak, where the peak is.

    Args:
        score: Over ``axes``, with at least one cell.
        flag: The same.
        events: The first of them are numbered.
        axes: The dimensions of the results.
        title: What the score is, with its unit.
    """
    marks = marks_of(events, axes, MOST_EVENTS)
    time = axes[0] if len(axes) == 1 else time_axis(axes)
    others = [place for place, axis in enumerate(axes) if axis is not time]
    rows, columns = _map_places(axes, others)
    figures = []
    if time is not None:
        along = axes.index(time)
        series, flags = _over(score, [along]), _over(flag, [along])
        what = f"highest {title}" if others else title
        figures.append(score_series(time, series, flags, marks, along, what, _threshold(score, flag)))
        if others:
            places = (rows, along)
            figures.append(overview(axes, places, _over(score, places), _over(flag, places), marks, title))
    if len(others) >= 2:
        places = (rows, columns)
        if len(others) == len(axes) == 2:
            figures.append(overview(axes, places, _over(score, places), _over(flag, places), marks, title))
        elif marks:
            maps = [
                PeakMap(mark, _elsewhere(axes, mark, places), _at(score, mark, places), _at(flag, mark, places))
                for mark in marks[:MOST_MAPS]
            ]
            figures.append(peak_maps(axes, places, maps, title))
    return figures


def _map_places(axes: Sequence[Axis], others: list[int]) -> tuple[int, int]:
    """Dimensions of a map's rows and columns: the last two, latitudes upwards."""
    if len(others) < 2:
        return (others or [0])[0], 0
    rows, columns = others[-2:]
    return (columns, rows) if axes[columns].name.lower().startswith(("lat", "y")) else (rows, columns)


def _over(values: NDArray[Any], places: Sequence[int]) -> NDArray[Any]:
    """The highest value over all dimensions but some, which are put in their order."""
    rest = tuple(place for place in range(values.ndim) if place not in places)
    # What is missing counts only where all is.
    kept = np.logical_or.reduce(values, rest) if values.dtype == bool else np.fmax.reduce(values, rest)
    return kept.transpose(np.argsort(np.argsort(places))) if kept.ndim > 1 else kept


def _at(values: NDArray[Any], mark: Mark, places: tuple[int, int]) -> NDArray[Any]:
    """Values over two dimensions, where a peak is along the others."""
    kept = values[tuple(slice(None) if place in places else at for place, at in enumerate(mark.peak))]
    return kept if places[0] < places[1] else kept.T


def _elsewhere(axes: Sequence[Axis], mark: Mark, places: tuple[int, int]) -> str:
    """Where a peak is along the dimensions that a map does not show, in words."""
    words = [
        text_of(axis.labels[at])
        if axis.unit is not None or axis.labels.dtype == object
        else f"{axis.name} {text_of(axis.labels[at])}"
        for place, (axis, at) in enumerate(zip(axes, mark.peak, strict=True))
        if place not in places
    ]
    return ", ".join(words)


def _threshold(score: NDArray[Any], flag: NDArray[np.bool_]) -> float | None:
    """The lowest flagged score, where none that is higher is not flagged: calibration by groups has no such score."""
    if not flag.any():
        return None
    lowest = float(np.min(score[flag]))
    return lowest if np.fmax.reduce(score[~flag], initial=-np.inf) < lowest and np.isfinite(lowest) else None
