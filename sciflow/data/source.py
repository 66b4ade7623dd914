"""Sources of events: labelled grids and tables, read block by block in grid order."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from sciflow.data.cast import to_floats
from sciflow.data.coordinates import storable
from sciflow.data.layout import SCORE_NAMES, EventDim, Layout, full_name, require_names, resolve, unknown
from sciflow.errors import DataError, LayoutError, first_line

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["Block", "EventSource", "GridSource"]

PERIODS = {"hour": np.timedelta64(1, "h"), "day": np.timedelta64(1, "D"), "week": np.timedelta64(1, "W")}


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

    def along_windows(self) -> dict[str, np.ndarray]:
        """Coordinates along the dimensions of which an event takes a window, those that the source has."""
        return {}

    def place(self, grid_index: int, inside: Sequence[int] = ()) -> str:
        """Where an event is, or one of its values, in the words of the source: ``time=2019-03-02T04, lat=51.25``.

        Args:
            grid_index: The event.
            inside: Steps along the event dimensions, for one of its values.
        """
        steps = dict(zip((dim.name for dim in self.layout.event_dims), inside, strict=False))
        positions: dict[str, int] = {}
        place = np.unravel_index(grid_index, self.layout.grid_shape)
        for dim, position in zip(self.layout.sample_dims, place, strict=True):
            strides = [d.stride for d in self.layout.event_dims if d.name == dim.source and d.stride is not None]
            positions[dim.source] = int(position) * (strides[0] if strides else 1)
        for name, step in steps.items():
            positions[name] = positions.get(name, 0) + step
        return ", ".join(f"{dim}={self._label(dim, position)}" for dim, position in positions.items())

    def _label(self, dim: str, position: int) -> str:
        """A position along a dimension of the source, as its coordinate says it."""
        return str(position)


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
        for what, names in (("dimension", dataset.dims), ("variable", dataset.data_vars)):
            for given in names:
                if not isinstance(given, str):
                    raise LayoutError(f"{name}: a {what} is called {given!r}, which is no text: rename it")
        chosen = _choose(dataset, variables, context, name)
        for variable in (*chosen, *context):
            _require_numbers(dataset, variable, name)
        widest = max((dataset[variable] for variable in chosen), key=lambda array: array.ndim)
        dims = {str(dim): dataset.sizes[dim] for dim in widest.dims}
        empty = [dim for dim, size in dims.items() if size == 0]
        if empty or not dims:
            what = f"dimension '{empty[0]}' is empty" if empty else "there is no dimension to count along"
            raise DataError(f"{name}: there are no events: {what}")
        try:
            windows, strides = _by_full_name(event, dims), _by_full_name(stride, dims) or {}
            counted = None if sample is None else list(_by_full_name(sample, dims) or {})
            periods = _periods(dataset, windows or {}, strides)
            sample_dims, event_dims = resolve(dims, windows, counted, strides, periods)
        except LayoutError as error:
            raise LayoutError(f"{name}: {error}") from None
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
        try:
            require_names(self.layout)
        except LayoutError as error:
            raise LayoutError(f"{name}: {error}") from None
        self._require_no_score_names()

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

    def _label(self, dim: str, position: int) -> str:
        if dim not in self.dataset.coords:
            return str(position)
        return _spelled(self.dataset[dim].values[position])

    def along_windows(self) -> dict[str, np.ndarray]:
        names = [dim.name for dim in self.layout.event_dims if dim.stride is not None]
        return {name: self.dataset[name].values for name in names if name in self.dataset.coords}

    def coordinates(self) -> xr.Dataset:
        import xarray as xr

        found: dict[str, xr.DataArray | tuple] = {}
        sources = {dim.source: dim for dim in self.layout.sample_dims}
        windows = {dim.name: dim for dim in self.layout.event_dims if dim.stride is not None}
        dims = {*sources, *(dim.name for dim in self.layout.event_dims)}
        taken = {*self.layout.event_axes, *(dim.name for dim in self.layout.sample_dims)}
        for name, coordinate in self.dataset.coords.items():
            if coordinate.ndim != 1 or coordinate.dims[0] not in dims:
                continue
            dim = str(coordinate.dims[0])
            plain = storable(coordinate)
            if plain is None or (name != dim and name in taken):
                continue
            values, attrs = plain
            if dim in windows:
                window, counted = windows[dim], sources[dim]
                stride = window.stride or window.size
                first = values[: (counted.size - 1) * stride + 1 : stride]
                found[counted.name if name == dim else str(name)] = (counted.name, first, attrs)
                if name == dim and values.dtype.kind in "fiuM":
                    # Inside a window what counts is the distance from its beginning.
                    # Small and unsigned integers would wrap.
                    inside = values[: window.size].astype(np.int64 if values.dtype.kind in "iu" else values.dtype)
                    found[dim] = (dim, inside - inside[0])
            else:
                found[str(name)] = (dim, values, attrs)
        if self.layout.has_variable_axis:
            found["variable"] = ("variable", np.array(self.layout.variables, object))
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
        values = to_floats(self._read(variable, box), self.layout.dtype, f"{self.name}: variable '{variable}'")
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

    def _read(self, variable: str, box: Mapping[str, slice]) -> np.ndarray:
        try:
            return np.asarray(self.dataset[variable].variable.isel(box).values)
        except Exception as error:
            # Whatever the reader of the file raises: what was promised when it was opened is not there.
            where = f"{self.name}: variable '{variable}'"
            raise DataError(f"{where} cannot be read, the file may be damaged: {first_line(error)}") from None

    def _require_no_score_names(self) -> None:
        suspects = set(SCORE_NAMES).intersection(map(str, self.dataset.coords))
        if not suspects:  # As nearly always: coordinates cost a look at every value.
            return
        counted = {dim.name for dim in self.layout.sample_dims}
        for name, values in self.coordinates().coords.items():
            if name in suspects and counted.issuperset(values.dims):
                raise LayoutError(f"{self.name}: coordinate '{name}' has a name that scores use: rename or drop it")

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
            raise LayoutError(
                f"{self.name}: variable '{variable}' has no dimension '{lacking[0]}' to fill an event with: "
                "make it context, or shard it on its own"
            )

    def _context_size(self, variable: str, event_dims: Sequence[EventDim]) -> int:
        return math.prod(dim.size for dim in event_dims if dim.name in self.dataset[variable].dims)


def _choose(dataset: xr.Dataset, variables: Sequence[str] | None, context: Sequence[str], name: str) -> list[str]:
    have = {str(variable): dataset[variable].dims for variable in dataset.data_vars}
    for variable in variables or ():
        if variable not in dataset.variables:
            raise LayoutError(f"{name}: {unknown('variable', variable, have)}")
    named = [*(variables or ()), *context]
    for variable in named:
        if named.count(variable) > 1:
            raise LayoutError(f"{name}: variable '{variable}' is named twice")
    if variables:
        return list(variables)
    if not have:
        raise DataError(f"{name}: there are no variables in it")
    have = {variable: dims for variable, dims in have.items() if variable not in context}
    if not have:
        raise LayoutError(f"{name}: no variable is left for the events")
    if len(have) == 1 or (all(len(dims) == 1 for dims in have.values()) and len(set(have.values())) == 1):
        return list(have)
    first = next(iter(have))
    raise LayoutError(
        f"{name}: several variables; choose with --variables, or as dataset[[{first!r}]], among {_listed(dataset)}"
    )


def _listed(dataset: xr.Dataset) -> str:
    names = [f"{name} ({', '.join(map(str, dataset[name].dims))})" for name in dataset.data_vars]
    return ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")


def _require_numbers(dataset: xr.Dataset, variable: str, name: str) -> None:
    if variable not in dataset.variables:
        raise LayoutError(f"{name}: {unknown('variable', variable, map(str, dataset.variables))}")
    array = dataset[variable]
    if array.dtype.kind not in "fiub":
        what = {"M": "dates", "m": "durations", "c": "complex numbers"}.get(array.dtype.kind, "text")
        example = f", such as {str(array[dict.fromkeys(array.dims, 0)].values)!r}" if array.size else ""
        raise DataError(
            f"{name}: variable '{variable}' holds {what}{example}; events are made of numbers: "
            "leave it out (--variables names the others), or encode it first"
        )


def _slab(shape: Sequence[int], event_bytes: int, max_bytes: int) -> tuple[int, int]:
    """Axis along which to cut and the step, so that a block is a box of the grid in C order."""
    inner = event_bytes
    for axis in reversed(range(len(shape))):
        if inner * shape[axis] > max_bytes or axis == 0:
            return axis, min(shape[axis], max(1, max_bytes // inner))
        inner *= shape[axis]
    raise AssertionError("a grid has at least one dimension")


def _by_full_name(named: Mapping[str, Any] | Sequence[str] | None, dims: Mapping[str, int]) -> dict[str, Any] | None:
    """What was said of dimensions, by their full names; names alone say None."""
    if named is None:
        return None
    said = dict(named) if isinstance(named, Mapping) else dict.fromkeys([named] if isinstance(named, str) else named)
    full: dict[str, Any] = {}
    for name, value in said.items():
        dim = full_name(name, dims)
        if dim in full:
            raise LayoutError(f"dimension '{dim}' is named twice")
        full[dim] = value
    return full


def _periods(dataset: xr.Dataset, event: Mapping[str, int | None], stride: Mapping[str, int]) -> dict[str, str]:
    """Windows that begin once an hour, day or week are counted in hours, days or weeks."""
    found: dict[str, str] = {}
    for name, size in event.items():
        if size is None or name not in dataset.coords or dataset[name].dtype.kind != "M" or dataset.sizes[name] < 2:
            continue
        times = dataset[name].values
        steps = np.diff(times)
        period = steps[0] * stride.get(name, size)
        for word, length in PERIODS.items():
            if (steps == steps[0]).all() and period == length and word not in dataset.variables:
                found[name] = word
    return found


def _spelled(value: object) -> str:
    if isinstance(value, np.datetime64):
        return str(np.datetime_as_string(value, unit="auto"))
    return f"{value:g}" if isinstance(value, (float, np.floating)) else str(value)
