"""Diffusion models whose densities are known: the bound against the truth, and denoisers that users bring."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from scipy.stats import kstest
from torch import Tensor

import sciflow as sf
from sciflow.diffusion import Diffusion
from sciflow.diffusion.schedules import schedule as as_schedule
from sciflow.errors import ConfigError, DataError, ModelFileError, ShapeError
from sciflow.row_noise import RowNoise

SMALL: dict[str, Any] = {"network": {"mlp": {"hidden_features": (32, 32)}}, "seed": 0}
SCHEDULES = ("vp", "cosine", "sub-vp", "ve", "edm", "flow")


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


# The bound against what is known. ------------------------------------------------------------------------------------


def mixture(name: str, std: float = 0.4, off: float = 0.0) -> tuple[Diffusion, Callable[[Tensor], Tensor], Tensor]:
    """Three Gaussians in the plane with the exact denoiser (or one that is ``off``), their log p, and draws."""
    one = as_schedule(name)
    means = torch.tensor([[1.0, 0.5], [-1.2, 0.8], [0.2, -1.1]], dtype=torch.float64)

    def denoise(x: Tensor, t: Tensor, context: Tensor | None = None) -> Tensor:
        alpha, sigma = (part[:, None] for part in one(t.double()))
        variance = (alpha * std).square() + sigma.square()
        away = x[:, None] - alpha[:, :, None] * means
        nearest = torch.softmax(-0.5 * away.square().sum(-1) / variance, 1)
        each = means + (alpha * std**2 / variance)[:, :, None] * away
        mean = (nearest[..., None] * each).sum(1)
        # An error that is a share of the best error there can be.
        return mean + off * sigma * std / variance.sqrt() * torch.tanh(x)

    def log_prob(x: Tensor) -> Tensor:
        away = (x[:, None] - means).square().sum(-1) / std**2
        return torch.logsumexp(-0.5 * away, 1) - math.log(3 * 2 * math.pi * std**2)

    generator = torch.Generator().manual_seed(0)
    which = torch.randint(3, (400,), generator=generator)
    x = means[which] + std * torch.randn(400, 2, dtype=torch.float64, generator=generator)
    spread = float((means.square().mean() + std**2).sqrt())
    return Diffusion.from_denoiser(denoise, (2,), one, data_std=spread).double(), log_prob, x


@pytest.mark.parametrize("name", SCHEDULES)
def test_bound_is_log_p_where_the_denoiser_is_exact(name: str) -> None:
    density, log_prob, x = mixture(name)
    found = density.likelihood(x, num_draws=512, seed=1)
    off = (found.log_prob - log_prob(x)) / found.error
    # Two errors, of which each is the spread of four numbers, hold the truth for 86 % of rows.
    assert (off.abs() < 2).double().mean() > 0.8
    assert found.error.median() < 0.5


def test_bound_is_below_log_p_and_the_gap_closes() -> None:
    gaps = []
    for off in (0.6, 0.3, 0.0):
        density, log_prob, x = mixture("vp", off=off)
        found = torch.stack([density.likelihood(x, num_draws=128, seed=seed).log_prob for seed in range(8)])
        by_seed = (log_prob(x) - found).mean(1)
        gaps.append((by_seed.mean().item(), by_seed.std().item() / 8**0.5))
    (wide, _), (narrow, error), (none, rounding) = gaps
    assert wide > 2 * narrow > 0
    assert narrow > 4 * error
    assert abs(none) < 4 * rounding


def test_errors_of_rows_average_out() -> None:
    density, log_prob, x = mixture("vp")
    for seed in range(4):
        found = density.likelihood(x, seed=seed)
        off = found.log_prob - log_prob(x)
        assert off.mean().abs() < 4 * off.std() / len(x) ** 0.5
        assert off.mean().abs() < 0.3 * found.error.mean()


def test_the_noise_of_a_row_follows_from_the_row_and_the_seed() -> None:
    density = Diffusion((2,), **SMALL).double().eval()
    x = torch.randn(50, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    together = density.likelihood(x, num_draws=16).log_prob
    alone = torch.cat([density.likelihood(row[None], num_draws=16).log_prob for row in x])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-9)
    torch.testing.assert_close(density.likelihood(x.flip(0), num_draws=16).log_prob.flip(0), together)
    assert (density.likelihood(x, num_draws=16, seed=1).log_prob - together).abs().min() > 0
    torch.testing.assert_close(density.likelihood(x + 1e-12, num_draws=16).log_prob, together, rtol=0, atol=1e-6)


def test_noise_of_rows_is_normal_and_independent() -> None:
    y = torch.randn(4000, 3, generator=torch.Generator().manual_seed(0))
    one, other, of_seed = RowNoise(y, 0), RowNoise(y, 0, stream=1), RowNoise(y, 1)
    draws = torch.cat([one.normal(0), one.normal(1), other.normal(0), of_seed.normal(0)], 1).T
    correlations = torch.corrcoef(draws.double())
    assert (correlations - torch.eye(12)).abs().max() < 5 / 4000**0.5
    for numbers, distribution in ((draws[0], "norm"), (one.uniform(0), "uniform")):
        assert kstest(numbers.double().numpy(), distribution).pvalue > 1e-3


def test_bound_is_in_the_units_of_the_data() -> None:
    rows = torch.randn(500, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    metres, millimetres = Diffusion((2,), **SMALL).double(), Diffusion((2,), **SMALL).double()
    metres.fit_preprocessing(rows)
    millimetres.fit_preprocessing(1000 * rows)
    moved = metres.eval().log_prob(rows) - millimetres.eval().log_prob(1000 * rows)
    torch.testing.assert_close(moved, torch.full_like(moved, 2 * math.log(1000)), rtol=1e-6, atol=1e-6)


def test_gaussian_bound_has_no_error_to_speak_of_in_the_tails() -> None:
    density = Diffusion((2,), **SMALL).double().eval()
    x = torch.tensor([[0.0, 0.0], [4.0, -4.0]], dtype=torch.float64)
    found = density.likelihood(x, num_draws=4096)
    truth = torch.distributions.Normal(0.0, 1.0).log_prob(x).sum(1)
    assert ((found.log_prob - truth).abs() < 3 * found.error).all()
    assert found.error.max() < 0.4


def test_rows_that_are_no_numbers_are_told_apart() -> None:
    density = Diffusion((2,), **SMALL).eval()
    found = density.likelihood(torch.tensor([[0.0, 0.0], [torch.nan, 0.0]]), num_draws=8)
    assert found.status.tolist() == [sf.Status.OK, sf.Status.NON_FINITE]


# Denoisers that users bring. -----------------------------------------------------------------------------------------


def test_a_brought_denoiser_draws_and_is_neither_trained_nor_saved(tmp_path) -> None:
    density, _, x = mixture("flow")
    draws = density.sample(4000, seed=0, num_steps=30)
    torch.testing.assert_close(draws.mean(0), x.mean(0), rtol=0, atol=0.2)
    with pytest.raises(ConfigError, match="Diffusion has no parameters to train"):
        sf.fit(density, x.float().double(), max_steps=5)
    with pytest.raises(ModelFileError, match="a denoise of your own, which no file can hold"):
        density.save(tmp_path / "model")


def gaussian(std: float, name: str, **arguments: Any) -> Diffusion:
    """The exact denoiser of a Gaussian about 0."""
    one = as_schedule(name)

    def denoise(x: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = (part[:, None] for part in one(t))
        return alpha * std**2 / ((alpha * std).square() + sigma.square()) * x

    return Diffusion.from_denoiser(denoise, (1,), one, **arguments).double()


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("std", [0.03, 1.0, 12.0])
def test_steps_and_bounds_go_by_the_size_of_the_events(std: float, name: str) -> None:
    density = gaussian(std, name, data_std=std)
    x = density.sample(4000, seed=0)
    assert float(x.std()) == pytest.approx(std, rel=0.05)
    found = density.likelihood(x[:300])
    off = found.log_prob - torch.distributions.Normal(0, std).log_prob(x[:300, 0])
    assert off.mean() < 4 * off.std() / len(off) ** 0.5
    assert off.mean() > -0.1


def far_away(name: str, **arguments: Any) -> Diffusion:
    """The exact denoiser of a Gaussian of deviation 10 about 280 and -40."""
    one, mean = as_schedule(name), torch.tensor([280.0, -40.0])

    def denoise(x: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = (part[:, None] for part in one(t))
        return mean + 100 * alpha / (100 * alpha.square() + sigma.square()) * (x - alpha * mean)

    return Diffusion.from_denoiser(denoise, (2,), one, data_std=10, **arguments).double()


@pytest.mark.parametrize("name", SCHEDULES)
def test_noise_is_centred_where_events_are(name: str) -> None:
    density = far_away(name, data_mean=[281.0, -41.0])
    x = density.sample(4000, seed=0)
    torch.testing.assert_close(x.mean(0), torch.tensor([280.0, -40.0]).double(), rtol=0, atol=0.7)
    torch.testing.assert_close(x.std(0), torch.tensor([10.0, 10.0]).double(), rtol=0.05, atol=0)
    truth = torch.distributions.Normal(torch.tensor([280.0, -40.0]), 10.0).log_prob(x).sum(1)
    assert (density.log_prob(x[:500]) - truth[:500]).mean().abs() < 0.1
    torch.testing.assert_close(density.decode(density.encode(x[:5])), x[:5], rtol=0, atol=0.1)
    with pytest.warns(UserWarning, match="events lie around 2.*: give data_mean"):
        far_away(name).sample(2)


@pytest.mark.parametrize(("mean", "error"), [([1.0, 2.0, 3.0], ShapeError), (math.inf, ConfigError), ("a", DataError)])
def test_a_mean_that_is_none_is_told_of(mean: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="data_mean"):
        far_away("edm", data_mean=mean)


@pytest.mark.parametrize("std", [1e-3, 1e4])
def test_a_schedule_that_leaves_out_what_decides_an_event_is_told_of(std: float) -> None:
    with pytest.warns(
        UserWarning, match="draws and log p miss what is outside; bring events to a deviation of about 1"
    ):
        gaussian(std, "edm", data_std=std)


def test_draws_that_are_no_numbers_are_told_of() -> None:
    def denoise(x: Tensor, t: Tensor) -> Tensor:
        return torch.where(x > 0, torch.nan, x / (1 + (80 * t[:, None]) ** 2))

    with pytest.warns(UserWarning, match=r"of 50 draws are not finite: look at"):
        Diffusion.from_denoiser(denoise, (1,), "edm").sample(50, seed=0)


def test_a_brought_denoiser_takes_its_context() -> None:
    def denoise(x: Tensor, t: Tensor, context: Tensor | None = None) -> Tensor:
        assert context is not None
        return context.expand_as(x)

    density = Diffusion.from_denoiser(denoise, (2,), "edm", context_shape=(2,))
    context = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    torch.testing.assert_close(density.sample(5, context, num_steps=3), context.expand(5, 2, 2))


@pytest.mark.parametrize(
    ("denoise", "error", "message"),
    [
        (lambda x, t, context=None: x.sum(1), ShapeError, r"of shape \[1, 2\]; got \[1\] of torch.float32"),
        (lambda x, t, context=None: 3.0, ShapeError, "got float"),
        (7, ConfigError, "denoise must be a function of x_t and t; got 7"),
    ],
)
def test_a_denoiser_that_is_none_is_told_of(denoise: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Diffusion.from_denoiser(denoise, (2,), "vp").sample(4, num_steps=2)
