"""One suite over every bijection: a new one joins BIJECTIONS by one line."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sciflow.bijections import (
    ActNorm,
    Affine,
    Autoregressive,
    Bijection,
    Composite,
    Coupling,
    EachContext,
    Elementwise,
    FieldCoupling,
    Identity,
    InTurn,
    Inverted,
    Log,
    Log1p,
    Logit,
    LULinear,
    NormalScores,
    OnFirstChannels,
    Permutation,
    Pointwise,
    Rescale,
    Residual,
    Scale,
    Shift,
    ShiftScale,
    Spline,
    Squeezed,
    Standardize,
    TransformerAutoregressive,
    rational_quadratic_spline,
    rational_quadratic_spline_inverse,
)
from sciflow.contexts import Contexts, Tokens
from sciflow.errors import ShapeError
from sciflow.nets import LipschitzMLP, ResidualConvolution, ResidualMLP

MLP = partial(ResidualMLP, hidden_features=(16, 16))
CONVOLUTION = partial(ResidualConvolution, hidden_features=(4, 4))


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def randomised(bijection: Bijection) -> Bijection:
    """Move every weight off its neutral start, at which a wrong formula may look right."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in bijection.parameters():
            parameter.copy_(0.25 * torch.randn(parameter.shape, generator=generator))
    return bijection.eval()


def rows(bijection: Bijection, n: int, seed: int = 1, dtype: torch.dtype = torch.float32) -> Tensor:
    """Rows within 4 sigma of the noise side, brought to the data side, inside the support of every map."""
    z = torch.randn(n, *bijection.event_shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)
    return bijection.inverse(z.clamp(-4, 4), context_for(bijection, dtype))[0].detach()


def context_for(bijection: Bijection, dtype: torch.dtype = torch.float32) -> Tensor | None:
    """One context for all rows."""
    if bijection.context_shape is None:
        return None
    return torch.linspace(-1, 1, bijection.context_shape.numel(), dtype=dtype).reshape(bijection.context_shape)


AMOUNTS = torch.rand(64, 3, generator=torch.Generator().manual_seed(2)) * 5

BIJECTIONS = [
    Identity((2, 3)),
    Affine(mean=torch.tensor([[280.0], [3.0]]), log_scale=torch.tensor([[2.0], [-1.0]])),
    Permutation(torch.tensor([2, 0, 3, 1])),
    LULinear(torch.tensor([2, 0, 3, 1])),
    Coupling(5, Spline(), MLP),
    Coupling(5, Spline(num_bins=5, tail_bound=2.0), MLP, num_context=2, keep_last=True),
    Coupling(1, Spline(), MLP),
    Coupling(5, InTurn([ShiftScale(), Spline()]), MLP),
    Elementwise(3, InTurn([ShiftScale(), Spline()])),
    Coupling(1, Spline(), MLP, num_context=2),
    Coupling(4, Shift(), MLP),
    Coupling(5, ShiftScale(), MLP, num_context=2, keep_last=True),
    Autoregressive(5, Spline(), (16, 16)),
    Autoregressive(3, ShiftScale(), (8, 16, 2), num_context=2),
    Autoregressive(1, Spline(), (8,)),
    Autoregressive(1, ShiftScale(), (8, 8), num_context=2),
    Inverted(Autoregressive(3, ShiftScale(), (16, 16), num_context=2)),
    Composite(
        [LULinear(torch.tensor([1, 2, 0])), Coupling(3, Spline(), MLP, num_context=2), Permutation(torch.arange(3))]
    ),
    Standardize((3,)).fit(20 * AMOUNTS + 280),
    Rescale((3,)).fit(20 * AMOUNTS + 280),
    NormalScores((3,), num_knots=9).fit(20 * AMOUNTS + 280),
    NormalScores((3,), uneven_only=True).fit(20 * AMOUNTS + 280),
    EachContext(Contexts({"a": (2,), "b": (1, 2), "c": Tokens(2, features=1)})).fit(AMOUNTS.repeat(1, 2)),
    Log((3,), low=-1.0).fit(AMOUNTS),
    Log1p((3,)).fit(AMOUNTS),
    Logit((3,)).fit(AMOUNTS),
    Logit((3,), low=-1.0, high=6.0),
    ActNorm((3,)),
    ActNorm((2, 3, 4)),
    Scale((2, 3)),
    Residual(LipschitzMLP(4, (16, 16))),
    Residual(LipschitzMLP(3, (8, 16, 8), num_context=2)),
    Residual(LipschitzMLP(1, (16,))),
    Pointwise(LULinear(torch.tensor([2, 0, 3, 1])), (4, 2, 3)),
    Pointwise(Coupling(3, ShiftScale(), MLP, num_context=2), (3, 2, 1)),
    Squeezed(FieldCoupling((4, 2, 2), ShiftScale(), CONVOLUTION, "channel", num_context=2), (1, 4, 4)),
    OnFirstChannels(FieldCoupling((2, 4, 4), ShiftScale(), CONVOLUTION, num_context=2), (3, 4, 4)),
    FieldCoupling((1, 4, 4), Shift(), CONVOLUTION),
    FieldCoupling((3, 4, 3), ShiftScale(), CONVOLUTION, num_context=2, keep_last=True),
    FieldCoupling((3, 4, 6), ShiftScale(), CONVOLUTION, "channel", num_context=2),
    FieldCoupling((2, 3, 3), Spline(), CONVOLUTION, "channel", keep_last=True),
    FieldCoupling((1, 3, 3), Spline(), CONVOLUTION, num_context=2),
    FieldCoupling((1, 1, 1), ShiftScale(), CONVOLUTION, num_context=2, keep_last=True),
    TransformerAutoregressive((5,), (1,), hidden_features=(8, 8), num_heads=2),
    TransformerAutoregressive((2, 4, 6), (2, 2, 3), hidden_features=(8,), num_context=2, reverse=True),
    TransformerAutoregressive((1,), (1,), hidden_features=(8,)),
]


@pytest.mark.parametrize(
    "bijection", [randomised(b) for b in BIJECTIONS], ids=lambda b: f"{type(b).__name__}({b.extra_repr()})"
)
class TestEveryBijection:
    def test_inverse_undoes_forward(self, bijection: Bijection) -> None:
        z = torch.randn(500, *bijection.event_shape, generator=torch.Generator().manual_seed(3)).clamp(-4, 4)
        for dtype, tolerance in ((torch.float32, 1e-4), (torch.float64, 1e-9)):
            same = copy.deepcopy(bijection).to(dtype)
            context = context_for(same, dtype)
            x, log_det = same.inverse(z.to(dtype), context)
            back, log_det_back = same(x, context)
            assert back.dtype == log_det.dtype == dtype
            assert (back - z.to(dtype)).abs().max() <= tolerance
            assert (log_det + log_det_back).abs().max() <= 10 * tolerance
            assert (same.inverse(back, context)[0] - x).abs().max() <= tolerance * x.abs().max().clamp_min(1)

    def test_log_det_is_that_of_the_jacobian(self, bijection: Bijection) -> None:
        exact = copy.deepcopy(bijection).double()
        context, n = context_for(exact, torch.float64), exact.event_shape.numel()
        for x in rows(exact, 8, dtype=torch.float64):
            for way, event in ((exact.forward, x), (exact.inverse, exact(x, context)[0].detach())):
                jacobian = torch.func.jacrev(lambda e, way=way: way(e, context)[0])(event).reshape(n, n)
                assert (torch.linalg.slogdet(jacobian).logabsdet - way(event, context)[1]).abs() <= 1e-8

    def test_gradients_are_finite_far_out(self, bijection: Bijection) -> None:
        far = torch.tensor([-1e3, 1e3, 0.0, 1.0, -5.0, 3.0])
        for way in (bijection.forward, bijection.inverse):
            # expm1 of 1000 is beyond float32; the way back from noise is asked for at 30 sigma.
            limit = 1e3 if way == bijection.forward else 30.0
            x = far.clamp(-limit, limit).reshape(-1, *[1] * len(bijection.event_shape))
            x = x.expand(-1, *bijection.event_shape).clone().requires_grad_()
            y, log_det = way(x, context_for(bijection))
            assert not y.isnan().any()
            assert not log_det.isnan().any()
            supported = log_det.isfinite()
            gradients = torch.autograd.grad(
                y.sum() + log_det[supported].sum(),
                [x, *bijection.parameters()],
                allow_unused=True,
                materialize_grads=True,
            )
            assert all(g.isfinite().all() for g in gradients)

    def test_context_broadcasts(self, bijection: Bijection) -> None:
        x = rows(bijection, 6).reshape(2, 3, *bijection.event_shape)
        context = context_for(bijection)
        z, log_det = bijection(x, context)
        assert z.shape == x.shape
        assert log_det.shape == (2, 3)
        each, each_log_det = bijection(x[1, 2], context)
        torch.testing.assert_close(each, z[1, 2])
        torch.testing.assert_close(each_log_det, log_det[1, 2])
        if context is not None:
            several = torch.stack((context, context + 1, context - 1))
            along, _ = bijection(x, several)
            for i in range(3):
                torch.testing.assert_close(along[:, i], bijection(x[:, i], several[i])[0])
            assert not torch.allclose(bijection(x, several[0])[0], bijection(x, several[1])[0])

    def test_survives_saving(self, bijection: Bijection, tmp_path) -> None:
        save_file({k: v.contiguous() for k, v in bijection.state_dict().items()}, tmp_path / "b.safetensors")
        fresh = copy.deepcopy(bijection)
        for tensor in fresh.state_dict().values():
            tensor.zero_()
        fresh.load_state_dict(load_file(tmp_path / "b.safetensors"))
        x = rows(bijection, 5)
        for mine, saved in zip(bijection(x, context_for(bijection)), fresh(x, context_for(bijection)), strict=True):
            assert torch.equal(mine, saved)

    def test_another_shape_is_an_error_that_names_both(self, bijection: Bijection) -> None:
        with pytest.raises(ShapeError, match=r"maps events of shape \[.*got \[4, 7, 7\]"):
            bijection(torch.zeros(4, 7, 7), context_for(bijection))

    def test_compiles_as_one_graph(self, bijection: Bijection) -> None:
        torch._dynamo.reset()
        x, context = rows(bijection, 4), context_for(bijection)
        compiled = torch.compile(bijection.forward, fullgraph=True, backend="eager")
        for ours, theirs in zip(bijection(x, context), compiled(x, context), strict=True):
            torch.testing.assert_close(ours, theirs)


SPLINES = {"forward": rational_quadratic_spline, "inverse": rational_quadratic_spline_inverse}


class TestSpline:
    @pytest.mark.parametrize("way", SPLINES)
    def test_survives_200k_wild_splines(self, way: str) -> None:
        generator = torch.Generator().manual_seed(0)
        x = (4 * torch.randn(200_000, generator=generator)).requires_grad_()
        parameters = (100 * torch.randn(23, 200_000, generator=generator)).requires_grad_()
        y, log_slope = SPLINES[way](x, parameters, 5.0)
        assert y.isfinite().all()
        assert log_slope.isfinite().all()
        for gradient in torch.autograd.grad(y.sum() + log_slope.sum(), (x, parameters)):
            assert gradient.isfinite().all()

    def test_the_inverse_of_a_wild_spline_is_the_inverse(self) -> None:
        generator = torch.Generator().manual_seed(0)
        z = torch.randn(200_000, generator=generator).clamp(-4.9, 4.9)
        parameters = 100 * torch.randn(23, 200_000, generator=generator)
        x, _ = rational_quadratic_spline_inverse(z, parameters, 5.0)
        # Slopes reach 1e3, where one rounding of x (5e-7) is 5e-4 in z.
        assert (rational_quadratic_spline(x, parameters, 5.0)[0] - z).abs().max() <= 1e-3

    @pytest.mark.parametrize("way", SPLINES)
    def test_infinite_rows_leave_the_gradients_of_others_alone(self, way: str) -> None:
        x = torch.tensor([torch.inf, -torch.inf, 3e38, 0.5])
        parameters = torch.randn(23, 4, requires_grad=True)
        y, log_slope = SPLINES[way](x, parameters, 5.0)
        assert torch.equal(y[:3], x[:3])
        (gradient,) = torch.autograd.grad(y[3] + log_slope.sum(), parameters)
        assert gradient.isfinite().all()

    def test_knots_and_bounds_are_hit_from_both_sides(self) -> None:
        bound = torch.tensor(5.0)
        edges = torch.stack((-bound, bound, bound.nextafter(torch.tensor(0.0)), -bound.nextafter(torch.tensor(9.0))))
        z, log_slope = rational_quadratic_spline(edges, torch.randn(23, 4), 5.0)
        torch.testing.assert_close(z, edges, rtol=0, atol=1e-5)
        # Slope 1 where the tails begin, from inside too.
        assert log_slope.abs().max() < 1e-3

    def test_is_monotonic(self) -> None:
        parameters = (3 * torch.randn(23, 50, 1, dtype=torch.float64)).expand(-1, -1, 2001)
        x = torch.linspace(-6, 6, 2001, dtype=torch.float64).expand(50, -1)
        z, log_slope = rational_quadratic_spline(x, parameters, 5.0)
        assert (z.diff() > 0).all()
        numeric = torch.gradient(z, spacing=(x[0],), dim=1)[0]
        assert (numeric - log_slope.exp()).abs().median() < 1e-3

    @pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-13)])
    def test_round_trips(self, dtype: torch.dtype, tolerance: float) -> None:
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(20_000, generator=generator, dtype=dtype).clamp(-4, 4)
        parameters = torch.randn(23, 20_000, generator=generator, dtype=dtype)
        z, log_slope = rational_quadratic_spline(x, parameters, 5.0)
        back, inverse_log_slope = rational_quadratic_spline_inverse(z, parameters, 5.0)
        again, _ = rational_quadratic_spline(back, parameters, 5.0)
        assert (again - z).abs().max() <= tolerance
        # On a plateau one rounding of z is a long way in x: the error is held against the slope.
        slope = torch.minimum(log_slope, -inverse_log_slope).exp()
        assert ((back - x).abs() * slope.clamp_max(1)).max() <= tolerance
        assert (back - x).abs().quantile(0.99) <= 10 * tolerance

    @pytest.mark.parametrize("way", SPLINES)
    def test_half_precision_parameters_are_computed_in_float32(self, way: str) -> None:
        x, parameters = torch.randn(100), torch.randn(23, 100).bfloat16()
        y, log_slope = SPLINES[way](x, parameters, 5.0)
        assert y.dtype == log_slope.dtype == torch.float32
        torch.testing.assert_close(y, SPLINES[way](x, parameters.float(), 5.0)[0])


class TestShapes:
    def test_a_composite_says_which_shapes_disagree(self) -> None:
        with pytest.raises(ShapeError, match=r"Identity\(event_shape=\(2,\)\).*Identity\(event_shape=\(3,\)\)"):
            Composite([Identity((2,)), Identity((3,))])
        with pytest.raises(ShapeError, match="at least one"):
            Composite([])

    def test_an_order_must_be_a_permutation(self) -> None:
        for kind in (Permutation, LULinear):
            with pytest.raises(ShapeError, match=r"\[0, 0, 2\]"):
                kind(torch.tensor([0, 0, 2]))

    def test_a_context_must_be_there_and_fit(self) -> None:
        coupling = Coupling(2, Spline(), nn.Linear, num_context=3)
        with pytest.raises(ShapeError, match=r"needs a context of shape \[3\]"):
            coupling(torch.zeros(4, 2))
        with pytest.raises(ShapeError, match=r"broadcasts to \[4, 3\]; got \[5, 3\]"):
            coupling(torch.zeros(4, 2), torch.zeros(5, 3))
