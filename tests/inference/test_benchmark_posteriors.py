"""The posteriors of the benchmark are those of the reference draws: the draws satisfy Stein's identities for them."""

from __future__ import annotations

import dataclasses
import math

import inference_posteriors
import pytest
import torch
from inference_posteriors import MODELS, Posterior, posteriors, reference_draws
from torch import Tensor

from sciflow.inference import Parameters, positive, real


@pytest.fixture(scope="module")
def every(shared_data) -> dict[str, Posterior]:
    return posteriors(shared_data)


def free_log_density(posterior: Posterior, free: Tensor) -> Tensor:
    values, log_det = posterior.parameters.unpack(free)
    return posterior.log_density(**values) + log_det


def deviations(posterior: Posterior, draws: dict[str, Tensor]) -> Tensor:
    r"""How many standard errors the draws are off Stein's identities.

    .. math:: E[g] = 0, \qquad E[w g^T] = -I

    of the score :math:`g` and the coordinates :math:`w`, unconstrained and made white by the draws' own moments: an
    error of the posterior's mean or width shows whatever its shape.
    """
    free = posterior.parameters.pack(posterior.underlying(draws)).flatten(0, 1).requires_grad_()
    (score,) = torch.autograd.grad(free_log_density(posterior, free).sum(), free)
    free = free.detach()
    factor = torch.linalg.cholesky(torch.cov(free.T))
    white, score = torch.linalg.solve_triangular(factor, (free - free.mean(0)).T, upper=False).T, score @ factor
    products = white[:, :, None] * score[:, None] + torch.eye(white.shape[1])
    terms = torch.cat([score, products.flatten(1)], 1)
    return terms.mean(0) / (terms.std(0) / math.sqrt(len(terms)))


@pytest.mark.parametrize("name", MODELS)
class TestEveryPosterior:
    def test_the_reference_draws_are_of_it(self, name, every, shared_data):
        off = deviations(every[name], reference_draws(shared_data, name))
        assert off.square().mean().sqrt() < 1.6
        assert off.abs().max() < 4.5

    def test_the_hooks_undo_each_other(self, name, every, shared_data):
        draws, posterior = reference_draws(shared_data, name), every[name]
        again = posterior.derived(posterior.underlying(draws))
        assert again.keys() == draws.keys()
        assert all(torch.allclose(again[key], draws[key], rtol=1e-9, atol=1e-9) for key in draws)

    def test_batches_and_precisions(self, name, every):
        posterior = every[name]
        generator = torch.Generator().manual_seed(0)
        free = 0.3 * torch.randn(2, 3, posterior.parameters.num_free, generator=generator, dtype=torch.float64)
        double, single = free_log_density(posterior, free), free_log_density(posterior, free.float())
        assert (double.shape, double.dtype, single.dtype) == ((2, 3), torch.float64, torch.float32)
        assert torch.allclose(double[1, 2], free_log_density(posterior, free[1, 2]))
        assert torch.allclose(single.double(), double, rtol=1e-3)

    def test_gradients_are_finite_where_a_fit_begins(self, name, every):
        """In float64: in float32, ARMA's errors leave what it holds where |theta| is above 1.5 or so."""
        posterior = every[name]
        generator = torch.Generator().manual_seed(0)
        free = torch.randn(200, posterior.parameters.num_free, generator=generator, dtype=torch.float64)
        free.requires_grad_()
        (score,) = torch.autograd.grad(free_log_density(posterior, free).sum(), free)
        assert score.isfinite().all()


class TestTheIdentitiesCanFail:
    """Errors that are easily made, and would not show in a plot."""

    def test_a_prior_twice_as_wide(self, every, shared_data):
        name = "eight_schools-eight_schools_noncentered"
        right = every[name]

        def wrong(**values: Tensor) -> Tensor:
            mu = values["mu"]
            return right.log_density(**values) + 0.5 * (mu / 5) ** 2 - 0.5 * (mu / 10) ** 2

        draws = reference_draws(shared_data, name)
        assert deviations(dataclasses.replace(right, log_density=wrong), draws).abs().max() > 10

    def test_a_jacobian_that_is_missing(self, every, shared_data):
        name = "mesquite-logmesquite"
        right = every[name]

        def wrong(**values: Tensor) -> Tensor:
            return right.log_density(**values) - values["sigma"].log()

        draws = reference_draws(shared_data, name)
        assert deviations(dataclasses.replace(right, log_density=wrong), draws).abs().max() > 10

    def test_a_first_step_that_is_forgotten(self, every, shared_data):
        name = "garch-garch11"
        given = dict(inference_posteriors.data(shared_data, name))
        wrong = MODELS[name](given | {"sigma1": 1.5})
        assert deviations(wrong, reference_draws(shared_data, name)).abs().max() > 5


def test_draws_of_another_density_do_not_pass():
    line = Posterior(Parameters({"x": real(2), "s": positive}), lambda x, s: -0.5 * (x**2).sum(-1) - s)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(10, 1000, 2, generator=generator, dtype=torch.float64)
    s = -torch.rand(10, 1000, generator=generator, dtype=torch.float64).log()
    assert deviations(line, {"x": x, "s": s}).abs().max() < 4.5
    assert deviations(line, {"x": 1.1 * x, "s": s}).abs().max() > 5
