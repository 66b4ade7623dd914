"""Groups of rows that are calibrated apart: by season, month or hour of their time, or by any coordinate."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from sciflow.data.coordinates import coordinates_along
from sciflow.errors import DataError, nearest

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["block_numbers", "group_labels"]

_OF_TIME = {"season": "season", "month": "month", "hour": "hour", "weekday": "dayofweek", "year": "year"}


def group_labels(
    group: str, coordinates: xr.Dataset | None, dims: tuple[str, ...], shape: tuple[int, ...]
) -> np.ndarray:
    """Return the group of every row, ``[n]``, in C order over the dimensions that are counted: text, or whole numbers.

    Args:
        group: ``"season"``, ``"month"``, ``"hour"``, ``"weekday"`` or ``"year"`` of the rows' time; or the name of a
            coordinate along a dimension that is counted, such as a station's.
        coordinates: Of the rows.
        dims: Dimensions that are counted.
        shape: Their lengths.

    Raises:
        DataError: There is no such coordinate, or no time, or several that do not agree.

    Example:
        >>> import xarray as xr
        >>> time = np.array(["2019-01-31", "2019-02-01", "2019-07-01"], "M8[ns]")
        >>> group_labels("season", xr.Dataset(coords={"time": time}), ("time",), (3,)).tolist()
        ['DJF', 'DJF', 'JJA']
    """
    known = coordinates_along(dims, coordinates)
    if group in known and group not in dims and group in _OF_TIME:
        found = known[group]  # a coordinate of one's own that is called so
    elif group in _OF_TIME:
        return _of_time(group, known, dims, shape)
    elif group in known:
        found = known[group]
    else:
        raise DataError(f"group '{group}': {nearest(group, [*_OF_TIME, *known])}")
    return _of_rows(found, dims, shape)


def block_numbers(places: np.ndarray, shape: tuple[int, ...], block: int) -> np.ndarray:
    """Return the number of the block that every row belongs to: steps along the first dimension that belong together.

    Args:
        places: ``[n]``, of the rows in the grid.
        shape: Of the grid.
        block: Steps in a block.

    Example:
        >>> block_numbers(np.arange(8), (4, 2), block=2).tolist()
        [0, 0, 0, 0, 1, 1, 1, 1]
    """
    return places // math.prod(shape[1:]) // block


def _of_time(group: str, known: dict[str, xr.DataArray], dims: tuple[str, ...], shape: tuple[int, ...]) -> np.ndarray:
    """The season, month or hour of every row. Several times, as GRIB files have them, do no harm while they agree."""
    times = {
        n: c for n, c in known.items() if c.dtype.kind == "M" or (c.size and hasattr(c.values.flat[0], "calendar"))
    }
    names = ", ".join(known) or "none"
    if not times:
        raise DataError(
            f"group '{group}': no time among the coordinates of the rows ({names}): give groups=, one for each row"
        )
    labels = [_of_rows(getattr(time.dt, _OF_TIME[group]), dims, shape) for time in times.values()]
    if not all(np.array_equal(labels[0], other) for other in labels[1:]):
        raise DataError(
            f"group '{group}': the times of the rows ({', '.join(times)}) do not agree on it: drop those that are not "
            "meant, or give groups=, one for each row"
        )
    return labels[0]


def _of_rows(found: xr.DataArray, dims: tuple[str, ...], shape: tuple[int, ...]) -> np.ndarray:
    """Values of a coordinate, one for each row."""
    import xarray as xr

    grid = xr.DataArray(np.empty(shape, np.int8), dims=dims)
    labels = np.asarray(xr.broadcast(found, grid)[0].transpose(*dims).values).reshape(-1)
    return labels.astype(np.int64) if labels.dtype.kind in "iub" else labels.astype(str)
