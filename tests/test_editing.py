"""Draws given an observation, or a part of the event: held against exact posteriors."""

from __future__ import annotations

import math
from collections.abc import Callable

import analytic
import numpy as np
import pytest
import torch
from torch import Tensor

import sciflow as sf
from sciflow.diffusion import ClassifierGuidance, Diffusion, Inpainting, Observation, rows
from sciflow.errors import ConfigError, DataError, ShapeError

PRIOR = analytic.Gaussian(
    [1.0, -1.0, 0.5, 0.0],
    [[1.0, 0.6, 0.0, 0.2], [0.6, 0.8, -0.3, 0.0], [0.0, -0.3, 0.5, 0.1], [0.2, 0.0, 0.1, 0.3]],
)
OPERATOR = torch.tensor([[1.0, 0.0, 2.0, 0.0], [0.0, 1.0, -1.0, 0.5], [0.5, 0.0, 0.0, 1.0]], dtype=torch.float64)
VALUE, STD = torch.tensor([3.0, -2.5, 0.2], dtype=torch.float64), torch.tensor([0.3, 0.1, 0.5], dtype=torch.float64)
SMALL = {"network": {"mlp": {"hidden_features": (8,)}}, "seed": 0}


def made(distribution, schedule: str = "edm", **arguments) -> Diffusion:
    """The diffusion model of a known distribution."""
    known = sf.diffusion.schedule(schedule)

    def denoise(x: Tensor, t: Tensor) -> Tensor:
        return distribution.denoise(x, t, known)

    return Diffusion.from_denoiser(denoise, distribution.mean.shape, known, **arguments).double()


def linear(x: Tensor) -> Tensor:
    return x @ OPERATOR.to(x).T


def posterior(prior, operator: Tensor = OPERATOR, value: Tensor = VALUE, std: Tensor = STD):
    """What a Gaussian becomes by a linear observation: Kalman's update."""
    seen = operator @ prior.covariance @ operator.T + torch.diag(std**2)
    gain = prior.covariance @ operator.T @ torch.linalg.inv(seen)
    covariance = prior.covariance - gain @ operator @ prior.covariance
    return analytic.Gaussian(prior.mean + gain @ (value - operator @ prior.mean), (covariance + covariance.T) / 2)


def noisy(schedule: str, prior=PRIOR, least: float = 0.02, most: float = 9.0) -> tuple[Tensor, Tensor]:
    """Events at several levels of noise."""
    known = sf.diffusion.schedule(schedule)
    t = known.time(torch.logspace(math.log10(least), math.log10(most), 6, dtype=torch.float64))
    alpha, sigma = known(t)
    generator = torch.Generator().manual_seed(1)
    x = prior.sample(6, generator)
    return alpha[:, None] * x + sigma[:, None] * torch.randn(x.shape, generator=generator, dtype=torch.float64), t


class SlopeOfNoSlope(torch.autograd.Function):
    """The identity, whose derivative is known once."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient: Tensor) -> Tensor:
        return gradient.clone()


def energy_distance(x: Tensor, y: Tensor) -> float:
    x, y = x.double(), y.double()
    return float(2 * torch.cdist(x, y).mean() - torch.cdist(x, x).mean() - torch.cdist(y, y).mean())


def divergence(draws: Tensor, truth) -> float:
    """Kullback-Leibler divergence of the Gaussian with the moments of the draws."""
    mean, covariance = draws.double().mean(0), torch.atleast_2d(draws.double().T.cov())
    ratio = torch.linalg.solve(truth.covariance, covariance)
    off = truth.mean - mean
    quadratic = off @ torch.linalg.solve(truth.covariance, off)
    return float(ratio.trace() + quadratic - len(mean) - torch.linalg.slogdet(ratio)[1]) / 2


class TestObservation:
    @pytest.mark.parametrize("schedule", ["vp", "cosine", "sub-vp", "edm", "flow"])
    def test_is_exact_for_gaussians(self, schedule):
        x, t = noisy(schedule)
        found = Observation(linear, VALUE, STD).guided(made(PRIOR, schedule), None)(x, t)
        torch.testing.assert_close(found, posterior(PRIOR).denoise(x, t, sf.diffusion.schedule(schedule)))

    def test_is_nearly_so_at_more_noise(self):
        x, t = noisy("edm", least=11, most=79)
        found = Observation(linear, VALUE, STD).guided(made(PRIOR), None)(x, t)
        exact = posterior(PRIOR).denoise(x, t, sf.diffusion.schedule("edm"))
        torch.testing.assert_close(found, exact, atol=0.02, rtol=0)

    def test_the_scale_of_events_does_not_matter(self):
        large = analytic.Gaussian(20 * PRIOR.mean, 400 * PRIOR.covariance)
        x, t = noisy("vp", least=0.1, most=100)
        alpha, sigma = (level[:, None] for level in sf.diffusion.schedule("vp")(t))
        x = alpha * 20 * PRIOR.mean + sigma * x / sigma.clamp_min(0.1)
        found = Observation(linear, 20 * VALUE, 20 * STD).guided(made(large, "vp", data_std=20.0), None)(x, t)
        exact = posterior(large, value=20 * VALUE, std=20 * STD).denoise(x, t, sf.diffusion.schedule("vp"))
        torch.testing.assert_close(found, exact)

    @pytest.mark.parametrize(
        ("sampler", "num_steps"), [("dpm++", 50), ("heun", 40), ("unipc", 50), ({"edm": {"churn": 20}}, 40)]
    )
    def test_draws_follow_the_posterior(self, sampler, num_steps):
        observation = Observation(linear, VALUE, STD)
        drawn = made(PRIOR).sample(4000, seed=0, sampler=sampler, num_steps=num_steps, guidance=observation)
        truth = posterior(PRIOR)
        off = (drawn.mean(0) - truth.mean) / truth.covariance.diagonal().sqrt()
        assert off.abs().amax() < 5 / math.sqrt(4000)
        assert divergence(drawn, truth) < 0.03  # 0.002 by chance, the rest is the sampler's
        assert divergence(PRIOR.sample(4000), truth) > 3

    def test_draws_are_those_of_a_model_of_the_posterior(self):
        truth = posterior(PRIOR)
        one = made(PRIOR).sample(200, seed=0, guidance=Observation(linear, VALUE, STD))
        other = made(truth).sample(200, seed=0)
        assert ((one - other) / truth.covariance.diagonal().sqrt()).abs().amax() < 0.01

    def test_few_iterations_are_less_exact(self):
        x, t = noisy("edm")
        exact = posterior(PRIOR).denoise(x, t, sf.diffusion.schedule("edm"))
        off = [
            float((Observation(linear, VALUE, STD, iterations=k).guided(made(PRIOR), None)(x, t) - exact).norm())
            for k in (1, 2, 3)
        ]
        assert off[0] > off[1] > 1e3 * off[2]

    def test_a_row_does_not_depend_on_the_others(self):
        x, t = noisy("edm")
        x[2] = PRIOR.mean  # its residual is another, and smaller
        denoise = Observation(linear, VALUE, STD, iterations=2).guided(made(PRIOR), None)
        alone = torch.cat([denoise(x[i : i + 1], t[i : i + 1]) for i in range(6)])
        torch.testing.assert_close(denoise(x, t), alone)

    def test_nothing_is_amiss_where_the_mean_agrees_with_the_observation(self):
        x, t = noisy("edm")
        model = made(PRIOR)
        mean = model.denoiser(x, t)
        found = Observation(linear, linear(mean), 0.1).guided(model, None)(x, t)
        torch.testing.assert_close(found, mean)

    @pytest.mark.parametrize("std", [0.05, 0.5])
    def test_an_unsymmetric_derivative_at_much_noise_throws_no_draw_off(self, std):
        """Networks have such errors: the covariance is the square of the noise level times their derivative."""
        turn = 0.1 * torch.randn(4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        known = sf.diffusion.schedule("edm")

        def denoise(x: Tensor, t: Tensor) -> Tensor:
            sigma = known(t)[1][:, None]
            error = sigma / (1 + sigma.square()).sqrt() * torch.sin(x @ turn / (1 + sigma.square()).sqrt())
            return PRIOR.denoise(x, t, known) + 0.3 * error

        model = Diffusion.from_denoiser(denoise, (4,), known).double()
        drawn = model.sample(500, seed=0, guidance=Observation(linear, VALUE, std))
        truth = posterior(PRIOR, std=torch.full((3,), std).double())
        assert ((drawn - truth.mean) / truth.covariance.diagonal().sqrt()).square().mean().sqrt() < 1.5

    def test_takes_an_operator_that_is_not_linear(self):
        prior = analytic.GaussianMixture.ring()

        def operator(x: Tensor) -> Tensor:
            return x.square().sum(-1) + x[:, 0]

        generator = torch.Generator().manual_seed(0)
        events = prior.sample(100_000, generator)
        weights = torch.softmax(-(((operator(events) - 2) / 0.3) ** 2) / 2, 0)
        truth = events[torch.multinomial(weights, 2000, replacement=True, generator=generator)]
        drawn = made(prior).sample(
            1000, seed=0, sampler="ddpm", num_steps=100, guidance=Observation(operator, torch.tensor(2.0), 0.3)
        )
        assert energy_distance(drawn, truth) < 0.02
        assert energy_distance(prior.sample(1000, generator), truth) > 0.2

    def test_the_operator_sees_data_units(self):
        """A normal in its logarithm, of which the value itself is measured."""
        model = Diffusion.from_denoiser(
            lambda x, t: x / (1 + (80 * t[:, None]) ** 2), (1,), "edm", preprocess="log"
        ).double()
        observation = Observation(lambda x: x, [2.0], 0.3)
        drawn = model.sample(4000, seed=0, sampler="ddpm", num_steps=100, guidance=observation).log()
        z = torch.linspace(-5, 5, 4001, dtype=torch.float64)
        weights = torch.softmax(-(z**2) / 2 - ((z.exp() - 2) / 0.3) ** 2 / 2, 0)
        mean = weights @ z
        std = (weights @ (z - mean) ** 2).sqrt()
        # The exponential is taken for linear: near the truth, and not on it.
        assert abs(drawn.mean() - mean) < 0.25 * std
        assert abs(drawn.std() / std - 1) < 0.15

    def test_values_on_a_grid_can_be_observed(self):
        model = Diffusion((2,), preprocess=["dequantize", "standardize"], **SMALL).eval()
        model.fit_preprocessing(torch.randint(0, 20, (400, 2)).float())
        drawn = model.sample(200, seed=0, guidance=Observation(lambda x: x.sum(1), 10.0, 0.01))
        assert torch.equal(drawn, drawn.round())
        # Each of two draws is in the middle of its cell, more or less: their sum is 10, give or take one.
        assert (drawn.sum(1) - 10).abs().amax() <= 1
        assert abs(drawn.sum(1).mean() - 10) < 0.2

    def test_every_row_may_have_an_observation_of_its_own(self, monkeypatch):
        model, values = made(PRIOR), torch.stack([VALUE, VALUE + 1, -VALUE])
        together = model.sample((4, 3), seed=0, guidance=Observation(linear, values, STD))
        assert together.shape == (4, 3, 4)
        x, t = noisy("edm")
        apart = torch.cat(
            [Observation(linear, value, STD).guided(model, None)(x[i::3], t[i::3]) for i, value in enumerate(values)]
        )
        given = Observation(linear, values.repeat(2, 1), STD).guided(model, None)(x, t)
        torch.testing.assert_close(given.reshape(2, 3, 4).transpose(0, 1).reshape(6, 4), apart)
        # In parts that do not end with the rows, too.
        monkeypatch.setattr(rows, "_VALUES_AT_A_TIME", 5 * 4 * Observation.memory)
        in_parts = model.sample((4, 3), seed=0, guidance=Observation(linear, values, STD))
        torch.testing.assert_close(in_parts.mean(0), together.mean(0), atol=1.5, rtol=0)
        for i, value in enumerate(values):
            truth = posterior(PRIOR, value=value)
            off = (in_parts[:, i] - truth.mean) / truth.covariance.diagonal().sqrt()
            assert off.abs().amax() < 5

    def test_one_row_a_context(self):
        def denoise(x: Tensor, t: Tensor, context: Tensor) -> Tensor:  # of variance 1 around the context
            return context + (x - context) / (1 + (80 * t[:, None]) ** 2)

        model = Diffusion.from_denoiser(denoise, (1,), "edm", context_shape=(1,)).double()
        contexts, values = torch.tensor([[0.0], [2.0]]), torch.tensor([[1.0], [-1.0]])
        drawn = model.sample(2000, contexts, seed=0, guidance=Observation(lambda x: x, values, 1.0))
        torch.testing.assert_close(drawn.mean(0), torch.tensor([[0.5], [0.5]]).double(), atol=0.08, rtol=0)
        torch.testing.assert_close(drawn.std(0), torch.full((2, 1), 0.5**0.5).double(), atol=0.05, rtol=0)

    def test_the_prior_may_be_guided_itself(self):
        x, t = noisy("edm")
        known = sf.diffusion.schedule("edm")
        extra, seen = OPERATOR[:1], OPERATOR[1:]
        halfway = posterior(PRIOR, extra, VALUE[:1], STD[:1])

        def log_prob(x: Tensor, t: Tensor) -> Tensor:
            sigma = known(t)[1][:, None, None]
            left = PRIOR.covariance - PRIOR.covariance @ torch.linalg.solve(
                PRIOR.covariance + sigma**2 * torch.eye(4).double(), PRIOR.covariance
            )
            off = PRIOR.denoise(x, t, known) @ extra[0] - VALUE[0]
            return -(off**2) / (STD[0] ** 2 + left @ extra[0] @ extra[0]) / 2

        observation = Observation(lambda x: x @ seen.T, VALUE[1:], STD[1:], prior=ClassifierGuidance(log_prob))
        found = observation.guided(made(PRIOR), None)(x, t)
        exact = posterior(halfway, seen, VALUE[1:], STD[1:]).denoise(x, t, known)
        torch.testing.assert_close(found, exact)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_of_fields_and_of_anything(self, dtype):
        model = Diffusion((1, 8, 8), network={"unet": {"channels": 8}}, seed=0).to(dtype).eval()
        stations = np.random.default_rng(0).normal(size=(4, 1, 2, 2)).astype("float32")
        coarse = Observation(torch.nn.AvgPool2d(4), stations, 0.01)
        drawn = model.sample((3, 4), seed=0, num_steps=8, guidance=coarse)
        assert drawn.shape == (3, 4, 1, 8, 8)
        assert drawn.dtype == dtype
        means = torch.nn.functional.avg_pool2d(drawn.flatten(0, 1), 4).reshape(3, 4, 1, 2, 2)
        torch.testing.assert_close(means, torch.from_numpy(stations).to(dtype).expand_as(means), atol=0.05, rtol=0)
        assert model.sample((0, 4), guidance=coarse).shape == (0, 4, 1, 8, 8)
        with torch.no_grad():
            assert (
                model.sample(2, num_steps=2, guidance=Observation(lambda x: x.mean((1, 2, 3)), 0.5, 0.1))
                .isfinite()
                .all()
            )

    def test_leaves_the_weights_without_gradient(self):
        model = Diffusion((3,), **SMALL)
        model.sample(2, num_steps=2, guidance=Observation(lambda x: x[:, :1], [1.0], 0.1))
        assert all(parameter.grad is None for parameter in model.parameters())

    def test_refuses_inference_mode_where_there_are_no_derivatives(self):
        with torch.inference_mode(), pytest.raises(ConfigError, match="inference_mode"):
            Diffusion((3,), **SMALL).sample(2, num_steps=2, guidance=Observation(lambda x: x[:, :1], [1.0], 0.1))

    def test_refuses_what_is_no_observation(self):
        with pytest.raises(ConfigError, match="std must be positive; to hold"):
            Observation(linear, VALUE, 0.0)
        with pytest.raises(ConfigError, match="std must be positive"):
            Observation(linear, VALUE, torch.tensor([0.1, -1.0, 0.1]))
        with pytest.raises(ShapeError, match=r"std must broadcast to the shape of value, \[3\]; got \[2\]"):
            Observation(linear, VALUE, [0.1, 0.2])
        with pytest.raises(DataError, match="leave missing ones out by the operator"):
            Observation(linear, [1.0, math.nan, 2.0], 0.1)
        with pytest.raises(ConfigError, match="operator must be a function"):
            Observation("mean", VALUE, 0.1)
        with pytest.raises(ConfigError, match="iterations"):
            Observation(linear, VALUE, 0.1, iterations=0)
        with pytest.raises(ConfigError, match="one operator, whose observations are side by side"):
            Observation(linear, VALUE, 0.1, prior=Observation(linear, VALUE, 0.1))

    @pytest.mark.parametrize(
        "operator",
        [lambda x: linear(x).double(), lambda x: linear(x.clone().mul_(2)).div_(2), lambda x: linear(x.mul_(2)) / 2],
        ids=["double", "in place", "in place of what it is given"],
    )
    def test_operators_may_answer_in_another_dtype_and_work_in_place(self, operator: Callable[[Tensor], Tensor]):
        model = Diffusion((4,), preprocess="none", **SMALL)
        found, expected = (
            model.sample(5, seed=0, num_steps=4, guidance=Observation(one, VALUE, STD)) for one in (operator, linear)
        )
        torch.testing.assert_close(found, expected)

    @pytest.mark.parametrize("value", [1e3, 1e15])
    @pytest.mark.parametrize("std", [1e-15, 1e-6, 1.0])
    def test_arithmetic_holds_far_out(self, value: float, std: float):
        model = Diffusion((4,), preprocess="none", **SMALL)
        drawn = model.sample(3, seed=0, num_steps=4, guidance=Observation(lambda x: x[:, :1], [value * std], std))
        assert drawn.isfinite().all()

    @pytest.mark.parametrize(
        "beyond",
        [
            Observation(linear, VALUE, 1e-30),
            Observation(linear, [1e30, 0, 0], 1.0),
            Observation(lambda x: x[:, :1].mul(0).sqrt(), [1.0], 1.0),
            Inpainting([1e30, math.nan, 0.0, 0.0]),
        ],
        ids=["std", "value", "slope", "known value"],
    )
    def test_refuses_what_numbers_do_not_hold(self, beyond):
        with pytest.raises(DataError, match="what was observed cannot be reckoned with"):
            Diffusion((4,), **SMALL).sample(2, num_steps=3, guidance=beyond)

    @pytest.mark.parametrize(
        ("operator", "error", "message"),
        [
            (lambda x: x, ShapeError, r"an observation of shape \[4\]; value is of shape \[3\]"),
            (lambda x: x.sum(), ShapeError, r"must keep the rows of events \[1, 4\]; got \[\]"),
            (lambda x: x.tolist(), ShapeError, "must keep the rows of events"),
            (lambda x: linear(x).detach(), ConfigError, "slopes are known"),
            (lambda x: linear(x).round(), ConfigError, "slope 0 everywhere"),
            (
                lambda x: torch.ones(len(x), 3, requires_grad=True),
                ConfigError,
                "the operator must be made of what it is",
            ),
            (lambda x: SlopeOfNoSlope.apply(linear(x)), ConfigError, "the operator's slope must be made of what it is"),
            (lambda x: linear(x) + 1j, DataError, "what the operator gives are made of real numbers"),
            (lambda x: linear(x).sqrt(), DataError, r"gives NaN or infinity for an event .* draws, \["),
            (lambda x: linear(x) * torch.nan, DataError, "gives NaN or infinity for an event"),
        ],
    )
    def test_refuses_an_operator_that_does_not_fit(self, operator: Callable[..., Tensor], error: type, message: str):
        with pytest.raises(error, match=message):
            made(PRIOR).sample(2, guidance=Observation(operator, VALUE, 0.1))

    def test_refuses_rows_that_do_not_match_the_draws(self):
        with pytest.raises(ShapeError, match=r"2 rows of it do not match 5 draws"):
            made(PRIOR).sample(5, guidance=Observation(linear, torch.stack([VALUE, VALUE]), 0.1))

    def test_refuses_a_denoiser_without_a_slope(self):
        weight = torch.ones(1, requires_grad=True)
        for denoise in (lambda x, t: x.detach() / 2, lambda x, t: weight.expand(x.shape)):
            model = Diffusion.from_denoiser(denoise, (4,), "edm").double()
            with pytest.raises(ConfigError, match="the denoiser must be made of"):
                model.sample(2, guidance=Observation(linear, VALUE, 0.1))


class TestInpainting:
    @staticmethod
    def conditional(event: Tensor, known: Tensor):
        """Of the unknown values of a Gaussian, given the others."""
        inner, cross = PRIOR.covariance[known][:, known], PRIOR.covariance[~known][:, known]
        gain = cross @ torch.linalg.inv(inner)
        mean = PRIOR.mean[~known] + gain @ (event[known] - PRIOR.mean[known])
        return analytic.Gaussian(mean, PRIOR.covariance[~known][:, ~known] - gain @ cross.T)

    def test_draws_follow_the_conditional_whatever_is_missing(self):
        events = PRIOR.sample(3, torch.Generator().manual_seed(0))
        known = torch.tensor([[1, 0, 1, 0], [0, 1, 1, 1], [1, 0, 0, 0]]).bool()
        drawn = made(PRIOR).inpaint(events.masked_fill(~known, torch.nan), n=3000, seed=0, num_steps=40)
        assert drawn.shape == (3000, 3, 4)
        for row, mask in enumerate(known):
            assert torch.equal(drawn[:, row, mask], events[row, mask].expand(3000, -1))
            truth = self.conditional(events[row], mask)
            unknown = drawn[:, row, ~mask]
            off = (unknown.mean(0) - truth.mean) / truth.covariance.diagonal().sqrt()
            assert off.abs().amax() < 5 / math.sqrt(3000)
            assert divergence(unknown, truth) < 0.02

    def test_knows_more_than_one_way_in_which_it_may_have_been(self):
        """Where half of a ring's points have a given height, draws are of all of them."""
        ring = analytic.GaussianMixture.ring(width=0.2)
        drawn = made(ring).inpaint(torch.tensor([torch.nan, 0.4]), n=2000, seed=0, sampler="ddpm", num_steps=100)
        grid = torch.linspace(-3, 3, 3001, dtype=torch.float64)
        weights = torch.softmax(ring.log_prob(torch.stack([grid, torch.full_like(grid, 0.4)], -1)), 0)
        truth = grid[torch.multinomial(weights, 2000, replacement=True)][:, None]
        assert energy_distance(drawn[:, :1], truth) < 0.02
        assert min((drawn[:, 0] > 0).double().mean(), (drawn[:, 0] < 0).double().mean()) > 0.2

    def test_a_mask_says_what_is_known(self):
        events = PRIOR.sample(3, torch.Generator().manual_seed(0))
        known = torch.tensor([True, True, False, True])
        model = made(PRIOR)
        one = model.inpaint(events, known, seed=0)
        other = model.inpaint(events.masked_fill(~known, torch.nan), seed=0)
        assert torch.equal(one, other)
        assert torch.equal(one[0][:, known], events[:, known])
        assert not torch.equal(one[0], events)

    def test_where_nothing_is_known_draws_are_the_densitys(self):
        model = made(PRIOR)
        drawn = model.inpaint(torch.full((4,), torch.nan), n=(5, 2), seed=0)
        torch.testing.assert_close(drawn, model.sample((5, 2), seed=0))

    def test_where_everything_is_known_nothing_is_drawn(self):
        events = PRIOR.sample(3)
        assert torch.equal(made(PRIOR).inpaint(events, n=2, seed=0), events.expand(2, 3, 4))

    def test_known_values_are_in_data_units(self):
        """Of two lognormals, correlated in their logarithms."""
        pair = analytic.Gaussian([0.0, 0.0], [[1.0, 0.8], [0.8, 1.0]])
        model = made(pair, preprocess=["log", "standardize"])
        model.fit_preprocessing(pair.sample(100_000, torch.Generator().manual_seed(0)).exp())
        drawn = model.inpaint(torch.tensor([5.0, torch.nan]), n=4000, seed=0, num_steps=40)
        assert (drawn[:, 0] == 5).all()
        logs = drawn[:, 1].log()
        assert abs(logs.mean() - 0.8 * math.log(5)) < 0.06
        assert abs(logs.std() / 0.6 - 1) < 0.06
        with pytest.raises(DataError, match="log p is -inf there"):
            model.inpaint(torch.tensor([-5.0, torch.nan]))

    def test_of_values_on_a_grid_the_cell_is_known(self):
        model = Diffusion((3,), preprocess=["dequantize", "standardize"], **SMALL).eval()
        model.fit_preprocessing(torch.randint(0, 20, (400, 3)).float())
        given = torch.tensor([[3.0, torch.nan, 19.0], [torch.nan, 0.0, torch.nan]])
        drawn = model.inpaint(given, n=50, seed=0)
        known = ~given.isnan()
        assert torch.equal(drawn[:, known], given[known].expand(50, -1))
        assert torch.equal(drawn, drawn.round())
        # Before they are held, draws are in the cells that are known, or next to them.
        guided = model.sample((50, 2), seed=0, guidance=Inpainting(given))
        assert (guided - given)[:, known].abs().amax() <= 1

    def test_goes_with_a_context_one_for_all_or_one_a_row(self):
        def denoise(x: Tensor, t: Tensor, context: Tensor) -> Tensor:  # of variance 1 around the context
            return context + (x - context) / (1 + (80 * t[:, None]) ** 2)

        model = Diffusion.from_denoiser(denoise, (2,), "edm", context_shape=(1,)).double()
        given = torch.tensor([[1.0, torch.nan], [torch.nan, 2.0], [torch.nan, torch.nan]])
        for context in ([2.0], [[2.0], [-2.0], [3.0]]):
            drawn = model.inpaint(given, n=1000, context=context, seed=0)
            assert drawn.shape == (1000, 3, 2)
            expected = torch.where(given.isnan(), torch.tensor(context), given).double()
            torch.testing.assert_close(drawn.mean(0), expected, atol=0.15, rtol=0)

    def test_the_guidance_alone_holds_known_values_too(self):
        given = torch.tensor([0.3, torch.nan, torch.nan, -0.2], dtype=torch.float64)
        drawn = made(PRIOR).sample(20, seed=0, guidance=Inpainting(given))
        torch.testing.assert_close(drawn[:, [0, 3]], given[[0, 3]].expand(20, 2))

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_of_fields(self, dtype):
        model = Diffusion((1, 8, 8), network={"unet": {"channels": 8}}, seed=0).to(dtype).eval()
        given = np.random.default_rng(0).normal(size=(2, 1, 8, 8))
        given[:, :, 3:] = np.nan
        drawn = model.inpaint(given, n=2, seed=0, num_steps=4, guidance=1.0, iterations=3)
        assert drawn.shape == (2, 2, 1, 8, 8)
        assert drawn.isfinite().all()
        assert torch.equal(drawn[:, :, :, :3], torch.from_numpy(given).to(dtype)[:, :, :3].expand(2, 2, 1, 3, 8))
        assert model.inpaint(given[:0], n=2).shape == (2, 0, 1, 8, 8)
        assert model.inpaint(given, n=0).shape == (0, 2, 1, 8, 8)

    def test_refuses_what_does_not_fit(self):
        model, event = made(PRIOR), torch.zeros(4)
        with pytest.raises(ShapeError, match=r"known must broadcast to the shape of x, \[4\]; got \[3\]"):
            model.inpaint(event, torch.ones(3).bool())
        with pytest.raises(DataError, match="true or false for every value"):
            model.inpaint(event, 0.5 * torch.ones(4))
        with pytest.raises(DataError, match="a value that is known is NaN or infinite"):
            model.inpaint(event * torch.nan, torch.ones(4).bool())
        with pytest.raises(ShapeError, match=r"events of shape \[4\] expected"):
            model.inpaint(torch.zeros(2, 5))
        with pytest.raises(ShapeError, match=r"events of shape \[4\] expected"):
            model.sample(2, guidance=Inpainting(torch.zeros(2, 5)))
        with pytest.raises(ShapeError, match="2 rows of it do not match 5 draws"):
            model.sample(5, guidance=Inpainting(torch.zeros(2, 4)))
        with pytest.raises(ConfigError, match="iterations"):
            model.inpaint(event, iterations=0)
        with pytest.raises(ConfigError, match="no trajectory"):
            model.inpaint(event, return_trajectory=True)
        with pytest.raises(ConfigError, match="sampling from Diffusion takes"):
            model.inpaint(event, steps=3)
