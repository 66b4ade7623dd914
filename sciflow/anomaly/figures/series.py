"""Scores over time, or from row to row, with their events."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sciflow.anomaly.axes import Axis
from sciflow.anomaly.figures.marks import FLAGGED, Mark, bins, highest, number
from sciflow.report.drawing import INK, PALETTE, cell_edges, legend_above, midpoints, new_figure, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["score_series"]

MOST_POINTS = 1400  # Two for every point of the picture's width hide each other.
WIDTH = 7.4
NARROWEST = 0.004  # Share of the width, below which an event could not be seen.
BESIDE = 0.013  # Share of the width that a number takes on either side.
HEAVY = 20.0  # Times the spread of the bulk; scores further above it would flatten it.
EVENT = PALETTE[4]
Span = tuple[float, float]
HEIGHT, LANE = 3.4, 17.0  # Inches, and points.


def score_series(
    axis: Axis,
    score: NDArray[Any],
    flag: NDArray[np.bool_],
    marks: Sequence[Mark],
    along: int = 0,
    title: str = "score",
    threshold: float | None = None,
) -> Figure:
    """Draw scores along one dimension, those that are flagged, and the events shaded and numbered.

    Of more scores than a page is wide the highest of each span is drawn, so that no peak is lost. An axis of scores
    that are far above all others is logarithmic there.

    Args:
        axis: What the scores lie along.
        score: ``[n]``; what is missing is left out.
        flag: ``[n]``.
        marks: Events to be drawn.
        along: Which dimension of the marks ``axis`` is.
        title: What the score is, with its unit.
        threshold: The score from which on all are flagged, where there is one.

    Returns:
        The figure; its label describes it in words.
    """
    figure, (axes,) = new_figure(WIDTH, HEIGHT)
    style(axes, axis.title, title)
    edges = cell_edges(axes.xaxis, axis.labels)
    begins = bins(len(score), MOST_POINTS)
    x = midpoints(np.append(edges[begins], edges[-1]))
    top, flagged = highest(score.astype(np.float64), MOST_POINTS), highest(flag, MOST_POINTS)
    limits = _limits(axes, top, threshold)
    shown = np.clip(top, *limits)
    line = {"lw": 1.0} if axis.is_ordered else {"ls": "", "marker": ".", "ms": 3.5, "mew": 0}
    many = len(begins) < len(score)
    words = "score" + (f", the highest of each {-(-len(score) // len(begins)):,} or so" if many else "")
    axes.plot(x, shown, color=PALETTE[0], label=words, rasterized=True, **line)
    _lone_points(axes, x, shown)
    if flagged.any():
        axes.plot(x[flagged], shown[flagged], ls="", marker="o", ms=4, mew=0, color=FLAGGED, label="flagged", zorder=4)
    if threshold is not None:
        axes.axhline(threshold, color=INK, lw=1.0, ls="--", label=f"flagged from {threshold:.4g} on")
    low, high = sorted((edges[0], edges[-1]))
    room = BESIDE * (high - low)
    axes.set_xlim(low - room / 2, high + room / 2)
    axes.set_ylim(*limits)
    peaks = midpoints(edges)[[mark.peak[along] for mark in marks]]
    spans = [_spans(mark.start[along], mark.stop[along], axis, edges) for mark in marks]
    _shade(axes, sorted(span for each in spans for span in each), NARROWEST * (high - low))
    num_lanes = _lanes(figure, axes, marks, peaks, spans, room)
    figure.set_size_inches(WIDTH, HEIGHT + num_lanes * LANE / 72)
    legend_above(figure, axes, num_columns=4)
    missing = int(np.isnan(score).sum())
    figure.set_label(
        f"Scores of {len(score):,} positions along {axis.name}, {int(flag.sum()):,} of them flagged"
        + (f", {missing:,} missing" if missing else "")
        + f"; {len(marks)} events are shaded."
    )
    return figure


def _limits(axes: Axes, score: NDArray[np.float64], threshold: float | None) -> tuple[float, float]:
    """Limits that hold every score that is finite, on a scale on which the bulk is still seen."""
    finite = score[np.isfinite(score)]
    if not len(finite):
        return 0.0, 1.0
    ends = [*finite, *([] if threshold is None else [threshold])]
    low, high = float(min(ends)), float(max(ends))
    middle, upper = np.quantile(finite, [0.5, 0.9])
    if upper > middle and high - middle > HEAVY * (upper - middle):
        axes.set_yscale("asinh", linear_width=max(abs(float(upper)), 1e-6))
        return low - 0.1 * (float(upper) - low), high + 0.3 * (high - low)
    room = (high - low) or max(abs(high), 1.0)
    return low - 0.05 * room, high + 0.08 * room


def _lone_points(axes: Axes, x: NDArray[np.float64], score: NDArray[np.float64]) -> None:
    """What has nothing on either side would not be seen as a line."""
    missing = np.pad(np.isnan(score), 1, constant_values=True)
    lone = ~missing[1:-1] & missing[:-2] & missing[2:]
    axes.plot(x[lone], score[lone], ls="", marker=".", ms=4, mew=0, color=PALETTE[0])


def _spans(start: int, stop: int, axis: Axis, edges: NDArray[np.float64]) -> list[Span]:
    """From a start to a stop: two spans across a periodic seam, and none longer than a point without an order."""
    if not axis.is_ordered:
        return [(float(edges[start : start + 2].mean()),) * 2]
    if axis.is_periodic and stop < start:
        parts = [(0, stop + 1), (start, len(axis.labels))]
    else:
        parts = [(min(start, stop), max(start, stop) + 1)]
    return [(float(min(edges[[low, high]])), float(max(edges[[low, high]]))) for low, high in parts]


def _shade(axes: Axes, spans: Sequence[Span], narrowest: float) -> None:
    """Shade the union of spans, which come in order: where several overlap it is no darker."""
    label, last = "event", -np.inf
    for low, high in spans:
        half = max(high - low, narrowest) / 2
        left, right = max((low + high) / 2 - half, last), (low + high) / 2 + half
        if right > left:
            axes.axvspan(left, right, color=EVENT, alpha=0.3, lw=0, zorder=0, label=label)
            label, last = "", right


def _lanes(
    figure: Figure,
    axes: Axes,
    marks: Sequence[Mark],
    peaks: NDArray[np.float64],
    spans: Sequence[list[Span]],
    room: float,
) -> int:
    """Draw each event above the axes, a bar as long as it lasts with its number at the peak; return the lanes used."""
    from matplotlib.transforms import offset_copy

    lanes: list[list[Span]] = []
    for mark, peak, bars in zip(marks, peaks, spans, strict=True):
        needs = [*bars, (peak - room, peak + room)]
        lane = next((i for i, taken in enumerate(lanes) if not _overlap(needs, taken)), len(lanes))
        if lane == len(lanes):
            lanes.append([])
        lanes[lane] += needs
        height = LANE * (0.6 + lane)
        above = offset_copy(axes.get_xaxis_transform(), figure, y=height, units="points")
        for bar in bars:
            axes.plot(bar, [1, 1], color=EVENT, lw=5, solid_capstyle="butt", transform=above, clip_on=False)
        place = {"xycoords": axes.get_xaxis_transform(), "xytext": (0, height), "textcoords": "offset points"}
        number(axes, mark, peak, 1.0, **place)
    return len(lanes)


def _overlap(some: Sequence[Span], others: Sequence[Span]) -> bool:
    return any(low < right and left < high for low, high in some for left, right in others)
