"""What an event's attribution says in short: the few elements of its rows that it is largest for."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sciflow.anomaly.axes import text_of

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["reasons", "values_at"]

NUM_REASONS = 5
BLOCK_VALUES = 1 << 22
LARGEST = 1e100  # Stands for what is infinite: sums stay finite.


def values_at(variable: xr.DataArray, dims: tuple[str, ...], cells: tuple[NDArray[np.int64], ...]) -> NDArray[Any]:
    """The values ``[n, ...]`` of a variable at n cells, and nothing else of it, be it lazy."""
    import xarray as xr

    at = {dim: xr.DataArray(index, dims="_cell") for dim, index in zip(dims, cells, strict=True)}
    return variable.isel(at).transpose("_cell", ...).values


def reasons(
    found: xr.Dataset, dims: tuple[str, ...], cells: tuple[NDArray[np.int64], ...], begins: NDArray[np.int64]
) -> tuple[list[str], list[str]]:
    """Say of every event which elements have the largest shares in its attribution.

    An element's share is that of its magnitude, summed over the event's cells: what is missing there has none.

    Args:
        found: Results; without ``attribution`` there is nothing to say.
        dims: The sample dimensions.
        cells: Positions of the flagged cells along each, sorted by event.
        begins: Where each event's cells begin.

    Returns:
        For every event the largest shares as text, ``t2m 62 %, wind 30 %``, and as JSON: a list of the element's
        place along the event's axes, its ``share``, and its ``value``, the mean over the cells.
    """
    if "attribution" not in found or set(found["attribution"].dims) <= set(dims):
        return [""] * len(begins), ["[]"] * len(begins)
    attribution = found["attribution"]
    axes = [str(dim) for dim in attribution.dims if dim not in dims]
    labels = [
        attribution[axis].values if axis in attribution.coords else np.arange(attribution.sizes[axis]) for axis in axes
    ]
    texts, records = [], []
    for share, value in _shares(attribution.transpose(*dims, ...), dims, cells, begins):
        largest = np.argsort(-share, axis=None, kind="stable")[:NUM_REASONS]
        words, elements = [], []
        for at in zip(*np.unravel_index(largest[share.ravel()[largest] > 0], share.shape), strict=True):
            here = [label[i] for label, i in zip(labels, at, strict=True)]
            words.append(f"{_element(axes, here)} {100 * share[at]:.0f} %")
            place = dict(zip(axes, map(_plain, here), strict=True))
            elements.append({**place, "share": float(f"{share[at]:.4g}"), "value": float(f"{value[at]:.6g}")})
        texts.append(", ".join(words))
        records.append(json.dumps(elements, ensure_ascii=False))
    return texts, records


def _shares(
    attribution: xr.DataArray, dims: tuple[str, ...], cells: tuple[NDArray[np.int64], ...], begins: NDArray[np.int64]
) -> Iterator[tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """Of every event, each element's share and mean value; a block of cells is read at a time."""
    num_cells, starts = len(cells[0]), set(begins.tolist())
    shape = attribution.shape[len(dims) :]
    size = max(1, BLOCK_VALUES // max(1, math.prod(shape)))
    share, value, count = np.zeros(shape), np.zeros(shape), 0
    for low in range(0, num_cells, size):
        high = min(low + size, num_cells)
        block = values_at(attribution, dims, tuple(index[low:high] for index in cells)).astype(np.float64)
        block = np.nan_to_num(block, nan=0.0, posinf=LARGEST, neginf=-LARGEST)
        cuts = np.union1d(low, begins[(begins > low) & (begins < high)])
        sums, magnitudes = (np.add.reduceat(values, cuts - low) for values in (block, np.abs(block)))
        for cut, end, added, magnitude in zip(cuts, np.append(cuts[1:], high), sums, magnitudes, strict=True):
            if cut in starts:
                if count:
                    yield _normalised(share), value / count
                share, value, count = np.zeros(shape), np.zeros(shape), 0
            share, value, count = share + magnitude, value + added, count + int(end - cut)
    if count:
        yield _normalised(share), value / count


def _normalised(magnitudes: NDArray[np.float64]) -> NDArray[np.float64]:
    total = magnitudes.sum()
    return magnitudes / total if total > 0 else magnitudes


def _element(axes: list[str], labels: list[Any]) -> str:
    """What an element is called: a name by itself, a number with the axis that it lies along."""
    return " ".join(
        label if isinstance(label, str) else f"{axis}={text_of(label)}"
        for axis, label in zip(axes, labels, strict=True)
    )


def _plain(label: Any) -> Any:
    """A label as JSON can hold it; numbers stay numbers."""
    # To NumPy a span of time is a whole number, too.
    is_number = isinstance(label, (np.integer, np.floating)) and not isinstance(label, np.timedelta64)
    return label.item() if is_number else text_of(label)
