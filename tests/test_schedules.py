"""Schedules, parametrisations and weightings: one suite over all of them, and over a schedule of a user's own."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sciflow.diffusion.denoiser import NetworkDenoiser
from sciflow.diffusion.given_denoiser import GivenDenoiser
from sciflow.diffusion.parametrization import PARAMETRIZATIONS
from sciflow.diffusion.schedules import Schedule, VariancePreserving, schedule
from sciflow.diffusion.weighting import WEIGHTINGS, Weighting, weighting
from sciflow.errors import ConfigError, DataError, ShapeError
from sciflow.matching import spread_evenly


class Quadratic(Schedule):
    """What a user may write: two formulas."""

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return 1 - t.square(), t.square()


class Own(Schedule):
    """Of formulas that are given, with what is no number besides."""

    def __init__(self, formulas: Callable[[Tensor], Any]) -> None:
        self.formulas = formulas

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return self.formulas(t)


SCHEDULES = [*map(schedule, ("vp", "cosine", "sub-vp", "ve", "edm", "flow")), Quadratic()]
TIMES = torch.linspace(0.002, 0.998, 200, dtype=torch.float64)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
class TestEverySchedule:
    def test_begins_with_the_event_itself(self, schedule: Schedule) -> None:
        alpha, sigma = schedule(torch.zeros(1, dtype=torch.float64))
        assert (alpha.item(), sigma.item()) == (1, 0)

    def test_noise_rises_against_signal(self, schedule: Schedule) -> None:
        assert (schedule.noise_level(TIMES).diff() > 0).all()

    def test_derivatives_are_those_of_the_function(self, schedule: Schedule) -> None:
        t = TIMES.clone().requires_grad_()
        for value, rate in zip(schedule(t), schedule.derivatives(TIMES), strict=True):
            if value.requires_grad:
                (slope,) = torch.autograd.grad(value.sum(), t, retain_graph=True)
            else:
                slope = torch.zeros_like(TIMES)
            torch.testing.assert_close(rate, slope, rtol=1e-9, atol=1e-12)

    def test_time_undoes_noise_level(self, schedule: Schedule) -> None:
        torch.testing.assert_close(schedule.time(schedule.noise_level(TIMES)), TIMES, rtol=0, atol=1e-12)

    def test_range_of_times_is_that_in_which_there_are_signal_and_noise(self, schedule: Schedule) -> None:
        assert 0 < schedule.t_min < 0.05
        assert 0.9 < schedule.t_max <= 1
        ends = torch.tensor([schedule.t_min, schedule.t_max], dtype=torch.float64)
        low, high = schedule.noise_level(ends).tolist()
        assert low == pytest.approx(1e-3, rel=1e-6)
        assert 10 < high < 1001

    def test_keeps_dtype_and_shape(self, schedule: Schedule) -> None:
        for part in schedule(torch.rand(3, 1, dtype=torch.float32)):
            assert (part.dtype, part.shape) == (torch.float32, (3, 1))


def test_closed_forms_are_what_automatic_ones_say() -> None:
    for one in SCHEDULES[:-1]:
        for closed, automatic in zip(one.derivatives(TIMES), Schedule.derivatives(one, TIMES), strict=True):
            torch.testing.assert_close(closed, automatic, rtol=1e-9, atol=1e-9)


def test_published_values() -> None:
    t = torch.tensor(0.5, dtype=torch.float64)
    log_alpha = -0.25 * 0.25 * 19.9 - 0.25 * 0.1  # Song et al., equation 33
    assert schedule("vp")(t)[0].item() == pytest.approx(math.exp(log_alpha))
    assert schedule("sub-vp")(t)[1].item() == pytest.approx(1 - math.exp(2 * log_alpha))
    assert schedule("ve")(t)[1].item() == pytest.approx(0.01 * 5000**0.5, rel=1e-3)
    assert schedule("cosine")(t)[0].item() == pytest.approx(math.cos(math.pi / 4))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("vpp", "schedule: unknown 'vpp'; did you mean vp?"),
        (3, "schedule: unknown 3"),
        ({"vp": {"beta": 1}}, "schedule: vp does not take"),
        ({"vp": {"beta_min": 30.0}}, "beta_min must be below beta_max; got 30.0 and 20.0"),
        ({"edm": {"sigma_max": -1}}, "sigma_max must be a positive number; got -1"),
        ({"edm": {"sigma_max": "a"}}, "sigma_max must be a positive number; got 'a'"),
        ({"vp": 3}, "schedule: vp takes options by name; got 3"),
        ({"edm": {"sigma_max": 1e-6}}, r"EDM\(sigma_max=1e-06\) ends at a noise level, sigma / alpha, of 1e-06"),
        ({"vp": {"beta_min": 1e-12, "beta_max": 1e-11}}, r"\(beta_min=1e-12, beta_max=1e-11\) ends at a noise level"),
        ({"sub-vp": {"beta_min": 1e-3, "beta_max": 2e-3}}, "ends at a noise level, sigma / alpha, of 0.0015"),
        (VariancePreserving(1e-3, 1e-2), "ends at a noise level"),
        (Own(lambda t: 1 - t), r"Own\(\) must return \(alpha, sigma\), two tensors of the shape of t"),
        (Own(lambda t: (1 - t, 80.0)), r"two tensors of the shape of t"),
        (Own(lambda t: (1 - t.numpy(), t.numpy())), "two tensors of the shape of t"),
        (Own(lambda t: (torch.ones(1), t)), "two tensors of the shape of t"),
        (Own(lambda t: (1 - t, t * torch.nan)), "both finite"),
        (Own(lambda t: (1 - 2 * t, t)), "must have alpha of 0 or more"),
        (Own(lambda t: (t, 1 - t)), "must have noise that rises against signal"),
        (Own(lambda t: (torch.ones_like(t), 5 * torch.ones_like(t))), "must have noise that rises against signal"),
        (Own(lambda t: (torch.ones_like(t), 50 * torch.sin(3 * t))), "must have noise that rises against signal"),
    ],
)
def test_bad_schedules_are_told_of(given: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message.replace("?", r"\?")):
        schedule(given)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "given",
    [
        {"vp": {"beta_max": np.float32(10)}},
        {"edm": {"sigma_max": 1}},
        {"edm": {"sigma_max": 1e12}},
        {"vp": {"beta_max": 1e12}},
        {"ve": {"sigma_min": 1e-12, "sigma_max": 1e12}},
        Own(lambda t: (torch.cos(t * (math.pi / 2 + 1e-9)), t)),  # next to no signal, on the other side of 0
        Own(lambda t: ((1 - 2 * t).clamp_min(0), t)),  # no signal from halfway on
    ],
    ids=repr,
)
def test_extreme_schedules_are_taken_that_lead_from_events_to_noise(given: Any) -> None:
    found = schedule(given)
    assert 0 < found.t_min < found.t_max <= 1


def test_names_are_taken_as_others_write_them_and_json_gives_them_back() -> None:
    assert type(schedule("sub_vp")) is type(schedule("SUBVP")) is type(schedule("sub-vp"))
    specification = VariancePreserving(beta_max=12.0).specification
    assert specification == {"vp": {"beta_min": 0.1, "beta_max": 12.0}}
    assert vars(schedule(specification)) == {"beta_min": 0.1, "beta_max": 12.0}


class Oracle(torch.nn.Module):
    """The answer that a perfect network gives for independent Gaussians of deviation ``std``."""

    def __init__(self, denoiser: NetworkDenoiser | None = None, std: float = 1.0) -> None:
        super().__init__()
        self.denoiser = [denoiser]  # not a submodule
        self.std = std

    def forward(self, x: Tensor, level: Tensor, context: Tensor | None = None) -> Tensor:
        (denoiser,) = self.denoiser
        assert denoiser is not None
        t = denoiser.schedule.time(torch.exp(4 * level.double()))
        at = denoiser.levels(t, x)
        power = (at.alpha * at.data_std).square() + at.sigma.square()
        x_t = x.double() * power.sqrt()
        mean = at.alpha * self.std**2 / ((at.alpha * self.std).square() + at.sigma.square()) * x_t
        skip, out = PARAMETRIZATIONS[denoiser.parametrization](at)
        return ((mean - skip * x_t) / out).to(x.dtype)


def oracle(schedule: Schedule, parametrization: str, std: float = 1.0) -> NetworkDenoiser:
    network = Oracle(std=std)
    denoiser = NetworkDenoiser(network, schedule, parametrization)
    network.denoiser[0] = denoiser
    return denoiser.double()


@pytest.mark.parametrize("parametrization", PARAMETRIZATIONS)
@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
class TestEveryParametrization:
    def test_hides_behind_the_same_mean(self, schedule: Schedule, parametrization: str) -> None:
        denoiser = oracle(schedule, parametrization, std=0.7)
        t = torch.linspace(schedule.t_min, schedule.t_max, 50, dtype=torch.float64)
        alpha, sigma = (part[:, None] for part in schedule(t))
        x = torch.randn(50, 3, dtype=torch.float64) * (alpha.square() + sigma.square()).sqrt()
        expected = alpha * 0.49 / (0.49 * alpha.square() + sigma.square()) * x
        torch.testing.assert_close(denoiser(x, t), expected, rtol=1e-6, atol=1e-6)

    def test_asks_the_network_for_something_of_unit_size(self, schedule: Schedule, parametrization: str) -> None:
        denoiser = oracle(schedule, parametrization)
        y, noise = torch.randn(2, 20_000, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        for share in (0.0, 0.3, 0.7, 1.0):
            t = torch.full((20_000,), schedule.t_min + share * (schedule.t_max - schedule.t_min), dtype=torch.float64)
            at = denoiser.levels(t, y)
            skip, out = PARAMETRIZATIONS[parametrization](at)
            target = (y - skip * (at.alpha * y + at.sigma * noise)) / out
            assert target.std().item() == pytest.approx(1, abs=0.02)


class TestGivenDenoiser:
    def test_may_work_in_place(self) -> None:
        def denoise(x: Tensor, t: Tensor, context: Tensor) -> Tensor:
            return x.mul_(t.neg_()[:, None]).add_(context.nan_to_num_())

        given = torch.ones(3, 2), torch.full((3,), 0.5), torch.full((3, 1), torch.nan)
        before = [part.clone() for part in given]
        torch.testing.assert_close(GivenDenoiser(denoise, schedule("vp"))(*given), torch.full((3, 2), -0.5))
        torch.testing.assert_close(list(given), before, equal_nan=True)
        for mode in (torch.inference_mode, torch.no_grad, torch.enable_grad):
            with mode():
                assert (GivenDenoiser(lambda x, t: x.mul_(2), schedule("vp"))(*given[:2]) == 2).all()

    @pytest.mark.parametrize(
        ("denoise", "error", "message"),
        [
            (lambda x, t: x[:, :1], ShapeError, r"of shape \[3, 2\]; got \[3, 1\] of torch\.float32"),
            (lambda x, t: x.long(), ShapeError, r"floating-point numbers of .* got \[3, 2\] of torch\.int64"),
            (lambda x, t: x + 1j, ShapeError, r"floating-point numbers of .* got \[3, 2\] of torch\.complex64"),
            (lambda x, t: x.numpy(), ShapeError, "got ndarray"),
            (lambda x, t: x.to_sparse(), DataError, "give a dense one"),
        ],
    )
    def test_answers_with_events(self, denoise: Callable[..., Any], error: type[Exception], message: str) -> None:
        with pytest.raises(error, match=message):
            GivenDenoiser(denoise, schedule("vp"))(torch.ones(3, 2), torch.full((3,), 0.5))


def test_answers_are_what_their_names_say() -> None:
    y, noise = torch.randn(2, 100, 2, dtype=torch.float64)
    t = torch.rand(100, dtype=torch.float64).clamp(0.01, 0.99)
    one = schedule("cosine")
    alpha, sigma = (part[:, None] for part in one(t))
    alpha_rate, sigma_rate = (part[:, None] for part in one.derivatives(t))
    expected = {
        "noise": noise,
        "score": -noise,
        "data": y,
        "v": alpha * noise - sigma * y,
        "velocity": (alpha_rate * y + sigma_rate * noise) / (alpha_rate.square() + sigma_rate.square()).sqrt(),
        "edm": None,
    }
    for name, answer in expected.items():
        denoiser = oracle(one, name)
        skip, out = PARAMETRIZATIONS[name](denoiser.levels(t, y))
        target = (y - skip * (alpha * y + sigma * noise)) / out
        if answer is not None:
            # The velocity's size is that of noise, up to the sign of the rate.
            torch.testing.assert_close(target, answer, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", WEIGHTINGS)
@pytest.mark.parametrize("one", SCHEDULES, ids=repr)
def test_times_that_are_trained_on_are_within_the_schedule(one: Schedule, name: str) -> None:
    shares = torch.cat((torch.zeros(1), torch.rand(500), torch.ones(1))).double()
    t = weighting(name).draw(shares, one, torch.tensor(1.0))
    assert (t >= one.t_min * (1 - 1e-9)).all()
    assert (t <= one.t_max * (1 + 1e-9)).all()
    alpha, sigma = one(t)
    weight = weighting(name).weight(alpha, sigma, torch.ones_like(t), torch.tensor(1.0))
    assert weight.isfinite().all()
    assert (weight > 0).all()


def test_distributions_of_noise_levels_are_the_published_ones() -> None:
    shares = spread_evenly(10_001, torch.device("cpu"))
    one = schedule("flow")
    log_level = one.noise_level(weighting("edm").draw(shares, one, torch.tensor(0.5))).log()
    assert log_level.mean().item() == pytest.approx(-1.2, abs=0.01)
    assert log_level.std().item() == pytest.approx(1.2, abs=0.01)
    logit = torch.logit(weighting("logit-normal").draw(shares, one, torch.tensor(1.0)))
    assert logit.mean().item() == pytest.approx(0, abs=0.01)
    assert logit.std().item() == pytest.approx(1, abs=0.01)
    even = one.noise_level(weighting("likelihood").draw(shares, one, torch.tensor(1.0))).log()
    assert even.quantile(0.5).item() == pytest.approx(0, abs=0.01)
    assert even.quantile(0.25).item() == pytest.approx(-math.log(1e3) / 2, abs=0.01)


def test_weights_are_the_published_ones() -> None:
    alpha, sigma, out = torch.tensor(0.6), torch.tensor(0.8), torch.tensor(1.0)
    one = torch.tensor(1.0)
    assert weighting("likelihood").weight(alpha, sigma, out, one).item() == pytest.approx(0.5625)
    assert weighting({"min-snr": {"most": 0.5}}).weight(alpha, sigma, out, one).item() == pytest.approx(0.5)
    assert weighting("simple").weight(alpha, sigma, out, one).item() == 1


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("edn", "weighting: unknown 'edn'; did you mean edm"),
        ({"edm": {"meen": 1}}, "weighting: edm takes mean, std; got"),
        ({"simple": {"mean": 1}}, "weighting: simple takes no numbers"),
        ({"edm": {"std": 0}}, "weighting: std must be a positive number; got 0"),
        ({"min-snr": {"most": float("nan")}}, "weighting: most must be a positive number; got nan"),
        ({"times": "times", "counts": "noise"}, "weighting: times: got 'times'; did you mean time"),
        ({"times": "time", "counts": 3}, "weighting: counts: got 3; known: answer, min-snr, noise"),
        ({"times": "time", "counts": "noise", "meen": 1}, "weighting: unknown 'meen'; did you mean mean"),
        ({"times": "time"}, "weighting: unknown {'times': 'time'}"),
    ],
)
def test_bad_weightings_are_told_of(given: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        weighting(given)  # type: ignore[arg-type]


@pytest.mark.parametrize("one", [Weighting("time", "noise"), Weighting("normal", "min-snr", np.float32(0.5), 2, 3)])
def test_weightings_of_ones_own_come_back_from_json(one: Weighting) -> None:
    assert weighting(json.loads(json.dumps(one.specification))) == one


def test_weightings_of_another_class_are_in_no_file() -> None:
    class Flat(Weighting):
        def weight(self, alpha: Tensor, sigma: Tensor, out: Tensor, data_std: Tensor) -> Tensor:
            return torch.ones_like(alpha)

    assert Flat("time", "noise").specification is None
