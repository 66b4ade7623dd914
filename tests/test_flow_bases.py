"""Densities of the noise: against SciPy and torch, learned, drawn from, saved; and heavy tails against truth."""

from __future__ import annotations

import json
import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import scipy.stats
import torch
from torch import distributions as td

import sciflow as sf
from sciflow.errors import ConfigError, ModelFileError, ShapeError
from sciflow.flows.base import Base, GaussianMixture, StandardNormal, StudentT, TorchDistribution, base_density

CPU = torch.device("cpu")
HALVES = td.Categorical(torch.tensor([0.4, 0.6]))
DISTRIBUTIONS = {
    "scalar": (td.Laplace(0.0, 1.0), (2, 3)),
    "batch": (td.Normal(torch.tensor([0.0, 0.5, -0.5]), 1.1), (3,)),
    "of a vector": (td.MultivariateNormal(torch.zeros(3), covariance_matrix=torch.eye(3) + 0.5), (3,)),
    "precision": (td.MultivariateNormal(torch.zeros(3), precision_matrix=torch.eye(3) + 0.5), (3,)),
    "of rows": (td.MultivariateNormal(torch.zeros(3), scale_tril=1.2 * torch.eye(3)), (2, 3)),
    "low rank": (td.LowRankMultivariateNormal(torch.zeros(3), torch.ones(3, 1), torch.ones(3)), (3,)),
    "independent": (td.Independent(td.StudentT(torch.tensor([3.0, 9.0])), 1), (2,)),
    "mixture": (td.MixtureSameFamily(HALVES, td.Normal(torch.tensor([-1.0, 3.0]), 1.0)), (2,)),
    "transformed": (td.TransformedDistribution(td.Normal(0.0, 1.0), [td.AffineTransform(1.0, 2.0)]), (2,)),
    "gumbel": (td.Gumbel(0.0, 1.0), (2,)),
}
BASES = {
    "normal": ("normal", (2, 3)),
    "student_t": ("student_t", (2, 3)),
    "heavier": ({"student_t": {"degrees_of_freedom": 1.5}}, (2,)),
    "gaussian_mixture": ({"gaussian_mixture": {"num_components": 5}}, (2, 3)),
    "one component": ({"gaussian_mixture": {"num_components": 1}}, (2,)),
    "full_gaussian_mixture": ({"full_gaussian_mixture": {"num_components": 3}}, (2, 2)),
    **DISTRIBUTIONS,
}


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(params=BASES.values(), ids=BASES)
def base(request: pytest.FixtureRequest) -> Base:
    """Away from its start, where a wrong formula may look right."""
    made = base_density(*request.param)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter += 0.03 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0))
    return made


def drawn(base: Base, n: int, seed: int | None, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return base.sample(n, None if seed is None else torch.Generator().manual_seed(seed), dtype, CPU)


class TestEveryBase:
    def test_draws_follow_log_prob(self, base: Base) -> None:
        """Mean 1 of q / p over draws of p, for a q within p's reach: it is so for no other normalisation of p."""
        base.double()
        z = drawn(base, 40_000, 0, torch.float64)
        q = td.Normal(0.2, 0.6)
        with torch.no_grad():
            ratio = (q.log_prob(z).flatten(1).sum(1) - base.log_prob(z)).exp()
        assert abs(ratio.mean() - 1) < 5 * ratio.std() / len(z) ** 0.5
        assert ratio.std() / len(z) ** 0.5 < 0.03

    def test_a_seed_decides_and_leaves_torch_alone(self, base: Base) -> None:
        before = torch.get_rng_state()
        one, same, other = (drawn(base, 6, seed) for seed in (1, 1, 2))
        assert torch.equal(torch.get_rng_state(), before)
        assert torch.equal(one, same)
        assert not torch.equal(one, other)
        generator = torch.Generator().manual_seed(1)
        first, second = (base.sample(6, generator, torch.float32, CPU) for _ in range(2))
        assert torch.equal(first, one)
        assert not torch.equal(first, second)
        drawn(base, 6, None)
        assert not torch.equal(torch.get_rng_state(), before)

    def test_follows_the_models_dtype(self, base: Base) -> None:
        z = drawn(base, 50, 0)
        single = base.log_prob(z)
        base.double()
        assert drawn(base, 5, 0, torch.float64).dtype == drawn(base, 5, None, torch.float64).dtype == torch.float64
        double = base.log_prob(z.double())
        assert double.dtype == torch.float64
        torch.testing.assert_close(single.double(), double, rtol=1e-5, atol=1e-4)
        assert base.float().log_prob(z).dtype == torch.float32

    def test_half_precision_networks_leave_it_alone(self, base: Base) -> None:
        z = drawn(base, 50, 0)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            log_prob = base.log_prob(z)
        assert torch.equal(log_prob, base.log_prob(z))

    def test_no_row_no_number(self, base: Base) -> None:
        assert drawn(base, 0, 0).shape == (0, *base.event_shape)
        assert base.log_prob(torch.zeros(0, *base.event_shape)).shape == (0,)

    def test_gradients_are_finite_far_out(self, base: Base) -> None:
        if isinstance(base, TorchDistribution) and isinstance(base.given, td.Gumbel):
            pytest.skip("e to the e: torch's own formula overflows")
        z = torch.tensor([-1e3, 1e3, 0.0, 30.0]).reshape(-1, *[1] * len(base.event_shape))
        z = z.expand(-1, *base.event_shape).clone().requires_grad_()
        log_prob = base.log_prob(z)
        assert log_prob.isfinite().all()
        for gradient in torch.autograd.grad(log_prob.sum(), [z, *base.parameters()]):
            assert gradient.isfinite().all()

    def test_is_built_again_from_its_specification(self, base: Base) -> None:
        written = json.loads(json.dumps(base.specification, allow_nan=False))
        again = base_density(written, base.event_shape)
        again.load_state_dict(base.state_dict())
        z = drawn(base, 20, 0)
        torch.testing.assert_close(again.log_prob(z), base.log_prob(z))

    def test_compiles_as_one_graph(self, base: Base) -> None:
        torch._dynamo.reset()
        z = torch.randn(4, *base.event_shape)
        compiled = torch.compile(base.log_prob, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(z), base.log_prob(z))
        draw = torch.compile(base.sample, fullgraph=True, backend="aot_eager")
        assert draw(5, None, torch.float32, CPU).shape == (5, *base.event_shape)


class TestStudentT:
    @pytest.mark.parametrize("df", [1.2, 5.0, 300.0, 1e6])
    def test_is_scipys(self, df: float) -> None:
        base = StudentT((2,), df)
        z = 10 ** torch.linspace(-3, 8, 40)[:, None] * torch.tensor([1.0, -1.0])
        expected = scipy.stats.t.logpdf(z.double().numpy(), base.degrees_of_freedom.double().detach().numpy()).sum(1)
        np.testing.assert_allclose(base.log_prob(z).detach().numpy(), expected, rtol=2e-6, atol=2e-5)
        draws = drawn(StudentT((1,), df), 20_000, 0).flatten().numpy()
        assert scipy.stats.kstest(draws, scipy.stats.t(df).cdf).pvalue > 1e-3

    def test_learns_the_degrees_of_freedom_of_every_element(self) -> None:
        truth = torch.tensor([2.0, 20.0])
        z = td.StudentT(truth).sample((20_000,))
        base = StudentT((2,))
        optimiser = torch.optim.Adam(base.parameters(), 0.1)
        for _ in range(300):
            optimiser.zero_grad()
            (-base.log_prob(z).mean()).backward()
            optimiser.step()
        found = base.degrees_of_freedom.detach()
        assert abs(found[0] - 2) < 0.1
        assert 13 < found[1] < 32

    def test_heavy_tails_against_truth(self) -> None:
        truth = scipy.stats.t(3)
        rows = truth.rvs((4000, 2), random_state=0)
        far = np.array([[20.0, 0.3], [-0.5, 35.0], [60.0, -60.0], [0.0, -200.0]])
        expected = truth.logpdf(far).sum(1)
        off = {}
        for base in ("normal", "student_t"):
            flow = sf.flows.NSF((2,), num_transforms=2, hidden_features=(16,), base=base, seed=0)
            fitted = sf.fit(flow, rows, max_steps=300, batch_size=500)
            off[base] = np.abs(fitted.density.log_prob(far).numpy() - expected)
        # Of some -10 to -20 nats, ten times as far out as there are rows.
        assert off["student_t"][:2].max() < 6
        assert off["student_t"].max() < 18
        assert (off["student_t"] < 0.1 * off["normal"]).all()
        assert off["normal"].max() > 1000


class TestGaussianMixture:
    @pytest.mark.parametrize("shape", [(1,), (2,), (3, 4), (200,)])
    @pytest.mark.parametrize("num_components", [1, 2, 8, 50])
    def test_starts_close_to_a_standard_normal_with_means_that_differ(self, shape, num_components: int) -> None:
        mixture, normal = GaussianMixture(shape, num_components), StandardNormal(shape)
        z = torch.randn(4000, *shape)
        with torch.no_grad():
            log_ratio = normal.log_prob(z) - mixture.log_prob(z)
        assert abs(log_ratio.mean()) < 0.1
        assert log_ratio.std() < 0.5
        mean = mixture.means.mean(0)
        variance = mixture.scales.square().mean(0) + mixture.means.var(0, correction=0)
        torch.testing.assert_close(mean, torch.zeros(shape), atol=1e-5, rtol=0)
        torch.testing.assert_close(variance, torch.ones(shape), atol=1e-4, rtol=0)
        if num_components > 1:
            assert torch.pdist(mixture.means.flatten(1)).min() > 1e-3

    def test_is_torchs(self) -> None:
        mixture = GaussianMixture((3,), 4).double()
        with torch.no_grad():
            for parameter in mixture.parameters():
                parameter += 0.1 * torch.randn(parameter.shape)
        parts = td.Independent(td.Normal(mixture.means, mixture.scales), 1)
        whole = td.MixtureSameFamily(td.Categorical(logits=mixture.log_weights), parts)
        z = 3 * torch.randn(100, 3, dtype=torch.float64)
        torch.testing.assert_close(mixture.log_prob(z), whole.log_prob(z))
        draws = drawn(mixture, 100_000, 0, torch.float64)
        torch.testing.assert_close(draws.mean(0), whole.mean, atol=0.05, rtol=0)
        torch.testing.assert_close(draws.var(0), whole.variance, atol=0.1, rtol=0.02)

    def test_parts_what_a_normal_can_only_bridge(self) -> None:
        angles = 2 * np.pi * np.arange(8) / 8
        centres = 3 * np.stack((np.cos(angles), np.sin(angles)), 1)

        def ring(n: int, seed: int) -> np.ndarray:
            draw = np.random.default_rng(seed)
            return centres[draw.integers(0, 8, n)] + 0.2 * draw.normal(size=(n, 2))

        held_out = ring(5000, 1)
        truth = np.log(np.mean([scipy.stats.multivariate_normal(c, 0.04).pdf(held_out) for c in centres], 0))
        short = {}
        for base in ("normal", "gaussian_mixture"):
            flow = sf.flows.NSF((2,), num_transforms=2, hidden_features=(32,), base=base, seed=0)
            fitted = sf.fit(flow, ring(4000, 0), max_steps=300, batch_size=500, learning_rate=5e-3)
            short[base] = truth.mean() - fitted.density.log_prob(held_out).mean().item()
        assert 0 <= short["gaussian_mixture"] < 0.15
        assert short["normal"] > 0.5


class TestTorchDistribution:
    def test_the_parameters_are_those_given_and_not_learned(self) -> None:
        location = torch.tensor([1.0, 2.0], requires_grad=True)
        base = base_density(td.Laplace(location, 0.5), (2,))
        assert list(base.parameters()) == []
        assert base.state_dict() == {}
        assert base.log_prob(torch.zeros(1, 2)).requires_grad is False

    def test_no_digit_is_lost_on_the_way_to_double(self) -> None:
        exact = torch.tensor(0.1, dtype=torch.float64)
        flow = sf.flows.NSF((1,), num_transforms=1, base=td.Laplace(exact, exact), seed=0).float().double()
        z = torch.linspace(-1, 1, 9, dtype=torch.float64)[:, None]
        torch.testing.assert_close(
            flow.base.log_prob(z), td.Laplace(exact, exact).log_prob(z[:, 0]), rtol=1e-14, atol=1e-14
        )

    def test_a_flow_keeps_it_through_saving(self, tmp_path) -> None:
        flow = sf.flows.NSF((2,), num_transforms=1, base=td.Laplace(torch.tensor([0.1, 1.0]), 2.0), seed=0)
        loaded = sf.load(flow.eval().save(tmp_path))
        x = torch.randn(5, 2)
        assert torch.equal(loaded.log_prob(x), flow.log_prob(x))
        assert torch.equal(loaded.sample(5, seed=0), flow.sample(5, seed=0))

    def test_one_that_no_file_can_hold_is_an_error_when_it_is_saved(self, tmp_path) -> None:
        class Skewed(td.Normal):
            pass

        logistic = td.TransformedDistribution(td.Uniform(0.0, 1.0), [td.SigmoidTransform().inv])
        for base in (Skewed(0.0, 1.0), logistic):
            flow = sf.flows.NSF((2,), num_transforms=1, base=base, seed=0).eval()
            assert flow.log_prob(torch.zeros(3, 2)).isfinite().all()
            message = (
                "not plain JSON values: Object of type .*, a base .*: build it of the classes of torch.distributions"
            )
            with pytest.raises(ModelFileError, match=message):
                flow.save(tmp_path)
        assert list(tmp_path.iterdir()) == []

    def test_a_seed_decides_in_every_thread(self) -> None:
        base = TorchDistribution(td.Laplace(0.0, 1.0), (2,))
        with ThreadPoolExecutor(4) as pool:
            draws = [
                pool.submit(base.sample, 20_000, torch.Generator().manual_seed(5), torch.float32, CPU)
                for _ in range(40)
            ]
        assert all(torch.equal(draw.result(), draws[0].result()) for draw in draws)

    @pytest.mark.gpu
    def test_goes_with_the_model_to_the_gpu(self) -> None:
        for base in (*DISTRIBUTIONS.values(), ("student_t", (2,)), ("gaussian_mixture", (2,))):
            flow = sf.flows.NSF(base[1], num_transforms=1, base=base[0], seed=0).eval().cuda()
            before, on_cpu = torch.cuda.get_rng_state(), torch.get_rng_state()
            draws = flow.sample(5, seed=0)
            assert torch.equal(draws, flow.sample(5, seed=0))
            assert torch.equal(before, torch.cuda.get_rng_state())
            assert torch.equal(on_cpu, torch.get_rng_state())
            assert draws.device.type == flow.log_prob(draws).device.type == "cuda"


LAPLACE = {"name": "Laplace", "parameters": {"loc": 0.0, "scale": 1.0}}


class TestBadInput:
    @pytest.mark.parametrize(
        ("base", "message"),
        [
            ("gausian_mixture", "unknown 'gausian_mixture'; did you mean gaussian_mixture"),
            (None, "unknown None; known: distribution, "),
            (["normal"], r"unknown \['normal'\]; did you mean normal"),
            ({}, "unknown {}"),
            ({"student_t": {}, "normal": {}}, "unknown {'student_t'"),
            ({"student_t": {"df": 3}}, "student_t does not take {'df': 3}"),
            ({"student_t": 3}, "student_t takes options by name; got 3"),
            ({"student_t": {"degrees_of_freedom": 1}}, "degrees_of_freedom must be above 1 and at most .*; got 1.0"),
            ({"student_t": {"degrees_of_freedom": "5"}}, "degrees_of_freedom must be a positive number; got '5'"),
            ({"student_t": {"degrees_of_freedom": math.nan}}, "degrees_of_freedom must be a positive number; got nan"),
            ({"student_t": {"degrees_of_freedom": math.inf}}, "degrees_of_freedom must be a positive number; got inf"),
            ({"gaussian_mixture": {"num_components": 0}}, "num_components must be 1 to 4,096; got 0"),
            ({"gaussian_mixture": {"num_components": 2.5}}, "num_components must be 1 to 4,096; got 2.5"),
            (td.Laplace, "unknown <class"),
            (td.Bernoulli(0.5), "Bernoulli is discrete"),
            (td.Poisson(2.0), "Poisson is discrete"),
            (td.Exponential(1.0), "Exponential does not live on all real numbers, .* use preprocess=logit or log1p"),
            (td.Uniform(0.0, 1.0), "Uniform does not live on all real numbers"),
            (td.VonMises(0.0, 1.0), "VonMises does not live on all real numbers"),
            (td.Dirichlet(torch.ones(2)), "Dirichlet does not live on all real numbers"),
            (td.Normal(0.0, math.inf), r"Normal\(loc: 0.0, scale: inf\): log p of its own draws is"),
            ({"distribution": "Laplace"}, "name and parameters expected; got 'Laplace'"),
            ({"distribution": {"name": "Laplac", "parameters": {}}}, "unknown 'Laplac'; did you mean Laplace"),
            ({"distribution": {"name": ["Laplace"], "parameters": {}}}, "unknown "),
            ({"distribution": {"name": "kl_divergence", "parameters": {}}}, "unknown 'kl_divergence'"),
            ({"distribution": {**LAPLACE, "parameters": 3}}, "Laplace: parameters by name expected; got 3"),
            ({"distribution": {**LAPLACE, "parameters": {"lock": 0}}}, "unknown parameter 'lock'; did you mean loc"),
            ({"distribution": {**LAPLACE, "parameters": {"loc": 0.0}}}, "Laplace cannot be built from .*scale"),
            ({"distribution": {**LAPLACE, "parameters": {"loc": 0.0, "scale": -1.0}}}, "Laplace cannot be built"),
            ({"distribution": {**LAPLACE, "parameters": {"loc": [[1], [2, 3]], "scale": 1}}}, "cannot be built"),
            ({"distribution": {"name": "AffineTransform", "parameters": {"loc": 1.0, "scale": 2.0}}}, "an instance of"),
        ],
    )
    def test_a_base_that_is_none_is_named(self, base, message: str) -> None:
        with pytest.raises(ConfigError, match=f"base: .*{message}"):
            sf.flows.NSF((2,), num_transforms=1, base=base)

    @pytest.mark.parametrize(
        ("base", "shape"),
        [
            (td.Laplace(torch.zeros(2), 1.0), [2]),
            (td.Laplace(torch.zeros(5, 3), 1.0), [5, 3]),
            (td.MultivariateNormal(torch.zeros(1), torch.eye(1)), [1]),
            (StudentT((4,)), [4]),
        ],
    )
    def test_one_of_another_shape_is_an_error_that_names_both(self, base, shape) -> None:
        with pytest.raises(ShapeError, match=rf"base: .*{shape}.*\[3\]".replace("[2]", r"\[2\]")):
            sf.flows.NSF((3,), num_transforms=1, base=base)

    def test_one_that_hides_its_support_or_its_density(self) -> None:
        class Silent(td.Distribution):
            def __init__(self) -> None:
                super().__init__(validate_args=False)

        class Dumb(Silent):
            support = td.constraints.real

        with pytest.raises(ConfigError, match="Silent does not tell its support: it must define `support`"):
            base_density(Silent(), (2,))
        with pytest.raises((ConfigError, ShapeError), match="Dumb"):
            base_density(Dumb(), (2,))

    def test_from_a_workflow_file(self) -> None:
        build = sf.families.build
        assert isinstance(build({"name": "nsf", "base": "student_t"}, (2,)).base, StudentT)
        assert len(build({"name": "nsf", "base": {"gaussian_mixture": {"num_components": 3}}}, (2,)).base.means) == 3
        assert isinstance(build({"name": "nsf", "base": {"distribution": LAPLACE}}, (2,)).base, TorchDistribution)
        with pytest.raises(ConfigError, match="base: unknown 'student'"):
            build({"name": "nsf", "base": "student"}, (2,))
