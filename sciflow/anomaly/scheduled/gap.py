"""Whether results have a time that a gap in an event could be counted along; known before anything is scored."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from sciflow.anomaly.scheduled.grid import Grid
from sciflow.errors import ConfigError

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["require_time"]


def require_time(gap: int, grid: Grid, along: Mapping[str, xr.Variable]) -> None:
    """Refuse a gap that no dimension of the results could have.

    Args:
        gap: Positions without a flag that an event may have.
        grid: Where results lie.
        along: Coordinates along the dimension that grows.

    Raises:
        ConfigError: None of the dimensions is a time.

    Example:
        >>> require_time(1, Grid(("row",), (), ("variable",), (3,), {}, frozenset()), {})
        Traceback (most recent call last):
        sciflow.errors.ConfigError: detection.events.gap: got 1, none of the dimensions (row) is a time: leave it out
    """
    if not gap:
        return
    import xarray as xr

    from sciflow.anomaly.axes import axes_of, time_axis

    first = grid.dims[0]
    coordinates = dict(grid.fixed)
    if first in along:
        coordinate = along[first]
        # Results are put in its order, whatever the order in a store is.
        coordinates[first] = xr.Variable(coordinate.dims, np.sort(coordinate.values), coordinate.attrs)
    length = len(along[first]) if first in along else 1
    # Of no size in memory, however large the grid is.
    flag = xr.Variable(grid.dims, np.broadcast_to(np.False_, (length, *grid.inner)))
    # As events are merged: rows that only count are nobody's neighbours, see publish.
    neighbours = () if len(grid.dims) == 1 and first not in along else None
    if time_axis(axes_of(xr.Dataset({"flag": flag}, coordinates), neighbours)) is None:
        raise ConfigError(
            f"detection.events.gap: got {gap}, none of the dimensions ({', '.join(grid.dims)}) is a time: leave it out"
        )
