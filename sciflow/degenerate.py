"""Elements of an event along which no density can be right: those that never vary, and copies of others."""

from __future__ import annotations

import numpy as np

__all__ = ["blur", "constants", "copies"]

MANY_COLUMNS = 4096
# Of a standard deviation. Narrow, so that a copy which strays is noticed; and wide enough to be learned in passing:
# within a hundredth, a copy is a task of its own to a flow.
COPY_BLUR = 0.1


def constants(columns: np.ndarray) -> np.ndarray:
    """Return which columns of rows ``[n, num_columns]`` hold one value only.

    Example:
        >>> constants(np.array([[1.0, 3.0], [2.0, 3.0]]))
        array([1])
    """
    return np.flatnonzero(columns.min(0) == columns.max(0))


def copies(columns: np.ndarray) -> dict[int, int]:
    """Return which columns repeat another, and the first of its kind; constants do not count.

    More columns than a table has are not looked through.

    Example:
        >>> copies(np.array([[1.0, 3.0, 1.0], [2.0, 5.0, 2.0]]))
        {2: 0}
    """
    if columns.shape[1] > MANY_COLUMNS:
        return {}
    found, seen = {}, dict[bytes, int]()
    for column, values in enumerate(np.ascontiguousarray(columns.T)):
        first = seen.setdefault(values.tobytes(), column)
        if first != column and values.min() < values.max():
            found[column] = first
    return found


def blur(columns: np.ndarray) -> np.ndarray | None:
    r"""Return the width of the noise that keeps training sound along constants and copies; None where there are none.

    Along them the likelihood has no upper limit: a flow grows ever narrower there, and the gradients of that drown
    those of all other elements. Noise of a known width sets the limit: the density of a constant comes out as that of
    the noise, :math:`\mathcal{N}(0, 1)`, and a copy as its original within a tenth of its standard deviation.

    Args:
        columns: Normalised rows ``[n, num_columns]``.

    Example:
        >>> blur(np.array([[-1.0, 0.0, -1.0], [1.0, 0.0, 1.0]]))
        array([0. , 1. , 0.1])
    """
    widths = np.zeros(columns.shape[1])
    if len(columns) > 1:
        widths[constants(columns)] = 1.0
        repeated = list(copies(columns))
        widths[repeated] = COPY_BLUR * columns[:, repeated].std(0, dtype=np.float64)
    return widths if widths.any() else None
