"""log p of diffusion models by their probability-flow ODE: against densities that are known."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from analytic import GaussianMixture, correlated, events, few_modes
from torch import Tensor

import sciflow as sf
from sciflow import Likelihood, Status
from sciflow.diffusion import Diffusion, Schedule, schedule
from sciflow.errors import ConfigError, DerivativeError

SCHEDULES = ("vp", "cosine", "sub-vp", "ve", "edm", "flow")
SIZES = (1, 2, 8, 43)


def density(truth: GaussianMixture, given: str | Schedule = "vp", **options: Any) -> Diffusion:
    chosen = schedule(given)
    denoise: Callable[..., Tensor] = lambda x, t: truth.denoise(x, t, chosen)  # noqa: E731
    return Diffusion.from_denoiser(denoise, truth.means.shape[1:], chosen, **options).double()


def errors(found: Likelihood, truth: GaussianMixture, x: Tensor) -> Tensor:
    assert (found.status == Status.OK).all()
    return (found.log_prob - truth.log_prob(x)).abs()


class TestTruth:
    @pytest.mark.parametrize("num_features", SIZES)
    @pytest.mark.parametrize("given", SCHEDULES)
    @pytest.mark.parametrize("kind", [correlated, few_modes])
    def test_every_row_is_within_ten_tolerances(self, kind: Any, given: str, num_features: int) -> None:
        truth = kind(num_features)
        x = events(truth, 24 if num_features == 43 else 96)
        found = density(truth, given).likelihood(x, method="ode", tolerance=1e-4)
        assert found.kind == "ode"
        assert errors(found, truth, x).max() < 10 * 1e-4

    @pytest.mark.parametrize("num_features", [1, 2, 8])
    def test_tighter_tolerances_are_kept_too(self, num_features: int) -> None:
        truth = few_modes(num_features)
        x, model = events(truth, 64), density(truth, "flow")
        for tolerance in (1e-2, 1e-3, 1e-5, 1e-7):
            found = model.likelihood(x, method="ode", tolerance=tolerance)
            assert errors(found, truth, x).max() < 10 * tolerance

    @pytest.mark.parametrize("solver", ["bosh3", "dopri5", "tsit5", "dop853"])
    def test_every_solver(self, solver: str) -> None:
        truth = few_modes(8)
        x = events(truth, 32)
        found = density(truth).likelihood(x, method="ode", tolerance=1e-4, solver=solver)
        assert errors(found, truth, x).max() < 10 * 1e-4

    @pytest.mark.parametrize("tolerance", [1e-3, 1e-5])
    @pytest.mark.parametrize("num_features", SIZES)
    def test_the_error_bar_is_true(self, num_features: int, tolerance: float) -> None:
        truth = few_modes(num_features)
        x = events(truth, 100 if num_features == 43 else 400)
        found = density(truth).likelihood(x, method="ode", tolerance=tolerance)
        error = errors(found, truth, x)
        assert (error < 2 * found.error).double().mean() >= 0.95
        # Of one dimension there is no telling whether a score is one, and bars are wider.
        assert (error / found.error).median() > (0.1 if num_features > 1 else 0.04)

    @pytest.mark.parametrize("tolerance", [1e-2, 1e-4, 1e-6])
    def test_the_error_bar_is_true_off_the_bulk(self, tolerance: float) -> None:
        truth = few_modes(8)
        x = events(truth, 200, off=0.5)
        found = density(truth).likelihood(x, method="ode", tolerance=tolerance)
        error = errors(found, truth, x)
        assert (error < 2 * found.error).double().mean() >= 0.95
        assert (error / found.error).median() > 0.05

    def test_it_integrates_to_one(self) -> None:
        truth = few_modes(2)
        side = torch.linspace(-3.5, 3.5, 121, dtype=torch.float64)
        grid = torch.cartesian_prod(side, side)
        found = density(truth, "flow").likelihood(grid, method="ode", tolerance=1e-3)
        cell = float(side[1] - side[0]) ** 2
        assert abs(float(found.log_prob.exp().sum()) * cell - 1) < 1e-3

    def test_units(self) -> None:
        truth = few_modes(8)
        scale = torch.linspace(0.01, 300, 8, dtype=torch.float64)
        model = Diffusion((8,), network={"mlp": {"hidden_features": (16,)}}, seed=0).double()
        model.fit_preprocessing(truth.sample(4000, torch.Generator().manual_seed(0)))
        other = Diffusion((8,), network={"mlp": {"hidden_features": (16,)}}, seed=0).double()
        other.fit_preprocessing(scale * truth.sample(4000, torch.Generator().manual_seed(0)) + 40)
        x = events(truth, 16)
        plain, scaled = (
            density.eval().likelihood(rows, method="ode").log_prob
            for density, rows in ((model, x), (other, scale * x + 40))
        )
        torch.testing.assert_close(scaled, plain - scale.log().sum(), rtol=0, atol=1e-5)


class TestWhatMustNotMatter:
    def test_other_rows(self) -> None:
        truth = few_modes(8)
        x, model = events(truth, 1000), density(truth)
        together = model.likelihood(x, method="ode", tolerance=1e-4)
        for row in (0, 333, 999):
            alone = model.likelihood(x[row : row + 1], method="ode", tolerance=1e-4)
            for name in ("log_prob", "error"):
                difference = getattr(alone, name)[0] - getattr(together, name)[row]
                assert abs(float(difference)) < 1e-6
            assert alone.nfe[0] == together.nfe[row]

    def test_how_the_schedule_is_written(self) -> None:
        class Stretched(Schedule):
            """The same noise levels at other times, and everything three times as large."""

            def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
                alpha, sigma = schedule("cosine")(t**2)
                return 3 * alpha, 3 * sigma

        truth = few_modes(2)
        x = events(truth, 16)
        plain, other = (
            density(truth, given).likelihood(x, method="ode", tolerance=1e-8) for given in ("cosine", Stretched())
        )
        torch.testing.assert_close(other.log_prob, plain.log_prob, rtol=0, atol=1e-6)

    def test_float32(self) -> None:
        truth = few_modes(8)
        x = events(truth, 200).float()
        model = density(truth)
        double = model.likelihood(x.double(), method="ode", tolerance=1e-6)
        single = model.float().likelihood(x, method="ode", tolerance=1e-5)
        off = (single.log_prob.double() - double.log_prob).abs()
        assert single.log_prob.dtype == torch.float32
        assert off.max() < 1e-4
        assert (off < 2 * single.error).double().mean() >= 0.95

    def test_a_row_without_a_log_p(self) -> None:
        truth = few_modes(8)
        x = events(truth, 6)
        expected = density(truth).likelihood(x, method="ode")
        spoiled = x.clone()
        spoiled[1], spoiled[2], spoiled[3, 5] = torch.nan, 1e6, torch.inf
        found = density(truth).likelihood(spoiled, method="ode", max_steps=100)
        assert found.status[[1, 3]].tolist() == 2 * [Status.NON_FINITE]
        assert found.status[2] in (Status.MAX_STEPS, Status.UNDERFLOW)
        assert found.log_prob[1:4].isnan().all()
        assert found.error[1:4].isnan().all()
        torch.testing.assert_close(found.log_prob[[0, 4, 5]], expected.log_prob[[0, 4, 5]], rtol=0, atol=1e-9)

    def test_the_shape_of_events(self) -> None:
        truth = few_modes(8)
        x, chosen = events(truth, 5), schedule("vp")
        field = Diffusion.from_denoiser(
            lambda x, t: truth.denoise(x.flatten(1), t, chosen).reshape(x.shape), (2, 2, 2), chosen
        ).double()
        found = field.likelihood(x.reshape(5, 2, 2, 2), method="ode").log_prob
        torch.testing.assert_close(found, density(truth).likelihood(x, method="ode").log_prob, rtol=0, atol=1e-9)


class TestProbes:
    truth = few_modes(40)

    def test_their_error_is_true(self) -> None:
        x = events(self.truth, 120)
        for probes in (4, 16):
            found = density(self.truth).likelihood(
                x, method="ode", tolerance=1e-4, divergence="hutchinson", probes=probes
            )
            error = errors(found, self.truth, x)
            assert (error < 2 * found.error).double().mean() > 0.9
            assert 0.1 < (error / found.error).median() < 1

    def test_more_of_them_are_closer(self) -> None:
        x = events(self.truth, 120)
        few, many = (
            errors(
                density(self.truth).likelihood(x, method="ode", tolerance=1e-4, divergence="hutchinson", probes=probes),
                self.truth,
                x,
            )
            .square()
            .mean()
            for probes in (4, 32)
        )
        assert 4 < few / many < 16

    def test_of_a_row_they_are_its_own(self) -> None:
        x, model = events(self.truth, 20), density(self.truth)
        options = {"method": "ode", "divergence": "hutchinson", "probes": 4, "seed": 7}
        together = model.likelihood(x, **options).log_prob
        alone = model.likelihood(x[5:6], **options).log_prob
        torch.testing.assert_close(alone, together[5:6], rtol=0, atol=1e-9)

    def test_a_generator_and_no_seed(self) -> None:
        x, model = events(self.truth, 4), density(self.truth)

        def drawn(seed: Any) -> Tensor:
            return model.likelihood(x, method="ode", divergence="hutchinson", probes=4, seed=seed).log_prob

        assert torch.equal(drawn(torch.Generator().manual_seed(3)), drawn(torch.Generator().manual_seed(3)))
        assert not torch.equal(drawn(None), drawn(None))

    def test_too_few_for_an_error(self) -> None:
        found = density(self.truth).likelihood(events(self.truth, 3), method="ode", divergence="hutchinson", probes=1)
        assert found.error.isinf().all()

    def test_an_exact_divergence_that_is_dear_is_warned_of(self) -> None:
        model = Diffusion((200,), network={"mlp": {"hidden_features": (8,)}}, seed=0).eval()
        with pytest.warns(UserWarning, match="200 numbers takes as many products"):
            model.likelihood(torch.zeros(1, 200), method="ode", divergence="exact", tolerance=1e-3)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            model.likelihood(torch.zeros(1, 200), method="ode", tolerance=1e-3)


class TestTargetError:
    truth = few_modes(8)

    def test_tolerances_are_tightened_until_it_is_met(self) -> None:
        x = events(self.truth, 100)
        found = density(self.truth).likelihood(x, method="ode", tolerance=1e-2, target_error=1e-5)
        assert found.error.max() <= 1e-5
        assert (errors(found, self.truth, x) < 2 * found.error).double().mean() >= 0.95

    def test_probes_are_added_until_it_is_met(self) -> None:
        x = events(self.truth, 50)
        options = {"method": "ode", "divergence": "hutchinson", "probes": 4, "tolerance": 1e-3}
        plain = density(self.truth).likelihood(x, **options)
        found = density(self.truth).likelihood(x, **options, target_error=0.3, budget=10**6)
        assert plain.error.median() > 0.3 >= found.error.max()
        assert (errors(found, self.truth, x) < 2 * found.error).double().mean() > 0.9
        assert (found.nfe > plain.nfe).any()

    def test_what_cannot_be_met_is_said(self) -> None:
        x = events(self.truth, 20)
        options = {"method": "ode", "divergence": "hutchinson", "probes": 4, "tolerance": 1e-3, "budget": 2000}
        found = density(self.truth).likelihood(x, **options, target_error=1e-3)
        assert (found.status == Status.TARGET_MISSED).all()
        assert found.log_prob.isfinite().all()
        assert found.error.min() > 1e-3
        assert "20 missed the target" in repr(found)

    def test_rows_that_meet_it_cost_nothing_more(self) -> None:
        x, model = events(self.truth, 100), density(self.truth)
        plain = model.likelihood(x, method="ode", tolerance=1e-3)
        target = float(plain.error.median())
        found = model.likelihood(x, method="ode", tolerance=1e-3, target_error=target)
        met = plain.error <= target
        assert torch.equal(found.log_prob[met], plain.log_prob[met])
        assert torch.equal(found.nfe[met], plain.nfe[met])
        assert (found.nfe[~met] > plain.nfe[~met]).all()

    def test_gradients_are_those_of_the_last_round(self) -> None:
        x = events(self.truth, 20).requires_grad_()
        found = density(self.truth).likelihood(x, method="ode", tolerance=1e-2, target_error=1e-5)
        (score,) = torch.autograd.grad(found.log_prob.sum(), x)
        (expected,) = torch.autograd.grad(self.truth.log_prob(x).sum(), x)
        torch.testing.assert_close(score, expected, rtol=1e-3, atol=1e-3)


class TestGradients:
    def test_of_log_p_is_the_score(self) -> None:
        truth = few_modes(8)
        x = events(truth, 40).requires_grad_()
        found = density(truth).likelihood(x, method="ode", tolerance=1e-6)
        (score,) = torch.autograd.grad(found.log_prob.sum(), x)
        (expected,) = torch.autograd.grad(truth.log_prob(x).sum(), x)
        torch.testing.assert_close(score, expected, rtol=1e-3, atol=1e-3)

    @pytest.mark.parametrize("options", [{}, {"divergence": "hutchinson", "probes": 4}])
    def test_of_weights_is_that_of_differences(self, options: dict[str, Any]) -> None:
        model = Diffusion(
            (2,), (1,), network={"mlp": {"hidden_features": (16,), "num_frequencies": 0}}, seed=0
        ).double()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.normal_(std=0.15, generator=torch.Generator().manual_seed(parameter.numel()))
        model.eval()
        x, context = torch.rand(3, 2, dtype=torch.float64), torch.rand(3, 1, dtype=torch.float64).requires_grad_()
        weight = model.denoiser.network.last.weight

        def log_prob(tolerance: float) -> Tensor:
            return model.likelihood(x, context, method="ode", tolerance=tolerance, **options).log_prob.sum()

        of_weight, of_context = torch.autograd.grad(log_prob(1e-6), (weight, context))
        for tensor, gradient, place in ((weight, of_weight, (0, 3)), (context, of_context, (1, 0))):
            values = []
            for step in (2e-3, -4e-3):
                with torch.no_grad():
                    tensor[place] += step
                    values.append(log_prob(1e-7))
            with torch.no_grad():
                tensor[place] += 2e-3
            torch.testing.assert_close(gradient[place], (values[0] - values[1]) / 4e-3, rtol=5e-3, atol=1e-3)

    def test_a_row_that_failed_spoils_no_other(self) -> None:
        truth = few_modes(2)
        x = events(truth, 3)
        x[1] = torch.nan
        x.requires_grad_()
        found = density(truth).likelihood(x, method="ode", tolerance=1e-4)
        (gradient,) = torch.autograd.grad(found.log_prob[[0, 2]].sum(), x)
        assert gradient[[0, 2]].isfinite().all()

    def test_a_row_that_failed_spoils_no_weights(self) -> None:
        model = Diffusion((2,), network={"mlp": {"hidden_features": (8,)}}, seed=0).eval()
        x = torch.tensor([[torch.nan, 0.0], [0.5, -1.0]])
        model.likelihood(x, method="ode", tolerance=1e-3).log_prob[1].backward()
        assert all(parameter.grad.isfinite().all() for parameter in model.parameters() if parameter.grad is not None)

    def test_of_no_rows(self) -> None:
        model = Diffusion((2,), network={"mlp": {"hidden_features": (8,)}}, seed=0).eval()
        x = torch.zeros(0, 2, requires_grad=True)
        (gradient,) = torch.autograd.grad(model.likelihood(x, method="ode").log_prob.sum(), x, allow_unused=True)
        assert gradient is None or gradient.shape == (0, 2)

    def test_by_torch_func_they_are_refused(self) -> None:
        model = density(few_modes(2))
        with pytest.raises(DerivativeError, match=r"torch\.func cannot look into a solver"):
            torch.func.grad(lambda x: model.likelihood(x, method="ode").log_prob.sum())(torch.zeros(1, 2).double())

    def test_a_second_one_is_refused(self) -> None:
        truth = few_modes(2)
        x = events(truth, 2).requires_grad_()
        found = density(truth).likelihood(x, method="ode", tolerance=1e-3)
        with pytest.raises(DerivativeError, match="create_graph"):
            torch.autograd.grad(found.log_prob.sum(), x, create_graph=True)


class TestEncodeAndDecode:
    @pytest.mark.parametrize("given", SCHEDULES)
    def test_there_and_back(self, given: str) -> None:
        truth = few_modes(8)
        x, model = events(truth, 40), density(truth, given)
        z = model.encode(x)
        torch.testing.assert_close(model.decode(z), x, rtol=0, atol=1e-4)

    def test_noise_is_normal(self) -> None:
        truth = few_modes(2)
        z = density(truth).encode(truth.sample(4000, torch.Generator().manual_seed(2)))
        assert z.mean(0).abs().max() < 4 / 4000**0.5
        torch.testing.assert_close(z.T.cov(), torch.eye(2, dtype=torch.float64), rtol=0, atol=0.1)

    def test_they_have_gradients(self) -> None:
        truth = few_modes(2)
        x, model = events(truth, 4).requires_grad_(), density(truth)
        (found,) = torch.autograd.grad(model.encode(x)[:, 0].sum(), x)
        step = torch.tensor([1e-3, 0.0], dtype=torch.float64)
        with torch.no_grad():
            expected = (model.encode(x + step) - model.encode(x - step))[:, 0] / 2e-3
        torch.testing.assert_close(found[:, 0], expected, rtol=2e-2, atol=2e-2)


class TestFewSteps:
    def test_they_are_labelled(self) -> None:
        truth = few_modes(8)
        found = density(truth).likelihood(events(truth, 20), method="ode", num_steps=3)
        assert found.kind == "few-step"
        assert repr(found).startswith("Likelihood(few-step, 20 rows")

    def test_more_of_them_are_closer(self) -> None:
        truth = few_modes(8)
        x = events(truth, 40)
        few, many = (
            errors(density(truth).likelihood(x, method="ode", num_steps=num_steps), truth, x).median()
            for num_steps in (4, 16)
        )
        assert many < few / 50


class TestSurroundings:
    """Where the density is asked must not matter."""

    @pytest.fixture
    def model(self) -> Diffusion:
        network = {"mlp": {"hidden_features": (16, 16), "dropout": 0.5}}
        model = Diffusion((2,), network=network, seed=0)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.normal_(std=0.15, generator=torch.Generator().manual_seed(parameter.numel()))
        return model.eval()

    def test_training_mode(self, model: Diffusion) -> None:
        x = torch.rand(3, 2, generator=torch.Generator().manual_seed(0))
        expected = model.likelihood(x, method="ode", tolerance=1e-3).log_prob
        found = model.train().likelihood(x, method="ode", tolerance=1e-3).log_prob
        assert model.training
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(model.decode(model.encode(x)), x, rtol=0, atol=1e-3)
        model.eval()

    def test_autocast_and_inference_mode(self, model: Diffusion) -> None:
        x = torch.rand(3, 2, generator=torch.Generator().manual_seed(0))
        expected = model.likelihood(x, method="ode", tolerance=1e-3).log_prob.detach()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            torch.testing.assert_close(model.likelihood(x, method="ode", tolerance=1e-3).log_prob.detach(), expected)
        with torch.inference_mode():
            inside = model.likelihood(x.clone(), method="ode", tolerance=1e-3).log_prob
        torch.testing.assert_close(inside.clone(), expected)

    def test_a_denoiser_without_derivatives_is_refused(self) -> None:
        chosen = schedule("vp")

        def denoise(x: Tensor, t: Tensor) -> Tensor:
            with torch.no_grad():
                return few_modes(2).denoise(x, t, chosen)

        model = Diffusion.from_denoiser(denoise, (2,), chosen)
        with pytest.raises(DerivativeError, match=r"leave out torch\.no_grad and detach"):
            model.likelihood(torch.zeros(2, 2), method="ode")


class TestWhatIsRefused:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"tolerance": 0}, "tolerance: a positive number of nats"),
            ({"tolerance": -1e-3}, "tolerance: a positive number of nats"),
            ({"tolerance": float("nan")}, "tolerance: a positive number of nats"),
            ({"tolerance": "tight"}, "tolerance: a positive number of nats"),
            ({"tolerance": 1e-9}, r"float32 holds 1\.2e-06 and above; got 1e-09\. Use \.double\(\)"),
            ({"probes": 0}, "probes must be 1 to"),
            ({"divergence": "exakt"}, "did you mean exact"),
            ({"solver": "rk45"}, "solver: unknown 'rk45'"),
            ({"solver": ["dopri5"]}, "solver: unknown"),
            ({"num_steps": 0}, "num_steps must be 1 to"),
            ({"target_error": 0}, "target_error must be a positive number"),
            ({"target_error": 0.1, "num_steps": 4}, "leave one out"),
            ({"budget": 0}, "budget must be 1 to"),
            ({"max_steps": 0}, "max_steps must be 1 to"),
            ({"seed": -1}, "seed must be 0 to"),
            ({"tolerence": 1e-3}, "'tolerence': unknown option; did you mean tolerance"),
        ],
    )
    def test_options(self, options: dict[str, Any], message: str) -> None:
        model = Diffusion((2,), network={"mlp": {"hidden_features": (8,)}}, seed=0).eval()
        with pytest.raises(ConfigError, match=message):
            model.likelihood(torch.zeros(0, 2), method="ode", **options)

    def test_of_no_rows(self) -> None:
        model = Diffusion((2,), network={"mlp": {"hidden_features": (8,)}}, seed=0).eval()
        assert len(model.likelihood(torch.zeros(0, 2), method="ode")) == 0
        assert model.likelihood(torch.zeros(0, 2), method="ode", num_steps=3).kind == "few-step"
        assert sf.score(model, torch.zeros(3, 2), method="ode", tolerance=1e-3).attrs["likelihood"] == "ode"
