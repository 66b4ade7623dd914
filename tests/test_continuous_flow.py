"""Continuous flows: log p against densities whose velocity is known, and what training finds."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from analytic import Gaussian, GaussianMixture, correlated, events, few_modes
from torch import Tensor, nn

import sciflow as sf
from sciflow import Likelihood, Status
from sciflow.contexts import Label
from sciflow.diffusion import Diffusion
from sciflow.errors import ConfigError, DerivativeError, ModelFileError, SciflowError
from sciflow.families import build, load
from sciflow.flows import NSF, ContinuousFlow
from sciflow.flows.continuous_flow import _SOFT
from sciflow.ode.discretised import discretised, jittered

SMALL: dict[str, Any] = {"network": {"mlp": {"hidden_features": (16, 16), "num_frequencies": 1}}, "seed": 0}
COVARIANCE = torch.tensor([[2.0, 1.2], [1.2, 1.5]], dtype=torch.float64)


class Known(nn.Module):
    """A network that answers so that the velocity is that of a known density."""

    def __init__(self, truth: GaussianMixture) -> None:
        super().__init__()
        self.truth = truth
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor, level: Tensor, context: Tensor | None = None) -> Tensor:
        ratio = torch.exp(4 * level)
        t = ((1 + _SOFT) * ratio - _SOFT) / (1 + ratio)
        size = (t**2 + (1 - t) ** 2)[:, None]
        z = size.sqrt() * x.flatten(1)
        return self.scale * (self.truth.velocity(z, t) - (2 * t - 1)[:, None] / size * z).reshape(x.shape)


def known(truth: GaussianMixture, event_shape: tuple[int, ...] | None = None) -> ContinuousFlow:
    shape = event_shape or tuple(truth.means.shape[1:])
    return ContinuousFlow(shape, network=Known(truth), preprocess="none").double().eval()


def moved(flow: ContinuousFlow) -> ContinuousFlow:
    """With every weight off its neutral start, at which a wrong formula may look right."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter += 0.15 * torch.randn(parameter.shape, generator=generator).to(parameter)
    return flow.eval()


def errors(found: Likelihood, truth: GaussianMixture, x: Tensor) -> Tensor:
    assert (found.status == Status.OK).all()
    return (found.log_prob.detach() - truth.log_prob(x)).abs()


class TestTruth:
    @pytest.mark.parametrize("num_features", [1, 2, 8])
    @pytest.mark.parametrize("kind", [correlated, few_modes])
    def test_rows_are_within_the_tolerance(self, kind: Any, num_features: int) -> None:
        truth = kind(num_features)
        x, flow = events(truth, 64), known(truth)
        for tolerance in (1e-2, 1e-3, 1e-5, 1e-7):
            found = flow.likelihood(x, tolerance=tolerance)
            error = errors(found, truth, x)
            assert found.kind == "ode"
            assert error.quantile(0.9) < 2 * tolerance
            assert error.max() < 30 * tolerance  # between modes, by the loosest tolerance

    @pytest.mark.parametrize("solver", ["bosh3", "dopri5", "tsit5", "dop853"])
    def test_every_solver(self, solver: str) -> None:
        truth = few_modes(2)
        x = events(truth, 64)
        found = known(truth).likelihood(x, tolerance=1e-4, solver=solver)
        error = errors(found, truth, x)
        assert error.max() < 1e-3
        assert (error < 2 * found.error).double().mean() >= 0.95

    @pytest.mark.parametrize("tolerance", [1e-3, 1e-5])
    @pytest.mark.parametrize("num_features", [1, 2, 8])
    def test_the_error_bar_is_true(self, num_features: int, tolerance: float) -> None:
        truth = few_modes(num_features)
        x = events(truth, 200)
        found = known(truth).likelihood(x, tolerance=tolerance)
        error = errors(found, truth, x)
        assert (error < 2 * found.error).double().mean() >= 0.95
        # What is known is smoother than what is learned, for which bars are made.
        assert (error / found.error).median() > 0.003

    def test_the_error_bar_of_a_network_is_true(self) -> None:
        flow = moved(ContinuousFlow((2,), network={"mlp": {"hidden_features": (32, 32)}}, seed=0).double())
        x = torch.randn(60, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            truth = flow.likelihood(x, tolerance=1e-7).log_prob
            found = flow.likelihood(x, tolerance=1e-3)
        error = (found.log_prob - truth).abs()
        assert (error < 2 * found.error).double().mean() >= 0.95
        assert (error / found.error).median() > 0.01

    def test_probes_agree_with_their_error(self) -> None:
        truth = few_modes(20)
        x = events(truth, 100)
        found = known(truth).likelihood(x, tolerance=1e-3, divergence="hutchinson", probes=16)
        error = errors(found, truth, x)
        assert (error < 2 * found.error).double().mean() > 0.9
        assert 0.1 < (error / found.error).median() < 1

    def test_a_target_for_the_error_is_met(self) -> None:
        truth = few_modes(2)
        x = events(truth, 50)
        found = known(truth).likelihood(x, tolerance=1e-2, target_error=1e-5)
        assert found.error.max() <= 1e-5
        assert (errors(found, truth, x) < 2 * found.error).double().mean() >= 0.95

    def test_few_steps_are_labelled_and_more_are_closer(self) -> None:
        truth = few_modes(2)
        x, flow = events(truth, 50), known(truth)
        few, many = (flow.likelihood(x, num_steps=num_steps) for num_steps in (4, 16))
        assert few.kind == many.kind == "few-step"
        assert errors(many, truth, x).median() < errors(few, truth, x).median() / 50
        assert (errors(many, truth, x) < 2 * many.error).double().mean() >= 0.95

    def test_the_gradient_of_log_p_is_the_score(self) -> None:
        truth = few_modes(8)
        x = events(truth, 10).requires_grad_()
        (score,) = torch.autograd.grad(known(truth).log_prob(x).sum(), x)
        (expected,) = torch.autograd.grad(truth.log_prob(x).sum(), x)
        torch.testing.assert_close(score, expected, rtol=1e-3, atol=1e-3)

    def test_noise_is_normal_and_draws_are_the_mixture(self) -> None:
        truth = few_modes(2)
        flow = known(truth)
        z = flow.encode(truth.sample(2000, torch.Generator().manual_seed(2)), tolerance=1e-3).detach()
        assert z.mean(0).abs().max() < 4 / 2000**0.5
        torch.testing.assert_close(z.T.cov(), torch.eye(2, dtype=torch.float64), rtol=0, atol=0.15)
        x = flow.sample(2000, seed=0)
        torch.testing.assert_close(x.T.cov(), truth.covariance, rtol=0, atol=0.15)


class TestWhatMustNotMatter:
    def test_other_rows(self) -> None:
        truth = few_modes(8)
        x, flow = events(truth, 200), known(truth)
        together = flow.likelihood(x, tolerance=1e-4)
        for row in (0, 99, 199):
            alone = flow.likelihood(x[row : row + 1], tolerance=1e-4)
            assert abs(float((alone.log_prob[0] - together.log_prob[row]).detach())) < 1e-9
            assert float(alone.error[0]) == pytest.approx(float(together.error[row]), rel=1e-4)
            assert alone.nfe[0] == together.nfe[row]

    def test_the_shape_of_events(self) -> None:
        truth = few_modes(8)
        x = events(truth, 5)
        found = known(truth, (2, 2, 2)).log_prob(x.reshape(5, 2, 2, 2))
        torch.testing.assert_close(found, known(truth).log_prob(x), rtol=0, atol=1e-9)

    def test_float32(self) -> None:
        truth = few_modes(8)
        x = events(truth, 100)
        found = known(truth).float().likelihood(x.float(), tolerance=1e-4)
        assert found.log_prob.dtype == torch.float32
        error = errors(found, truth, x.float().double())
        assert error.max() < 1e-3
        assert (error < 2 * found.error).double().mean() >= 0.95

    def test_units(self) -> None:
        scale = torch.tensor([0.01, 300.0], dtype=torch.float64)
        rows = events(few_modes(2), 400)
        values = []
        for of_data in (torch.ones(2, dtype=torch.float64), scale):
            flow = moved(ContinuousFlow((2,), **SMALL).double())
            flow.fit_preprocessing(of_data * rows + 40)
            values.append(flow.log_prob((of_data * rows + 40)[:20]).detach())
        torch.testing.assert_close(values[1], values[0] - scale.log().sum(), rtol=0, atol=1e-5)

    def test_a_row_without_a_log_p(self) -> None:
        truth = few_modes(2)
        x = events(truth, 4)
        flow, spoiled = known(truth), x.clone()
        spoiled[1], spoiled[2, 1] = torch.nan, torch.inf
        found = flow.likelihood(spoiled)
        assert found.status.tolist() == [Status.OK, Status.NON_FINITE, Status.NON_FINITE, Status.OK]
        assert found.log_prob[1:3].isnan().all()
        torch.testing.assert_close(found.log_prob[[0, 3]], flow.log_prob(x)[[0, 3]], rtol=0, atol=1e-9)
        z = flow.encode(spoiled)
        assert z[1:3].isnan().all()
        assert z[[0, 3]].isfinite().all()

    def test_how_log_p_is_asked_for(self) -> None:
        flow = moved(ContinuousFlow((2,), **SMALL))
        x = torch.randn(5, 2, generator=torch.Generator().manual_seed(0))
        assert torch.equal(flow.log_prob(x), flow.likelihood(x).log_prob)
        assert torch.equal(flow.log_prob(x), flow.likelihood(x, method="ode", tolerance=1e-5).log_prob)
        assert flow.log_prob(x.reshape(5, 1, 2)).shape == (5, 1)
        assert flow.log_prob(torch.zeros(0, 2)).shape == flow.encode(torch.zeros(0, 2)).shape[:1] == (0,)


class TestTheMap:
    def test_decode_undoes_encode(self) -> None:
        truth = few_modes(8)
        x, flow = events(truth, 20), known(truth)
        for tolerance in (1e-3, 1e-6):
            back = flow.decode(flow.encode(x, tolerance=tolerance), tolerance=tolerance)
            assert (back - x).abs().max() < 3 * tolerance

    def test_it_begins_as_a_standard_normal(self) -> None:
        x = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))
        for flow in (ContinuousFlow((3,), **SMALL), ContinuousFlow((3,), pairing="optimal-transport", **SMALL)):
            expected = torch.distributions.Normal(0.0, 1.0).log_prob(x).sum(1)
            torch.testing.assert_close(flow.eval().log_prob(x), expected, rtol=0, atol=1e-4)

    def test_gradients_of_weights_and_context_are_those_of_differences(self) -> None:
        flow = moved(ContinuousFlow((2,), (1,), **SMALL).double())
        generator = torch.Generator().manual_seed(0)
        x, context = torch.randn(2, 3, 2, generator=generator, dtype=torch.float64).unbind()
        context = context[:, :1].clone().requires_grad_()
        weight = flow.network.last.weight

        def log_prob() -> Tensor:
            return flow.likelihood(x, context, num_steps=8).log_prob.sum()

        of_weight, of_context = torch.autograd.grad(log_prob(), (weight, context))
        for tensor, gradient, place in ((weight, of_weight, (0, 3)), (context, of_context, (1, 0))):
            values = []
            for step in (1e-4, -2e-4):
                with torch.no_grad():
                    tensor[place] += step
                    values.append(log_prob())
            with torch.no_grad():
                tensor[place] += 1e-4
            difference = (values[0] - values[1]) / 2e-4
            torch.testing.assert_close(gradient[place].double(), difference.double(), rtol=1e-4, atol=1e-4)

    def test_a_second_gradient_is_refused(self) -> None:
        flow, x = moved(ContinuousFlow((2,), **SMALL)), torch.zeros(2, 2, requires_grad=True)
        with pytest.raises(DerivativeError, match="create_graph"):
            torch.autograd.grad(flow.log_prob(x).sum(), x, create_graph=True)

    def test_draws_follow_the_seed(self) -> None:
        flow = moved(ContinuousFlow((2,), **SMALL))
        assert torch.equal(flow.sample(5, seed=1), flow.sample(5, seed=1))
        assert not torch.equal(flow.sample(5, seed=1), flow.sample(5, seed=2))
        loose = flow.sample(5, seed=1, tolerance=0.1)
        torch.testing.assert_close(loose, flow.sample(5, seed=1, tolerance=1e-5), rtol=0, atol=0.1)


class TestContext:
    def test_it_broadcasts_and_matters(self) -> None:
        flow = moved(ContinuousFlow((2,), (3,), **SMALL))
        x, context = torch.zeros(4, 2), torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
        each = flow.log_prob(x, context)
        assert len(set(each.tolist())) == 4
        torch.testing.assert_close(flow.log_prob(x, context[2])[0], each[2], rtol=0, atol=1e-6)
        assert flow.sample(5, context, seed=0).shape == (5, 4, 2)

    def test_one_that_is_none_has_no_answer(self) -> None:
        flow = moved(ContinuousFlow((2,), (1,), **SMALL))
        context = torch.tensor([[0.0], [torch.nan]])
        found = flow.likelihood(torch.zeros(2, 2), context)
        assert found.status.tolist() == [Status.OK, Status.NON_FINITE]
        assert flow.encode(torch.zeros(2, 2), context).isnan().all(1).tolist() == [False, True]
        with pytest.warns(UserWarning, match="draws are not finite"):
            assert flow.sample(1, context, seed=0).isnan().all(2).tolist() == [[False, True]]

    def test_labels_and_fields(self) -> None:
        flow = ContinuousFlow((1, 4, 4), {"season": Label(4)}, network={"unet": {"channels": 4}}, seed=0).eval()
        found = flow.likelihood(torch.zeros(2, 1, 4, 4), {"season": torch.tensor([0, 3])}, num_steps=4)
        assert found.log_prob.isfinite().all()


def pairs(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).multivariate_normal([3.0, -1.0], COVARIANCE.numpy(), size=n)


@pytest.fixture(scope="module", params=["flow-matching", "optimal-transport", "likelihood"])
def trained(request: pytest.FixtureRequest) -> ContinuousFlow:
    by_likelihood = request.param == "likelihood"
    flow = ContinuousFlow(
        (2,),
        trained_by="likelihood" if by_likelihood else "flow-matching",
        pairing="optimal-transport" if request.param == "optimal-transport" else "independent",
        network={"mlp": {"hidden_features": (32,) if by_likelihood else (32, 32), "num_frequencies": 0}},
        seed=0,
    )
    settings = {"max_steps": 25, "batch_size": 256} if by_likelihood else {"max_steps": 700, "batch_size": 128}
    sf.fit(flow, pairs(2000), pairs(200, 1), seed=0, learning_rate=5e-3, validate_every=700, **settings)
    return flow


class TestTraining:
    def test_it_finds_a_correlated_gaussian(self, trained: ContinuousFlow) -> None:
        x = torch.from_numpy(pairs(500, 2))
        truth = Gaussian([3.0, -1.0], COVARIANCE).log_prob(x)
        gap = truth - trained.likelihood(x, tolerance=1e-2).log_prob.detach()
        assert abs(float(gap.mean())) < 0.05

    def test_what_it_finds_integrates_to_one(self, trained: ContinuousFlow) -> None:
        first, second = torch.linspace(-5, 11, 61), torch.linspace(-8, 6, 61)
        grid = torch.cartesian_prod(first, second)
        density = trained.likelihood(grid, tolerance=1e-2).log_prob.detach().double().exp()
        cell = float(first[1] - first[0]) * float(second[1] - second[0])
        assert abs(float(density.sum()) * cell - 1) < 5e-3

    def test_the_loss_of_evaluation_is_minus_log_p(self, trained: ContinuousFlow) -> None:
        x = torch.from_numpy(pairs(20, 3))
        torch.testing.assert_close(-trained.loss(x), trained.log_prob(x), rtol=0, atol=0.1)

    def test_it_goes_on_by_likelihood(self) -> None:
        flow = ContinuousFlow((2,), **SMALL)
        rows = pairs(600)
        sf.fit(flow, rows, seed=0, max_steps=20)
        before = {name: tensor.clone() for name, tensor in flow.preprocess.state_dict().items()}
        flow.trained_by = "likelihood"
        fitted = sf.fit(flow, rows, seed=0, max_steps=3, learning_rate=1e-4)
        assert all(torch.equal(tensor, before[name]) for name, tensor in flow.preprocess.state_dict().items())
        assert fitted.validation.mean > -4
        assert flow.arguments["trained_by"] == "likelihood"

    def test_a_row_outside_the_support_is_told_of(self) -> None:
        for way in ("flow-matching", "likelihood"):
            flow = ContinuousFlow((1,), trained_by=way, preprocess=["log", "standardize"], **SMALL)
            flow.fit_preprocessing(torch.rand(50, 1) + 0.5)
            assert not torch.isfinite(flow.train().loss(torch.tensor([[1.0], [-1.0]]))[1])
            assert torch.isposinf(flow.eval().loss(torch.tensor([[1.0], [-1.0]]))[1])

    def test_likelihood_by_few_steps_is_near_log_p(self) -> None:
        flow = moved(ContinuousFlow((2,), trained_by="likelihood", **SMALL))
        x = torch.randn(100, 2, generator=torch.Generator().manual_seed(0))
        torch.manual_seed(0)
        losses = torch.stack([flow.train().loss(x).mean().detach() for _ in range(20)])  # each with its own probes
        found = losses + flow.eval().likelihood(x, tolerance=1e-2).log_prob.mean().detach()
        standard_error = float(found.std()) / 20**0.5
        assert -3 * standard_error < found.mean() < 0.3  # of kinetic energy and roughness

    def test_loss_has_the_gradient_of_differences(self) -> None:
        flow = moved(ContinuousFlow((4,), trained_by="likelihood", **SMALL).double()).train()
        x, weight = torch.randn(6, 4, dtype=torch.float64), flow.network.last.weight

        def loss() -> Tensor:
            torch.manual_seed(0)
            return flow.loss(x).sum()

        (gradient,) = torch.autograd.grad(loss(), weight)
        values = []
        for step in (1e-5, -2e-5):
            with torch.no_grad():
                weight[1, 2] += step
            values.append(loss().detach())
        torch.testing.assert_close(gradient[1, 2], (values[0] - values[1]) / 2e-5, rtol=1e-5, atol=1e-6)


class TestDiscretised:
    def test_integrals_of_a_linear_field_are_known(self) -> None:
        matrix = torch.tensor([[0.3, 1.0], [-0.5, 0.2]], dtype=torch.float64)
        z = torch.eye(2, dtype=torch.float64)
        found, other = (
            discretised(lambda t, z: z @ matrix.mT, z, torch.linspace(0, 1, 17).double(), probes.expand(2, 2))
            for probes in torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64)
        )
        torch.testing.assert_close(found.end, z @ torch.matrix_exp(matrix).mT, rtol=0, atol=1e-6)
        # Two signs that are orthogonal know the sums over a basis.
        for name, expected in (("log_det", matrix.trace()), ("roughness", matrix.square().sum())):
            mean = (getattr(found, name) + getattr(other, name)) / 2
            torch.testing.assert_close(mean, expected.expand(2))

    def test_times_rise_from_0_to_1(self) -> None:
        for _ in range(20):
            times = jittered(4, torch.device("cpu"))
            assert times[0] == 0
            assert times[-1] == 1
            assert (times.diff() > 0).all()


class TestSaving:
    def test_it_is_the_same_afterwards(self, tmp_path) -> None:
        flow = moved(ContinuousFlow((2,), (1,), **SMALL))
        flow.trained_by = "likelihood"
        again = load(flow.save(tmp_path / "model"))
        x, context = torch.zeros(3, 2), torch.ones(1)
        assert torch.equal(again.log_prob(x, context), flow.log_prob(x, context))
        assert again.arguments == flow.arguments
        assert again.relative_steps == flow.relative_steps == 1

    def test_a_network_of_the_users_own_is_not_saved(self, tmp_path) -> None:
        with pytest.raises(ModelFileError, match="this flow has a network of your own"):
            known(few_modes(2)).save(tmp_path / "model")

    def test_a_workflow_names_it(self) -> None:
        built = build({"name": "continuous_flow", "trained_by": "likelihood", "seed": 0}, (2,))
        assert isinstance(built, ContinuousFlow)
        assert "trained_by='likelihood'" in repr(built)


class TestWhatIsRefused:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"trained_by": "matching"}, "ContinuousFlow: trained_by: got 'matching'; did you mean flow-matching"),
            ({"trained_by": ["likelihood"]}, "trained_by: got .'likelihood'.; did you mean"),
            ({"trained_by": None}, "trained_by: got None"),
            ({"pairing": "optimal"}, "ContinuousFlow: pairing: got 'optimal'"),
            ({"pairing": "optimal-transport", "context_shape": (1,)}, "bends p"),
            ({"network": "perceptron"}, "network: unknown 'perceptron'"),
            ({"network": {"mlp": {"width": 3}}}, "network: mlp: 'width': unknown size"),
            ({"preprocess": "standardise"}, "did you mean standardize"),
            ({"seed": -1}, "seed must be 0 to"),
            ({"event_shape": (2.5,)}, "event_shape must be a sequence of whole numbers"),
        ],
    )
    def test_arguments(self, arguments: dict[str, Any], message: str) -> None:
        with pytest.raises(SciflowError, match=message):
            ContinuousFlow(**{"event_shape": (2,), **arguments})

    def test_a_way_to_train_that_there_is_not(self) -> None:
        flow = ContinuousFlow((2,), **SMALL)
        with pytest.raises(ConfigError, match="trained_by: got 'likelyhood'; did you mean likelihood"):
            flow.trained_by = "likelyhood"
        assert flow.trained_by == "flow-matching"

    def test_options_and_methods(self) -> None:
        flow, x = ContinuousFlow((2,), **SMALL).eval(), torch.zeros(1, 2)
        with pytest.raises(ConfigError, match="by method 'ode' alone; got 'elbo'"):
            flow.likelihood(x, method="elbo")
        with pytest.raises(ConfigError, match="'tolerence': unknown option; did you mean tolerance"):
            flow.likelihood(x, tolerence=1e-3)
        with pytest.raises(ConfigError, match="ContinuousFlow: sample: 'num_steps': unknown option; known: tolerance"):
            flow.sample(1, num_steps=5)

    @pytest.mark.parametrize("density", [ContinuousFlow((2,), **SMALL), Diffusion((2,), **SMALL)], ids=repr)
    @pytest.mark.parametrize("method", ["encode", "decode"])
    def test_tolerances_of_the_map(self, density: Any, method: str) -> None:
        carried = getattr(density.eval(), method)
        for tolerance in (0, -1.0, math.nan, math.inf, "tight", True, [1e-3]):
            with pytest.raises(ConfigError, match=f"{method}: tolerance: a positive number of nats"):
                carried(torch.zeros(1, 2), tolerance=tolerance)
        with pytest.raises(ConfigError, match=r"float32 holds 1\.2e-06 and above; got 1e-09\. Use \.double"):
            carried(torch.zeros(1, 2), tolerance=1e-9)
        with pytest.raises(ConfigError, match=f"{method}: 'tolerence': unknown option; did you mean tolerance"):
            carried(torch.zeros(1, 2), tolerence=1e-3)

    def test_a_tolerance_where_nothing_is_solved(self) -> None:
        flow = NSF((2,), num_transforms=1, seed=0)
        for method in (flow.encode, flow.decode):
            with pytest.raises(ConfigError, match=r"NSF: (en|de)code: 'tolerance': it takes no options"):
                method(torch.zeros(1, 2), tolerance=1e-3)
