"""Figures of training and of log p; each function returns a figure and leaves no state behind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from sciflow.errors import DataError
from sciflow.report.drawing import (
    FAINT,
    INK,
    PALETTE,
    Floats,
    as_array,
    cell_edges,
    joint_limits,
    legend_above,
    map_stretch,
    new_figure,
    only_finite,
    style,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["log_prob_histogram", "loss_curve", "score_map"]


def loss_curve(metrics: Sequence[Mapping[str, Any]]) -> Figure:
    """Draw the training loss and minus the validation log p (or score) over the steps, and mark the best validation.

    The axis follows the settled part of the curve: the first steps can be orders of magnitude above it. What is trained
    by something else than log p has a panel for that below.

    Args:
        metrics: Records with ``step`` and either ``loss`` (training, nats), ``objective`` (training, where that is not
            log p), or ``validation_log_prob`` and ``validation_error`` (nats), or ``validation_score`` and
            ``validation_error`` (where a density is judged by something else). Other records, and values that are not
            finite, are passed over.

    Returns:
        The figure; its label describes it in words.

    Example:
        >>> figure = loss_curve([{"step": 1, "loss": 3.0}, {"step": 2, "validation_log_prob": -2.0}])
        >>> figure.get_label()
        'Loss over 2 steps; best validation log p -2 nats at step 2.'
    """
    from matplotlib.ticker import MaxNLocator, StrMethodFormatter

    training, objective = _series(metrics, "loss"), _series(metrics, "objective")
    validation, unit, judged = _series(metrics, "validation_log_prob", "validation_error"), " nats", "log p"
    if len(validation) == 0:
        scores = _series(metrics, "validation_score", "validation_error")
        validation, unit, judged = (scores, "", "score") if len(scores) else (validation, unit, judged)
    figure, (axes, *below) = new_figure(7.0, 6.0 if len(objective) else 4.0, num_rows=2 if len(objective) else 1)
    style(axes, "step", "loss, mean of $-\\log p$ (nats)" if unit else "validation, minus the score")
    if len(training) + len(validation) + len(objective) == 0:
        _say(axes, "nothing recorded yet")
        figure.set_label("Loss: nothing recorded yet.")
        return figure
    last = max(np.max(series[:, 0]) for series in (training, validation, objective) if len(series))
    label = f"Loss over {int(last):,} steps"
    _draw_training(axes, training)
    for panel in below:
        style(panel, "step", "training objective")
        _draw_training(panel, objective)
        panel.set_ylim(*_loss_limits(objective[:, 1], objective[:, 1]))
    if len(validation):
        step, loss, error = validation[:, 0], -validation[:, 1], validation[:, 2]
        axes.errorbar(
            step,
            loss,
            yerr=error,
            color=PALETTE[1],
            marker="o",
            ms=3.5,
            lw=1.3,
            elinewidth=1,
            capsize=2,
            label="validation",
        )
        best = int(np.argmin(loss))
        told = f"{-loss[best]:.4g}" + (f" ± {error[best]:.2g}" if error[best] > 0 else "")
        axes.plot(
            step[best],
            loss[best],
            marker="*",
            ms=15,
            color=PALETTE[4],
            mec=INK,
            mew=0.8,
            ls="",
            zorder=5,
            label=f"best: {judged} {told}{unit}, step {int(step[best]):,}",
        )
        label += f"; best validation {judged} {told}{unit} at step {int(step[best]):,}"
    if len(training) + len(validation):
        axes.set_ylim(*_loss_limits(training[:, 1], -validation[:, 1]))
    for panel in (axes, *below):
        if below:
            panel.set_xlim(0, 1.03 * last)
        panel.xaxis.set_major_locator(MaxNLocator(7, integer=True))
        panel.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    legend_above(figure, axes, num_columns=2)
    figure.set_label(label + ".")
    return figure


def log_prob_histogram(groups: Mapping[str, Any]) -> Figure:
    """Draw the distribution of log p of each group of events, on one axis.

    The axis holds the bulk of every group; the legend counts what lies outside it and what is not finite, so that
    nothing disappears unsaid.

    Args:
        groups: Name to log p (nats), an array or tensor of any shape.

    Returns:
        The figure; its label describes it in words.

    Raises:
        DataError: There is no group, or no group has a row.

    Example:
        >>> log_prob_histogram({"test": [-3.0, -2.0, -2.5, float("-inf")]}).get_label()
        'Distribution of log p. test: 4 rows, median -2.75 nats.'
    """
    rows = {name: as_array(values).ravel() for name, values in groups.items()}
    if not any(len(values) for values in rows.values()):
        raise DataError("log_prob_histogram: no group has a row; give at least one array that is not empty")
    finite = {name: values[np.isfinite(values)] for name, values in rows.items()}
    some = [values for values in finite.values() if len(values)]
    low, high = joint_limits(some, reach=3.0)
    # Fine enough for the narrowest group, by the rule of Freedman and Diaconis, within reason.
    widths = [2 * float(np.subtract(*np.quantile(v, [0.75, 0.25]))) / len(v) ** (1 / 3) for v in some]
    width = min((w for w in widths if w > 0), default=high - low)
    num_bins = int(np.clip((high - low) / width, 12, 120))
    edges = np.linspace(low, high, num_bins + 1)
    figure, (axes,) = new_figure(7.0, 4.0)
    style(axes, "log p (nats)", "share of events per nat")
    told = []
    for i, (name, values) in enumerate(finite.items()):
        counts, _ = np.histogram(values, edges)
        density = counts / max(len(values), 1) / (edges[1] - edges[0])
        notes = [f"{len(rows[name]):,} rows"]
        for count, what in (
            (int((values < low).sum()), "left of the axis"),
            (int((values > high).sum()), "right of it"),
            (len(rows[name]) - len(values), "not finite"),
        ):
            if count:
                notes.append(f"{count:,} {what}")
        colour = PALETTE[i % len(PALETTE)]
        dashes = ("-", "--", "-.", ":")[i // len(PALETTE) % 4]
        axes.stairs(density, edges, fill=True, color=colour, alpha=0.18)
        axes.stairs(density, edges, color=colour, lw=1.6, ls=dashes, label=f"{name} ({', '.join(notes)})")
        median = f", median {np.median(rows[name]):.4g} nats" if len(values) else ""
        told.append(f"{name}: {len(rows[name]):,} rows{median}")
    axes.set_xlim(low, high)
    axes.set_ylim(bottom=0)
    legend_above(figure, axes)
    figure.set_label(f"Distribution of log p. {'; '.join(told)}.")
    return figure


def score_map(
    values: Any,
    x: Any,
    y: Any,
    x_name: str = "x",
    y_name: str = "y",
    title: str = "",
    unit: str = "nats",
) -> Figure:
    """Draw one value a cell over two coordinates, as a map.

    The colours span the bulk of the cells, and the colour bar's arrows say that some lie outside; missing cells are
    grey.
    Degrees of latitude and longitude keep their proportions in the middle of the map.

    Args:
        values: ``[len(y), len(x)]``.
        x: Coordinate along the columns: numbers, dates or words.
        y: Coordinate along the rows.
        x_name: Its name and unit, as they stand at the axis.
        y_name: The same of the rows.
        title: What is drawn; it stands at the colour bar with the unit.
        unit: Unit of the values.

    Returns:
        The figure; its label describes it in words.

    Raises:
        DataError: ``values`` is not ``[len(y), len(x)]``, or holds nothing.

    Example:
        >>> score_map([[-1.0, -2.0]], [0, 1], [50], "longitude", "latitude", "log p").get_label()
        'Map of log p over longitude and latitude: 1 x 2 cells, median -1.5 nats.'
    """
    values = as_array(values)
    x, y = np.atleast_1d(np.asarray(x)), np.atleast_1d(np.asarray(y))
    if values.shape != (len(y), len(x)) or values.size == 0:
        raise DataError(
            f"score_map: values of shape {list(values.shape)}, but {y_name} has {len(y)} and {x_name} {len(x)} "
            "entries; give values [y, x], with at least one cell"
        )
    finite = only_finite(values.ravel())
    low, high = joint_limits([finite], reach=1.5)
    below, above = bool((finite < low).any()), bool((finite > high).any())
    extend = ("neither", "min", "max", "both")[below + 2 * above]

    height = 4.4
    stretch = map_stretch(x, y, x_name, y_name)
    if stretch is not None:
        height = float(np.clip(5.8 * stretch * np.ptp(y) / np.ptp(x), 2.6, 7.5))
    figure, (axes,) = new_figure(7.4, height)
    style(axes, x_name, y_name)
    from matplotlib import colormaps

    colours = colormaps["cividis"].with_extremes(bad=FAINT)
    mesh = axes.pcolormesh(
        cell_edges(axes.xaxis, x),
        cell_edges(axes.yaxis, y),
        np.ma.masked_invalid(values),
        cmap=colours,
        vmin=low,
        vmax=high,
        rasterized=True,
    )
    axes.set_aspect("auto" if stretch is None else stretch)
    axes.set_facecolor(FAINT)
    what = title or "value"
    bar = figure.colorbar(mesh, ax=axes, extend=extend, pad=0.02, aspect=30)
    bar.set_label(f"{what} ({unit})" if unit else what, color=INK)
    bar.outline.set_visible(False)
    missing = values.size - len(finite)
    figure.set_label(
        f"Map of {what} over {x_name} and {y_name}: {len(y)} x {len(x)} cells"
        + (f", median {np.median(finite):.4g} {unit}".rstrip() if len(finite) else "")
        + (f", {missing:,} missing" if missing else "")
        + "."
    )
    return figure


def _say(axes: Axes, text: str) -> None:
    axes.set_axis_off()
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color=INK)


def _series(metrics: Sequence[Mapping[str, Any]], value: str, error: str | None = None) -> Floats:
    """Rows ``(step, value, error)`` in the order of the steps, of the records that have the value, finite."""
    rows = []
    for record in metrics:
        if record.get(value) is not None and record.get("step") is not None:
            width = record.get(error) if error else None
            rows.append((float(record["step"]), float(record[value]), 0.0 if width is None else float(width)))
    series = np.array(rows, dtype=np.float64).reshape(-1, 3)
    series = series[np.isfinite(series[:, :2]).all(1)]
    series[:, 2] = np.where(np.isfinite(series[:, 2]), series[:, 2], 0.0)
    return series[np.argsort(series[:, 0], kind="stable")]


def _draw_training(axes: Axes, series: Floats) -> None:
    """The training curve: every record, and the running median where there are many."""
    if len(series) == 0:
        return
    many = len(series) > 50
    if many:
        axes.plot(series[:, 0], series[:, 1], color=PALETTE[5], lw=0.8, alpha=0.5, label="training, each record")
    median = _running_median(series[:, 1]) if many else series[:, 1]
    axes.plot(series[:, 0], median, color=PALETTE[0], lw=1.8, label="training, median" if many else "training")


def _running_median(values: Floats) -> Floats:
    width = max(5, len(values) // 40) | 1
    padded = np.pad(values, width // 2, mode="reflect")
    return np.median(np.lib.stride_tricks.sliding_window_view(padded, width), axis=-1)


def _loss_limits(training: Floats, validation: Floats) -> tuple[float, float]:
    """Limits that the last three quarters of the curves fill; a spike at the start or of one step may leave them."""
    settled = [s[len(s) // 4 :] for s in (training, validation) if len(s)]
    low = min([float(np.quantile(s, 0.002)) for s in settled] + validation.tolist())
    high = max(float(np.quantile(s, 0.98)) for s in settled)
    room = (high - low) or max(abs(high), 1.0) * 0.1
    return low - 0.12 * room, high + 0.35 * room
