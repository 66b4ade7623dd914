"""The dimensions that results lie along: what their positions are called, and which of them are neighbours."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sciflow.data.layout import full_name
from sciflow.errors import DataError

if TYPE_CHECKING:
    import xarray as xr

    from sciflow.anomaly.detection import Detection

__all__ = ["Axis", "as_results", "axes_of", "require_results", "text_of", "time_axis", "titled"]

# How the names of dimensions of space begin. What else has an order is taken for a time.
PLACES = ("lat", "lon", "lev", "plev", "pressure", "depth", "height", "alt")
CIRCLE = 360.0  # degrees
DEGREES = {"degrees_north": "°N", "degrees_east": "°E", "degrees": "°"}
# In nanoseconds.
SPANS = {"d": 86_400 * 10**9, "h": 3600 * 10**9, "min": 60 * 10**9, "s": 10**9, "ms": 10**6, "us": 1000, "ns": 1}


@dataclass(frozen=True)
class Axis:
    """One dimension of the results.

    Attributes:
        name: Of the dimension.
        title: Its name and unit, as they stand beside a figure.
        labels: ``[n]``, what its positions are called: numbers, times, or text.
        ticks: ``[n]``, the same as numbers: times from the first on, in ``unit``; without an order, positions.
        unit: Of the ticks where they are times, such as ``ns``; None for numbers.
        is_ordered: Whether positions next to each other are neighbours.
        is_place: Whether it is a dimension of space.
        is_periodic: Whether the last position and the first are neighbours, too.
    """

    name: str
    title: str
    labels: NDArray[Any]
    ticks: NDArray[Any]
    unit: str | None
    is_ordered: bool
    is_place: bool
    is_periodic: bool = False

    @property
    def step(self) -> float:
        """The usual distance between neighbours, in ticks; NaN of one position alone."""
        sizes = np.sort(np.abs(np.diff(self.ticks)))
        return sizes[len(sizes) // 2] if len(sizes) else np.nan

    def positions_of(self, labels: Any) -> NDArray[np.int64]:
        """Where labels lie along the axis; -1 for those that do not."""
        import pandas as pd

        index = pd.Index(self.labels)
        first = np.flatnonzero(~index.duplicated())
        return np.append(first, -1)[index[first].get_indexer(pd.Index(labels))]


def as_results(found: Detection | xr.Dataset) -> xr.Dataset:
    """Return results as a dataset.

    Args:
        found: What a detector's ``predict`` returns, or a dataset.

    Raises:
        DataError: It is something else.
    """
    import xarray as xr

    from sciflow.anomaly.detection import Detection

    if isinstance(found, Detection):
        return found.to_dataset()
    if not isinstance(found, xr.Dataset):
        raise DataError(f"results: {type(found).__name__}; give what a detector's predict returns, or a dataset of it")
    return found


def axes_of(
    found: xr.Dataset, neighbours: Collection[str] | None = None, periodic: Collection[str] | None = None
) -> tuple[Axis, ...]:
    """Return the dimensions that ``found.flag`` lies along.

    Args:
        found: Results, with their coordinates.
        neighbours: Dimensions along which positions next to each other are neighbours; None for those with an order.
            An order have times, and numbers that only rise or only fall. No order have names, dimensions without a
            coordinate, whole numbers without a unit that only count (0, 1, 2, ...), and the numbers of a table's rows
            (of a dimension called ``row``).
        periodic: Dimensions whose last position is a neighbour of the first; None for longitudes that go round.

    Raises:
        DataError: There is no ``flag``, it has no dimension, or what is to be periodic has no order.
        LayoutError: There is no dimension of that name.
    """
    if "flag" not in found:
        raise DataError("results: no variable 'flag'; give the results of a detector")
    dims = [str(dim) for dim in found["flag"].dims]
    if not dims:
        raise DataError(
            "results: one value alone, without a dimension; keep the dimension, as found.isel(row=[0]) does"
        )
    axes = [_axis(found, dim) for dim in dims]
    if neighbours is not None:
        joined = {full_name(name, dims) for name in neighbours}
        axes = [replace(axis, is_ordered=axis.name in joined) for axis in axes]
    if periodic is None:
        return tuple(replace(axis, is_periodic=axis.is_ordered and _goes_round(axis)) for axis in axes)
    round_ones = {full_name(name, dims) for name in periodic}
    for axis in axes:
        if axis.name in round_ones and not axis.is_ordered:
            raise DataError(f"dimension '{axis.name}' cannot be periodic: it has no order; name it in neighbours, too")
    return tuple(replace(axis, is_periodic=axis.name in round_ones) for axis in axes)


def require_results(found: xr.Dataset, axes: Collection[Axis]) -> None:
    """Check that results have a score, a p-value and a flag at every place.

    Raises:
        DataError: One is missing, or of another kind.
    """
    dims = {axis.name for axis in axes}
    for name in ("score", "p_value"):
        if name not in found:
            raise DataError(f"results: no variable '{name}'; give the results of a detector")
        if set(found[name].dims) != dims:
            raise DataError(
                f"results: '{name}' lies along {list(found[name].dims)}, 'flag' along {list(found['flag'].dims)}; "
                "give both the same dimensions"
            )
    if found["flag"].dtype != bool:
        raise DataError(
            f"results: 'flag' is {found['flag'].dtype}, not bool; what is missing has no flag: fill it by False"
        )


def time_axis(axes: Collection[Axis]) -> Axis | None:
    """The dimension that is a time: the first whose labels are times, or else the first with an order, save places."""
    times = [axis for axis in axes if axis.is_ordered and axis.unit is not None]
    others = [axis for axis in axes if axis.is_ordered and not axis.is_place]
    return next(iter([*times, *others]), None)


def text_of(label: Any) -> str:
    """A label as a reader wants it, and as short as it can be without loss.

    Example:
        >>> text_of(np.datetime64("2019-03-04T12:00:00")), text_of(np.float32(51.3)), text_of(np.timedelta64(7200, "s"))
        ('2019-03-04T12:00', '51.3', '2 h')
        >>> text_of(np.timedelta64(0, "s")), text_of(np.timedelta64(930, "m")), text_of(np.timedelta64(30, "m"))
        ('0', '15 h 30 min', '30 min')
    """
    if isinstance(label, np.datetime64):
        return str(np.datetime_as_string(label, unit="auto"))
    if isinstance(label, np.timedelta64):
        if np.isnat(label):
            return str(label)
        nanoseconds = int(label.astype("timedelta64[ns]").astype(np.int64))
        if nanoseconds == 0:
            return "0"
        unit, size = next((unit, size) for unit, size in SPANS.items() if nanoseconds % size == 0)
        if unit == "min" and nanoseconds > SPANS["h"]:
            return f"{nanoseconds // SPANS['h']} h {nanoseconds % SPANS['h'] // size} min"
        return f"{nanoseconds // size} {unit}"
    if hasattr(label, "to_datetime64"):
        return text_of(label.to_datetime64())
    if hasattr(label, "to_timedelta64"):
        return text_of(label.to_timedelta64())
    if hasattr(label, "calendar"):
        return str(label.isoformat()).removesuffix("T00:00:00").removesuffix(":00")
    return str(label)


def titled(name: str, units: Any) -> str:
    """What stands beside a figure: a name with its unit, where it has one.

    Example:
        >>> titled("lat", "degrees_north"), titled("score", "nats"), titled("ratio", "1")
        ('lat (°N)', 'score (nats)', 'ratio')
    """
    return f"{name} ({DEGREES.get(units, units)})" if isinstance(units, str) and units not in ("", "1") else name


def _axis(found: xr.Dataset, dim: str) -> Axis:
    count = np.arange(found.sizes[dim])
    if dim not in found.coords:
        return Axis(dim, dim, count, count, None, is_ordered=False, is_place=_is_place(dim, {}))
    values, attrs = found[dim].values, found[dim].attrs
    labels, (ticks, unit) = values, _ticks(values)
    if values.dtype.kind not in "biufmM":
        labels = np.array([text_of(value) for value in values.tolist()], object)
    only_counts = values.dtype.kind in "iu" and (
        dim == "row" or ("units" not in attrs and np.array_equal(values, count))
    )
    is_ordered = ticks is not None and _never_turns(ticks) and not only_counts
    return Axis(
        dim,
        titled(dim, attrs.get("units")),
        labels,
        ticks if ticks is not None and is_ordered else count,
        unit,
        is_ordered,
        _is_place(dim, attrs),
    )


def _ticks(values: NDArray[Any]) -> tuple[NDArray[Any] | None, str | None]:
    """Coordinates as numbers, and the unit of those that are times; None for those that are neither."""
    if values.dtype.kind in "iuf":
        return values.astype(np.float64), None
    if values.dtype.kind in "mM":
        return None if np.isnat(values).any() else (values - values[:1]).astype(np.int64), np.datetime_data(
            values.dtype
        )[0]
    if values.dtype.kind == "O" and len(values) and all(hasattr(value, "calendar") for value in values):
        seconds = [(value - values[0]).total_seconds() for value in values]
        return np.round(np.array(seconds) * 1e6).astype(np.int64), "us"
    return None, None


def _never_turns(ticks: NDArray[Any]) -> bool:
    steps = np.diff(ticks)
    return bool((steps >= 0).all() or (steps <= 0).all())


def _is_place(name: str, attrs: Mapping[Any, Any]) -> bool:
    words = name.lower()
    return (
        words in ("x", "y", "z")
        or words.startswith(PLACES)
        or attrs.get("axis") in ("X", "Y", "Z")
        or str(attrs.get("units", "")).startswith("degrees_")
    )


def _goes_round(axis: Axis) -> bool:
    if not axis.name.lower().startswith("lon") and "(°E)" not in axis.title:
        return False
    return bool(abs(len(axis.ticks) * axis.step - CIRCLE) < axis.step / 2)
