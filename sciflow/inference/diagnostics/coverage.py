"""Expected coverage: regions that hold so much of the posterior hold the truth as often."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from sciflow.arguments import Arguments
from sciflow.errors import ConfigError
from sciflow.inference.diagnostics import words
from sciflow.inference.diagnostics.cases import Cases, checked
from sciflow.inference.diagnostics.uniformity import Departure, adjusted_p_values, uniform_p_value
from sciflow.report.drawing import Floats

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Coverage", "expected_coverage"]

_JOINTLY: tuple[str, ...] = ("all parameters",)

Regions = Literal["highest density", "central"]


@dataclass(frozen=True, eq=False, repr=False)
class Coverage:
    """How often regions of a posterior hold the truth.

    Attributes:
        names: Of the q families of regions: of all parameters together, or of each.
        regions: ``"highest density"`` or ``"central"``.
        values: ``[cases, q]``, the credibility of the smallest region that holds the truth: uniform of a right
            posterior.
        num_draws: Of each case.
        p_values: ``[q]``, each by itself.
        adjusted: ``[q]``, p-values with all families taken together, by Holm.
        level: At which one of them is called wrong.
        verdict: In words, with what to do.
    """

    names: tuple[str, ...]
    regions: Regions
    values: Floats
    num_draws: int
    p_values: Floats
    adjusted: Floats
    level: float
    verdict: str

    @property
    def p_value(self) -> float:
        """Of the hypothesis that all regions cover what they claim."""
        return float(self.adjusted.min())

    @property
    def passed(self) -> bool:
        """Nothing speaks against the posterior at :attr:`level`."""
        return self.p_value > self.level

    def coverage(self, credibility: Any) -> Floats:
        """Share of cases whose region of a credibility ``[...]`` holds the truth, ``[..., q]``."""
        return np.asarray((self.values <= np.asarray(credibility, np.float64)[..., None, None]).mean(-2))

    def interval(self, credibility: float, confidence: float = 0.95) -> Floats:
        """Between which shares the true coverage at a credibility lies, ``[2, q]``, after Clopper and Pearson."""
        return _clopper_pearson(self.coverage(credibility), len(self.values), confidence)

    def plot(self) -> Figure:
        """Draw coverage over credibility, with the band in which right posteriors stay."""
        from sciflow.inference.diagnostics.figures import coverage_curves

        return coverage_curves(self)

    def __repr__(self) -> str:
        return f"Coverage({self.regions} regions, {len(self.values):,} cases, {self.num_draws:,} draws: {self.verdict})"


def expected_coverage(
    posterior: Any,
    theta: Any,
    x: Any = None,
    *,
    num_draws: int = 1000,
    regions: Regions | None = None,
    names: Sequence[str] | None = None,
    level: float = 0.05,
    seed: int = 0,
) -> Coverage:
    r"""Compare the credibility of regions with how often they hold the truth.

    .. math:: u = \frac{1}{L} \sum_l 1[\log q(\theta_l \mid x) > \log q(\theta \mid x)], \qquad P(u \le c) = c

    u is the credibility of the smallest region of highest density that holds the truth. Where log q is not known, the
    regions are intervals between quantiles of each parameter, as much left out below as above. Coverage above the
    credibility is that of a posterior that is too wide, below it of one too narrow, or off. The prior covers what it
    claims: :func:`~.tarp.tarp` and statistics of :func:`~.sbc.sbc` see whether the data are used.

    Args:
        posterior: As :func:`~.sbc.sbc` takes it.
        theta: ``[cases, d]``, drawn from the prior.
        x: ``[cases, ...]``, or a mapping of such, simulated from them.
        num_draws: Of the posterior of each case.
        regions: ``"highest density"``, which takes a posterior with ``log_prob(theta, x)``, or ``"central"``; by
            default the first, where it can be.
        names: Of the parameters.
        level: At which the posterior is called wrong: the probability that a right one is.
        seed: Of draws and ties.

    Raises:
        ShapeError: Cases, or numbers of parameters, do not agree.
        DataError: Values are missing, a parameter never varies, or there are too few cases.
        ConfigError: Too few draws, a posterior that is none, or that has no log p where it is needed.

    Source: Hermans et al., arXiv:2110.06581; Deistler et al., arXiv:2210.04815.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> theta = rng.normal(size=(400, 2))
        >>> draws = theta + rng.normal(size=(400, 2)) + 0.5 * rng.normal(size=(500, 400, 2))
        >>> coverage = expected_coverage(draws, theta, names=["mass", "spin"])
        >>> coverage.passed, coverage.coverage(0.9).round(2).tolist()
        (False, [0.6, 0.62])
    """
    seed, level = checked("expected_coverage", seed, level)
    cases = Cases.of(posterior, theta, x, num_draws, seed, names, "expected_coverage")
    possible = cases.knows_log_prob and cases.x is not None
    if regions is None:
        regions = "highest density" if possible else "central"
    Arguments("expected_coverage").choice("regions", regions, ("highest density", "central"))
    if regions == "highest density":
        if not possible:
            raise ConfigError(
                "expected_coverage: regions of highest density need log p: give log_prob(theta, x) and x, "
                "or regions='central'"
            )
        _, above = cases.ranks(-cases.log_prob(cases.theta), -cases.log_prob(cases.draws), seed)
        values, labels = above[:, None], _JOINTLY
    else:
        places = range(cases.theta.shape[1])
        ranked = [cases.ranks(cases.theta[:, i], cases.draws[:, :, i], seed + i)[1] for i in places]
        values, labels = np.abs(2 * np.stack(ranked, axis=1) - 1), cases.names
    p_values = np.array([uniform_p_value(column) for column in values.T])
    adjusted = adjusted_p_values(p_values)
    verdict = _verdict(labels, values, adjusted, level)
    return Coverage(labels, regions, values, cases.num_draws, p_values, adjusted, level, verdict)


def _verdict(names: Sequence[str], values: Floats, adjusted: Floats, level: float) -> str:
    p_value = f"p = {adjusted.min():.2g}"
    worst = [int(place) for place in np.argsort(adjusted, kind="stable") if adjusted[place] <= level]
    error = 100 * float(np.sqrt(0.09 / len(values)))
    if not worst:
        covered = 100 * float((values <= 0.9).mean())
        return f"covers what it claims: regions of 90 % hold the truth in {covered:.1f} +- {error:.1f} % ({p_value})"
    faults = []
    for place in worst:
        shift = Departure.of(values[:, place]).shift
        way = "misshapen" if abs(shift) < 2.5 else "too narrow, or off," if shift > 0 else "too wide"
        covered = 100 * float((values[:, place] <= 0.9).mean())
        much = f"regions of 90 % hold the truth in {covered:.1f} +- {error:.1f} %"
        faults.append(words.Fault(way, names[place], much))
    return f"{words.told(faults)}: {words.advice(faults)} ({p_value})"


def _clopper_pearson(share: Floats, num_cases: int, confidence: float) -> Floats:
    from scipy.stats import beta

    held, tail = np.round(share * num_cases), (1 - confidence) / 2
    low = np.where(held > 0, beta.ppf(tail, np.maximum(held, 1), num_cases - held + 1), 0.0)
    high = np.where(held < num_cases, beta.ppf(1 - tail, held + 1, np.maximum(num_cases - held, 1)), 1.0)
    return np.stack([low, high])
