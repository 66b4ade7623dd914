"""Tests of accuracy with random points: the truth is as far from any point as draws of the posterior are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from sciflow.errors import ConfigError, ShapeError
from sciflow.inference.diagnostics.cases import Cases, checked
from sciflow.inference.diagnostics.rows import finite, flat_rows
from sciflow.inference.diagnostics.uniformity import Departure, evaluation_points, uniform_p_value
from sciflow.report.drawing import Floats

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["TARP", "tarp"]

# The regression that places reference points is fitted anew so many times, each time on all cases before.
_NUM_BLOCKS = 10
_MOST_FEATURES = 200


@dataclass(frozen=True, eq=False, repr=False)
class TARP:
    """Distances of the truth from reference points, among those of the draws.

    Attributes:
        values: ``[cases]``, the share of draws that are nearer to the reference point than the truth is: uniform of a
            right posterior.
        references: ``[cases, d]``, in the units of theta.
        num_draws: Of each case.
        p_value: Of the hypothesis that they are uniform, exact.
        level: At which the posterior is called wrong.
        verdict: In words, with what to do.
    """

    values: Floats
    references: Floats
    num_draws: int
    p_value: float
    level: float
    verdict: str

    @property
    def passed(self) -> bool:
        """Nothing speaks against the posterior at :attr:`level`."""
        return self.p_value > self.level

    def coverage(self, credibility: Any) -> Floats:
        """Expected coverage at a credibility ``[...]``, of the same shape: the share of values up to it."""
        return np.asarray((self.values <= np.asarray(credibility, np.float64)[..., None]).mean(-1))

    def plot(self) -> Figure:
        """Draw expected coverage over credibility, with the band in which right posteriors stay."""
        from sciflow.inference.diagnostics.figures import coverage_curves

        return coverage_curves(self)

    def __repr__(self) -> str:
        return f"TARP({len(self.values):,} cases, {self.num_draws:,} draws each: {self.verdict})"


def tarp(
    posterior: Any,
    theta: Any,
    x: Any = None,
    *,
    num_draws: int = 1000,
    references: str | Callable[[Any], Any] | Any = None,
    names: Sequence[str] | None = None,
    level: float = 0.05,
    seed: int = 0,
) -> TARP:
    r"""Compare distances from reference points, of the truth and of draws of the posterior.

    .. math:: u = \frac{1}{L} \sum_l 1[d(\theta_l, \theta_r(x)) < d(\theta, \theta_r(x))], \qquad P(u \le c) = c

    If this holds for every function :math:`\theta_r` of the data, the posterior is the true one; if it holds for points
    that do not depend on the data, the prior passes, too. By default the points follow the data: a linear regression of
    theta on x, with noise as wide as what it leaves. The regression of a case has seen the truth of none but the cases
    before it, so that the values are independent, and the p-value is exact. Distances are Euclidean, of parameters in
    units of their standard deviation.

    Args:
        posterior: As :func:`~.sbc.sbc` takes it.
        theta: ``[cases, d]``, drawn from the prior.
        x: ``[cases, ...]``, or a mapping of such, simulated from them.
        num_draws: Of the posterior of each case.
        references: ``"data"``, as above, the default where ``x`` is given; ``"random"``: normal, wherever parameters
            are, the data left aside; points ``[cases, d]``; or a function of ``x`` that returns such.
        names: Of the parameters.
        level: At which the posterior is called wrong: the probability that a right one is.
        seed: Of draws, points and ties.

    Raises:
        ShapeError: Cases, or numbers of parameters, do not agree.
        DataError: Values are missing, a parameter never varies, or there are too few cases.
        ConfigError: Too few draws, a posterior that is none, or references that are none.

    Source: Lemos et al., arXiv:2302.03026.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> theta = rng.normal(size=(300, 2))
        >>> x = theta + 0.5 * rng.normal(size=(300, 2))
        >>> prior = rng.normal(size=(500, 300, 2))
        >>> tarp(prior, theta, x).passed, tarp(prior, theta, x, references="random").passed
        (False, True)
    """
    seed, level = checked("tarp", seed, level)
    cases = Cases.of(posterior, theta, x, num_draws, seed, names, "tarp")
    # Truth and draws together: from their sum nobody could tell which one was the truth.
    pooled = np.concatenate([cases.theta[None], cases.draws])
    centre, scale = pooled.mean((0, 1)), pooled.std((0, 1))
    points = (_references(references, cases, np.random.default_rng([seed, 2]), centre, scale) - centre) / scale
    truth, draws = (cases.theta - centre) / scale, (cases.draws - centre) / scale
    _, values = cases.ranks(((truth - points) ** 2).sum(-1), ((draws - points) ** 2).sum(-1), seed)
    p_value = uniform_p_value(values)
    verdict = _verdict(values, p_value, level)
    return TARP(values, points * scale + centre, cases.num_draws, p_value, level, verdict)


def _references(given: Any, cases: Cases, rng: np.random.Generator, centre: Floats, scale: Floats) -> Floats:
    """Reference points ``[cases, d]``."""
    if given is None:
        given = "random" if cases.x is None else "data"
    if isinstance(given, str):
        noise = rng.normal(size=cases.theta.shape) * scale
        if given == "random":
            return centre + noise
        if given != "data":
            raise ConfigError(f"tarp: references are 'data', 'random', points or a function of x; got {given!r:.80}")
        if cases.x is None:
            raise ConfigError("tarp: references follow the data, and there are none: give x, or references='random'")
        return _regressed(cases, centre, noise)
    if callable(given) and not hasattr(given, "__array__"):
        given = given(cases.x)
    points = finite(given, "tarp: references")
    if points.shape != cases.theta.shape:
        raise ShapeError(f"tarp: references are {list(cases.theta.shape)} as theta is, got {list(points.shape)}")
    return points


def _regressed(cases: Cases, centre: Floats, noise: Floats) -> Floats:
    """A ridge regression of theta on the data, of each block of cases by those before it, with noise."""
    from scipy.special import ndtri
    from scipy.stats import rankdata

    x = flat_rows(cases.x)
    x = x[:, np.unique(np.linspace(0, x.shape[1] - 1, _MOST_FEATURES).astype(int))]
    # Normal scores of every column, so that no outlier rules the regression; they take nothing but the data.
    features = np.nan_to_num(ndtri((rankdata(x, axis=0, nan_policy="omit") - 0.5) / len(x)))
    points = centre + noise
    for rows in np.array_split(np.arange(len(x)), _NUM_BLOCKS)[1:]:
        known, target = features[: rows[0]], cases.theta[: rows[0]] - centre
        penalty = (1 + 0.01 * len(known)) * np.eye(x.shape[1])
        slopes = np.linalg.solve(known.T @ known + penalty, known.T @ target)
        left = np.sqrt(((target - known @ slopes) ** 2).mean(0) / np.maximum((target**2).mean(0), 1e-300))
        points[rows] = centre + features[rows] @ slopes + noise[rows] * left
    return points


def _verdict(values: Floats, p_value: float, level: float) -> str:
    told = f"p = {p_value:.2g}"
    if p_value > level:
        furthest = np.abs(_difference(values)).max()
        return (
            f"accurate, as far as {len(values):,} cases tell: expected coverage within {100 * furthest:.2g} % of "
            f"credibility ({told})"
        )
    departure = Departure.of(values)
    if abs(departure.shift) >= abs(departure.spread):
        near = departure.shift < 0
        way, seen = ("too wide, off, or blind to the data", "further from") if near else ("too narrow", "nearer to")
        seen = f"draws are {seen} the references than the truth is"
    else:
        near = departure.spread < 0
        way, seen = ("too wide", "hardly ever") if near else ("too narrow, or off", "too often")
        seen = f"the truth is {seen} nearer or further than most draws are"
    return f"{way}: {seen}; sbc tells in which parameter ({told})"


def _difference(values: Floats) -> Floats:
    points = evaluation_points(len(values))
    return np.searchsorted(np.sort(values), points, "right") / len(values) - points
