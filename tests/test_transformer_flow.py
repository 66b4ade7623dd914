"""Transformer flows: tokens see what came before, a draw costs what its log p costs, correlated fields are learned."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.autograd.functional import hessian, jacobian
from torch.nn.attention import SDPBackend, sdpa_kernel

import sciflow as sf
from sciflow.bijections import TransformerAutoregressive
from sciflow.errors import ConfigError, ShapeError
from sciflow.flows import Flow, TransformerFlow
from sciflow.flows import transformer_flow as family
from sciflow.nets import CausalTransformer
from sciflow.nets import attention as nets


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def randomised(module: Any) -> Any:
    """Move every weight off its neutral start."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    return module.eval()


@contextmanager
def token_evaluations(flow: TransformerFlow) -> Iterator[list[int]]:
    """Count what the first layers of all transformers read: one a row and token."""
    counts: list[int] = []
    layers = [bijection.network.layers[0] for bijection in flow.transform.bijections]
    hooks = [
        layer.register_forward_pre_hook(lambda _, args: counts.append(args[0].shape[:2].numel())) for layer in layers
    ]
    yield counts
    for hook in hooks:
        hook.remove()


class TestNetwork:
    def test_a_state_follows_from_the_tokens_before_it(self) -> None:
        net = randomised(CausalTransformer(2, 6, (16, 16))).double()
        tokens = torch.randn(6, 2, dtype=torch.float64)
        dependence = jacobian(lambda t: net(t[None])[0], tokens).abs().sum((1, 3))
        assert torch.equal(dependence > 0, torch.ones(6, 6).tril(-1).bool())

    @pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-13)])
    @pytest.mark.parametrize("gradients", [True, False])
    @pytest.mark.parametrize("num_context", [0, 3])
    def test_steps_are_the_pass(self, dtype: torch.dtype, tolerance: float, gradients: bool, num_context: int) -> None:
        net = randomised(CausalTransformer(2, 7, (16, 16), num_context=num_context)).to(dtype)
        tokens = torch.randn(5, 7, 2, dtype=dtype)
        context = torch.randn(5, 3, dtype=dtype) if num_context else None
        with torch.set_grad_enabled(gradients):
            seen, before = net.start(), torch.zeros_like(tokens[:, 0])
            states = []
            for token in tokens.unbind(1):
                states.append(net.step(before, context, seen))
                before = token
            torch.testing.assert_close(torch.stack(states, 1), net(tokens, context), rtol=0, atol=tolerance)

    def test_a_state_follows_the_token_before_as_far_out_as_it_goes(self) -> None:
        net = randomised(CausalTransformer(1, 3, (16, 16)))
        near, far = net(torch.full((1, 3, 1), 1e3)), net(torch.full((1, 3, 1), 3e3))
        slope = (far - near)[0, 1:] / 2e3
        torch.testing.assert_close(slope, net.embed.weight.T.expand(2, -1), rtol=0, atol=1e-3)

    def test_more_rows_than_a_kernel_takes_are_taken_in_parts(self, monkeypatch: pytest.MonkeyPatch) -> None:
        net, tokens = randomised(CausalTransformer(1, 4, (8,))), torch.randn(10, 4, 1)
        expected = net(tokens)
        monkeypatch.setattr(nets, "_MOST_ROWS", 3)
        torch.testing.assert_close(net(tokens), expected)


class TestBijection:
    @pytest.mark.parametrize("reverse", [False, True])
    def test_its_jacobian_is_block_triangular_in_the_order_of_the_tokens(self, reverse: bool) -> None:
        bijection = randomised(TransformerAutoregressive((2, 4, 2), (2, 2, 1), hidden_features=(8,), reverse=reverse))
        bijection.double()
        tokens = bijection._cut(torch.randn(1, *bijection.event_shape, dtype=torch.float64))[0]

        def forward(tokens: Tensor) -> Tensor:
            z, _ = bijection(bijection._joined(tokens[None], torch.Size()))
            return bijection._cut(z)[0]

        dependence = jacobian(forward, tokens).abs().amax((1, 3))
        assert torch.equal(dependence > 0, torch.ones(4, 4).tril().bool())

    @pytest.mark.parametrize("reverse", [False, True])
    def test_tokens_are_patches_in_order(self, reverse: bool) -> None:
        bijection = TransformerAutoregressive((2, 4, 6), (2, 2, 3), hidden_features=(8,), reverse=reverse)
        x = torch.randn(3, 2, 4, 6)
        tokens = bijection._cut(x)
        expected = [x[:, :, i : i + 2, j : j + 3].flatten(1) for i in (0, 2) for j in (0, 3)]
        assert torch.equal(tokens, torch.stack(expected[::-1] if reverse else expected, 1))
        assert torch.equal(bijection._joined(tokens, torch.Size((3,))), x)

    def test_its_inverse_is_what_uncached_passes_find(self) -> None:
        bijection = randomised(TransformerAutoregressive((6,), (2,), hidden_features=(8, 8), num_context=2)).double()
        z, context = torch.randn(4, 6, dtype=torch.float64), torch.randn(4, 2, dtype=torch.float64)
        x = torch.zeros_like(z)
        for _ in range(bijection.num_tokens):
            # One token more is right after every pass: solve as if the network's outputs were so already.
            tokens, _ = bijection.mixing(bijection._cut(x))
            parameters = bijection._steered(bijection.network(tokens, context))
            tokens, _ = bijection.affine.forward(bijection._cut(z), parameters)
            x = bijection._joined(bijection.mixing.inverse(tokens)[0], torch.Size((4,)))
        torch.testing.assert_close(bijection.inverse(z, context)[0], x, rtol=0, atol=1e-12)

    def test_gradients_of_the_inverse_are_those_of_an_inverse(self) -> None:
        bijection = randomised(TransformerAutoregressive((6,), (2,), hidden_features=(8, 8), num_context=2)).double()
        z = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
        context = torch.randn(4, 2, dtype=torch.float64, requires_grad=True)
        x, log_det = bijection.inverse(z, context)
        back, log_det_back = bijection(x, context)
        weights = torch.randn_like(z)
        # There and back is the identity, whatever the weights: nothing but z has a gradient.
        total = (weights * back).sum() + (log_det + log_det_back).sum()
        by_z, *by_others = torch.autograd.grad(total, [z, context, *bijection.parameters()])
        torch.testing.assert_close(by_z, weights)
        assert max(gradient.abs().max() for gradient in by_others) < 1e-10
        assert torch.autograd.gradcheck(lambda z: bijection.inverse(z, context.detach()), z)

    def test_second_derivatives_are_there_where_the_docstring_says(self) -> None:
        bijection = randomised(TransformerAutoregressive((3,), (1,), hidden_features=(8,))).double()
        with sdpa_kernel(SDPBackend.MATH):
            found = hessian(lambda x: bijection(x)[1], torch.randn(3, dtype=torch.float64))
        assert found.isfinite().all()
        assert found.abs().max() > 0

    def test_wide_tokens_are_not_mixed(self) -> None:
        assert TransformerAutoregressive((256,), (256,), hidden_features=(4,)).mixing is not None
        wide = TransformerAutoregressive((514,), (257,), hidden_features=(4,))
        assert wide.mixing is None
        z, _ = randomised(wide)(torch.randn(2, 514))
        torch.testing.assert_close(wide(wide.inverse(z)[0])[0], z, rtol=0, atol=1e-4)

    def test_patches_must_tile_the_event(self) -> None:
        for patch in ((3,), (2, 2)):
            with pytest.raises(ShapeError, match=r"do not tile events of shape \[4\]"):
                TransformerAutoregressive((4,), patch)


class TestCost:
    @pytest.mark.parametrize(
        "arguments", [{"event_shape": (12,)}, {"event_shape": (1, 8, 8), "patch_size": 2}], ids=str
    )
    def test_a_draw_reads_every_token_once(self, arguments: dict[str, Any]) -> None:
        flow = randomised(TransformerFlow(**arguments, num_transforms=2, hidden_features=(8,), seed=0))
        with token_evaluations(flow) as drawing:
            x = flow.sample(10, seed=0)
        with token_evaluations(flow) as evaluating:
            flow.log_prob(x)
        assert sum(drawing) == sum(evaluating) == 10 * flow.num_tokens * 2

    def test_many_draws_are_made_in_parts_and_are_the_same(self, monkeypatch: pytest.MonkeyPatch) -> None:
        flow = randomised(TransformerFlow((5,), (2,), num_transforms=2, hidden_features=(8,), seed=0))
        context = torch.randn(4, 2)
        expected = flow.sample(3, context, seed=0)
        monkeypatch.setattr(family, "_CACHE_NUMBERS", 5 * 2 * 5 * 8)  # of five rows
        with token_evaluations(flow) as drawing:
            torch.testing.assert_close(flow.sample(3, context, seed=0), expected)
        assert max(drawing) == 5
        assert flow.sample(0, context).shape == (0, 4, 5)


def train(flow: Flow, draw: Any, steps: int, learning_rate: float) -> None:
    """``draw(n)`` gives rows, and contexts where there are some."""
    flow.fit_preprocessing(*draw(2000))
    optimiser = torch.optim.Adam(flow.parameters(), learning_rate)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for _ in range(steps):
        optimiser.zero_grad()
        flow.loss(*draw(128)).mean().backward()
        optimiser.step()
        cosine.step()
    flow.eval()


class TestTraining:
    def test_learns_a_correlated_field_up_to_its_entropy(self) -> None:
        places = torch.cartesian_prod(torch.arange(8.0), torch.arange(8.0)).double()
        covariance = torch.exp(-torch.cdist(places, places) / 4) + 0.01 * torch.eye(64)
        truth = torch.distributions.MultivariateNormal(torch.zeros(64).double(), covariance)
        generator = torch.Generator().manual_seed(0)
        factor = torch.linalg.cholesky(covariance).float()

        def draw(n: int) -> tuple[Tensor]:
            return ((torch.randn(n, 64, generator=generator) @ factor.T).reshape(n, 1, 8, 8),)

        flow = TransformerFlow((1, 8, 8), num_transforms=2, hidden_features=(32,), patch_size=2, seed=0)
        train(flow, draw, steps=150, learning_rate=1e-2)
        (x,) = draw(2000)
        with torch.no_grad():
            divergence = (truth.log_prob(x.flatten(1).double()) - flow.log_prob(x)).mean()
        # Pixels taken to be independent are 38 nats away; 0.6 was measured.
        independent = 0.5 * (covariance.diagonal().log().sum() - torch.logdet(covariance))
        assert independent > 37
        assert -0.1 < divergence < 1.2
        # Draws have the correlations of the truth, near and far; of 2,000, each is known to 0.02.
        draws = flow.sample(2000, seed=0).flatten(1)
        assert (torch.corrcoef(draws.T) - covariance / 1.01).abs().mean() < 0.06

    def test_one_token_follows_its_context(self) -> None:
        generator = torch.Generator().manual_seed(0)

        def draw(n: int) -> tuple[Tensor, Tensor]:
            context = torch.randn(n, 1, generator=generator)
            return 2 * context + 0.5 * torch.randn(n, 1, generator=generator) + 7, context

        flow = TransformerFlow((1,), (1,), num_transforms=1, hidden_features=(16,), seed=0)
        train(flow, draw, steps=150, learning_rate=1e-2)
        x, context = draw(2000)
        with torch.no_grad():
            divergence = (
                torch.distributions.Normal(2 * context + 7, 0.5).log_prob(x)[:, 0] - flow.log_prob(x, context)
            ).mean()
        # Without the context it would be log(sqrt(2^2 + 0.5^2) / 0.5) = 1.4.
        assert -0.05 < divergence < 0.05


class TestOneToken:
    def test_without_context_it_is_a_normal(self) -> None:
        flow = randomised(TransformerFlow((1,), num_transforms=2, hidden_features=(8,), seed=0)).double()
        middle, one_sigma = flow.decode(torch.tensor([[0.0], [1.0]], dtype=torch.float64))
        x = torch.linspace(-9, 9, 50, dtype=torch.float64)[:, None]
        expected = torch.distributions.Normal(middle, (one_sigma - middle).abs()).log_prob(x)[:, 0]
        torch.testing.assert_close(flow.log_prob(x), expected)

    def test_of_several_features_it_is_a_normal_with_covariance(self) -> None:
        flow = randomised(TransformerFlow((3,), num_transforms=2, hidden_features=(8,), patch_size=3, seed=0)).double()
        mean, *columns = flow.decode(torch.cat((torch.zeros(1, 3), torch.eye(3))).double())
        factor = torch.stack(columns, 1) - mean[:, None]
        x = torch.randn(50, 3, dtype=torch.float64)
        expected = torch.distributions.MultivariateNormal(mean, factor @ factor.T).log_prob(x)
        torch.testing.assert_close(flow.log_prob(x), expected)
        assert (factor @ factor.T).fill_diagonal_(0).abs().max() > 0.1


class TestTokens:
    @pytest.mark.parametrize(
        ("event_shape", "patch"),
        [
            ((1,), [1]),
            ((97,), [1]),
            ((8, 8), [1, 1]),
            ((5, 24), [1, 2]),
            ((5, 288), [5, 6]),
            ((17, 17), [1, 17]),
            ((1, 16, 16), [1, 2, 2]),
            ((3, 28, 28), [3, 4, 4]),
            ((2, 721, 1440), [2, 103, 160]),
            ((2, 6, 8, 8), [2, 2, 2, 2]),
        ],
        ids=str,
    )
    def test_by_default_there_are_64_of_a_field_or_fewer(self, event_shape: tuple[int, ...], patch: list[int]) -> None:
        flow = TransformerFlow(event_shape, num_transforms=1, hidden_features=(4,))
        assert flow.arguments["patch_size"] == patch
        assert len(event_shape) == 1 or flow.num_tokens <= 64

    def test_one_size_is_for_all_dimensions_but_the_channels(self) -> None:
        arguments: dict[str, Any] = {"num_transforms": 1, "hidden_features": (4,)}
        for event_shape, size, patch in (((6,), 2, [2]), ((4, 6), 2, [2, 2]), ((3, 4, 6), 2, [3, 2, 2])):
            assert TransformerFlow(event_shape, patch_size=size, **arguments).arguments["patch_size"] == patch
        each = TransformerFlow((3, 4, 6), patch_size=np.array([1, 4, 3]), **arguments)
        assert (each.num_tokens, each.token_features) == (6, 12)
        assert "6 tokens of 12" in repr(each)

    def test_maps_take_turns_in_direction(self) -> None:
        flow = TransformerFlow((4,), num_transforms=3, hidden_features=(4,))
        assert [bijection.reverse for bijection in flow.transform.bijections] == [False, True, False]

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"hidden_features": (8, 16)}, r"hidden_features must be equal widths, one for each layer; got \(8, 16\)"),
            ({"num_heads": 3}, "num_heads must be a divisor of the width 8; got 3"),
            ({"num_heads": 0}, "num_heads must be 1 to 8; got 0"),
            (
                {"patch_size": 3},
                r"patch_size must be a divisor of an event \(1, 4, 4\): of all its sides but .*; got 3",
            ),
            ({"patch_size": (2, 2)}, r"patch_size must be .*, or one for each dimension; got \(2, 2\)"),
            ({"patch_size": 0}, "patch_size must be whole .*; got 0"),
            ({"patch_size": "2"}, "patch_size must be whole .*; got '2'"),
            ({"event_shape": (100_000,)}, r"patch_size must be large enough for 16,384 tokens or fewer; got \[1\]"),
        ],
    )
    def test_an_argument_out_of_range_is_named(self, arguments: dict[str, Any], message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            TransformerFlow(**{"event_shape": (1, 4, 4), "hidden_features": (8,), "num_transforms": 1, **arguments})

    def test_survives_saving(self, tmp_path: Any) -> None:
        flow = randomised(TransformerFlow((1, 4, 4), (2,), num_transforms=2, hidden_features=(8,), patch_size=2))
        again = sf.load(flow.save(tmp_path))
        x, context = torch.randn(5, 1, 4, 4), torch.randn(5, 2)
        assert torch.equal(again.log_prob(x, context), flow.log_prob(x, context))
        assert again.arguments == flow.arguments

    def test_a_workflow_can_name_it(self) -> None:
        model = {"name": "transformer_flow", "num_transforms": 1, "hidden_features": [8], "patch_size": 2}
        assert sf.families.build(model, (1, 4, 4)).arguments["patch_size"] == [1, 2, 2]


def test_a_row_is_itself_whatever_the_batch() -> None:
    flow = randomised(TransformerFlow((7,), num_transforms=2, hidden_features=(16, 16), seed=0)).double()
    x = torch.randn(100, 7, dtype=torch.float64)
    torch.testing.assert_close(flow.log_prob(x), torch.stack([flow.log_prob(row) for row in x]))
