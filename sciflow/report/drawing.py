"""What the figures have in common: their colours, their axes, and limits that hold the bulk of the values."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "FAINT",
    "INK",
    "PALETTE",
    "Floats",
    "as_array",
    "cell_edges",
    "joint_limits",
    "legend_above",
    "map_stretch",
    "midpoints",
    "new_figure",
    "on_axis",
    "only_finite",
    "style",
]

Floats = NDArray[np.float64]

# Okabe and Ito's palette: told apart with any colour vision, and in grey by their lightness.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
INK, FAINT = "#333333", "#D9D9D9"


def new_figure(width: float, height: float, num_rows: int = 1, num_columns: int = 1) -> tuple[Figure, list[Axes]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    panels = figure.subplots(num_rows, num_columns, squeeze=False)
    return figure, list(panels.ravel())


def style(axes: Axes, x_label: str = "", y_label: str = "") -> None:
    axes.set_xlabel(x_label, color=INK)
    axes.set_ylabel(y_label, color=INK)
    axes.tick_params(colors=INK, labelsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(INK)
    axes.set_axisbelow(True)


def joint_limits(groups: Sequence[Floats], reach: float = 6.0) -> tuple[float, float]:
    """Limits that hold the bulk of every group: its extremes, but no further than ``reach`` quartile ranges out."""
    bounds = []
    for values in groups:
        if len(values):
            lower, upper = np.quantile(values, [0.25, 0.75])
            far = reach * (upper - lower)
            if far == 0:  # More than half the values are equal: the quartiles say nothing of the rest.
                far = np.quantile(np.abs(values - lower), 0.99)
            bounds.append((max(values.min(), lower - far), min(values.max(), upper + far)))
    if not bounds:
        return 0.0, 1.0
    low, high = float(min(b[0] for b in bounds)), float(max(b[1] for b in bounds))
    room = 0.04 * (high - low) or max(abs(low) * 0.05, 0.5)
    return low - room, high + room


def midpoints(values: Floats) -> Floats:
    return (values[:-1] + values[1:]) / 2


def only_finite(values: Floats) -> Floats:
    return values[np.isfinite(values)]


def as_array(values: Any) -> Floats:
    if hasattr(values, "detach"):
        values = values.detach().cpu()
    return np.asarray(values, dtype=np.float64)


def legend_above(figure: Figure, axes: Axes, num_columns: int = 1) -> None:
    """A legend above the axes, where no curve can hide behind it."""
    handles, words = axes.get_legend_handles_labels()
    figure.legend(handles, words, loc="outside upper left", frameon=False, fontsize=9, ncols=num_columns)


def on_axis(axis: Any, values: NDArray[Any]) -> Floats:
    """Values as numbers of an axis; dates and words get their tick labels there."""
    if np.issubdtype(values.dtype, np.datetime64):
        from matplotlib.dates import AutoDateLocator, ConciseDateFormatter, date2num

        locator = AutoDateLocator()
        axis.set_major_locator(locator)
        axis.set_major_formatter(ConciseDateFormatter(locator))
        return np.asarray(date2num(values), dtype=np.float64)
    if np.issubdtype(values.dtype, np.timedelta64):
        return values / np.timedelta64(1, "h")
    if np.issubdtype(values.dtype, np.number):
        return values.astype(np.float64)
    numbers = np.arange(len(values), dtype=np.float64)
    words = [str(word) for word in values]
    # As many words as stand beside each other along a page; one above the other there is room for a dozen.
    most = 12 if axis.axis_name == "y" else int(np.clip(80 / (2 + max(map(len, words), default=0)), 2, 12))
    step = max(1, -(-len(words) // most))
    axis.set_ticks(numbers[::step], words[::step])
    return numbers


def cell_edges(axis: Any, centres: NDArray[Any]) -> Floats:
    """Edges of the cells around centres, as numbers of an axis; see :func:`on_axis`."""
    numbers = on_axis(axis, centres)
    if len(numbers) == 1:
        return np.array([numbers[0] - 0.5, numbers[0] + 0.5])
    middles = midpoints(numbers)
    return np.concatenate([[2 * numbers[0] - middles[0]], middles, [2 * numbers[-1] - middles[-1]]])


def map_stretch(x: NDArray[Any], y: NDArray[Any], x_name: str, y_name: str) -> float | None:
    """Length of a degree of latitude in degrees of longitude, in the middle of a map; None where it is no such map."""
    for values, name, start in ((x, x_name, "lon"), (y, y_name, "lat")):
        if not name.lower().startswith(start) or not np.issubdtype(values.dtype, np.number) or len(values) < 2:
            return None
    return 1 / max(math.cos(math.radians(float(np.mean(y)))), 0.2)
