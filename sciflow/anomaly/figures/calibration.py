"""Whether p-values can be trusted: their distribution, and that of the scores against calibration's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sciflow.report.drawing import FAINT, INK, PALETTE, joint_limits, legend_above, new_figure, style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["distance", "p_value_histogram", "score_distributions"]

MOST_BINS = 20
ROWS_PER_BIN = 5
MOST_POINTS = 1000


def p_value_histogram(p_value: NDArray[Any], calibration_rows: int | None = None) -> Figure:
    """Draw the distribution of p-values against the uniform one that rows like those of calibration have.

    Args:
        p_value: ``[...]``; what is missing is left out.
        calibration_rows: Rows that they were calibrated on: with few, the bins are wide enough to hold several of the
            values that there can be, and the uniform distribution is known less well.

    Returns:
        The figure; its label describes it in words.
    """
    values = p_value[np.isfinite(p_value)]
    resolution = MOST_BINS if calibration_rows is None else (calibration_rows + 1) // ROWS_PER_BIN
    num_bins = int(np.clip(min(resolution, len(values) // ROWS_PER_BIN), 1, MOST_BINS))
    figure, (axes,) = new_figure(7.4, 3.0)
    style(axes, "p-value", "share of rows, uniform = 1")
    # A p-value that is a bin's upper edge belongs to that bin: p <= 0.05 is what a level means.
    edges = np.linspace(0, 1, num_bins + 1)
    counts, _ = np.histogram(-values, -edges[::-1])
    relative = counts[::-1] / max(len(values), 1) * num_bins
    axes.stairs(relative, edges, fill=True, color=PALETTE[0], alpha=0.3)
    axes.stairs(relative, edges, color=PALETTE[0], lw=1.5, label=f"p-values ({len(values):,})")
    axes.axhline(1.0, color=INK, lw=1.2, ls="--", label="uniform")
    if len(values):
        spread = (1 / len(values) + (1 / calibration_rows if calibration_rows else 0)) * (num_bins - 1)
        axes.axhspan(
            1 - 2 * spread**0.5,
            1 + 2 * spread**0.5,
            color=FAINT,
            alpha=0.6,
            lw=0,
            zorder=0,
            label="95 % of independent rows",
        )
    axes.set_xlim(0, 1)
    axes.set_ylim(0, max(1.5, 1.08 * float(relative.max())))
    legend_above(figure, axes, num_columns=3)
    figure.set_label(
        f"Distribution of {len(values):,} p-values in {num_bins} bins; {relative[0]:.3g} times uniform in the lowest."
    )
    return figure


def score_distributions(calibration: NDArray[Any], new: NDArray[Any], title: str = "score") -> Figure:
    """Draw the cumulative distributions of two sets of scores, and where they are furthest apart.

    Args:
        calibration: Scores of calibration.
        new: Scores of new rows; what is missing is left out of both.
        title: What the score is, with its unit.

    Returns:
        The figure; its label describes it in words.
    """
    figure, (axes,) = new_figure(7.4, 3.2)
    style(axes, title, "share of rows below")
    groups = [np.sort(scores[~np.isnan(scores)].astype(np.float64)) for scores in (calibration, new)]
    for scores, name, colour, dashes in zip(
        groups, ("calibration", "new"), (PALETTE[0], PALETTE[1]), ("-", "-"), strict=True
    ):
        at = np.unique(np.linspace(0, len(scores) - 1, min(len(scores), MOST_POINTS)).round().astype(int))
        axes.step(
            scores[at],
            (at + 1) / max(len(scores), 1),
            where="post",
            color=colour,
            ls=dashes,
            lw=1.7,
            label=f"{name} ({len(scores):,})",
        )
    axes.set_xlim(*joint_limits([scores[np.isfinite(scores)] for scores in groups], reach=8.0))
    axes.set_ylim(0, 1.02)
    words = ""
    if all(map(len, groups)):
        furthest, where = distance(*groups)
        shares = [np.searchsorted(scores, where, "right") / len(scores) for scores in groups]
        axes.plot([where, where], shares, color=INK, lw=1.4, marker="_", ms=7, label=f"furthest apart: {furthest:.3g}")
        words = f"; furthest apart by {furthest:.3g}, at {where:.4g}"
    legend_above(figure, axes, num_columns=3)
    figure.set_label(
        f"Cumulative distributions of {len(groups[0]):,} scores of calibration and {len(groups[1]):,} new ones{words}."
    )
    return figure


def distance(first: NDArray[np.float64], second: NDArray[np.float64]) -> tuple[float, float]:
    """Kolmogorov and Smirnov's distance of two sorted samples, and the value at which they are that far apart.

    Example:
        >>> distance(np.array([1.0, 2.0, 3.0, 4.0]), np.array([3.0, 4.0, 5.0, 6.0]))
        (0.5, 2.0)
    """
    values = np.concatenate([first, second])
    shares = [np.searchsorted(sample, values, "right") / len(sample) for sample in (first, second)]
    apart = np.abs(shares[0] - shares[1])
    where = int(np.argmax(apart))
    return float(apart[where]), float(values[where])
