"""Pareto-smoothed importance sampling and log Z, against tails and constants that are known."""

from __future__ import annotations

import math

import pytest
import torch

from sciflow.inference.evidence import bridge, effective_share, importance
from sciflow.inference.psis import pareto_smoothed, verdict_on


def pareto(k: float, n: int = 40_000, seed: int = 0) -> torch.Tensor:
    """Logarithms of weights whose tail has the shape k."""
    return -k * torch.rand(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).log()


@pytest.mark.parametrize("k", [0.2, 0.5, 0.7, 1.0])
def test_k_hat_is_the_shape_of_the_tail(k: float) -> None:
    found = torch.tensor([pareto_smoothed(pareto(k, seed=seed))[1] for seed in range(10)])
    assert abs(found.mean() - k) < 0.06


def test_a_student_t_under_a_normal_has_k_of_one_half_or_more() -> None:
    """A normal with half the standard deviation under a wide one has bounded weights; the other way k is known."""
    x = torch.randn(40_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    wide = -0.5 * (x / 2) ** 2 + 0.5 * x**2  # target of sd 2, draws of sd 1: k = 1 - 1 / 4
    narrow = -0.5 * (2 * x) ** 2 + 0.5 * x**2
    assert 0.55 < pareto_smoothed(wide)[1] < 0.95
    assert pareto_smoothed(narrow)[1] < 0.2


def test_smoothing_makes_sums_of_heavy_weights_steadier() -> None:
    """Means of sd-2 draws from sd-1 draws: over repetitions, smoothed weights err less."""
    plain, smooth = [], []
    for seed in range(60):
        x = torch.randn(1000, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        log_w = -0.5 * (x / 2) ** 2 + 0.5 * x**2
        plain.append(float((torch.softmax(log_w, 0) * x.square()).sum()))
        smooth.append(float((pareto_smoothed(log_w)[0].exp() * x.square()).sum()))
    assert torch.tensor(smooth).std() < torch.tensor(plain).std()


def test_weights_that_are_all_the_same_are_the_best() -> None:
    weights, k_hat = pareto_smoothed(torch.zeros(1000))
    assert k_hat == -math.inf
    assert verdict_on(k_hat) == "good"
    assert torch.allclose(weights.exp(), torch.full((1000,), 1e-3, dtype=torch.float64))


def test_a_handful_of_weights_is_poor() -> None:
    log_w = torch.full((1000,), -math.inf)
    log_w[:3] = 0.0
    assert pareto_smoothed(log_w)[1] == math.inf


def test_smoothed_weights_sum_to_one_whatever_is_outside() -> None:
    log_w = pareto(0.6)
    log_w[::3] = -math.inf
    log_w[1] = math.nan
    weights, _ = pareto_smoothed(log_w)
    assert weights.exp().sum() == pytest.approx(1.0)


def test_errors_of_log_z_hold_the_truth() -> None:
    """Over 100 repetitions, two standard errors hold it about 95 times."""
    held = 0
    for seed in range(100):
        x = torch.randn(2000, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        found = importance(3.0 + 0.5 * x - 0.125)  # q is N(0, 1), p is e^3 N(0.5, 1)
        held += abs(found.value - 3) < 2 * found.standard_error
    assert held >= 88


def test_errors_of_log_z_hold_the_truth_where_weights_have_no_variance() -> None:
    """p of sd 1.8 under q of sd 1, of which k is 0.69: what the spread says holds it too seldom."""
    held, by_spread = 0, 0
    for seed in range(100):
        x = torch.randn(4000, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        log_w = -0.5 * (x / 1.8) ** 2 + 0.5 * x**2 - math.log(1.8)
        found, plain = importance(log_w, k_hat=pareto_smoothed(log_w)[1]), importance(log_w)
        held += abs(found.value) < 2 * found.standard_error
        by_spread += abs(plain.value) < 2 * plain.standard_error
    assert held >= 88
    assert held > by_spread


def test_a_bridge_is_right_where_the_tails_of_q_are_too_light() -> None:
    """q of sd 0.5 under p of sd 1: weights have no variance, the bridge has."""
    held = 0
    for seed in range(60):
        generator = torch.Generator().manual_seed(seed)
        q = 0.5 * torch.randn(2000, generator=generator, dtype=torch.float64)
        p = torch.randn(2000, generator=generator, dtype=torch.float64)

        def log_w(x: torch.Tensor) -> torch.Tensor:
            return 3 - 0.5 * x**2 + 0.5 * (x / 0.5) ** 2 + math.log(0.5)

        found = bridge(log_w(q), log_w(p))
        held += abs(found.value - 3) < 2 * found.standard_error
    assert held >= 51


def test_the_effective_share_is_that_of_equal_weights() -> None:
    assert effective_share(torch.tensor([0.0] * 25 + [-math.inf] * 75)) == pytest.approx(0.25)
