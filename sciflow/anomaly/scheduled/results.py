"""The Zarr store of results: what is known of every row, how it is cut into chunks, and how it is read."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
import zarr

from sciflow.anomaly.scheduled.axis import Axis
from sciflow.anomaly.scheduled.grid import Grid, along, plain
from sciflow.data.split import SPLITS
from sciflow.errors import StoreError, first_line
from sciflow.likelihood import Status

__all__ = ["ATTRIBUTION", "AXIS", "CHUNK_ROWS", "FIELDS", "Chunks", "Results", "told_of_damage"]

# Rows of a chunk, a power of two; and bytes of a chunk of attributions, which hold whole events.
CHUNK_ROWS, CHUNK_BYTES = 1 << 16, 2 << 20
# Of every row: dtype, value where there is no event, attributes.
FIELDS: dict[str, tuple[str, Any, dict[str, Any]]] = {
    "score": ("float32", np.nan, {"long_name": "score, higher is more anomalous"}),
    "p_value": ("float64", np.nan, {"long_name": "share of ordinary rows that score as high"}),
    "flag": ("bool", False, {"long_name": "whether it is an anomaly"}),
    "extrapolated": ("bool", False, {"long_name": "whether the p-value is beyond what calibration resolves"}),
    "status": (
        "int8",
        -1,
        {
            "long_name": "what became of the event",
            "flag_values": [-1, int(Status.OK), int(Status.NON_FINITE)],
            "flag_meanings": "no_event ok non_finite",
        },
    ),
    "split": ("int8", -1, {"flag_values": [-1, 0, 1, 2], "flag_meanings": " ".join(("no_event", *SPLITS))}),
    "detector": ("int16", -1, {"long_name": "number of the model, score and calibration that judged it"}),
}
# Of every position along the first dimension.
AXIS: dict[str, tuple[str, dict[str, Any]]] = {
    "store": ("int32", {"long_name": "number of the store, as in the attribute stores"}),
    "position": ("int64", {"long_name": "place in that store"}),
}
ATTRIBUTION: dict[str, Any] = {"long_name": "what each element adds to the score, of flagged rows"}


@dataclass(frozen=True)
class Chunks:
    """How results are cut: along the first dimension all variables in step, so that a chunk is shared or written.

    Attributes:
        length: Positions along the first dimension in a chunk.
        attribution: Of a chunk of attributions, over the sample dimensions.
    """

    length: int
    attribution: tuple[int, ...]

    @classmethod
    def of(cls, grid: Grid) -> Chunks:
        """Cut a grid.

        Example:
            >>> Chunks.of(Grid(("row",), (), ("variable",), (32,), {}, frozenset()))
            Chunks(length=65536, attribution=(16384,))
        """
        length = 1 << max(0, int(math.log2(max(1, CHUNK_ROWS // max(1, grid.inner_size)))))
        sizes = [length, *grid.inner]
        event = 4 * math.prod(grid.event_shape)
        while math.prod(sizes) * event > CHUNK_BYTES and max(sizes) > 1:
            # The first dimension first, by halves: so chunks of attributions end where all others do.
            longest = 0 if sizes[0] > 1 else int(np.argmax(sizes))
            sizes[longest] = -(-sizes[longest] // 2)
        return cls(length, tuple(sizes))


class Results:
    """Results that are there.

    Args:
        path: Of the Zarr store.

    Raises:
        StoreError: They are damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with told_of_damage(path):
            self._open()

    def _open(self) -> None:
        path = self.path
        self.group = zarr.open_group(str(path), mode="r")
        dataset = xr.open_zarr(str(path), chunks=None)
        flag, attribution = dataset["flag"], dataset["attribution"]
        dims = tuple(map(str, flag.dims))
        axes = tuple(map(str, attribution.dims[len(dims) :]))
        coordinates = dataset.drop_vars(list(AXIS)).coords.to_dataset()
        fixed = {str(name): plain(c.variable) for name, c in coordinates.coords.items() if dims[0] not in c.dims}
        found = along(dims[0], coordinates)
        self.grid = Grid(dims, flag.shape[1:], axes, attribution.shape[len(dims) :], fixed, frozenset(found))
        store, position = (self._whole(name) for name in AXIS)
        self.axis = Axis.of(dims[0], zip(store, position, strict=True), found)

    def _whole(self, name: str) -> Iterator[np.ndarray]:
        """A variable along the first dimension, part by part."""
        array: Any = self.group[name]
        yield from (array[start : start + CHUNK_ROWS] for start in range(0, array.shape[0], CHUNK_ROWS))

    @property
    def chunks(self) -> Chunks:
        """How they are cut."""
        score, attribution = (self.group[name].chunks for name in ("score", "attribution"))  # type: ignore[union-attr]
        return Chunks(score[0], attribution[: len(self.grid.dims)])

    def read(self, name: str, rows: np.ndarray) -> np.ndarray:
        """A variable at some positions along the first dimension, ``[len(rows), ...]``.

        Raises:
            StoreError: It is damaged there.
        """
        array: Any = self.group[name]
        with told_of_damage(self.path):
            if len(rows) and rows[-1] - rows[0] == len(rows) - 1 and (np.diff(rows) == 1).all():
                return np.asarray(array[rows[0] : rows[-1] + 1])
            return np.asarray(array.oindex[rows])


@contextmanager
def told_of_damage(path: Path) -> Iterator[None]:
    """Say in words what zarr and its codecs find wrong with results that are there.

    Raises:
        StoreError: Names the results, and says what to do.
    """
    try:
        yield
    except Exception as error:
        # Whatever they raise: nothing is done here but reading.
        raise StoreError(
            f"{path}: damaged ({type(error).__name__}: {first_line(error)}): restore it, or choose another "
            "detection.out, where all is judged anew"
        ) from None
