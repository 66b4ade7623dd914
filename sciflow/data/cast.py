"""From the source's numbers to the floats of a store, with nothing lost unseen."""

from __future__ import annotations

import numpy as np

from sciflow.errors import DataError

__all__ = ["to_floats"]


def to_floats(values: np.ndarray, dtype: str, what: str) -> np.ndarray:
    """Return numbers as floats; no copy where they are already.

    Args:
        values: Floats, integers or booleans.
        dtype: ``float32`` or ``float64``.
        what: What to call them in messages, ``data.csv: column 'id'``.

    Raises:
        DataError: A number is beyond the floats, or an integer has more digits than they hold.

    Example:
        >>> to_floats(np.array([16777217]), "float64", "column 'id'").tolist()
        [16777217.0]
    """
    target = np.dtype(dtype)
    cure = "use --dtype float64, " if target.itemsize < 8 else ""
    if values.dtype.kind in "iu" and values.size:
        largest = max(int(values.max()), -int(values.min()))
        if largest > 2 ** (np.finfo(target).nmant + 1):
            raise DataError(
                f"{what} holds {largest}, which {dtype} cannot tell from its neighbours: "
                f"{cure}scale it, or leave it out"
            )
    try:
        with np.errstate(over="raise"):
            return values.astype(target, copy=False)
    except FloatingPointError:
        finite = values[np.isfinite(values)]
        raise DataError(f"{what} holds {np.abs(finite).max():g}, which is beyond {dtype}: {cure}or scale it") from None
