"""Posterior predictive checks: do data that are simulated again from the posterior look like those observed?"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from sciflow.arguments import seeded
from sciflow.arrays import numbers
from sciflow.errors import ConfigError, DataError, SciflowError, ShapeError, first_line
from sciflow.inference.diagnostics import words
from sciflow.inference.diagnostics.cases import checked
from sciflow.inference.diagnostics.posteriors import draws_of_one, is_array, seeds
from sciflow.inference.diagnostics.rows import finite
from sciflow.inference.diagnostics.uniformity import adjusted_p_values
from sciflow.report.drawing import Floats

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["PosteriorPredictive", "posterior_predictive"]

# Up to so many numbers in x, each of them is a statistic.
_MOST_NUMBERS = 12
_SHRINKAGE = 0.1


@dataclass(frozen=True, eq=False, repr=False)
class PosteriorPredictive:
    """Statistics of the data observed, among those of data simulated from draws of the posterior.

    Attributes:
        names: Of the s statistics.
        observed: ``[s]``.
        replicated: ``[n, s]``.
        p_values: ``[s]``, two-sided, each by itself.
        adjusted: ``[s]``, with all statistics taken together, by Holm.
        distance_p_value: How rarely replicated data lie as far out among all, by Mahalanobis' distance.
        level: At which the data are called unlike.
        verdict: In words, with what to do.
        x: ``[n, ...]``, the replicated data.
    """

    names: tuple[str, ...]
    observed: Floats
    replicated: Floats
    p_values: Floats
    adjusted: Floats
    distance_p_value: float
    level: float
    verdict: str
    x: Floats = field(repr=False)

    @property
    def p_value(self) -> float:
        """The smaller one of statistics and distance, doubled for being two."""
        return min(1.0, 2 * min(float(self.adjusted.min()), self.distance_p_value))

    @property
    def passed(self) -> bool:
        """The observed data are as replicated ones at :attr:`level`."""
        return self.p_value > self.level

    def plot(self) -> Figure:
        """Draw the distribution of every statistic, and where the observed data lie."""
        from sciflow.inference.diagnostics.figures import statistics_panels

        return statistics_panels(self)

    def __repr__(self) -> str:
        return f"PosteriorPredictive({len(self.replicated):,} replicates, {len(self.names)} statistics: {self.verdict})"


def posterior_predictive(
    posterior: Any,
    simulator: Callable[..., Any],
    x_observed: Any,
    *,
    statistics: Mapping[str, Callable[[Any], Any]] | None = None,
    num_draws: int = 1000,
    level: float = 0.05,
    seed: int = 0,
) -> PosteriorPredictive:
    r"""Simulate data from draws of the posterior, and see whether those that were observed stand out.

    .. math:: \theta_l \sim q(\theta \mid x_o), \quad x_l \sim p(x \mid \theta_l), \qquad
        p_T = 2 \min\{P(T(x_l) \le T(x_o)), P(T(x_l) \ge T(x_o))\}

    The posterior has seen what it is compared with: such p-values keep away from 0 and 1, and a false alarm is rarer
    than the level says. What they find is real: a simulator that cannot make such data, or a posterior that is
    elsewhere.

    Args:
        posterior: Draws ``[n, d]`` of the posterior at ``x_observed``; an object with ``sample(n, seed=)``; or one that
            :func:`~.sbc.sbc` takes, which is asked for ``x_observed`` then.
        simulator: Maps theta ``[n, d]`` to data ``[n, ...]``: a tensor where draws are tensors, and from models. It may
            ask for a ``seed``, ``generator`` or ``rng`` by name; torch's and NumPy's own generators are seeded, too.
        x_observed: ``[...]``.
        statistics: Names and functions of data ``[n, ...]`` that return ``[n]``; by default every number of ``x`` where
            there are few, and mean, standard deviation, extremes and median where there are many.
        num_draws: Of the posterior; ready draws are all used.
        level: At which the data are called unlike.
        seed: Of draws and simulations.

    Raises:
        ShapeError: Simulations do not have the shape of ``x_observed``, or a statistic is not one number a row.
        DataError: Data are not finite.
        ConfigError: Too few draws, or a posterior that is none.

    Source: Gelman, Meng and Stern, 1996, Statistica Sinica 6, 733-807.

    Example:
        >>> x = 2.0 + np.random.default_rng(2).normal(size=20)
        >>> draws = x.mean() + np.random.default_rng(0).normal(size=(500, 1)) / np.sqrt(20)
        >>> simulator = lambda theta, seed: theta + np.random.default_rng(seed).normal(size=(len(theta), 20))
        >>> posterior_predictive(draws, simulator, x).passed, posterior_predictive(draws, simulator, 2 * x).passed
        (True, False)
    """
    seed, level = checked("posterior_predictive", seed, level)
    of_draws, of_data = seeds(seed, 2)
    as_tensors = isinstance(posterior, torch.Tensor) or not is_array(posterior)
    draws = draws_of_one(posterior, x_observed, num_draws, of_draws, "posterior_predictive")
    observed = finite(x_observed, "posterior_predictive: x_observed")
    x = _simulated(simulator, torch.from_numpy(draws) if as_tensors else draws, of_data)
    if x.shape != (len(draws), *observed.shape):
        raise ShapeError(
            f"posterior_predictive: of {len(draws):,} draws the simulator must make data "
            f"{[len(draws), *observed.shape]}, as x_observed is; got {list(x.shape)}"
        )
    both = np.concatenate([observed[None], x])
    named = statistics or _default_statistics(observed.shape)
    given = torch.from_numpy(both) if as_tensors and statistics else both
    values = np.stack([_evaluated(name, function, given) for name, function in named.items()], axis=1)
    p_values = np.array([_two_sided(column[0], column[1:]) for column in values.T])
    adjusted = adjusted_p_values(p_values)
    distance_p_value = _distance_p_value(both.reshape(len(both), -1))
    verdict = _verdict(list(named), values, adjusted, distance_p_value, level)
    return PosteriorPredictive(
        tuple(named), values[0], values[1:], p_values, adjusted, distance_p_value, level, verdict, x
    )


def _simulated(simulator: Callable[..., Any], theta: Any, seed: int) -> Floats:
    sources = {
        "seed": lambda: seed,
        "generator": lambda: torch.Generator().manual_seed(seed),
        "rng": lambda: np.random.default_rng(seed),
    }
    asked = inspect.signature(simulator).parameters
    options = {name: source() for name, source in sources.items() if name in asked}
    state = np.random.get_state()
    np.random.seed(seed % 2**32)
    try:
        with seeded(seed), torch.no_grad():
            made = simulator(theta, **options)
    except SciflowError:
        raise
    except Exception as error:
        raise DataError(
            f"posterior_predictive: the simulator fails on {len(theta):,} draws of the posterior, a row each: "
            f"{type(error).__name__}: {first_line(error)}"
        ) from error
    finally:
        np.random.set_state(state)
    return finite(made, "posterior_predictive: simulations")


def _default_statistics(shape: tuple[int, ...]) -> dict[str, Callable[[Any], Any]]:
    size = int(np.prod(shape))
    if size <= _MOST_NUMBERS:
        places = [", ".join(map(str, place)) for place in np.ndindex(*shape)]
        return {
            f"x[{place}]" if place else "x": lambda x, i=i: x.reshape(len(x), -1)[:, i]  # type: ignore[misc]
            for i, place in enumerate(places)
        }
    functions = {
        "mean": np.mean,
        "standard deviation": np.std,
        "smallest": np.min,
        "median": np.median,
        "largest": np.max,
    }
    return {name: lambda x, f=f: f(x.reshape(len(x), -1), axis=1) for name, f in functions.items()}  # type: ignore[misc]


def _evaluated(name: str, function: Callable[[Any], Any], x: Any) -> Floats:
    if not callable(function):
        raise ConfigError(f"posterior_predictive: statistic {name!r} is no function of data [n, ...]")
    values = numbers(function(x), f"posterior_predictive: statistic {name}").astype(np.float64)
    if values.shape != (len(x),):
        raise ShapeError(
            f"posterior_predictive: statistic {name} of {len(x):,} data sets is {[len(x)]}, got {list(values.shape)}"
        )
    if np.isnan(values).any():
        raise DataError(f"posterior_predictive: statistic {name} is NaN for {np.isnan(values).sum():,} of {len(x):,}")
    return values


def _two_sided(observed: float, replicated: Floats) -> float:
    below, above = (replicated <= observed).sum(), (replicated >= observed).sum()
    return float(min(1.0, 2 * (1 + min(below, above)) / (1 + len(replicated))))


def _distance_p_value(rows: Floats) -> float:
    """How rarely a row lies as far out as the first one, among all of them, of correlations shrunk towards none."""
    spread = rows.std(0)
    moving = rows[:, spread > 0]
    if moving.shape[1] == 0:
        return 1.0
    scores = (moving - moving.mean(0)) / spread[spread > 0]
    if scores.shape[1] > len(scores) // 2:
        distances = (scores**2).sum(1)
    else:
        correlation = scores.T @ scores / len(scores)
        shrunk = (1 - _SHRINKAGE) * correlation + _SHRINKAGE * np.eye(len(correlation))
        distances = (scores * np.linalg.solve(shrunk, scores.T).T).sum(1)
    return float((distances >= distances[0]).mean())


def _unless_too_few(names: list[str], values: Floats, level: float) -> str:
    """What is to be said where a statistic is beyond all replicates, and there are too few for that to be rare."""
    beyond = (values[0] < values[1:].min(0)) | (values[0] > values[1:].max(0))
    needed = math.ceil(4 * len(names) / level) - 1  # two-sided, of all statistics, and of distance besides
    if not beyond.any() or len(values) - 1 >= needed:
        return ""
    outside = [f"{names[place]} is beyond all that is predicted" for place in np.flatnonzero(beyond)]
    return (
        f"too few draws to tell: {words.enumerated(outside)}, and of {len(values) - 1:,} draws and {len(names)} "
        f"statistics that is no rarer than the level: take {needed:,} draws or more"
    )


def _verdict(names: list[str], values: Floats, adjusted: Floats, distance: float, level: float) -> str:
    told = f"p = {min(1.0, 2 * min(float(adjusted.min()), distance)):.2g}"
    if min(float(adjusted.min()), distance) * 2 > level:
        return _unless_too_few(names, values, level) or f"data as observed are what the posterior predicts ({told})"
    ways = []
    for place in np.argsort(adjusted, kind="stable"):
        if 2 * adjusted[place] <= level:
            centre, scale = np.median(values[1:, place]), values[1:, place].std()
            side = "above" if values[0, place] > centre else "below"
            far = f" by {abs(values[0, place] - centre) / scale:.2g} standard deviations" if scale > 0 else ""
            ways.append(f"{names[place]} is {side} what is predicted{far}")
    if not ways:
        ways.append("the numbers do not go together as in simulated data, though each by itself does")
    return (
        f"data as observed are not what the posterior predicts: {words.enumerated(ways)}; the simulator cannot make "
        f"such data, or the posterior is elsewhere: see what it was trained on ({told})"
    )
