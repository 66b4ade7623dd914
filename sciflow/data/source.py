"""Sources of events: labelled grids and tables, read block by block in grid order."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from sciflow.data.layout import EventDim, Layout, resolve
from sciflow.errors import DataError, LayoutError, nearest

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["Block", "EventSource", "GridSource"]

PERIODS = {"h": "hour", "D": "day", "W": "week"}


@dataclass(frozen=True)
class Block:
    """Consecutive events of the grid.

    Attributes:
        start: Grid index of the first.
        events: ``[n, *event_shape]``, missing values as NaN. May be a view: copied where it is kept.
        context: ``[n, context_size]``, or None.
    """

    start: int
    events: np.ndarray
    context: np.ndarray | None


class EventSource(ABC):
    """Something that yields events in grid order, in bounded memory.

    Attributes:
        layout: What its events are.
        name: What to call it in messages.
    """

    layout: Layout
    name: str

    @abstractmethod
    def blocks(self, max_bytes: int, start: int = 0) -> Iterator[Block]:
        """Yield blocks of at most about ``max_bytes`` that cover the grid from index ``start`` or a little before."""

    @abstractmethod
    def coordinates(self) -> xr.Dataset:
        """Coordinates of the sample dimensions and of the event's axes, those that the source has."""

    def place(self, grid_index: int) -> str:
        """Where an event is, in the words of the source: ``day=2019-03-02, lat=51.25``."""
        coordinates = self.coordinates()
        place = np.unravel_index(grid_index, self.layout.grid_shape)
        words = []
        for dim, position in zip(self.layout.sample_dims, place, strict=True):
            value = coordinates[dim.name].values[position] if dim.name in coordinates.coords else int(position)
            words.append(f"{dim.name}={_label(value)}")
        return ", ".join(words)


class GridSource(EventSource):
    """Events cut from the arrays of an ``xarray.Dataset``, which may be lazy.

    Args:
        dataset: The arrays. Read box by box: nothing larger than a block is loaded.
        variables: What an event is made of; None takes the only data variable.
        event: Window length by dimension, None for a whole dimension.
        sample: Dimensions that are counted.
        stride: Steps from a window to the next, by dimension.
        context: Variables that an event is conditioned on, flattened into one vector.
        dtype: Floating dtype of the events.
        name: What to call the source in messages.

    Raises:
        LayoutError: A variable or dimension does not exist or does not fit.
        DataError: A variable does not hold numbers, or there is nothing in it.

    Example:
        >>> import xarray as xr
        >>> dataset = xr.Dataset({"t": (("time", "lat"), np.arange(12.0).reshape(6, 2))})
        >>> source = GridSource(dataset, event={"time": 3})
        >>> block = next(source.blocks(max_bytes=1 << 20))
        >>> block.events.shape, block.events[0].tolist()
        ((4, 3), [0.0, 2.0, 4.0])
    """

    def __init__(
        self,
        dataset: xr.Dataset,
        variables: Sequence[str] | None = None,
        event: Mapping[str, int | None] | Sequence[str] | None = None,
        sample: Sequence[str] | None = None,
        stride: Mapping[str, int] | None = None,
        context: Sequence[str] = (),
        dtype: str = "float32",
        name: str = "dataset",
    ) -> None:
        self.name = name
        self.dataset = dataset
        chosen = _choose(dataset, variables, name)
        for variable in (*chosen, *context):
            _require_numbers(dataset, variable, name)
        widest = max((dataset[variable] for variable in chosen), key=lambda array: array.ndim)
        dims = {str(dim): dataset.sizes[dim] for dim in widest.dims}
        empty = [dim for dim, size in dims.items() if size == 0]
        if empty or not dims:
            raise DataError(f"{name}: nothing to shard: {f'dimension {empty[0]} is empty' if empty else 'no dimension'}")
        sample_dims, event_dims = resolve(dims, event, sample, stride, _periods(dataset, event, stride))
        for variable in chosen:
            self._require_dims(variable, dims, event_dims, all_event_dims=True)
        for variable in context:
            self._require_dims(variable, dims, event_dims, all_event_dims=False)
        self.layout = Layout(
            variables=tuple(chosen),
            units=tuple(str(dataset[variable].attrs.get("units", "")) for variable in chosen),
            sample_dims=sample_dims,
            event_dims=event_dims,
            context=tuple(context),
            context_size=sum(self._context_size(variable, event_dims) for variable in context),
            dtype=dtype,
        )

    def blocks(self, max_bytes: int, start: int = 0) -> Iterator[Block]:
        shape = self.layout.grid_shape
        axis, step = _slab(shape, self.layout.event_bytes, max_bytes)
        inner = math.prod(shape[axis + 1 :])
        for outer in np.ndindex(*shape[:axis]):
            base = int(np.ravel_multi_index((*outer, *[0] * (len(shape) - axis)), shape))
            for low in range(0, shape[axis], step):
                high = min(low + step, shape[axis])
                if base + high * inner <= start:
                    continue
                ranges = [(i, i + 1) for i in outer] + [(low, high)] + [(0, n) for n in shape[axis + 1 :]]
                yield Block(base + low * inner, self._events(ranges), self._context(ranges))

    def coordinates(self) -> xr.Dataset:
        import xarray as xr

        found: dict[str, xr.DataArray | tuple] = {}
        sources = {dim.source: dim for dim in self.layout.sample_dims}
        windows = {dim.name: dim for dim in self.layout.event_dims if dim.stride is not None}
        for name, coordinate in self.dataset.coords.items():
            if coordinate.ndim != 1:
                continue
            dim = str(coordinate.dims[0])
            values, attrs = coordinate.values, dict(coordinate.attrs)
            if dim in windows:
                window, counted = windows[dim], sources[dim]
                stride = window.stride or window.size
                first = values[: (counted.size - 1) * stride + 1 : stride]
                found[counted.name if name == dim else f"{name}"] = (counted.name, first, attrs)
                if name == dim and values.dtype.kind in "fiuM":
                    # Inside a window what counts is the distance from its beginning.
                    found[dim] = (dim, values[: window.size] - values[0])
            else:
                found[str(name)] = (dim, values, attrs)
        if self.layout.has_variable_axis:
            found["variable"] = ("variable", np.array(self.layout.variables, dtype="U"))
        return xr.Dataset(coords=found)

    def _events(self, ranges: list[tuple[int, int]]) -> np.ndarray:
        parts = [self._box(variable, ranges) for variable in self.layout.variables]
        num_sample_dims = len(ranges)
        events = np.stack(parts, num_sample_dims) if self.layout.has_variable_axis else parts[0]
        return events.reshape(-1, *events.shape[num_sample_dims:])

    def _context(self, ranges: list[tuple[int, int]]) -> np.ndarray | None:
        if not self.layout.context:
            return None
        n = math.prod(high - low for low, high in ranges)
        return np.concatenate([self._box(variable, ranges).reshape(n, -1) for variable in self.layout.context], -1)

    def _box(self, variable: str, ranges: list[tuple[int, int]]) -> np.ndarray:
        """One variable over ranges of the sample dimensions: ``[*ranges, *event dims that the variable has]``."""
        array = self.dataset[variable]
        windows = {dim.name: dim for dim in self.layout.event_dims if dim.stride is not None}
        box: dict[str, slice] = {}
        for dim, (low, high) in zip(self.layout.sample_dims, ranges, strict=True):
            if dim.source not in array.dims:
                continue
            if dim.source in windows:
                window = windows[dim.source]
                stride = window.stride or window.size
                box[dim.source] = slice(low * stride, (high - 1) * stride + window.size)
            else:
                box[dim.source] = slice(low, high)
        values = np.asarray(array.isel(box).values).astype(self.layout.dtype, copy=False)
        # Axes by name: a window turns one axis into two, its place on the grid and its steps.
        axes: list[str | tuple[str, str]] = [str(dim) for dim in array.dims]
        for window_dim in windows.values():
            if window_dim.name in axes:
                axis = axes.index(window_dim.name)
                stride = window_dim.stride or window_dim.size
                values = np.lib.stride_tricks.sliding_window_view(values, window_dim.size, axis=axis)
                values = values[(slice(None),) * axis + (slice(None, None, stride),)]
                axes[axis] = ("window", window_dim.name)
                axes.append(window_dim.name)
        order: list[int] = []
        missing: list[int] = []
        for place, dim in enumerate(self.layout.sample_dims):
            key: str | tuple[str, str] = ("window", dim.source) if dim.source in windows else dim.source
            if key in axes:
                order.append(axes.index(key))
            else:
                missing.append(place)
        order += [axes.index(dim.name) for dim in self.layout.event_dims if dim.name in axes]
        values = np.expand_dims(values.transpose(order), tuple(missing))
        counts = tuple(high - low for low, high in ranges)
        return np.broadcast_to(values, counts + values.shape[len(counts) :])

    def _require_dims(
        self, variable: str, dims: Mapping[str, int], event_dims: Sequence[EventDim], all_event_dims: bool
    ) -> None:
        has = [str(dim) for dim in self.dataset[variable].dims]
        foreign = [dim for dim in has if dim not in dims]
        if foreign:
            raise LayoutError(
                f"{self.name}: variable '{variable}' has dimension '{foreign[0]}', which the others do not have "
                f"({', '.join(dims)}): shard it on its own, or select along it first"
            )
        lacking = [dim.name for dim in event_dims if dim.name not in has]
        if lacking and all_event_dims:
            raise LayoutError(f"{self.name}: variable '{variable}' has no dimension '{lacking[0]}' to fill an event with")

    def _context_size(self, variable: str, event_dims: Sequence[EventDim]) -> int:
        return math.prod(dim.size for dim in event_dims if dim.name in self.dataset[variable].dims)


def _choose(dataset: xr.Dataset, variables: Sequence[str] | None, name: str) -> list[str]:
    have = {str(variable): dataset[variable].dims for variable in dataset.data_vars}
    if variables:
        known = [*have, *map(str, dataset.coords)]
        for variable in variables:
            if variable not in known:
                raise LayoutError(f"{name}: no variable '{variable}'; {nearest(variable, have)} It has: {_listed(dataset)}")
        duplicates = sorted({variable for variable in variables if list(variables).count(variable) > 1})
        if duplicates:
            raise LayoutError(f"{name}: variable '{duplicates[0]}' is named twice")
        return list(variables)
    if not have:
        raise DataError(f"{name}: there are no variables in it")
    if len(have) == 1 or all(len(dims) == 1 for dims in have.values()) and len(set(have.values())) == 1:
        return list(have)
    raise LayoutError(f"{name}: several variables; choose with --variables among {_listed(dataset)}")


def _listed(dataset: xr.Dataset) -> str:
    names = [f"{name} ({', '.join(map(str, dataset[name].dims))})" for name in dataset.data_vars]
    return ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")


def _require_numbers(dataset: xr.Dataset, variable: str, name: str) -> None:
    if variable not in dataset.variables:
        known = map(str, dataset.variables)
        raise LayoutError(f"{name}: no variable '{variable}'; {nearest(variable, known)} It has: {_listed(dataset)}")
    array = dataset[variable]
    if array.dtype.kind not in "fiub":
        what = {"M": "dates", "m": "durations", "c": "complex numbers"}.get(array.dtype.kind, "text")
        example = f", such as {str(array.values.flat[0])!r}" if array.size else ""
        raise DataError(
            f"{name}: variable '{variable}' holds {what}{example}; events are made of numbers: "
            "leave it out with --variables, or encode it first"
        )


def _slab(shape: Sequence[int], event_bytes: int, max_bytes: int) -> tuple[int, int]:
    """Axis along which to cut and the step, so that a block is a box of the grid in C order."""
    inner = event_bytes
    for axis in reversed(range(len(shape))):
        if inner * shape[axis] > max_bytes or axis == 0:
            return axis, min(shape[axis], max(1, max_bytes // inner))
        inner *= shape[axis]
    raise AssertionError("a grid has at least one dimension")


def _periods(
    dataset: xr.Dataset, event: Mapping[str, int | None] | Sequence[str] | None, stride: Mapping[str, int] | None
) -> dict[str, str]:
    """Windows that begin once an hour, day or week are counted in hours, days or weeks."""
    found: dict[str, str] = {}
    for name, size in event.items() if isinstance(event, Mapping) else ():
        if size is None or name not in dataset.coords or dataset[name].dtype.kind != "M" or dataset.sizes[name] < 2:
            continue
        times = dataset[name].values
        steps = np.diff(times)
        period = steps[0] * (stride or {}).get(name, size)
        for unit, word in PERIODS.items():
            if (steps == steps[0]).all() and period == np.timedelta64(1, unit) and word not in dataset.variables:
                found[name] = word
    return found


def _label(value: object) -> str:
    if isinstance(value, np.datetime64):
        return str(np.datetime_as_string(value, unit="auto"))
    return f"{value:g}" if isinstance(value, (float, np.floating)) else str(value)
