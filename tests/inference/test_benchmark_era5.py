"""Baseline, prior and scores of the benchmark of temperature fields, where what they should be is known."""

from __future__ import annotations

import math

import pytest
import torch
from inference_era5 import Case, conditional, crps, within
from inference_era5_prior import (
    GAP_DAYS,
    NUM_SOURCES,
    PATCH_LENGTH,
    GaussianAndMore,
    GaussianDenoiser,
    blended,
    clock,
    taper,
    times_of,
)

import sciflow as sf

SHAPE = (5, 6)
SIZE = SHAPE[0] * SHAPE[1]


@pytest.fixture
def places() -> torch.Tensor:
    rows, columns = torch.meshgrid(torch.arange(SHAPE[0]), torch.arange(SHAPE[1]), indexing="ij")
    return 28.0 * torch.stack([rows, columns], -1).reshape(-1, 2).double()


def test_parts_are_days_apart():
    parts = {part: set(times_of(744, part).tolist()) for part in ("train", "validation", "test")}
    assert sum(map(len, parts.values())) == 744 - 24 * len(GAP_DAYS)
    assert parts["train"].isdisjoint(parts["validation"])
    for seen in parts["train"] | parts["validation"]:
        assert min(abs(seen - hour) for hour in parts["test"]) > 24


def test_the_baseline_is_the_conditional_of_the_joint_gaussian(places):
    """Of the inverse of the joint covariance of field and observations."""
    generator = torch.Generator().manual_seed(0)
    covariance = 4 * taper(places, 60.0) + 0.1 * torch.eye(SIZE).double()
    mean = torch.randn(SIZE, generator=generator).double()
    at, value, noise = torch.tensor([3, 17, 29]), torch.tensor([1.0, -2.0, 0.5]).double(), 0.3
    map_to = torch.eye(SIZE).double()[at]
    joint = torch.cat(
        [
            torch.cat([covariance, covariance @ map_to.T], 1),
            torch.cat([map_to @ covariance, map_to @ covariance @ map_to.T + noise**2 * torch.eye(3).double()], 1),
        ]
    )
    precision = torch.linalg.inv(joint)
    expected = torch.linalg.inv(precision[:SIZE, :SIZE])
    centre = mean - expected @ precision[:SIZE, SIZE:] @ (value - mean[at])
    found_mean, found = conditional(mean, covariance, at, value, noise)
    torch.testing.assert_close(found_mean, centre)
    torch.testing.assert_close(found, expected)


class TestPrior:
    def test_blended_fields_keep_variance_and_lose_far_covariance(self, places):
        """Of fields that are the same everywhere, covariances are the taper that the blending amounts to."""
        generator = torch.Generator().manual_seed(0)
        heights = torch.randn(240, 1, 1, generator=generator)
        hour = torch.arange(240) % 24
        heights = heights - torch.stack([heights[hour == h].mean(0) for h in range(24)])[hour]
        far = places * 20
        made, hours = blended(heights.expand(240, *SHAPE), hour, far, 4000, generator)
        assert made.shape == (4000, *SHAPE)
        assert hours.min() == 0
        assert hours.max() == 23
        covariance = made.flatten(1).T.double().cov() / heights.double().var()
        torch.testing.assert_close(covariance.diagonal(), torch.ones(SIZE).double(), atol=0.12, rtol=0)
        assert covariance[0, -1].abs() < 1.2 / NUM_SOURCES + 0.1
        near, _ = blended(heights.expand(240, *SHAPE), hour, places * PATCH_LENGTH / 1e6, 200, generator)
        assert near.flatten(1).std(1).max() < 0.05

    def test_the_denoiser_is_the_gaussians(self, places):
        covariance = taper(places, 80.0) + 0.05 * torch.eye(SIZE).double()
        network = GaussianDenoiser(covariance, SIZE - 1)
        torch.testing.assert_close(network.covariance(), covariance, atol=1e-5, rtol=1e-5)
        model = sf.diffusion.Diffusion(SHAPE, network=network, preprocess="none").eval()
        x = torch.randn(7, *SHAPE, generator=torch.Generator().manual_seed(0))
        for sigma in (0.05, 0.7, 20.0):
            t = model.schedule.time(torch.tensor([sigma]).double()).expand(7)
            found = model.denoiser(x, t)
            noisy = covariance + sigma**2 * torch.eye(SIZE).double()
            expected = (x.flatten(1).double() @ torch.linalg.solve(noisy, covariance)).reshape(x.shape)
            torch.testing.assert_close(found.double(), expected, atol=2e-3, rtol=1e-3)

    def test_it_begins_as_the_gaussian_and_can_leave_it(self, places):
        covariance = taper(places, 80.0)
        plain = GaussianDenoiser(covariance, 12)
        more = GaussianAndMore(covariance, 12, 5, 4, (16, 16), 0.0).eval()
        x, level = torch.randn(3, *SHAPE), torch.tensor([-1.0, 0.0, 0.5])
        context = clock(torch.tensor([0, 6, 13]))[:, 1:].float()
        torch.testing.assert_close(more(x, level, context), plain(x, level))
        torch.nn.init.ones_(more.more.last.weight)
        torch.nn.init.ones_(more.more.modulation.weight)
        assert not torch.allclose(more(x, level, context), plain(x, level))


def test_scores_are_those_of_a_right_forecast():
    generator = torch.Generator().manual_seed(0)
    drawn, truth = torch.randn(39, 50_000, generator=generator), torch.randn(50_000, generator=generator)
    for level in (0.5, 0.8, 0.95):
        assert within(drawn, truth, level) == pytest.approx(level, abs=4 * 0.5 / 50_000**0.5)
    # E|X - Y| / 2, of two normals.
    assert crps(drawn, truth).mean().item() == pytest.approx(1 / math.sqrt(math.pi), abs=0.01)
    case = Case(0, torch.zeros(4), torch.tensor([1, 3]), torch.zeros(2))
    assert case.hidden.tolist() == [True, False, True, False]
