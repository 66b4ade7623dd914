"""Statistics of events, merged from one pass a shard."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch

__all__ = ["Statistics", "merge"]

# Rows are taken a few megabytes at a time: the float64 copy of a whole shard would double the memory.
BLOCK_BYTES = 4 << 20


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
        step = max(1, BLOCK_BYTES // max(1, events[:1].nbytes))
        return merge(_of_block(events[start : start + step]) for start in range(0, len(events), step))


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


def _of_block(events: np.ndarray) -> Statistics:
    rows = torch.from_numpy(np.ascontiguousarray(events))
    variance, mean = torch.var_mean(rows.double(), 0, correction=0)
    minimum, maximum = rows.amin(0), rows.amax(0)
    return Statistics(len(events), mean.numpy(), variance.numpy(), minimum.numpy(), maximum.numpy())
