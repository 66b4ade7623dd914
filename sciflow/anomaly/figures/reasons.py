"""Why events are flagged: the attribution of each at its peak, drawn as what an event is made of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sciflow.anomaly.axes import text_of, titled
from sciflow.report.drawing import (
    FAINT,
    INK,
    PALETTE,
    cell_edges,
    legend_above,
    map_stretch,
    new_figure,
    on_axis,
    style,
)

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["attribution_panels"]

MOST_BARS = 8
MOST_LINES = 4
LONGEST_NAME = 24
AS_A_LINE = 8  # Numbered elements, from which on they are drawn as a line.


def attribution_panels(attributions: Sequence[xr.DataArray], titles: Sequence[str], units: Any = None) -> Figure | None:
    """Draw the attribution of events: bars for vectors, lines for windows, maps for fields.

    Of what has more dimensions than a picture the slice is drawn where it is largest; of many lines, those that are
    largest over all events, in the same colours everywhere.

    Args:
        attributions: One array an event, over the event's axes, with their coordinates.
        titles: One an event.
        units: Of the attributions.

    Returns:
        The figure, whose label describes it in words; None where an event has one element alone.
    """
    cut = [_largest_slice(attribution.squeeze(drop=True)) for attribution in attributions]
    arrays = [_lines_last(array) for array, _ in cut]
    if not arrays or arrays[0].ndim == 0:
        return None
    title = titled("attribution", units)
    is_line = [_is_line(arrays[0], place) for place in range(arrays[0].ndim)]
    num_columns = min(2, len(arrays))
    num_rows = -(-len(arrays) // num_columns)
    height = 2.5 if is_line[-1] else 0.8 + 0.22 * min(len(arrays[0]), MOST_BARS + 1)
    figure, panels = new_figure(7.4, num_rows * height, num_rows, num_columns)
    for panel in panels[len(arrays) :]:
        panel.set_axis_off()
    for panel, array in zip(panels, arrays, strict=False):
        if not np.nan_to_num(array.values).any():
            _nothing(panel)
        elif is_line == [False]:
            _bars(panel, array, title)
        elif is_line in ([True], [False, True]):
            _lines(panel, array, _largest_rows(arrays), title)
        else:
            _map(panel, array, title)
    drawn = next((panel for panel in panels if panel.get_legend_handles_labels()[0]), None)
    if is_line == [False, True] and drawn is not None:
        legend_above(figure, drawn, num_columns=MOST_LINES)
    for panel, name, (_, where) in zip(panels, titles, cut, strict=False):
        panel.set_title(f"{name}, {where}" if where else name, fontsize=10, color=INK, loc="left")
    figure.set_label(f"Attribution at the peak of {'; '.join(titles)}.")
    return figure


def _nothing(axes: Axes) -> None:
    """In place of an attribution that is 0 everywhere."""
    axes.set_axis_off()
    axes.text(
        0, 0.9, "no element by itself adds to the score", transform=axes.transAxes, fontsize=9, color=INK, va="top"
    )


def _largest_slice(attribution: xr.DataArray) -> tuple[xr.DataArray, str]:
    """At most two dimensions, those that come last, and in words where the others are cut: where it is largest."""
    words = []
    while attribution.ndim > 2:
        sizes = np.nansum(np.abs(attribution.values), axis=tuple(range(1, attribution.ndim)))
        at = int(np.argmax(sizes))
        words.append(text_of(_labels(attribution, 0)[at]))
        attribution = attribution[at]
    return attribution, ", ".join(words)


def _lines_last(attribution: xr.DataArray) -> xr.DataArray:
    """Names before what lines run along."""
    turned = attribution.ndim == 2 and _is_line(attribution, 0) and not _is_line(attribution, 1)
    return attribution.transpose() if turned else attribution


def _labels(attribution: xr.DataArray, place: int) -> NDArray[Any]:
    dim = attribution.dims[place]
    return attribution[dim].values if dim in attribution.coords else np.arange(attribution.sizes[dim])


def _is_line(attribution: xr.DataArray, place: int) -> bool:
    """Whether a dimension has an order, so that its values belong to one line."""
    dim, labels = attribution.dims[place], _labels(attribution, place)
    return labels.dtype.kind in "iufmM" and (dim in attribution.coords or len(labels) > AS_A_LINE)


def _title_of(attribution: xr.DataArray, place: int) -> str:
    dim = attribution.dims[place]
    is_span = _labels(attribution, place).dtype.kind == "m"
    return titled(str(dim), "h" if is_span else attribution[dim].attrs.get("units"))


def _largest_rows(arrays: Sequence[xr.DataArray]) -> list[int]:
    """Lines that are the largest over all events, each event counting the same."""
    sizes = np.array([np.nansum(np.abs(np.atleast_2d(array.values)), 1) for array in arrays])
    shares = np.sum(sizes / np.maximum(sizes.sum(1, keepdims=True), np.finfo(float).tiny), 0)
    return sorted(np.argsort(-shares, kind="stable")[:MOST_LINES].tolist())


def _bars(axes: Axes, attribution: xr.DataArray, title: str) -> None:
    values = np.nan_to_num(attribution.values.astype(np.float64))
    order = np.argsort(-np.abs(values), kind="stable")
    kept, rest = order[:MOST_BARS], order[MOST_BARS:]
    labels = _labels(attribution, 0)
    names = [
        _short(label if isinstance(label, str) else f"{attribution.dims[0]} {text_of(label)}") for label in labels[kept]
    ]
    lengths, colours = values[kept], [PALETTE[1] if v > 0 else PALETTE[0] for v in values[kept]]
    if len(rest):
        names.append(f"{len(rest):,} others")
        lengths, colours = np.append(lengths, values[rest].sum()), [*colours, "#999999"]
    style(axes, title)
    axes.barh(np.arange(len(names)), lengths, color=colours, height=0.7)
    axes.set_yticks(np.arange(len(names)), names, fontsize=8)
    axes.invert_yaxis()
    axes.axvline(0, color=INK, lw=0.8)


def _lines(axes: Axes, attribution: xr.DataArray, rows: Sequence[int], title: str) -> None:
    values, place = np.atleast_2d(attribution.values), attribution.ndim - 1
    style(axes, _title_of(attribution, place), title)
    x = on_axis(axes.xaxis, _labels(attribution, place))
    axes.axhline(0, color=FAINT, lw=1.0)
    for row, colour in zip(rows, PALETTE, strict=False):
        name = _short(text_of(_labels(attribution, 0)[row])) if place else None
        axes.plot(x, values[row], color=colour, lw=1.5, label=name)


def _map(axes: Axes, attribution: xr.DataArray, title: str) -> None:
    y, x = (_labels(attribution, place) for place in range(2))
    y_name, x_name = map(str, attribution.dims)
    style(axes, _title_of(attribution, 1), _title_of(attribution, 0))
    values = attribution.values
    finite = np.abs(values[np.isfinite(values)])
    reach = float(np.max(finite, initial=0.0)) or 1.0
    one_sided = bool((values[np.isfinite(values)] >= 0).all())
    mesh = axes.pcolormesh(
        cell_edges(axes.xaxis, x),
        cell_edges(axes.yaxis, y),
        np.ma.masked_invalid(values),
        cmap="cividis" if one_sided else "RdBu_r",
        vmin=0 if one_sided else -reach,
        vmax=reach,
        rasterized=True,
    )
    axes.set_facecolor(FAINT)
    axes.set_aspect(map_stretch(x, y, x_name, y_name) or "auto")
    bar = axes.figure.colorbar(mesh, ax=axes, pad=0.02, aspect=20)
    bar.set_label(title, color=INK, fontsize=8)
    bar.ax.tick_params(labelsize=8)
    bar.outline.set_visible(False)


def _short(name: str) -> str:
    """A name that fits beside a panel. A dollar sign would begin a formula."""
    name = name if len(name) <= LONGEST_NAME else name[: LONGEST_NAME - 1].rstrip() + "\N{HORIZONTAL ELLIPSIS}"
    return name.replace("$", r"\$")
