"""Which rows are flagged, and how many of those are likely to be false."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from sciflow.anomaly import columns
from sciflow.errors import ConfigError, DataError

__all__ = ["Decision", "checked_p_values", "decide", "fits", "resolution_note"]

# Conformal p-values are fractions that meet a level exactly; the last digit of a product must not decide.
_ROUNDING = 1 + 1e-12


@dataclass(frozen=True)
class Decision:
    """Which rows are flagged.

    Attributes:
        flag: ``[m]``; never where the p-value is NaN.
        threshold: The largest p-value that is flagged; NaN where none is.
        level: The false-discovery or false-alarm rate that was asked for.
        method: By which it was kept to.
        note: Says so where nothing is flagged and a single row could not have been, as the calibration is too small.
    """

    flag: np.ndarray
    threshold: float
    level: float
    method: Literal["bh", "by", "fixed", "lord", "saffron"]
    note: str | None = None


def decide(
    p_values: Any,
    *,
    fdr: float | None = None,
    false_alarm_rate: float | None = None,
    method: Literal["bh", "by"] = "bh",
    resolution: float = 0.0,
    num_tests: int | None = None,
) -> Decision:
    r"""Flag rows at a false-discovery rate, or at a fixed false-alarm rate.

    .. math:: p_{(k)} \le \frac{k}{m} \frac{q}{c}, \qquad c_\mathrm{BH} = 1,\quad c_\mathrm{BY} = \sum_{i=1}^m \frac1i

    Of m p-values, all up to the largest :math:`p_{(k)}` that fulfils it are flagged, and on average at most a share
    :math:`q` of the flagged is normal:

    - ``"bh"`` (Benjamini & Hochberg, 1995, doi:10.1111/j.2517-6161.1995.tb02031.x) for independent p-values, and for
      conformal ones of independent rows that share a calibration (Bates et al., arXiv:2104.08279).
    - ``"by"`` (Benjamini & Yekutieli, 2001, doi:10.1214/aos/1013699998) for any p-values: those of rows that depend on
      each other, as in one block, and of weighted calibrations (Jin & Candès, arXiv:2307.09291).

    A false-alarm rate :math:`\alpha` flags :math:`p \le \alpha`: a share :math:`\alpha` of normal rows, however many
    there are. Neither is guaranteed of p-values that are extrapolated.

    Args:
        p_values: ``[m]``; NaN is not flagged and does not count.
        fdr: In (0, 1).
        false_alarm_rate: In (0, 1), in place of it.
        method: Of the false-discovery rate.
        resolution: The smallest p-value that the calibration can give, ``calibration.smallest_p_value``, for the note.
        num_tests: How many p-values there are, where those above the rate are left out: none of them can be flagged.

    Raises:
        ConfigError: Both rates or none, a rate outside (0, 1), or an unknown method.
        DataError: A p-value outside [0, 1], or more of them than tests.

    Example:
        >>> found = decide([0.01, 0.02, 0.2, 0.9], fdr=0.1)
        >>> print(found.flag, found.threshold)
        [ True  True False False] 0.02
        >>> print(decide([0.5] * 50, fdr=0.1, resolution=0.01).note[:80])
        one odd row alone cannot be flagged among 50 tests: it takes p <= 0.002, and the
    """
    if (fdr is None) == (false_alarm_rate is None):
        raise ConfigError("give either fdr= or false_alarm_rate=")
    if method not in ("bh", "by"):
        raise ConfigError(f"method is {method!r}; known: bh, by")
    p = checked_p_values(p_values)
    ordered = np.sort(p[~np.isnan(p)])
    m = len(ordered) if num_tests is None else num_tests
    if m < len(ordered):
        raise DataError(f"num_tests is {m:,}, and there are {len(ordered):,} p-values")
    if fdr is None:
        alone = level = checked_level(false_alarm_rate, "false_alarm_rate")
        passed = np.flatnonzero(fits(ordered, level))
    else:
        level = checked_level(fdr, "fdr")
        alone = level / max(m, 1) / (_harmonic(m) if method == "by" and m else 1.0)
        passed = np.flatnonzero(fits(ordered, alone * np.arange(1, len(ordered) + 1)))
    threshold = float(ordered[passed[-1]]) if len(passed) else math.nan
    by: Literal["bh", "by", "fixed"] = "fixed" if fdr is None else method
    note = None if len(passed) else resolution_note(m, alone, resolution, by)
    return Decision(p <= threshold, threshold, level, by, note)


def _harmonic(m: int) -> float:
    r""":math:`\sum_{i=1}^m 1/i`."""
    from scipy.special import digamma

    return float(digamma(m + 1) + np.euler_gamma)


def fits(p_values: np.ndarray | float, levels: np.ndarray | float) -> np.ndarray:
    """Return whether p-values are at most as large as levels, but for rounding."""
    return np.less_equal(p_values, np.multiply(levels, _ROUNDING))


def resolution_note(m: int, alone: float, resolution: float, method: str) -> str | None:
    """Return why no row could be flagged alone among m tests, as it takes p <= ``alone``, and what can be done; None if
    one could."""
    if m == 0 or fits(resolution, alone):
        return None
    # The smallest n with 1 / (n + 1) <= alone.
    needed = math.ceil(1 / (alone * _ROUNDING)) - 1
    otherwise = "ask for a higher rate" if method == "fixed" else "flag at a false-alarm rate, such as 0.01"
    return (
        f"one odd row alone cannot be flagged among {m:,} tests: it takes p <= {alone:.2g}, and the calibration gives "
        f"no p below {resolution:.2g}; {otherwise}, fit a tail, ask of fewer rows at a time, or calibrate on "
        f"{needed:,} rows (of every group, where there are groups; blocks, where it is by blocks)"
    )


def checked_p_values(p_values: Any) -> np.ndarray:
    """Return p-values as float64.

    Raises:
        DataError: One is outside [0, 1].
    """
    p = columns.numbers(p_values, "p-values")
    outside = np.flatnonzero((p < 0) | (p > 1))
    if len(outside):
        raise DataError(f"p-values are in [0, 1], and that of row {outside[0]} is {p[outside[0]]:g}: are these scores?")
    return p


def checked_level(level: Any, name: str) -> float:
    """Return a rate.

    Raises:
        ConfigError: It is not in (0, 1).
    """
    if isinstance(level, bool) or not isinstance(level, int | float) or not 0 < level < 1:
        raise ConfigError(f"{name} is {level!r}; it has to lie between 0 and 1, as 0.1")
    return float(level)
