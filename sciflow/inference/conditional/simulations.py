"""Simulations: parameters and what came of them, in memory or in stores, and those that failed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sciflow.arrays import numbers
from sciflow.errors import DataError, ShapeError
from sciflow.inference.conditional.simulator import NOT_FINITE

__all__ = ["Failures", "Part", "Simulations", "given_arrays"]

_ROWS = 1 << 14
_MOST_FAILED = 0.5
_MANY_FAILED = 0.05


@dataclass(frozen=True)
class Failures:
    """Simulations that failed.

    Attributes:
        parameters: Of each, ``[n, d]``.
        reasons: Why, a text each.
        total: How many simulations were asked for.
    """

    parameters: np.ndarray
    reasons: tuple[str, ...]
    total: int

    def __len__(self) -> int:
        return len(self.reasons)

    @property
    def counts(self) -> dict[str, int]:
        """How many for each reason, the commonest first."""
        return dict(Counter(self.reasons).most_common())

    def __repr__(self) -> str:
        listed = ", ".join(f"{reason}: {count:,}" for reason, count in list(self.counts.items())[:3])
        return f"Failures({len(self):,} of {self.total:,}{': ' if listed else ''}{listed})"


@dataclass(frozen=True)
class Part:
    """Simulations of one round: arrays, or what reads like them.

    Attributes:
        theta: Parameters ``[n, d]``.
        x: Observations ``[n, *x_shape]``.
        reasons: Why rows failed, by their place; those that did not are left out.
        rows: How many there are, where ``theta`` does not tell by its shape.
    """

    theta: Any
    x: Any
    reasons: Mapping[int, str] = field(default_factory=dict)
    rows: int | None = None

    def __len__(self) -> int:
        return int(self.theta.shape[0]) if self.rows is None else self.rows

    def blocks(self, rows: int = _ROWS) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Those that succeeded, some at a time."""
        for start in range(0, len(self), rows):
            stop = min(start + rows, len(self))
            theta, x = np.asarray(self.theta[start:stop]), np.asarray(self.x[start:stop])
            keep = np.ones(len(theta), bool)
            keep[[row - start for row in self.reasons if start <= row < stop]] = False
            yield (theta, x) if keep.all() else (theta[keep], x[keep])


@dataclass(frozen=True)
class Simulations:
    """All simulations that a density is fitted to, of one round or several.

    Attributes:
        parts: One for each round.
        x_shape: Shape of one observation.

    Example:
        >>> part = Part(np.zeros((3, 2)), np.ones((3, 1)), {1: "not finite"})
        >>> simulations = Simulations([part], (1,))
        >>> len(simulations), simulations.failures
        (2, Failures(1 of 3: not finite: 1))
    """

    parts: Sequence[Part]
    x_shape: tuple[int, ...]

    def __len__(self) -> int:
        """How many succeeded."""
        return sum(len(part) - len(part.reasons) for part in self.parts)

    @property
    def num_parameters(self) -> int:
        """Length of a vector of parameters."""
        return len(self.parts[0].theta[0])

    def blocks(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Parameters and observations that succeeded, some at a time."""
        for part in self.parts:
            yield from part.blocks()

    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """All of them in memory."""
        found = list(self.blocks())
        return np.concatenate([theta for theta, _ in found]), np.concatenate([x for _, x in found])

    @property
    def failures(self) -> Failures:
        """Those that failed."""
        rows = [
            (np.asarray(part.theta[row]), reason) for part in self.parts for row, reason in sorted(part.reasons.items())
        ]
        theta = np.stack([row for row, _ in rows]) if rows else np.empty((0, self.num_parameters))
        return Failures(theta, tuple(reason for _, reason in rows), sum(map(len, self.parts)))

    def require_enough(self) -> None:
        """Refuse simulations of which most failed.

        Raises:
            DataError: Says how many, and why.
        """
        failures = self.failures
        if len(failures) > _MOST_FAILED * failures.total:
            reason, count = next(iter(failures.counts.items()))
            raise DataError(
                f"simulator: {len(failures):,} of {failures.total:,} simulations failed, {count:,} of them with "
                f"'{reason}': mend it, raise timeout, or narrow the prior to parameters that it can take"
            )

    def notes(self, of_likelihood: bool) -> list[str]:
        """What failures mean for the posterior, where they are many."""
        failures = self.failures
        share = len(failures) / max(1, failures.total)
        if share <= _MANY_FAILED:
            return []
        what = (
            "the likelihood is that of observations given that the simulator did not fail: parameters for which it "
            "often fails are given too much weight"
            if of_likelihood
            else "it is the posterior given that the simulator did not fail, which is right for whatever it returned; "
            "draws that failed for want of time or memory, though, narrow the prior"
        )
        return [
            f"{share:.1%} of the simulations failed and were left out, so that the prior in effect is another: {what}"
        ]


def given_arrays(given: Any, dtype: str) -> Simulations:
    """Take simulations that a user has: a pair, or a mapping with ``theta`` and ``x``.

    Raises:
        DataError: They are neither, no numbers, or none.
        ShapeError: Parameters are no vectors, or there are more of the one than of the other.

    Example:
        >>> given_arrays({"theta": np.zeros((4, 2)), "x": np.zeros((4, 3, 8))}, "float32").x_shape
        (3, 8)
    """
    if isinstance(given, Mapping) or hasattr(given, "data_vars"):
        missing = [name for name in ("theta", "x") if name not in given]
        if missing:
            raise DataError(
                f"simulations: '{missing[0]}' is missing: give theta and x; got {', '.join(map(str, given))}"
            )
        given = given["theta"], given["x"]
    if not isinstance(given, tuple | list) or len(given) != 2:
        raise DataError(
            "simulations: a pair (theta, x), a mapping with theta and x, or the folder of a store expected; "
            f"got {type(given).__name__}"
        )
    theta = numbers(given[0], "theta").astype(dtype)
    x = numbers(given[1], "x")
    with np.errstate(over="ignore"):
        x = x.astype(dtype)
    theta = theta[:, None] if theta.ndim == 1 else theta
    x = x[:, None] if x.ndim == 1 else x
    if theta.ndim != 2 or x.ndim < 2:
        raise ShapeError(f"simulations: theta [n, d] and x [n, ...] expected; got {list(theta.shape)}, {list(x.shape)}")
    if len(theta) != len(x):
        raise ShapeError(
            f"simulations: {len(theta):,} rows of theta, {len(x):,} of x: give one row for each simulation"
        )
    if not np.isfinite(theta).all():
        row = int(np.flatnonzero(~np.isfinite(theta).all(-1))[0])
        raise DataError(f"simulations: theta has missing or infinite values, first in row {row}")
    bad = np.flatnonzero(~np.isfinite(x.reshape(len(x), -1)).all(-1))
    return Simulations([Part(theta, x, {int(row): NOT_FINITE for row in bad})], x.shape[1:])
