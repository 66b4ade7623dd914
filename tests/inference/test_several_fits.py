"""Several fits of a posterior: what is kept of them, here and on Ray, and what becomes of those that fail."""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sciflow.errors import ConfigError, DataError
from sciflow.flows import MixtureOfFlows, VariationalFlow
from sciflow.inference import Evidence, LogDensity, Parameters, Posterior, fit_posterior
from sciflow.inference.variational.mixing import mixed, weights_by_importance
from sciflow.inference.variational.several_fits import best_of, disagreement

QUICK: dict[str, Any] = {
    "event_shape": 2,
    "family": "gaussian",
    "num_particles": 128,
    "max_steps": 10,
    "num_draws": 1000,
    "progress": False,
    "num_fits": 2,
}


def density() -> Callable[[Tensor], Tensor]:
    """A normal that workers can be sent: they cannot import this file."""

    def log_density(x: Tensor) -> Tensor:
        return -0.5 * ((x - 2) / 3).square().sum(-1)

    return log_density


TRUE_LOG_Z = math.log(2 * math.pi * 9)


def two_modes(x: Tensor) -> Tensor:
    """Three tenths about -10, seven about 10, times e^2."""
    heights = [math.log(w) - 0.5 * (x[..., 0] - m) ** 2 for w, m in ((0.3, -10), (0.7, 10))]
    return 2 + torch.logaddexp(*heights) - 0.5 * math.log(2 * math.pi)


def gaussian(mean: float, scale: float = 1.0) -> VariationalFlow:
    flow = VariationalFlow((1,), num_transforms=0, marginals=False, preprocess="none").double()
    with torch.no_grad():
        flow.base.raw_means.fill_(mean / 10)
        flow.base.raw_lower.fill_(math.log(scale))
    return flow


def posterior(flow: Any, log_z: float = 0.0, elbo: float = 0.0, k_hat: float = 0.0) -> Posterior:
    """A fit by hand."""
    parameters = Parameters({"x": {"real": [1]}})
    pool, weights = torch.zeros(1, 1), torch.zeros(1)
    evidence = Evidence(log_z, 0.01, "importance")
    return Posterior(flow, parameters, False, elbo, 0.0, evidence, 1.0, k_hat, pool, weights)


class TestMixture:
    def test_fits_in_one_mode_share_its_mass(self) -> None:
        """Three of four in the mode of seven tenths, one of them a little off."""
        fits = [posterior(gaussian(mean, scale)) for mean, scale in ((10, 1), (10, 1.0), (10.3, 1.2), (-10, 1.1))]
        found, of_each = mixed(fits, LogDensity(two_modes, event_shape=1), 4000, seed=0)
        assert sum(of_each[:3]) == pytest.approx(0.7, abs=0.02)
        assert of_each[3] == pytest.approx(0.3, abs=0.02)
        assert float(found.log_z) == pytest.approx(2, abs=0.02)
        assert found.k_hat < 0.7
        assert found.ess > 0.9

    def test_weights_are_those_that_are_most_likely(self) -> None:
        """Of one mode and three Gaussians, which overlap, against a fit of the weights by steps."""
        target = LogDensity(lambda x: -0.5 * (x[..., 0] / 1.5) ** 2, event_shape=1)
        mixture = MixtureOfFlows.of([gaussian(-1.5), gaussian(0), gaussian(1.5)], torch.zeros(3))
        found = weights_by_importance(mixture, target, torch.Generator().manual_seed(0)).exp()
        grid = torch.linspace(-9, 9, 2001, dtype=torch.float64)[:, None]
        each, weights = mixture.log_prob_of_each(grid).detach(), torch.softmax(target(grid), 0)
        logits = torch.zeros(3, dtype=torch.float64, requires_grad=True)
        optimiser = torch.optim.LBFGS([logits], max_iter=100)

        def divergence() -> Tensor:
            optimiser.zero_grad()
            loss = -(weights * torch.logsumexp(each + logits.log_softmax(0), 1)).sum()
            loss.backward()
            return loss

        optimiser.step(divergence)
        torch.testing.assert_close(found.double(), logits.softmax(0).detach(), atol=0.03, rtol=0)

    def test_mixtures_are_taken_apart(self) -> None:
        both = MixtureOfFlows.of([gaussian(10), gaussian(-10)], torch.tensor([0.5, 0.5]).log())
        fits = [posterior(both), posterior(gaussian(-10))]
        found, of_each = mixed(fits, LogDensity(two_modes, event_shape=1), 2000, seed=0)
        assert isinstance(found.density, MixtureOfFlows)
        assert all(isinstance(flow, VariationalFlow) for flow in found.density.flows)
        assert 0.68 < of_each[0] <= 1
        assert float(found.log_z) == pytest.approx(2, abs=0.02)

    def test_a_fit_that_is_nowhere_is_left_out(self) -> None:
        fits = [posterior(gaussian(10)), posterior(gaussian(-10)), posterior(gaussian(500))]
        found, of_each = mixed(fits, LogDensity(two_modes, event_shape=1), 2000, seed=0)
        assert of_each[2] < 1e-4
        assert len(found.density.flows) == 2
        assert float(found.log_z) == pytest.approx(2, abs=0.02)


class TestRules:
    def test_the_best_has_the_highest_elbo_of_those_of_use(self) -> None:
        flow = gaussian(0)
        fits = [posterior(flow, elbo=elbo, k_hat=k_hat) for elbo, k_hat in ((1, 0.3), (2, 0.6), (3, 0.9))]
        assert best_of(fits) == 1
        assert best_of([fits[2], posterior(flow, elbo=0, k_hat=0.8)]) == 1

    def test_fits_that_miss_a_mode_disagree(self) -> None:
        flow = gaussian(0)
        assert disagreement([posterior(flow, log_z=2.0), posterior(flow, log_z=2.03)]) == []
        (note,) = disagreement([posterior(flow, log_z=2.0), posterior(flow, log_z=2 + math.log(0.7))])
        assert "such as a mode" in note


class TestHere:
    def test_a_mixture_of_all_is_kept(self, tmp_path: Path) -> None:
        found = fit_posterior(density(), observed={"y": 1.0}, **QUICK)
        assert isinstance(found.density, MixtureOfFlows)
        assert abs(float(found.log_z) - TRUE_LOG_Z) < 0.02 + 3 * found.log_z.standard_error
        assert len(found.history["fits"]) == 2
        assert sum(found.history["weights"]) == pytest.approx(1)
        assert found.observed == {"y": 1.0}
        back = Posterior.load(found.save(tmp_path / "posterior"))
        assert torch.equal(back.log_prob(torch.zeros(3, 2)), found.log_prob(torch.zeros(3, 2)))

    def test_the_best_is_kept(self) -> None:
        found = fit_posterior(density(), keep="best", **QUICK)
        assert isinstance(found.density, VariationalFlow)
        assert found.elbo == max(fit["elbo"] for fit in found.history["fits"])
        assert "of 2." in found.notes[-1]

    def test_fits_have_seeds_of_their_own(self) -> None:
        fits = fit_posterior(density(), keep="best", **QUICK).history["fits"]
        assert fits[0]["log_z"] != fits[1]["log_z"]

    def test_one_that_fails_is_noted_and_the_others_go_on(self) -> None:
        calls = {"number": 0}

        def fails_at_first(x: Tensor) -> Tensor:
            calls["number"] += 1
            if calls["number"] == 20:
                raise OSError("the disk is gone")
            return -0.5 * x.square().sum(-1)

        found = fit_posterior(fails_at_first, **QUICK | {"num_fits": 3})
        assert len(found.history["fits"]) == 2
        assert any(note.startswith("Fit 1 of 3 failed: ") and "the disk is gone" in note for note in found.notes)
        assert "the disk is gone" in found.verdict

    def test_all_that_fail_are_an_error(self) -> None:
        with pytest.raises(DataError, match=r"all 2 fits failed; the first of them: .*improper"):
            fit_posterior(lambda x: 0 * x.sum(-1), **QUICK)

    @pytest.mark.parametrize(
        ("wrong", "message"),
        [
            ({"num_fits": 0}, "num_fits must be 1 to"),
            ({"keep": "all"}, "keep: got 'all'"),
            ({"num_workers": 0}, "num_workers must be 1 to"),
            ({"family": "continuous"}, "take keep='best'"),
            ({"family": "nfs"}, "did you mean nsf"),
        ],
        ids=str,
    )
    def test_an_argument_out_of_range(self, wrong: dict[str, Any], message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            fit_posterior(density(), **QUICK | wrong)


@pytest.mark.ray
class TestOnRay:
    def test_workers_find_the_same(self, ray_cluster: None) -> None:
        here = fit_posterior(density(), **QUICK)
        there = fit_posterior(density(), num_workers=2, **QUICK)
        assert torch.equal(here.pool, there.pool)
        assert repr(here) == repr(there)
        assert here.history == there.history

    def test_a_function_that_cannot_be_sent(self, ray_cluster: None) -> None:
        lock = threading.Lock()

        def locked(x: Tensor) -> Tensor:
            with lock:
                return -0.5 * x.square().sum(-1)

        with pytest.raises(
            ConfigError, match=r"log_density: cannot be sent to Ray's workers: .*lock.*leave num_workers"
        ):
            fit_posterior(locked, num_workers=2, **QUICK)

    def test_a_fit_that_fails_on_a_worker_is_noted(self, ray_cluster: None, tmp_path: Path) -> None:
        taken, driver, calls = str(tmp_path / "taken"), os.getpid(), {"number": 0}

        def fails_once(x: Tensor) -> Tensor:
            calls["number"] += 1
            if os.getpid() != driver and calls["number"] >= 20 and not os.path.exists(taken):
                os.mkdir(taken)
                raise OSError("no such host")
            return -0.5 * x.square().sum(-1)

        found = fit_posterior(fails_once, num_workers=1, **QUICK)
        assert len(found.history["fits"]) == 1
        assert any("failed: " in note and "no such host" in note for note in found.notes)
