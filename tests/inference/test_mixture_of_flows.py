"""Mixtures of flows: draws and their gradients against known densities, and as fits of posteriors with modes apart."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import sciflow as sf
from sciflow.errors import ConfigError
from sciflow.flows import NSF, MixtureOfFlows, VariationalFlow
from sciflow.inference import LogDensity, Posterior, fit_posterior
from sciflow.inference.variational.objectives import objective_of

TRUE_LOG_Z = 3.0
SMALL = {"num_transforms": 2, "hidden_features": (16, 16)}
QUICK: dict[str, Any] = {"num_particles": 1024, "max_steps": 150, "num_draws": 4000, "progress": False, "seed": 0}


def banana(x: Tensor, centre: float, bend: float) -> Tensor:
    """A normal along the first axis, about which the second bends."""
    along = x[..., 0] - centre
    across = (x[..., 1] - bend * (along.square() - 1)) / 0.5
    return -0.5 * (along.square() + across.square()) - math.log(2 * math.pi * 0.5)


def bananas(x: Tensor) -> Tensor:
    """Three tenths about -10, seven about 10, bent in opposite ways, times e^3."""
    left, right = math.log(0.3) + banana(x, -10, 0.3), math.log(0.7) + banana(x, 10, -0.3)
    return TRUE_LOG_Z + torch.logaddexp(left, right)


def gaussians(means: list[float], weights: list[float]) -> MixtureOfFlows:
    """Unit normals in one dimension, as flows."""
    flows = []
    for mean in means:
        flow = VariationalFlow((1,), num_transforms=0, marginals=False, preprocess="none").double()
        with torch.no_grad():
            flow.base.raw_means.fill_(mean / 10)
        flows.append(flow)
    return MixtureOfFlows.of(flows, torch.tensor(weights).log())


@pytest.fixture(scope="module")
def fitted() -> Posterior:
    return fit_posterior(bananas, event_shape=2, family={"mixture": SMALL}, **QUICK)


class TestDraws:
    def test_log_prob_is_that_of_the_sum(self) -> None:
        x = torch.linspace(-5, 5, 11).double()[:, None]
        each = [torch.distributions.Normal(mean, 1.0).log_prob(x[:, 0]) for mean in (-2.0, 1.0)]
        expected = torch.logaddexp(each[0] + math.log(0.2), each[1] + math.log(0.8))
        torch.testing.assert_close(gaussians([-2, 1], [0.2, 0.8]).log_prob(x), expected, atol=1e-6, rtol=0)

    @pytest.mark.parametrize("even", [False, True])
    def test_means_are_those_of_the_density(self, even: bool) -> None:
        drawn = gaussians([-2, 1], [0.2, 0.8]).draw_along_paths(20_000, torch.Generator().manual_seed(0), even)
        share, x = drawn.share.detach(), drawn.x.detach()
        assert float(share.sum()) == pytest.approx(1)
        assert float(share @ x[:, 0]) == pytest.approx(0.4, abs=0.03)

    def test_wide_draws_are_weighed_right(self) -> None:
        mixture = gaussians([-2, 1], [0.2, 0.8])
        drawn = mixture.draw(20_000, torch.Generator().manual_seed(0), wide=0.3)
        weights = (mixture.log_prob(drawn.x) - drawn.log_q).exp().detach()
        assert float(weights.mean()) == pytest.approx(1, abs=0.02)
        assert float(weights.max()) <= 1 / 0.7 + 1e-6
        assert float((weights * drawn.x[:, 0].detach()).mean()) == pytest.approx(-0.4 + 0.8, abs=0.04)

    @pytest.mark.parametrize(("even", "spread"), [(True, 0.02), (False, 0.2)])
    def test_weights_have_the_gradient_of_the_divergence(self, even: bool, spread: float) -> None:
        """Far apart, KL(q | p) = sum_k w_k log(w_k / v_k), which softmax takes to its logits."""
        mixture = gaussians([-20, 20], [0.2, 0.8])
        normal = torch.distributions.Normal(torch.tensor([-20.0, 20.0]).double(), 1.0)
        target = LogDensity(lambda x: torch.logsumexp(normal.log_prob(x) + math.log(0.5), -1), event_shape=1)
        objective = objective_of("reverse_kl" if even else {"alpha": {"alpha": 1 - 1e-9}})
        found = []
        for seed in range(20):
            mixture.zero_grad()
            generator = torch.Generator().manual_seed(seed)
            objective.loss(mixture, target, 256, generator, lambda: torch.zeros(1, 1)).backward()
            found.append(mixture.raw_logits.grad[1] / 10)
        expected = 0.8 * 0.2 * (math.log(0.8 / 0.5) - math.log(0.2 / 0.5))
        assert float(torch.stack(found).mean()) == pytest.approx(expected, abs=spread / 4)
        assert float(torch.stack(found).std()) < spread

    @pytest.mark.parametrize("name", ["reverse_kl", "iw_elbo", "alpha"])
    def test_nothing_is_to_be_gained_where_it_is_right(self, name: str) -> None:
        mixture = gaussians([-2, 1], [0.2, 0.8])
        target = LogDensity(lambda x: gaussians([-2, 1], [0.2, 0.8]).log_prob(x), event_shape=1)
        generator = torch.Generator().manual_seed(0)
        objective_of(name).loss(mixture, target, 64, generator, lambda: torch.zeros(1, 1)).backward()
        for parameter in mixture.parameters():
            assert parameter.grad is None or parameter.grad.abs().max() < 1e-6


class TestFit:
    def test_log_z_is_right(self, fitted: Posterior) -> None:
        assert fitted.k_hat < 0.7
        assert abs(float(fitted.log_z) - TRUE_LOG_Z) < 0.02 + 3 * fitted.log_z.standard_error

    def test_there_is_a_flow_a_mode_with_its_weight(self, fitted: Posterior) -> None:
        mixture = fitted.density
        assert isinstance(mixture, MixtureOfFlows)
        x = torch.tensor([[-10.0, -0.5], [10.0, 0.5]], dtype=torch.float64)
        weights = mixture.log_weights[mixture.log_prob_of_each(x).argmax(1)].exp()
        assert weights.tolist() == pytest.approx([0.3, 0.7], abs=0.03)
        share = (fitted.resample(20_000)[:, 0] > 0).double().mean()
        assert float(share) == pytest.approx(0.7, abs=0.02)

    def test_nothing_is_between_the_modes(self, fitted: Posterior) -> None:
        assert int((fitted.sample(20_000, seed=0)[:, 0].abs() < 3).sum()) <= 4

    def test_it_survives_saving(self, fitted: Posterior, tmp_path: Path) -> None:
        back = Posterior.load(fitted.save(tmp_path / "posterior"))
        x = fitted.sample(20, seed=0)
        assert torch.equal(back.log_prob(x), fitted.log_prob(x))

    @pytest.mark.parametrize("objective", ["iw_elbo", "forward_kl", {"forward_kl": {"by": "importance"}}], ids=str)
    def test_other_objectives_train_it(self, objective: Any) -> None:
        family = {"mixture": {**SMALL, "num_components": 2}}
        posterior = fit_posterior(
            bananas, event_shape=2, family=family, objective=objective, **QUICK | {"max_steps": 20}
        )
        assert len(posterior.density.components) == 2
        assert abs(float(posterior.log_z) - TRUE_LOG_Z) < 0.05 + 3 * posterior.log_z.standard_error


class TestLikelihood:
    def test_rows_that_lie_apart_are_learned(self) -> None:
        """Entropy of a mixture far apart: of the choice, and of what is chosen."""
        generator = torch.Generator().manual_seed(0)
        rows = torch.randn(1000, 2, generator=generator) + torch.where(torch.arange(1000) < 300, -9.0, 9.0)[:, None]
        mixture = MixtureOfFlows((2,), component={"nsf": SMALL}, seed=0)
        sf.fit(mixture, rows, max_steps=30, progress=False)
        test = torch.randn(1000, 2, generator=generator) + torch.where(torch.arange(1000) < 300, -9.0, 9.0)[:, None]
        choice = -(0.3 * math.log(0.3) + 0.7 * math.log(0.7))
        assert -float(mixture.log_prob(test).mean()) < choice + math.log(2 * math.pi * math.e) + 0.15
        assert mixture.log_weights.exp().sort().values.tolist() == pytest.approx([0.3, 0.7], abs=0.1)

    def test_few_rows_and_many_features_are_no_trouble(self) -> None:
        mixture = MixtureOfFlows((40,), component={"realnvp": SMALL}, num_components=3, seed=0)
        for count in (2, 10, 100):
            mixture.fit_preprocessing(torch.randn(count, 40, generator=torch.Generator().manual_seed(0)))
            assert mixture.log_prob(torch.zeros(1, 40)).isfinite().all()


class TestBadInput:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"component": "nfs"}, "did you mean nsf"),
            ({"component": "diffusion"}, "component: unknown 'diffusion'"),
            ({"component": {"nsf": {"num_bin": 8}}}, "did you mean num_bins"),
            ({"component": {"nsf": {"seed": 1}}}, "'seed': unknown option"),
            ({"component": {"nsf": {"preprocess": "dequantize"}}}, "dequantised once"),
            ({"component": ["nsf", "maf"], "num_components": 3}, "left out beside a list"),
            ({"component": []}, "a list of 1 to 256"),
            ({"num_components": 0}, "num_components must be 1 to 256"),
        ],
        ids=str,
    )
    def test_an_argument_out_of_range(self, arguments: dict[str, Any], message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            MixtureOfFlows((2,), **arguments)

    def test_there_is_no_one_map_to_noise(self) -> None:
        mixture = MixtureOfFlows((2,), component={"nsf": {"num_transforms": 1}})
        with pytest.raises(ConfigError, match="no one map to noise"):
            mixture.encode(torch.zeros(1, 2))
        with pytest.raises(ConfigError, match="no one map from noise"):
            mixture.decode(torch.zeros(1, 2))

    def test_components_begin_unlike_each_other(self) -> None:
        first, second = MixtureOfFlows((2,), component={"nsf": {"num_transforms": 1}}, seed=0).components
        assert isinstance(first, NSF)
        assert any(not torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
