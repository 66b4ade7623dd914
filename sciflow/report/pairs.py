"""Data against samples, every pair of features."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sciflow.errors import DataError
from sciflow.report.drawing import (
    INK,
    PALETTE,
    Floats,
    as_array,
    joint_limits,
    midpoints,
    new_figure,
    only_finite,
    style,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["corner"]

MAX_POINTS = 2000  # More points a panel than this hide each other.
LABEL_WIDTH = 25  # Letters beside a panel.
MASS_LEVELS = (0.393, 0.865)  # One and two standard deviations of a Gaussian in two dimensions.


def corner(
    data: Any,
    samples: Any,
    names: Sequence[str] | None = None,
    max_features: int = 5,
    seed: int = 0,
    called: tuple[str, str] = ("data", "samples"),
) -> Figure:
    """Draw data against samples, every pair of features: points are data, contours the samples.

    The contours hold 39 % and 86 % of the samples: one and two standard deviations, were they Gaussian. Where an event
    has more features than are drawn, evenly spaced ones stand for it, the first and last among them; which ones
    depends on the shape alone.

    Args:
        data: Events ``[n, *event]``, in data units.
        samples: Draws ``[m, *event]`` from the model.
        names: A name for each feature, flattened; units belong in them. None numbers them.
        max_features: How many features are drawn at most.
        seed: Of the choice of the points drawn where there are many.
        called: What the points are, and what the contours, in the legend.

    Returns:
        The figure; its label describes it in words.

    Raises:
        DataError: Data and samples differ in their event, have no rows, or the names do not fit.

    Example:
        >>> rows = np.arange(30.0).reshape(10, 3)
        >>> corner(rows, rows + 0.5, names=["a", "b", "c"]).get_label()
        '10 events of the data against 10 samples of the model, by a, b, c.'
    """
    data, samples = _rows(data, "data"), _rows(samples, "samples")
    if data.shape[1] != samples.shape[1]:
        raise DataError(
            f"corner: events of {data.shape[1]} features in data, of {samples.shape[1]} in samples; "
            "both must come from the same layout"
        )
    num_features = data.shape[1]
    if names is not None and len(names) != num_features:
        raise DataError(f"corner: {len(names)} names for {num_features} features; give one name a feature")
    if max_features < 1:
        raise DataError(f"corner: max_features = {max_features}; give 1 or more")
    shown = np.unique(np.linspace(0, num_features - 1, min(max_features, num_features)).round().astype(int))
    labels = [names[i] if names is not None else f"feature {i}" for i in shown]
    short = [_beside_a_panel(label) for label in labels]
    data, samples = data[:, shown], samples[:, shown]
    limits = [joint_limits([only_finite(data[:, i]), only_finite(samples[:, i])]) for i in range(len(shown))]
    few = np.sort(np.random.default_rng(seed).permutation(len(data))[:MAX_POINTS])

    side = max(1.9 * len(shown), 3.6)
    figure, panels = new_figure(side, side, len(shown), len(shown))
    grid = np.array(panels).reshape(len(shown), len(shown))
    for row in range(len(shown)):
        for column in range(len(shown)):
            axes: Axes = grid[row, column]
            if column > row:
                axes.set_axis_off()
                continue
            style(axes)
            if column == row:
                _diagonal(axes, data[:, row], samples[:, row], limits[row])
            else:
                axes.plot(
                    data[few, column],
                    data[few, row],
                    ls="",
                    marker=".",
                    ms=2.5,
                    mew=0,
                    color=PALETTE[0],
                    alpha=float(np.clip(60 / math.sqrt(len(few)) / 2, 0.25, 0.8)),
                    rasterized=True,
                )
                _mass_contours(axes, samples[:, column], samples[:, row], limits[column], limits[row])
                axes.set_ylim(*limits[row])
            axes.set_xlim(*limits[column])
            _panel_ticks(axes, short, row, column)
    figure.align_labels()
    _corner_legend(figure, grid, len(data), len(samples), called)
    figure.set_label(
        f"{len(data):,} events of the data against {len(samples):,} samples of the model, by {', '.join(labels)}."
    )
    return figure


def _diagonal(axes: Axes, data: Floats, samples: Floats, limits: tuple[float, float]) -> None:
    num_bins = int(np.clip(3 * min(len(data), len(samples)) ** (1 / 3), 10, 40))
    edges = np.linspace(*limits, num_bins + 1)
    for values, colour, fill in ((data, PALETTE[0], True), (samples, PALETTE[1], False)):
        counts, _ = np.histogram(values, edges)
        density = counts / max(len(values), 1) / (edges[1] - edges[0])
        axes.stairs(density, edges, fill=fill, color=colour, alpha=0.35 if fill else 1.0, lw=1.5)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.set_ylim(bottom=0)


def _mass_contours(
    axes: Axes, x: Floats, y: Floats, x_limits: tuple[float, float], y_limits: tuple[float, float]
) -> None:
    """Contours of a smoothed histogram at the heights above which it holds the shares ``MASS_LEVELS``."""
    from scipy.ndimage import gaussian_filter

    num_bins = 48
    counts, x_edges, y_edges = np.histogram2d(x, y, num_bins, range=[x_limits, y_limits])
    smooth = gaussian_filter(counts, float(np.clip(12 * max(len(x), 1) ** (-1 / 4), 1.0, 4.0)))
    heights = np.sort(smooth.ravel())[::-1]
    mass = np.cumsum(heights)
    if mass[-1] == 0:
        return
    levels = sorted({float(heights[np.searchsorted(mass, level * mass[-1])]) for level in MASS_LEVELS})
    levels = [level for level in levels if 0 < level < smooth.max()]
    if levels:
        axes.contour(midpoints(x_edges), midpoints(y_edges), smooth.T, levels, colors=PALETTE[1], linewidths=[0.9, 1.5])


def _panel_ticks(axes: Axes, labels: Sequence[str], row: int, column: int) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(3, prune="both"))
    if row == len(labels) - 1:
        axes.set_xlabel(labels[column], color=INK, fontsize=8)
        axes.tick_params(axis="x", rotation=30)
    else:
        axes.tick_params(labelbottom=False)
    if row != column:
        axes.yaxis.set_major_locator(MaxNLocator(3, prune="both"))
        axes.tick_params(labelleft=column == 0)
        if column == 0:
            axes.set_ylabel(labels[row], color=INK, fontsize=8)


def _beside_a_panel(name: str) -> str:
    """A name in two lines as long as a panel is wide; of a longer one, which ends in its unit, the middle is left out.

    Example:
        >>> _beside_a_panel("Standard deviation of the integrated pulse profile")
        'Standard deviation of the\\nintegrated pulse profile'
    """
    kept = len(name)
    while len(lines := textwrap.wrap(name if kept == len(name) else _without_middle(name, kept), LABEL_WIDTH)) > 2:
        kept = min(kept, 2 * LABEL_WIDTH + 1) - 1
    # A dollar sign would begin a formula.
    return "\n".join(lines).replace("$", r"\$")


def _without_middle(name: str, length: int) -> str:
    return f"{name[: length // 2].rstrip()}\N{HORIZONTAL ELLIPSIS}{name[len(name) - (length - 1) // 2 :].lstrip()}"


def _corner_legend(
    figure: Figure, grid: NDArray[Any], num_data: int, num_samples: int, called: tuple[str, str]
) -> None:
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], color=PALETTE[0], marker=".", ms=8, ls="", label=f"{called[0]} ({num_data:,})"),
        Line2D([], [], color=PALETTE[1], lw=1.5, label=f"{called[1]} ({num_samples:,})"),
    ]
    # Of two features, the corner is narrower than the words.
    if len(grid) > 2:
        legend = grid[0, -1].legend(handles=handles, loc="upper right", frameon=False, fontsize=10)
        legend.set_in_layout(False)
    else:
        figure.legend(handles=handles, loc="outside lower center", ncols=1, frameon=False, fontsize=9)


def _rows(values: Any, name: str) -> Floats:
    values = as_array(values)
    if values.ndim < 1 or values.size == 0:
        raise DataError(f"corner: {name} of shape {list(values.shape)} has no rows; give [rows, *event]")
    return values.reshape(len(values), -1)
