"""The layout of a store: which dimensions are counted, and which make up one event."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from sciflow.errors import LayoutError, nearest

__all__ = ["SCORE_NAMES", "EventDim", "Layout", "SampleDim", "full_name", "require_names", "resolve", "unknown"]

# What scores are called: nothing that labels the grid may be called so too.
SCORE_NAMES = ("log_prob", "error", "nfe", "status", "split")


@dataclass(frozen=True)
class EventDim:
    """A dimension inside an event: all of it, or a window of it.

    Attributes:
        name: Dimension of the source.
        size: Steps of the dimension in one event.
        stride: Steps from one window to the next; None where the event takes the whole dimension.
    """

    name: str
    size: int
    stride: int | None = None


@dataclass(frozen=True)
class SampleDim:
    """A dimension along which events are counted.

    Attributes:
        name: Its name in every output: that of the source, or of the windows along it (``day`` for 24 hourly steps).
        source: Dimension of the source.
        size: Number of positions.
    """

    name: str
    source: str
    size: int


@dataclass(frozen=True)
class Layout:
    """What is counted and what an event is made of; written once into the store, and read by every later step.

    Events are counted in C order over :attr:`grid_shape`; the number of an event in that order is its *grid index*.

    Attributes:
        variables: Names of the variables that make up an event.
        units: Their units, one each, empty where the source names none.
        sample_dims: Dimensions that are counted, slowest first.
        event_dims: Dimensions inside an event, in the order of the event's axes.
        context: Names of the variables that an event is conditioned on.
        context_size: Length of the context vector.
        dtype: Floating dtype of the stored events.

    Example:
        >>> layout = Layout(("t2m",), ("K",), (SampleDim("day", "time", 31),), (EventDim("time", 24, 24),))
        >>> layout.event_shape, layout.num_grid_events
        ((24,), 31)
    """

    variables: tuple[str, ...]
    units: tuple[str, ...]
    sample_dims: tuple[SampleDim, ...]
    event_dims: tuple[EventDim, ...]
    context: tuple[str, ...] = ()
    context_size: int = 0
    dtype: str = "float32"

    @property
    def event_shape(self) -> tuple[int, ...]:
        """One axis for the variables where there are several (or no other axis), then the event dimensions."""
        sizes = tuple(dim.size for dim in self.event_dims)
        return (len(self.variables), *sizes) if self.has_variable_axis else sizes

    @property
    def has_variable_axis(self) -> bool:
        """Whether the first axis of an event runs over the variables."""
        return len(self.variables) > 1 or not self.event_dims

    @property
    def event_axes(self) -> tuple[str, ...]:
        """Names of the axes of an event."""
        names = tuple(dim.name for dim in self.event_dims)
        return ("variable", *names) if self.has_variable_axis else names

    @property
    def context_shape(self) -> tuple[int, ...] | None:
        """Shape of the context, None without one."""
        return (self.context_size,) if self.context else None

    @property
    def grid_shape(self) -> tuple[int, ...]:
        """Number of positions along each sample dimension."""
        return tuple(dim.size for dim in self.sample_dims)

    @property
    def num_grid_events(self) -> int:
        """Number of positions in all, dropped events included."""
        return math.prod(self.grid_shape)

    @property
    def event_bytes(self) -> int:
        """Bytes of one stored event."""
        return math.prod(self.event_shape) * np.dtype(self.dtype).itemsize

    @property
    def overlapping(self) -> tuple[EventDim, ...]:
        """Windowed dimensions whose windows share values."""
        return tuple(dim for dim in self.event_dims if dim.stride is not None and dim.stride < dim.size)

    def request(self) -> dict[str, Any]:
        """Return what to ask of :func:`sciflow.shard`, so that other data of the kind are laid out the same.

        Example:
            >>> layout = Layout(("t2m",), ("K",), (SampleDim("day", "time", 31),), (EventDim("time", 24, 24),))
            >>> layout.request()["event"], layout.request()["sample"]
            ({'time': 24}, [])
        """
        windows = {dim.name: dim.stride for dim in self.event_dims if dim.stride is not None}
        return {
            "variables": self.variables,
            "event": {dim.name: dim.size if dim.name in windows else None for dim in self.event_dims} or None,
            "sample": [dim.source for dim in self.sample_dims if dim.source not in windows],
            "stride": windows,
            "context": self.context,
            "dtype": self.dtype,
        }

    def to_json(self) -> dict[str, Any]:
        """Return plain dictionaries and lists."""
        return {**asdict(self), "event_shape": list(self.event_shape)}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Layout:
        """Undo :meth:`to_json`."""
        return cls(
            variables=tuple(record["variables"]),
            units=tuple(record["units"]),
            sample_dims=tuple(SampleDim(**dim) for dim in record["sample_dims"]),
            event_dims=tuple(EventDim(**dim) for dim in record["event_dims"]),
            context=tuple(record["context"]),
            context_size=record["context_size"],
            dtype=record["dtype"],
        )

    def difference(self, other: Mapping[str, Any]) -> str | None:
        """Say how the events of another layout (as JSON) differ from these, or None where a model fits both."""
        theirs = Layout.from_json(other)
        for what, mine, its in (
            ("variables", self.variables, theirs.variables),
            ("units", self.units, theirs.units),
            ("event dimensions", self.event_axes, theirs.event_axes),
            ("event shape", self.event_shape, theirs.event_shape),
            ("context variables", self.context, theirs.context),
        ):
            if mine != its:
                return f"{what} {list(mine)} here, {list(its)} there"
        return None

    def require_fits(
        self, trained: Mapping[str, Any] | None, event_shape: Sequence[int] | None, where: str, what: str
    ) -> None:
        """Refuse events of another layout than something was trained on.

        Args:
            trained: The layout of its training data, as JSON; None where they had none.
            event_shape: Of its events; None where any will do.
            where: What to call the data of this layout.
            what: What to call that which was trained.

        Raises:
            LayoutError: They differ; the message says in what.
        """
        if trained is not None:
            difference = self.difference(trained)
            if difference is not None:
                raise LayoutError(f"{where}: {what} was trained on another layout: {difference}")
        elif event_shape is not None and self.event_shape != tuple(event_shape):
            raise LayoutError(f"{where}: events of shape {list(self.event_shape)}, {what} is for {list(event_shape)}")


def full_name(name: str, known: Iterable[str]) -> str:
    """Return the dimension that a name means: its own, or the only one that begins so.

    Example:
        >>> full_name("lat", ["time", "latitude", "longitude"])
        'latitude'

    Raises:
        LayoutError: Several dimensions begin so, or none does.
    """
    known = list(known)
    if name in known:
        return name
    found = [dim for dim in known if name and dim.startswith(name)]
    if len(found) == 1:
        return found[0]
    if found:
        raise LayoutError(f"dimension '{name}' may be {' or '.join(found)}: say which")
    raise LayoutError(unknown("dimension", name, known))


def unknown(what: str, name: str, known: Iterable[str]) -> str:
    """Say that a name is not known, which one is near it, and which there are.

    Example:
        >>> unknown("variable", "t2", ["t2m", "u10"])
        "no variable 't2'; did you mean t2m? known: t2m, u10"
    """
    known = list(known)
    hint = nearest(name, known)
    return f"no {what} '{name}'; {hint}" + (f" known: {', '.join(known)}" if hint.endswith("?") else "")


def require_names(layout: Layout) -> None:
    """Refuse dimensions that could not be told from something else in a store, in scores or in samples.

    Example:
        >>> require_names(Layout(("x",), ("",), (SampleDim("status", "status", 3),), ()))
        Traceback (most recent call last):
        ...
        sciflow.errors.LayoutError: dimension 'status' has a name that scores use: rename it

    Raises:
        LayoutError: A name is taken.
    """
    counted = [dim.name for dim in layout.sample_dims]
    for name in counted:
        if name in SCORE_NAMES:
            raise LayoutError(f"dimension '{name}' has a name that scores use: rename it")
    inside = [dim.name for dim in layout.event_dims]
    if "sample" in inside:
        raise LayoutError("dimension 'sample' has a name that samples of events are counted by: rename it, or count it")
    names = [*counted, *inside]
    if layout.has_variable_axis and "variable" in names:
        raise LayoutError("dimension 'variable' has the name of the axis that variables lie along: rename it")
    twice = [name for name in counted if names.count(name) > 1]
    if twice:
        raise LayoutError(f"dimension '{twice[0]}' has the name that is given to the windows of another: rename it")


def resolve(
    dims: Mapping[str, int],
    event: Mapping[str, int | None] | None,
    sample: Sequence[str] | None,
    stride: Mapping[str, int],
    periods: Mapping[str, str],
) -> tuple[tuple[SampleDim, ...], tuple[EventDim, ...]]:
    """Turn a request for events into dimensions, checked against those that exist.

    Args:
        dims: Dimensions of the variables and their lengths, in the source's order.
        event: Window length by dimension, None for the whole dimension.
        sample: Dimensions that are counted; all others belong to the event.
        stride: Steps from a window to the next, by dimension; a window's own length where it is not named.
        periods: Names for the windows of a dimension, such as ``{"time": "day"}``; ``NAME_window`` otherwise.

    Raises:
        LayoutError: A dimension is claimed twice or not at all, or a window is longer than it.
    """
    windows: dict[str, int | None] = dict(event or {})
    for name in stride:
        if windows.get(name) is None:
            raise LayoutError(f"stride of '{name}' without a window along it: give its window, --event {name}=LENGTH")
    if event is None and sample is None:
        sample = list(dims)[:1]
    if sample is not None:
        both = [name for name in sample if name in windows]
        if both:
            raise LayoutError(f"dimension '{both[0]}' is both in --sample and in --event: choose one")
        if event is None:
            windows = {name: None for name in dims if name not in sample}
    unclaimed = [name for name in dims if name not in windows and sample is not None and name not in sample]
    if unclaimed:
        raise LayoutError(
            f"dimension '{unclaimed[0]}' is neither counted nor part of an event: add it to --sample or to --event"
        )
    event_dims, sample_dims = [], []
    for name, length in dims.items():
        if name not in windows:
            sample_dims.append(SampleDim(name, name, length))
            continue
        size = windows[name]
        if size is None:
            event_dims.append(EventDim(name, length))
            continue
        step = stride.get(name, size)
        if size < 1 or step < 1:
            raise LayoutError(f"window of '{name}': length {size} and stride {step} must both be 1 or more")
        if size > length:
            raise LayoutError(f"window of {size} along '{name}' is longer than the dimension, which has {length}")
        event_dims.append(EventDim(name, size, step))
        counted = periods.get(name, f"{name}_window")
        sample_dims.append(SampleDim(counted, name, (length - size) // step + 1))
    # Event axes follow the request's order, so that --event lat=8,lon=8 and a transposed source agree.
    order = {name: place for place, name in enumerate(windows)}
    event_dims.sort(key=lambda dim: order[dim.name])
    if not sample_dims:
        raise LayoutError("nothing is counted: every dimension is a whole event; give a window or --sample")
    return tuple(sample_dims), tuple(event_dims)
