"""ActNorm begins where the data are: once, alike in every process, and never again after loading."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from safetensors.torch import load, save
from torch import Tensor

import sciflow
from sciflow.bijections import ActNorm, Bijection, Composite, Coupling, ShiftScale, Squeezed, initialise
from sciflow.errors import DataError, TrainingError
from sciflow.flows import Glow
from sciflow.nets import ResidualMLP

SMALL = {"num_transforms": 2, "hidden_features": (8, 8), "seed": 0}


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def moments(z: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of every feature or channel."""
    values = z.detach().movedim(1, 0).flatten(1)
    return values.mean(1), values.std(1, correction=0)


def assert_normal(z: Tensor, tolerance: float = 1e-5) -> None:
    mean, std = moments(z)
    torch.testing.assert_close(mean, torch.zeros_like(mean), rtol=0, atol=tolerance)
    torch.testing.assert_close(std, torch.ones_like(std), rtol=0, atol=tolerance)


@pytest.mark.parametrize("event_shape", [(3,), (3, 4, 5)])
class TestBeginning:
    def rows(self, event_shape: tuple[int, ...], n: int = 50) -> Tensor:
        scale = torch.tensor([0.01, 1.0, 300.0]).reshape(3, *[1] * (len(event_shape) - 1))
        return scale * torch.randn(n, *event_shape) + 5 * scale - 1

    def test_the_first_training_batch_gets_mean_0_and_variance_1(self, event_shape: tuple[int, ...]) -> None:
        x = self.rows(event_shape)
        actnorm = ActNorm(event_shape)
        z, log_det = actnorm(x)
        assert_normal(z)
        expected = -moments(x)[1].log().sum() * x[0, 0].numel()
        torch.testing.assert_close(log_det, expected.expand(50), rtol=1e-4, atol=1e-4)

    def test_only_the_first(self, event_shape: tuple[int, ...]) -> None:
        actnorm = ActNorm(event_shape)
        actnorm(self.rows(event_shape))
        before = copy.deepcopy(actnorm.state_dict())
        actnorm(1000 + self.rows(event_shape))
        assert all(torch.equal(before[name], value) for name, value in actnorm.state_dict().items())

    def test_evaluation_changes_nothing(self, event_shape: tuple[int, ...]) -> None:
        actnorm, x = ActNorm(event_shape).eval(), self.rows(event_shape)
        assert torch.equal(actnorm(x)[0], x)
        assert not actnorm.is_fitted
        assert not actnorm.initialised

    def test_a_loaded_one_never_begins_again(self, event_shape: tuple[int, ...]) -> None:
        trained = ActNorm(event_shape)
        trained(self.rows(event_shape))
        loaded = ActNorm(event_shape)
        loaded.load_state_dict(load(save(trained.state_dict())))
        assert loaded.training
        assert loaded.is_fitted
        other = 1000 + self.rows(event_shape)
        assert torch.equal(loaded(other)[0], trained(other)[0])
        assert torch.equal(copy.deepcopy(loaded)(other)[0], trained(other)[0])

    def test_fit_begins_anew(self, event_shape: tuple[int, ...]) -> None:
        actnorm, x = ActNorm(event_shape), self.rows(event_shape)
        actnorm(1000 + x)
        assert_normal(actnorm.fit(x)(x)[0])

    def test_the_first_step_compiles_as_one_graph(self, event_shape: tuple[int, ...]) -> None:
        torch._dynamo.reset()
        actnorm, x = ActNorm(event_shape), self.rows(event_shape)
        twin = copy.deepcopy(actnorm)
        compiled = torch.compile(actnorm.forward, fullgraph=True, backend="aot_eager")
        for batch in (x, 2 * x):
            torch.testing.assert_close(compiled(batch), twin(batch))
        assert_normal(compiled(x)[0])
        assert actnorm.is_fitted

    def test_gradients_are_those_of_the_weights_alone(self, event_shape: tuple[int, ...]) -> None:
        x = self.rows(event_shape).requires_grad_()
        actnorm = ActNorm(event_shape)
        z, _ = actnorm(x)
        (gradient,) = torch.autograd.grad(z.sum(), x)
        slope = actnorm.log_scale.detach().neg().exp().expand(x.shape)
        torch.testing.assert_close(gradient, slope)


class TestAwkwardRows:
    def test_a_constant_feature_keeps_its_unit(self) -> None:
        x = torch.stack((torch.full((20,), 101325.1), torch.zeros(20), torch.randn(20)), 1)
        z, _ = ActNorm((3,))(x)
        assert torch.equal(z[:, :2], torch.zeros(20, 2))
        assert_normal(z[:, 2:])

    def test_a_small_spread_about_a_large_mean_is_a_spread(self) -> None:
        x = 1e5 + torch.randn(1000, 1, dtype=torch.float64)
        assert_normal(ActNorm((1,)).double()(x)[0], tolerance=1e-9)

    @pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
    def test_what_is_not_finite_does_not_count(self, bad: float) -> None:
        x = 7 + 3 * torch.randn(50, 2)
        x[3, 1] = bad
        z, _ = ActNorm((2,))(x)
        assert_normal(z[:, :1])
        assert_normal(torch.cat((z[:3, 1:], z[4:, 1:])))

    def test_a_feature_without_a_finite_value_stays_as_it_is(self) -> None:
        actnorm = ActNorm((1,))
        actnorm(torch.full((5, 1), torch.nan))
        assert actnorm.mean == 0
        assert actnorm.log_scale == 0

    @pytest.mark.parametrize("num_rows", [0, 1])
    def test_one_row_of_a_vector_waits_for_more(self, num_rows: int) -> None:
        actnorm, x = ActNorm((2,)), torch.randn(9, 2)
        assert torch.equal(actnorm(x[:num_rows])[0], x[:num_rows])
        assert not actnorm.is_fitted
        assert_normal(actnorm(x)[0])
        with pytest.raises(DataError, match=r"two values of each feature or more; got rows \[1, 2\]"):
            ActNorm((2,)).fit(x[:1])

    def test_one_field_is_enough(self) -> None:
        assert_normal(ActNorm((2, 4, 4))(3 + torch.randn(1, 2, 4, 4))[0])

    def test_processes_that_see_other_rows_must_be_told_where_to_begin(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
        monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
        x = torch.randn(9, 2)
        with pytest.raises(TrainingError, match=r"call fit_preprocessing\(rows\).*on the same rows in all of them"):
            ActNorm((2,))(x)
        chain = Composite([ActNorm((2,))])
        initialise(chain, x)
        assert_normal(chain(x)[0])


class TestInitialise:
    def chain(self) -> Bijection:
        network = lambda n, m: ResidualMLP(n, m, (8, 8), dropout=0.5)  # noqa: E731
        coupling = Coupling(4, ShiftScale(), network, num_context=2)
        torch.nn.init.normal_(coupling.network.last.weight)
        return Composite([ActNorm((4,)), coupling, ActNorm((4,))])

    def test_each_begins_from_what_those_before_it_make_of_the_rows(self) -> None:
        chain, x, context = self.chain(), 3 * torch.randn(40, 4) + 1, torch.randn(40, 2)
        initialise(chain, x, context)
        assert chain.is_fitted
        assert all(module.training for module in chain.modules())
        # In eval mode: without dropout.
        assert_normal(chain.eval()(x, context)[0])

    def test_one_that_has_begun_is_left_alone(self) -> None:
        chain, context = self.chain(), torch.randn(40, 2)
        initialise(chain, torch.randn(40, 4), context)
        before = copy.deepcopy(chain.state_dict())
        initialise(chain, 1000 + torch.randn(40, 4), context)
        assert all(torch.equal(before[name], value) for name, value in chain.state_dict().items())

    def test_a_view_of_a_field_passes_fit_on(self) -> None:
        squeezed = Squeezed(ActNorm((4, 2, 2)), (1, 4, 4))
        assert not squeezed.is_fitted
        x = 5 + 2 * torch.randn(30, 1, 4, 4)
        squeezed.fit(x)
        assert squeezed.is_fitted
        assert_normal(torch.nn.functional.pixel_unshuffle(squeezed(x)[0], 2))


@pytest.mark.parametrize("event_shape", [(3,), (2, 4, 4)])
class TestGlow:
    def flow(self, event_shape: tuple[int, ...], **arguments) -> Glow:
        return Glow(event_shape, (2,), **SMALL, **arguments)

    def test_fit_preprocessing_lets_every_actnorm_begin(self, event_shape: tuple[int, ...]) -> None:
        flow = self.flow(event_shape, preprocess=["dequantize", "standardize"], dropout=0.3)
        x, context = torch.randint(0, 50, (300, *event_shape)).float(), torch.randn(300, 2)
        flow.fit_preprocessing(x, context)
        assert flow.training
        twin = self.flow(event_shape, preprocess=["dequantize", "standardize"], dropout=0.3)
        twin.fit_preprocessing(x, context)
        assert all(
            torch.equal(a, b) for a, b in zip(flow.state_dict().values(), twin.state_dict().values(), strict=True)
        )
        found = [module for module in flow.modules() if isinstance(module, ActNorm)]
        assert len(found) == 2 * (2 if len(event_shape) == 3 else 1)
        seen: list[Tensor] = []
        for actnorm in found:
            assert actnorm.initialised
            actnorm.register_forward_hook(lambda module, given, out: seen.append(out[0]))
        flow.eval().encode(x, context)  # which sees the centres of the cells, as the beginning did
        for z in seen:
            assert_normal(z, tolerance=1e-4)

    def test_training_goes_on_from_a_saved_model(self, event_shape: tuple[int, ...], tmp_path) -> None:
        x, context = 3 * torch.randn(200, *event_shape) + 1, torch.randn(200, 2)
        flow = self.flow(event_shape)
        flow.loss(x, context)
        loaded = sciflow.load(flow.save(tmp_path / "model"))
        loaded.train()
        other = 10 * x
        assert torch.equal(loaded.loss(other, context), flow.loss(other, context))
        for name, value in loaded.state_dict().items():
            assert torch.equal(flow.state_dict()[name], value), name

    def test_sciflow_fit_begins_from_training_rows(self, event_shape: tuple[int, ...]) -> None:
        x = np.random.default_rng(0).normal(5, 2, (300, *event_shape)).astype("float32")
        context = np.random.default_rng(1).normal(size=(300, 2)).astype("float32")
        flow = self.flow(event_shape)
        fitted = sciflow.fit(flow, x, context=context, max_steps=5, progress=False)
        assert all(module.initialised for module in flow.modules() if isinstance(module, ActNorm))
        assert fitted.steps == 5
