"""Spline flows of angles: densities on circles and cylinders."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import sciflow as sf
from sciflow.bijections import CircularSpline, EachItsOwn, Spline
from sciflow.errors import ConfigError
from sciflow.flows import NSF

SMALL = {"num_transforms": 3, "hidden_features": (16, 16), "seed": 0}


def off_neutral(flow: NSF, scale: float = 0.15) -> NSF:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter += scale * torch.randn(parameter.shape, generator=generator)
    return flow.eval()


def events(n: int = 400) -> Tensor:
    """An angle in degrees, a number, and an hour of the day."""
    generator = torch.Generator().manual_seed(1)
    rows = torch.randn(n, 3, generator=generator, dtype=torch.float64)
    return torch.stack((rows[:, 0] * 60 % 360, 5 + 2 * rows[:, 1], (12 + 3 * rows[:, 2]) % 24), -1)


@pytest.fixture(params=[False, True], ids=["coupling", "autoregressive"])
def flow(request: pytest.FixtureRequest) -> NSF:
    made = NSF((3,), (2,), periodic={0: 360.0, 2: 24.0}, autoregressive=request.param, **SMALL)
    made = off_neutral(made).double()
    made.fit_preprocessing(events(), torch.randn(400, 2, dtype=torch.float64))
    return made


CONTEXT = torch.tensor([0.5, -1.0], dtype=torch.float64)


class TestPeriodicFlow:
    def test_log_prob_is_the_same_a_period_further_on(self, flow: NSF) -> None:
        x = events()
        shifted = x + torch.tensor([360.0, 0.0, -48.0], dtype=torch.float64)
        torch.testing.assert_close(flow.log_prob(x, CONTEXT), flow.log_prob(shifted, CONTEXT), rtol=0, atol=1e-9)

    def test_log_prob_is_continuous_where_the_circle_closes(self, flow: NSF) -> None:
        for place, period in ((0, 360.0), (2, 24.0)):
            for edge in (0.0, period / 2):
                x = events(20)
                before, after = x.clone(), x.clone()
                before[:, place], after[:, place] = edge - 1e-7, edge + 1e-7
                torch.testing.assert_close(
                    flow.log_prob(before, CONTEXT), flow.log_prob(after, CONTEXT), rtol=0, atol=1e-4
                )

    def test_decode_undoes_encode(self, flow: NSF) -> None:
        x = events()
        back = flow.decode(flow.encode(x, CONTEXT), CONTEXT)
        torch.testing.assert_close(back, x, rtol=0, atol=1e-8)

    def test_log_prob_is_that_of_the_jacobian(self, flow: NSF) -> None:
        for x in events(5):
            z = flow.encode(x, CONTEXT)
            jacobian = torch.func.jacrev(lambda e: flow.encode(e, CONTEXT))(x)
            expected = torch.distributions.Normal(0, 1).log_prob(z[1]) - 2 * math.log(2 * math.pi)
            expected = expected + torch.linalg.slogdet(jacobian).logabsdet
            torch.testing.assert_close(flow.log_prob(x, CONTEXT), expected, rtol=0, atol=1e-8)

    def test_draws_are_within_one_period(self, flow: NSF) -> None:
        x = flow.sample(500, CONTEXT, seed=0)
        assert ((x[:, 0] >= 0) & (x[:, 0] <= 360)).all()
        assert ((x[:, 2] >= 0) & (x[:, 2] <= 24)).all()

    def test_survives_saving(self, flow: NSF, tmp_path) -> None:
        again = sf.load(flow.save(tmp_path / "model"))
        assert torch.equal(flow.log_prob(events(), CONTEXT), again.log_prob(events(), CONTEXT))


@pytest.mark.parametrize("autoregressive", [False, True])
def test_a_density_on_a_torus_integrates_to_one(autoregressive: bool) -> None:
    flow = off_neutral(NSF((2,), periodic=[0, 1], autoregressive=autoregressive, **SMALL)).double()
    line = torch.linspace(0, math.tau, 401, dtype=torch.float64)[:-1]
    log_prob = flow.log_prob(torch.cartesian_prod(line, line)).detach()
    assert log_prob.exp().mean() * math.tau**2 == pytest.approx(1, abs=1e-3)
    assert log_prob.std() > 0.1


def test_negative_angles_come_back_as_such() -> None:
    flow = NSF((1,), periodic=[0], **SMALL)
    flow.fit_preprocessing(torch.linspace(-3, 3, 50)[:, None])
    x = flow.sample(200, seed=0)
    assert x.min() < -1
    assert x.abs().max() <= math.pi + 1e-6


def test_a_period_is_exact_in_every_dtype() -> None:
    flow = NSF((2,), periodic={0: 365.2425}, **SMALL)
    assert flow.double().preprocess.period.tolist() == [365.2425]
    assert flow.float().preprocess.period.tolist() == [torch.tensor(365.2425).item()]
    assert flow.double().preprocess.period.tolist() == [365.2425]


def test_fits_a_von_mises_density() -> None:
    truth = torch.distributions.VonMises(torch.tensor(math.pi - 0.2), torch.tensor(4.0))  # across the seam
    torch.manual_seed(0)
    flow = NSF((1,), periodic=[0], num_transforms=2, num_bins=16, seed=0)
    sf.fit(flow, truth.sample((8_000,))[:, None], seed=0, max_steps=600, learning_rate=1e-2, progress=False)
    x = truth.sample((20_000,))
    assert (truth.log_prob(x) - flow.log_prob(x[:, None]).detach()).mean() <= 0.01


def test_a_circular_spline_turns_and_bends_the_circle() -> None:
    spline = CircularSpline(num_bins=5)
    parameters = torch.randn(spline.num_parameters, 1, generator=torch.Generator().manual_seed(0)).double()
    x = torch.linspace(-math.pi, math.pi, 2_001, dtype=torch.float64)
    z, log_slope = spline.forward(x, parameters.expand(-1, 2_001))
    back, inverse_log_slope = spline.inverse(z, parameters.expand(-1, 2_001))
    assert ((back - x + 1) % math.tau - 1).abs().max() <= 1e-9
    torch.testing.assert_close(log_slope, -inverse_log_slope)
    assert log_slope[0] == pytest.approx(log_slope[-1].item())
    steps = z.diff() % math.tau
    assert steps.sum() == pytest.approx(math.tau)


def test_kinds_side_by_side_are_each_their_own() -> None:
    kinds = [Spline(), CircularSpline(), Spline()]
    spline, circle, _ = kinds
    mixed = EachItsOwn([spline, circle, spline])
    x, parameters = torch.randn(3, 7), torch.randn(mixed.num_parameters, 3, 7)
    z, log_slope = mixed.forward(x, parameters)
    for i, kind in enumerate((spline, circle, spline)):
        expected = kind.forward(x[i], parameters[:, i])
        torch.testing.assert_close((z[i], log_slope[i]), expected)
    back, _ = mixed.inverse(z, parameters)
    torch.testing.assert_close(back[0], x[0], rtol=0, atol=1e-3)


@pytest.mark.parametrize("periodic", [[3], [-1], [0, 0], {0: 0.0}, {0: "a"}, {"b": 1.0}, 5, "0", [1.5], {0: math.inf}])
def test_places_and_periods_that_cannot_be_are_named(periodic: object) -> None:
    with pytest.raises(ConfigError, match="NSF: periodic must be places from 0 to 2"):
        NSF((3,), periodic=periodic)


def test_values_on_a_grid_beside_angles_are_refused() -> None:
    with pytest.raises(ConfigError, match="cannot be dequantised"):
        NSF((3,), periodic=[0], preprocess="dequantize")
