"""Flows taught by diffusion models: that they come near densities that are known, and keep what a density owes."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from analytic import GaussianMixture
from torch import Tensor

import sciflow as sf
from sciflow.contexts import Label
from sciflow.diffusion import Diffusion
from sciflow.diffusion.schedules import schedule
from sciflow.errors import ConfigError, DataError, ShapeError, TrainingError
from sciflow.flows import MAF, NSF, RealNVP
from sciflow.training.distill_to_flow import METHODS

VP = schedule("vp")
SMALL: dict[str, Any] = {"num_transforms": 2, "hidden_features": (32, 32), "seed": 0}
QUICK: dict[str, Any] = {"num_events": 200, "max_steps": 4, "progress": False}
NETWORK: dict[str, Any] = {"network": {"mlp": {"hidden_features": (16, 16)}}, "seed": 0}


def exact(mixture: GaussianMixture, offset: float = 0.0) -> Diffusion:
    """A diffusion model whose density is the mixture's, moved by ``offset``."""

    def denoise(x: Tensor, t: Tensor) -> Tensor:
        alpha = VP(t.double())[0].to(x)[:, None]
        return mixture.denoise(x - alpha * offset, t, VP) + offset

    spread = float(mixture.covariance.diagonal().mean().sqrt())
    return Diffusion.from_denoiser(denoise, (2,), VP, data_mean=mixture.mean + offset, data_std=spread)


def divergence(mixture: GaussianMixture, flow: sf.Density, n: int = 4000) -> tuple[float, float]:
    """KL from the truth to the flow, and its standard error."""
    x = mixture.sample(n, torch.Generator().manual_seed(7))
    off = mixture.log_prob(x) - flow.log_prob(x).detach()
    return float(off.mean()), float(off.std()) / math.sqrt(n)


@pytest.fixture(scope="module")
def trained() -> Diffusion:
    rows = torch.randn(300, 2, generator=torch.Generator().manual_seed(0)) * torch.tensor([30.0, 0.02]) + 500
    return sf.fit(Diffusion((2,), **NETWORK), rows, max_steps=5, progress=False).density


@pytest.fixture(scope="module")
def conditional() -> Diffusion:
    generator = torch.Generator().manual_seed(0)
    rows, labels = torch.randn(300, 2, generator=generator), torch.randint(3, (300,), generator=generator)
    teacher = Diffusion((2,), context_shape={"side": Label(3)}, **NETWORK)
    return sf.fit(teacher, rows, context={"side": labels}, max_steps=5, progress=False).density


class TestTheDensity:
    def test_comes_near_a_mixture_that_is_known(self) -> None:
        ring = GaussianMixture.ring(num_components=3, width=0.25)
        flow = NSF((2,), num_transforms=3, hidden_features=(64, 64), seed=0)
        settings = {"num_events": 8000, "batch_size": 256, "max_steps": 300, "learning_rate": 5e-3, "progress": False}
        assert sf.distill_to_flow(exact(ring), flow, **settings) is flow
        found, error = divergence(ring, flow)
        assert -4 * error < found < 0.04
        record = flow.likelihood(torch.zeros(3, 2))
        assert record.kind == "exact"
        assert record.nfe.tolist() == [1, 1, 1]

    @pytest.mark.parametrize("method", METHODS)
    def test_every_method_finds_a_normal_distribution(self, method: str) -> None:
        normal = GaussianMixture(torch.ones(1), torch.tensor([[0.5, -1.0]]), torch.tensor([[[1.0, 0.6], [0.6, 0.5]]]))
        flow = RealNVP((2,), **SMALL)
        sf.distill_to_flow(
            exact(normal),
            flow,
            method=method,
            num_events=4000,
            batch_size=256,
            max_steps=250,
            learning_rate=5e-3,
            progress=False,
        )
        assert abs(divergence(normal, flow)[0]) < 0.02

    @pytest.mark.parametrize("method", ["regression", "both"])
    def test_pairs_teach_the_teachers_own_way_to_noise(self, method: str) -> None:
        normal = GaussianMixture(torch.ones(1), torch.zeros(1, 2), torch.tensor([[[1.0, 0.6], [0.6, 0.5]]]))
        x = normal.sample(500, torch.Generator().manual_seed(3)).float()
        # The probability flow of a normal distribution stretches its axes: no rotation, unlike a Cholesky factor.
        variances, axes = torch.linalg.eigh(normal.covariance)
        noise = x.double() @ axes @ torch.diag(variances.rsqrt()) @ axes.T
        off = {}
        for each in ("likelihood", method):
            flow = RealNVP((2,), **SMALL)
            settings = {"num_events": 4000, "batch_size": 256, "max_steps": 250, "learning_rate": 5e-3}
            sf.distill_to_flow(exact(normal), flow, method=each, progress=False, **settings)
            off[each] = float((flow.encode(x).detach() - noise).square().mean())
        assert off[method] < 0.02
        assert off[method] < off["likelihood"] / 5

    def test_context_is_heard(self) -> None:
        def denoise(x: Tensor, t: Tensor, context: Tensor | None = None) -> Tensor:
            # Of a normal distribution of deviation 0.5 about the context.
            assert context is not None
            alpha, sigma = (part.to(x)[:, None] for part in VP(t.double()))
            return context + 0.25 * alpha / (0.25 * alpha**2 + sigma**2) * (x - alpha * context)

        teacher = Diffusion.from_denoiser(denoise, (1,), VP, context_shape=(1,))
        contexts = torch.linspace(-2, 2, 200)[:, None]
        flow = NSF((1,), context_shape=(1,), **SMALL)
        settings = {"num_events": 6000, "batch_size": 256, "max_steps": 400, "learning_rate": 5e-3, "progress": False}
        sf.distill_to_flow(teacher, flow, contexts, **settings)
        new = torch.tensor([[-1.51], [0.03], [1.27]])
        x = new + 0.5 * torch.randn(1000, 3, 1, generator=torch.Generator().manual_seed(1))
        truth = torch.distributions.Normal(new, 0.5).log_prob(x).sum(-1)
        assert ((truth - flow.log_prob(x, new)).mean(0) < 0.06).all()

    def test_is_in_the_teachers_units(self, trained: Diffusion) -> None:
        flow = sf.distill_to_flow(trained, NSF((2,), **SMALL), num_events=1000, max_steps=60, progress=False)
        draws = flow.sample(2000, seed=0)
        torch.testing.assert_close(draws.mean(0), torch.tensor([500.0, 500.0]), rtol=0.02, atol=0)
        assert 15 < draws[:, 0].std() < 60
        assert 0.01 < draws[:, 1].std() < 0.04

    def test_a_flow_may_have_units_of_its_own(self) -> None:
        ring = GaussianMixture.ring(num_components=3, width=0.3)
        flow = NSF((2,), preprocess=["log1p", "standardize"], **SMALL)
        sf.distill_to_flow(exact(ring, offset=10.0), flow, num_events=2000, max_steps=60, progress=False)
        assert torch.isfinite(flow.log_prob(flow.sample(100, seed=0))).all()

    def test_early_stopping_goes_by_rows_that_are_given(self, trained: Diffusion) -> None:
        rows = trained.sample(40, seed=5, progress=False) + torch.tensor([5.0, 0.0])
        for method in METHODS:
            flow = sf.distill_to_flow(trained, NSF((2,), **SMALL), method=method, validation=rows.numpy(), **QUICK)
            assert flow.provenance["validation"]["count"] == 40
            expected = flow.log_prob(rows).mean().item()
            assert flow.provenance["validation"]["mean"] == pytest.approx(expected, rel=1e-5)


class TestWhatIsHandedBack:
    @pytest.mark.parametrize("method", METHODS)
    def test_the_same_seed_teaches_the_same(self, trained: Diffusion, method: str) -> None:
        taught = [sf.distill_to_flow(trained, NSF((2,), **SMALL), method=method, seed=s, **QUICK) for s in (1, 1, 2)]
        x = trained.sample(50, seed=9, progress=False)
        first, again, other = (flow.log_prob(x).detach() for flow in taught)
        assert torch.equal(first, again)
        assert not torch.equal(first, other)

    @pytest.mark.parametrize("method", METHODS)
    def test_saves_and_loads_with_its_origin(self, trained: Diffusion, method: str, tmp_path) -> None:
        flow = sf.distill_to_flow(trained.save(tmp_path / "teacher"), MAF((2,), **SMALL), method=method, **QUICK)
        again = sf.load(flow.save(tmp_path / "flow"))
        x = trained.sample(20, seed=0, progress=False)
        assert torch.equal(again.log_prob(x), flow.log_prob(x))
        origin = again.provenance["teacher"]
        assert origin == {
            "family": "diffusion",
            "method": method,
            "num_events": 200,
            "provenance": trained.provenance,
        }
        assert again.provenance["steps"] == 4
        assert not flow.training

    def test_scores_the_store_that_the_teacher_learned_from(self, tmp_path) -> None:
        rows = np.random.default_rng(0).normal(7, 2, (400, 3)).astype("float32")
        np.save(tmp_path / "rows.npy", rows)
        store = sf.shard(tmp_path / "rows.npy", tmp_path / "rows.zarr")
        teacher = sf.fit(Diffusion(store.event_shape, **NETWORK), store, max_steps=3, progress=False).density
        flow = sf.distill_to_flow(teacher, NSF(store.event_shape, **SMALL), **QUICK)
        assert flow.layout == teacher.layout
        scores = sf.score(flow, store, progress=False)
        np.testing.assert_allclose(np.sort(scores.log_prob), np.sort(flow.log_prob(rows)), rtol=1e-4)

    def test_the_teacher_stays_as_it_was(self, trained: Diffusion) -> None:
        before = {name: tensor.clone() for name, tensor in trained.state_dict().items()}
        state = torch.get_rng_state()
        sf.distill_to_flow(trained, NSF((2,), **SMALL), method="both", **QUICK)
        assert all(torch.equal(before[name], tensor) for name, tensor in trained.state_dict().items())
        assert torch.equal(torch.get_rng_state(), state)

    def test_a_flow_can_teach_a_flow(self) -> None:
        rows = torch.randn(200, 2) @ torch.tensor([[1.0, 0.5], [0.0, 0.2]])
        slow = sf.fit(MAF((2,), **SMALL), rows, max_steps=5, progress=False).density
        for method in METHODS:
            fast = sf.distill_to_flow(slow, RealNVP((2,), **SMALL), method=method, **QUICK)
            assert fast.log_prob(rows).shape == (200,)


class TestContexts:
    def test_by_name(self, conditional: Diffusion) -> None:
        flow = NSF((2,), context_shape={"side": Label(3)}, **SMALL)
        sf.distill_to_flow(conditional, flow, {"side": [0, 1, 2]}, **QUICK)
        assert flow.log_prob(torch.zeros(3, 2), {"side": [0, 1, 2]}).shape == (3,)
        assert flow.provenance["validation"]["count"] == 20

    def test_of_a_store(self, tmp_path) -> None:
        xr = pytest.importorskip("xarray")
        values = np.random.default_rng(0).normal(size=(300, 2)).astype("float32")
        table = xr.Dataset({"y": ("row", values[:, 0]), "x": ("row", values[:, 1])})
        store = sf.shard(table, tmp_path / "rows.zarr", variables=["y"], context=["x"])
        assert store.context_shape == (1,)
        teacher = Diffusion(store.event_shape, context_shape=store.context_shape, **NETWORK)
        sf.fit(teacher, store, max_steps=3, progress=False)
        for given in (store, tmp_path / "rows.zarr"):
            flow = NSF(store.event_shape, context_shape=store.context_shape, **SMALL)
            sf.distill_to_flow(teacher, flow, given, **QUICK)
            assert len(sf.score(flow, store, progress=False).log_prob) == 300

    def test_many_are_held_out_and_few_are_not(self) -> None:
        from sciflow.training.distill_to_flow import _parted

        many = torch.arange(100.0)[:, None].repeat(3, 1)
        train, held = _parted(many, seed=0)
        assert not set(train.flatten().tolist()) & set(held.flatten().tolist())
        assert (len(train), len(held)) == (270, 30)
        few = torch.arange(5.0)[:, None].repeat(3, 1)
        assert all(torch.equal(part, few) for part in _parted(few, seed=0))

    @pytest.mark.parametrize(
        ("context", "error", "message"),
        [
            (None, ShapeError, "conditional: give context by name: side"),
            ({"side": [0, 3]}, DataError, "side"),
            ({"side": [0.0, math.nan]}, DataError, "context: some are missing"),
            ({"side": []}, DataError, "there are 0 of them"),
        ],
    )
    def test_that_are_none_are_told_of(
        self, conditional: Diffusion, context: Any, error: type[Exception], message: str
    ) -> None:
        with pytest.raises(error, match=message):
            sf.distill_to_flow(conditional, NSF((2,), context_shape={"side": Label(3)}, **SMALL), context, **QUICK)

    def test_of_validation_come_with_its_events(self, conditional: Diffusion) -> None:
        flow = NSF((2,), context_shape={"side": Label(3)}, **SMALL)
        held = {"validation": np.zeros((4, 2)), "validation_context": {"side": [0, 1, 2, 0]}}
        sf.distill_to_flow(conditional, flow, {"side": [0, 1, 2]}, **held, **QUICK)
        assert flow.provenance["validation"]["count"] == 4
        with pytest.raises(DataError, match="validation_context without validation"):
            sf.distill_to_flow(conditional, flow, {"side": [0]}, validation_context={"side": [0]}, **QUICK)

    def test_a_teacher_without_takes_none(self, trained: Diffusion) -> None:
        with pytest.raises(ShapeError, match="has no context"):
            sf.distill_to_flow(trained, NSF((2,), **SMALL), torch.zeros(3, 1), **QUICK)


class TestBadInput:
    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"method": "regresion"}, "did you mean regression"),
            ({"num_events": 3}, "num_events must be 10 to"),
            ({"regression": 0}, "regression must be a positive number"),
            ({"seed": -1}, "seed must be 0 to"),
            ({"max_step": 5}, "max_step"),
            ({"method": "both", "sampling": {"num_steps": 5}}, "sampling: .* leave it out"),
            ({"sampling": {"num_step": 5}}, "got num_step"),
        ],
    )
    def test_settings(self, trained: Diffusion, settings: dict[str, Any], message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            sf.distill_to_flow(trained, NSF((2,), **SMALL), **{**QUICK, **settings})

    @pytest.mark.parametrize(
        ("flow", "message"),
        [
            (lambda: NSF((3,), **SMALL), r"flow: of events \[3\]; those of the teacher are \[2\]"),
            (lambda: NSF((2,), context_shape=(1,), **SMALL), r"flow: of context_shape \[1\]; .* teacher is none"),
            (lambda: Diffusion((2,), **NETWORK), "flow: give one whose log p is exact"),
            (lambda: None, "flow: give one whose log p is exact"),
        ],
    )
    def test_flows(self, trained: Diffusion, flow: Any, message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            sf.distill_to_flow(trained, flow(), **QUICK)

    def test_teachers(self, tmp_path) -> None:
        flow = NSF((2,), **SMALL)
        untrained, diverged = Diffusion((2,), **NETWORK), Diffusion((2,), **NETWORK)
        diverged.fit_preprocessing(torch.randn(20, 2))
        with torch.no_grad():
            next(diverged.parameters()).fill_(torch.nan)
        for teacher, message in [
            (untrained, "teacher: this Diffusion is not trained"),
            (diverged, "teacher: its weights are not finite"),
            (tmp_path / "nowhere", "teacher: no model at"),
            (3, "teacher: give a trained Diffusion"),
        ]:
            with pytest.raises(ConfigError, match=message):
                sf.distill_to_flow(teacher, flow, **QUICK)
        flow.fit_preprocessing(torch.randn(20, 2))
        with pytest.raises(ConfigError, match="it is the teacher itself"):
            sf.distill_to_flow(flow, flow, **QUICK)

    @pytest.mark.filterwarnings("ignore:.*draws are not finite")
    def test_draws_that_are_not_finite(self) -> None:
        def denoise(x: Tensor, t: Tensor) -> Tensor:
            return torch.where(x > 0, torch.nan, 0.1 * x)

        teacher = Diffusion.from_denoiser(denoise, (2,), VP)
        with pytest.raises(ConfigError, match=r"teacher: .* of 200 draws are not finite"):
            sf.distill_to_flow(teacher, NSF((2,), **SMALL), **QUICK)

    def test_noise_that_cannot_be_compared(self, trained: Diffusion) -> None:
        heavy = NSF((2,), base="student_t", **SMALL)
        with pytest.raises(ConfigError, match="flow: regression compares standard normal noise"):
            sf.distill_to_flow(trained, heavy, method="both", **QUICK)
        assert sf.distill_to_flow(trained, heavy, **QUICK) is heavy
        counted = NSF((2,), preprocess=["dequantize", "standardize"], **SMALL)
        with pytest.raises(ConfigError, match="flow: values that noise dequantises"):
            sf.distill_to_flow(trained, counted, method="regression", **QUICK)

    def test_draws_outside_of_the_support_of_the_flow(self) -> None:
        teacher = exact(GaussianMixture.ring())
        with pytest.raises((DataError, TrainingError)):
            sf.distill_to_flow(teacher, NSF((2,), preprocess=["log1p", "standardize"], **SMALL), **QUICK)
