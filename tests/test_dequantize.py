"""What log p of values on a grid means: bounds of probabilities, held against truth."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats
import torch

import sciflow as sf
from sciflow.bijections import Composite, Dequantize, Standardize, VariationalDequantize
from sciflow.bijections.preprocess.dequantize import latin_hypercube
from sciflow.errors import ConfigError
from sciflow.likelihood import Likelihood, Status, importance_weighted

UNIFORM, VARIATIONAL = ["dequantize", "standardize"], ["variational_dequantize", "standardize"]
NOISES = pytest.mark.parametrize("preprocess", [UNIFORM, VARIATIONAL], ids=["uniform", "variational"])


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def make(event_shape=(2,), preprocess=VARIATIONAL, randomised: bool = True, **arguments) -> sf.flows.NSF:
    settings = {"num_transforms": 2, "hidden_features": (16,), "seed": 0, **arguments}
    flow = sf.flows.NSF(event_shape, preprocess=preprocess, **settings)
    if randomised:
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in flow.parameters():
                parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    flow.fit_preprocessing(counts(500, *event_shape), None if flow.context_shape is None else torch.randn(500, 3))
    return flow.eval()


def counts(n: int, *event_shape: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).poisson(3.0, (n, *event_shape))).float()


class TestAgainstTruth:
    """Known probabilities: sums over the support, and the entropy."""

    @pytest.fixture(scope="class")
    @classmethod
    def poisson(cls):
        """Means over the truth of log P, by noise and by way of asking; and the sums of P over the support."""
        torch.set_num_threads(1)
        rows = np.random.default_rng(0).poisson(0.8, (4000, 1))
        support = np.arange(12)
        pmf = scipy.stats.poisson.pmf(support, 0.8)
        means, totals = {}, {}
        for name, preprocess in (("uniform", UNIFORM), ("variational", VARIATIONAL)):
            flow = sf.flows.NSF((1,), num_transforms=2, hidden_features=(32, 32), seed=0, preprocess=preprocess)
            sf.fit(flow, rows, max_steps=300, batch_size=500, patience=100)
            many = np.tile(support, 4000)[:, None]
            with torch.no_grad():
                found = {
                    "log_prob": flow.log_prob(support[:, None]),
                    "cell": flow.likelihood(support[:, None], method="elbo", num_draws=1024).log_prob,
                    "bound": -flow.train().loss(many).reshape(4000, -1).mean(0),
                }
            for way, log_p in found.items():
                means[name, way] = float(pmf @ log_p.double().numpy())
                totals[name, way] = float(log_p.double().exp().sum())
        return means, totals, -float(pmf @ np.log(pmf))

    def test_probabilities_add_up_to_one_at_most_and_nearly(self, poisson) -> None:
        _, totals, _ = poisson
        for key in (("uniform", "cell"), ("variational", "cell"), ("variational", "log_prob")):
            assert 0.93 < totals[key] < 1.005, key
        for noise in ("uniform", "variational"):
            assert totals[noise, "bound"] < totals[noise, "cell"] + 1e-3

    def test_the_mean_is_near_the_entropy_and_below(self, poisson) -> None:
        means, _, entropy = poisson
        assert -entropy - 0.05 < means["variational", "bound"] < -entropy + 0.005
        assert -entropy - 0.05 < means["variational", "cell"] < -entropy + 0.005
        assert -entropy - 0.15 < means["uniform", "bound"] < -entropy + 0.005

    def test_learned_noise_is_tighter_than_uniform_noise(self, poisson) -> None:
        means, _, _ = poisson
        gaps = {noise: means[noise, "cell"] - means[noise, "bound"] for noise in ("uniform", "variational")}
        assert 0 <= gaps["variational"] < gaps["uniform"]
        assert means["variational", "bound"] > means["uniform", "bound"] + 0.01

    def test_draws_are_those_of_the_truth(self) -> None:
        # Two variables that hang together: what each alone would give is another distribution.
        table = np.array([[0.3, 0.05, 0.0], [0.05, 0.2, 0.1], [0.0, 0.1, 0.2]])
        cells = np.random.default_rng(0).choice(9, 6000, p=table.ravel())
        rows = np.stack(np.divmod(cells, 3), 1) * 0.5 + 10
        flow = sf.flows.NSF((2,), num_transforms=4, hidden_features=(32, 32), seed=0, preprocess=VARIATIONAL)
        fitted = sf.fit(flow, rows, max_steps=300, batch_size=500, learning_rate=5e-3, patience=100)
        assert fitted.density.preprocess.bijections[0].step.tolist() == [0.5, 0.5]
        draws = np.rint((fitted.density.sample(20_000, seed=0).numpy() - 10) / 0.5)
        shares = np.array([[np.mean((draws == (i, j)).all(1)) for j in range(3)] for i in range(3)])
        assert np.abs(shares - table).sum() < 0.12
        support = np.stack(np.meshgrid(range(3), range(3), indexing="ij"), -1) * 0.5 + 10
        log_p = fitted.density.log_prob(support).numpy() + 2 * math.log(0.5)
        entropy = -np.sum(table[table > 0] * np.log(table[table > 0]))
        assert -entropy - 0.15 < np.sum(table * log_p) < -entropy + 0.02
        assert np.exp(log_p).sum() < 1.02


class TestWhatIsSaidOfARow:
    def test_its_likelihood_is_a_bound_with_an_error(self) -> None:
        flow, x = make(), counts(40, 2, seed=1)
        record = flow.likelihood(x)
        assert record.kind == "elbo"
        assert torch.equal(record.log_prob, flow.log_prob(x))
        assert record.nfe.tolist() == [16] * 40
        assert (record.error > 0).all()
        # The truth, from very many draws: within two errors for most.
        truth = flow.likelihood(x, method="elbo", num_draws=4096)
        assert ((record.log_prob - truth.log_prob).abs() < 2 * record.error).float().mean() > 0.9
        assert (truth.error < record.error).all()
        assert (truth.error < 0.3 * record.error).float().mean() > 0.9

    def test_noise_that_is_drawn_anew_bounds_it_from_below(self) -> None:
        flow, x = make(), counts(10, 2, seed=1)
        truth = flow.likelihood(x, method="elbo", num_draws=4096).log_prob
        with torch.no_grad():
            flow.train()
            noisy = flow.log_prob(x.expand(2000, 10, 2))
        error = noisy.std(0) / len(noisy) ** 0.5
        assert (noisy.mean(0) < truth + 3 * error).all()
        # Averaged as densities they are the truth.
        torch.testing.assert_close(noisy.logsumexp(0) - math.log(len(noisy)), truth, atol=0.15, rtol=0)

    def test_uniform_noise_has_a_bound_too(self) -> None:
        flow, x = make(preprocess=UNIFORM), counts(30, 2, seed=1)
        plain, bound = flow.likelihood(x), flow.likelihood(x, method="elbo", num_draws=4096)
        assert plain.kind == bound.kind == "elbo"
        assert ((plain.log_prob - bound.log_prob).abs() <= 4 * plain.error + 1e-3).all()
        line = (torch.arange(64) + 0.5) / 64
        inner = torch.cartesian_prod(line, line)
        with torch.no_grad():
            y = flow.preprocess.bijections[1]((x[:, None] + inner).reshape(-1, 2))
            cell = (flow._log_prob(y[0], None) + y[1]).reshape(30, -1).logsumexp(1) - math.log(64**2)
        torch.testing.assert_close(bound.log_prob.detach(), cell, atol=0.01, rtol=0)
        assert flow.likelihood(x, method="elbo").nfe.tolist() == [16] * 30

    @NOISES
    def test_is_the_same_alone_as_in_a_batch(self, preprocess) -> None:
        flow, x = make((3,), preprocess, context_shape=(3,)), counts(50, 3, seed=1)
        context = torch.randn(50, 3)
        together = flow.likelihood(x, context, method="elbo")
        assert torch.equal(flow.log_prob(x, context), flow.log_prob(x, context))
        for i in (0, 17, 49):
            alone = flow.likelihood(x[i], context[i], method="elbo")
            torch.testing.assert_close(alone.log_prob, together.log_prob[i], rtol=0, atol=1e-4)
            torch.testing.assert_close(alone.error, together.error[i], rtol=1e-3, atol=1e-5)
        with torch.no_grad():
            torch.testing.assert_close(
                flow.log_prob(x.reshape(5, 10, 3), context.reshape(5, 10, 3)).flatten(),
                flow.log_prob(x, context),
                rtol=0,
                atol=1e-4,
            )

    @NOISES
    def test_moves_by_the_jacobian_of_a_change_of_units(self, preprocess) -> None:
        flow, x = make(preprocess=preprocess, randomised=False).double(), counts(500, 2).double()
        units = torch.tensor([1000.0, 0.25], dtype=torch.float64)
        flow.fit_preprocessing(x)
        before = flow.likelihood(x, method="elbo").log_prob, flow.log_prob(x), flow.loss(x)
        flow.fit_preprocessing(x * units)
        after = flow.likelihood(x * units, method="elbo").log_prob, flow.log_prob(x * units), -flow.loss(x * units)
        for mine, theirs in zip(after, (before[0], before[1], -before[2]), strict=True):
            torch.testing.assert_close(mine, theirs - units.log().sum(), rtol=0, atol=1e-9)

    def test_rows_that_are_bad_or_impossible(self) -> None:
        flow = make(preprocess=[{"variational_dequantize": {"step": 1.0}}, {"logit": {"low": -0.5, "high": 30.0}}])
        x = torch.tensor([[2.0, 3.0], [math.nan, 1.0], [math.inf, 0.0], [40.0, 2.0], [30.0, 2.0]])
        record = flow.likelihood(x)
        assert record.status.tolist() == [Status.OK, Status.NON_FINITE, Status.NON_FINITE, Status.OK, Status.OK]
        assert record.log_prob[3:].tolist() == [-math.inf, -math.inf]
        assert record.error[3:].tolist() == [0.0, 0.0]
        assert record.error[1:3].isnan().all()
        alone = flow.likelihood(x[:1])
        torch.testing.assert_close(record.log_prob[0], alone.log_prob[0])

    def test_many_draws_take_bounded_memory(self) -> None:
        flow = make((1,), num_transforms=1)
        sizes = []
        inner = flow._log_prob
        flow._log_prob = lambda y, c: sizes.append(len(y)) or inner(y, c)
        assert flow.likelihood(counts(70, 1), method="elbo", num_draws=4096).log_prob.shape == (70,)
        assert max(sizes) <= 1 << 16

    @pytest.mark.parametrize("num_draws", [1, 3, 0, -2, 2.5, "8", True, 1 << 30])
    def test_a_number_of_draws_that_is_none(self, num_draws) -> None:
        with pytest.raises(ConfigError, match="num_draws must be 4 to 65,536; got"):
            make().likelihood(counts(2, 2), method="elbo", num_draws=num_draws)

    def test_another_method_is_refused(self) -> None:
        with pytest.raises(ConfigError, match="is known by method 'elbo' alone; got 'exact'"):
            make().likelihood(counts(2, 2), method="exact")
        with pytest.raises(ConfigError, match="no options; got tolerance"):
            make().likelihood(counts(2, 2), method="elbo", tolerance=1)
        with pytest.raises(ConfigError, match="'exact' alone; got 'elbo'"):
            make(preprocess="standardize").likelihood(counts(2, 2), method="elbo")


class TestTheErrorOfAMeanWeight:
    """Weights whose mean is known: their logarithms have a known distribution."""

    @staticmethod
    def record(log_weights: torch.Tensor) -> Likelihood:
        each = torch.zeros_like(log_weights)
        return importance_weighted(Likelihood(log_weights, each, each.int() + 1, each.int(), "exact"))

    @pytest.mark.parametrize("num_draws", [4, 16, 256])
    @pytest.mark.parametrize("spread", [0.1, 0.5, 1.0, 2.0, 5.0, 20.0])
    def test_two_of_it_hold_the_truth(self, num_draws: int, spread: float) -> None:
        log_weights = -500 + spread * torch.randn(num_draws, 4000, dtype=torch.float64)
        record = self.record(log_weights)
        held = (record.log_prob - (spread**2 / 2 - 500)).abs() <= 2 * record.error
        assert held.double().mean() >= (0.88 if num_draws >= 16 else 0.8)

    @pytest.mark.parametrize("spread", [0.1, 0.3])
    def test_is_the_standard_error_where_weights_are_alike(self, spread: float) -> None:
        record = self.record(spread * torch.randn(64, 4000, dtype=torch.float64))
        off = (record.log_prob - spread**2 / 2).std()
        assert record.error.mean().item() == pytest.approx(off.item(), rel=0.1)

    def test_of_equal_weights_is_nothing_whatever_they_are(self) -> None:
        record = self.record(torch.tensor([-1.5, -1e4, 300.0, -torch.inf]).repeat(7, 1))
        assert record.error.tolist() == [0.0] * 4

    def test_counts_the_draws_that_have_no_chance(self) -> None:
        log_weights = torch.zeros(64, 4000).masked_fill(torch.rand(64, 4000) < 0.4, -torch.inf)
        record = self.record(log_weights)
        held = (record.log_prob - math.log(0.6)).abs() <= 2 * record.error
        assert held.float().mean() > 0.93
        assert record.error.max() < 0.2

    def test_leaves_gradients_of_the_mean_alone(self) -> None:
        log_weights = torch.randn(8, 5)
        log_weights[3, 1] = -torch.inf
        log_weights.requires_grad_()
        record = self.record(log_weights)
        (gradient,) = torch.autograd.grad(record.log_prob.sum(), log_weights)
        torch.testing.assert_close(gradient, torch.softmax(log_weights, 0))
        assert not record.error.requires_grad

    def test_of_few_draws_is_unknown(self) -> None:
        assert self.record(torch.randn(3, 2)).error.tolist() == [math.inf] * 2


def test_rows_far_from_training_have_an_error_that_says_so() -> None:
    flow = make((10,), UNIFORM, randomised=False)
    x = counts(50, 10, seed=1) + 8 * torch.tensor([1.0, -1.0]).repeat(5)
    truth = flow.likelihood(x, method="elbo", num_draws=8192).log_prob
    record = flow.likelihood(x)
    assert (record.log_prob - truth).abs().max() > 1
    assert ((record.log_prob - truth).abs() <= 2 * record.error).float().mean() >= 0.95


class TestTheNoise:
    def test_starts_uniform_and_stays_in_the_cell(self) -> None:
        x = counts(4000, 3)
        fresh = VariationalDequantize((3,), step=0.5).fit(x).train()
        z, log_det = fresh(x)
        assert log_det.abs().max() < 1e-4
        assert scipy.stats.kstest(((z - x) / 0.5).detach().flatten().numpy(), "uniform").pvalue > 1e-3
        with torch.no_grad():
            for parameter in fresh.parameters():
                parameter += 0.5 * torch.randn(parameter.shape)
        z, log_det = fresh(x)
        assert (z >= x).all()
        assert (z <= x + 0.5).all()
        assert log_det.std() > 0.1

    def test_log_det_is_minus_log_q(self) -> None:
        noise = VariationalDequantize((2,), step=0.5).double()
        with torch.no_grad():
            for parameter in noise.parameters():
                parameter += 0.5 * torch.randn(parameter.shape, dtype=torch.float64)
        x = torch.tensor([3.0, 1.5], dtype=torch.float64)
        for u in torch.rand(8, 2, dtype=torch.float64):
            jacobian = torch.func.jacrev(lambda e: noise._filled(x, e)[0])(u) / 0.5
            torch.testing.assert_close(torch.linalg.slogdet(jacobian).logabsdet, noise._filled(x, u)[1])

    def test_inverse_comes_back_to_the_grid(self) -> None:
        x = 273.15 + 0.01 * torch.randint(0, 500, (1000, 1)).double()
        noise = VariationalDequantize((1,), step=0.01).double().fit(x)
        for training in (True, False):
            noise.train(training)
            torch.testing.assert_close(noise.inverse(noise(x)[0])[0], x, rtol=0, atol=1e-6)

    def test_decode_undoes_encode_on_the_grid(self) -> None:
        flow, x = make(), counts(100, 2, seed=2)
        assert torch.equal(flow.encode(x), flow.encode(x))
        torch.testing.assert_close(flow.decode(flow.encode(x)), x)
        draws = flow.sample(100, seed=0)
        assert torch.equal(draws, draws.round())

    def test_weights_are_a_function_of_the_seed(self, tmp_path) -> None:
        before = torch.get_rng_state()
        one, same, other = (make(seed=seed) for seed in (0, 0, 1))
        assert torch.equal(one.log_prob(counts(5, 2)), same.log_prob(counts(5, 2)))
        assert not torch.equal(one.log_prob(counts(5, 2)), other.log_prob(counts(5, 2)))
        assert torch.equal(before, torch.get_rng_state())
        loaded = sf.load(one.save(tmp_path))
        assert torch.equal(one.log_prob(counts(5, 2)), loaded.log_prob(counts(5, 2)))

    def test_all_its_weights_are_trained(self) -> None:
        flow = make((3,)).train()
        flow.loss(counts(50, 3)).mean().backward()
        assert all(parameter.grad is not None for parameter in flow.parameters())
        assert all(parameter.grad.abs().sum() > 0 for parameter in flow.preprocess.parameters())

    def test_gradients_are_finite_far_out(self) -> None:
        flow = make().train()
        x = torch.tensor([[-1e3, 1e3], [1e3, 0.0], [0.0, 5.0]], requires_grad=True)
        for mode in (True, False):
            flow.train(mode)
            loss = flow.loss(x).mean()
            for gradient in torch.autograd.grad(loss, [x, *flow.parameters()]):
                assert gradient.isfinite().all()

    def test_compiles_as_one_graph(self) -> None:
        torch._dynamo.reset()
        flow, x = make(num_transforms=1), counts(4, 2)
        compiled = torch.compile(flow.log_prob, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(x), flow.log_prob(x))

    def test_half_precision_networks_leave_log_prob_in_float32(self) -> None:
        flow, x = make(), counts(100, 2)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            log_prob = flow.log_prob(x)
        assert log_prob.dtype == torch.float32
        assert (log_prob - flow.log_prob(x)).abs().mean() < 0.05

    def test_by_options(self) -> None:
        options = {"step": 2.0, "num_draws": 4, "num_transforms": 1, "hidden_features": [8], "num_bins": 4}
        flow = make(preprocess=[{"variational_dequantize": options}, "standardize"])
        noise = flow.preprocess.bijections[0]
        assert (noise.num_draws, len(noise.noise.bijections), noise.step.tolist()) == (4, 1, [2.0, 2.0])
        assert flow.likelihood(counts(3, 2)).nfe.tolist() == [4] * 3

    def test_one_draw_is_the_exact_density_of_the_centre(self) -> None:
        x = counts(20, 2, seed=1)
        flow = make(preprocess=[{"dequantize": {"num_draws": 1}}, "standardize"])
        centre = make(preprocess="standardize")
        centre.preprocess.load_state_dict(flow.preprocess.bijections[1].state_dict())
        record = flow.likelihood(x)
        assert record.kind == "exact"
        torch.testing.assert_close(record.log_prob, centre.log_prob(x + 0.5))

    @NOISES
    def test_no_rows_are_no_trouble(self, preprocess) -> None:
        none = torch.zeros(0, 2)
        assert make(preprocess=preprocess).likelihood(none).log_prob.shape == (0,)

    def test_a_chain_draws_what_its_first_link_does(self) -> None:
        x = counts(200, 2)
        chain = Composite([Dequantize((2,)), Standardize((2,))]).fit(x).eval()
        assert (chain.num_draws, Standardize((2,)).num_draws) == (16, 0)
        z, log_det = chain.draws(x, 8)
        assert z.shape == (8, 200, 2)
        assert log_det.shape == (8, 200)
        places = (chain.bijections[1].inverse(z)[0] - x) * 8
        assert sorted(places[:, 0, 0].floor().tolist()) == [*map(float, range(8))]
        same, _ = Standardize((2,)).fit(x).draws(x, 3)
        assert torch.equal(same[0], same[2])

    def test_points_fill_every_slice_of_every_edge(self) -> None:
        points = latin_hypercube(100, (3, 2))
        assert torch.equal(points, latin_hypercube(100, (3, 2)))
        slices = (100 * points).floor().sort(0).values
        assert torch.equal(slices, torch.arange(100.0)[:, None, None].expand(100, 3, 2))
