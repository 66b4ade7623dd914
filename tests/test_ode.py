"""The solver, its pairs, the integrals along paths and the divergence: against what is known in closed form."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from sciflow.density import Status
from sciflow.errors import ConfigError
from sciflow.ode.divergence import Exact, Probed
from sciflow.ode.pairs import PAIRS, pair
from sciflow.ode.quadrature import doubts, gauss
from sciflow.ode.solve import Steps, solve


class Oscillator:
    """Every row turns at a speed of its own; a mistake in any direction counts the same."""

    def __init__(self, speeds: Tensor) -> None:
        self.speeds = speeds
        self.seen = torch.zeros(len(speeds), dtype=torch.int64)

    def velocity(self, u: Tensor, z: Tensor, rows: Tensor) -> Tensor:
        self.seen[rows] += 1
        return self.speeds[rows, None] * torch.stack([-z[:, 1], z[:, 0]], 1)

    def score(self, u: Tensor, z: Tensor, velocity: Tensor) -> Tensor:
        return -z

    def truth(self, z: Tensor, u: float) -> Tensor:
        cosine, sine = torch.cos(self.speeds * u), torch.sin(self.speeds * u)
        return torch.stack([cosine * z[:, 0] - sine * z[:, 1], sine * z[:, 0] + cosine * z[:, 1]], 1)


def circle(n: int) -> Tensor:
    angles = torch.linspace(0, 6, n, dtype=torch.float64)
    return torch.stack([angles.cos(), angles.sin()], 1)


@pytest.mark.parametrize("name", sorted(PAIRS))
class TestEveryPair:
    def test_stages_are_consistent(self, name: str) -> None:
        given = pair(name)
        for node, weights in zip(given.nodes, given.matrix, strict=True):
            assert math.isclose(node, sum(weights), abs_tol=1e-13)
        for weights in given.errors:
            assert abs(sum(weights)) < 1e-13

    def test_the_error_falls_at_its_order(self, name: str) -> None:
        z, dynamics = circle(3), Oscillator(torch.tensor([2.0, 3.0, 4.0], dtype=torch.float64))
        errors = [
            (solve(dynamics, z, 0.0, 1.0, Steps(pair(name), 1.0, fixed=num_steps)).end - dynamics.truth(z, 1.0)).norm()
            for num_steps in (4, 8)
        ]
        assert -0.3 < math.log2(errors[0] / errors[1]) - pair(name).order < 1

    def test_a_ladder_of_tolerances(self, name: str) -> None:
        z, dynamics = circle(3), Oscillator(torch.tensor([2.0, 8.0, 32.0], dtype=torch.float64))
        for tolerance in (1e-3, 1e-5, 1e-7):
            path = solve(dynamics, z, 0.0, 1.0, Steps(pair(name), tolerance, most=20_000))
            assert (path.end - dynamics.truth(z, 1.0)).norm(dim=1).max() < 100 * tolerance

    def test_what_lies_inside_a_step(self, name: str) -> None:
        z, dynamics = circle(2), Oscillator(torch.tensor([1.0, 2.0], dtype=torch.float64))
        path = solve(dynamics, z, 0.0, 1.0, Steps(pair(name), 1e-8, kept=True))
        share = torch.tensor([0.0, 0.3, 1.0], dtype=torch.float64).expand(len(path.rows), 3)
        states, slopes = path.inside(torch.arange(len(path.rows)), share)
        for step, row in enumerate(path.rows.tolist()):
            for place in range(3):
                u = float(path.start[step] + share[step, place] * path.width[step])
                truth = dynamics.truth(z, u)[row]
                torch.testing.assert_close(states[step, place], truth, rtol=0, atol=3e-6)
                turned = dynamics.speeds[row] * torch.stack([-truth[1], truth[0]])
                torch.testing.assert_close(slopes[step, place], turned, rtol=0, atol=3e-4)

    def test_back_and_forth(self, name: str) -> None:
        z, dynamics = circle(4), Oscillator(torch.tensor([1.0, 2.0, 3.0, 9.0], dtype=torch.float64))
        there = solve(dynamics, z, 0.0, 1.0, Steps(pair(name), 1e-8)).end
        back = solve(dynamics, there, 1.0, 0.0, Steps(pair(name), 1e-8)).end
        torch.testing.assert_close(back, z, rtol=0, atol=1e-5)


class TestRows:
    def test_each_pays_for_its_own_steps(self) -> None:
        dynamics = Oscillator(torch.tensor([1.0, 1.0, 300.0], dtype=torch.float64))
        path = solve(dynamics, circle(3), 0.0, 1.0, Steps(pair("dopri5"), 1e-6))
        assert path.nfe[0] == path.nfe[1] < path.nfe[2] / 10
        assert torch.equal(dynamics.seen, path.nfe.long())

    def test_alone_and_among_others_they_are_the_same(self) -> None:
        speeds = torch.linspace(1, 40, 100, dtype=torch.float64)
        z = circle(100)
        together = solve(Oscillator(speeds), z, 0.0, 1.0, Steps(pair("tsit5"), 1e-6))
        alone = solve(Oscillator(speeds[70:71]), z[70:71], 0.0, 1.0, Steps(pair("tsit5"), 1e-6))
        torch.testing.assert_close(alone.end, together.end[70:71], rtol=0, atol=1e-12)
        assert alone.nfe == together.nfe[70]

    def test_one_that_cannot_go_on_gets_its_status(self) -> None:
        class Explosive(Oscillator):
            def velocity(self, u: Tensor, z: Tensor, rows: Tensor) -> Tensor:
                turned = super().velocity(u, z, rows)
                return torch.where((rows == 1)[:, None], z.square() * 3, turned)  # infinite before u = 1

        dynamics = Explosive(torch.tensor([1.0, 1.0, 1.0, 3000.0], dtype=torch.float64))
        z = circle(4).abs()
        z[2] = torch.nan
        path = solve(dynamics, z, 0.0, 1.0, Steps(pair("dopri5"), 1e-8, most=300))
        assert path.status[0] == Status.OK
        assert path.status[1] in (Status.UNDERFLOW, Status.NON_FINITE, Status.MAX_STEPS)
        assert path.status[2] == Status.NON_FINITE
        assert path.nfe[2] == 1
        assert path.status[3] == Status.MAX_STEPS
        torch.testing.assert_close(path.end[0], dynamics.truth(z, 1.0)[0], rtol=0, atol=1e-6)

    def test_of_none(self) -> None:
        path = solve(Oscillator(torch.ones(0)), torch.zeros(0, 2), 0.0, 1.0, Steps(pair("dop853"), 1e-6, kept=True))
        assert path.end.shape == (0, 2)
        assert path.stages.shape == (0, 16, 2)


class TestIntegrals:
    def test_the_rule_is_of_its_order(self) -> None:
        nodes, weights = gauss(4, torch.zeros((), dtype=torch.float64))
        for power in range(8):
            assert math.isclose(float((weights * nodes**power).sum()), 1 / (power + 1), rel_tol=1e-12)

    def test_doubts_are_of_the_size_of_the_error(self) -> None:
        nodes, weights = gauss(3, torch.zeros((), dtype=torch.float64))
        edges = torch.linspace(0, 6, 9, dtype=torch.float64)
        width = edges.diff()
        at = edges[:-1, None] + width[:, None] * nodes
        found = width * (torch.sin(2 * at) @ weights)
        truth = -torch.cos(2 * edges).diff() / 2
        doubt = doubts(torch.sin(2 * at), torch.zeros(8, dtype=torch.int64), edges[:-1], width)
        error = (found - truth).abs()
        assert (doubt > 0.5 * error).all()
        assert doubt.sum() < 2 * error.sum()


class TestDivergence:
    matrices = torch.randn(5, 6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    z = torch.randn(5, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    rows = torch.arange(5)

    def field(self, z: Tensor, part: Tensor) -> Tensor:
        return torch.einsum("nij,nj->ni", self.matrices[part], z)

    def test_exact(self) -> None:
        found = Exact()(self.field, self.z, self.rows)
        torch.testing.assert_close(found.trace[:, 0], self.matrices.diagonal(dim1=1, dim2=2).sum(1))
        torch.testing.assert_close(found.velocity, self.field(self.z, self.rows))
        off, even = self.matrices - self.matrices.mT, self.matrices + self.matrices.mT
        torch.testing.assert_close(found.asymmetry, off.norm(dim=(1, 2)) / even.norm(dim=(1, 2)))

    def test_variance_of_probes_falls_as_one_over_their_number(self) -> None:
        generator = torch.Generator().manual_seed(2)
        truth = self.matrices.diagonal(dim1=1, dim2=2).sum(1, keepdim=True)
        even = (self.matrices + self.matrices.mT).square().sum((1, 2)) / 2
        expected = even - 2 * self.matrices.diagonal(dim1=1, dim2=2).square().sum(1)
        for k in (1, 4, 16):
            draws = 1000
            signs = 2 * torch.randint(2, (5, k * draws, 6), generator=generator).double() - 1
            estimates = Probed(signs)(self.field, self.z, self.rows).trace.reshape(5, draws, k).mean(2)
            variance = (estimates - truth).square().mean(1)
            assert ((variance * k / expected - 1).abs() < 0.2).all()

    def test_probes_tell_how_asymmetric_the_field_is(self) -> None:
        signs = 2 * torch.randint(2, (5, 400, 6), generator=torch.Generator().manual_seed(3)).double() - 1
        exact = Exact()(self.field, self.z, self.rows).asymmetry
        estimate = Probed(signs)(self.field, self.z, self.rows).asymmetry
        torch.testing.assert_close(estimate, exact, rtol=0.3, atol=0)

    def test_of_a_gradient_there_is_no_asymmetry(self) -> None:
        def gradient(z: Tensor, part: Tensor) -> Tensor:
            return torch.cos(z.sum(1, keepdim=True)) * torch.ones_like(z) + z**3

        assert Exact()(gradient, self.z, self.rows).asymmetry.max() < 1e-12


def test_an_unknown_solver_is_named() -> None:
    with pytest.raises(ConfigError, match="did you mean dopri5"):
        pair("dopri")
