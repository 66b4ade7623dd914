"""Contractions, the log-determinants and inverses that are built on them, and the flow made of these."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from sciflow.bijections import Residual
from sciflow.bijections.roulette import Roulette, log_det_estimates
from sciflow.errors import ConfigError, ConvergenceError, DerivativeError
from sciflow.families import load
from sciflow.flows import ResidualFlow
from sciflow.nets import LipschitzMLP
from sciflow.nets.lipschitz import spectral_norm_bound


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def jacobians(network: LipschitzMLP, x: Tensor, context: Tensor | None = None) -> Tensor:
    """By automatic differentiation, row by row."""
    if context is None:
        return torch.func.vmap(torch.func.jacrev(lambda row: network(row[None])[0]))(x)
    return torch.func.vmap(torch.func.jacrev(lambda row, c: network(row[None], c[None])[0]))(x, context)


def stretched(network: LipschitzMLP, sign: float, steps: int = 150) -> LipschitzMLP:
    """Train a network to do what it must not: to stretch (or, by sign -1, to fold back) at every point."""
    optimiser = torch.optim.Adam(network.parameters(), 3e-2)
    eye = torch.eye(network.num_features)
    for _ in range(steps):
        _, product = network.given().linearise(torch.randn(32, network.num_features))
        loss = -sign * product(eye).diagonal(dim1=1, dim2=2).sum(-1).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return network


MATRICES = {
    "random": torch.randn(40, 60, generator=torch.Generator().manual_seed(0)),
    "orthogonal": torch.linalg.qr(torch.randn(128, 128, generator=torch.Generator().manual_seed(0))).Q,
    "of rank one": torch.ones(30, 1) @ torch.ones(1, 20),
    "a row": torch.ones(1, 5),
    "tiny": 1e-30 * torch.ones(3, 4),
    "huge": 1e30 * torch.eye(3),
}


class TestSpectralNormBound:
    @pytest.mark.parametrize("weight", MATRICES.values(), ids=MATRICES)
    def test_is_never_below_and_close_above(self, weight: Tensor) -> None:
        truth = torch.linalg.matrix_norm(weight.double(), 2)
        found = spectral_norm_bound(weight).double()
        assert truth * (1 - 1e-5) <= found <= truth * min(weight.shape) ** (1 / 130) * (1 + 1e-5)

    def test_has_a_gradient_even_at_zero(self) -> None:
        zero = torch.zeros(3, 4, requires_grad=True)
        spectral_norm_bound(zero).backward()
        assert zero.grad is not None
        assert zero.grad.isfinite().all()
        assert torch.autograd.gradcheck(spectral_norm_bound, torch.randn(4, 3, dtype=torch.float64, requires_grad=True))


class TestLipschitzMLP:
    @pytest.mark.parametrize("sign", [1.0, -1.0])
    def test_no_training_stretches_it_beyond_its_bound(self, sign: float) -> None:
        network = stretched(LipschitzMLP(4, (32, 32)), sign)
        x = torch.cat([scale * torch.randn(500, 4) for scale in (0.1, 1.0, 10.0)]).double()
        norms = torch.linalg.matrix_norm(jacobians(network.double(), x), 2)
        assert norms.max() < 0.97
        # And it comes near: the bound leaves room for what is to be learned.
        assert norms.max() > 0.9

    @pytest.mark.parametrize("scale", [0.01, 1.0, 100.0])
    def test_no_weights_and_no_context_do(self, scale: float) -> None:
        network = LipschitzMLP(5, (16, 24, 8), num_context=3, bound=0.8).double()
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.copy_(scale * torch.randn_like(parameter))
        x, context = (3 * torch.randn(300, n, dtype=torch.float64) for n in (5, 3))
        assert torch.linalg.matrix_norm(jacobians(network, x, 100 * context), 2).max() < 0.8

    def test_linearises_itself(self) -> None:
        network = LipschitzMLP(3, (16, 8), num_context=2).double()
        with torch.no_grad():
            network.layers[-1].weight.normal_()
        x, context = torch.randn(7, 3, dtype=torch.float64), torch.randn(7, 2, dtype=torch.float64)
        value, product = network.given(context).linearise(x)
        torch.testing.assert_close(value, network(x, context))
        torch.testing.assert_close(product(torch.eye(3).double()).mT, jacobians(network, x, context))


def contraction(dtype: torch.dtype = torch.float64) -> Tensor:
    """A matrix of norm 0.85."""
    matrix = torch.randn(4, 4, dtype=dtype) - 2 * torch.eye(4, dtype=dtype)
    return 0.85 * matrix / torch.linalg.matrix_norm(matrix, 2)


class TestRoulette:
    def test_estimates_are_right_in_the_mean(self) -> None:
        jacobian = contraction()
        truth = torch.linalg.slogdet(torch.eye(4) + jacobian).logabsdet
        generator = torch.Generator().manual_seed(0)
        roulette = Roulette.drawn(jacobian[:1], 40_000, 0.9, generator)
        estimates, num_products = log_det_estimates(lambda v: v @ jacobian.T, roulette)
        error = estimates.std() / 200
        assert abs(estimates.mean() - truth) < 3 * error
        assert num_products >= 4 * 40_000
        # A series cut off where the chances begin would not be.
        certain = sum((-1) ** (k + 1) / k * torch.linalg.matrix_power(jacobian, k).trace() for k in range(1, 5))
        assert abs(certain - truth) > 10 * error

    def test_gradients_are_right_in_the_mean(self) -> None:
        jacobian = contraction().requires_grad_()
        (truth,) = torch.autograd.grad(torch.linalg.slogdet(torch.eye(4) + jacobian).logabsdet, jacobian)
        found = []
        for seed in range(20):
            roulette = Roulette.drawn(jacobian[:1].detach(), 2000, 0.9, torch.Generator().manual_seed(seed))
            estimates, _ = log_det_estimates(lambda v: v @ jacobian.T, roulette)
            found.append(torch.autograd.grad(estimates.mean(), jacobian)[0])
        each = torch.stack(found)
        assert ((each.mean(0) - truth).abs() < 4 * each.std(0) / 20**0.5).all()
        assert each.std(0).max() / 20**0.5 < 0.05 * truth.abs().max()

    def test_is_finite_for_the_least_contraction_allowed(self) -> None:
        jacobian = -0.97 * torch.eye(3)
        roulette = Roulette.drawn(torch.zeros(1, 3), 20_000, 0.97, torch.Generator().manual_seed(0))
        estimates, _ = log_det_estimates(lambda v: v @ jacobian.T, roulette)
        assert abs(estimates.mean() - 3 * math.log(0.03)) < 3 * estimates.std() / 20_000**0.5


def trained_a_little(**arguments: object) -> ResidualFlow:
    """A flow with weights off their start, in eval mode."""
    flow = ResidualFlow(event_shape=(6,), num_transforms=2, hidden_features=(16, 16), seed=0, **arguments)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
    return flow.eval()


ROWS = torch.randn(50, 6, generator=torch.Generator().manual_seed(5))


class TestEstimatedLikelihood:
    def test_two_errors_hold_the_truth_for_19_rows_in_20(self) -> None:
        flow = trained_a_little(exact_features=0)
        truth = flow.likelihood(ROWS, method="exact").log_prob
        held = []
        with torch.no_grad():
            for seed in range(400):
                record = flow.likelihood(ROWS, num_estimates=8, seed=seed)
                held.append(((record.log_prob - truth).abs() <= 2 * record.error).float().mean())
        # Rows share their draws: it is the seeds that count.
        assert abs(torch.stack(held).mean() - 0.95) < 0.02

    def test_more_estimates_come_closer(self) -> None:
        flow = trained_a_little(exact_features=0)
        few, many = (flow.likelihood(ROWS, num_estimates=n) for n in (16, 1600))
        assert 8 < (few.error / many.error).median() < 12
        exact = flow.likelihood(ROWS, method="exact")
        assert (many.log_prob - exact.log_prob).abs().max() < 5 * many.error.max()
        assert not exact.error.any()

    def test_evaluations_are_counted(self) -> None:
        flow = trained_a_little()
        assert flow.likelihood(ROWS).nfe.unique().tolist() == [7]
        flow = trained_a_little(exact_features=0)
        few, many = (flow.likelihood(ROWS, num_estimates=n).nfe for n in (16, 160))
        assert (few > 16 * 4).all()
        assert (many > 6 * few).all()

    def test_log_prob_is_a_function_of_the_row_alone(self) -> None:
        flow = trained_a_little(exact_features=0).double()
        together = flow.log_prob(ROWS)
        assert torch.equal(together, flow.log_prob(ROWS))
        assert torch.equal(together, flow.likelihood(ROWS).log_prob)
        torch.testing.assert_close(flow.log_prob(ROWS[7]), together[7], rtol=0, atol=1e-12)
        state = torch.get_rng_state()
        flow.log_prob(ROWS)
        assert torch.equal(state, torch.get_rng_state())

    def test_training_draws_anew_every_time_and_for_every_row(self) -> None:
        flow = trained_a_little(exact_features=0).train()
        same = ROWS[:1].expand(50, 6)
        assert len(flow.loss(same).unique()) > 10
        assert not torch.equal(flow.loss(same), flow.loss(same))
        torch.manual_seed(3)
        first = flow.loss(same)
        torch.manual_seed(3)
        assert torch.equal(first, flow.loss(same))

    def test_the_gradient_in_training_is_that_of_the_exact_one_in_the_mean(self) -> None:
        flow = trained_a_little(exact_features=0).train()
        many = ROWS[:4].repeat(20_000, 1)
        weights = list(flow.parameters())
        found = torch.cat([g.flatten() for g in torch.autograd.grad(flow.loss(many).mean(), weights)])
        exact = trained_a_little(exact_features=6).train()
        truth = torch.autograd.grad(exact.loss(ROWS[:4]).mean(), list(exact.parameters()))
        expected = torch.cat([g.flatten() for g in truth])
        assert torch.nn.functional.cosine_similarity(found, expected, dim=0) > 0.999
        assert abs(found.norm() / expected.norm() - 1) < 0.01

    def test_survives_saving(self, tmp_path) -> None:
        flow = trained_a_little(exact_features=0)
        assert torch.equal(load(flow.save(tmp_path)).log_prob(ROWS), flow.log_prob(ROWS))

    def test_is_exact_up_to_a_number_of_features_that_is_larger_in_eval_mode(self) -> None:
        flow = trained_a_little(exact_features=1)
        assert not flow.likelihood(ROWS).error.any()
        assert not torch.equal(flow.train().loss(ROWS), flow.loss(ROWS))
        assert trained_a_little(exact_features=0).likelihood(ROWS).error.all()

    def test_an_exact_one_says_how_to_have_it_estimated(self) -> None:
        with pytest.raises(ConfigError, match=r"6 features is exact .*\. A smaller exact_features \(16\)"):
            trained_a_little().likelihood(ROWS, num_estimates=8)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"num_estimates": 3}, "num_estimates must be 4 to .*; got 3"),
            ({"seed": -1}, "seed must be 0 to .*; got -1"),
            ({"tolerance": 1.0}, r"options num_estimates \(16\), seed \(0\); got tolerance"),
            ({"method": "exact", "num_estimates": 8}, "no options; got num_estimates"),
            ({"method": "ode"}, "'exact' alone; got 'ode'"),
        ],
    )
    def test_an_option_out_of_range_is_named(self, options: dict[str, object], message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            trained_a_little(exact_features=0).likelihood(ROWS, **options)


class TestInverse:
    @pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-13)])
    @pytest.mark.parametrize("sign", [1.0, -1.0])
    def test_converges_where_the_contraction_is_least(self, sign: float, dtype: torch.dtype, tolerance: float) -> None:
        residual = Residual(stretched(LipschitzMLP(3, (16,)), sign)).to(dtype).eval()
        z = 4 * torch.randn(200, 3, dtype=dtype)
        x, log_det = residual.inverse(z)
        assert log_det.abs().max() > 1
        again, log_det_again = residual(x)
        assert (again - z).abs().max() <= tolerance * z.abs().max()
        torch.testing.assert_close(log_det, -log_det_again)

    def test_refuses_what_is_no_contraction(self, monkeypatch: pytest.MonkeyPatch) -> None:
        residual = Residual(LipschitzMLP(3, (16,)))
        with torch.no_grad():
            residual.network.layers[-1].weight.fill_(1.0)
        z = torch.randn(20, 3)
        residual.inverse(z)
        monkeypatch.setattr("sciflow.nets.lipschitz.spectral_norm_bound", torch.ones_like)
        message = r"not solved for \d+ of 20 rows: after \d+ steps it is off by .* density\.double\(\)"
        with pytest.raises(ConvergenceError, match=message):
            residual.inverse(z)

    def test_a_row_that_is_not_finite_stays_alone(self) -> None:
        flow = trained_a_little()
        z = ROWS.clone()
        z[3, 1], z[8, 0] = torch.nan, torch.inf
        found, whole = flow.decode(z), flow.decode(ROWS)
        others = torch.ones(len(z), dtype=torch.bool)
        others[[3, 8]] = False
        torch.testing.assert_close(found[others], whole[others])
        assert found[~others].isnan().any(-1).all()

    def test_no_rows_are_no_trouble(self) -> None:
        for flow in (trained_a_little(), trained_a_little(exact_features=0)):
            assert flow.sample(0).shape == (0, 6)
            assert flow.log_prob(torch.zeros(0, 6)).shape == (0,)
            assert flow.train().loss(torch.zeros(0, 6)).shape == (0,)

    def test_its_gradient_is_that_of_the_solution(self) -> None:
        flow = trained_a_little().double()
        z = ROWS[:3].double()
        jacobian = torch.func.jacrev(flow.decode)(z[0])
        forward = torch.func.jacrev(flow.encode)(flow.decode(z[0]))
        torch.testing.assert_close(jacobian @ forward, torch.eye(6).double())
        # By the weights: a small step along a direction.
        weights = list(flow.parameters())
        direction = [torch.randn_like(weight) for weight in weights]
        gradient = torch.autograd.grad(flow.decode(z).square().sum(), weights)
        slope = sum((g * d).sum() for g, d in zip(gradient, direction, strict=True))
        values = []
        with torch.no_grad():
            for step in (1e-6, -2e-6):
                for weight, d in zip(weights, direction, strict=True):
                    weight += step * d
                values.append(flow.decode(z).square().sum())
        torch.testing.assert_close((values[0] - values[1]) / 2e-6, slope, rtol=1e-5, atol=0)


class TestSecondDerivatives:
    def test_in_the_event_are_those_of_the_exact_log_prob(self) -> None:
        flow = trained_a_little().double()
        row = ROWS[0].double()
        step = 1e-5 * torch.eye(6, dtype=torch.float64)

        def score(x: Tensor) -> Tensor:
            return torch.autograd.grad(flow.log_prob(x).sum(), x, create_graph=True)[0]

        up, down = (score((row + sign * step).requires_grad_()) for sign in (1, -1))
        differences = (up - down) / 2e-5
        torch.testing.assert_close(torch.func.hessian(flow.log_prob)(row), differences, rtol=1e-5, atol=1e-6)
        x = row[None].requires_grad_()
        torch.testing.assert_close(torch.autograd.grad(score(x)[0, 2], x)[0][0], differences[2], rtol=1e-5, atol=1e-6)

    def test_are_refused_where_they_would_be_wrong(self) -> None:
        estimated, exact = trained_a_little(exact_features=0), trained_a_little()
        x = ROWS[:2].clone().requires_grad_()
        with pytest.raises(DerivativeError, match=r"estimated log-determinant .* method='exact'"):
            torch.autograd.grad(estimated.log_prob(x).sum(), x, create_graph=True)
        with pytest.raises(DerivativeError, match="estimated log-determinant"):
            torch.func.grad(lambda row: torch.func.grad(estimated.log_prob)(row)[0])(ROWS[0])
        with pytest.raises(DerivativeError, match="inverse of a residual map"):
            torch.func.hessian(lambda z: exact.decode(z).sum())(ROWS[0])
        with pytest.raises(DerivativeError, match="in the weights"):
            exact.log_prob(x).sum().backward(create_graph=True)


def test_many_rows_are_taken_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    flow = trained_a_little().double()
    whole = flow.log_prob(ROWS), flow.likelihood(ROWS).nfe
    monkeypatch.setattr("sciflow.bijections.residual._PART_NUMBERS_CPU", 7 * 6 * 16)
    torch.testing.assert_close((flow.log_prob(ROWS), flow.likelihood(ROWS).nfe), whole)


def test_learns_two_moons() -> None:
    generator = torch.Generator().manual_seed(0)
    angle, upper = math.pi * torch.rand(4000, generator=generator), torch.rand(4000, generator=generator) < 0.5
    moons = torch.where(
        upper[:, None],
        torch.stack((angle.cos(), angle.sin()), 1),
        torch.stack((1 - angle.cos(), 0.5 - angle.sin()), 1),
    )
    moons += 0.1 * torch.randn(4000, 2, generator=generator)
    train, test = moons[:3000], moons[3000:]
    flow = ResidualFlow(event_shape=(2,), num_transforms=4, hidden_features=(32, 32), seed=0)
    flow.fit_preprocessing(train)
    optimiser = torch.optim.Adam(flow.parameters(), 1e-2)
    for _ in range(120):
        rows = train[torch.randint(len(train), (256,), generator=generator)]
        optimiser.zero_grad()
        flow.loss(rows).mean().backward()
        optimiser.step()
    gaussian = torch.distributions.MultivariateNormal(train.mean(0), train.T.cov()).log_prob(test).mean()
    with torch.no_grad():
        # The truth itself is 1.2 nats above the Gaussian.
        assert flow.eval().log_prob(test).mean() > gaussian + 0.7
        line = torch.linspace(-5, 6, 501)
        density = flow.double().log_prob(torch.cartesian_prod(line, line).double()).exp()
    assert abs(density.sum() * (line[1] - line[0]) ** 2 - 1) < 1e-3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"lipschitz": 1.0}, "lipschitz must be at least 0 and below 1; got 1.0"),
        ({"lipschitz": 0.0}, "lipschitz must be above 0 and below 1; got 0.0"),
        ({"exact_features": -1}, "exact_features must be 0 to .*; got -1"),
        ({"num_transforms": 0}, "num_transforms must be 1 to 1,000; got 0"),
    ],
)
def test_an_argument_out_of_range_is_named(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ResidualFlow(**{"event_shape": (2,), **arguments})
