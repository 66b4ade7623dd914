"""Where the numbers of an event stand: coordinates along its axes, by which flipped or other places are known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sciflow.errors import LayoutError

__all__ = ["inside", "require_inside"]

# Of the least step: months are of several lengths, and single precision rounds.
_TOLERANCE = 0.2
_SHOWN = 3


def inside(axes: Sequence[str], coordinates: Mapping[Any, Any]) -> dict[str, list[Any]]:
    """Return the coordinates of an event's axes as JSON can hold them: numbers, and times as numbers; or texts.

    Args:
        axes: Names of the axes.
        coordinates: By name, each with ``dims`` and ``values``; axes without one are left out.

    Example:
        >>> import xarray as xr
        >>> data = xr.Dataset(coords={"lat": [52.0, 51.0], "time": [0, 1, 2]})
        >>> inside(["lat", "lon"], data.coords)
        {'lat': [52.0, 51.0]}
    """
    found = {}
    for name in axes:
        if name in coordinates and coordinates[name].dims == (name,):
            values = np.asarray(coordinates[name].values)
            if values.dtype.kind in "mM":
                values = values.astype(f"{values.dtype.kind}8[ns]").astype(np.int64)
            is_number = values.dtype.kind in "biuf"
            found[name] = values.astype(np.float64).tolist() if is_number else [str(value) for value in values.tolist()]
    return found


def require_inside(mine: Mapping[str, Sequence[Any]], theirs: Mapping[str, Sequence[Any]], where: str) -> None:
    """Refuse events whose numbers stand elsewhere than those that are known, or in another order.

    Args:
        mine: As :func:`inside` returns it.
        theirs: The same of the events that are known; what only one of both has is not compared.
        where: What has the events, for the message.

    Raises:
        LayoutError: Names the coordinate, and says what to do.

    Example:
        >>> require_inside({"lat": [51.0, 52.0]}, {"lat": [52.0, 51.0]}, "new.zarr")
        Traceback (most recent call last):
        sciflow.errors.LayoutError: new.zarr: coordinate 'lat' of an event is 51, 52 here, and 52, 51 there: put it in \
that order (reindex, sortby), or drop the coordinate where events are to be taken as they stand
    """
    for name, values in mine.items():
        known = theirs.get(name)
        if known is not None and not _same(values, known):
            raise LayoutError(
                f"{where}: coordinate '{name}' of an event is {_short(values)} here, and {_short(known)} there: put it "
                "in that order (reindex, sortby), or drop the coordinate where events are to be taken as they stand"
            )


def _same(mine: Sequence[Any], theirs: Sequence[Any]) -> bool:
    if len(mine) != len(theirs) or any(isinstance(value, str) for value in (*mine, *theirs)):
        return list(mine) == list(theirs)
    a, b = np.asarray(mine, np.float64), np.asarray(theirs, np.float64)
    steps = np.abs(np.diff(b))
    steps = steps[steps > 0]
    allowed = _TOLERANCE * steps.min() if len(steps) else 1e-5 * np.abs(b)
    return bool(np.all((np.abs(a - b) <= allowed) | (np.isnan(a) & np.isnan(b))))


def _short(values: Sequence[Any]) -> str:
    words = [value if isinstance(value, str) else f"{value:.6g}" for value in values]
    return ", ".join(words[:_SHOWN]) + (f", ... {words[-1]}" if len(words) > _SHOWN else "")
