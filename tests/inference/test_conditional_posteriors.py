"""Posteriors of a simulator are those of Bayes' rule, by every method."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from conjugate import PRIOR, moments, simulate
from torch.distributions import Beta, Exponential, Independent, MultivariateNormal, Normal, Uniform

import sciflow as sf
from sciflow.errors import ConfigError, DataError, ShapeError
from sciflow.inference import ConditionalPosterior, fit_conditional

QUICK = {"progress": False, "members": 1, "compile": "never"}
SMALL = {"name": "maf", "num_transforms": 2, "hidden_features": (32, 32)}
X = torch.tensor([1.5, -1.0, 2.0])
WAYS = {
    "npe": {"density": SMALL, "max_steps": 350, "learning_rate": 5e-3},
    "fmpe": {
        "density": {"name": "continuousflow", "network": {"mlp": {"hidden_features": (48, 48)}}},
        "max_steps": 900,
        "learning_rate": 5e-3,
    },
    "npse": {
        "density": {"name": "diffusion", "context_dropout": 0.0, "network": {"mlp": {"hidden_features": (48, 48)}}},
        "max_steps": 700,
        "learning_rate": 5e-3,
    },
    "nle": {"density": SMALL, "max_steps": 350, "learning_rate": 5e-3},
}


@pytest.fixture(scope="module", params=WAYS)
def fitted(request) -> ConditionalPosterior:
    """A linear Gaussian simulator by each method."""
    return fit_conditional(
        prior=PRIOR,
        simulator=simulate,
        num_simulations=3000,
        method=request.param,
        batch_size=256,
        validate_every=1000,
        seed=0,
        **{**QUICK, **WAYS[request.param]},
    )


class TestEveryMethod:
    """Against the conjugate posterior."""

    def test_moments_are_those_of_the_conjugate_posterior(self, fitted):
        mean, covariance = moments(X)
        draws = fitted.posterior(X).sample(4000, seed=0)
        deviations = covariance.diagonal().sqrt()
        assert ((draws.mean(0) - mean).abs() / deviations).max() < 0.25
        assert torch.allclose(draws.std(0) / deviations, torch.ones(2), atol=0.2)
        correlation = covariance[0, 1] / deviations.prod()
        assert abs(float(torch.corrcoef(draws.T)[0, 1] - correlation)) < 0.2

    def test_log_prob_is_that_of_the_conjugate_posterior(self, fitted):
        mean, covariance = moments(X)
        truth = MultivariateNormal(mean, covariance)
        theta = truth.sample((100,))
        off = fitted.posterior(X).log_prob(theta) - truth.log_prob(theta)
        assert off.abs().mean() < 0.35

    def test_many_observations_at_once(self, fitted):
        x = simulate(PRIOR.sample((3,))).reshape(3, 1, 3)
        draws = fitted.sample(5, x, seed=0)
        assert draws.shape == (5, 3, 1, 2)
        assert fitted.log_prob(draws, x).shape == (5, 3, 1)
        assert fitted.log_prob(draws[0], x).shape == (3, 1)
        assert torch.isfinite(fitted.log_prob(draws, x)).all()

    def test_same_seed_same_draws(self, fitted):
        posterior = fitted.posterior(X)
        assert torch.equal(posterior.sample(20, seed=3), posterior.sample(20, seed=3))
        assert not torch.equal(posterior.sample(20, seed=3), posterior.sample(20, seed=4))
        torch.manual_seed(0)
        first = posterior.sample(5)
        assert not torch.equal(first, posterior.sample(5))

    def test_survives_saving(self, fitted, tmp_path):
        again = sf.inference.load_conditional(fitted.save(tmp_path / "found"), PRIOR)
        theta = PRIOR.sample((4,))
        assert repr(again) == repr(fitted)
        assert torch.equal(again.posterior(X).log_prob(theta), fitted.posterior(X).log_prob(theta))
        assert torch.equal(again.sample(3, X, seed=0), fitted.sample(3, X, seed=0))
        assert again.posterior(X).surprise == fitted.posterior(X).surprise

    def test_says_what_it_is(self, fitted):
        assert fitted.method in repr(fitted)
        assert "3,000 simulations" in repr(fitted)
        assert "0 failed" in repr(fitted)


@pytest.mark.parametrize("method", ["fmpe", "npse"])
def test_what_is_linear_and_gaussian_need_not_be_learned(method):
    found = fit_conditional(
        prior=PRIOR, simulator=simulate, num_simulations=1500, method=method, max_steps=1, progress=False, seed=0
    )
    assert len(found.densities) == 2
    mean, covariance = moments(X)
    draws = found.posterior(X).sample(2000, seed=0)
    assert ((draws.mean(0) - mean).abs() / covariance.diagonal().sqrt()).max() < 0.15
    assert torch.allclose(torch.cov(draws.T), covariance, atol=0.15 * float(covariance.diagonal().max()))


@pytest.fixture(scope="module")
def npe() -> ConditionalPosterior:
    """One that is fitted for some steps."""
    return fit_conditional(
        prior=PRIOR, simulator=simulate, num_simulations=600, density=SMALL, max_steps=60, seed=1, **QUICK
    )


class TestOneObservation:
    """What ``posterior(x)`` gives."""

    def test_map_is_where_the_density_is_highest(self, npe):
        posterior = npe.posterior(X)
        best = posterior.map()
        assert posterior.log_prob(best) >= posterior.log_prob(posterior.sample(2000, seed=5)).max()

    def test_arviz_tree_has_its_groups(self, npe):
        tree = npe.posterior(X).to_arviz(50, seed=0)
        assert set(tree.children) == {"posterior", "observed_data", "sample_stats"}
        assert dict(tree["posterior"].sizes) == {"chain": 1, "draw": 50, "parameter": 2}
        assert np.array_equal(tree["observed_data"].x.values, X.numpy())
        assert np.isfinite(tree["sample_stats"].lp.values).all()

    def test_an_observation_unlike_the_simulations_is_warned_of(self, npe):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert npe.posterior(X).surprise > 0.05
        with pytest.warns(UserWarning, match="unlike the simulations"):
            assert npe.posterior(X + 100).surprise < 0.005

    def test_no_draws_are_no_trouble(self, npe):
        assert npe.posterior(X).sample(0).shape == (0, 2)

    def test_p_values_of_simulations_are_uniform(self, npe):
        """As far as 600 of them, to which others are compared, tell."""
        torch.manual_seed(0)
        p = npe.surprise.p_value(simulate(PRIOR.sample((2000,))))
        for level in (0.05, 0.2, 0.5):
            assert abs(float((p <= level).double().mean()) - level) < 0.08

    def test_what_off_manifold_is_shows_though_each_number_is_ordinary(self):
        theta = torch.randn(1000, 1)
        x = torch.cat([theta + 0.01 * torch.randn(1000, 1), theta + 0.01 * torch.randn(1000, 1)], 1)
        found = fit_conditional((theta, x), density=SMALL, max_steps=10, **QUICK)
        with pytest.warns(UserWarning, match="unlike the simulations"):
            found.posterior([1.0, -1.0])

    @pytest.mark.parametrize(
        ("x", "error", "words"),
        [
            ([1.0, 2.0], ShapeError, r"observations \[\*batch, 3\] expected; got \[2\]"),
            ([[1.0, 2.0, 3.0]] * 2, ShapeError, "one observation"),
            ([1.0, float("nan"), 2.0], DataError, "missing or infinite"),
            ("abc", DataError, "numbers"),
        ],
    )
    def test_what_is_no_observation_is_refused(self, npe, x, error, words):
        with pytest.raises(error, match=words):
            npe.posterior(x)

    def test_what_are_no_parameters_is_refused(self, npe):
        with pytest.raises(ShapeError, match=r"parameters \[\*batch, 2\] expected"):
            npe.posterior(X).log_prob(torch.zeros(4, 3))
        with pytest.raises(ShapeError, match="do not fit"):
            npe.log_prob(torch.zeros(4, 2), torch.zeros(3, 3))
        with pytest.raises(ConfigError, match="number of draws"):
            npe.posterior(X).sample(-1)


class TestBounds:
    """Parameters stay where the prior can be."""

    def test_bounded_parameters_stay_within_their_bounds(self):
        prior = Independent(Uniform(torch.tensor([0.0, -5.0]), torch.tensor([1.0, 3.0])), 1)
        found = fit_conditional(
            prior=prior,
            simulator=lambda t: t + torch.randn_like(t),
            num_simulations=500,
            max_steps=60,
            density=SMALL,
            **QUICK,
        )
        posterior = found.posterior([0.0, 2.0])
        draws = posterior.sample(5000, seed=0)
        assert (draws > torch.tensor([0.0, -5.0])).all()
        assert (draws < torch.tensor([1.0, 3.0])).all()
        assert 0 < posterior.leakage.share < 1
        assert torch.isneginf(posterior.log_prob([[0.5, 4.0], [-0.1, 0.0]])).all()
        # It integrates to one over the box.
        x, y = torch.meshgrid(torch.arange(0.005, 1, 0.01), torch.arange(-4.96, 3, 0.08), indexing="ij")
        theta = torch.stack((x, y), -1)
        density = posterior.log_prob(theta).exp()
        assert float(density.mean()) * 8 == pytest.approx(1, abs=0.03)
        # Of many observations at once likewise, by fewer draws.
        many = found.log_prob(theta[50, 50].expand(150, 2), torch.tensor([0.0, 2.0]).expand(150, 2))
        assert torch.allclose(many.exp(), density[50, 50], rtol=0.05)

    def test_half_lines_do_not_leak(self):
        found = fit_conditional(
            prior=Exponential(torch.ones(2)),
            simulator=lambda t: t + torch.randn_like(t),
            num_simulations=500,
            max_steps=10,
            **QUICK,
        )
        posterior = found.posterior([0.0, 0.1])
        assert posterior.leakage.share == posterior.leakage.error == 0
        assert (posterior.sample(1000, seed=0) > 0).all()

    def test_what_leaks_is_cut_off_and_the_rest_renormalised(self):
        prior = Independent(Uniform(torch.zeros(1), torch.ones(1)), 1)
        density = {"name": "nsf", "num_transforms": 1, "hidden_features": (16,), "preprocess": "standardize"}
        found = fit_conditional(
            prior=prior,
            simulator=lambda t: t + torch.randn_like(t),
            num_simulations=500,
            density=density,
            max_steps=10,
            **QUICK,
        )
        posterior = found.posterior([1.2])
        assert 0.02 < posterior.leakage.share < 0.5
        assert 0 < posterior.leakage.error < 0.01
        draws = posterior.sample(3000, seed=0)
        assert ((draws >= 0) & (draws <= 1)).all()
        grid = torch.linspace(0, 1, 2001)
        density = posterior.log_prob(grid[:, None]).exp()
        assert float(torch.trapezoid(density, grid.double())) == pytest.approx(
            1, abs=4 * posterior.leakage.error + 1e-3
        )
        assert torch.isneginf(posterior.log_prob([[1.1]])).all()

    @pytest.mark.parametrize(
        ("prior", "steps"),
        [
            (Beta(torch.tensor([2.0]), torch.tensor([3.0])), [{"logit": {"low": 0.0, "high": 1.0}}]),
            (Exponential(torch.ones(2)), [{"log": {"low": 0.0}}]),
            (Normal(torch.zeros(2), 1.0), []),
        ],
        ids=["beta", "exponential", "normal"],
    )
    def test_the_support_says_which_bijection_opens_it(self, prior, steps):
        from sciflow.inference.conditional.prior import Prior

        support = Prior(prior).support
        assert support.opening == [*steps, "standardize"]
        assert support.is_opened
        # An interval stays straight to densities, and is cut.
        assert support.preprocess == [*(step for step in steps if "log" in step), "standardize"]


class TestRounds:
    """Later rounds look where the posterior is."""

    def test_truncated_rounds_agree_with_the_conjugate_posterior(self):
        found = fit_conditional(
            prior=PRIOR,
            simulator=simulate,
            num_simulations=3000,
            rounds=2,
            x_observed=X,
            density=SMALL,
            max_steps=300,
            batch_size=256,
            learning_rate=5e-3,
            validate_every=150,
            seed=0,
            **QUICK,
        )
        mean, covariance = moments(X)
        draws = found.posterior(X).sample(4000, seed=0)
        deviations = covariance.diagonal().sqrt()
        assert ((draws.mean(0) - mean).abs() / deviations).max() < 0.25
        assert torch.allclose(draws.std(0) / deviations, torch.ones(2), atol=0.2)
        with pytest.warns(UserWarning, match="another observation"):
            found.posterior(X + 0.3)

    def test_the_truncated_prior_is_the_prior_within_the_region(self, npe):
        from sciflow.inference.conditional.prior import Prior
        from sciflow.inference.conditional.truncated import Truncated

        prior = Prior(PRIOR)
        cut = Truncated.of(prior, npe.known, X, 1e-2, 0)
        theta = cut.sample(2000, 0)
        assert cut.contains(theta).all()
        assert theta.shape == (2000, 2)
        assert torch.equal(theta, cut.sample(2000, 0))
        # By weights of the posterior's own draws it is the same distribution.
        other = torch.cat([cut._of_posterior(500, seed) for seed in range(4)])
        assert torch.allclose(other.mean(0), theta.mean(0), atol=0.15)
        assert torch.allclose(other.std(0), theta.std(0), atol=0.15)

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            ({"rounds": 2}, "give x_observed"),
            ({"rounds": 0, "x_observed": X}, "1 or more"),
            ({"rounds": 1, "x_observed": X}, "does nothing"),
            ({"rounds": 2, "x_observed": X, "method": "nle"}, "not with method nle"),
        ],
    )
    def test_what_does_not_go_together_is_refused(self, arguments, words):
        with pytest.raises(ConfigError, match=words):
            fit_conditional(prior=PRIOR, simulator=simulate, **arguments)
