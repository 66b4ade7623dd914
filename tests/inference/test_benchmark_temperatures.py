"""The density of daily temperatures is that of a Gaussian process, and its forecasts are the conditionals of one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from inference_temperatures import covered, statistics
from inference_temperatures_model import SKIPPED, Model, Series
from scipy.linalg import toeplitz
from scipy.stats import multivariate_normal, norm

from sciflow.inference import Parameters

DAYS = 60
BETA = torch.tensor([281.0, 0.4, -8.0, -2.0, 0.5, 0.2], dtype=torch.float64)
PHI = {1: torch.tensor(0.8, dtype=torch.float64), 3: torch.tensor([0.8, -0.3, 0.2], dtype=torch.float64)}
SIGMA = torch.tensor(1.7, dtype=torch.float64)


def series(days: int = DAYS) -> Series:
    rng = np.random.default_rng(0)
    return Series(282 + rng.normal(size=days).cumsum() / 3, np.arange(days) + 250)


def covariance(model: Model, days: int) -> np.ndarray:
    """Of a stationary autoregression, from its noise long before."""
    lags = model.lags(PHI[model.order]).numpy()
    response = np.zeros(2000)
    response[0] = 1
    for t in range(1, len(response)):
        response[t] = sum(lags[k] * response[t - 1 - k] for k in range(min(t, len(lags))))
    return toeplitz([float(SIGMA) ** 2 * response[: len(response) - k] @ response[k:] for k in range(days)])


@pytest.mark.parametrize("order", [1, 3])
class TestAutoregression:
    def test_the_density_is_that_of_days_given_the_first(self, order: int):
        model, given = Model(order, seasonal=False), series()
        mean, cov = given.design @ BETA.numpy(), covariance(model, DAYS)
        joint = multivariate_normal(mean, cov).logpdf(given.value)
        first = multivariate_normal(mean[:SKIPPED], cov[:SKIPPED, :SKIPPED]).logpdf(given.value[:SKIPPED])
        prior = norm([283, 0, 0, 0, 0, 0], [5, 1, 10, 10, 3, 3]).logpdf(BETA.numpy()).sum()
        prior += norm(0, 5).logpdf(float(SIGMA)) + np.log(2) - order * np.log(2)
        found = model.log_density(given)(beta=BETA, phi=PHI[order], sigma=SIGMA)
        assert float(found) == pytest.approx(joint - first + prior, abs=1e-6)

    @pytest.mark.parametrize("ahead", [1, 2, 7])
    def test_forecasts_are_conditionals(self, order: int, ahead: int):
        model, given = Model(order, seasonal=False), series()
        draws = {"beta": BETA[None], "phi": PHI[order][None], "sigma": SIGMA[None]}
        mean, std = model.forecasts(draws, given, 20, ahead)
        assert mean.shape == std.shape == (1, DAYS - 20)
        centre, cov = given.design @ BETA.numpy(), covariance(model, DAYS)
        for day in (20, 33, DAYS - 1):
            past = np.arange(day - ahead + 1)
            gain = np.linalg.solve(cov[np.ix_(past, past)], cov[past, day])
            expected = centre[day] + gain @ (given.value - centre)[past]
            assert mean[0, day - 20].item() == pytest.approx(expected, abs=1e-6)
            assert std[0, day - 20].item() ** 2 == pytest.approx(cov[day, day] - gain @ cov[past, day], abs=1e-6)

    def test_partial_autocorrelations_are_those_of_the_covariance(self, order: int):
        """The last coefficient of the best forecast from so many days is the partial autocorrelation."""
        model = Model(order, seasonal=False)
        cov = covariance(model, 6)
        partial = PHI[order].reshape(-1).numpy()
        for lag in range(1, 5):
            best = np.linalg.solve(cov[:lag, :lag], cov[lag, :lag])
            assert best[0] == pytest.approx(partial[lag - 1] if lag <= order else 0, abs=1e-6)


def test_noise_of_the_season_is_that_of_every_day():
    """Against the sum over days, one after another."""
    model, given = Model(3, seasonal=True), series(900)
    season = torch.tensor([0.1, 0.05, -0.08, 0.02], dtype=torch.float64)
    rest = given.value - given.design @ BETA.numpy()
    lags = model.lags(PHI[3]).numpy()
    log_std = model.log_std(SIGMA, season).numpy()[given.season]
    steps = np.array([rest[t] - lags @ rest[t - 3 : t][::-1] for t in range(3, 900)])
    likelihood = norm(0, np.exp(log_std[3:])).logpdf(steps).sum()
    plain = Model(3, seasonal=False).log_density(given)(beta=BETA, phi=PHI[3], sigma=SIGMA)
    expected = likelihood + norm(0, 0.3).logpdf(season).sum() - norm(0, float(SIGMA)).logpdf(steps).sum() + plain.item()
    found = model.log_density(given)(beta=BETA, phi=PHI[3], sigma=SIGMA, season=season)
    assert found.item() == pytest.approx(expected, abs=1e-6)
    many = {"beta": BETA, "phi": PHI[3], "sigma": SIGMA, "season": season}
    batch = {name: value.expand(4, 5, *value.shape) for name, value in many.items()}
    torch.testing.assert_close(model.log_density(given)(**batch), found.expand(4, 5))


def test_simulated_days_have_the_statistics_that_they_are_made_with():
    model, given = Model(1, seasonal=True), series(4000)
    season = torch.tensor([0.2, 0.0, 0.0, 0.0], dtype=torch.float64)
    draws = {"beta": BETA, "phi": PHI[1], "sigma": SIGMA, "season": season}
    draws = {name: value.expand(20, *value.shape) for name, value in draws.items()}
    x = model.simulate(draws, given, torch.Generator().manual_seed(0))
    found = {name: function(x).mean().item() for name, function in statistics(given).items()}
    assert found["correlation, 1 day"] == pytest.approx(0.8, abs=0.02)
    assert found["noise, winter / summer"] == pytest.approx(np.exp(0.4), rel=0.1)
    # Of variances that differ: I_0(2a) over I_0(a)^2, with a = 0.4, is nearly exp(0.08).
    assert found["kurtosis of noise"] == pytest.approx(3 * np.exp(0.08), abs=0.15)
    assert set(Parameters(model.parameters)) == set(draws)


def test_coverage_and_its_error():
    rank = np.random.default_rng(0).uniform(size=3000)
    share, error = covered(rank, 0.8)
    assert abs(share - 0.8) < 4 * error
    assert error == pytest.approx((0.16 / 3000) ** 0.5, rel=0.3)
