"""Columns as callers hand them over: one number, or one label, a row."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

import numpy as np

from sciflow.errors import DataError, first_line

__all__ = ["Label", "labels", "named", "numbers", "parts", "weights"]

Label: TypeAlias = str | int

NAMED_GROUPS = 5
# Of weights.
_LEAST, _MOST = 1e-100, 1e100


def numbers(values: Any, name: str, length: int | None = None) -> np.ndarray:
    """Return a column of numbers as float64.

    Args:
        values: ``[n]``.
        name: What they are, in the plural, for messages.
        length: Rows that there must be.

    Raises:
        DataError: Not numbers, not one a row, or of another length.

    Example:
        >>> numbers([1, float("inf")], "scores")
        array([ 1., inf])
    """
    try:
        column = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise DataError(f"{name} are not numbers: {first_line(error)}") from None
    return _one_a_row(column, name, length)


def labels(values: Any, name: str, length: int | None = None) -> np.ndarray:
    """Return a column of labels, all text or all int64.

    Args:
        values: ``[n]``, text or whole numbers.
        name: What they are, in the plural, for messages.
        length: Rows that there must be.

    Raises:
        DataError: Neither text nor whole numbers, a mix of both, not one a row, or of another length.

    Example:
        >>> labels(["jul", "jan"], "groups"), labels([7, 1], "groups")
        (array(['jul', 'jan'], dtype='<U3'), array([7, 1]))
    """
    # Of a list, NumPy alone would turn 1 into "1" where there is text among numbers.
    column = np.asarray(values, dtype=getattr(values, "dtype", object))
    if column.dtype.kind in "OT" and column.size:
        column = _of_objects(column, name)
    if column.dtype.kind in "biu":
        column = column.astype(np.int64)
    elif column.dtype.kind != "U" and column.size:
        raise DataError(f"{name} are of type {column.dtype}: label all rows by text, or all by whole numbers")
    return _one_a_row(column, name, length)


def _of_objects(column: np.ndarray, name: str) -> np.ndarray:
    if all(isinstance(value, str) for value in column.flat):
        return column.astype(str)
    if all(isinstance(value, int | np.integer) for value in column.flat):
        return column.astype(np.int64)
    kinds = list(dict.fromkeys(type(value).__name__ for value in column.flat))
    raise DataError(f"{name} are of type {' and '.join(kinds)}: label all rows by text, or all by whole numbers")


def _one_a_row(column: np.ndarray, name: str, length: int | None) -> np.ndarray:
    if column.ndim != 1:
        raise DataError(f"{name} have shape {list(column.shape)}; one a row is needed, [n]")
    if length is not None and len(column) != length:
        raise DataError(f"there are {len(column):,} {name} for {length:,} scores; one a row is needed")
    return column


def weights(values: Any, length: int) -> np.ndarray:
    """Return a column of weights, all above 0, and of a size that squares and sums can be taken of.

    Raises:
        DataError: They are not; names the first.
    """
    column = numbers(values, "weights", length)
    bad = np.flatnonzero(~((column > 0) & (column < np.inf)))
    if len(bad):
        raise DataError(
            f"weights have to be above 0 and finite, and {len(bad):,} are not, first in row {bad[0]}: "
            f"{column[bad[0]]:g}; leave such rows out"
        )
    bad = np.flatnonzero((column < _LEAST) | (column > _MOST))
    if len(bad):
        raise DataError(
            f"weights have to lie between {_LEAST:g} and {_MOST:g}, and {len(bad):,} do not, first in row {bad[0]}: "
            f"{column[bad[0]]:g}; scale all of them, those of the calibration and of new rows, by one factor"
        )
    return column


def parts(groups: np.ndarray) -> Iterator[tuple[Label, np.ndarray]]:
    """Yield every label, in order, and the rows that have it, in order.

    Example:
        >>> list(parts(np.array(["b", "a", "b"])))
        [('a', array([1])), ('b', array([0, 2]))]
    """
    names, index = np.unique(groups, return_inverse=True)
    rows = np.argsort(index, kind="stable")
    ends = np.cumsum(np.bincount(index, minlength=1))
    yield from zip(names.tolist(), np.split(rows, ends[:-1])[: len(names)], strict=True)


def named(groups: Mapping[Any, int]) -> str:
    """Return groups and how many of something each has, for a message; the first few of many.

    Example:
        >>> named({"jan": 3, "feb": 1})
        "'jan' (3), 'feb' (1)"
    """
    first = ", ".join(f"{name!r} ({count:,})" for name, count in list(groups.items())[:NAMED_GROUPS])
    return first + (f" and {len(groups) - NAMED_GROUPS:,} more" if len(groups) > NAMED_GROUPS else "")
