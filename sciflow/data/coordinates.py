"""Coordinates as a store can hold them, and as xarray reads them again."""

from __future__ import annotations

import json
from collections.abc import Collection, Hashable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["coordinates_along", "storable"]

# What xarray itself writes beside numbers, and goes by when it reads them.
ENCODING = ("_FillValue", "missing_value", "scale_factor", "add_offset", "dtype")
# Most file systems take no more bytes.
LONGEST_NAME = 255


def storable(coordinate: xr.DataArray) -> tuple[np.ndarray, dict[str, Any]] | None:
    """Return the values and attributes of a coordinate in plain kinds; None where it cannot be kept.

    Example:
        >>> import xarray as xr
        >>> coordinate = xr.DataArray([50.0, 51.0], dims="lat", name="lat", attrs={"units": "degrees", "raw": b"x"})
        >>> storable(coordinate)
        (array([50., 51.]), {'units': 'degrees'})
    """
    values = _plain(coordinate.values)
    if values is None or not _is_file_name(coordinate.name):
        return None
    for attrs in (_plain_attrs(coordinate.attrs, values), {}):
        if _comes_back(values, attrs):
            return values, attrs
    return None


def coordinates_along(dims: Collection[str], labelled: xr.Dataset | None) -> dict[str, xr.DataArray]:
    """Return the coordinates that lie along some dimensions and no other, by name; none of data without any.

    Example:
        >>> import xarray as xr
        >>> grid = xr.Dataset(coords={"day": [1, 2], "lat": [50.0], "height": (("day", "lat"), [[2.0], [3.0]])})
        >>> list(coordinates_along(["day"], grid))
        ['day']
    """
    if labelled is None:
        return {}
    return {str(name): found for name, found in labelled.coords.items() if set(found.dims) <= set(dims)}


def _plain(values: np.ndarray) -> np.ndarray | None:
    """Coordinates that a store can hold: numbers, times and text; None for anything else."""
    if values.dtype.kind in "biufcmM":
        return None if values.dtype in (np.longdouble, np.clongdouble) else values
    if values.dtype.kind not in "OUT":
        return None
    items = values.tolist()
    if all(isinstance(item, str) for item in items):
        return np.array(items, object)
    return values if all(hasattr(item, "calendar") for item in items) else None


def _is_file_name(name: Hashable) -> bool:
    """Whether an array of a store may be called so: its name is that of a folder."""
    if not isinstance(name, str) or not name.isprintable() or len(name.encode()) > LONGEST_NAME:
        return False
    return name not in ("", "zarr.json") and not name.startswith((".", "__")) and not {"/", "\\"}.intersection(name)


def _plain_attrs(attrs: Mapping[Any, Any], values: np.ndarray) -> dict[str, Any]:
    """Attributes that a store can hold, in plain Python: those that are JSON, and no word of how values are encoded."""
    is_date = values.dtype.kind in "mM" or hasattr(values[0], "calendar")
    reserved = (*ENCODING, "units", "calendar") if is_date else ENCODING
    found: dict[str, Any] = {}
    for name, value in attrs.items():
        if isinstance(value, (np.ndarray, np.generic)):
            # Dates of NumPy would become plain integers.
            value = value.tolist() if value.dtype.kind in "biufU" else None
        if not isinstance(name, str) or name in reserved or value is None:
            continue
        try:
            found[name] = json.loads(json.dumps(value))
        except (TypeError, ValueError, RecursionError):
            continue
    return found


def _comes_back(values: np.ndarray, attrs: dict[str, Any]) -> bool:
    """Whether xarray reads again what it writes: dates of the far future and odd units it does not."""
    import xarray as xr

    try:
        encoded = xr.conventions.encode_cf_variable(xr.Variable("x", values, attrs))
        xr.conventions.decode_cf_variable("x", encoded).load()
    except Exception:
        return False
    return True
