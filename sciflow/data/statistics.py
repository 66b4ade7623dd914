"""Statistics of events, merged from one pass a shard."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

__all__ = ["Statistics", "merge"]

# Elements that are looked at together: their float64 copy, a megabyte, stays in the cache.
TILE_COLUMNS, TILE_ELEMENTS = 4096, 1 << 17


@dataclass(frozen=True)
class Statistics:
    """Moments and extrema of every element of an event, in data units.

    Attributes:
        count: Number of events.
        mean: ``event_shape``, float64.
        variance: ``event_shape``, float64, divided by ``count``.
        minimum: ``event_shape``.
        maximum: ``event_shape``.
    """

    count: int
    mean: np.ndarray
    variance: np.ndarray
    minimum: np.ndarray
    maximum: np.ndarray

    @classmethod
    def of(cls, events: np.ndarray) -> Statistics:
        """Statistics of ``events``, ``[n, *event_shape]``.

        Example:
            >>> Statistics.of(np.array([[1.0], [3.0]])).variance
            array([1.])
        """
        count, *shape = events.shape
        size = math.prod(shape)
        # Short events lie side by side: sums over long rows are several times as quick.
        abreast = min(count, max(1, TILE_COLUMNS // size))
        whole = count // abreast * abreast
        rows = events.reshape(count, size)
        parts = _of_rows(rows[:whole].reshape(-1, abreast * size))
        total = merge(parts._columns(slice(k * size, (k + 1) * size)) for k in range(abreast))
        if whole < count:
            total = merge([total, _of_rows(rows[whole:])])
        return total._reshaped(tuple(shape))

    def _columns(self, columns: slice) -> Statistics:
        return Statistics(self.count, *(values[columns] for values in self._arrays()))

    def _reshaped(self, shape: tuple[int, ...]) -> Statistics:
        return Statistics(self.count, *(values.reshape(shape) for values in self._arrays()))

    def _arrays(self) -> tuple[np.ndarray, ...]:
        return self.mean, self.variance, self.minimum, self.maximum


def merge(parts: Iterable[Statistics]) -> Statistics:
    r"""Statistics of several sets of events together.

    .. math:: M = M_a + M_b + \delta^2 \frac{n_a n_b}{n_a + n_b}, \qquad \delta = \bar x_b - \bar x_a

    with :math:`M` the sum of squared deviations. Source: Chan, Golub and LeVeque, The American Statistician 37 (1983).

    Raises:
        ValueError: There are no parts.
    """
    total: Statistics | None = None
    for part in parts:
        if total is None:
            total = part
            continue
        count = total.count + part.count
        delta = part.mean - total.mean
        share = part.count / count
        total = Statistics(
            count=count,
            mean=total.mean + delta * share,
            variance=total.variance * (1 - share) + part.variance * share + delta**2 * share * (1 - share),
            minimum=np.minimum(total.minimum, part.minimum),
            maximum=np.maximum(total.maximum, part.maximum),
        )
    if total is None:
        raise ValueError("no events, so no statistics")
    return total


def _of_rows(rows: np.ndarray) -> Statistics:
    """Statistics of the columns of ``rows``: the mean first, then the deviations from it, in float64."""
    count, size = rows.shape
    mean = rows.mean(0, dtype=np.float64)
    squares = np.zeros(size)
    for left in range(0, size, TILE_COLUMNS):
        columns = slice(left, min(left + TILE_COLUMNS, size))
        height = max(1, TILE_ELEMENTS // (columns.stop - left))
        for top in range(0, count, height):
            deviations = np.subtract(rows[top : top + height, columns], mean[columns], dtype=np.float64)
            squares[columns] += np.einsum("ij,ij->j", deviations, deviations)
    return Statistics(count, mean, squares / count, rows.min(0), rows.max(0))
