"""What the figures have in common: their colours, their axes, and limits that hold the bulk of the values."""

from __future__ import annotations

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
    "joint_limits",
    "midpoints",
    "new_figure",
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
