"""What users hand over as numbers, as a NumPy array: by value, or a clear error."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from sciflow.errors import DataError, nearest

__all__ = ["numbers"]


def numbers(values: Any, what: str = "events", columns: Sequence[str] | None = None) -> np.ndarray:
    """Return real numbers as an array of their own dtype; what is masked becomes NaN.

    Args:
        values: A tensor, or anything that NumPy takes; a table's columns are put in the order of ``columns``. An
            xarray.Dataset is a table where its variables have one dimension, the same.
        what: What to call them in messages.
        columns: Names of the columns, where they are known.

    Raises:
        DataError: They are no real numbers, or a table has other columns.

    Example:
        >>> numbers(np.ma.masked_greater([1, 2, 900], 100)).tolist()
        [1.0, 2.0, nan]
    """
    if isinstance(values, torch.Tensor):
        if values.is_meta or values.layout != torch.strided:
            raise DataError(f"{what}: a tensor without values, or a sparse one: give a dense tensor")
        values = values.detach().cpu().resolve_conj()
        values = (values.float() if values.dtype in (torch.bfloat16, torch.float16) else values).numpy()
    if hasattr(values, "data_vars"):
        values = _table_of(values, what)
    if columns is not None and hasattr(values, "columns"):
        values = _in_order(values, columns, what)
    if isinstance(values, np.ma.MaskedArray) and values.dtype.kind in "fiub":
        values = np.ma.filled(values.astype(values.dtype if values.dtype.kind == "f" else np.float64), np.nan)
    try:
        array = np.asarray(values)
        if array.dtype.kind == "O" and all(_is_number(value) for value in array.flat):
            array = array.astype(np.float64)
    except (TypeError, ValueError) as error:
        raise DataError(f"{what} are made of numbers, in an array: {error}") from None
    if array.dtype.kind not in "fiub":
        raise DataError(f"{what} are made of real numbers; got an array of {array.dtype}")
    return array


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float, np.integer, np.floating, np.bool_))


def _table_of(dataset: Any, what: str) -> Any:
    if len({variable.dims for variable in dataset.data_vars.values()}) != 1 or len(dataset.dims) != 1:
        raise DataError(
            f"{what}: a Dataset is a table where all its variables have the same, one dimension; this has "
            f"{dict(dataset.sizes)}. Give an array [*batch, *event_shape], or a store to sciflow.score"
        )
    return dataset.to_dataframe()[[str(name) for name in dataset.data_vars]]


def _in_order(table: Any, columns: Sequence[str], what: str) -> Any:
    have = [str(name) for name in table.columns]
    for name in columns:
        if name not in have:
            raise DataError(f"{what}: no column '{name}'; {nearest(name, have)}")
    return table[list(columns)]
