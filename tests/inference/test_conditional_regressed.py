"""What a regression takes off a density, and gives back."""

from __future__ import annotations

import pytest
import torch
from conjugate import PRIOR, moments, simulate
from torch.distributions import MultivariateNormal

from sciflow.inference.conditional.embedded import load_member
from sciflow.inference.conditional.regressed import Regressed, ridge

INNER = {"name": "maf", "num_transforms": 1, "hidden_features": (8,), "seed": 0}


@pytest.fixture(scope="module")
def rows() -> tuple[torch.Tensor, torch.Tensor]:
    generator_state = torch.random.get_rng_state()
    torch.manual_seed(0)
    theta = PRIOR.sample((20_000,))
    x = simulate(theta)
    torch.random.set_rng_state(generator_state)
    return theta, x


@pytest.fixture(scope="module")
def density(rows) -> Regressed:
    """Fitted by moments, not trained."""
    found = Regressed((2,), (3,), density=INNER).eval()
    found.fit_preprocessing(*rows)
    return found


class TestRegressed:
    """A linear Gaussian posterior is there before the first step of training."""

    def test_log_prob_is_that_of_the_conjugate_posterior(self, density, rows):
        theta, x = (part[:200] for part in rows)
        truth = torch.stack(
            [MultivariateNormal(*moments(given)).log_prob(row) for row, given in zip(theta, x, strict=True)]
        )
        assert (density.log_prob(theta, x) - truth).abs().mean() < 0.05

    def test_draws_are_of_the_conjugate_posterior(self, density):
        x = torch.tensor([1.5, -1.0, 2.0])
        mean, covariance = moments(x)
        draws = density.sample(20_000, x, seed=0)
        assert torch.allclose(draws.mean(0), mean, atol=0.03)
        assert torch.allclose(torch.cov(draws.T), covariance, atol=0.02)

    def test_decode_undoes_encode(self, density, rows):
        theta, x = (part[:50] for part in rows)
        assert torch.allclose(density.decode(density.encode(theta, x), x), theta, atol=1e-4)

    def test_loss_counts_the_jacobian(self, density, rows):
        theta, x = (part[:50] for part in rows)
        assert torch.allclose(density.loss(theta, x), -density.log_prob(theta, x), atol=1e-4)
        assert torch.allclose(density.likelihood(theta, x).log_prob, density.log_prob(theta, x), atol=1e-4)

    def test_context_broadcasts(self, density, rows):
        theta, x = (part[:4] for part in rows)
        assert density.log_prob(theta[:, None], x).shape == (4, 4)
        assert density.log_prob(theta, x[0]).shape == (4,)
        assert density.sample((2, 3), x, seed=0).shape == (2, 3, 4, 2)

    def test_scale_moves_log_prob_by_the_jacobian(self, rows):
        theta, x = (part[:500] for part in rows)
        found = []
        for scale in (1.0, 1000.0):
            model = Regressed((2,), (3,), density=INNER).eval()
            model.fit_preprocessing(theta * scale, x)
            found.append(model.log_prob(theta * scale, x) + 2 * torch.tensor(scale).log())
        assert torch.allclose(*found, atol=1e-2)

    def test_survives_saving(self, density, rows, tmp_path):
        theta, x = (part[:4] for part in rows)
        again = load_member(density.save(tmp_path / "model"))
        assert torch.equal(again.log_prob(theta, x), density.log_prob(theta, x))


class TestRidge:
    """Least squares, with no more trust than the rows bear."""

    def test_it_is_least_squares_where_rows_are_many(self, rows):
        theta, x = (part.double() for part in rows)
        slopes, offset, scale = ridge(x, theta)
        design = torch.cat([x, torch.ones(len(x), 1)], 1)
        solution = torch.linalg.lstsq(design, theta).solution
        assert torch.allclose(slopes, solution[:3].T, atol=1e-3)
        assert torch.allclose(offset, solution[3], atol=1e-3)
        left = theta - design @ solution
        assert torch.allclose(scale @ scale.T, left.T @ left / len(x), atol=1e-3)

    def test_noise_is_not_fitted(self):
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(60, 40, generator=generator, dtype=torch.float64)
        y = torch.randn(60, 1, generator=generator, dtype=torch.float64)
        slopes, _, scale = ridge(x, y)
        assert slopes.abs().max() < 0.1
        assert 0.7 < float(scale) < 1.3

    def test_copies_and_constants_are_borne(self):
        x = torch.randn(100, 1, dtype=torch.float64)
        slopes, offset, _ = ridge(torch.cat([x, x, torch.ones(100, 1)], 1), 2 * x)
        assert torch.isfinite(slopes).all()
        assert float(slopes[0, 0] + slopes[0, 1]) == pytest.approx(2, abs=1e-2)
        assert torch.isfinite(offset).all()
