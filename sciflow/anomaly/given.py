"""What users hand over to a detector: numbers, tables, labelled arrays and stores, as rows with their labels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from sciflow.arrays import numbers
from sciflow.data.coordinates import coordinates_along
from sciflow.data.inside import inside
from sciflow.data.layout import Layout
from sciflow.data.source import EventSource, GridSource
from sciflow.data.sources import as_dataset
from sciflow.data.store import Store, open_store
from sciflow.density import Density
from sciflow.errors import ShapeError

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["Given", "Part", "given"]

_BLOCK_BYTES = 32 << 20


class Part(NamedTuple):
    """Some of the rows.

    Attributes:
        places: ``[m]``, their numbers among all rows.
        events: ``[m, *event_shape]``.
        context: ``[m, context_size]``, or None.
    """

    places: np.ndarray
    events: Any
    context: Any


@dataclass(frozen=True)
class Given:
    """Rows, and what to call them.

    Attributes:
        data: As it was handed over: an array, a tensor, a table, labelled data or a store.
        source: Of labelled data, which cuts them into events; None of arrays and stores.
        layout: What is counted and what an event is; None of arrays.
        event_shape: Shape of one event.
        context: Of arrays, one a row or one for all; None where there is none, or where the data bring it.
    """

    data: Any
    source: EventSource | None
    layout: Layout | None
    event_shape: tuple[int, ...]
    context: Any = None

    def __len__(self) -> int:
        return len(self.data) if self.layout is None else self.layout.num_grid_events

    @property
    def shape(self) -> tuple[int, ...]:
        """How many rows there are along every dimension that is counted."""
        return (len(self),) if self.layout is None else self.layout.grid_shape

    @property
    def dims(self) -> tuple[str, ...]:
        """Names of these dimensions."""
        return ("row",) if self.layout is None else tuple(dim.name for dim in self.layout.sample_dims)

    @property
    def coordinates(self) -> xr.Dataset | None:
        """Coordinates of rows and of what is inside an event; None of arrays."""
        if isinstance(self.data, Store):
            return self.data.coordinates
        return None if self.source is None else self.source.coordinates()

    @property
    def inside(self) -> dict[str, list[Any]]:
        """Coordinates of an event's axes; none of arrays."""
        coordinates = self.coordinates
        return {} if self.layout is None or coordinates is None else inside(self.layout.event_axes, coordinates.coords)

    def parts(self, splits: Sequence[str] | None = None) -> Iterator[Part]:
        """Yield the rows, part by part; each once.

        Args:
            splits: Of a store, those that are wanted; None for all of them.
        """
        if isinstance(self.data, Store):
            for split in self.data.splits:
                if splits is not None and split.name not in splits:
                    continue
                for record in split.shards:
                    start, stop = split.shard_range(record.number)
                    context = None if self.data.context_shape is None else split.context[start:stop]
                    yield Part(split.grid_index(start, stop), split[start:stop], context)
        elif self.source is not None:
            for block in self.source.blocks(_BLOCK_BYTES):
                yield Part(np.arange(block.start, block.start + len(block.events)), block.events, block.context)
        else:
            yield Part(np.arange(len(self.data)), self.data, self.context)

    def with_context(self, context: Any, density: Density | None) -> Given:
        """Return the same rows with a context for each, packed as a density takes it.

        Raises:
            ShapeError: It does not fit the rows, or the density has none.
        """
        if context is None:
            return self
        self._require_array()
        if density is None:
            raise ShapeError("context: the score stands on no density that could be given one")
        packed = density.pack_context(context)
        one = packed.shape[packed.ndim - len(density.context_shape or ()) :]
        try:
            return replace(self, context=packed.expand(len(self), *one).numpy())
        except RuntimeError:
            raise ShapeError(
                f"context of {list(packed.shape)} for {len(self):,} rows: give one for all, or one a row"
            ) from None

    def with_new_context(self, context: Any) -> Given:
        """Return the same rows with numbers that a density is yet to be conditioned on, one a row.

        Raises:
            DataError: They are no numbers.
            ShapeError: They are not one a row.
        """
        self._require_array()
        values = numbers(context, "context")
        if values.ndim < 2 or len(values) != len(self):
            raise ShapeError(
                f"context of {list(values.shape)} for {len(self):,} rows: give [n, *context_shape], one a row; of "
                "single numbers context[:, None]"
            )
        return replace(self, context=values)

    def _require_array(self) -> None:
        if self.layout is not None:
            mine = "these data bring their own" if self.layout.context else "it goes with rows in an array"
            raise ShapeError(
                f"context: {mine}; of labelled data it is a variable of the store (--context): leave it out"
            )

    def labelled(self, values: np.ndarray, name: str, attributes: dict[str, Any] | None = None) -> Any:
        """Return values ``[n]``, or ``[n, *event_shape]``, as the data came: array, tensor, series or labelled."""
        if isinstance(self.data, torch.Tensor):
            return torch.from_numpy(values).to(self.data.device)
        if self.layout is None:
            return values
        if hasattr(self.data, "columns"):
            import pandas as pd

            if values.ndim == 1:
                return pd.Series(values, self.data.index, name=name)
            return pd.DataFrame(values.reshape(len(values), -1), self.data.index, list(self.layout.variables))
        import xarray as xr

        inside = values.ndim > 1
        dims = (*self.dims, *self.layout.event_axes) if inside else self.dims
        shape = (*self.shape, *values.shape[1:])
        return xr.DataArray(values.reshape(shape), coordinates_along(dims, self.coordinates), dims, name, attributes)


def given(data: Any, trained: Layout | None = None, event_shape: Sequence[int] | None = None) -> Given:
    """Take up what a user hands over.

    Args:
        data: A store or its path; labelled data (``xarray``, pandas), or an array ``[n, *event_shape]``.
        trained: Layout of what a density was trained on, by which labelled data are cut; None where there is none.
        event_shape: Of that density; None where any will do.

    Raises:
        DataError: The data are no numbers.
        LayoutError: They are laid out differently.
        ShapeError: They have another shape.
        StoreError: There is no store at the path.
    """
    if isinstance(data, (str, Path)):
        data = open_store(data)
    of_training = None if trained is None else trained.to_json()
    if isinstance(data, Store):
        data.layout.require_fits(of_training, event_shape, data.path, "the detector")
        return Given(data, None, data.layout, tuple(data.event_shape))
    if hasattr(data, "dims") or hasattr(data, "columns"):
        # Cut as the training data were.
        source = GridSource(as_dataset(data), **({} if trained is None else trained.request()))
        source.layout.require_fits(of_training, event_shape, "data", "the detector")
        return Given(data, source, source.layout, source.layout.event_shape)
    rows = data if isinstance(data, torch.Tensor) else numbers(data)
    if rows.ndim < 1 or (event_shape is not None and tuple(rows.shape[1:]) != tuple(event_shape)):
        expected = "" if event_shape is None else "".join(f", {size}" for size in event_shape)
        raise ShapeError(f"rows [n{expected}] expected; got {list(rows.shape)}")
    if rows.ndim == 1:
        raise ShapeError(f"rows [n, *event_shape] expected; got {list(rows.shape)}: of single numbers give x[:, None]")
    if 0 in rows.shape[1:]:
        raise ShapeError(f"rows [n, *event_shape] expected; got {list(rows.shape)}: there is no number in a row")
    if isinstance(rows, np.ndarray):
        # What torch knows: no other order of bytes, nothing longer than 64 bits.
        rows = rows.astype(np.float64 if rows.dtype.itemsize > 8 else rows.dtype.newbyteorder("="), copy=False)
    return Given(rows, None, None, tuple(rows.shape[1:]))
