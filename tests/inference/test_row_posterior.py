"""Posteriors given rows of a store: without bias, and against what is known in closed form."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from torch import Tensor

import sciflow as sf
from sciflow.errors import ConfigError, DataError, DerivativeError, ShapeError, StoreError
from sciflow.inference import fit_posterior
from sciflow.inference.variational.row_posterior import RowPosterior

N, D, NOISE = 20_000, 3, 1.5
QUICK: dict[str, Any] = {
    "num_particles": 256,
    "max_steps": 50,
    "num_draws": 2000,
    "progress": False,
    "family": "gaussian",
}


def log_prior(beta: Tensor) -> Tensor:
    return -0.5 * beta.square().sum(-1) - 0.5 * D * math.log(math.tau)


def linear(rows: Tensor, beta: Tensor) -> Tensor:
    off = (rows[:, -1] - rows[:, :-1] @ beta) / NOISE
    return -0.5 * off.square() - math.log(NOISE) - 0.5 * math.log(math.tau)


def logistic(rows: Tensor, beta: Tensor) -> Tensor:
    logits = rows[:, :-1] @ beta
    return (rows[:, -1] > 0) * logits - torch.nn.functional.softplus(logits)


@pytest.fixture(scope="module")
def rows() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(N, D, generator=generator, dtype=torch.float64)
    y = x @ torch.tensor([1.0, -2.0, 0.5]).double() + NOISE * torch.randn(N, generator=generator, dtype=torch.float64)
    return torch.cat([x, y[:, None]], 1)


@pytest.fixture(scope="module")
def truth(rows: Tensor) -> tuple[Tensor, Tensor, float]:
    """Mean, covariance and log Z of the linear model."""
    x, y = rows[:, :-1], rows[:, -1]
    precision = x.T @ x / NOISE**2 + torch.eye(D).double()
    shift = x.T @ y / NOISE**2
    mean = torch.linalg.solve(precision, shift)
    log_z = -0.5 * N * math.log(math.tau * NOISE**2) - 0.5 * (y @ y) / NOISE**2 + 0.5 * shift @ mean
    return mean, torch.linalg.inv(precision), float(log_z - 0.5 * torch.logdet(precision))


@pytest.fixture(scope="module")
def store(rows: Tensor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rows")
    xr.Dataset({"v": (("row", "column"), rows.numpy())}).to_netcdf(folder / "rows.nc")
    sf.data.shard(folder / "rows.nc", folder / "rows.zarr", event=["column"], sample=["row"], shard_rows=3000)
    return folder / "rows.zarr"


def of(likelihood: Any, rows: Any, **options: Any) -> RowPosterior:
    return RowPosterior(log_prior, likelihood, rows, parameters={"beta": {"real": D}}, **options)


class TestEstimates:
    def test_an_epoch_of_batches_is_the_whole(self, rows: Tensor, truth: tuple[Tensor, Tensor, float]) -> None:
        """Without bias near the centre and far from it, in value and gradient."""
        posterior = of(logistic, rows, batch_size=1000)
        at = torch.randn(4, D, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        u = (posterior._centre + torch.tensor([0.0, 0.01, 0.3, 3.0]).double()[:, None] * at).requires_grad_()
        values = torch.stack([posterior.differentiable(u)[0] for _ in range(N // 1000)]).mean(0)
        (slopes,) = torch.autograd.grad(values.sum(), u)
        logits = rows[:, :-1] @ u.T
        exact = ((rows[:, -1:] > 0) * logits - torch.nn.functional.softplus(logits)).sum(0) + log_prior(u)
        (expected,) = torch.autograd.grad(exact.sum(), u)
        torch.testing.assert_close(values, exact, rtol=1e-9, atol=0)
        torch.testing.assert_close(slopes, expected, rtol=1e-6, atol=1e-3)
        torch.testing.assert_close(posterior.exact(u.detach()), exact, rtol=1e-12, atol=0)

    def test_expansions_leave_little_to_chance(self, rows: Tensor) -> None:
        """A thousandth of the spread of plain batches, at draws of the posterior."""
        posterior = of(logistic, rows)
        root = torch.linalg.cholesky(torch.linalg.inv(posterior._precision))
        noise = torch.randn(50, D, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        u = posterior._centre + noise @ root.T
        estimates = torch.stack([posterior.differentiable(u)[0] for _ in range(20)])
        plain = torch.stack(
            [posterior._terms.total(b, u) * f for b, f in (next(posterior._batches) for _ in range(20))]
        )
        spread, of_plain = ((each - each.mean(1, keepdim=True)).std(0).mean() for each in (estimates, plain))
        assert spread < 1e-3 * of_plain

    def test_few_rows_are_all_used(self, rows: Tensor) -> None:
        posterior = of(linear, rows[:500])
        u = torch.zeros(1, D, dtype=torch.float64)
        assert not posterior.is_random
        assert torch.equal(posterior(u), posterior.exact(u))
        torch.testing.assert_close(posterior(u)[0], linear(rows[:500], u[0]).sum() + log_prior(u[0]))


@pytest.fixture(scope="module")
def fitted(store: Path) -> Any:
    return fit_posterior(log_prior, parameters={"beta": {"real": D}}, rows=store, log_likelihood=linear, **QUICK)


class TestFits:
    def test_are_those_of_the_closed_form(self, fitted: Any, truth: tuple[Tensor, Tensor, float]) -> None:
        mean, covariance, log_z = truth
        draws = fitted.resample(10_000)["beta"]
        std = covariance.diagonal().sqrt()
        assert abs(float(fitted.log_z) - log_z) < 0.01 + 3 * fitted.log_z.standard_error
        assert ((draws.mean(0) - mean) / std).abs().max() < 0.1
        assert (draws.std(0) / std - 1).abs().max() < 0.1
        assert fitted.k_hat < 0.5

    def test_are_the_same_of_rows_in_memory(self, fitted: Any, rows: Tensor) -> None:
        given = {"parameters": {"beta": {"real": D}}, "log_likelihood": linear}
        again = fit_posterior(log_prior, rows=rows, **given, **QUICK)
        assert abs(float(again.log_z) - float(fitted.log_z)) < 0.02

    def test_flows_lower_the_divergence_by_batches(self, rows: Tensor) -> None:
        """What is not Gaussian, of a scale and an event without a name, from few rows of many."""
        posterior = fit_posterior(
            lambda x: -0.5 * x.square().sum(-1),
            event_shape=2,
            rows=rows[:1000, -1],
            batch_size=100,
            log_likelihood=lambda y, x: -0.5 * ((y - x[0]) * torch.exp(-x[1])).square() - x[1],
            **QUICK | {"family": {"flow": {"num_transforms": 1}}, "max_steps": 50},
        )
        assert abs(posterior.resample(5000)[:, 1].mean() - rows[:1000, -1].std().log()) < 0.02
        assert posterior.k_hat < 0.7


class TestBadInput:
    @pytest.mark.parametrize(
        ("given", "error", "message"),
        [
            ({"rows": None}, ConfigError, "go together"),
            ({"log_likelihood": None}, ConfigError, "go together"),
            ({"batch_size": 0}, ConfigError, "batch_size"),
            ({"rows": np.zeros((0, 4))}, DataError, "no rows"),
            ({"rows": "nowhere.zarr"}, StoreError, "nowhere"),
            (
                {"log_likelihood": lambda rows, beta: linear(rows, beta).sum()},
                ShapeError,
                "leave the sum over rows out",
            ),
            ({"log_likelihood": lambda rows, beta: linear(rows, beta.detach())}, DerivativeError, "no gradient"),
            ({"log_likelihood": lambda rows, beta: rows @ beta}, DataError, "log_likelihood fails"),
            ({"log_likelihood": lambda rows, gamma: gamma}, ShapeError, "got dict.*given one mapping"),
            ({"log_likelihood": lambda rows, gamma, delta: rows}, ConfigError, "does not take rows and the parameters"),
        ],
        ids=lambda value: value if isinstance(value, str) else "",
    )
    def test_is_told(self, rows: Tensor, given: dict[str, Any], error: type[Exception], message: str) -> None:
        usual = {"rows": rows[:100], "log_likelihood": linear, "parameters": {"beta": {"real": D}}}
        with pytest.raises(error, match=message):
            fit_posterior(log_prior, **usual | given, **QUICK)

    def test_rows_that_are_missing_are_named(self, rows: Tensor) -> None:
        holed = rows.clone()
        holed[17, 1] = math.nan
        with pytest.raises(DataError, match="row 17"):
            of(linear, holed)

    def test_rows_without_a_likelihood_are_named(self, rows: Tensor) -> None:
        with pytest.raises(DataError, match="row 3"):
            of(
                lambda rows, beta: torch.where(rows[:, -1] == few[3, -1], math.nan, linear(rows, beta)),
                few := rows[:50],
            )

    def test_a_batch_size_needs_rows(self) -> None:
        with pytest.raises(ConfigError, match="there are no rows"):
            fit_posterior(log_prior, parameters={"beta": {"real": D}}, batch_size=3)
