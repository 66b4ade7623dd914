"""One suite over every flow: a new one joins FLOWS by one line, and a density without a map to noise EXACT."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch

from sciflow.bijections import inverse_by
from sciflow.contexts import Label, Tokens
from sciflow.errors import ConfigError, ShapeError
from sciflow.families import build, load
from sciflow.flows import (
    IAF,
    MAF,
    NICE,
    NSF,
    Flow,
    Glow,
    MixtureOfFlows,
    RealNVP,
    ResidualFlow,
    TransformerFlow,
    VariationalFlow,
)

SMALL: dict[str, Any] = {"num_transforms": 3, "hidden_features": (16, 16), "seed": 0}
# Of convolutions, which sum over 9 places: with random weights the sums should not run away.
NARROW: dict[str, Any] = {"num_transforms": 2, "hidden_features": (4, 4), "seed": 0}

MIX: dict[str, Any] = {
    "season": Label(4),
    "place": (2,),
    "coarse": (1, 2, 2),
    "words": Tokens(3, vocabulary=5),
    "reports": Tokens(2, features=2),
}

FLOWS = [
    NSF(event_shape=(2,), **SMALL),
    NSF(event_shape=(2,), context_shape=(3,), **SMALL),
    NSF(event_shape=(1,), **SMALL),
    NSF(event_shape=(1,), context_shape=(2, 2), **SMALL),
    NSF(event_shape=(2, 3, 1), preprocess=["standardize"], num_bins=4, tail_bound=3.0, **SMALL),
    NSF(event_shape=(5,), num_transforms=2, hidden_features=(8, 16), dropout=0.2, seed=1),
    NSF(event_shape=(2,), base="student_t", **SMALL),
    NSF(event_shape=(1,), base={"gaussian_mixture": {"num_components": 4}}, **SMALL),
    NSF(event_shape=(2, 2), context_shape=(2,), base=torch.distributions.Laplace(torch.zeros(2), 0.5), **NARROW),
    NSF(event_shape=(3,), context_shape=(2,), autoregressive=True, **SMALL),
    NSF(event_shape=(1,), context_shape=(2,), autoregressive=True, **SMALL),
    NSF(event_shape=(2,), context_shape=MIX, **SMALL),
    MAF(event_shape=(4,), **SMALL),
    MAF(event_shape=(2,), context_shape=(3,), **SMALL),
    MAF(event_shape=(3,), context_shape=MIX, **SMALL),
    IAF(event_shape=(3,), **SMALL),
    IAF(event_shape=(2,), context_shape=(3,), **SMALL),
    NICE(event_shape=(2,), **SMALL),
    NICE(event_shape=(3,), context_shape=(2,), **SMALL),
    NICE(event_shape=(1, 4, 4), **NARROW),
    RealNVP(event_shape=(2,), context_shape=(3,), **SMALL),
    RealNVP(event_shape=(5,), dropout=0.2, **SMALL),
    RealNVP(event_shape=(3, 4, 6), context_shape=(2,), **NARROW),
    Glow(event_shape=(2,), **SMALL),
    Glow(event_shape=(2, 2), context_shape=(2, 2), **SMALL),
    Glow(event_shape=(1, 4, 4), **NARROW),
    Glow(event_shape=(3, 4, 6), context_shape=(2,), **NARROW),
    Glow(event_shape=(2, 3, 1), **NARROW),
    VariationalFlow(event_shape=(3,), num_components=2, **NARROW),
    ResidualFlow(event_shape=(2,), **NARROW),
    ResidualFlow(event_shape=(5,), context_shape=(2, 2), **NARROW),
    TransformerFlow((2,), num_transforms=2, hidden_features=(8,), seed=0),
    TransformerFlow((4,), context_shape=(2, 2), num_transforms=1, hidden_features=(8, 8), dropout=0.2, seed=0),
    TransformerFlow((2, 4, 4), num_transforms=2, hidden_features=(4,), patch_size=2, seed=0),
    TransformerFlow((1,), context_shape=(3,), num_transforms=1, hidden_features=(8,), preprocess="none", seed=0),
]

# What has no one map to noise, and all else that a flow has.
TINY: dict[str, Any] = {"num_transforms": 2, "hidden_features": (4, 4)}
MIXTURES = [
    MixtureOfFlows((2,), component={"nsf": {"num_transforms": 1, "hidden_features": 8}}, num_components=3, seed=0),
    MixtureOfFlows((2, 2), (3,), component=[{"maf": TINY}, {"realnvp": TINY}], seed=0),
]
EXACT = [*FLOWS, *MIXTURES]


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def randomised(flow: Flow) -> Flow:
    """Move every weight off its neutral start, at which a wrong formula may look right."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in flow.named_parameters():
            size = 0.015 if name.endswith("raw_log_scale") else 0.15  # which counts ten times
            parameter += size * torch.randn(parameter.shape, generator=generator)
    return flow.eval()


def context_for(flow: Flow) -> torch.Tensor | None:
    if flow.context_shape is None:
        return None
    context = torch.linspace(-1, 1, flow.context_shape.numel(), dtype=flow.dtype).reshape(flow.context_shape)
    return with_indices(flow, context)


def contexts_for(flow: Flow, n: int, generator: torch.Generator | None = None) -> torch.Tensor | None:
    if flow.context_shape is None:
        return None
    return with_indices(flow, torch.randn(n, *flow.context_shape, generator=generator))


def with_indices(flow: Flow, context: torch.Tensor) -> torch.Tensor:
    """Whole numbers in the place of labels and words, of which the last of three is not there."""
    if flow.conditions is not None and flow.conditions.declared:
        parts = flow.contexts.unpack(context)
        for name, part in flow.contexts.items():
            if isinstance(part, Label):
                parts[name] = (10 * parts[name]).round().remainder(part.num_classes)
            elif isinstance(part, Tokens) and part.vocabulary is not None:
                parts[name] = (10 * parts[name]).round().remainder(part.vocabulary)
                parts[name][..., -1] = -1
        context = flow.contexts.pack(parts)
    return context


@pytest.fixture
def flow(request: pytest.FixtureRequest) -> Flow:
    original: Flow = request.param
    fresh = type(original)(**original.arguments)
    return randomised(fresh)


@pytest.mark.parametrize("flow", FLOWS, ids=repr, indirect=True)
class TestEveryFlow:
    @pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.float64, 1e-9)])
    def test_decode_undoes_encode(self, flow: Flow, dtype: torch.dtype, tolerance: float) -> None:
        flow.to(dtype)
        z = torch.randn(300, *flow.event_shape, generator=torch.Generator().manual_seed(1)).to(dtype).clamp(-4, 4)
        x = flow.decode(z, context_for(flow))
        back = flow.encode(x, context_for(flow))
        assert back.dtype == dtype
        assert (back - z).abs().max() <= tolerance
        assert (flow.decode(back, context_for(flow)) - x).abs().max() <= tolerance

    def test_no_rows_are_no_trouble(self, flow: Flow) -> None:
        none, context = torch.zeros(0, *flow.event_shape), context_for(flow)
        assert flow.encode(none, context).shape == flow.decode(none, context).shape == none.shape

    def test_log_prob_is_that_of_the_jacobian(self, flow: Flow) -> None:
        flow.double()
        n, context = flow.event_shape.numel(), context_for(flow)
        for x in flow.sample(5, seed=0) if context is None else flow.sample(5, context, seed=0):
            z = flow.encode(x, context)
            jacobian = torch.func.jacrev(lambda e: flow.encode(e, context))(x).reshape(n, n)
            expected = flow.base.log_prob(z[None])[0] + torch.linalg.slogdet(jacobian).logabsdet
            torch.testing.assert_close(flow.log_prob(x, context), expected, rtol=0, atol=1e-8)

    def test_starts_as_its_base(self, flow: Flow) -> None:
        fresh = type(flow)(**flow.arguments).eval()
        x = torch.randn(50, *flow.event_shape)
        expected = fresh.base.log_prob(x)
        torch.testing.assert_close(fresh.log_prob(x, context_for(flow)), expected, rtol=0, atol=1e-4)

    def test_drawing_compiles_as_one_graph(self, flow: Flow) -> None:
        torch._dynamo.reset()
        context = context_for(flow)
        compiled = torch.compile(flow.sample, fullgraph=True, backend="eager")
        draws = []
        for sample in (flow.sample, compiled):
            torch.manual_seed(1)
            draws.append(sample(4, context))
        torch.testing.assert_close(*draws)


@pytest.mark.parametrize("flow", EXACT, ids=repr, indirect=True)
class TestEveryExactDensity:
    def test_no_rows_are_no_trouble(self, flow: Flow) -> None:
        none, context = torch.zeros(0, *flow.event_shape), context_for(flow)
        assert flow.log_prob(none, context).shape == flow.likelihood(none, context).log_prob.shape == (0,)
        assert flow.sample(0, context, seed=0).shape == none.shape
        assert flow.train().loss(none, context).shape == (0,)

    def test_gradients_are_finite_far_out(self, flow: Flow) -> None:
        x = torch.tensor([-1e3, 1e3, 0.0, 5.0]).reshape(-1, *[1] * len(flow.event_shape))
        x = x.expand(-1, *flow.event_shape).clone().requires_grad_()
        flow.loss(x, context_for(flow)).mean().backward()
        assert x.grad is not None
        for name, tensor in (("x", x), *flow.named_parameters()):
            assert tensor.grad is None or tensor.grad.isfinite().all(), name

    def test_a_seed_decides_the_weights_and_leaves_torch_alone(self, flow: Flow) -> None:
        before = torch.get_rng_state()
        twin = type(flow)(**flow.arguments)
        assert torch.equal(before, torch.get_rng_state())
        again = type(flow)(**flow.arguments)
        other = type(flow)(**{**flow.arguments, "seed": 123})
        weights, same, different = (list(f.state_dict().values()) for f in (twin, again, other))
        assert all(torch.equal(a, b) for a, b in zip(weights, same, strict=True))
        if flow.event_shape.numel() > 1 or flow.context_shape is not None:
            assert not all(torch.equal(a, b) for a, b in zip(weights, different, strict=True))

    def test_training_lowers_the_loss(self, flow: Flow) -> None:
        generator = torch.Generator().manual_seed(0)
        # Sums: elements that depend on each other, for flows that cannot bend one alone.
        x = torch.rand(512, *flow.event_shape, generator=generator).square().flatten(1).cumsum(1)
        x = x.reshape(512, *flow.event_shape)
        flow = type(flow)(**flow.arguments)
        flow.fit_preprocessing(x, contexts_for(flow, 512))
        optimiser = torch.optim.Adam(flow.parameters(), 1e-2)
        losses = []
        for _ in range(30):
            loss = flow.loss(x, context_for(flow)).mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            losses.append(loss.item())
        assert losses[-1] < losses[0] - 0.1

    def test_half_precision_networks_leave_log_prob_in_float32(self, flow: Flow) -> None:
        x, context = flow.sample(100, context_for(flow), seed=0), context_for(flow)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            log_prob = flow.log_prob(x, context)
        assert log_prob.dtype == torch.float32
        # Only the networks' outputs are rounded, to three digits; the errors of many elements add up.
        assert (log_prob - flow.log_prob(x, context)).abs().mean() < 0.05 * max(1, flow.event_shape.numel() / 6) ** 0.5

    def test_compiles_as_one_graph(self, flow: Flow) -> None:
        torch._dynamo.reset()
        x, context = torch.randn(4, *flow.event_shape), context_for(flow)
        compiled = torch.compile(flow.log_prob, fullgraph=True, backend="eager")
        torch.testing.assert_close(compiled(x, context), flow.log_prob(x, context))

    def test_survives_saving(self, flow: Flow, tmp_path) -> None:
        x = flow.sample(20, context_for(flow), seed=0)
        again = load(flow.save(tmp_path / "model"))
        assert type(again) is type(flow)
        assert torch.equal(again.log_prob(x, context_for(flow)), flow.log_prob(x, context_for(flow)))

    def test_a_workflow_names_it(self, flow: Flow) -> None:
        arguments = {key: value for key, value in flow.arguments.items() if not key.endswith("_shape")}
        built = build({"name": flow.family, **arguments}, flow.event_shape, flow.arguments["context_shape"])
        assert type(built) is type(flow)
        assert built.arguments == flow.arguments


@pytest.mark.parametrize("flow", [f for f in EXACT if f.event_shape.numel() <= 2], ids=repr, indirect=True)
def test_density_integrates_to_one(flow: Flow) -> None:
    flow.double()
    generator = torch.Generator().manual_seed(1)
    # In units of data that are not the model's own, so that the Jacobian of the preprocessing counts too.
    x = 3 * torch.randn(100, *flow.event_shape, generator=generator) + 7
    flow.fit_preprocessing(x, contexts_for(flow, 100, generator))
    # Splines have kinks: a line is cheap to resolve well, a plane is not.
    line = torch.linspace(-40, 54, 10_001 if flow.event_shape.numel() == 1 else 801, dtype=torch.float64)
    grid = torch.cartesian_prod(*[line] * flow.event_shape.numel()).reshape(-1, *flow.event_shape)
    with torch.no_grad():
        density = flow.log_prob(grid, context_for(flow)).exp()
    total = density.sum() * (line[1] - line[0]) ** flow.event_shape.numel()
    assert abs(total - 1) <= 1e-3


def test_samples_follow_log_prob() -> None:
    flow = randomised(NSF(event_shape=(1,), **SMALL)).double()
    draws = flow.sample(20_000, seed=0).flatten().sort().values
    line = torch.linspace(-12, 12, 4001, dtype=torch.float64)
    with torch.no_grad():
        cumulative = torch.cumulative_trapezoid(flow.log_prob(line[:, None]).exp(), line)
    expected = cumulative[torch.searchsorted(line[1:], draws).clamp_max(len(cumulative) - 1)]
    uniform = (torch.arange(len(draws), dtype=torch.float64) + 0.5) / len(draws)
    # Kolmogorov-Smirnov: 1.63 / sqrt(n) is exceeded by chance once in a hundred seeds.
    assert (expected - uniform).abs().max() < 1.63 / len(draws) ** 0.5


def test_learns_what_a_gaussian_cannot() -> None:
    generator = torch.Generator().manual_seed(0)
    angle = 3.14 * torch.rand(4000, generator=generator)
    moon = torch.stack((angle.cos(), angle.sin()), 1) + 0.1 * torch.randn(4000, 2, generator=generator)
    train, test = moon[:3000], moon[3000:]
    flow = NSF(event_shape=(2,), num_transforms=3, hidden_features=(32, 32), seed=0)
    flow.fit_preprocessing(train)
    optimiser = torch.optim.Adam(flow.parameters(), 5e-3)
    for _ in range(100):
        rows = train[torch.randint(len(train), (256,), generator=generator)]
        optimiser.zero_grad()
        flow.loss(rows).mean().backward()
        optimiser.step()
    gaussian = torch.distributions.MultivariateNormal(train.mean(0), train.T.cov()).log_prob(test).mean()
    with torch.no_grad():
        assert flow.eval().log_prob(test).mean() > gaussian + 0.5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_transforms": 0}, "num_transforms must be 1 to 1,000; got 0"),
        ({"num_transforms": 10**24}, "num_transforms must be 1 to 1,000; got 1000000000000000000000000"),
        ({"num_transforms": "3"}, "num_transforms must be 1 to 1,000; got '3'"),
        ({"num_transforms": True}, "num_transforms must be 1 to 1,000; got True"),
        ({"num_bins": 8.5}, "num_bins must be 2 to 256; got 8.5"),
        ({"seed": 2**63}, "seed must be 0 to 9,223,372,036,854,775,807; got 9223372036854775808"),
        ({"seed": -1}, "seed must be 0 to .*; got -1"),
        ({"num_bins": 1}, "num_bins must be 2 to 256; got 1"),
        ({"hidden_features": (64, 0)}, r"hidden_features must be .*; got \(64, 0\)"),
        ({"hidden_features": (1.5,)}, r"hidden_features must be .*; got \(1.5,\)"),
        ({"hidden_features": "12"}, r"hidden_features must be .*; got '12'"),
        ({"hidden_features": ()}, r"hidden_features must be .*; got \(\)"),
        ({"dropout": 1.0}, "dropout must be at least 0 and below 1; got 1.0"),
        ({"tail_bound": -1.0}, "tail_bound must be a positive number; got -1.0"),
        ({"tail_bound": float("nan")}, "tail_bound must be a positive number; got nan"),
        ({"tail_bound": "a"}, "tail_bound must be a positive number; got 'a'"),
        ({"tail_bound": 1e39}, r"tail_bound must be 1e-15 to 1e\+15; got 1e\+39"),
        ({"tail_bound": 10**400}, r"tail_bound must be 1e-15 to 1e\+15; got 1000"),
        ({"periodic": {0: 10**400}}, r"periodic must be periods of 1e-15 to 1e\+15; got {0: 1000"),
        ({"periodic": {0: 1e-60}}, "periodic must be periods of .*; got {0: 1e-60}"),
        ({"periodic": np.array([[0]])}, "periodic must be places from 0 to 1, each once"),
        ({"periodic": torch.tensor(0)}, "periodic must be places from 0 to 1, each once"),
        ({"hidden_features": torch.tensor(True)}, "hidden_features must be whole widths"),
        ({"preprocess": object()}, "preprocess: got <object .*, which no model file can hold"),
        ({"preprocess": {"logit": {"low": float("nan")}}}, "preprocess: got nan, which no model file can hold"),
        ({"periodic": [0, 1], "base": "rubbish"}, "base: unknown 'rubbish'"),
        ({"periodic": [0, 1], "preprocess": "rubbish"}, "preprocess: unknown 'rubbish'"),
        ({"event_shape": (2.5,)}, r"event_shape must be whole numbers; got \(2.5,\)"),
        ({"event_shape": None}, r"event_shape must be whole numbers; got None"),
        ({"context_shape": (True,)}, r"context_shape must be whole numbers; got \(True,\)"),
        ({"preprocess": 5}, "preprocess: unknown 5"),
        ({"preprocess": None}, "preprocess: unknown None"),
        ({"preprocess": "standardise"}, "did you mean standardize"),
    ],
)
def test_an_argument_out_of_range_is_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        NSF(**{"event_shape": (2,), **arguments})


def test_numbers_of_numpy_are_numbers() -> None:
    numbers = {"num_transforms": np.int32(1), "hidden_features": np.array([8, 8]), "tail_bound": np.float32(2.5)}
    flow = NSF(event_shape=np.array([2]), seed=np.int64(3), **numbers)
    plain = NSF(event_shape=(2,), num_transforms=1, hidden_features=[8, 8], tail_bound=2.5, seed=3)
    assert json.loads(json.dumps(flow.arguments)) == plain.arguments
    assert all(torch.equal(a, b) for a, b in zip(flow.parameters(), plain.parameters(), strict=True))


@pytest.mark.parametrize("shape", [(10**12,), (2**70,), (2**40, 2**40)])
def test_a_shape_that_no_memory_holds_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match="event_shape must hold at most 1,073,741,824 elements; got"):
        NSF(shape)


@pytest.mark.parametrize(
    "places", [np.array([1, 0]), torch.tensor([1, 0]), iter([1, 0])], ids=["numpy", "torch", "iter"]
)
def test_places_may_come_in_an_array(places: Any) -> None:
    assert NSF((3,), num_transforms=1, periodic=places).latent_angles == (1, 0)


def test_the_chain_from_data_units_is_a_copy_in_plain_numbers(tmp_path) -> None:
    chain: list[Any] = [{"logit": {"low": np.float32(0), "high": np.int64(1)}}]
    flow = NSF((2,), preprocess=chain, **SMALL)
    chain.append("standardize")
    assert load(flow.save(tmp_path)).arguments["preprocess"] == [{"logit": {"low": 0.0, "high": 1}}]


def test_a_seed_decides_the_weights_in_every_thread() -> None:
    with ThreadPoolExecutor(4) as pool:
        first, *others = pool.map(
            lambda _: torch.nn.utils.parameters_to_vector(NSF((3,), **SMALL).parameters()), range(32)
        )
    assert all(torch.equal(first, other) for other in others)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"num_transforms": True}, "model.num_transforms: got True, it must be a valid integer"),
        ({"tail_bound": True}, "model.tail_bound: got True, it must be a valid number"),
        ({"hidden_features": [True, 8]}, r"model.hidden_features: got \[True, 8\], it must be a valid integer"),
        ({"hidden_features": "128"}, "model.hidden_features: got '128', it must be a list of whole numbers"),
        ({"seed": True}, "seed must be 0 to .*; got True"),
        ({"periodic": {0: None}}, "periodic must be places from 0 to 1, .*; got {0: None}"),
        ({3: 4}, "model.3: unknown key; known: "),
    ],
)
def test_a_workflows_argument_of_another_kind_is_named(model: dict[Any, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build({"name": "nsf", **model}, (2,))


@pytest.mark.parametrize("model", [None, "nsf", ["nsf"]])
def test_a_workflows_model_is_a_mapping(model: Any) -> None:
    with pytest.raises(ConfigError, match=r"model: a mapping expected, such as \{name: nsf\}; got"):
        build(model, (2,))


@pytest.mark.parametrize("tolerance", ["a", None, True, float("nan"), 10**400])
def test_the_tolerance_of_an_inversion_is_a_number(tolerance: Any) -> None:
    with (
        pytest.raises(ConfigError, match="tolerance of inversion: from 0 to below 1; got"),
        inverse_by("parallel", tolerance),
    ):
        pass


def test_the_status_of_rows_compiles_as_one_graph() -> None:
    torch._dynamo.reset()
    flow, x = NSF((2,), **SMALL).eval(), torch.tensor([[0.0, 1.0], [torch.nan, 0.0]])
    compiled = torch.compile(lambda x: flow.likelihood(x).status, fullgraph=True, backend="eager")
    assert torch.equal(compiled(x), flow.likelihood(x).status)


def test_an_unknown_method_or_option_is_named() -> None:
    flow = NSF(event_shape=(2,), **SMALL)
    with pytest.raises(ConfigError, match="'exact' alone; got 'ode'"):
        flow.likelihood(torch.zeros(1, 2), method="ode")
    with pytest.raises(ConfigError, match="no options; got tolerance"):
        flow.likelihood(torch.zeros(1, 2), tolerance=1e-3)
    with pytest.raises(ConfigError, match="no options; got steps"):
        flow.sample(1, steps=3)


def test_repr_is_one_line() -> None:
    text = repr(NSF(event_shape=(24,), context_shape=(2,)))
    assert text.startswith("NSF(event_shape=(24,), context_shape=(2,), num_transforms=")
    assert text.endswith(" parameters)")
    assert "\n" not in text


def test_uneven_contexts_come_near_and_fields_keep_their_proportions() -> None:
    generator = torch.Generator().manual_seed(0)
    rain = torch.randn(400, 2, generator=generator).mul(3).exp() * torch.randint(2, (400, 2), generator=generator)
    furthest = {}
    for shape in ((2,), (1, 2)):
        flow = NSF((1,), shape, num_transforms=1, hidden_features=(8,))
        flow.fit_preprocessing(torch.zeros(400, 1), rain.reshape(400, *shape))
        furthest[shape] = float(flow._normalise_context(rain.reshape(400, *shape)).max())
    assert furthest[2,] < 3.5
    assert furthest[1, 2] > 10
