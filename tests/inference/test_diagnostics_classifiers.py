"""Classifiers find what there is to be found, and replicated data what does not fit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from linear_gaussian import VARIANCE, Posterior, simulated
from scipy.stats import norm

from sciflow.errors import ConfigError, DataError, ShapeError
from sciflow.inference import c2st, local_c2st, posterior_predictive


class TestC2ST:
    def test_is_the_published_protocol(self):
        """sbibm's settings, written out again."""
        from sklearn.model_selection import KFold, cross_val_score
        from sklearn.neural_network import MLPClassifier

        rng = np.random.default_rng(0)
        p, q = torch.from_numpy(rng.normal(size=(2, 300, 2)) + np.array([[[0, 0]], [[1, 0]]])).float()
        rows = torch.cat([(p - p.mean(0)) / p.std(0), (q - p.mean(0)) / p.std(0)]).numpy()
        classifier = MLPClassifier((20, 20), activation="relu", max_iter=10_000, solver="adam", random_state=1)
        folds = KFold(n_splits=5, shuffle=True, random_state=1)
        scores = cross_val_score(classifier, rows, np.repeat([0, 1], 300), cv=folds, scoring="accuracy")
        assert c2st(p, q).value == pytest.approx(scores.mean(), abs=0.01)

    def test_same_and_shifted_distributions(self):
        rng = np.random.default_rng(1)
        p, q = rng.normal(size=(2, 2000, 2))
        same = c2st(p, q)
        assert same.value == pytest.approx(0.5, abs=4 * same.error)
        assert same.passed
        found = c2st(p, q + np.array([1.0, 0.0]), names=["mass", "spin"])
        assert found.value == pytest.approx(norm.cdf(0.5), abs=4 * found.error)  # the Bayes classifier's
        assert "in the second sample mass is higher by" in found.verdict
        assert "spin" not in found.verdict
        assert float(found) == found.value
        assert found.plot().axes

    def test_false_alarms(self):
        rng = np.random.default_rng(2)
        p_values = [c2st(*rng.normal(size=(2, 60, 1)), seed=seed).p_value for seed in range(20)]
        assert np.mean(np.array(p_values) <= 0.05) <= 0.05 + 4 * np.sqrt(0.05 * 0.95 / 20)

    @pytest.mark.parametrize(
        ("error", "p", "q", "message"),
        [
            (ShapeError, np.zeros((90, 2)), np.zeros((90, 3)), "with the same d"),
            (ShapeError, np.zeros(90), np.zeros(90), r"draws\[:, None\]"),
            (ShapeError, np.zeros((90, 2)), np.zeros((80, 2)), "take as many of each"),
            (DataError, np.zeros((9, 2)), np.zeros((9, 2)), "too few to train on"),
            (DataError, np.zeros((90, 2)), np.zeros((90, 2)), "theta 0, theta 1 never varies"),
            (DataError, np.full((90, 1), np.nan), np.zeros((90, 1)), "first sample: 90 of 90 values are not finite"),
        ],
    )
    def test_refuses(self, error, p, q, message):
        with pytest.raises(error, match=message):
            c2st(p, q)


class TestLocalC2ST:
    def test_false_alarms_are_as_rare_as_the_level_says(self):
        p_values = []
        for seed in range(120):
            theta, x = simulated(150, 2, seed)
            p_values.append(local_c2st(Posterior(), theta, x, x[0] * 0 + 0.3, num_null=59, seed=seed).p_value)
        for level in (0.05, 0.2):
            assert np.mean(np.array(p_values) <= level) <= level + 3 * np.sqrt(level * (1 - level) / 120)
        assert np.mean(np.array(p_values) <= 0.5) > 0.3

    @pytest.mark.parametrize(
        ("kind", "said"),
        [
            ("too narrow", "too narrow in"),
            ("too wide", "too wide in"),
            ("biased", "biased up in theta 0"),
            ("the prior", "biased down in theta 0"),
            ("one ignored", "biased down in theta 0"),
        ],
    )
    def test_catches(self, kind, said):
        theta, x = simulated(3000, 3, 4)
        # The first datum is high: a parameter that does not follow it is too low.
        found = local_c2st(Posterior(kind), theta, x, np.array([0.6, 0.0, 0.0]))
        assert not found.passed
        assert said in found.verdict
        assert found.weights.mean() == pytest.approx(1)

    def test_finds_where_it_is_wrong(self):
        """A posterior that is right on one side only."""

        def half(x, n, seed):
            shift = 0.6 * np.sqrt(VARIANCE) * (np.asarray(x)[..., :1] > 0)
            return Posterior().sample(n, x, seed).numpy() + shift

        theta, x = simulated(4000, 1, 5)
        wrong, right = (local_c2st(half, theta, x, [at]) for at in (0.5, -0.5))
        assert wrong.p_value < 0.01
        assert right.statistic < wrong.statistic / 3

    def test_same_seed_same_result_and_ready_draws(self):
        theta, x = simulated(200, 2, 6)
        first, again = (local_c2st(Posterior(), theta, x, x[0], num_null=39, seed=3) for _ in range(2))
        assert (first.statistic, first.p_value) == (again.statistic, again.p_value)
        np.testing.assert_array_equal(first.null, again.null)
        draws = Posterior().sample(20, x, 0)
        ready = local_c2st(draws, theta, x, x[0], draws_observed=Posterior().sample(200, x[0], 1), num_null=39)
        assert ready.plot().axes
        with pytest.raises(ConfigError, match="draws_observed="):
            local_c2st(draws, theta, x, x[0])
        with pytest.raises(ShapeError, match="one x is of 2 numbers, x_observed of 1"):
            local_c2st(draws, theta, x, x[0, :1], draws_observed=draws[:, 0])
        with pytest.raises(DataError, match="50 cases are too few"):
            local_c2st(draws[:, :50], theta[:50], x[:50], x[0], draws_observed=draws[:, 0])
        with pytest.raises(ConfigError, match="give the x of every case"):
            local_c2st(Posterior(), theta, None, x[0])


def simulator(theta):
    return theta + VARIANCE**0.5 * torch.randn(theta.shape, dtype=theta.dtype)


class TestPosteriorPredictive:
    def test_prior_predictive_p_values_hold_their_level(self):
        """Of draws of the prior, the data are exchangeable with replicated ones: p-values are exact."""
        found = []
        for seed in range(150):
            theta, x = simulated(200, 3, seed)
            found.append(posterior_predictive(torch.from_numpy(theta[1:]), simulator, x[0], seed=seed))
        for p_values in ([each.p_value for each in found], [each.distance_p_value for each in found]):
            assert np.mean(np.array(p_values) <= 0.1) <= 0.1 + 3 * np.sqrt(0.09 / 150)
        distances = np.array([each.distance_p_value for each in found])
        assert np.mean(distances <= 0.5) == pytest.approx(0.5, abs=0.13)

    def test_catches_data_that_cannot_be(self):
        _, x = simulated(50, 4, 1)
        draws = Posterior().sample(500, x[0], 0)
        assert posterior_predictive(draws, simulator, x[0]).passed
        odd = posterior_predictive(draws, simulator, x[0] + [2.0, 0, 0, 0])
        assert "x[0] is above what is predicted" in odd.verdict
        assert odd.plot().axes
        # Each number by itself is as it should be, and together they are not.
        common = lambda theta: theta[:, :1] + 0.01 * torch.randn(len(theta), 4, dtype=theta.dtype)  # noqa: E731
        apart = posterior_predictive(draws, common, x[0] * 0 + draws[:, 0].mean().item() + [0.15, -0.15, 0.15, -0.15])
        assert apart.distance_p_value < 0.01
        assert "do not go together" in apart.verdict

    def test_says_so_where_draws_are_too_few_to_tell(self):
        """Of a hundred draws, no one of five statistics is called odd: being first or last of them is not so rare."""
        rng = np.random.default_rng(0)
        draws, x = 0.01 * rng.normal(size=(99, 1)), 0.1 + rng.normal(size=4000)

        def simulate(theta, rng):
            return theta + rng.normal(size=(len(theta), 4000))

        few = posterior_predictive(draws, simulate, x)
        assert few.verdict.startswith("too few draws to tell: mean is beyond all that is predicted")
        assert few.verdict.endswith("take 399 draws or more")
        assert not posterior_predictive(np.tile(draws, (5, 1)), simulate, x).passed

    def test_same_seed_same_result_and_leaves_generators_alone(self):
        draws = np.random.default_rng(0).normal(size=(100, 2))
        x = np.zeros(30)

        def of_numpy(theta):
            return theta[:, :1] + np.random.normal(size=(len(theta), 30))

        torch.manual_seed(0)
        np.random.seed(0)
        before = torch.get_rng_state(), np.random.get_state()[1].copy()
        first, again, other = (posterior_predictive(draws, of_numpy, x, seed=seed) for seed in (1, 1, 2))
        np.testing.assert_array_equal(first.x, again.x)
        assert (first.x != other.x).any()
        assert torch.equal(before[0], torch.get_rng_state())
        np.testing.assert_array_equal(before[1], np.random.get_state()[1])
        assert first.names == ("mean", "standard deviation", "smallest", "median", "largest")

    def test_simulators_get_the_randomness_they_ask_for(self):
        draws, x = np.random.default_rng(0).normal(size=(100, 2)), np.zeros(2)
        asking = (
            lambda theta, seed: theta + np.random.default_rng(seed).normal(size=theta.shape),
            lambda theta, rng: theta + rng.normal(size=theta.shape),
            lambda theta, generator: theta + torch.randn(theta.shape, generator=generator).numpy(),
        )
        for simulate in asking:
            first, again = (posterior_predictive(draws, simulate, x, seed=3) for _ in range(2))
            np.testing.assert_array_equal(first.x, again.x)

    def test_takes_models_and_statistics(self):
        _, x = simulated(50, 3, 2)
        found = posterior_predictive(
            Posterior(), simulator, x[0], statistics={"sum": lambda x: x.sum(-1)}, num_draws=100
        )
        assert found.names == ("sum",)
        assert found.x.shape == (100, 3)

    def test_refuses(self):
        draws, x = np.random.default_rng(0).normal(size=(100, 2)), np.zeros(2)
        same = lambda theta: theta  # noqa: E731
        with pytest.raises(ShapeError, match=r"must make data \[100, 3\].* got \[100, 2\]"):
            posterior_predictive(draws, same, np.zeros(3))
        with pytest.raises(DataError, match="simulations: 200 of 200 values are not finite"):
            posterior_predictive(draws, lambda theta: theta * np.nan, x)
        with pytest.raises(DataError, match=r"simulator fails on 100 draws.*IndexError"):
            posterior_predictive(draws, lambda theta: theta[:, 7], x)
        with pytest.raises(DataError, match="x_observed: 1 of 2"):
            posterior_predictive(draws, same, [0.0, np.inf])
        with pytest.raises(ShapeError, match=r"statistic all of 101 data sets is \[101\]"):
            posterior_predictive(draws, same, x, statistics={"all": lambda x: x})
        with pytest.raises(ConfigError, match="'mean' is no function"):
            posterior_predictive(draws, same, x, statistics={"mean": 3})
        with pytest.raises(ConfigError, match="5 draws are too few"):
            posterior_predictive(draws[:5], same, x)
