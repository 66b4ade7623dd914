"""Beyond the largest calibration score: a generalised Pareto tail."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

__all__ = ["SMALLEST", "Tail"]

MIN_EXCEEDANCES = 50
# A tail is not known to end: what lies beyond every tail that the scores allow is as unlikely as can be written.
SMALLEST = float(np.finfo(np.float64).tiny)


@dataclass(frozen=True)
class Tail:
    r"""How fast the probability of a score falls beyond the largest one seen.

    Scores :math:`s` above a high threshold :math:`u` follow, for nearly every distribution, a generalised Pareto one
    (Pickands, 1975, doi:10.1214/aos/1176343003):

    .. math:: P(S > s \mid S > u) = (1 - \theta (s - u))_+^{1/k}, \qquad k < 0 \text{ heavy},\ 0 \text{ exponential},\
        > 0 \text{ bounded}

    Which of them is uncertain, and so the probability is the mean over all that the scores allow: the posterior of
    Zhang & Stephens, 2009, doi:10.1198/tech.2009.08017, on their grid of :math:`\theta`, where
    :math:`k = -\overline{\log(1 - \theta (s_i - u))}` follows. A mean is at least as heavy as its heaviest member far
    out; the tail of few scores is cautious by itself.

    With the right :math:`\theta` and :math:`k`, independent rows and :math:`r = 1 / (n + 1)`, the p-value
    :math:`r \, P(S > s) / P(S > s_\max)` is as uniform below :math:`r` as a conformal one is above it:
    :math:`\mathrm{E} \, P(S > s_\max) = r`. With estimated ones nothing is guaranteed: of 500 normal, exponential or
    Cauchy scores, false alarms at :math:`r / 10` are up to 1.8 times as many as they ought to be, and at
    :math:`r / 100` up to 3 times. p-values from :math:`r` upwards are not touched, nor is what holds of them.

    Attributes:
        threshold: :math:`u`.
        largest: :math:`s_\max`, of the calibration.
        thetas: ``[num_members]``.
        shapes: ``[num_members]``, :math:`k`.
        weights: ``[num_members]``, their posterior probabilities.

    Example:
        >>> tail = Tail.fit(np.sort(np.random.default_rng(0).exponential(size=100_000)))
        >>> further = np.array([0.0, 1.0, 2.0])
        >>> print(tail.ratio(tail.largest + further).round(2), np.exp(-further).round(2))
        [1.   0.39 0.16] [1.   0.37 0.14]
    """

    threshold: float
    largest: float
    thetas: np.ndarray
    shapes: np.ndarray
    weights: np.ndarray

    @classmethod
    def fit(cls, scores: np.ndarray, mass: np.ndarray | None = None, independent: float = 1.0) -> Tail | None:
        r"""Fit the largest :math:`\min(n / 10, 3 \sqrt n)` scores, as Vehtari et al., arXiv:1507.02646, choose them.

        Args:
            scores: ``[n]``, in ascending order.
            mass: ``[n]``, how much each counts; equally by default.
            independent: What share of the rows is as good as independent; the posterior is that of so many.

        Returns:
            None of fewer than 50 different exceedances, for which it takes 500 rows, or of infinite ones.
        """
        n = len(scores)
        most = int(min(n / 10, 3 * math.sqrt(n)))
        if most < MIN_EXCEEDANCES:
            return None
        threshold = float(scores[n - most - 1])
        first = int(np.searchsorted(scores, threshold, side="right"))
        x = scores[first:] - threshold
        if not np.isfinite(x).all() or len(np.unique(x)) < MIN_EXCEEDANCES:
            return None
        share = None if mass is None else mass[first:] / mass[first:].sum()

        num_members = 20 + int(math.sqrt(len(x)))
        quantiles = (np.arange(num_members) + 0.5) / num_members
        thetas = 1 / x[-1] + (1 - 1 / np.sqrt(quantiles)) / (3 * x[int(len(x) / 4 + 0.5) - 1])
        thetas = thetas[thetas != 0]
        shapes = -np.average(np.log1p(-thetas[:, None] * x), axis=1, weights=share)
        log_likelihood = len(x) * independent * (np.log(thetas / shapes) + shapes - 1)
        weights = np.exp(log_likelihood - log_likelihood.max())
        return cls(threshold, float(scores[-1]), thetas, shapes, weights / weights.sum())

    def ratio(self, scores: np.ndarray) -> np.ndarray:
        """Return how much less likely scores ``[m]`` beyond the largest are than the largest: in [0, 1], falling."""
        return self._survival(scores) / self._survival(np.array([self.largest]))

    def _survival(self, scores: np.ndarray) -> np.ndarray:
        x = scores - self.threshold
        survival = np.zeros_like(x)
        with np.errstate(divide="ignore"):  # the end of a bounded tail: log 0
            for theta, shape, weight in zip(self.thetas, self.shapes, self.weights, strict=True):
                survival += weight * np.exp(np.log1p(-np.minimum(theta * x, 1)) / shape)
        return survival
