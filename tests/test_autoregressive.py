"""Autoregressive maps: what a feature may depend on, and two ways back."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from sciflow.bijections import Autoregressive, ShiftScale, Spline, inverse_by
from sciflow.errors import ConfigError
from sciflow.flows import IAF, MAF, NSF
from sciflow.nets import MADE


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def off_neutral(module: torch.nn.Module, scale: float = 0.3) -> torch.nn.Module:
    """Weights of the test's own seed alone: what a module began with depends on what was imported before."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(scale * torch.randn(parameter.shape))
    return module.eval()


MADES = [
    MADE(5, 3, (16, 16)),
    MADE(5, 3, (16, 32, 24), num_context=2),
    MADE(7, 2, (3,)),  # fewer units than features
    MADE(6, 1, (16, 16), num_context=2, angles=(0, 3)),
    MADE(1, 4, (8,)),
    MADE(1, 4, (8, 8), num_context=2),
]


@pytest.mark.parametrize("made", MADES, ids=lambda m: f"{m.num_features}-{m.num_context}-{len(m.blocks)}")
class TestMADE:
    def test_parameters_of_a_feature_see_those_before_it_and_no_other(self, made: MADE) -> None:
        made = off_neutral(made)
        # Of several rows: a unit that is silent for one need not be for another.
        x, given = torch.randn(20, made.num_features), torch.randn(20, made.num_context) if made.num_context else None
        jacobian = torch.func.jacrev(lambda x: made(x, given))(x).abs().sum((0, 2, 3))
        assert not jacobian.triu().any()
        if made.num_features in (5, 6):  # wide enough for every one of them
            assert jacobian.tril(-1)[torch.ones_like(jacobian).tril(-1) > 0].all()

    def test_every_parameter_sees_the_context(self, made: MADE) -> None:
        if not made.num_context:
            pytest.skip("it has none")
        made = off_neutral(made)
        x, context = torch.randn(20, made.num_features), torch.randn(20, made.num_context)
        jacobian = torch.func.jacrev(lambda c: made(x, c))(context)
        assert jacobian.abs().sum((2, 3, 4)).all()

    @pytest.mark.parametrize("with_gradient", [False, True])
    def test_steps_give_what_one_pass_gives(self, made: MADE, with_gradient: bool) -> None:
        made = off_neutral(made).double()
        x = torch.randn(4, made.num_features, dtype=torch.float64)
        context = torch.randn(4, made.num_context, dtype=torch.float64) if made.num_context else None
        with torch.set_grad_enabled(with_gradient):
            steps = made.steps(4, context)
            columns = [None, *x.T[:-1]]
            stepwise = torch.stack([steps.next(column) for column in columns], 1)
            whole = made(x, context)
            torch.testing.assert_close(stepwise, whole)
            if with_gradient:
                ours, theirs = (
                    torch.autograd.grad(y.square().sum(), list(made.parameters()), allow_unused=True)
                    for y in (stepwise, whole)
                )
                torch.testing.assert_close(ours, theirs)


def test_a_draw_costs_the_multiplications_of_one_pass() -> None:
    flow = MAF((20,), num_transforms=1, hidden_features=(64, 64))
    counts = {}
    for name, call in (("log_prob", lambda: flow.log_prob(torch.zeros(10, 20))), ("sample", lambda: flow.sample(10))):
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            call()
        counts[name] = counter.get_total_flops()
    assert counts["sample"] <= counts["log_prob"]


@pytest.mark.parametrize("univariate", [ShiftScale(), Spline()], ids=["affine", "spline"])
@pytest.mark.parametrize("num_context", [0, 2])
class TestBothWaysBack:
    def test_agree(self, univariate, num_context: int) -> None:
        bijection = off_neutral(Autoregressive(9, univariate, (32, 32), num_context), scale=0.1)
        z = torch.randn(200, 9)
        context = torch.randn(200, 2) if num_context else None
        found = {}
        with torch.no_grad():
            for method in ("sequential", "parallel"):
                with inverse_by(method):
                    found[method] = bijection.inverse(z, context)
            for x, log_det in found.values():
                back, forward_log_det = bijection(x, context)
                assert (back - z).abs().max() <= 1e-5
                assert (log_det + forward_log_det).abs().max() <= 1e-4
        assert (found["sequential"][0] - found["parallel"][0]).abs().max() <= 1e-5

    def test_gradients_are_those_of_the_inverse_function(self, univariate, num_context: int) -> None:
        bijection = off_neutral(Autoregressive(3, univariate, (16, 16), num_context)).double()
        context = torch.randn(2, dtype=torch.float64) if num_context else None
        z = torch.randn(3, dtype=torch.float64)
        with inverse_by("parallel"):  # where gradients are asked for, the other way is gone
            inverse = torch.autograd.functional.jacobian(lambda z: bijection.inverse(z, context)[0], z)
        x = bijection.inverse(z, context)[0].detach()
        forward = torch.autograd.functional.jacobian(lambda x: bijection(x, context)[0], x)
        torch.testing.assert_close(inverse @ forward, torch.eye(3, dtype=torch.float64))


def test_the_parallel_way_stops_when_nothing_moves() -> None:
    bijection = Autoregressive(50, ShiftScale(), (16,))  # neutral: right at once
    passes = []
    bijection.network.register_forward_hook(lambda *_: passes.append(1))
    with torch.no_grad(), inverse_by("parallel"):
        bijection.inverse(torch.randn(10, 50))
    assert len(passes) <= 3


def test_draws_by_both_ways_agree() -> None:
    flow = off_neutral(NSF((6,), autoregressive=True, num_transforms=3, hidden_features=(32, 32)), 0.1)
    with inverse_by("parallel"):
        parallel = flow.sample(100, seed=0)
    assert (flow.sample(100, seed=0) - parallel).abs().max() <= 1e-5


def test_an_inverse_autoregressive_flow_draws_in_one_pass() -> None:
    flow = off_neutral(IAF((4,), num_transforms=2, hidden_features=(16,)), 0.1)
    networks = [module for module in flow.modules() if isinstance(module, MADE)]
    calls = []
    for network in networks:
        network.register_forward_hook(lambda *_: calls.append(1))
    flow.sample(10)
    assert len(calls) == len(networks)


def test_an_unknown_way_is_named() -> None:
    with (
        pytest.raises(ConfigError, match="method of inversion: got 'paralel'; did you mean parallel"),
        inverse_by("paralel"),
    ):
        pass
    with pytest.raises(ConfigError, match="tolerance of inversion"), inverse_by("parallel", tolerance=-1.0):
        pass


@pytest.mark.parametrize("method", ["sequential", "parallel"])
def test_no_rows_go_either_way(method: str) -> None:
    bijection = Autoregressive(5, Spline(), (16,))
    with torch.no_grad(), inverse_by(method):
        x, log_det = bijection.inverse(torch.zeros(0, 5))
    assert (x.shape, log_det.shape) == ((0, 5), (0,))
