"""Local classifier two-sample test: is the posterior right at the one x that was observed?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from sciflow.arguments import Arguments
from sciflow.arrays import numbers
from sciflow.errors import ConfigError, DataError, ShapeError
from sciflow.inference.diagnostics import words
from sciflow.inference.diagnostics.cases import Cases, checked
from sciflow.inference.diagnostics.classifier import FeatureMap, discriminants
from sciflow.inference.diagnostics.posteriors import draws_of_one, is_array, seeds
from sciflow.inference.diagnostics.rows import flat_rows
from sciflow.report.drawing import Floats

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["LocalC2ST", "local_c2st"]

FEWEST_PAIRS = 100
_NUM_OTHERS = 5


@dataclass(frozen=True, eq=False, repr=False)
class LocalC2ST:
    """How far a classifier tells the posterior at one x from the true one.

    Attributes:
        statistic: Mean square of what the classifier is off 1/2, over draws at the observed x.
        null: ``[num_null]``, the same of classifiers that were trained where there is nothing to tell.
        p_value: How rarely those are as far off; no smaller than 1 / (num_null + 1).
        level: At which the posterior is called wrong.
        verdict: In words: which parameters differ at this x, and how.
        names: Of the parameters.
        draws: ``[num_draws, d]``, of the posterior at the observed x.
        weights: ``[num_draws]``, mean 1: how much likelier than among the draws the classifier finds each to be true.
    """

    statistic: float
    null: Floats
    p_value: float
    level: float
    verdict: str
    names: tuple[str, ...]
    draws: Floats = field(repr=False)
    weights: Floats = field(repr=False)

    @property
    def passed(self) -> bool:
        """Nothing speaks against the posterior at :attr:`level`."""
        return self.p_value > self.level

    def plot(self) -> Figure:
        """Draw the statistic among those of the null, and the parameters as they are and as they should be."""
        from sciflow.inference.diagnostics.figures import local_panels

        return local_panels(self)

    def __repr__(self) -> str:
        return f"LocalC2ST({self.verdict})"


def local_c2st(
    posterior: Any,
    theta: Any,
    x: Any,
    x_observed: Any,
    *,
    draws_observed: Any = None,
    num_draws: int = 1000,
    num_null: int = 999,
    names: Sequence[str] | None = None,
    level: float = 0.05,
    seed: int = 0,
) -> LocalC2ST:
    r"""Test the posterior at one x, by a classifier that has seen it at many.

    .. math:: t(x_o) = \frac{1}{L} \sum_l \big(d(\theta_l, x_o) - \tfrac{1}{2}\big)^2, \qquad
        \theta_l \sim q(\theta \mid x_o)

    d tells the truth from draws at the same data. Of a right posterior, truth and draws can be swapped: classifiers
    that are trained with one of them at random in the place of the truth give the distribution of t, and the p-value of
    a posterior that is right everywhere is exact. The classifier has a closed form (see
    :func:`~.classifier.discriminants`), so that a thousand of them take seconds; means, widths and correlations, and
    how they follow the data, are what it sees best.

    Args:
        posterior: As :func:`~.sbc.sbc` takes it; of ready draws of each case the first five are used.
        theta: ``[cases, d]``, drawn from the prior. Some thousands are well spent: what is seen grows with them.
        x: ``[cases, ...]``, or a mapping of such, simulated from them.
        x_observed: ``[...]``, the one that is asked about.
        draws_observed: ``[n, d]``, of the posterior at ``x_observed``; drawn from ``posterior`` by default.
        num_draws: At ``x_observed``.
        num_null: Classifiers of swapped pairs.
        names: Of the parameters.
        level: At which the posterior is called wrong.
        seed: Of draws, features and swaps.

    Raises:
        ShapeError: Cases, or numbers of parameters, do not agree, or ``x_observed`` is no single one.
        DataError: Values are missing, a parameter never varies, or there are too few cases.
        ConfigError: A posterior that is none, or ready draws without those at ``x_observed``.

    Source: Linhart et al., arXiv:2306.03580.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> theta = rng.normal(size=(1000, 1))
        >>> x = theta + rng.normal(size=(1000, 1))
        >>> right = lambda x, n, seed: x / 2 + np.sqrt(0.5) * np.random.default_rng(seed).normal(size=(n, 1))
        >>> blind = lambda x, n, seed: np.random.default_rng(seed).normal(size=(n, 1))
        >>> local_c2st(right, theta, x, [1.5]).passed, local_c2st(blind, theta, x, [1.5]).passed
        (True, False)
    """
    seed, level = checked("local_c2st", seed, level)
    num_null = Arguments("local_c2st").whole("num_null", num_null, 19, 100_000)
    if x is None:
        raise ConfigError("local_c2st: it compares pairs of theta and x: give the x of every case")
    of_cases, of_observed, of_features = seeds(seed, 3)
    cases = Cases.of(posterior, theta, x, 20, of_cases, names, "local_c2st")
    num_cases, num_parameters = cases.theta.shape
    if num_cases < FEWEST_PAIRS:
        raise DataError(f"local_c2st: {num_cases} cases are too few to train on; give {FEWEST_PAIRS}, better thousands")
    if draws_observed is None:
        if is_array(posterior):
            raise ConfigError("local_c2st: with ready draws of the cases, give those at x_observed: draws_observed=")
        if isinstance(x_observed, list | tuple):
            x_observed = np.asarray(x_observed)
        draws_observed = draws_of_one(posterior, x_observed, num_draws, of_observed, "local_c2st")
    draws = draws_of_one(draws_observed, None, num_draws, of_observed, "local_c2st")
    if draws.shape[1] != num_parameters:
        raise ShapeError(f"local_c2st: {num_parameters} parameters in theta, {draws.shape[1]} at x_observed")
    rng = np.random.default_rng(of_features)
    members = np.concatenate([cases.theta[None], cases.draws[:_NUM_OTHERS]])
    data, observed = flat_rows(x), _one(x_observed)
    features = FeatureMap.of(members, data, rng)
    if len(observed) != features.num_data:
        raise ShapeError(f"local_c2st: one x is of {features.num_data} numbers, x_observed of {len(observed)}")
    truths = rng.integers(0, len(members), size=(1 + num_null, num_cases))
    truths[0] = 0
    scale, weights = discriminants(np.stack([features(each, data) for each in members]), truths)
    at = features(draws, np.broadcast_to(observed, (len(draws), len(observed)))) / scale
    # A quarter of the log-ratio, which is 0 on average over draws to first order.
    off = (at - at.mean(0)) @ weights / 4
    statistics = (off**2).mean(0)
    statistic, null = float(statistics[0]), statistics[1:]
    p_value = (1 + int((null >= statistic).sum())) / (1 + num_null)
    likelier = np.exp(np.clip(4 * off[:, 0], -5, 5))
    likelier /= likelier.mean()
    verdict = _verdict(draws, likelier, cases.names, p_value, level)
    return LocalC2ST(statistic, null, p_value, level, verdict, cases.names, draws, likelier)


def _one(x: Any) -> Floats:
    parts = list(x.values()) if isinstance(x, Mapping) else [x]
    return np.concatenate([numbers(part, "local_c2st: x_observed").astype(np.float64).ravel() for part in parts])


def _verdict(draws: Floats, weights: Floats, names: Sequence[str], p_value: float, level: float) -> str:
    told = f"p = {p_value:.2g}"
    if p_value > level:
        return f"right at the observed x, as far as a classifier tells ({told})"
    mean, scale = draws.mean(0), np.maximum(draws.std(0), 1e-300)
    true_mean = (weights[:, None] * draws).mean(0)
    true_scale = np.sqrt((weights[:, None] * (draws - true_mean) ** 2).mean(0))
    shift, ratio = (mean - true_mean) / scale, true_scale / scale
    faults = []
    for place in np.argsort(-(np.abs(shift) + np.abs(np.log(np.maximum(ratio, 1e-9))))):
        if abs(shift[place]) > 0.1:
            way = "up" if shift[place] > 0 else "down"
            much = f"by {abs(shift[place]):.2g} standard deviations or more"
            faults.append(words.Fault(f"biased {way}", names[place], much))
        if abs(ratio[place] - 1) > 0.05:
            way = "narrow" if ratio[place] > 1 else "wide"
            much = f"should be {ratio[place]:.2g} times as wide, or {'more' if ratio[place] > 1 else 'less'}"
            faults.append(words.Fault(f"too {way}", names[place], much))
    if not faults:
        return f"wrong at the observed x, though means and widths are not: look at correlations ({told})"
    return f"wrong at the observed x: {words.told(faults)}: {words.advice(faults)} ({told})"
