"""A diffusion sampler is right by its weights however it was trained, and training makes the weights even."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch import Tensor

from sciflow.errors import ConfigError, DataError, ModelFileError, ShapeError
from sciflow.inference import DiffusionSampler, fit_diffusion_sampler
from sciflow.inference.variational.gaussians import FullGaussian
from sciflow.inference.variational.log_density import LogDensity

LOG_TAU = math.log(2 * math.pi)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def gaussian() -> tuple[LogDensity, float]:
    """N((1, -1), ((1, 0.6), (0.6, 0.5))), unnormalised."""
    covariance = torch.tensor([[1.0, 0.6], [0.6, 0.5]], dtype=torch.float64)
    precision = torch.linalg.inv(covariance)

    def log_density(x: Tensor) -> Tensor:
        apart = x - torch.tensor([1.0, -1.0]).to(x)
        return -0.5 * (apart @ precision.to(x) * apart).sum(-1)

    return LogDensity(log_density, event_shape=2), LOG_TAU + 0.5 * float(torch.logdet(covariance))


def wide(d: int = 2, scale: float = 1.5) -> FullGaussian:
    return FullGaussian(torch.zeros(d, dtype=torch.float64), scale * torch.eye(d, dtype=torch.float64))


def estimate(log_weights: Tensor) -> tuple[float, float]:
    log_z = float(log_weights.logsumexp(0)) - math.log(len(log_weights))
    return log_z, float((log_weights - log_z).exp().std()) / math.sqrt(len(log_weights))


@pytest.fixture(scope="module")
def trained() -> DiffusionSampler:
    return fit_diffusion_sampler(gaussian()[0], wide(), seeded(), num_steps=8, max_updates=220, hidden=32)


class TestWeights:
    @pytest.mark.parametrize("num_steps", [1, 6])
    def test_unbiased_without_training(self, num_steps: int) -> None:
        density, log_z = gaussian()
        sampler = DiffusionSampler(density, wide(), num_steps, hidden=8)
        found, error = estimate(sampler.draw(20_000, seeded(1))[1])
        assert error < 0.1
        assert abs(found - log_z) < 4 * error

    def test_unbiased_whatever_the_network_says(self) -> None:
        density, log_z = gaussian()
        torch.manual_seed(0)
        sampler = DiffusionSampler(density, wide(), 4, hidden=8)
        with torch.no_grad():
            for parameter in sampler.kernels.parameters():
                parameter.add_(0.15 * torch.randn_like(parameter))
        draws, log_weights = sampler.draw(40_000, seeded(2))
        found, error = estimate(log_weights)
        assert error < 0.1
        assert abs(found - log_z) < 4 * error
        weights = log_weights.softmax(0)
        assert torch.allclose(weights @ draws, torch.tensor([1.0, -1.0]).double(), atol=0.15)

    def test_gradients_reach_every_parameter(self) -> None:
        sampler = DiffusionSampler(gaussian()[0], wide(), 4, hidden=8)
        sampler.log_weights(sampler.trail(16, seeded())).var().backward()
        for name, parameter in sampler.named_parameters():
            assert parameter.grad is not None, name
            assert torch.isfinite(parameter.grad).all(), name


class TestTraining:
    def test_gaussian(self, trained: DiffusionSampler) -> None:
        log_z = gaussian()[1]
        found, error = estimate(trained.draw(4000, seeded(1))[1])
        assert abs(found - log_z) < min(0.05, 3 * error)
        assert trained.elbo < log_z + 3 * trained.elbo_error
        assert trained.elbo > log_z - 0.2

    def test_better_than_as_set_up(self, trained: DiffusionSampler) -> None:
        first = fit_diffusion_sampler(gaussian()[0], wide(), seeded(), num_steps=8, max_updates=0, hidden=32)
        assert trained.elbo > first.elbo + 3 * first.elbo_error
        assert first.ended == "set up only"

    def test_two_modes_of_different_weight(self) -> None:
        def log_density(x: Tensor) -> Tensor:
            near = -0.5 * ((x - 3) / 0.5).square().sum(-1) + math.log(0.3)
            far = -0.5 * ((x + 3) / 0.5).square().sum(-1) + math.log(0.7)
            return torch.logaddexp(near, far) - LOG_TAU - 2 * math.log(0.5)

        density = LogDensity(log_density, event_shape=2)
        sampler = fit_diffusion_sampler(density, wide(2, 4.0), seeded(), num_steps=8, max_updates=60, hidden=32)
        draws, log_weights = sampler.draw(8000, seeded(1))
        found, error = estimate(log_weights)
        assert error < 0.1
        assert abs(found) < 4 * error
        share = float(log_weights.softmax(0) @ (draws[:, 0] > 0).double())
        assert abs(share - 0.3) < 0.1

    def test_ends_by_itself(self) -> None:
        density = LogDensity(lambda x: -0.5 * x.square().sum(-1), event_shape=1)
        notes: list[int] = []
        sampler = fit_diffusion_sampler(
            density,
            wide(1, 1.0),
            seeded(),
            num_steps=2,
            max_updates=5000,
            batch_size=32,
            hidden=8,
            progress=lambda done, note: notes.append(done),
        )
        assert sampler.ended.startswith("the bound rose no more")
        assert sampler.num_updates == notes[-1] < 5000

    def test_density_without_second_derivatives(self) -> None:
        class Square(torch.autograd.Function):
            @staticmethod
            def forward(ctx, x):
                ctx.save_for_backward(x)
                return x.square()

            @staticmethod
            @torch.autograd.function.once_differentiable
            def backward(ctx, gradient):
                return 2 * ctx.saved_tensors[0] * gradient

        density = LogDensity(lambda x: -0.5 * Square.apply(x - 1).sum(-1), event_shape=2)
        first, last = (
            fit_diffusion_sampler(density, wide(), seeded(), num_steps=4, max_updates=updates, hidden=16)
            for updates in (0, 100)
        )
        assert first.elbo + 3 * first.elbo_error < last.elbo < LOG_TAU + 3 * last.elbo_error

    def test_same_seed_same_sampler(self) -> None:
        before = torch.get_rng_state()
        one, two = (
            fit_diffusion_sampler(gaussian()[0], wide(), seeded(3), num_steps=3, max_updates=5, hidden=8) for _ in "ab"
        )
        assert torch.equal(torch.get_rng_state(), before)
        for a, b in zip(one.draw(10, seeded(4)), two.draw(10, seeded(4)), strict=True):
            assert torch.equal(a, b)

    def test_support_with_an_edge(self) -> None:
        density = LogDensity(lambda x: torch.where((x > 0).all(-1), -x.clamp_min(0).sum(-1), -math.inf), event_shape=2)
        sampler = fit_diffusion_sampler(density, wide(2, 1.5), seeded(), num_steps=6, max_updates=60, hidden=16)
        draws, log_weights = sampler.draw(20_000, seeded(1))
        inside = (draws > 0).all(-1)
        assert torch.equal(torch.isfinite(log_weights), inside)
        found, error = estimate(log_weights)
        assert abs(found) < 4 * error < 0.3
        assert math.isfinite(sampler.elbo)
        assert sampler.elbo < 3 * sampler.elbo_error
        assert all(torch.isfinite(parameter).all() for parameter in sampler.parameters())

    def test_steep_densities_do_not_throw_paths_out(self) -> None:
        density = LogDensity(lambda x: -1e8 * x.square().sum(-1) - x.pow(4).sum(-1), event_shape=2)
        draws, log_weights = fit_diffusion_sampler(density, wide(), seeded(), num_steps=4, max_updates=10).draw(
            100, seeded()
        )
        assert torch.isfinite(draws).all()
        assert torch.isfinite(log_weights).all()


class TestLogProb:
    def test_of_a_gaussian(self, trained: DiffusionSampler) -> None:
        """What was trained on a Gaussian has about its density: exactly, if E[w] given the end were even."""
        density, log_z = gaussian()
        u = torch.tensor([[1.0, -1.0], [1.5, -0.5], [0.2, -1.3]]).double()
        found = trained.likelihood(u, 2000, seeded())
        assert found.log_prob.shape == found.error.shape == (3,)
        assert found.kind == "elbo"
        assert found.error.max() < 0.1
        assert torch.allclose(found.log_prob, density(u) - log_z, atol=0.2)

    def test_exact_where_steps_are_linear(self) -> None:
        """One short step of a standard normal is a Gaussian that can be written down."""
        density = LogDensity(lambda x: -0.5 * x.square().sum(-1), event_shape=1)
        sampler = DiffusionSampler(density, wide(1, 2.0), 1, hidden=4)
        # At the first time the pull is that of the base, -y, cut at three standard deviations of the noise.
        std = math.sqrt(2 * 0.05)
        y = torch.linspace(-10, 10, 200_001, dtype=torch.float64)
        pull = -0.5 * std * y
        mean = y + std * pull / torch.hypot(torch.ones_like(y), pull / 3)
        at = 0.7 / 2
        terms = -0.5 * y**2 - 0.5 * ((at - mean) / std) ** 2 - LOG_TAU - math.log(std)
        expected = math.log(float(terms.exp().sum()) * 1e-4) - math.log(2)
        found = sampler.likelihood(torch.tensor([[0.7]]), 20_000, seeded())
        assert abs(found.log_prob.item() - expected) < 4 * found.error.item() < 0.05

    def test_none_of_no_rows(self, trained: DiffusionSampler) -> None:
        assert trained.log_prob(torch.zeros(0, 2)).shape == (0,)


class TestFiles:
    def test_round_trip(self, trained: DiffusionSampler, tmp_path) -> None:
        back = DiffusionSampler.load(trained.save(tmp_path / "sampler"), gaussian()[0])
        assert (back.elbo, back.num_updates, back.ended) == (trained.elbo, trained.num_updates, trained.ended)
        for a, b in zip(back.draw(20, seeded()), trained.draw(20, seeded()), strict=True):
            assert torch.equal(a, b)

    def test_untrained(self, tmp_path) -> None:
        sampler = DiffusionSampler(gaussian()[0], wide(), 2, hidden=4)
        assert math.isnan(DiffusionSampler.load(sampler.save(tmp_path), gaussian()[0]).elbo)

    def test_damage_is_seen(self, trained: DiffusionSampler, tmp_path) -> None:
        trained.save(tmp_path)
        with pytest.raises(ShapeError, match="2 numbers, the density of 3"):
            DiffusionSampler.load(tmp_path, LogDensity(lambda x: -x.square().sum(-1), event_shape=3))
        file = tmp_path / "sampler.json"
        found = json.loads(file.read_text())
        file.write_text(json.dumps({**found, "arguments": {**found["arguments"], "hidden": 7}}))
        with pytest.raises(ModelFileError, match="is no sampler"):
            DiffusionSampler.load(tmp_path, gaussian()[0])
        file.write_text("[]")
        with pytest.raises(ModelFileError, match="does not describe"):
            DiffusionSampler.load(tmp_path, gaussian()[0])
        trained.save(tmp_path)
        (tmp_path / "sampler.safetensors").write_bytes(b"x" * 100)
        with pytest.raises(ModelFileError, match="damaged"):
            DiffusionSampler.load(tmp_path, gaussian()[0])
        with pytest.raises(ModelFileError, match="no sampler"):
            DiffusionSampler.load(tmp_path / "none", gaussian()[0])


class TestRefused:
    @pytest.mark.parametrize("given", [{"num_steps": 0}, {"max_updates": -1}, {"batch_size": 2.5}, {"hidden": "64"}])
    def test_numbers(self, given: dict) -> None:
        with pytest.raises(ConfigError, match=next(iter(given))):
            fit_diffusion_sampler(gaussian()[0], wide(), seeded(), **given)

    def test_bases(self) -> None:
        with pytest.raises(ShapeError, match="base"):
            DiffusionSampler(gaussian()[0], wide(3))
        with pytest.raises(DataError, match="base"):
            DiffusionSampler(gaussian()[0], wide(2, math.nan))

    def test_density_that_is_nowhere_near(self) -> None:
        density = LogDensity(lambda x: torch.where(x[:, 0] > 1e4, -x[:, 0], x[:, 0] - math.inf), event_shape=1)
        with pytest.raises(DataError, match="hardly any"):
            fit_diffusion_sampler(density, wide(1), seeded(), num_steps=2)

    def test_rows(self, trained: DiffusionSampler) -> None:
        with pytest.raises(ShapeError, match="rows"):
            trained.log_prob(torch.zeros(3))
        with pytest.raises(DataError, match="not finite"):
            trained.log_prob(torch.full((1, 2), math.nan))
        with pytest.raises(ConfigError, match="n must be"):
            trained.draw(0, seeded())
