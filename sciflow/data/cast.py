"""From the source's numbers to the floats of a store, with nothing lost unseen."""

from __future__ import annotations

import numpy as np

from sciflow.errors import DataError

__all__ = ["to_floats"]

# From here on every float64 is a whole number, and being one says nothing.
ALL_WHOLE = 2.0**52


def to_floats(values: np.ndarray, dtype: str, what: str) -> np.ndarray:
    """Return numbers as floats; no copy where they are already.

    Args:
        values: Floats, integers or booleans.
        dtype: ``float32`` or ``float64``.
        what: What to call them in messages, ``data.csv: column 'id'``.

    Raises:
        DataError: A number is beyond the floats or too small for them, or an integer has more digits than they hold.

    Example:
        >>> to_floats(np.array([16777217]), "float64", "column 'id'").tolist()
        [16777217.0]
    """
    target = np.dtype(dtype)
    exact = 2 ** (np.finfo(target).nmant + 1)
    cure = "use --dtype float64, " if target.itemsize < 8 else ""
    if values.dtype.kind in "iu" and values.size:
        largest = max(int(values.max()), -int(values.min()))
        if largest > exact:
            raise DataError(f"{what} holds {largest}, {_ambiguous(dtype, cure)}")
    try:
        with np.errstate(over="raise", under="raise"):
            floats = values.astype(target, copy=False)
    except FloatingPointError:
        with np.errstate(over="ignore", under="ignore"):
            floats = values.astype(target)
        beyond = np.abs(values[np.isinf(floats) & np.isfinite(values)])
        if beyond.size:
            raise DataError(f"{what} holds {beyond.max():g}, which is beyond {dtype}: {cure}or scale it") from None
        # Tails of a tracer may vanish; where nothing else is left, the units are wrong.
        vanished = values[(floats == 0) & (values != 0)]
        if vanished.size and not np.nan_to_num(floats).any():
            raise DataError(f"{what} holds {vanished[0]:g}, which {dtype} takes for 0: {cure}or other units") from None
    is_narrowed = values.dtype.kind == "f" and values.dtype.itemsize > target.itemsize and values.size
    # Two looks at the narrow copy cost little: whole numbers are looked for only where some may be too long.
    if is_narrowed and max(np.fmax.reduce(floats, axis=None), -np.fmin.reduce(floats, axis=None)) >= exact:
        _require_digits(values, floats, what, cure)
    return floats


def _require_digits(values: np.ndarray, floats: np.ndarray, what: str, cure: str) -> None:
    """Refuse whole numbers that lose digits: integers with gaps reach us as wider floats."""
    with np.errstate(invalid="ignore"):
        # Fractions, which are rounded as a matter of course, show within the first few.
        for part in (values.flat[:1000], values):
            if (np.abs(part - np.rint(part)) > 0).any():
                return
        lost = values[(floats != values) & (np.abs(values) < ALL_WHOLE)]
    if lost.size:
        raise DataError(f"{what} holds {lost[0]:.0f}, {_ambiguous(str(floats.dtype), cure)}")


def _ambiguous(dtype: str, cure: str) -> str:
    return f"which {dtype} cannot tell from its neighbours: {cure}scale it, or leave it out"
