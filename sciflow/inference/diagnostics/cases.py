"""Cases of which the truth is known, and what a posterior says of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from sciflow.arguments import Arguments
from sciflow.arrays import column_names
from sciflow.density import MOST_SEED
from sciflow.errors import ConfigError, DataError, ShapeError
from sciflow.inference.diagnostics.posteriors import draws_of_cases, is_array, log_prob_of_cases
from sciflow.inference.diagnostics.rows import finite, num_rows
from sciflow.report.drawing import Floats

__all__ = ["FEWEST_CASES", "Cases", "checked", "parameter_names"]

# With fewer, not even a posterior that is off by its own standard deviation would be told from a right one.
FEWEST_CASES = 20


@dataclass(frozen=True, eq=False)
class Cases:
    """Cases of which the truth is known, and what a posterior says of them.

    Attributes:
        theta: ``[cases, d]``, drawn from the prior.
        x: ``[cases, ...]``, simulated from them, as it was given; None where only draws are known.
        draws: ``[num_draws, cases, d]``, of the posterior of every ``x``.
        names: Of the d parameters.
        posterior: As it was given.
        as_tensors: Whether ``theta`` came as a tensor: functions of the user's are given such then.
    """

    theta: Floats
    x: Any
    draws: Floats
    names: tuple[str, ...]
    posterior: Any
    as_tensors: bool

    @classmethod
    def of(
        cls,
        posterior: Any,
        theta: Any,
        x: Any,
        num_draws: int,
        seed: int,
        names: Sequence[str] | None,
        what: str,
    ) -> Cases:
        """Check what was given, and draw.

        Args:
            posterior: As :func:`~.posteriors.draws_of_cases` takes it.
            theta: ``[cases, d]``.
            x: ``[cases, ...]``, or a mapping of such.
            num_draws: Of the posterior of each case; ready draws are all used.
            seed: Of the draws.
            names: Of the parameters; those of a table's columns by default.
            what: Which diagnostic asks, in messages.

        Raises:
            ShapeError: Cases, or numbers of parameters, do not agree.
            DataError: Values are missing, a parameter never varies, or there are too few cases.
            ConfigError: Too few draws, or the posterior is none of the above.
        """
        names = names or column_names(theta, "theta")
        truth = finite(theta, f"{what}: theta")
        if truth.ndim != 2 or 0 in truth.shape:
            hint = "; for one parameter, theta[:, None]" if truth.ndim == 1 else ""
            raise ShapeError(f"{what}: theta must be [cases, d], got {list(truth.shape)}{hint}")
        num_cases, num_parameters = truth.shape
        if num_cases < FEWEST_CASES:
            raise DataError(
                f"{what}: {num_cases} cases say next to nothing; simulate at least {FEWEST_CASES}, and some 300 to see "
                "a spread that is off by 20 %"
            )
        labels = parameter_names(names, num_parameters, what)
        still = [name for name, spread in zip(labels, np.ptp(truth, axis=0), strict=True) if spread == 0]
        if still:
            raise DataError(f"{what}: {', '.join(still)} never varies over the cases: leave it out of theta and draws")
        if x is not None and (found := num_rows(x, what)) != num_cases:
            raise ShapeError(f"{what}: {num_cases} cases in theta, {found} in x: give one x for every theta")
        draws = draws_of_cases(posterior, x, (num_cases, num_parameters), num_draws, seed, what)
        return cls(truth, x, draws, labels, posterior, isinstance(theta, torch.Tensor))

    @property
    def num_draws(self) -> int:
        return len(self.draws)

    @property
    def knows_log_prob(self) -> bool:
        """Whether the posterior can be asked for log p."""
        return not is_array(self.posterior) and (
            hasattr(self.posterior, "log_prob") or hasattr(self.posterior, "posterior")
        )

    def log_prob(self, theta: Floats) -> Floats:
        """Log p of the posterior of each case at ``theta`` ``[..., cases, d]``, ``[..., cases]``."""
        return log_prob_of_cases(self.posterior, theta, self.x)

    def ranks(self, of_truth: Floats, of_draws: Floats, seed: int) -> tuple[Any, Floats]:
        r"""Return how many draws are below the truth, ties broken at random, and the same as values on (0, 1).

        .. math:: u = (r + v) / (L + 1), \qquad v \sim U(0, 1)

        Of a right posterior r is uniform on 0..L, and u on (0, 1) exactly, for any number of draws L.

        Args:
            of_truth: ``[cases]``.
            of_draws: ``[num_draws, cases]``.
            seed: Of the ties, and of v.

        Returns:
            Ranks and values, ``[cases]`` each.
        """
        rng = np.random.default_rng([seed, 1])
        ties = (of_draws == of_truth).sum(0)
        ranks = (of_draws < of_truth).sum(0) + np.floor(rng.random(len(ties)) * (ties + 1)).astype(np.int64)
        return ranks, (ranks + rng.random(len(ties))) / (len(of_draws) + 1)

    def given(self, values: Floats) -> Any:
        """Values as functions of the user's get them: tensors where ``theta`` came as one."""
        return torch.from_numpy(values) if self.as_tensors else values


def checked(what: str, seed: Any, level: Any) -> tuple[int, float]:
    """Return a seed and a level of significance that are such.

    Raises:
        ConfigError: They are not.
    """
    arguments = Arguments(what)
    arguments.require("level", level, arguments.fraction("level", level) > 0, "above 0 and below 1")
    return arguments.whole("seed", seed, 0, MOST_SEED), float(level)


def parameter_names(names: Sequence[str] | None, num_parameters: int, what: str) -> tuple[str, ...]:
    """Return names of the parameters, or those that number them.

    Raises:
        ConfigError: There are not as many, or two are the same.
    """
    if names is None:
        return tuple(f"theta {place}" for place in range(num_parameters))
    if isinstance(names, str) or len(names) != num_parameters or len(set(names)) != num_parameters:
        raise ConfigError(
            f"{what}: names must be {num_parameters} different texts, one a parameter; got {names!r:.200}"
        )
    return tuple(map(str, names))
