"""Figures of diagnostics; each function returns a figure and leaves no state behind."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from sciflow.inference.diagnostics.uniformity import band, distribution, evaluation_points
from sciflow.report.drawing import FAINT, INK, PALETTE, Floats, joint_limits, new_figure, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from sciflow.inference.diagnostics.coverage import Coverage
    from sciflow.inference.diagnostics.local_c2st import LocalC2ST
    from sciflow.inference.diagnostics.predictive import PosteriorPredictive
    from sciflow.inference.diagnostics.sbc import SBC
    from sciflow.inference.diagnostics.tarp import TARP

__all__ = ["coverage_curves", "ecdf_differences", "local_panels", "marginals", "statistics_panels"]

MOST_PANELS, MOST_CURVES = 12, 6
RIGHT, WRONG = PALETTE[0], PALETTE[1]


def ecdf_differences(found: SBC) -> Figure:
    """Draw the distribution function of ranks less the uniform one, one panel a quantity, the least uniform if many."""
    shown = np.sort(np.argsort(found.adjusted, kind="stable")[:MOST_PANELS])
    figure, panels = _panels(len(shown), found.verdict, 2.1)
    points = evaluation_points(len(found.ranks))
    low, high = (bound - points for bound in band(len(found.ranks), found.level))
    differences = found.ecdf() - points
    most = 1.15 * max(float(high.max()), float(np.abs(differences[shown]).max()))
    for axes, place in zip(panels, shown, strict=False):
        wrong = found.adjusted[place] <= found.level
        style(axes)
        axes.fill_between(points, low, high, color=FAINT, lw=0, label=_band_label(found.level))
        axes.axhline(0, color=INK, lw=0.8, ls="--")
        axes.plot(points, differences[place], color=WRONG if wrong else RIGHT, lw=1.6)
        axes.set_title(f"{found.names[place]}, p = {found.adjusted[place]:.2g}", fontsize=9, color=INK)
        axes.set_xlabel("rank of the truth, as a share", fontsize=8, color=INK)
        axes.set_xlim(0, 1)
        axes.set_ylim(-most, most)
    _legend(figure, panels[0])
    figure.supylabel("share of cases, less uniform", fontsize=9, color=INK)
    left_out = len(found.names) - len(shown)
    figure.set_label(
        f"Ranks of {len(found.ranks):,} cases, less uniform, with the band of {100 * (1 - found.level):.0f} %"
        + (f"; {left_out} more quantities are closer to uniform" if left_out else "")
        + f". {found.verdict}."
    )
    return figure


def coverage_curves(found: Coverage | TARP) -> Figure:
    """Draw coverage over credibility, and below it the difference, with the band of right posteriors."""
    values = found.values if found.values.ndim == 2 else found.values[:, None]
    names = getattr(found, "names", ("expected coverage",))
    adjusted = getattr(found, "adjusted", np.full(1, found.p_value))
    shown = np.argsort(adjusted, kind="stable")[:MOST_CURVES]
    figure, panels = _panels(2, found.verdict, 3.6)
    points = evaluation_points(len(values))
    low, high = band(len(values), found.level)
    for axes, off in zip(panels, (np.zeros_like(points), points), strict=True):
        style(axes, "credibility", "expected coverage" if axes is panels[0] else "coverage less credibility")
        axes.fill_between(points, low - off, high - off, color=FAINT, lw=0, label=_band_label(found.level))
        axes.plot([0, 1], [0, 1] if axes is panels[0] else [0, 0], color=INK, lw=0.8, ls="--")
        for curve, place in enumerate(shown):
            shares = distribution(values[:, place])
            axes.plot(
                points, shares - off, color=PALETTE[curve], lw=1.7, label=f"{names[place]}, p = {adjusted[place]:.2g}"
            )
        axes.set_xlim(0, 1)
    panels[0].set_ylim(0, 1)
    furthest = max(
        float((high - points).max()), *(float(np.abs(distribution(v) - points).max()) for v in values.T[shown])
    )
    panels[1].set_ylim(-1.15 * furthest, 1.15 * furthest)
    for x, y, text in ((0.02, 0.96, "too wide"), (0.02, 0.04, "too narrow, or off")):
        if getattr(found, "regions", None):
            panels[1].text(x, y, text, transform=panels[1].transAxes, fontsize=8, color=INK, va="center")
    _legend(figure, panels[0])
    figure.set_label(f"Expected coverage over credibility, {len(values):,} cases. {found.verdict}.")
    return figure


def marginals(p: Floats, q: Floats, names: Sequence[str], labels: tuple[str, str], title: str) -> Figure:
    """Draw the distribution of every parameter in two samples, those that differ most if there are many."""
    furthest = [-_distance(p[:, place], q[:, place]) for place in range(len(names))]
    shown = np.sort(np.argsort(furthest, kind="stable")[:MOST_PANELS])
    figure, panels = _panels(len(shown), title, 2.1)
    for axes, place in zip(panels, shown, strict=False):
        _two_histograms(axes, p[:, place], q[:, place], None, labels)
        style(axes, names[place])
        axes.set_yticks([])
    _legend(figure, panels[0])
    figure.set_label(f"Distributions of {len(names)} parameters. {title}.")
    return figure


def local_panels(found: LocalC2ST) -> Figure:
    """Draw the statistic among those of the null, and parameters as they are and as the classifier would have them."""
    shift = np.abs(((found.weights[:, None] - 1) * found.draws).mean(0)) / np.maximum(found.draws.std(0), 1e-300)
    shown = np.sort(np.argsort(-shift, kind="stable")[: MOST_PANELS - 1])
    figure, panels = _panels(len(shown) + 1, found.verdict, 2.3)
    style(panels[0], "mean square off 1/2")
    panels[0].hist(found.null, bins=30, color=FAINT, label="nothing to tell")
    panels[0].axvline(
        found.statistic, color=RIGHT if found.passed else WRONG, lw=2, label=f"here, p = {found.p_value:.2g}"
    )
    panels[0].set_yticks([])
    for axes, place in zip(panels[1:], shown, strict=False):
        column = found.draws[:, place]
        _two_histograms(axes, column, column, found.weights, ("draws", "as the classifier would have them"))
        style(axes, found.names[place])
        axes.set_yticks([])
    _legend(figure, panels[0], panels[1])
    figure.set_label(f"Local classifier test, and {len(shown)} parameters. {found.verdict}.")
    return figure


def statistics_panels(found: PosteriorPredictive) -> Figure:
    """Draw the distribution of every statistic in replicated data, and the observed one; the furthest out if many."""
    shown = np.sort(np.argsort(found.adjusted, kind="stable")[:MOST_PANELS])
    figure, panels = _panels(len(shown), found.verdict, 2.1)
    for axes, place in zip(panels, shown, strict=False):
        column, at = found.replicated[:, place], found.observed[place]
        wrong = 2 * found.adjusted[place] <= found.level
        axes.hist(column, bins=_edges([column]), color=FAINT, label="predicted")
        axes.axvline(at, color=WRONG if wrong else RIGHT, lw=2, label="observed")
        style(axes, found.names[place])
        axes.set_title(f"p = {found.p_values[place]:.2g}", fontsize=9, color=INK)
        axes.set_yticks([])
    _legend(figure, panels[0])
    figure.set_label(
        f"{len(found.names)} statistics of {len(found.replicated):,} replicated data sets. {found.verdict}."
    )
    return figure


def _panels(num: int, title: str, height: float) -> tuple[Figure, list[Axes]]:
    """Panels in rows of up to four, and the title over them, in lines that fit."""
    num_columns = (
        next(
            columns
            for columns in (4, 3, 2, 1)
            if num >= columns and (num % columns == 0 or columns < 4 < num or columns == num)
        )
        if num <= 4
        else 4
    )
    num_rows = -(-num // num_columns)
    width = max(5.0, 2.5 * num_columns) if height < 3 else 8.6
    lines = textwrap.wrap(title, int(13 * width))
    figure, panels = new_figure(width, height * num_rows + 0.25 * len(lines) + 0.6, num_rows, num_columns)
    figure.suptitle("\n".join(lines), fontsize=10, color=INK, x=0.01, ha="left")
    for axes in panels[num:]:
        axes.set_axis_off()
    return figure, panels[:num]


def _legend(figure: Figure, *panels: Axes) -> None:
    """A legend below all panels, where no curve can hide behind it."""
    given = [axes.get_legend_handles_labels() for axes in panels]
    handles, labels = [one for each, _ in given for one in each], [one for _, each in given for one in each]
    num_columns = 4 if figure.get_figwidth() > 6 else 2
    figure.legend(
        handles, labels, loc="outside lower left", ncols=num_columns, frameon=False, fontsize=8, labelcolor=INK
    )


def _band_label(level: float) -> str:
    return f"where {100 * (1 - level):.0f} % of right posteriors stay"


def _edges(columns: Sequence[Floats]) -> Any:
    low, high = joint_limits(columns)
    return np.linspace(low, high, 41)


def _two_histograms(axes: Axes, p: Floats, q: Floats, weights: Floats | None, labels: tuple[str, str]) -> None:
    edges = _edges([p, q])
    for column, weight, colour, label in ((p, None, RIGHT, labels[0]), (q, weights, WRONG, labels[1])):
        heights, _ = np.histogram(column, edges, weights=weight, density=True)
        axes.stairs(heights, edges, color=colour, lw=1.5, label=label, fill=False)
        axes.stairs(heights, edges, color=colour, alpha=0.15, fill=True)


def _distance(p: Floats, q: Floats) -> float:
    at = np.concatenate([p, q])
    shares = [np.searchsorted(np.sort(sample), at, "right") / len(sample) for sample in (p, q)]
    return float(np.abs(shares[0] - shares[1]).max())
