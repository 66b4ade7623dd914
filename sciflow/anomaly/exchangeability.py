"""Do calibration scores come in no particular order? Conformal p-values hold only where they do."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

__all__ = ["Exchangeability", "autocorrelation_time", "block_means", "effective_rows", "exchangeability", "ranks"]

LEVEL = 0.01
MIN_VALUES = 10
MIN_BLOCKS = 20
# Of an autocorrelation that decays exponentially, means of neighbouring blocks of N rows correlate by about
# tau / (4 N): by a twentieth where a block is as long as five autocorrelation times.
TIMES_IN_A_BLOCK = 5


@dataclass(frozen=True)
class Exchangeability:
    """Whether the order of the calibration scores says something about them.

    Attributes:
        p_value: Of the hypothesis that every order of them is equally likely; of the least likely group, times their
            number.
        statistic: The standard score, of serial correlation or of trend, that is furthest from 0.
        tested: What was compared: ``"rows"``, or the means of ``"blocks"``.
        block_rows: How many rows make a block whose mean tells little about the next one's; None where there is no
            need of blocks.
        verdict: In words, with what to do.
    """

    p_value: float
    statistic: float
    tested: str
    block_rows: int | None
    verdict: str

    @property
    def holds(self) -> bool:
        """Nothing speaks against it, at a level of 1 %."""
        return self.p_value >= LEVEL


@dataclass(frozen=True)
class _Order:
    """What the order of one group's values says."""

    name: str
    serial: float
    trend: float
    values: np.ndarray
    rows_each: float

    @property
    def statistic(self) -> float:
        return max(self.serial, self.trend, key=abs)


def exchangeability(
    scores: Sequence[np.ndarray], blocks: Sequence[np.ndarray] | None = None, names: Sequence[str] | None = None
) -> Exchangeability:
    r"""Test the order of scores by their ranks :math:`z_i`, counted from their mean.

    .. math:: T = \sum_i z_i z_{i+1}, \qquad R = \operatorname{corr}(z_i, i)

    The serial correlation of ranks (Wald & Wolfowitz, 1943, doi:10.1214/aoms/1177731358) notices neighbours that are
    alike; Spearman's correlation with the place notices a trend. Mean and variance are those over all orders, exactly,
    ties or not; their distribution is taken as normal. Two tests of every group, put together by Bonferroni.

    Args:
        scores: A column for each group, in the order in which they came.
        blocks: Block of every row. With them the means of blocks are tested in place of rows, as it is the blocks that
            must be exchangeable then.
        names: Of the groups, for the verdict.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> print(exchangeability([rng.normal(size=500)]).verdict)
        exchangeable, as far as 500 rows tell: the order of their ranks is as of any other rows (p = 1)
        >>> exchangeability([rng.normal(size=500).cumsum()]).holds
        False
    """
    tested = "rows" if blocks is None else "blocks"
    orders = []
    for index, column in enumerate(scores):
        values = column if blocks is None else block_means(ranks(column), blocks[index])
        if len(values) >= MIN_VALUES and values.min() < values.max():
            z = ranks(values)
            orders.append(
                _Order(names[index] if names else "", _serial(z), _trend(z), values, len(column) / len(values))
            )
    if not orders:
        return Exchangeability(1.0, 0.0, tested, None, f"not tested: fewer than {MIN_VALUES} different {tested}")
    worst = max(orders, key=lambda order: abs(order.statistic))
    p_value = min(1.0, 2 * len(orders) * math.erfc(abs(worst.statistic) / math.sqrt(2)))
    if p_value >= LEVEL:
        num = sum(len(order.values) for order in orders)
        verdict = (
            f"exchangeable, as far as {num:,} {tested} tell: the order of their ranks is as of any other {tested} "
            f"(p = {p_value:.2g})"
        )
        return Exchangeability(p_value, worst.statistic, tested, None, verdict)
    block_rows, advice = _advice(worst, tested)
    verdict = f"not exchangeable: {advice} (p = {p_value:.2g})"
    return Exchangeability(p_value, worst.statistic, tested, block_rows, verdict)


def _advice(order: _Order, tested: str) -> tuple[int | None, str]:
    where = f" of group {order.name}" if order.name else ""
    one = tested.removesuffix("s")
    if abs(order.trend) >= abs(order.serial):
        way = "rise" if order.trend > 0 else "fall"
        return None, (
            f"scores {way} from the first {one}{where} to the last; calibrate on rows like those to come, or by groups "
            "within which they do not"
        )
    if order.serial < 0:
        return None, f"high and low {tested}{where} take turns; calibrate by groups that tell one from the other"
    tau = autocorrelation_time(ranks(order.values))
    block_rows = math.ceil(TIMES_IN_A_BLOCK * tau * order.rows_each)
    num_blocks = int(len(order.values) * order.rows_each / block_rows)
    advice = (
        f"neighbouring {tested}{where} are alike, and one in {tau:.2g} is as good as independent; calibrate by blocks "
        f"of about {block_rows:,} rows"
    )
    if num_blocks < MIN_BLOCKS:
        advice += f", of which there are {num_blocks}: {MIN_BLOCKS * block_rows:,} rows would do, or "
        advice += "larger groups" if order.name else "groups"
    return block_rows, advice


def _serial(z: np.ndarray) -> float:
    r"""The standard score of :math:`T`, from :math:`S_k = \sum_i z_i^k` and :math:`S_1 = 0`.

    .. math:: \mathrm{E}\,T = -\frac{S_2}{n}, \qquad
        \mathrm{E}\,T^2 = \frac{S_2^2 - S_4}{n} + \frac{S_2^2 - 2 S_4}{n (n - 1)}
    """
    n, s2, s4 = len(z), float(z @ z), float((z**2) @ (z**2))
    mean = -s2 / n
    square = (s2**2 - s4) / n + (s2**2 - 2 * s4) / (n * (n - 1))
    return (float(z[:-1] @ z[1:]) - mean) / math.sqrt(square - mean**2)


def _trend(z: np.ndarray) -> float:
    r"""The standard score of :math:`R`: its variance over all orders is :math:`1 / (n - 1)`."""
    n = len(z)
    place = np.arange(n) - (n - 1) / 2
    return float(z @ place) / math.sqrt(float(z @ z) * float(place @ place)) * math.sqrt(n - 1)


def ranks(values: np.ndarray) -> np.ndarray:
    """Return the ranks of values, ties sharing their mean, divided by n and counted from their own mean.

    Example:
        >>> ranks(np.array([10.0, 30.0, 10.0, 40.0]))
        array([-0.25 ,  0.125, -0.25 ,  0.375])
    """
    _, index, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return ((last - (counts - 1) / 2)[index] - (len(values) + 1) / 2) / len(values)


def block_means(values: np.ndarray, blocks: np.ndarray) -> np.ndarray:
    """Return the mean of every block, in the order in which the blocks first appear.

    Example:
        >>> block_means(np.array([1.0, 3.0, 5.0]), np.array([7, 7, 2]))
        array([2., 5.])
    """
    _, first, index, counts = np.unique(blocks, return_index=True, return_inverse=True, return_counts=True)
    return (np.bincount(index, weights=values) / counts)[np.argsort(first)]


def effective_rows(scores: np.ndarray, blocks: np.ndarray) -> float:
    r"""Return how many independent rows say as much as these, whose blocks are independent.

    .. math:: n_\mathrm{eff} = \operatorname{Var}(z) \,\big/\, \frac{\operatorname{Var}(\bar z_b)}{B},
        \qquad B \le n_\mathrm{eff} \le n

    of the ranks :math:`z` and their means over blocks: Kish's design effect (Survey Sampling, 1965).

    Example:
        >>> effective_rows(np.repeat(np.arange(50.0), 4), np.repeat(np.arange(50), 4))
        50.0
    """
    z = ranks(scores)
    means = block_means(z, blocks)
    n, num_blocks = len(z), len(means)
    between = float(means.var(ddof=1)) if num_blocks > 1 else math.inf
    return float(np.clip(num_blocks * z.var() / between, num_blocks, n)) if between > 0 else float(n)


def autocorrelation_time(z: np.ndarray) -> float:
    r"""Return of how many rows one is as good as independent, at least 1.

    .. math:: \tau = 1 + 2 \sum_{k=1}^{W} \rho_k, \qquad \text{the first } W \ge 5 \tau

    From Sokal, 1997, doi:10.1007/978-1-4899-0319-8_6.

    Args:
        z: ``[n]``, of mean 0.

    Example:
        >>> autocorrelation_time(ranks(np.tile([0.0, 1.0], 50)))
        1.0
    """
    n = len(z)
    spectrum = np.fft.rfft(z, 2 * n)
    covariance = np.fft.irfft(np.abs(spectrum) ** 2)[:n]
    times = 2 * np.cumsum(covariance / covariance[0]) - 1
    enough = np.flatnonzero(np.arange(n) >= 5 * times)
    return max(1.0, float(times[enough[0]] if len(enough) else times[-1]))
