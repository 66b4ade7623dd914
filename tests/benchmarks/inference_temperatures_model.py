"""Daily temperature as a posterior: a mean, a trend and harmonics of the year, and an autoregression around them.

Everything that the likelihood needs of the days is in a few sums, so that a fit does not go through them again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from inference_posteriors import half_normal, normal
from torch import Tensor

from sciflow.inference import interval, positive, real

SKIPPED = 3  # first days, which all models take as given, so that their log Z compare
YEAR, NUM_SEASONS = 365.25, 73
NUM_HARMONICS = 2
PRIOR_STD = (5.0, 1.0, 10.0, 10.0, 3.0, 3.0)  # K, and K a decade for the second
LEVEL = 283.0  # K, where the prior of the mean is centred


@dataclass(frozen=True)
class Series:
    """Days in order.

    Attributes:
        value: ``[days]``, K.
        day: ``[days]``, whole numbers since the first of a year, without gaps.
    """

    value: np.ndarray
    day: np.ndarray

    @cached_property
    def design(self) -> np.ndarray:
        """Ones, decades since 2009, and harmonics of the year, ``[days, 6]``."""
        angle = 2 * math.pi * self.day / YEAR
        waves = [f(k * angle) for k in range(1, NUM_HARMONICS + 1) for f in (np.cos, np.sin)]
        return np.stack([np.ones(len(angle)), self.day / (10 * YEAR) - 1, *waves], 1)

    @cached_property
    def season(self) -> np.ndarray:
        """Which part of five days of the year it is, ``[days]``: noise is the same within one."""
        return np.minimum((self.day % YEAR / 5).astype(int), NUM_SEASONS - 1)

    def until(self, days: int) -> Series:
        """The days before ``days``."""
        return Series(self.value[:days], self.day[:days])


@dataclass(frozen=True)
class Model:
    """What a model has.

    Attributes:
        order: Of the autoregression.
        seasonal: Whether the noise has a season, two harmonics of the logarithm of its deviation.
    """

    order: int
    seasonal: bool

    @property
    def parameters(self) -> dict[str, Any]:
        """Constraints by name; ``phi`` are partial autocorrelations, all of which within (-1, 1) are stationary."""
        phi = interval(-1, 1) if self.order == 1 else interval(-1, 1, self.order)
        season = {"season": real(2 * NUM_HARMONICS)} if self.seasonal else {}
        return {"beta": real(2 + 2 * NUM_HARMONICS), "phi": phi, "sigma": positive, **season}

    def log_density(self, series: Series) -> Callable[..., Tensor]:
        r"""Joint log density of days and parameters, given the first days, in nats.

        .. math:: x_t = \beta^T h_t + r_t, \qquad r_t = \sum_k \varphi_k r_{t-k} + \sigma e^{s(t)} \varepsilon_t

        Priors: :math:`\beta` normal, partial autocorrelations uniform, :math:`\sigma` half-normal of 5 K, harmonics of
        the noise's logarithm normal of 0.3.
        """
        sums, counts, shifts = self._sums(series)

        def log_density(*, beta: Tensor, phi: Tensor, sigma: Tensor, season: Tensor | None = None) -> Tensor:
            lags = self.lags(phi)
            left = beta - torch.einsum("...k,kij,...j->...i", lags, shifts.to(beta), beta)
            way = torch.cat([torch.ones_like(lags[..., :1]), -lags, -left], -1)
            log_std = self.log_std(sigma, season)
            squares = torch.exp(-2 * log_std) @ sums.to(way)
            squares = (squares.unflatten(-1, (way.shape[-1],) * 2) * way[..., None] * way[..., None, :]).sum((-2, -1))
            likelihood = -0.5 * squares - (counts.to(way) * (log_std + 0.5 * math.log(2 * math.pi))).sum(-1)
            centre, scale = beta.new_tensor([LEVEL, 0, 0, 0, 0, 0]), beta.new_tensor(PRIOR_STD)
            prior = normal(beta, centre, scale).sum(-1) + half_normal(sigma, 5.0) - self.order * math.log(2)
            if season is not None:
                prior = prior + normal(season, 0.0, 0.3).sum(-1)
            return likelihood + prior

        return log_density

    def lags(self, phi: Tensor) -> Tensor:
        """Coefficients ``[*batch, order]`` of the days before, of partial autocorrelations, by Durbin and Levinson."""
        phi = phi[..., None] if self.order == 1 else phi
        found = phi[..., :1]
        for k in range(1, self.order):
            last = phi[..., k : k + 1]
            found = torch.cat([found - last * found.flip(-1), last], -1)
        return found

    def log_std(self, sigma: Tensor, season: Tensor | None) -> Tensor:
        """Logarithm of the noise's deviation in every season of five days, ``[*batch, 73]``."""
        log_sigma = sigma.log()[..., None].expand(*sigma.shape, NUM_SEASONS)
        if season is None:
            return log_sigma
        middle = 2 * math.pi * (5 * torch.arange(NUM_SEASONS, dtype=season.dtype) + 2.5) / YEAR
        waves = torch.stack([f(k * middle) for k in range(1, NUM_HARMONICS + 1) for f in (torch.cos, torch.sin)])
        return log_sigma + season @ waves

    def _sums(self, series: Series) -> tuple[Tensor, Tensor, Tensor]:
        """By season, products of what a step is made of, ``[73, m * m]``, and the days; and how the design moves.

        What a step is made of: the day, the days before, and the design of the day; that of ``k`` days before is the
        same times ``shifts[k - 1]``, ``[order, 6, 6]``, as those of waves and lines are.
        """
        days, design = np.arange(SKIPPED, len(series.value)), series.design
        before = [series.value[days - lag][:, None] for lag in range(self.order + 1)]
        rows, season = np.concatenate([*before, design[days]], 1), series.season[days]
        sums = np.stack([rows[season == s].T @ rows[season == s] for s in range(NUM_SEASONS)])
        counts = np.bincount(season, minlength=NUM_SEASONS)
        shifts = [np.linalg.lstsq(design[days], design[days - lag], rcond=None)[0] for lag in range(1, self.order + 1)]
        return (
            torch.from_numpy(sums.reshape(NUM_SEASONS, -1)),
            torch.from_numpy(counts).double(),
            torch.from_numpy(np.stack(shifts)),
        )

    def forecasts(self, draws: Mapping[str, Tensor], series: Series, first: int, ahead: int) -> tuple[Tensor, Tensor]:
        """Mean and deviation of every day from ``first`` on, given all days until ``ahead`` days before it.

        Args:
            draws: Of the posterior, ``[n, ...]`` by name.
            series: Of all days.
            first: The first day that is forecast.
            ahead: How many days before, 1 or more.

        Returns:
            ``[n, days]`` each.
        """
        beta, lags = draws["beta"].double(), self.lags(draws["phi"].double())
        seasonal = beta @ torch.from_numpy(series.design).T
        rest = torch.from_numpy(series.value) - seasonal
        days = torch.arange(first, len(series.value))
        std = self.log_std(draws["sigma"].double(), draws.get("season")).exp()[:, torch.from_numpy(series.season)]
        past = [rest[:, days - ahead - lag] for lag in range(self.order)]
        effect = [torch.ones(len(beta), 1)]  # of the noise of so many days before
        variance = torch.zeros(len(beta), len(days))
        for step in range(ahead):
            past = [sum(lags[:, k : k + 1] * past[k] for k in range(self.order)), *past[:-1]]
            variance = variance + (effect[-1] * std[:, days - step]).square()
            reach = range(min(self.order, len(effect)))
            effect.append(sum(lags[:, k : k + 1] * effect[-1 - k] for k in reach))
        return seasonal[:, days] + past[0], variance.sqrt()

    def simulate(self, draws: Mapping[str, Tensor], series: Series, generator: torch.Generator) -> Tensor:
        """Days that go on from the first ones, once more from every draw, ``[n, days]``."""
        beta, lags = draws["beta"].double(), self.lags(draws["phi"].double())
        seasonal = beta @ torch.from_numpy(series.design).T
        std = self.log_std(draws["sigma"].double(), draws.get("season")).exp()[:, torch.from_numpy(series.season)]
        noise = std * torch.randn(std.shape, generator=generator, dtype=std.dtype)
        rest = list((torch.from_numpy(series.value[:SKIPPED]) - seasonal[:, :SKIPPED]).unbind(1))
        for day in range(SKIPPED, len(series.value)):
            rest.append(sum(lags[:, k] * rest[-1 - k] for k in range(self.order)) + noise[:, day])
        return seasonal + torch.stack(rest, 1)
