"""Where results lie: over the sample dimensions, of which the first one grows and the others stay as they are."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from sciflow.data.layout import Layout
from sciflow.errors import LayoutError

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["NAMES", "Grid", "along"]

# What results are called: no coordinate may be called so too.
NAMES = ("score", "p_value", "flag", "extrapolated", "attribution", "status", "split", "detector", "store", "position")


@dataclass(frozen=True)
class Grid:
    """What all stores that are watched have in common.

    Attributes:
        dims: The sample dimensions; the first one grows.
        inner: Positions along the others.
        event_axes: Names of the axes of an event.
        event_shape: Of one event.
        fixed: Coordinates that do not lie along the first dimension.
        growing: Names of those that do.
    """

    dims: tuple[str, ...]
    inner: tuple[int, ...]
    event_axes: tuple[str, ...]
    event_shape: tuple[int, ...]
    fixed: Mapping[str, xr.Variable]
    growing: frozenset[str]

    @classmethod
    def of(cls, layout: Layout, coordinates: xr.Dataset) -> Grid:
        """The grid of a store.

        Raises:
            LayoutError: A coordinate has a name that results use.
        """
        dims = tuple(dim.name for dim in layout.sample_dims)
        fixed = {
            str(name): plain(values.variable)
            for name, values in coordinates.coords.items()
            if dims[0] not in values.dims
        }
        for name in (*coordinates.coords, *dims, *layout.event_axes):
            if name in NAMES:
                raise LayoutError(f"coordinate '{name}' has a name that results use: rename it")
        grown = frozenset(along(dims[0], coordinates))
        return cls(dims, layout.grid_shape[1:], layout.event_axes, layout.event_shape, fixed, grown)

    @property
    def inner_size(self) -> int:
        """Rows at one position of the first dimension."""
        return math.prod(self.inner)

    @property
    def has_order(self) -> bool:
        """Whether the first dimension has a coordinate to go by."""
        return self.dims[0] in self.growing

    def require(self, other: Grid) -> None:
        """Refuse a grid that cannot be put together with this one along the first dimension.

        Raises:
            LayoutError: They differ; says in what.
        """
        if (self.dims, self.inner) != (other.dims, other.inner):
            raise LayoutError(f"counted over {_sizes(other)}, the others over {_sizes(self)}")
        if self.growing != other.growing:
            raise LayoutError(
                f"coordinates along '{self.dims[0]}' are {sorted(other.growing)}, of the others {sorted(self.growing)}"
            )
        for name in sorted({*self.fixed, *other.fixed}):
            mine, its = self.fixed.get(name), other.fixed.get(name)
            if mine is None or its is None or mine.dims != its.dims or not np.array_equal(mine.values, its.values):
                raise LayoutError(f"coordinate '{name}' is another than that of the other stores")


def along(dim: str, coordinates: xr.Dataset) -> dict[str, xr.Variable]:
    """Coordinates along a dimension. That of a table that only counts its rows says nothing of their order."""
    found = {str(name): plain(values.variable) for name, values in coordinates.coords.items() if values.dims == (dim,)}
    if dim in found and _only_counts(found[dim]):
        del found[dim]
    return found


def plain(variable: xr.Variable) -> xr.Variable:
    """A variable in memory, without a word of how a file has held it."""
    import xarray as xr

    return xr.Variable(variable.dims, variable.values, variable.attrs)


def _only_counts(variable: xr.Variable) -> bool:
    values = variable.values
    return (
        values.dtype.kind in "iu" and "units" not in variable.attrs and np.array_equal(values, np.arange(len(values)))
    )


def _sizes(grid: Grid) -> str:
    sizes = [str(grid.dims[0]), *(f"{name} {size}" for name, size in zip(grid.dims[1:], grid.inner, strict=True))]
    return ", ".join(sizes)
