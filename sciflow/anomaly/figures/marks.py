"""What the figures of events have in common: which event is where, its number, and bins that keep peaks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sciflow.anomaly.axes import Axis
from sciflow.report.drawing import INK, PALETTE

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

__all__ = ["FLAGGED", "Mark", "bins", "highest", "marks_of", "number", "outline"]

FLAGGED = PALETTE[1]


@dataclass(frozen=True)
class Mark:
    """Where an event is drawn.

    Attributes:
        number: Its number in the page's table, from 1 on.
        peak: Position of its peak along each dimension.
        start: Position of its first label along each dimension.
        stop: Of its last.
    """

    number: int
    peak: tuple[int, ...]
    start: tuple[int, ...]
    stop: tuple[int, ...]


def marks_of(events: pd.DataFrame, axes: Sequence[Axis], most: int) -> list[Mark]:
    """The first events of a table, those whose peak is among the results; what lies beyond their ends is cut off."""
    events = events.iloc[:most]
    if not len(events):
        return []
    places = {}
    for what in ("peak", "start", "stop"):
        columns = [axis.positions_of(events[f"{axis.name}_{what}"]) for axis in axes]
        if what != "peak":
            ends = [np.argmin(axis.ticks) if what == "start" else np.argmax(axis.ticks) for axis in axes]
            columns = [np.where(column < 0, end, column) for end, column in zip(ends, columns, strict=True)]
        places[what] = [tuple(place) for place in np.stack(columns, 1).tolist()]
    rows = zip(places["peak"], places["start"], places["stop"], strict=True)
    return [Mark(i, *row) for i, row in enumerate(rows, 1) if min(row[0]) >= 0]


def bins(size: int, most: int) -> NDArray[np.int64]:
    """Where at most ``most`` bins of about the same size begin.

    Example:
        >>> bins(7, 3), bins(2, 3)
        (array([0, 2, 4]), array([0, 1]))
    """
    return np.arange(min(size, most)) * size // min(size, most) if size else np.zeros(0, np.int64)


def highest(values: NDArray[Any], most: int, axis: int = 0) -> NDArray[Any]:
    """The highest value of each bin: no peak is lost. What is missing counts only where all of a bin is."""
    begins = bins(values.shape[axis], most)
    if len(begins) == values.shape[axis]:
        return values
    return (np.logical_or if values.dtype == bool else np.fmax).reduceat(values, begins, axis=axis)


def number(axes: Axes, mark: Mark, x: float, y: float, **options: Any) -> None:
    """Write the number of an event in a small circle, legible on any ground."""
    axes.annotate(
        str(mark.number),
        (x, y),
        ha="center",
        va="center",
        fontsize=8,
        color=INK,
        bbox={"boxstyle": "circle,pad=0.18", "fc": "white", "ec": FLAGGED, "lw": 1.1},
        zorder=6,
        annotation_clip=False,
        **options,
    )


def outline(axes: Axes, mask: NDArray[np.bool_], x_edges: NDArray[Any], y_edges: NDArray[Any]) -> None:
    """Draw a line round the cells ``[y, x]`` of a mask."""
    from matplotlib.collections import LineCollection

    framed = np.pad(mask, 1)
    rows, columns = np.nonzero(framed[1:, 1:-1] != framed[:-1, 1:-1])
    across = np.stack([x_edges[[columns, columns + 1]].T, np.repeat(y_edges[rows][:, None], 2, 1)], -1)
    rows, columns = np.nonzero(framed[1:-1, 1:] != framed[1:-1, :-1])
    upright = np.stack([np.repeat(x_edges[columns][:, None], 2, 1), y_edges[[rows, rows + 1]].T], -1)
    segments = np.concatenate([across, upright])
    for colour, width in (("white", 2.4), (FLAGGED, 1.2)):
        axes.add_collection(LineCollection(list(segments), colors=colour, linewidths=width, capstyle="round", zorder=3))
