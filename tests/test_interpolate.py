"""From event to event along the latent great circle."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import sciflow as sf
from sciflow.errors import ConfigError, DataError, ShapeError


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def make(event_shape=(4,), randomised: bool = True, **arguments) -> sf.flows.NSF:
    settings = {"num_transforms": 2, "hidden_features": (16,), "seed": 0, "preprocess": "none", **arguments}
    flow = sf.flows.NSF(event_shape, **settings)
    if randomised:
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in flow.parameters():
                parameter += 0.15 * torch.randn(parameter.shape, generator=generator)
    return flow.double().eval()


@pytest.fixture
def flow() -> sf.flows.NSF:
    """Its latent space is that of the data but for the order of the features: paths can be told in advance."""
    return make(randomised=False)


class TestThePath:
    @pytest.mark.parametrize("event_shape", [(1,), (2,), (7,), (2, 3)])
    def test_ends_are_the_events(self, event_shape) -> None:
        flow = make(event_shape)
        a, b = torch.randn(2, 20, *event_shape, dtype=torch.float64)
        path = sf.interpolate(flow, a, b, n=6)
        assert path.shape == (6, 20, *event_shape)
        torch.testing.assert_close(path[0], a, rtol=0, atol=1e-9)
        torch.testing.assert_close(path[-1], b, rtol=0, atol=1e-9)
        assert torch.equal(path, sf.interpolate(flow, a, b, n=6))

    def test_norm_and_angle_move_evenly(self) -> None:
        flow = make()
        a, b = torch.randn(2, 50, 4, dtype=torch.float64)
        z = flow.encode(sf.interpolate(flow, a, b, n=9))
        norms = z.norm(dim=-1)
        steps = norms.diff(dim=0)
        torch.testing.assert_close(steps, steps[:1].expand_as(steps), rtol=0, atol=1e-8)
        cosines = torch.cosine_similarity(z[:-1], z[1:], dim=-1)
        torch.testing.assert_close(cosines, cosines[:1].expand_as(cosines), rtol=0, atol=1e-9)
        # All in the plane of the two.
        singular = torch.linalg.svdvals(z.transpose(0, 1))
        assert (singular[:, 2:] < 1e-8).all()
        # The short way round.
        angles = torch.arccos(cosines).sum(0)
        torch.testing.assert_close(angles, torch.arccos(torch.cosine_similarity(z[0], z[-1], dim=-1)))

    def test_the_middle_stays_in_the_shell_where_noise_is(self) -> None:
        flow = make((200,), randomised=False, num_transforms=1)
        a, b = flow.sample(2, seed=0)
        middle = sf.interpolate(flow, a, b, n=3)[1]
        straight = (a + b) / 2
        typical = flow.log_prob(flow.sample(200, seed=1))
        assert abs(flow.log_prob(middle) - typical.mean()) < 4 * typical.std()
        assert flow.log_prob(straight) > typical.mean() + 4 * typical.std()

    def test_is_a_path_in_the_units_of_the_data(self) -> None:
        flow = make((2,), preprocess="standardize", randomised=False)
        flow.fit_preprocessing(torch.randn(500, 2) * 8 + 280)
        path = sf.interpolate(flow, np.array([290.0, 280.0]), [280.0, 290.0], 5)
        torch.testing.assert_close(path[0], torch.tensor([290.0, 280.0], dtype=torch.float64))
        assert path[2].min() > 286

    def test_of_values_on_a_grid_ends_on_the_grid(self) -> None:
        flow = make((2,), preprocess=["dequantize", "standardize"])
        rows = torch.randint(0, 9, (300, 2))
        flow.fit_preprocessing(rows)
        path = sf.interpolate(flow, rows[0], rows[1], n=4)
        assert torch.equal(path[[0, -1]], rows[:2].double())
        assert torch.equal(path, path.round())

    def test_one_context_for_the_whole_path(self) -> None:
        flow = make((3,), context_shape=(2,))
        a, b = torch.randn(2, 5, 3, dtype=torch.float64)
        contexts = torch.randn(5, 2, dtype=torch.float64)
        together = sf.interpolate(flow, a, b, 4, contexts)
        for i in range(5):
            torch.testing.assert_close(together[:, i], sf.interpolate(flow, a[i], b[i], 4, contexts[i]))
        assert not torch.allclose(together[1], sf.interpolate(flow, a, b, 4, contexts + 1)[1])

    def test_one_event_may_go_to_many(self, flow) -> None:
        a, b = torch.randn(4), torch.randn(3, 2, 4)
        path = sf.interpolate(flow, a, b, 3)
        assert path.shape == (3, 3, 2, 4)
        torch.testing.assert_close(path[1, 2, 1], sf.interpolate(flow, a, b[2, 1], 3)[1])

    def test_single_precision(self) -> None:
        path = sf.interpolate(make().float(), torch.randn(4), torch.randn(4), 3)
        assert path.dtype == torch.float32
        assert not path.requires_grad


class TestSpecialDirections:
    A = torch.tensor([3.0, 0.0, 4.0, 0.0], dtype=torch.float64)

    def norms(self, flow: sf.flows.NSF, b: torch.Tensor, n: int = 5) -> torch.Tensor:
        path = sf.interpolate(flow, self.A, b, n)
        assert path.isfinite().all()
        torch.testing.assert_close(path[0], self.A, atol=1e-9, rtol=0)
        torch.testing.assert_close(path[-1], b, atol=1e-9, rtol=0)
        return path.norm(dim=-1)

    def test_equal_and_parallel(self, flow) -> None:
        torch.testing.assert_close(self.norms(flow, self.A), torch.full((5,), 5.0).double())
        torch.testing.assert_close(self.norms(flow, 2 * self.A), torch.linspace(5, 10, 5).double())

    @pytest.mark.parametrize("nudge", [1e-15, 1e-12, 1e-9, 1e-6])
    @pytest.mark.parametrize("sign", [1.0, -1.0])
    def test_nearly_parallel_and_nearly_opposite(self, flow, nudge: float, sign: float) -> None:
        norms = self.norms(flow, sign * self.A + nudge * torch.tensor([0.0, 1.0, 0.0, 2.0]))
        torch.testing.assert_close(norms, torch.full((5,), 5.0).double(), atol=1e-5, rtol=0)

    def test_opposite_goes_round_and_not_through_the_middle(self, flow) -> None:
        torch.testing.assert_close(self.norms(flow, -self.A), torch.full((5,), 5.0).double())
        torch.testing.assert_close(self.norms(flow, -2 * self.A), torch.linspace(5, 10, 5).double())

    def test_zero_has_the_direction_of_the_other(self, flow) -> None:
        path = sf.interpolate(flow, torch.zeros(4), self.A, 5)
        torch.testing.assert_close(path, torch.linspace(0, 1, 5).double()[:, None] * self.A, atol=1e-9, rtol=0)
        back = sf.interpolate(flow, self.A, torch.zeros(4), 5)
        torch.testing.assert_close(back, path.flip(0), atol=1e-9, rtol=0)
        assert sf.interpolate(flow, torch.zeros(4), torch.zeros(4), 3).abs().max() < 1e-9

    def test_a_single_element_has_no_circle(self) -> None:
        flow = make((1,), randomised=False)
        path = sf.interpolate(flow, torch.tensor([-2.0]), torch.tensor([4.0]), 4)
        torch.testing.assert_close(path[:, 0], torch.tensor([-2.0, 0.0, 2.0, 4.0]).double(), atol=1e-6, rtol=0)


class TestPeriodic:
    @pytest.mark.parametrize("others", [[], [1]])
    def test_goes_the_short_way_round(self, others) -> None:
        places = [place for place in range(3) if place not in others]
        flow = make((3,), randomised=False, periodic=dict.fromkeys(places, 360.0))
        a, b = torch.tensor([350.0, 1.0, 90.0]).double(), torch.tensor([10.0, 3.0, 60.0]).double()
        path = sf.interpolate(flow, a, b, 5)
        truth = torch.tensor([[350.0, 355, 0, 5, 10], [1, 1.5, 2, 2.5, 3], [90, 82.5, 75, 67.5, 60]]).double().T
        off = torch.remainder(path - truth + 180, 360) - 180
        torch.testing.assert_close(off, torch.zeros_like(off), rtol=0, atol=1e-4)

    def test_ends_are_the_events(self) -> None:
        flow = make((4,), periodic=[1, 2])
        a, b = 3 * torch.randn(2, 20, 4, dtype=torch.float64)
        path = sf.interpolate(flow, a, b, 4)
        turns = (path[[0, -1]] - torch.stack((a, b))) / math.tau
        turns[..., [0, 3]] *= math.tau
        turns[..., [1, 2]] -= turns[..., [1, 2]].round()
        torch.testing.assert_close(turns, torch.zeros_like(turns), rtol=0, atol=1e-6)


class TestBadInput:
    @pytest.mark.parametrize("n", [1, 0, -3, 2.0, "4", None, True, 10**9])
    def test_a_number_of_steps_that_is_none(self, flow, n) -> None:
        with pytest.raises(ConfigError, match=r"n must be 2 to 1,048,576, the two ends included; got"):
            sf.interpolate(flow, torch.zeros(4), torch.ones(4), n)

    def test_events_that_are_not_finite(self, flow) -> None:
        with pytest.raises(DataError, match="x_b or its latent vector is not finite"):
            sf.interpolate(flow, torch.zeros(4), torch.tensor([0.0, math.nan, 0.0, 0.0]), 3)
        with pytest.raises(DataError, match="x_a or its latent vector is not finite"):
            sf.interpolate(flow, torch.full((4,), math.inf), torch.zeros(4), 3)

    def test_events_of_another_shape(self, flow) -> None:
        with pytest.raises(ShapeError, match=r"events of shape \[4\] expected"):
            sf.interpolate(flow, torch.zeros(3), torch.zeros(4), 3)
        with pytest.raises(ShapeError, match=r"x_a \[2, 4\] and x_b \[3, 4\] do not broadcast"):
            sf.interpolate(flow, torch.zeros(2, 4), torch.zeros(3, 4), 3)
        with pytest.raises(ShapeError, match="has no context"):
            sf.interpolate(flow, torch.zeros(4), torch.zeros(4), 3, torch.zeros(2))

    def test_what_has_no_latent_vectors(self, flow) -> None:
        class Blind(sf.flows.NSF):
            def _encode(self, y, context):
                raise NotImplementedError

        with pytest.raises(ConfigError, match="Blind has no latent vectors to interpolate between"):
            sf.interpolate(Blind((4,), num_transforms=1), torch.zeros(4), torch.ones(4), 3)
        with pytest.raises(ConfigError, match="a density expected"):
            sf.interpolate(torch.nn.Linear(4, 4), torch.zeros(4), torch.ones(4), 3)
