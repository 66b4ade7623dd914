"""Networks that denoise: one contract for all, and what each of them promises beside it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from sciflow.contexts import Contexts, Field, Label, Tokens, Vector
from sciflow.errors import ConfigError
from sciflow.nets import DenoisingMLP, DiffusionTransformer, UNet
from sciflow.nets.context import ContextEmbedding
from sciflow.nets.noise_level import NoiseLevelEmbedding
from sciflow.nets.unet import default_levels

NAN = torch.nan
PARTS = {
    "season": Label(3),
    "place": Vector(4),
    "coarse": Field((2, 3, 4)),
    "before": Field((1, 5)),
    "words": Tokens(4, vocabulary=6),
    "stations": Tokens(3, features=2),
}
MIX = Contexts(PARTS)

MLP = partial(DenoisingMLP, hidden_features=(16, 16, 24), embedding_features=16)
U_NET = partial(UNet, channels=8, channel_multipliers=(1, 2), blocks_per_level=1)
TRANSFORMER = partial(DiffusionTransformer, hidden_features=(16, 16), num_heads=2)

NETWORKS: dict[str, tuple[Callable[..., nn.Module], tuple[int, ...], Contexts | None, int]] = {
    "mlp": (MLP, (5,), None, 1),
    "mlp, mix": (MLP, (5,), MIX, 2),
    "mlp with waves": (partial(MLP, num_frequencies=3), (5,), None, 2),
    "mlp of a field, label": (MLP, (1, 3, 4), Contexts({"season": PARTS["season"]}), 1),
    "u-net of a series": (U_NET, (2, 11), None, 2),
    "u-net of a series, mix": (U_NET, (2, 12), MIX, 1),
    "u-net, vector": (partial(U_NET, padding="replicate"), (1, 5, 7), Contexts({"place": PARTS["place"]}), 1),
    "u-net round the earth, mix": (partial(U_NET, padding=("replicate", "circular")), (1, 5, 7), MIX, 2),
    "u-net without attention, mix": (partial(U_NET, attention_levels=()), (1, 4, 6), MIX, 1),
    "u-net of a volume": (partial(U_NET, padding=("zeros", "circular", "replicate")), (1, 3, 4, 5), None, 1),
    "transformer, mix": (TRANSFORMER, (5,), MIX, 2),
    "transformer of pairs of features": (partial(TRANSFORMER, patch_size=2), (5,), None, 1),
    "transformer of a series": (partial(TRANSFORMER, patch_size=3), (2, 11), None, 1),
    "transformer of a field, mix": (partial(TRANSFORMER, patch_size=(2, 3)), (1, 5, 7), MIX, 2),
    "transformer of a volume, field": (TRANSFORMER, (1, 3, 4, 5), Contexts({"coarse": Field((1, 2, 2, 2))}), 1),
}
MIXED = ["mlp, mix", "u-net round the earth, mix", "transformer of a field, mix"]


class Case:
    """A network, and something to give it."""

    def __init__(self, name: str, n: int = 4, neutral: bool = False) -> None:
        torch.manual_seed(0)
        build, self.event_shape, self.contexts, self.num_levels = NETWORKS[name]
        self.network = build(self.event_shape, self.contexts, num_levels=self.num_levels)
        if not neutral:
            randomise(self.network)
        self.x = torch.randn(n, *self.event_shape)
        self.level = torch.randn(n) if self.num_levels == 1 else torch.randn(n, self.num_levels)
        self.context = None if self.contexts is None else self.contexts.pack(drawn(self.contexts, n))

    def __call__(self) -> Tensor:
        return self.network(self.x, self.level, self.context)

    def rows(self, rows: slice) -> Tensor:
        context = None if self.context is None else self.context[rows]
        return self.network(self.x[rows], self.level[rows], context)

    def double(self) -> Case:
        for name in ("network", "x", "level", "context"):
            if getattr(self, name) is not None:
                setattr(self, name, getattr(self, name).double())
        return self


@pytest.fixture(params=NETWORKS)
def case(request: pytest.FixtureRequest) -> Case:
    return Case(request.param)


def randomise(module: nn.Module, by: float = 0.1) -> None:
    """Move every weight off its neutral start."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += by * torch.randn_like(parameter)


def drawn(contexts: Contexts, n: int) -> dict[str, Tensor]:
    """Contexts at random, with all kinds of padding."""
    values = {}
    for name, part in contexts.items():
        if isinstance(part, Label):
            values[name] = torch.randint(part.num_classes, (n,))
        elif isinstance(part, Tokens) and part.vocabulary is not None:
            values[name] = torch.randint(part.vocabulary, (n, part.length)).where(places(n, part.length), -1)
        else:
            values[name] = torch.randn(n, *part.shape)
            if isinstance(part, Tokens):
                values[name] = values[name].where(places(n, part.length)[..., None], NAN)
    return values


def places(n: int, length: int) -> Tensor:
    """Where the tokens of ``n`` sequences are, each at least one long."""
    return torch.arange(length) < torch.randint(1, length + 1, (n, 1))


class TestEveryNetwork:
    @pytest.mark.parametrize("name", NETWORKS)
    def test_starts_at_zero(self, name: str) -> None:
        case = Case(name, neutral=True)
        assert torch.equal(case(), torch.zeros_like(case.x))

    def test_returns_the_shape_and_dtype_of_events(self, case: Case) -> None:
        y = case()
        assert (y.shape, y.dtype) == (case.x.shape, torch.float32)
        assert y.std() > 1e-3
        single, double = y, case.double()()
        assert double.dtype == torch.float64
        torch.testing.assert_close(single.double(), double, rtol=1e-3, atol=1e-3)

    def test_rows_do_not_depend_on_each_other(self, case: Case) -> None:
        case.double()
        alone = torch.cat([case.rows(slice(i, i + 1)) for i in range(len(case.x))])
        torch.testing.assert_close(alone, case())

    def test_no_rows_are_no_trouble(self, case: Case) -> None:
        y = case.rows(slice(0, 0))
        assert y.shape == (0, *case.event_shape)
        y.sum().backward()

    def test_one_level_and_one_context_stand_for_all_rows(self, case: Case) -> None:
        one, context = case.level[:1], None if case.context is None else case.context[:1]
        all_context = None if context is None else context.expand(len(case.x), -1)
        every = case.network(case.x, one.expand_as(case.level), all_context)
        torch.testing.assert_close(case.network(case.x, one, context), every, rtol=1e-4, atol=1e-5)

    def test_level_matters(self, case: Case) -> None:
        before = case()
        case.level = case.level + 0.5
        assert (case() - before).flatten(1).abs().amax(1).min() > 1e-4

    def test_forward_derivatives_are_those_of_finite_differences(self, case: Case) -> None:
        case.double()
        x, level = torch.randn_like(case.x), torch.randn_like(case.level)

        def at(step: float) -> Tensor:
            return case.network(case.x + step * x, case.level + step * level, case.context)

        with sdpa_kernel(SDPBackend.MATH):
            value, slope = torch.func.jvp(
                lambda x, level: case.network(x, level, case.context), (case.x, case.level), (x, level)
            )
        torch.testing.assert_close(value, case())
        torch.testing.assert_close(slope, (at(1e-5) - at(-1e-5)) / 2e-5, rtol=1e-6, atol=1e-7)

    def test_forward_derivatives_in_many_directions(self, case: Case) -> None:
        case.double()
        directions = torch.randn(3, *case.x.shape, dtype=torch.float64)

        def slope(direction: Tensor) -> Tensor:
            return torch.func.jvp(lambda x: case.network(x, case.level, case.context), (case.x,), (direction,))[1]

        with sdpa_kernel(SDPBackend.MATH):
            together = torch.func.vmap(slope)(directions)
            one_by_one = torch.stack([slope(direction) for direction in directions])
        torch.testing.assert_close(together, one_by_one)

    def test_half_precision(self, case: Case) -> None:
        exact = case()
        with torch.autocast("cpu", torch.bfloat16):
            half = case()
        half.float().square().sum().backward()
        assert (half - exact).abs().max() < 0.1 * exact.abs().max()
        assert all(p.grad is None or p.grad.isfinite().all() for p in case.network.parameters())

    def test_gradients_reach_every_weight(self, case: Case) -> None:
        if case.context is not None:
            case.context[1] = NAN  # else nothing is learned of what stands for it
        case().square().sum().backward()
        for name, parameter in case.network.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
            assert parameter.grad.any(), name


class TestContexts:
    @pytest.mark.parametrize("name", [name for name, (_, _, contexts, _) in NETWORKS.items() if contexts])
    def test_nothing_given_is_no_context(self, name: str) -> None:
        case = Case(name)
        nothing = torch.full_like(case.context, NAN)
        torch.testing.assert_close(
            case.network(case.x, case.level, nothing), case.network(case.x, case.level), rtol=1e-5, atol=1e-6
        )

    @pytest.mark.parametrize("name", MIXED)
    @pytest.mark.parametrize("part", PARTS)
    def test_what_is_not_given_does_not_matter_and_what_is_does(self, name: str, part: str) -> None:
        case = Case(name)
        case.double()
        values = case.contexts.unpack(case.context.clone())
        other = case.contexts.unpack(case.contexts.pack(drawn(case.contexts, len(case.x))).double())
        moved = case.contexts.pack({**values, part: other[part]})
        assert (case.network(case.x, case.level, moved) - case()).abs().max() > 1e-4

        def dropped(whole: dict[str, Tensor]) -> Tensor:
            holed = whole[part].clone().reshape(len(case.x), -1)
            if isinstance(case.contexts[part], Tokens):
                holed[:] = NAN
            else:
                holed[:, -1] = NAN
            context = case.contexts.pack({**values, part: holed.reshape(whole[part].shape)}).requires_grad_()
            y = case.network(case.x, case.level, context)
            y.square().sum().backward()
            assert context.grad.isfinite().all()
            return y

        assert torch.equal(dropped(values), dropped(other))
        assert (dropped(values) - case()).abs().max() > 1e-4
        assert all(p.grad.isfinite().all() for p in case.network.parameters() if p.grad is not None)

    @pytest.mark.parametrize("name", MIXED)
    def test_padding_of_tokens_does_not_matter(self, name: str) -> None:
        case = Case(name)
        case.double()
        short = case.contexts.unpack(case.context.clone())
        short["words"][:, 2:] = -1
        short["stations"][:, 2:] = NAN
        before = case.network(case.x, case.level, case.contexts.pack(short))
        with torch.no_grad():
            for part in case.network.conditioning.context.parts:
                if hasattr(part, "positions"):
                    part.positions[2:] += 1
        torch.testing.assert_close(case.network(case.x, case.level, case.contexts.pack(short)), before)
        assert not torch.allclose(case(), before)

    def test_a_sequence_without_tokens_is_not_one_that_is_not_given(self) -> None:
        embed = ContextEmbedding(Contexts({"words": PARTS["words"]}), 8)
        randomise(embed)
        assert not torch.allclose(embed(torch.full((1, 4), -1.0)).vector, embed(torch.full((1, 4), NAN)).vector)

    @pytest.mark.parametrize("shape", [(2, 5), (1, 4, 6), (2, 3, 2, 5)])
    @pytest.mark.parametrize("sides", [(9, 8, 11), (3, 9, 2)])
    def test_fields_are_interpolated_as_torch_does(self, shape: tuple[int, ...], sides: tuple[int, ...]) -> None:
        field, sides = torch.randn(3, *shape), sides[: len(shape) - 1]
        embedded = ContextEmbedding(Contexts({"field": Field(shape)}), 8, sides)(field.flatten(1)).field
        assert torch.equal(embedded[:, -1], torch.ones(3, *sides))
        if all(side >= before for side, before in zip(sides, shape[1:], strict=True)):
            mode = {1: "linear", 2: "bilinear", 3: "trilinear"}[len(sides)]
            torch.testing.assert_close(embedded[:, :-1], F.interpolate(field, sides, mode=mode, align_corners=False))
        elif len(sides) == 2:
            expected = F.interpolate(field, sides, mode="bilinear", align_corners=False, antialias=True)
            torch.testing.assert_close(embedded[:, :-1], expected)

    def test_fields_round_the_earth_are_interpolated_across_the_seam(self) -> None:
        embed = ContextEmbedding(Contexts({"field": Field((1, 2, 4))}), 8, (4, 8), (False, True))
        field = torch.randn(3, 1, 2, 4)
        rolled = embed(field.roll(1, -1).flatten(1)).field
        torch.testing.assert_close(rolled, embed(field.flatten(1)).field.roll(2, -1))


class TestNoiseLevels:
    @pytest.mark.parametrize("build", [MLP, U_NET, TRANSFORMER])
    def test_a_network_of_two_levels_begins_as_that_of_one(self, build: Callable[..., nn.Module]) -> None:
        one, two = build((2, 6)), build((2, 6), num_levels=2)
        randomise(one)
        missing, unexpected = two.load_state_dict(one.state_dict(), strict=False)
        assert not unexpected
        assert all(name.startswith("conditioning.level.perceptrons.1.") for name in missing)
        x, levels = torch.randn(3, 2, 6), torch.randn(3, 2)
        torch.testing.assert_close(two(x, levels), one(x, levels[:, 0]))

    def test_double_precision_tells_close_levels_apart(self) -> None:
        embed = NoiseLevelEmbedding(16).double()
        level = torch.tensor([1.0, 1.0 + 1e-12], dtype=torch.float64)
        first, second = embed(level)
        assert 1e-15 < (second - first).abs().max() < 1e-10


class TestUNet:
    def test_rolls_with_longitude(self) -> None:
        torch.manual_seed(0)
        contexts = Contexts({"season": PARTS["season"], "coarse": Field((1, 2, 4)), "words": PARTS["words"]})
        network = UNet((1, 5, 8), contexts, channels=8, padding=("zeros", "circular"), channel_multipliers=(1, 2, 2))
        randomise(network)
        network.double()
        x, level, values = torch.randn(2, 1, 5, 8).double(), torch.randn(2).double(), drawn(contexts, 2)
        there = network(x, level, contexts.pack(values).double())
        values["coarse"] = values["coarse"].roll(2, -1)
        rolled = network(x.roll(4, -1), level, contexts.pack(values).double())
        torch.testing.assert_close(rolled, there.roll(4, -1))
        assert not torch.allclose(rolled, there)

    def test_events_whose_channels_come_last_in_memory(self) -> None:
        network = U_NET((2, 4, 6)).double()
        randomise(network)
        x, level = torch.randn(3, 2, 4, 6).double(), torch.zeros(3).double()
        turned = x.contiguous(memory_format=torch.channels_last)
        with sdpa_kernel(SDPBackend.MATH):
            value, _ = torch.func.jvp(lambda x: network(x, level), (turned,), (turned,))
        torch.testing.assert_close(value, network(x, level))

    def test_a_ring_of_odd_length_has_no_edge(self) -> None:
        """What happens at the first cell reaches the last one, and as much as the second."""
        torch.manual_seed(0)
        for padding, reaches in (("circular", True), ("zeros", False)):
            network = UNet((1, 31), channels=8, channel_multipliers=(1, 2), attention_levels=(), padding=padding)
            randomise(network)
            x = torch.randn(1, 1, 31, requires_grad=True)
            norms = [m for m in network.modules() if isinstance(m, nn.GroupNorm)]
            assert norms
            for norm in norms:  # they alone would carry it anywhere
                norm.forward = lambda h: h
            slope = torch.autograd.grad(network(x, torch.zeros(1))[0, 0, 0], x)[0][0, 0].abs()
            assert (slope[-1] > 0.1 * slope[1]) == reaches

    def test_default_levels_leave_four_cells(self) -> None:
        for sides in ((1,), (7, 100), (8,), (18, 30), (33, 49), (64, 64, 64), (1000,)):
            deepest = min(sides) / 2 ** (default_levels(sides) - 1)
            assert deepest >= min(4, *sides)
            assert default_levels(sides) == 4 or deepest < 8
            UNet((1, *sides), channels=8)

    @pytest.mark.parametrize(
        ("shape", "options", "says"),
        [
            ((1, 3, 30), {"channel_multipliers": (1, 2, 2)}, "channel_multipliers: 3 levels.*room for 1 to 2"),
            ((1, 8), {"channel_multipliers": ()}, "channel_multipliers"),
            ((8,), {}, "one to three sides"),
            ((1, 2, 2, 2, 2), {}, "one to three sides"),
            ((1, 8), {"padding": "circle"}, "padding: got 'circle'; did you mean circular"),
            ((1, 8, 8), {"padding": ("zeros",)}, "padding must be one for all sides"),
            ((1, 8), {"attention_levels": (2,)}, "attention_levels must be from -2 to 1"),
            ((1, 8), {"channels": 5}, "num_heads must be a divisor of the 10 channels"),
        ],
    )
    def test_refuses(self, shape: tuple[int, ...], options: dict[str, Any], says: str) -> None:
        with pytest.raises(ConfigError, match=says):
            UNet(shape, **options)


class TestDiffusionTransformer:
    @pytest.mark.parametrize(
        ("shape", "patch_size", "grid"),
        [
            ((5,), None, (5,)),
            ((600,), None, (200,)),
            ((1, 18, 30), None, (9, 15)),
            ((1, 7, 9), 4, (2, 3)),
            ((1, 7, 9), (7, 2), (1, 5)),
            ((3, 2, 300), None, (1, 150)),
        ],
    )
    def test_patches(self, shape: tuple[int, ...], patch_size: int | None, grid: tuple[int, ...]) -> None:
        network = TRANSFORMER(shape, patch_size=patch_size)
        assert network.patches.grid == grid
        assert network(torch.ones(2, *shape), torch.zeros(2)).shape == (2, *shape)

    def test_what_fills_a_patch_up_is_cut_off_again(self) -> None:
        patches = TRANSFORMER((3, 5, 7), patch_size=(2, 3)).patches
        x = torch.randn(4, 3, 5, 7)
        cut = patches.cut(x)
        assert cut.shape == (4, 9, 18)
        assert torch.equal(cut[:, 4].reshape(4, 3, 2, 3), x[:, :, 2:4, 3:6])
        assert torch.equal(patches.joined(cut), x)

    @pytest.mark.parametrize(
        ("options", "says"),
        [
            ({"patch_size": 0}, "patch_size must be 1 or more"),
            ({"patch_size": (2, 2, 2)}, "patch_size must be 1 or more, one for all of .* or one for each"),
            ({"hidden_features": (16, 32)}, "hidden_features must be equal widths"),
            ({"num_heads": 3}, "num_heads must be a divisor of the width 256"),
        ],
    )
    def test_refuses(self, options: dict[str, Any], says: str) -> None:
        with pytest.raises(ConfigError, match=says):
            DiffusionTransformer((1, 8, 8), **options)


@pytest.mark.parametrize("name", MIXED)
def test_compiles_in_one_graph(name: str) -> None:
    torch._dynamo.reset()
    case = Case(name)
    compiled = torch.compile(case.network, fullgraph=True, backend="aot_eager")
    y = compiled(case.x, case.level, case.context)
    torch.testing.assert_close(y, case(), rtol=1e-4, atol=1e-4)
    y.sum().backward()


@pytest.mark.parametrize("name", MIXED)
def test_survives_copying_and_saving(name: str) -> None:
    case = Case(name)
    other = Case(name, neutral=True).network
    other.load_state_dict(case.network.state_dict())
    for network in (copy.deepcopy(case.network), other):
        assert torch.equal(network(case.x, case.level, case.context), case())


@pytest.mark.parametrize(
    ("build", "event_shape"),
    [
        (partial(MLP, hidden_features=(64, 64), embedding_features=64), (3,)),
        (partial(U_NET, channels=16), (1, 4, 6)),
        (partial(TRANSFORMER, hidden_features=(32, 32), patch_size=2), (1, 4, 6)),
    ],
    ids=["mlp", "u-net", "transformer"],
)
def test_learns_from_the_event_its_level_and_every_context(
    build: Callable[..., nn.Module], event_shape: Sequence[int]
) -> None:
    """The target is a sum of terms of variance 1 or so, one for each; a term that is not learned would be left over."""
    torch.manual_seed(0)
    n = 512
    values = drawn(MIX, n)
    x, level = torch.randn(n, *event_shape), torch.rand(n) * 4 - 2
    like = (-1, *[1] * len(event_shape))
    on_grid = len(event_shape) == 3
    terms = {
        "x": x * torch.tanh(2 * level).reshape(like),
        "season": torch.tensor([-1.2, 0.0, 1.2])[values["season"]],
        "place": values["place"][:, 1],
        "coarse": F.interpolate(values["coarse"], event_shape[1:])[:, :1] if on_grid else values["coarse"][:, 0, 0, 0],
        "before": values["before"][:, 0, 2],
        "words": torch.tensor([-1.0, 1.0, -1.0, 1.0, -1.0, 1.0])[values["words"][:, 0].long()],
        "stations": values["stations"][:, 0, 1],
    }
    target = sum(term.reshape(n, *[1] * len(event_shape)) if term.ndim == 1 else term for term in terms.values())
    network = build(event_shape, MIX)
    optimiser = torch.optim.Adam(network.parameters(), 5e-3)

    def loss(rows: Tensor | slice, values: dict[str, Tensor]) -> Tensor:
        context = MIX.pack({name: value[rows] for name, value in values.items()})
        return F.mse_loss(network(x[rows], level[rows], context), target[rows].expand(-1, *event_shape))

    with torch.no_grad():
        start = float(loss(slice(n), values))
    for _ in range(120):
        optimiser.zero_grad()
        loss(torch.randint(n, (128,)), values).backward()
        optimiser.step()
    with torch.no_grad():
        end = float(loss(slice(n), values))
        assert end < 0.1 * start
        for name in values:
            other = {**values, name: values[name].roll(1, 0)}
            assert float(loss(slice(n), other)) > end + 0.5, name
