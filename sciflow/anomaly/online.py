"""Decisions on a stream: each at once, and the false-discovery rate kept over all of them."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any, ClassVar, Literal, Self

import numpy as np

from sciflow.anomaly.decision import Decision, checked_level, checked_p_values, resolution_note
from sciflow.errors import ConfigError, DataError

__all__ = ["LORD", "SAFFRON"]

_BLOCK = 16384


class _Online(ABC):
    r"""Test p-values in order, each at a level that falls while nothing is found and rises with every discovery.

    A clock :math:`u` starts at 0 and counts tests; discovery j is made when it comes to show :math:`v_j`. The next test
    has level

    .. math:: \alpha(u) = w_0 \gamma_{u + 1} + (b - w_0) \gamma_{u + 1 - v_1} + b \sum_{j \ge 2} \gamma_{u + 1 - v_j},
        \qquad \sum_i \gamma_i \le 1, \quad w_0 = b / 2

    At any time the false-discovery rate is at most the level asked for, if p-values of normal rows are independent of
    each other and of the others. If they are only uniform or larger whatever the tests before gave, that holds of the
    mean number of false discoveries over the mean number of all. Conformal p-values that share a calibration are
    neither, and no proof is known; on average over calibrations the rate was kept wherever it was measured.

    Levels are worked out a block of clock times ahead, by adding discoveries one after the other: they are the same in
    every digit however the stream is cut, and m tests with R discoveries cost R m additions, in long rows.
    """

    method: ClassVar[Literal["lord", "saffron"]]
    _most: ClassVar[float] = 1.0

    def __init__(self, level: float) -> None:
        self.level = checked_level(level, "level")
        self._budget = self.level
        self._clock = 0
        self._discoveries: list[int] = []
        self._gammas = np.zeros(0)
        self._block, self._levels = -1, np.zeros(0)

    @abstractmethod
    def _gamma(self, i: np.ndarray) -> np.ndarray:
        """The share of its budget that a discovery spends on the i-th tick after it."""

    @abstractmethod
    def _ticks(self, p: np.ndarray) -> np.ndarray:
        """For which tests the clock goes on."""

    def decide(self, p_values: Any, *, resolution: float = 0.0) -> Decision:
        """Decide on the next p-values of the stream; two calls in a row are as one.

        Args:
            p_values: ``[m]``, in order; NaN is not flagged, and is no test.
            resolution: The smallest p-value that the calibration can give, for the note.

        Raises:
            DataError: A p-value outside [0, 1].
        """
        p_values = checked_p_values(p_values)
        known = np.flatnonzero(~np.isnan(p_values))
        p = p_values[known]
        ticks = self._ticks(p).astype(np.int64)
        clocks = self._clock + np.cumsum(ticks) - ticks
        found = np.zeros(len(p), dtype=bool)
        highest, start = 0.0, 0
        while start < len(p):
            self._load(int(clocks[start]) // _BLOCK)
            ahead = clocks[start : start + _BLOCK]
            ahead = ahead[: np.searchsorted(ahead, (self._block + 1) * _BLOCK)] - self._block * _BLOCK
            levels = np.minimum(self._levels[ahead], self._most)
            passed = np.flatnonzero(p[start : start + len(ahead)] <= levels)
            stop = int(passed[0]) + 1 if len(passed) else len(ahead)
            highest = max(highest, float(levels[:stop].max()))
            start += stop
            if len(passed):
                found[start - 1] = True
                self._discoveries.append(int(clocks[start - 1] + ticks[start - 1]))
                self._add(len(self._discoveries))
        self._clock += int(ticks.sum())
        flag = np.zeros(len(p_values), dtype=bool)
        flag[known] = found
        threshold = float(p[found].max()) if found.any() else math.nan
        note = None if found.any() else resolution_note(len(p), highest, resolution, self.method)
        return Decision(flag, threshold, self.level, self.method, note)

    def _load(self, block: int) -> None:
        """Work out the levels of a block, as all discoveries so far make them."""
        if block == self._block:
            return
        self._block, self._levels = block, np.zeros(_BLOCK)
        if len(self._gammas) < (block + 1) * _BLOCK:
            size = _BLOCK << block.bit_length()
            self._gammas = self._gamma(np.arange(1.0, size + 1))
        for j in range(len(self._discoveries) + 1):
            self._add(j)

    def _add(self, j: int) -> None:
        """Add what discovery j allows to the levels of the block; what there is to begin with has number 0."""
        budget = self._budget if j > 1 else self._budget / 2
        made = self._discoveries[j - 1] if j else 0
        begin = self._block * _BLOCK
        after = max(0, made - begin)
        if after < _BLOCK:
            self._levels[after:] += budget * self._gammas[begin + after - made : begin + _BLOCK - made]

    def state(self) -> dict[str, Any]:
        """Return where the stream stands, as JSON can hold it; :meth:`from_state` goes on from there."""
        return {
            "method": self.method,
            "level": self.level,
            "clock": self._clock,
            "discoveries": list(self._discoveries),
        }

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Self:
        """Return the stream whose :meth:`state` this is.

        Raises:
            ConfigError: It is that of another method.
            DataError: It is not a state.
        """
        if not isinstance(state, dict) or set(state) != {"method", "level", "clock", "discoveries"}:
            raise DataError("this is not the state of a stream of tests: begin a new one")
        if state["method"] != cls.method:
            raise ConfigError(f"the stream was begun by {state['method']}, and cannot go on by {cls.method}")
        stream = cls(state["level"])
        stream._clock, stream._discoveries = state["clock"], list(state["discoveries"])
        return stream

    def __repr__(self) -> str:
        return f"{type(self).__name__}(level={self.level:g}, {len(self._discoveries):,} discoveries)"


class LORD(_Online):
    r"""LORD++: levels on the record of discoveries, Ramdas et al., arXiv:1710.00499.

    .. math:: \gamma_i = 0.079 \, \frac{\log \max(i, 2)}{i \, e^{\sqrt{\log i}}}

    The clock counts every test.

    Args:
        level: False-discovery rate, in (0, 1).

    Example:
        >>> stream = LORD(0.1)
        >>> stream.decide([0.5, 1e-4, 0.5, 1e-3, 0.9]).flag
        array([False,  True, False,  True, False])
        >>> stream
        LORD(level=0.1, 2 discoveries)
    """

    method = "lord"

    def _gamma(self, i: np.ndarray) -> np.ndarray:
        return 0.079 * np.log(np.maximum(i, 2)) / (i * np.exp(np.sqrt(np.log(i))))

    def _ticks(self, p: np.ndarray) -> np.ndarray:
        return np.ones(len(p), dtype=bool)


class SAFFRON(_Online):
    r"""SAFFRON: spends nothing on p-values that could not be discoveries, Ramdas et al., arXiv:1802.09098.

    .. math:: \gamma_i = \frac{i^{-1.6}}{\zeta(1.6)}, \qquad b = (1 - \lambda) q, \qquad \alpha \le \lambda = 1/2

    The clock stops for candidates, :math:`p \le \lambda`: normal rows give as many of them as of the others, so that
    where there are more, some are real. More powerful than LORD++ where anomalies are many or strong.

    Args:
        level: False-discovery rate :math:`q`, in (0, 1).

    Example:
        >>> stream = SAFFRON(0.1)
        >>> stream.decide([0.5, 1e-4, 0.5, 1e-3, 0.9]).flag
        array([False,  True, False,  True, False])
        >>> same = SAFFRON.from_state(stream.state())
        >>> same
        SAFFRON(level=0.1, 2 discoveries)
    """

    method = "saffron"
    _most = 0.5

    def __init__(self, level: float) -> None:
        super().__init__(level)
        self._budget = (1 - self._most) * self.level

    def _gamma(self, i: np.ndarray) -> np.ndarray:
        return i**-1.6 / 2.285765666

    def _ticks(self, p: np.ndarray) -> np.ndarray:
        return p > self._most
