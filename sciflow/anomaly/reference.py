"""The calibration scores of one group, and the p-value of a score among them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from sciflow.anomaly.columns import Label
from sciflow.anomaly.exchangeability import effective_rows
from sciflow.anomaly.tail import SMALLEST, Tail

__all__ = ["Intervals", "PValues", "Reference"]


@dataclass(frozen=True)
class PValues:
    """How rarely a normal row scores as high, one entry a row.

    Attributes:
        p_value: ``[m]``; NaN where the score is, and in groups that the calibration has not seen.
        extrapolated: ``[m]``, beyond the largest calibration score and so from the fitted tail: without guarantee.
        unknown: Groups that the calibration has not seen, and how many rows each has.
    """

    p_value: np.ndarray
    extrapolated: np.ndarray
    unknown: dict[Label, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Intervals:
    """Where smoothed p-values lie: they are uniform, each within its interval, whatever ties there are.

    Attributes:
        low: ``[m]``; NaN where there is no p-value.
        high: ``[m]``, the p-value without a tail.
        group: ``[m]``, the place of the row's group among those of the calibration; 0 without groups, -1 if unknown.
    """

    low: np.ndarray
    high: np.ndarray
    group: np.ndarray


class Reference:
    r"""Sorted scores :math:`s_i`, each with a mass :math:`m_i`.

    .. math:: p(s) = \frac{\sum_i m_i 1\{s_i \ge s\} + m}{\sum_i m_i + m}

    ========  =======================  =====================  =======================================================
    kind      :math:`m_i`              :math:`m`, of the row  source
    ========  =======================  =====================  =======================================================
    rows      1                        1                      Vovk et al., 2005, doi:10.1007/b106715
    blocks    1 / rows in its block    1                      Lee, Barber & Willett, arXiv:2306.06342
    weights   its weight               its weight             Tibshirani et al., arXiv:1904.06019
    ========  =======================  =====================  =======================================================

    Args:
        scores: ``[n]``, in ascending order.
        mass: ``[n]``.
        effective_rows: How many independent rows of equal mass say as much.
        weighted: The row's own mass is its weight, in place of 1.
        tail: A tail is to be fitted beyond the largest score.
        rounding: Share of a score that may be rounding: scores that differ by no more count as equal, which p-values of
            normal rows allow, as they become no smaller.

    Attributes:
        tail: None where none is asked for, or can be fitted.
        resolution: The smallest p-value without a tail; of a row of the mean weight that new rows have,
            :math:`\sum_i m_i^2 / \sum_i m_i`, where weights decide.
    """

    def __init__(
        self,
        scores: np.ndarray,
        mass: np.ndarray,
        effective_rows: float,
        weighted: bool = False,
        tail: bool = False,
        rounding: float = 0.0,
    ) -> None:
        self.scores, self.mass, self.effective_rows = scores, mass, effective_rows
        self.tail = Tail.fit(scores, mass, min(1.0, effective_rows / len(scores))) if tail else None
        sizes = np.abs(scores[np.isfinite(scores)])
        # Where terms cancel, a small score is rounded as much as others.
        self._least_rounding = rounding * (float(np.median(sizes)) if len(sizes) else 0.0)
        self._rounding = rounding
        self._mass_from = np.append(np.cumsum(mass[::-1])[::-1], 0.0)
        own = float(mass @ mass / mass.sum()) if weighted else 1.0
        self.resolution = own / (own + self._total)

    @property
    def _total(self) -> float:
        return float(self._mass_from[0])

    @classmethod
    def of(
        cls,
        scores: np.ndarray,
        blocks: np.ndarray | None,
        weights: np.ndarray | None,
        tail: bool = False,
        rounding: float = 0.0,
    ) -> Reference:
        """Return the reference of scores ``[n]`` in the order of time, whose blocks or weights decide, or neither."""
        order = np.argsort(scores, kind="stable")
        mass, effective = np.ones(len(scores)), float(len(scores))
        if blocks is not None:
            _, index, counts = np.unique(blocks[order], return_inverse=True, return_counts=True)
            mass, effective = 1 / counts[index], effective_rows(scores, blocks)
        elif weights is not None:
            mass = weights[order]
            effective = float(mass.sum() ** 2 / (mass @ mass))  # Kish, 1965
        return cls(scores[order], mass, effective, weights is not None, tail, rounding)

    def p_values(self, scores: np.ndarray, own: np.ndarray | float = 1.0) -> tuple[np.ndarray, np.ndarray]:
        """Return p-values, and which of them are of the tail; scores that are NaN have p-values that are NaN.

        Args:
            scores: ``[m]``.
            own: ``[m]``, the mass of each row; 1 where no weights decide.
        """
        p_value = self._share(scores, own, "left")
        extrapolated = np.zeros(len(scores), dtype=bool)
        if self.tail is not None:
            extrapolated = scores - self._off(scores) > self.tail.largest
            ratio = self.tail.ratio(scores[extrapolated])
            p_value[extrapolated] = np.maximum(p_value[extrapolated] * ratio, SMALLEST)
        return p_value, extrapolated

    def intervals(self, scores: np.ndarray, own: np.ndarray | float = 1.0) -> tuple[np.ndarray, np.ndarray]:
        r"""Return the interval of every p-value, within which the smoothed one lies: that is uniform, ties or not.

        .. math:: p_u(s) = \frac{\sum_i m_i 1\{s_i > s\} + u \left(\sum_i m_i 1\{s_i = s\} + m\right)}{\sum_i m_i + m},
            \qquad u \sim \mathcal{U}(0, 1)
        """
        return self._share(scores, own, "right") - own / (self._total + own), self._share(scores, own, "left")

    def _share(self, scores: np.ndarray, own: np.ndarray | float, side: Literal["left", "right"]) -> np.ndarray:
        """The mass from a score upwards, and the row's own, of all."""
        near = self._off(scores)
        bounds = scores - near if side == "left" else scores + near
        first = np.empty(len(scores), dtype=np.int64)
        order = np.argsort(bounds)  # a search for neighbours is several times faster, one after the other
        first[order] = np.searchsorted(self.scores, bounds[order], side=side)
        share = (self._mass_from[first] + own) / (self._total + own)
        share[np.isnan(scores)] = np.nan
        return share

    def _off(self, scores: np.ndarray) -> np.ndarray:
        """By how much scores ``[m]`` may be off."""
        finite = np.isfinite(scores)
        sizes = np.abs(np.where(finite, scores, 0.0))
        return np.where(finite, np.maximum(self._rounding * sizes, self._least_rounding), 0.0)
