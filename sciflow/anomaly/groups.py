"""Groups of rows that are calibrated apart: by season, month or hour of their time, or by any coordinate."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from sciflow.data.coordinates import coordinates_along
from sciflow.errors import DataError, nearest

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["group_labels"]

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
        DataError: There is no such coordinate, or no time, or more than one.

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
        times = [c for c in known.values() if c.dtype.kind == "M" or (c.size and hasattr(c.values.flat[0], "calendar"))]
        if len(times) != 1:
            names = ", ".join(map(str, known)) or "none"
            what = "no time among the coordinates" if not times else "more than one time among the coordinates"
            raise DataError(f"group '{group}': {what} of the rows ({names}): give groups=, one for each row")
        found = getattr(times[0].dt, _OF_TIME[group])
    elif group in known:
        found = known[group]
    else:
        raise DataError(f"group '{group}': {nearest(group, [*_OF_TIME, *known])}")
    import xarray as xr

    grid = xr.DataArray(np.empty(shape, np.int8), dims=dims)
    labels = np.asarray(xr.broadcast(found, grid)[0].transpose(*dims).values).reshape(-1)
    return labels.astype(np.int64) if labels.dtype.kind in "iub" else labels.astype(str)
