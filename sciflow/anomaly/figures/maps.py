"""Scores over two dimensions: maps at the peaks of events, and an overview of them all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sciflow.anomaly.axes import Axis
from sciflow.anomaly.figures.marks import Mark, bins, highest, number, outline
from sciflow.report.drawing import FAINT, INK, cell_edges, joint_limits, map_stretch, midpoints, new_figure, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["PeakMap", "overview", "peak_maps"]

WIDEST = (-1e300, 1e300)  # What colours can be drawn for.
MOST_CELLS = 500  # Along either side: a picture has not many more points.
REACH = 6.0  # Quartile ranges beyond the bulk that the colours go; a peak further out has the last colour.


@dataclass(frozen=True)
class PeakMap:
    """A map where an event peaks.

    Attributes:
        mark: The event.
        where: Where the map lies along the other dimensions, in words.
        score: ``[row, column]``.
        flag: ``[row, column]``.
    """

    mark: Mark
    where: str
    score: NDArray[Any]
    flag: NDArray[np.bool_]


def overview(
    axes: Sequence[Axis],
    places: tuple[int, int],
    score: NDArray[Any],
    flag: NDArray[np.bool_],
    marks: Sequence[Mark],
    title: str = "score",
) -> Figure:
    """Draw scores over two dimensions, what is flagged in outline, and the events' numbers at their peaks.

    Args:
        axes: The dimensions of the results.
        places: Which of them are the rows and the columns.
        score: ``[row, column]``; what is missing is grey.
        flag: ``[row, column]``.
        marks: Events to be numbered.
        title: What the score is, with its unit.

    Returns:
        The figure; its label describes it in words.
    """
    y, x = axes[places[0]], axes[places[1]]
    stretch = map_stretch(x.labels, y.labels, x.name, y.name)
    figure, (panel,) = new_figure(7.4, _height(x, y, stretch, 5.6) if stretch else 3.8)
    mesh = _panel(panel, x, y, score, flag, _limits([(score, flag)]))
    for mark in marks:
        _place_number(panel, mark, x, y, places)
    _bar(figure, mesh, [panel], score, title)
    flagged = f"{int(flag.sum()):,} of {flag.size:,} cells flagged, in outline"
    figure.set_label(f"Map of the {title} over {x.name} and {y.name}: {flagged}.")
    return figure


def peak_maps(axes: Sequence[Axis], places: tuple[int, int], maps: Sequence[PeakMap], title: str = "score") -> Figure:
    """Draw a map at the peak of each event, what is flagged in outline, all in the same colours.

    Args:
        axes: The dimensions of the results.
        places: Which of them are the rows and the columns.
        maps: One an event, at least one.
        title: What the score is, with its unit.

    Returns:
        The figure; its label describes it in words.
    """
    y, x = axes[places[0]], axes[places[1]]
    stretch = map_stretch(x.labels, y.labels, x.name, y.name)
    num_columns = min(2, len(maps))
    num_rows = -(-len(maps) // num_columns)
    height = _height(x, y, stretch, 5.6 / num_columns) if stretch else 5.0 / num_columns
    figure, panels = new_figure(7.4, 0.3 + num_rows * height, num_rows, num_columns)
    limits = _limits([(one.score, one.flag) for one in maps])
    for panel in panels[len(maps) :]:
        panel.set_axis_off()
    for i, (panel, one) in enumerate(zip(panels, maps, strict=False)):
        mesh = _panel(panel, x, y, one.score, one.flag, limits)
        panel.set_title(one.where, fontsize=10, color=INK, loc="left")
        _place_number(panel, one.mark, x, y, places)
        if i + num_columns < len(maps):
            panel.set_xlabel("")
        if i % num_columns:
            panel.set_ylabel("")
    _bar(figure, mesh, panels, np.concatenate([one.score.ravel() for one in maps]), title)
    told = "; ".join(f"event {one.mark.number} at {one.where}" for one in maps)
    figure.set_label(f"Maps of the {title} over {x.name} and {y.name}, what is flagged in outline: {told}.")
    return figure


def _height(x: Axis, y: Axis, stretch: float, width: float) -> float:
    return float(np.clip(width * stretch * np.ptp(y.labels) / np.ptp(x.labels), 0.3 * width, 1.3 * width)) + 0.6


def _limits(maps: Sequence[tuple[NDArray[Any], NDArray[np.bool_]]]) -> tuple[float, float]:
    """Ends of the colours: they hold the bulk of the scores, and reach the middle of those that are flagged."""
    score, flag = (np.concatenate([each.ravel() for each in group]) for group in zip(*maps, strict=True))
    finite = np.isfinite(score)
    low, high = joint_limits([score[finite].astype(np.float64)], reach=REACH)
    flagged = score[finite & flag]
    return low, max(high, float(np.median(flagged))) if len(flagged) else high


def _panel(
    axes: Axes, x: Axis, y: Axis, score: NDArray[Any], flag: NDArray[np.bool_], limits: tuple[float, float]
) -> Any:
    from matplotlib import colormaps

    style(axes, x.title, y.title)
    edges = [cell_edges(axis, labels) for axis, labels in ((axes.xaxis, x.labels), (axes.yaxis, y.labels))]
    x_edges, y_edges = (np.append(e[bins(len(e) - 1, MOST_CELLS)], e[-1]) for e in edges)
    score, flag = (highest(highest(values, MOST_CELLS, 0), MOST_CELLS, 1) for values in (score, flag))
    mesh = axes.pcolormesh(
        x_edges,
        y_edges,
        np.ma.masked_where(np.isnan(score), np.clip(score.astype(np.float64), *WIDEST)),
        cmap=colormaps["cividis"].with_extremes(bad=FAINT),
        vmin=limits[0],
        vmax=limits[1],
        rasterized=True,
    )
    outline(axes, flag, x_edges, y_edges)
    axes.set_facecolor(FAINT)
    axes.set_aspect(map_stretch(x.labels, y.labels, x.name, y.name) or "auto")
    axes.set_xlim(*sorted((x_edges[0], x_edges[-1])))
    axes.set_ylim(*sorted((y_edges[0], y_edges[-1])))
    return mesh


def _place_number(panel: Axes, mark: Mark, x: Axis, y: Axis, places: tuple[int, int]) -> None:
    row, column = (mark.peak[place] for place in places)
    x_edges, y_edges = cell_edges(panel.xaxis, x.labels), cell_edges(panel.yaxis, y.labels)
    number(panel, mark, midpoints(x_edges)[column], midpoints(y_edges)[row])


def _bar(figure: Figure, mesh: Any, panels: Sequence[Axes], score: NDArray[Any], title: str) -> None:
    low, high = mesh.get_clim()
    below, above = bool((score < low).any()), bool((score > high).any())
    extend = ("neither", "min", "max", "both")[below + 2 * above]
    bar = figure.colorbar(mesh, ax=list(panels), extend=extend, pad=0.02, aspect=30)
    bar.set_label(title, color=INK)
    bar.outline.set_visible(False)
