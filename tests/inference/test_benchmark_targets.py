"""The targets of the benchmark have the log Z that they say: by their own samplers, by quadrature, by sampling."""

from __future__ import annotations

import math

import inference_targets
import numpy as np
import pytest
import torch
from inference_targets import Target, targets
from scipy.stats import multivariate_normal, multivariate_t

FREE = targets(folder=inference_targets.SHARED / "none")


@pytest.fixture(scope="module")
def every(shared_data) -> dict[str, Target]:
    return targets(shared_data)


@pytest.mark.parametrize("name", FREE)
def test_draws_are_of_the_density(name):
    """Stein's identities: E[g] = 0 and E[x g] = -1 of the score g, coordinate by coordinate."""
    x = FREE[name].sample(20_000, 1).requires_grad_()
    (score,) = torch.autograd.grad(FREE[name].log_density(x).sum(), x)
    x = x.detach()
    for terms in (score, (x - x.mean(0)) * score + 1):
        z = terms.mean(0) / (terms.std(0) / math.sqrt(len(x)))
        assert z.abs().max() < 4.5


def test_normalised_in_two_dimensions():
    points = torch.arange(-60, 60, 0.25, dtype=torch.float64)
    total = FREE["gmm-40"].log_density(torch.cartesian_prod(points, points)).exp().sum() * 0.25**2
    assert total.item() == pytest.approx(1, abs=1e-8)
    # Of a funnel, all but the neck is integrated by its formula.
    neck = torch.arange(-15, 15, 0.1, dtype=torch.float64)
    x = torch.zeros(len(neck), 10, dtype=torch.float64)
    x[:, 0] = neck
    rest = 9 * 0.5 * (math.log(2 * math.pi) + neck)
    assert ((FREE["funnel-10"].log_density(x) + rest).exp().sum() * 0.1).item() == pytest.approx(1, abs=1e-5)


def test_many_wells_have_the_log_z_on_file(every, shared_data):
    for name, key in (("many-well-32", "many_well_32d"), ("many-well-6", "many_well_6d")):
        assert every[name].log_z == pytest.approx(inference_targets.reference(shared_data, key)[0], abs=1e-5)


def test_brownian_by_quadrature(every, shared_data):
    """The path integrated by its formula, its density's own Hessian agreeing; then both scales on a grid."""
    target = every["brownian-32"]
    observed = np.genfromtxt(shared_data / "vi_targets" / "brownian_observed.csv", delimiter=",")[1:, 1]
    seen = np.flatnonzero(np.isfinite(observed))
    times = seen + 1.0
    walk = np.minimum(times[:, None], times)

    def exact(log_s: float, log_r: float) -> float:
        covariance = math.exp(2 * log_s) * walk + math.exp(2 * log_r) * np.eye(len(seen))
        prior = -0.5 * (log_s**2 + log_r**2) / 4 - math.log(2 * math.pi * 4)
        return multivariate_normal.logpdf(observed[seen], np.zeros(len(seen)), covariance) + prior

    def by_density(log_s: float, log_r: float) -> float:
        scales = torch.tensor([log_s, log_r], dtype=torch.float64)

        def of_path(path: torch.Tensor) -> torch.Tensor:
            return target.log_density(torch.cat([scales, path])[None])[0]

        start = torch.zeros(30, dtype=torch.float64)
        precision = -torch.autograd.functional.hessian(of_path, start)
        mode = torch.linalg.solve(precision, torch.autograd.functional.jacobian(of_path, start))
        return (of_path(mode) + 15 * math.log(2 * math.pi) - 0.5 * precision.logdet()).item()

    for log_s, log_r in ((-2.3, -2.0), (-1.0, -3.0), (0.5, 1.0)):
        assert by_density(log_s, log_r) == pytest.approx(exact(log_s, log_r), abs=1e-8)
    # Eigenvalues make the grid quick: the covariance is s^2 W + r^2 I.
    eigenvalues, vectors = np.linalg.eigh(walk)
    along = (vectors.T @ observed[seen]) ** 2
    step = 0.02
    log_s, log_r = np.arange(-9, 4, step)[:, None, None], np.arange(-12, 4, step)[:, None]
    variances = np.exp(2 * log_s) * eigenvalues + np.exp(2 * log_r)
    log_p = -0.5 * (along / variances + np.log(2 * math.pi * variances)).sum(-1)
    log_p += -0.5 * (log_s**2 + log_r**2)[..., 0] / 4 - math.log(2 * math.pi * 4)
    assert np.log(np.exp(log_p).sum() * step**2) == pytest.approx(target.log_z, abs=1e-5)


@pytest.mark.parametrize(("name", "num_draws"), [("sonar-61", 100_000), ("german-credit-25", 20_000)])
def test_logistic_regressions_by_importance_sampling(every, name, num_draws):
    """Draws of a t distribution, at first around the mode with the curvature there, then with the moments found."""
    target = every[name]

    def of_one(weights: torch.Tensor) -> torch.Tensor:
        return target.log_density(weights[None])[0]

    centre = torch.zeros(target.dimension, dtype=torch.float64)
    for _ in range(20):
        precision = -torch.autograd.functional.hessian(of_one, centre)
        centre = centre + torch.linalg.solve(precision, torch.autograd.functional.jacobian(of_one, centre))
    covariance, n, df = torch.linalg.inv(precision), num_draws, 30
    for _ in range(3):
        proposal = multivariate_t(centre.numpy(), covariance.numpy(), df=df)
        x = torch.from_numpy(proposal.rvs(n, random_state=0))
        log_weights = target.log_density(x) - torch.from_numpy(proposal.logpdf(x.numpy()))
        weights = (log_weights - log_weights.logsumexp(0)).exp()
        centre, covariance = weights @ x, torch.cov(x.T, aweights=weights) * 1.05
    log_z = (log_weights.logsumexp(0) - math.log(n)).item()
    error = (weights.std() * math.sqrt(n)).item()
    assert error < 0.02
    assert abs(log_z - target.log_z) < 4 * math.hypot(error, target.log_z_error)


def test_both_precisions(every):
    for target in every.values():
        x = 0.5 * torch.randn(8, target.dimension, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        double, single = target.log_density(x), target.log_density(x.float())
        assert (double.dtype, single.dtype) == (torch.float64, torch.float32)
        assert torch.allclose(single.double(), double, rtol=1e-4)
