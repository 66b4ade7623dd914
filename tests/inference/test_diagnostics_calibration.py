"""Ranks, coverage and distances: right posteriors pass as often as they say, wrong ones are caught and named."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from linear_gaussian import KINDS, Posterior, log_likelihood, simulated

import sciflow as sf
from sciflow.errors import ConfigError, DataError, ShapeError
from sciflow.inference import expected_coverage, sbc, tarp

DIMS = 3
STATISTICS = ["log_prob", log_likelihood]
JUDGES = {
    "sbc": lambda posterior, theta, x, seed: sbc(posterior, theta, x, num_draws=50, seed=seed),
    "statistics": lambda posterior, theta, x, seed: sbc(
        posterior, theta, x, num_draws=50, seed=seed, statistics=STATISTICS
    ),
    "coverage": lambda posterior, theta, x, seed: expected_coverage(posterior, theta, x, num_draws=50, seed=seed),
    "central": lambda posterior, theta, x, seed: expected_coverage(
        posterior, theta, x, num_draws=50, seed=seed, regions="central"
    ),
    "tarp": lambda posterior, theta, x, seed: tarp(posterior, theta, x, num_draws=50, seed=seed),
    "random": lambda posterior, theta, x, seed: tarp(posterior, theta, x, num_draws=50, seed=seed, references="random"),
}
# Who has to see what, of 600 cases; who cannot, of the prior, whose ranks and regions are right.
CATCHES = {
    "too narrow": {"sbc", "statistics", "coverage", "central", "tarp", "random"},
    "too wide": {"sbc", "statistics", "coverage", "central", "tarp", "random"},
    "biased": {"sbc", "statistics"},
    "one too narrow": {"sbc", "statistics", "central"},
    "the prior": {"statistics", "tarp"},
    "one ignored": {"statistics", "tarp"},
}
BLIND = {"the prior": {"sbc", "coverage", "central", "random"}, "one ignored": {"sbc", "coverage", "central", "random"}}


@pytest.mark.parametrize("name", JUDGES)
def test_false_alarms_are_as_rare_as_the_level_says(name):
    p_values = []
    for seed in range(150):
        theta, x = simulated(100, DIMS, seed)
        p_values.append(JUDGES[name](Posterior(), theta, x, seed).p_value)
    for level in (0.05, 0.2):
        error = np.sqrt(level * (1 - level) / len(p_values))
        assert np.mean(np.array(p_values) <= level) <= level + 3 * error
    assert np.mean(np.array(p_values) <= 0.5) > 0.2


@pytest.mark.parametrize("kind", CATCHES)
def test_wrong_posteriors_are_caught(kind):
    theta, x = simulated(600, DIMS, 3)
    found = {name: judge(Posterior(kind), theta, x, 0) for name, judge in JUDGES.items()}
    assert {name for name in CATCHES[kind] if found[name].passed} == set()
    assert {name for name in BLIND.get(kind, ()) if found[name].p_value < 0.01} == set()


def test_verdicts_say_which_way():
    theta, x = simulated(2000, DIMS, 5)
    names = ["mass", "spin", "age"]
    said = {kind: sbc(Posterior(kind), theta, x, num_draws=100, names=names).verdict for kind in KINDS}
    assert said["right"].startswith("calibrated, as far as 2,000 cases tell")
    assert said["biased"].startswith("biased up in mass (by 0.49 standard deviations)")
    assert said["one too narrow"].startswith("too narrow in mass (should be 1.2 times as wide)")
    assert said["too wide"].startswith("too wide in ")
    assert {word in said["too wide"] for word in names} == {True}
    assert expected_coverage(Posterior("too narrow"), theta, x).verdict.startswith("too narrow, or off, in all param")
    assert expected_coverage(Posterior("too wide"), theta, x).verdict.startswith("too wide in all parameters")
    assert tarp(Posterior("too narrow"), theta, x).verdict.startswith("too narrow")
    assert tarp(Posterior("the prior"), theta, x).verdict.startswith("too wide, off, or blind to the data")
    down = sbc(-Posterior("biased").sample(100, -x, 0), theta, names=names)
    assert down.verdict.startswith("biased down in mass")


def test_coverage_is_what_the_widths_make_it():
    from scipy.stats import norm

    theta, x = simulated(10_000, 1, 6)
    found = expected_coverage(Posterior("too narrow"), theta, x, num_draws=400)
    expected = 2 * norm.cdf(0.8 * norm.ppf(0.95)) - 1
    assert found.coverage(0.9)[0] == pytest.approx(expected, abs=0.015)
    low, high = found.interval(0.9)[:, 0]
    assert low < expected < high
    central = expected_coverage(Posterior("too narrow"), theta, x, num_draws=400, regions="central")
    assert central.coverage([0.5, 0.9])[1, 0] == pytest.approx(expected, abs=0.015)


def test_ranks_of_ties_are_uniform():
    """Parameters and draws that are whole numbers from 0 to 2."""
    rng = np.random.default_rng(1)
    theta, draws = rng.integers(0, 3, (4000, 1)), rng.integers(0, 3, (39, 4000, 1))
    found = sbc(draws, theta)
    counts = np.bincount(found.ranks[:, 0], minlength=40)
    assert found.passed
    assert ((counts - 100) ** 2 / 100).sum() < 39 + 4 * np.sqrt(78)


class OneAtATime:
    """What is not amortised: asked for the posterior of one x after the other."""

    class _One:
        def __init__(self, x):
            self.x = x

        def sample(self, n, seed=None):
            return Posterior().sample(n, self.x, seed)

        def log_prob(self, theta):
            return Posterior().log_prob(theta, self.x)

    def posterior(self, x):
        return self._One(x)


def test_takes_posteriors_of_any_kind():
    theta, x = simulated(60, DIMS, 8)
    flow = sf.flows.NSF((DIMS,), context_shape=(DIMS,), num_transforms=1, hidden_features=(8,), seed=0)
    draws = Posterior().sample(40, x, 0)
    for posterior in (
        draws,
        draws.numpy(),
        Posterior(),
        OneAtATime(),
        lambda x, n, seed: Posterior()(x, n, seed),
        flow,
    ):
        found = sbc(posterior, theta, x, num_draws=40, seed=4)
        assert found.ranks.shape == (60, DIMS)
        assert 0 <= found.ranks.min() <= found.ranks.max() <= 40
        again = sbc(posterior, theta, x, num_draws=40, seed=4)
        np.testing.assert_array_equal(found.values, again.values)
        other = sbc(posterior, theta, x, num_draws=40, seed=5)
        assert (found.values != other.values).any()
    for posterior in (Posterior(), OneAtATime(), flow):
        found = expected_coverage(posterior, torch.from_numpy(theta), torch.from_numpy(x), num_draws=40)
        assert found.regions == "highest density"
    assert expected_coverage(draws, theta).regions == "central"
    # Data in parts, as a model with several contexts takes them.
    parts = {"a": x[:, :1], "b": x[:, 1:]}
    whole = lambda x, n, seed: Posterior()(np.concatenate([x["a"], x["b"]]), n, seed)  # noqa: E731
    np.testing.assert_array_equal(
        tarp(whole, theta, parts, num_draws=40).values, tarp(Posterior().__call__, theta, x, num_draws=40).values
    )


def test_references_may_be_points_or_a_function():
    theta, x = simulated(200, DIMS, 9)
    points = tarp(Posterior(), theta, x, references=x / 2)
    function = tarp(Posterior(), theta, x, references=lambda x: x / 2)
    np.testing.assert_array_equal(points.values, function.values)
    assert points.coverage([0.0, 1.0]).tolist() == [0, 1]
    x[3, 1], x[5, 0] = np.nan, np.inf  # Data that are missing leave the references finite.
    assert np.isfinite(tarp(Posterior().sample(50, theta, 0), theta, x).references).all()


def test_statistics_get_what_theta_is():
    theta, x = simulated(50, DIMS, 10)
    seen = []

    def kinetic(theta, x):
        seen.append(type(theta))
        return (theta**2).sum(-1)

    found = sbc(Posterior(), torch.from_numpy(theta), torch.from_numpy(x), num_draws=30, statistics=kinetic)
    assert found.names == ("theta 0", "theta 1", "theta 2", "kinetic")
    sbc(Posterior(), theta, x, num_draws=30, statistics={"energy": kinetic})
    assert seen == [torch.Tensor, torch.Tensor, np.ndarray, np.ndarray]


def test_tells_itself_in_one_line_and_draws_itself():
    theta, x = simulated(100, 20, 11)
    for found in (
        sbc(Posterior("too narrow"), theta, x, num_draws=50, statistics="log_prob"),
        expected_coverage(Posterior(), theta, x, num_draws=50),
        expected_coverage(Posterior(), theta, x, num_draws=50, regions="central"),
        tarp(Posterior(), theta, x, num_draws=50),
    ):
        assert "\n" not in repr(found)
        assert found.verdict in repr(found)
        figure = found.plot()
        assert found.verdict in figure.get_label()
        assert figure.axes


THETA, X = simulated(40, 2, 12)
DRAWS = Posterior().sample(30, X, 0).numpy()
GAP = np.where(np.arange(30)[:, None, None] == 3, np.where(np.arange(40)[:, None] == 7, np.nan, DRAWS), DRAWS)


@pytest.mark.parametrize(
    ("error", "given", "options", "message"),
    [
        (ShapeError, (DRAWS, THETA[:, 0]), {}, r"theta must be \[cases, d\], got \[40\]; for one parameter, theta\["),
        (ShapeError, (DRAWS[..., :1], THETA), {}, r"\[num_draws, 40 cases, 2 parameters\].* got \[30, 40, 1\]"),
        (ShapeError, (DRAWS[:, :-1], THETA), {}, r"got \[30, 39, 2\]"),
        (ShapeError, (DRAWS.swapaxes(0, 1), THETA), {}, "the draws come first: draws.swapaxes"),
        (ShapeError, (DRAWS, THETA, X[:-1]), {}, "40 cases in theta, 39 in x"),
        (DataError, (GAP, THETA), {}, "1 of 1,200 draws are not finite, first draw 3 of case 7"),
        (DataError, (DRAWS, np.where(THETA[1, 1] == THETA, np.nan, THETA)), {}, r"1 of 80 .* first at \[1, 1\]"),
        (DataError, (DRAWS[:, :5], THETA[:5]), {}, "5 cases say next to nothing; simulate at least 20"),
        (DataError, (DRAWS, THETA * [1, 0]), {"names": ["a", "b"]}, "b never varies"),
        (ConfigError, (DRAWS[:5], THETA), {}, "5 draws a case are too few: give at least 20"),
        (ConfigError, (Posterior(), THETA, X), {"num_draws": 5}, "num_draws must be 20 to"),
        (ConfigError, (Posterior(), THETA), {}, "give the x of every case"),
        (ConfigError, (3.0, THETA, X), {}, "float is no posterior; give draws"),
        (ConfigError, (OneAtATime().posterior(X[0]), THETA, X), {}, "one posterior only"),
        (ConfigError, (DRAWS, THETA), {"level": 0.0}, "level must be above 0"),
        (ConfigError, (DRAWS, THETA), {"seed": -1}, "seed must be 0 to"),
        (ConfigError, (DRAWS, THETA), {"names": ["a", "a"]}, "2 different texts"),
    ],
)
@pytest.mark.parametrize("judge", [sbc, expected_coverage, tarp])
def test_refuses_what_cannot_be_judged(judge, error, given, options, message):
    with pytest.raises(error, match=message):
        judge(*given, **options)


def test_refuses_what_one_of_them_cannot_do():
    with pytest.raises(ConfigError, match="need log p"):
        expected_coverage(DRAWS, THETA, X, regions="highest density")
    with pytest.raises(ConfigError, match="regions"):
        expected_coverage(DRAWS, THETA, regions="smallest")
    with pytest.raises(ConfigError, match="log_prob is asked for"):
        sbc(DRAWS, THETA, statistics="log_prob")
    with pytest.raises(ConfigError, match="'logp' is none"):
        sbc(DRAWS, THETA, statistics="logp")
    with pytest.raises(ShapeError, match=r"statistic sums of theta \[1, 40, 2\]"):
        sbc(DRAWS, THETA, statistics={"sums": lambda theta, x: theta.sum()})
    with pytest.raises(ConfigError, match="references are 'data'"):
        tarp(DRAWS, THETA, references="prior")
    with pytest.raises(ConfigError, match="give x, or references='random'"):
        tarp(DRAWS, THETA, references="data")
    with pytest.raises(ShapeError, match=r"references are \[40, 2\]"):
        tarp(DRAWS, THETA, references=THETA[:3])
