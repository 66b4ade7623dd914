"""Rows of what users give: numbers, or several parts of them under names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from sciflow.arrays import numbers
from sciflow.errors import DataError, ShapeError
from sciflow.report.drawing import Floats

__all__ = ["finite", "flat_rows", "num_rows", "select_rows"]


def finite(values: Any, what: str) -> Floats:
    """Return numbers as float64.

    Raises:
        DataError: They are no real numbers, or not finite.

    Example:
        >>> finite([[0.0], [float("nan")]], "theta")
        Traceback (most recent call last):
        sciflow.errors.DataError: theta: 1 of 2 values are not finite, first at [1, 0]: leave out what has no value
    """
    array = numbers(values, what).astype(np.float64)
    missing = ~np.isfinite(array)
    if missing.any():
        first = [int(i) for i in np.argwhere(missing)[0]]
        raise DataError(
            f"{what}: {missing.sum():,} of {array.size:,} values are not finite, first at {first}: leave out what has "
            "no value"
        )
    return array


def flat_rows(x: Any) -> Floats:
    """Return ``x``, or all parts of a mapping, as rows of numbers ``[cases, k]``."""
    parts = list(x.values()) if isinstance(x, Mapping) else [x]
    arrays = [numbers(part, "x").astype(np.float64) for part in parts]
    return np.concatenate([array.reshape(len(array), -1) for array in arrays], axis=1)


def select_rows(x: Any, rows: Any) -> Any:
    """Return some of the cases of ``x``, or one of them, as it was given."""
    if isinstance(x, Mapping):
        return {name: select_rows(part, rows) for name, part in x.items()}
    if hasattr(x, "iloc"):
        return x.iloc[rows]
    return np.asarray(x)[rows] if isinstance(x, list | tuple) else x[rows]


def num_rows(x: Any, what: str) -> int:
    """Return of how many cases ``x`` is.

    Raises:
        ShapeError: Its parts disagree, or it is one number.
    """
    if isinstance(x, Mapping):
        sizes = {name: num_rows(part, what) for name, part in x.items()}
        if len(set(sizes.values())) != 1:
            raise ShapeError(f"{what}: the parts of x have different numbers of cases: {sizes}")
        return next(iter(sizes.values()))
    if not hasattr(x, "__len__") or (hasattr(x, "ndim") and x.ndim == 0):
        raise ShapeError(f"{what}: x must be [cases, ...], got one number")
    return len(x)
