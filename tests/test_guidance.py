"""Guidance of diffusion models: where the answer is known, they give it."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from analytic import Gaussian
from torch import Tensor

import sciflow as sf
from sciflow.diffusion import Autoguidance, ClassifierFree, ClassifierGuidance, Diffusion, Guidance
from sciflow.diffusion import diffusion as diffusion_module
from sciflow.diffusion import rows as rows_module
from sciflow.errors import ConfigError, DataError, ShapeError

guidance = diffusion_module.as_guidance

PRIOR = Gaussian([1.0, -1.0, 0.5], [[1.0, 0.6, 0.0], [0.6, 0.8, -0.3], [0.0, -0.3, 0.5]])
TOWARDS = torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64)  # what a class is about: p(c | x) = exp(-(a.x - b)^2 / 2)
SCHEDULES = ("vp", "cosine", "edm", "flow")


def made(distribution: Gaussian, schedule: str = "edm", **arguments) -> Diffusion:
    """The diffusion model of a known distribution."""
    known = sf.diffusion.schedule(schedule)

    def denoise(x: Tensor, t: Tensor) -> Tensor:
        return distribution.denoise(x, t, known)

    return Diffusion.from_denoiser(denoise, distribution.mean.shape, known, **arguments).double()


def given_class(prior: Gaussian, at: float = 3.0) -> Gaussian:
    """Bayes' rule for the class."""
    precision = torch.linalg.inv(prior.covariance)
    covariance = torch.linalg.inv(precision + TOWARDS[:, None] * TOWARDS)
    return Gaussian(covariance @ (precision @ prior.mean + at * TOWARDS), covariance)


def classifier(schedule: str, at: float = 3.0) -> ClassifierGuidance:
    """What is known of the class from a noisy event, to a constant."""
    known = sf.diffusion.schedule(schedule)

    def log_prob(x: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = (level[:, None].to(x) for level in known(t))
        off = PRIOR.denoise(x, t, known) @ TOWARDS - at
        noise = sigma[..., None] ** 2 * torch.eye(3).double()
        noisy = alpha[..., None] ** 2 * PRIOR.covariance + noise
        left = PRIOR.covariance - alpha[..., None] ** 2 * PRIOR.covariance @ torch.linalg.solve(noisy, PRIOR.covariance)
        return -(off**2) / (1 + left @ TOWARDS @ TOWARDS) / 2

    return ClassifierGuidance(log_prob)


def noisy(schedule: str, n: int = 5) -> tuple[Tensor, Tensor]:
    """Events at times of all levels of noise."""
    t = torch.linspace(0.02, 0.98, n, dtype=torch.float64)
    alpha, sigma = sf.diffusion.schedule(schedule)(t)
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(n, 3, generator=generator, dtype=torch.float64)
    return alpha[:, None] * PRIOR.sample(n, generator) + sigma[:, None] * noise, t


class TestClassifierGuidance:
    @pytest.mark.parametrize("schedule", SCHEDULES)
    def test_is_bayes_rule(self, schedule):
        x, t = noisy(schedule)
        found = classifier(schedule).guided(made(PRIOR, schedule), None)(x, t)
        torch.testing.assert_close(found, given_class(PRIOR).denoise(x, t, sf.diffusion.schedule(schedule)))

    def test_draws_follow_the_conditional(self):
        drawn = made(PRIOR).sample(4000, seed=0, sampler="heun", num_steps=50, guidance=classifier("edm"))
        truth = given_class(PRIOR)
        deviations = truth.covariance.diagonal().sqrt()
        off = (drawn.mean(0) - truth.mean) / deviations
        assert off.abs().amax() < 5 / math.sqrt(4000)
        error = (drawn.T.cov() - truth.covariance) / (deviations[:, None] * deviations)
        assert error.abs().amax() < 0.1  # four standard errors of a variance

    def test_scales(self):
        x, t = noisy("edm")
        model, log_prob = made(PRIOR), classifier("edm").log_prob
        without = model.denoiser(x, t)
        once, twice = (ClassifierGuidance(log_prob, scale).guided(model, None)(x, t) for scale in (1, 2.0))
        torch.testing.assert_close(twice - without, 2 * (once - without))
        torch.testing.assert_close(ClassifierGuidance(log_prob, 0).guided(model, None)(x, t), without)

    def test_has_a_derivative_for_those_who_ask(self):
        x, t = noisy("edm")
        denoise = classifier("edm").guided(made(PRIOR), None)
        truth, known = given_class(PRIOR), sf.diffusion.schedule("edm")
        found = torch.autograd.functional.jacobian(lambda x: denoise(x, t), x)
        torch.testing.assert_close(found, torch.autograd.functional.jacobian(lambda x: truth.denoise(x, t, known), x))

    def test_may_work_in_place(self):
        x, t = noisy("edm")
        before = x.clone(), t.clone()
        log_prob = classifier("edm").log_prob

        def in_place(x: Tensor, t: Tensor) -> Tensor:
            found = log_prob(x.mul_(2).div_(2), t)
            t.zero_()
            return found

        found = ClassifierGuidance(in_place).guided(made(PRIOR), None)(x, t)
        torch.testing.assert_close(found, classifier("edm").guided(made(PRIOR), None)(x, t))
        torch.testing.assert_close((x, t), before, rtol=0, atol=0)

    def test_refuses_what_is_no_classifier(self):
        model, weight = made(PRIOR), torch.ones(1, requires_grad=True)
        with pytest.raises(ConfigError, match="log_prob must be a function"):
            ClassifierGuidance("cats")
        with pytest.raises(ShapeError, match=r"nats of shape \[4\]; got \[4, 3\]"):
            model.sample(4, guidance=ClassifierGuidance(lambda x, t: x))
        with pytest.raises(ConfigError, match="slopes are known"):
            model.sample(4, guidance=ClassifierGuidance(lambda x, t: x.detach().sum(1)))
        with pytest.raises(ConfigError, match="log_prob must be made of what it is given"):
            model.sample(4, guidance=ClassifierGuidance(lambda x, t: weight.expand(len(x))))
        with pytest.raises(DataError, match="has a slope that is NaN or infinite"):
            model.sample(4, guidance=ClassifierGuidance(lambda x, t: x.sum(1).sqrt()))


class TestClassifierFree:
    @staticmethod
    def model(**arguments) -> Diffusion:
        """Of normal events whose mean is the context, and is of variance 2 where it is not given."""
        known = sf.diffusion.schedule("vp")
        with_context = Gaussian(torch.zeros(3), torch.eye(3))
        without = Gaussian(torch.zeros(3), 3 * torch.eye(3))

        def denoise(x: Tensor, t: Tensor, context: Tensor) -> Tensor:
            alpha = known(t)[0][:, None].to(x)
            c = context.nan_to_num()
            conditional = c + with_context.denoise(x - alpha * c, t, known)
            return torch.where(context.isnan(), without.denoise(x, t, known), conditional)

        return Diffusion.from_denoiser(denoise, (3,), known, context_shape=(3,), data_std=1.7, **arguments).double()

    def test_at_1_is_the_conditional_and_at_0_the_unconditional(self):
        model, (x, t) = self.model(), noisy("vp")
        context = torch.full((5, 3), 2.0, dtype=torch.float64)
        conditional, unconditional = (ClassifierFree(scale).guided(model, context)(x, t) for scale in (1, 0))
        torch.testing.assert_close(conditional, model.denoiser(x, t, context), rtol=0, atol=0)
        torch.testing.assert_close(unconditional, model.denoiser(x, t, context * torch.nan), rtol=0, atol=0)

    @pytest.mark.parametrize("scale", [-1.0, 0.5, 3.0])
    def test_goes_on_in_the_direction_of_the_context(self, scale):
        model, (x, t) = self.model(), noisy("vp")
        context = torch.full((5, 3), 2.0, dtype=torch.float64)
        given, without = model.denoiser(x, t, context), model.denoiser(x, t, context * torch.nan)
        found = ClassifierFree(scale).guided(model, context)(x, t)
        torch.testing.assert_close(found, without + scale * (given - without))

    def test_draws_follow_what_was_asked_for(self):
        model, context = self.model(), torch.tensor([2.0, 0.0, -2.0])
        for scale, mean, std in ((1, context.double(), 1.0), (0, torch.zeros(3).double(), math.sqrt(3))):
            drawn = model.sample(2000, context, seed=0, guidance=scale)
            assert (drawn.mean(0) - mean).abs().amax() < 5 * std / math.sqrt(2000)
            assert (drawn.std(0) / std - 1).abs().amax() < 0.08
        stronger = model.sample(2000, context, seed=0, guidance=3)
        assert stronger[:, 0].mean() > 2.2
        assert stronger.std(0).amax() < 1

    def test_leaves_a_density_without_a_context_as_it_is(self):
        model, (x, t) = made(PRIOR), noisy("edm")
        torch.testing.assert_close(ClassifierFree(3.0).guided(model, None)(x, t), model.denoiser(x, t), rtol=0, atol=0)

    def test_refuses_a_model_that_was_never_trained_without_a_context(self):
        model = Diffusion((3,), (1,), context_dropout=0, network={"mlp": {"hidden_features": (8,)}})
        assert model.sample(2, torch.zeros(1), num_steps=2).shape == (2, 3)
        with pytest.raises(ConfigError, match="context_dropout 0"):
            model.sample(2, torch.zeros(1), num_steps=2, guidance=2.0)


class TestAutoguidance:
    @pytest.mark.parametrize("schedule", SCHEDULES)
    def test_goes_away_from_the_weaker_one(self, schedule):
        model, (x, t) = made(PRIOR), noisy("edm", 5)
        wide = Gaussian(PRIOR.mean, 2 * PRIOR.covariance)
        mean, weak = (known.denoise(x, t, sf.diffusion.schedule("edm")) for known in (PRIOR, wide))
        found = Autoguidance(made(wide, schedule), 1.5).guided(model, None)(x, t)
        torch.testing.assert_close(found, weak + 1.5 * (mean - weak))

    def test_at_1_leaves_the_denoiser_as_it_is(self):
        model, (x, t) = made(PRIOR), noisy("edm")
        weaker = made(Gaussian(PRIOR.mean, 2 * PRIOR.covariance))
        torch.testing.assert_close(Autoguidance(weaker, 1.0).guided(model, None)(x, t), model.denoiser(x, t))

    def test_refuses_another_kind_of_density(self):
        small = {"network": {"mlp": {"hidden_features": (8,)}}, "seed": 0}
        model = Diffusion((3,), **small)
        with pytest.raises(ConfigError, match="must be a diffusion model"):
            Autoguidance(sf.flows.NSF((3,)))
        for weaker in (Diffusion((2,), **small), Diffusion((3,), (1,), **small)):
            with pytest.raises(ConfigError, match="same events and contexts"):
                model.sample(1, num_steps=2, guidance=Autoguidance(weaker))
        fitted = Diffusion((3,), **small)
        fitted.fit_preprocessing(5 * torch.randn(50, 3))
        for weaker in (fitted, Diffusion((3,), preprocess="log1p", **small)):
            with pytest.raises(ConfigError, match="fitted on the same data"):
                model.sample(1, num_steps=2, guidance=Autoguidance(weaker))

    def test_refuses_another_dtype(self):
        model, weaker = (Diffusion((3,), network={"mlp": {"hidden_features": (8,)}}, seed=0) for _ in range(2))
        with pytest.raises(ConfigError, match=r"is of torch\.float64 on cpu, this one of torch\.float32 on cpu"):
            model.sample(1, num_steps=2, guidance=Autoguidance(weaker.double()))

    def test_refuses_contexts_in_other_units(self):
        small = {"network": {"mlp": {"hidden_features": (8,)}}, "seed": 0}
        model, weaker = (Diffusion((3,), (1,), **small) for _ in range(2))
        x = torch.randn(50, 3)
        model.fit_preprocessing(x, torch.randn(50, 1))
        weaker.fit_preprocessing(x, 9 * torch.randn(50, 1))
        with pytest.raises(ConfigError, match="fitted on the same data"):
            model.sample(1, torch.zeros(1), num_steps=2, guidance=Autoguidance(weaker))


class TestGuidance:
    def test_is_a_number_or_an_object(self):
        for number in (2, np.float32(2), np.int64(2)):
            assert repr(guidance(number)) == repr(ClassifierFree(number)) == "ClassifierFree(scale=2.0)"
        assert guidance(ClassifierFree(0.5)).scale == 0.5
        for wrong in (None, "strong", True, [2.0]):
            with pytest.raises(ConfigError, match="a number such as 2"):
                guidance(wrong)
        for wrong in (math.nan, math.inf, 1e7):
            with pytest.raises(ConfigError, match="the scale must be a number"):
                guidance(wrong)
        with pytest.raises(ConfigError, match="the scale must be a number"):
            Autoguidance(made(PRIOR), "2")

    def test_may_be_ones_own(self):
        class Shifted(Guidance):
            def guided(self, density, context):
                return lambda x, t: density.denoiser(x, t, context) + 1

        x, t = noisy("edm")
        model = made(PRIOR)
        torch.testing.assert_close(Shifted().guided(model, None)(x, t), model.denoiser(x, t) + 1)
        assert model.sample(3, guidance=Shifted(), num_steps=3).shape == (3, 3)

    def test_knows_which_draws_it_guides(self, monkeypatch):
        class Spy(Guidance):
            seen: tuple = ()

            def part(self, rows, total):
                Spy.seen += ((*rows, total),)
                return self

            def guided(self, density, context):
                return density.denoiser

        monkeypatch.setattr(rows_module, "_VALUES_AT_A_TIME", 6)
        made(PRIOR).sample(5, guidance=Spy(), num_steps=2)
        assert Spy.seen == ((0, 1, 5), (2, 3, 5), (4, 5))
