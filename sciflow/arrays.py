"""What users hand over as numbers, as a NumPy array: by value, or a clear error."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from sciflow.errors import DataError, first_line, nearest

__all__ = ["as_tensor", "column_names", "numbers", "require_values"]


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
        require_values(values, what)
        values = values.detach().cpu().resolve_neg()
        # NumPy has no other halves and quarters.
        values = (values.float() if values.is_floating_point() and values.itemsize < 4 else values).numpy()
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
    except (TypeError, ValueError, OverflowError, RuntimeError) as error:
        raise DataError(f"{what} are made of numbers, in an array: {first_line(error)}") from None
    if array.dtype.kind not in "fiub":
        names = array.dtype.kind in "OUST"
        hint = "; number what are names, such as by np.unique(..., return_inverse=True)" if names else ""
        raise DataError(f"{what} are made of real numbers; got an array of {array.dtype}{hint}")
    return array


def as_tensor(
    values: Any,
    what: str,
    columns: Sequence[str] | None = None,
    *,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str = "cpu",
) -> torch.Tensor:
    """Return real numbers as a tensor; one that is a tensor keeps its gradient.

    Args:
        values: As for :func:`numbers`.
        what: What to call them in messages.
        columns: Names of the columns, where they are known.
        dtype: Of the tensor.
        device: Where it is to be.

    Raises:
        DataError: They are no real numbers, or a table has other columns.

    Example:
        >>> as_tensor([1, 2], "events")
        tensor([1., 2.], dtype=torch.float64)
    """
    if isinstance(values, torch.Tensor):
        require_values(values, what)
    else:
        # A copy: the caller's array may be read-only.
        values = torch.from_numpy(np.array(numbers(values, what, columns), np.float64))
    return values.to(device=device, dtype=dtype)


def require_values(tensor: torch.Tensor, what: str) -> None:
    """Refuse a tensor that is no plain array of real numbers.

    Raises:
        DataError: It is sparse, nested, quantised or complex, or has no values.

    Example:
        >>> require_values(torch.eye(3).to_sparse(), "events")
        Traceback (most recent call last):
        sciflow.errors.DataError: events: a sparse, nested or quantised tensor, or one without values: give a dense one
    """
    if tensor.is_complex():
        raise DataError(f"{what} are made of real numbers; got a tensor of {tensor.dtype}")
    if tensor.is_meta or tensor.is_nested or tensor.is_quantized or tensor.layout != torch.strided:
        raise DataError(f"{what}: a sparse, nested or quantised tensor, or one without values: give a dense one")


def column_names(values: Any, what: str) -> list[str] | None:
    """Return the names of a table's columns; None of what is no table.

    Raises:
        DataError: Two columns have one name.

    Example:
        >>> import pandas as pd
        >>> column_names(pd.DataFrame({"a": [1], "b": [2]}), "context")
        ['a', 'b']
    """
    if hasattr(values, "data_vars"):
        values = _table_of(values, what)
    if not hasattr(values, "columns"):
        return None
    names = [str(name) for name in values.columns]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise DataError(f"{what}: {names.count(twice[0])} columns are called '{twice[0]}': rename them")
    return names


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
    have = {str(name): name for name in table.columns}
    for name in columns:
        if name not in have:
            raise DataError(f"{what}: no column '{name}'; {nearest(name, have)}")
    return table[[have[name] for name in columns]]
