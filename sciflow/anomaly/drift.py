"""Has the world moved, is something in it odd, or neither?"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from sciflow.anomaly import columns
from sciflow.anomaly.calibration import Calibration
from sciflow.errors import DataError

__all__ = ["Drift", "drift"]

# Of a false alarm: a run a day has one in a few years.
LEVEL = 0.001
# The most anomalous rows are what decisions are about, and no drift: of all others the bulk is made.
ODD = 0.1
NUM_BINS = 100
# Evenly spaced over a run. A shift that so many do not show is of no importance.
MOST_ROWS = 20_000
# Rows this many independent ones apart are taken as independent.
APART = 2
_JUMP = 0.01
_BETS = (-1, 0, 1)
_SIZES = (0.0, 0.5, 1.5)


@dataclass(frozen=True)
class Drift:
    """Whether new scores are as the calibration's.

    Attributes:
        statistic: Distance of Kolmogorov and Smirnov between new scores and calibration scores, in the bulk.
        p_value: Of the hypothesis that the bulk has not moved, and that most rows belong to it.
        martingale: The evidence against it of all runs since the calibration: the capital of a bettor who began with
            1, and is as rich as c only with probability 1 / c where nothing moved.
        verdict: ``"moved"`` where the bulk has, ``"odd"`` where single rows are flagged, ``"quiet"``.
        words: The verdict with its reasons, and what to do.
        state: What the next run continues from, as JSON can hold it.
    """

    statistic: float
    p_value: float
    martingale: float
    verdict: Literal["moved", "odd", "quiet"]
    words: str
    state: dict[str, Any] = field(repr=False)

    def __str__(self) -> str:
        return self.words


def drift(
    calibration: Calibration,
    scores: Any,
    *,
    num_flagged: int,
    groups: Any = None,
    weights: Any = None,
    state: dict[str, Any] | None = None,
) -> Drift:
    r"""Compare the bulk of new scores with the calibration's.

    New rows have uniform p-values while nothing moves. Few rows that are odd, however much, only change how many lie
    below 0.1; a shift of all of them shows in the others as well. So these others are looked at, given that they are
    others, in two ways, and both account for new rows sharing one finite calibration:

    - the test of Kolmogorov and Smirnov between two samples, of this run;
    - a conformal test martingale, of all runs since the calibration: the simple jumper of Vovk et al.,
      arXiv:2102.10439, which bets on p-values being small, or large.

    And most rows cannot be odd: if more than half of them are, in this run or in small runs one after the other, it is
    the world that moved.

    Where the calibration is by blocks, new rows are taken as far apart in time as makes them independent. At most
    20,000 rows are looked at, evenly spaced.

    Args:
        calibration: What is compared with.
        scores: ``[m]``, in the order of time.
        num_flagged: How many rows of them are flagged, for the verdict.
        groups: ``[m]``, where calibrated by groups.
        weights: ``[m]``, where calibrated by weights.
        state: Of the run before; one of another calibration is begun anew.

    Raises:
        DataError: The state is not one.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> calibration = Calibration.of(rng.normal(size=2000))
        >>> print(drift(calibration, rng.normal(size=1000), num_flagged=0).words)
        quiet: the bulk of the scores is as in calibration (p = 0.33)
        >>> drift(calibration, rng.normal(size=1000) + 0.4, num_flagged=7).verdict
        'moved'
    """
    scores = columns.numbers(scores, "scores")
    rows = _spread(np.flatnonzero(~np.isnan(scores)), calibration.spacing)
    intervals = calibration.intervals(
        scores[rows],
        groups=None if groups is None else columns.labels(groups, "groups", len(scores))[rows],
        weights=None if weights is None else columns.weights(weights, len(scores))[rows],
    )
    known = intervals.group >= 0
    shares, group = _shares(intervals.low[known], intervals.high[known]), intervals.group[known]

    statistic, of_bulk = _two_sample(shares, group, calibration.effective_rows)
    p_value = min(1.0, 2 * min(of_bulk, _most_are_odd(shares)))
    jumper, majority = _Jumper.of(calibration, state), _Majority.of(calibration, state)
    jumper.bet(shares, group)
    majority.bet(shares)
    capital = (jumper.capital + majority.capital) / 2  # Each got half of it.
    verdict, words = _verdict(p_value, capital, shares, num_flagged)
    return Drift(statistic, p_value, capital, verdict, words, jumper.state() | {"majority": majority.state()})


def _spread(rows: np.ndarray, spacing: float) -> np.ndarray:
    """Rows evenly spread over all, at most so many that they are as good as independent."""
    apart = 1.0 if spacing == 1 else APART * spacing
    num_rows = min(MOST_ROWS, math.ceil(len(rows) / apart))
    return rows[np.linspace(0, len(rows) - 1, num_rows).round().astype(int)]


def _shares(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """What share of every interval lies in each bin of the bulk, ``[num_rows, num_bins]``."""
    edges = np.linspace(ODD, 1, NUM_BINS + 1)
    below = np.clip((edges - low[:, None]) / (high - low)[:, None], 0, 1)
    return np.diff(below, axis=1)


def _two_sample(shares: np.ndarray, group: np.ndarray, calibration_rows: np.ndarray) -> tuple[float, float]:
    r"""The distance, and its p-value, between new rows and calibration rows of the bulk.

    .. math:: D = \max_t |F_\mathrm{new}(t) - t|, \qquad \sqrt{\frac{n m}{n + m}} \, D \sim \text{Kolmogorov}

    as of two samples: in p-values the calibration is the straight line :math:`t`, but n scores drew it. Of groups, of
    which each has its share :math:`w_g` of new rows and its own :math:`n_g`, it is :math:`1 / n = \sum_g w_g^2 / n_g`.
    """
    from scipy.stats import kstwo

    m = float(shares.sum())
    if m < 1:
        return 0.0, 1.0
    of_group = np.bincount(group, minlength=len(calibration_rows)) / len(group)
    n = (1 - ODD) / float((of_group**2 / calibration_rows).sum())
    uniform = np.arange(1, NUM_BINS + 1) / NUM_BINS
    distance = float(np.abs(np.cumsum(shares.sum(0)) / m - uniform).max())
    return distance, float(kstwo.sf(distance, max(1, round(n * m / (n + m)))))


def _most_are_odd(shares: np.ndarray) -> float:
    """The p-value of the hypothesis that at most half of the rows are odd, the others as in calibration."""
    from scipy.stats import binom

    odd = math.floor(float((1 - shares.sum(1)).sum()) + 0.5)
    return float(binom.sf(odd - 1, len(shares), 0.5 + ODD / 2))


def _verdict(
    p_value: float, capital: float, shares: np.ndarray, num_flagged: int
) -> tuple[Literal["moved", "odd", "quiet"], str]:
    if p_value < LEVEL or capital > 1 / LEVEL:
        mean = float((shares.sum(0) @ (np.arange(NUM_BINS) + 0.5)) / max(shares.sum(), 1) / NUM_BINS)
        odd = 1 - float(shares.sum()) / len(shares)
        way = "higher" if mean < 0.5 or odd > 0.5 else "lower"
        seen = f"p = {p_value:.2g}" if p_value < LEVEL else f"odds of {capital:.2g} to 1 over the runs so far"
        return "moved", (
            f"the world moved: scores are {way} than in calibration, and not of a few rows only ({seen}); p-values and "
            "flags are not to be relied on until model and calibration are renewed"
        )
    if num_flagged:
        return "odd", f"odd rows: {num_flagged:,}; the bulk of the scores is as in calibration (p = {p_value:.2g})"
    return "quiet", f"quiet: the bulk of the scores is as in calibration (p = {p_value:.2g})"


class _Jumper:
    r"""A bettor on the place of the next p-value among those of the calibration and of all rows before it.

    .. math:: C_\epsilon \leftarrow \Big( (1 - J) \, C_\epsilon + \frac{J}{3} \sum_{\epsilon'} C_{\epsilon'} \Big)
        \Big( 1 + \epsilon \, (p - \tfrac12) \Big), \qquad \epsilon \in \{-1, 0, 1\}

    Where nothing moves, the next row falls in a bin with probability proportional to the calibration rows and new rows
    of its group that lie there already, Pólya's urn. So :math:`p` is the middle of its bin among all of these, of which
    :math:`p - 1/2` has mean 0 exactly: no bet gains by the luck of one calibration. J is 1 % as published and then
    falls as :math:`1 / t`: at a fixed rate, capital is lost as :math:`e^{-2 J t / 3}` in a quiet time, and a world that
    moves after years of it goes unnoticed.
    """

    def __init__(self, calibration: Calibration) -> None:
        self._calibration = calibration.fingerprint
        self._empty = (1 - ODD) * calibration.effective_rows / NUM_BINS  # of each group: calibration rows in a bin
        self._counts: dict[int, np.ndarray] = {}
        self._shares = [1 / 3] * 3
        self._log_capital = 0.0
        self._bets = 0

    @classmethod
    def of(cls, calibration: Calibration, state: dict[str, Any] | None) -> _Jumper:
        """Go on from a state, or begin where there is none of this calibration."""
        jumper = cls(calibration)
        try:
            if state is not None and state["calibration"] == jumper._calibration:
                jumper._counts = {int(group): np.array(counts, float) for group, counts in state["counts"].items()}
                jumper._shares = [float(share) for share in state["shares"]]
                jumper._log_capital, jumper._bets = float(state["log_capital"]), int(state["bets"])
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise DataError(f"this is not the state of a drift test ({error}): leave it out to begin anew") from error
        return jumper

    @property
    def capital(self) -> float:
        return math.exp(min(self._log_capital, 700.0))

    def bet(self, shares: np.ndarray, group: np.ndarray) -> None:
        """Bet on every row, by its part in the bulk ``[num_rows, num_bins]``, within its group ``[num_rows]``."""
        off = np.zeros(len(shares))
        for g in np.unique(group).tolist():
            off[group == g] = self._off_the_middle(g, shares[group == g])
        for p in off[shares.sum(1) > 0].tolist():
            self._bets += 1
            jump = min(_JUMP, 1 / self._bets)
            stakes = [(1 - jump) * share + jump / 3 for share in self._shares]
            won = [stake * (1 + bet * p) for bet, stake in zip(_BETS, stakes, strict=True)]
            total = sum(won)
            self._shares = [each / total for each in won]
            self._log_capital += math.log(total)

    def _off_the_middle(self, group: int, shares: np.ndarray) -> np.ndarray:
        """Of every row :math:`p - 1/2`, or the mean of it over its bins, and count the rows in; ``[num_rows]``."""
        counts = self._counts.get(group, np.full(NUM_BINS, self._empty[group]))
        before = counts + np.cumsum(shares, axis=0) - shares
        upper = np.cumsum(before, axis=1)
        middle = (upper - before / 2) / upper[:, -1:]
        self._counts[group] = counts + shares.sum(0)
        return (shares * (middle - 0.5)).sum(1)

    def state(self) -> dict[str, Any]:
        return {
            "calibration": self._calibration,
            "counts": {str(group): counts.tolist() for group, counts in self._counts.items()},
            "shares": list(self._shares),
            "log_capital": self._log_capital,
            "bets": self._bets,
        }


class _Majority:
    r"""A bettor on most rows being odd, who wins where hardly any is left for the other to bet on.

    .. math:: C_\epsilon \leftarrow C_\epsilon \prod_i \big( 1 + \epsilon \, (o_i - \tfrac{11}{20}) \big),
        \qquad \epsilon \in \{0, \tfrac12, \tfrac32\}

    with :math:`o_i` 1 for a row in the odd tenth: at most half of the rows and a tenth of the others, as long as
    nothing moved. All rows of a run are one bet, so that odd ones may stand next to each other; between runs capital
    jumps from one :math:`\epsilon` to another, as that of the other bettor.
    """

    def __init__(self) -> None:
        self._shares = np.full(len(_SIZES), 1 / len(_SIZES))
        self._log_capital = 0.0
        self._runs = 0

    @classmethod
    def of(cls, calibration: Calibration, state: dict[str, Any] | None) -> _Majority:
        """Go on from a state, or begin where there is none of this calibration."""
        majority = cls()
        if state is not None and state["calibration"] == calibration.fingerprint and "majority" in state:
            kept = state["majority"]
            majority._shares = np.array(kept["shares"], float)
            majority._log_capital, majority._runs = float(kept["log_capital"]), int(kept["runs"])
        return majority

    @property
    def capital(self) -> float:
        return math.exp(min(self._log_capital, 700.0))

    def bet(self, shares: np.ndarray) -> None:
        """Bet on the rows of a run, by their part in the bulk ``[num_rows, num_bins]``."""
        odd = 1 - shares.sum(1)
        self._runs += 1
        jump = min(_JUMP, 1 / self._runs)
        stakes = (1 - jump) * self._shares + jump / len(_SIZES)
        won = np.log(stakes) + np.log1p(np.multiply.outer(_SIZES, odd - 0.5 - ODD / 2)).sum(1)
        total = float(np.logaddexp.reduce(won))
        self._shares = np.exp(won - total)
        self._log_capital += total

    def state(self) -> dict[str, Any]:
        return {"shares": self._shares.tolist(), "log_capital": self._log_capital, "runs": self._runs}
