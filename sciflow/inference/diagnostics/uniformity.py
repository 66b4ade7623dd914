"""Are values uniform on (0, 1)? An exact test by their distribution function, and the band that goes with it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from sciflow.report.drawing import Floats

__all__ = ["Departure", "adjusted_p_values", "band", "distribution", "evaluation_points", "uniform_p_value"]

MOST_POINTS = 200
# Below it one minus a sum of doubles says nothing: there the bound of Bonferroni takes over.
_LEAST_EXACT = 1e-10
_LEAST = 1e-290


def evaluation_points(num_values: int) -> Floats:
    """Return where the distribution function is looked at: ``[K - 1]`` places of equal distance, both ends left out."""
    num_points = min(num_values, MOST_POINTS)
    return np.arange(1, num_points) / num_points


def distribution(values: Floats) -> Floats:
    """Return the share of values ``[n]`` up to each of :func:`evaluation_points`, ``[K - 1]``."""
    counts = np.searchsorted(np.sort(values), evaluation_points(len(values)), "right")
    return np.asarray(counts / len(values), dtype=np.float64)


def uniform_p_value(values: Floats) -> float:
    r"""Test that values are independent and uniform on (0, 1).

    With counts :math:`C_k = \#\{u_i \le z_k\}`, each Binomial(n, z_k), the statistic is the least of their two-sided
    tail probabilities,

    .. math:: \gamma = \min_k \, 2 \min\{P(C \le C_k), P(C \ge C_k)\}, \qquad p = P(\gamma' \le \gamma)

    and p is exact: a Poisson process that is held to n events passes all counts on which no tail is below
    :math:`\gamma` with a probability that one convolution a point gives. No place is favoured, and so the tails, where
    posteriors that are too narrow show, count as much as the middle, where a bias does.

    Args:
        values: ``[n]``.

    Returns:
        The p-value; P(p <= a) <= a for every a.

    Source: Säilynoja, Bürkner and Vehtari, arXiv:2103.10522.

    Example:
        >>> uniform_p_value((np.arange(100) + 0.5) / 100) > 0.99
        True
        >>> uniform_p_value(np.linspace(0.01, 0.9, 100) ** 2) < 0.01
        True
    """
    num_values = len(values)
    points = np.arange(len(evaluation_points(num_values)))
    counts = np.searchsorted(np.sort(values), evaluation_points(num_values), "right")
    gamma = max(float(_tails(num_values)[points, counts].min()), _LEAST)
    p_value = 1 - _stays_inside(num_values, gamma)
    if p_value < _LEAST_EXACT:
        p_value = len(points) * gamma
    return float(np.clip(p_value, gamma, 1.0))


@lru_cache(maxsize=64)
def band(num_values: int, level: float) -> tuple[Floats, Floats]:
    """Return between which shares the distribution function of uniform values stays, at all points at once.

    Args:
        num_values: How many values there are.
        level: With which probability it leaves the band, at most.

    Returns:
        The lowest and the highest share at :func:`evaluation_points`, ``[K - 1]`` each. Values whose
        :func:`uniform_p_value` is at most ``level`` are those that leave it.

    Example:
        >>> low, high = band(100, 0.05)
        >>> round(float(low[49]), 2), round(float(high[49]), 2)
        (0.36, 0.64)
    """
    # The largest tail whose crossing is as rare as the level asks for, among those that there are.
    tails = np.unique(_tails(num_values))
    below, above = -1, len(tails) - 1
    while above - below > 1:
        middle = (below + above) // 2
        if 1 - _stays_inside(num_values, float(tails[middle])) <= level:
            below = middle
        else:
            above = middle
    lowest, highest = _accepted(num_values, float(tails[below]) if below >= 0 else -1.0)
    return lowest / num_values, highest / num_values


def adjusted_p_values(p_values: Floats) -> Floats:
    r"""Return p-values adjusted for being several, by Holm's steps down.

    .. math:: \tilde p_{(i)} = \max_{j \le i} \min\{1, (m - j + 1) \, p_{(j)}\}

    One of those up to a level is a false alarm with no more than that probability, however they depend on each other.

    Source: Holm, 1979, Scandinavian Journal of Statistics 6, 65-70.

    Example:
        >>> adjusted_p_values(np.array([0.04, 0.01, 0.5])).tolist()
        [0.08, 0.03, 0.5]
    """
    order = np.argsort(p_values, kind="stable")
    stepped = np.maximum.accumulate(p_values[order] * np.arange(len(p_values), 0, -1))
    adjusted = np.empty_like(stepped)
    adjusted[order] = np.minimum(stepped, 1)
    return adjusted


@dataclass(frozen=True)
class Departure:
    """In which way values are not uniform.

    Attributes:
        shift: Mean of the values, in standard errors from that of uniform ones: above 0 they are too large.
        spread: Mean square from 1/2, in standard errors from that of uniform ones: above 0 they keep to the ends.
        normal_shift: Mean of the values as normal scores: by how many standard deviations the truth is above the draws.
        normal_spread: Standard deviation of them: how many times as wide as it is a posterior should be.
    """

    shift: float
    spread: float
    normal_shift: float
    normal_spread: float

    @classmethod
    def of(cls, values: Floats) -> Departure:
        """Measure it.

        Example:
            >>> departure = Departure.of(np.array([0.01, 0.99] * 50))
            >>> departure.shift, departure.spread > 10
            (0.0, True)
        """
        from scipy.special import ndtri

        root = math.sqrt(len(values))
        from_middle = values - 0.5
        scores = ndtri(np.clip(values, 1e-6, 1 - 1e-6))
        return cls(
            shift=round(float(from_middle.mean()) * root * math.sqrt(12), 9),
            spread=float((from_middle**2).mean() - 1 / 12) * root * math.sqrt(180),
            normal_shift=float(scores.mean()),
            normal_spread=float(scores.std()),
        )


@lru_cache(maxsize=4)
def _tails(num_values: int) -> Floats:
    """Two-sided tail probability of every count at every point, ``[K - 1, n + 1]``."""
    from scipy.stats import binom

    counts, points = np.arange(num_values + 1), evaluation_points(num_values)[:, None]
    tails = 2 * np.minimum(binom.cdf(counts, num_values, points), binom.sf(counts - 1, num_values, points))
    # Rounded, so that counts that are equally far out, on either side, are so in floating point, too.
    with np.errstate(divide="ignore"):
        digits = 10.0 ** (10 - np.ceil(np.log10(np.maximum(tails, 1e-290))))
    return np.asarray(np.minimum(np.round(tails * digits) / digits, 1.0))


def _accepted(num_values: int, gamma: float) -> tuple[Floats, Floats]:
    """The lowest and the highest count at every point whose tail is above ``gamma``."""
    inside = _tails(num_values) > gamma
    lowest = inside.argmax(1)
    return lowest.astype(np.float64), (num_values - inside[:, ::-1].argmax(1)).astype(np.float64)


def _stays_inside(num_values: int, gamma: float) -> float:
    """Probability that uniform values have counts whose tails are above ``gamma`` at all points."""
    from scipy.stats import poisson

    if not (_tails(num_values) > gamma).any(1).all():
        return 0.0
    lowest, highest = (bound.astype(int) for bound in _accepted(num_values, gamma))
    step = num_values / (len(lowest) + 1)
    most = int(max(np.diff(highest, append=num_values) + (highest - lowest))) + 1
    kernel = poisson.pmf(np.arange(most + 1), step)
    reached, start = np.ones(1), 0  # the probability of every count from ``start`` on
    for low, high in zip([*lowest, num_values], [*highest, num_values], strict=True):
        moved = np.convolve(reached, kernel)[: high - start + 1]
        moved = np.pad(moved, (0, max(0, high - start + 1 - len(moved))))
        reached, start = moved[max(low - start, 0) :], max(low, start)
    return float(min(reached[-1] / poisson.pmf(num_values, num_values), 1.0))
