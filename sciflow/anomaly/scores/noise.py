"""A diffusion model's denoiser at chosen levels of noise, for scores that listen to it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sciflow.anomaly.scores.base import Score
from sciflow.diffusion import Diffusion
from sciflow.diffusion.rows import over_events
from sciflow.errors import ConfigError

__all__ = ["DiffusionScore"]


class DiffusionScore(Score):
    """A score that stands on a diffusion model."""

    needs = "diffusion"
    densities: tuple[Diffusion]

    def __init__(self, density: Diffusion, **arguments: Any) -> None:
        if not isinstance(density, Diffusion):
            raise ConfigError(f"the score '{self.name}' stands on a Diffusion; got {type(density).__name__}")
        super().__init__(density, **arguments)

    def _normalised(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Events and contexts as the denoiser takes them."""
        y, c, _ = self.densities[0]._normalise_rows(x, context, 0)
        return y, c

    def _levels(self, least: float, most: float, number: int) -> Tensor:
        """Noise levels from ``least`` to ``most`` deviations of events, evenly spaced in logarithms, float64."""
        std = float(self.densities[0].denoiser.data_std)
        return std * torch.logspace(0, 1, number, dtype=torch.float64, base=most / least) * least

    def _mean(self, y: Tensor, level: Tensor, context: Tensor | None, noise: Tensor | float = 0.0) -> Tensor:
        """Mean of the clean events that ``y + level * noise`` may come from."""
        denoiser = self.densities[0].denoiser
        level = level.to(y.device)
        t = denoiser.schedule.time(level).expand(len(y))
        alpha, _ = (over_events(part, y).to(y.dtype) for part in denoiser.schedule(t))
        return denoiser(alpha * (y + level.to(y.dtype) * noise), t, context)
