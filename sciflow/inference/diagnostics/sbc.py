"""Simulation-based calibration: of a right posterior, the truth has any rank among the draws equally often."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from sciflow.arrays import numbers
from sciflow.errors import ConfigError, DataError, ShapeError
from sciflow.inference.diagnostics import words
from sciflow.inference.diagnostics.cases import Cases, checked
from sciflow.inference.diagnostics.uniformity import adjusted_p_values, band, distribution, uniform_p_value
from sciflow.report.drawing import Floats

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["SBC", "sbc"]

Statistic = Callable[[Any, Any], Any]
Statistics = str | Statistic | Sequence["str | Statistic"] | Mapping[str, Statistic]


@dataclass(frozen=True, eq=False, repr=False)
class SBC:
    """Ranks of the truth among draws of the posterior, and what they say.

    Attributes:
        names: Of the q quantities that were ranked: parameters, then statistics.
        num_parameters: How many of them are parameters.
        ranks: ``[cases, q]``, how many of the draws are below the truth, ties broken at random.
        values: ``[cases, q]``, the same on (0, 1): uniform of a right posterior, for any number of draws.
        num_draws: Of each case.
        p_values: ``[q]``, each by itself.
        adjusted: ``[q]``, p-values with all quantities taken together, by Holm.
        level: At which one of them is called wrong.
        verdict: In words, with what to do.
    """

    names: tuple[str, ...]
    num_parameters: int
    ranks: Any
    values: Floats
    num_draws: int
    p_values: Floats
    adjusted: Floats
    level: float
    verdict: str

    @property
    def p_value(self) -> float:
        """Of the hypothesis that all ranks are uniform."""
        return float(self.adjusted.min())

    @property
    def passed(self) -> bool:
        """Nothing speaks against the posterior at :attr:`level`."""
        return self.p_value > self.level

    def ecdf(self) -> Floats:
        """Distribution functions of the ranks at :func:`~.uniformity.evaluation_points`, ``[q, K - 1]``."""
        return np.stack([distribution(column) for column in self.values.T])

    def plot(self) -> Figure:
        """Draw distribution functions less the uniform one, with simultaneous bands, one panel a quantity."""
        from sciflow.inference.diagnostics.figures import ecdf_differences

        return ecdf_differences(self)

    def __repr__(self) -> str:
        return f"SBC({len(self.ranks):,} cases, {self.num_draws:,} draws each: {self.verdict})"


def sbc(
    posterior: Any,
    theta: Any,
    x: Any = None,
    *,
    num_draws: int = 1000,
    statistics: Statistics = (),
    names: Sequence[str] | None = None,
    level: float = 0.05,
    seed: int = 0,
) -> SBC:
    r"""Rank the truth among draws of the posterior, and test that the ranks are uniform.

    .. math:: \theta \sim p(\theta), \; x \sim p(x \mid \theta), \; \theta_1 \dots \theta_L \sim q(\theta \mid x):
        \qquad \textstyle\sum_l 1[f(\theta_l, x) < f(\theta, x)] \sim U\{0, \dots, L\}

    for every f, if q is the posterior. Ranks of parameters alone are uniform of the prior, too, and of any posterior
    that ignores a part of the data: what sees that is a statistic that depends on the data, best of all the
    log-likelihood. (``"log_prob"``, the posterior's own, sees where draws are too concentrated or misshapen jointly,
    but it is as blind as the posterior is.)

    Args:
        posterior: Draws ``[num_draws, cases, d]``; a model with ``sample(n, x, seed)``; a Density conditioned on ``x``;
            an object with ``posterior(x)``; or a function of ``(x, n, seed)`` for one ``x``, which returns ``[n, d]``.
        theta: ``[cases, d]``, drawn from the prior.
        x: ``[cases, ...]``, or a mapping of such, simulated from them. Ready draws need it for statistics only.
        num_draws: Of the posterior of each case.
        statistics: ``"log_prob"``, or functions of theta ``[n, cases, d]`` and x ``[cases, ...]``, which return
            ``[n, cases]``: one, several, or a mapping from names. They get tensors where ``theta`` is one.
        names: Of the parameters.
        level: At which the posterior is called wrong: the probability that a right one is.
        seed: Of draws and ties.

    Raises:
        ShapeError: Cases, or numbers of parameters, do not agree.
        DataError: Values are missing, a parameter never varies, or there are too few cases.
        ConfigError: Too few draws, a posterior or a statistic that is none.

    Source: Talts et al., arXiv:1804.06788; statistics: Modrak et al., arXiv:2211.02383; bands: Säilynoja et al.,
        arXiv:2103.10522.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> theta = rng.normal(size=(300, 1))
        >>> x = theta + rng.normal(size=(300, 1))
        >>> right = lambda x, n, seed: x / 2 + np.sqrt(0.5) * np.random.default_rng(seed).normal(size=(n, 1))
        >>> sbc(right, theta, x, num_draws=200).passed
        True
        >>> narrow = lambda x, n, seed: x / 2 + 0.5 * np.random.default_rng(seed).normal(size=(n, 1))
        >>> print(sbc(narrow, theta, x, num_draws=200).verdict.split(":")[0])
        too narrow in theta 0 (should be 1.3 times as wide)
    """
    seed, level = checked("sbc", seed, level)
    cases = Cases.of(posterior, theta, x, num_draws, seed, names, "sbc")
    ranks, values = [], []
    labels = list(cases.names)
    for place in range(len(labels)):
        found = cases.ranks(cases.theta[:, place], cases.draws[:, :, place], seed + place)
        ranks.append(found[0])
        values.append(found[1])
    for name, statistic in _named(statistics).items():
        of_truth, of_draws = _evaluated(name, statistic, cases)
        found = cases.ranks(of_truth, of_draws, seed + len(labels))
        labels.append(name)
        ranks.append(found[0])
        values.append(found[1])
    p_values = np.array([uniform_p_value(column) for column in values])
    adjusted = adjusted_p_values(p_values)
    verdict = _verdict(labels, len(cases.names), values, adjusted, level)
    return SBC(
        tuple(labels),
        len(cases.names),
        np.stack(ranks, axis=1),
        np.stack(values, axis=1),
        cases.num_draws,
        p_values,
        adjusted,
        level,
        verdict,
    )


def _named(statistics: Statistics) -> dict[str, str | Statistic]:
    if isinstance(statistics, Mapping):
        named: dict[str, Any] = dict(statistics)
    else:
        several = [statistics] if isinstance(statistics, str) or callable(statistics) else list(statistics)
        named = {}
        for each in several:
            name = each if isinstance(each, str) else getattr(each, "__name__", "statistic").strip("<>")
            named[name if name not in named else f"{name} {len(named)}"] = each
    for name, each in named.items():
        if not callable(each) and each != "log_prob":
            raise ConfigError(f"sbc: statistic {name!r} is none: give 'log_prob', or functions of theta and x")
    return named


def _evaluated(name: str, statistic: str | Statistic, cases: Cases) -> tuple[Floats, Floats]:
    """A statistic of the truth ``[cases]``, and of the draws ``[num_draws, cases]``."""
    if isinstance(statistic, str):
        if not cases.knows_log_prob or cases.x is None:
            raise ConfigError("sbc: log_prob is asked for, and the posterior has none: give a model that has, and x")
        return cases.log_prob(cases.theta), cases.log_prob(cases.draws)
    found = []
    for theta in (cases.theta[None], cases.draws):
        values = numbers(statistic(cases.given(theta), cases.x), f"sbc: statistic {name}").astype(np.float64)
        if values.shape != theta.shape[:2]:
            raise ShapeError(
                f"sbc: statistic {name} of theta {list(theta.shape)} has {list(theta.shape[:2])} values, one for every "
                f"draw of every case; got {list(values.shape)}"
            )
        if np.isnan(values).any():
            raise DataError(f"sbc: statistic {name} is NaN for {np.isnan(values).sum():,} of {values.size:,} draws")
        found.append(values)
    return found[0][0], found[1]


def _verdict(
    names: Sequence[str], num_parameters: int, values: Sequence[Floats], adjusted: Floats, level: float
) -> str:
    num_cases = len(values[0])
    p_value = f"p = {adjusted.min():.2g}"
    if adjusted.min() > level:
        low, high = band(num_cases, level)
        width = float((high - low).max()) / 2
        return (
            f"calibrated, as far as {num_cases:,} cases tell: shares of ranks are within {100 * width:.2g} % of "
            f"uniform ({p_value} of {len(names)})"
        )
    faults = []
    for place in _worst_first(adjusted, level):
        of = words.faults_of_parameter if place < num_parameters else words.faults_of_statistic
        faults += of(names[place], values[place])
    return f"{words.told(faults)}: {words.advice(faults)} ({p_value})"


def _worst_first(adjusted: Floats, level: float) -> list[int]:
    return [int(place) for place in np.argsort(adjusted, kind="stable") if adjusted[place] <= level]
