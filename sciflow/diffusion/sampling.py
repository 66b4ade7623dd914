"""From noise to normalised events: a sampler driven along a grid of times, in batches that memory holds."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sciflow.diffusion.denoiser import Denoiser
from sciflow.diffusion.samplers import Process, Sampler, sampler, times, trajectory
from sciflow.diffusion.samplers.spacing import SPACINGS, Spacing
from sciflow.diffusion.schedules import Schedule
from sciflow.errors import ConfigError, nearest

__all__ = ["Drawing", "draw", "most_noise"]

MOST_STEPS = 100_000
Denoise = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Drawing:
    """How events are drawn.

    Attributes:
        sampler: Takes the steps.
        times: Where they begin, ``[num_steps]``, falling.
    """

    sampler: Sampler
    times: Tensor

    @classmethod
    def of(cls, schedule: Schedule, given: Any, num_steps: Any, spacing: Any, least_noise: Any) -> Drawing:
        """Check what a user asked for.

        Raises:
            ConfigError: There is no such sampler or spacing, or a number is out of range.
        """
        whole = not isinstance(num_steps, bool) and hasattr(num_steps, "__index__")
        if not whole or not 1 <= operator.index(num_steps) <= MOST_STEPS:
            raise ConfigError(f"num_steps must be a whole number from 1 to {MOST_STEPS:,}; got {num_steps!r:.80}")
        if spacing not in SPACINGS:
            raise ConfigError(f"spacing: got {spacing!r:.80}; {nearest(str(spacing), SPACINGS)}")
        number = isinstance(least_noise, int | float) and not isinstance(least_noise, bool)
        if not (number and 0 < least_noise <= 1):
            raise ConfigError(f"least_noise must be above 0, and 1 at the most; got {least_noise!r:.80}")
        chosen: Spacing = spacing
        return cls(sampler(given), times(schedule, operator.index(num_steps), chosen, float(least_noise)))


def draw(
    denoiser: Denoiser,
    denoise: Callable[[Tensor, Tensor], Tensor],
    drawing: Drawing,
    noise: Tensor,
    generator: torch.Generator | None,
    on_step: Callable[[], None],
    return_trajectory: bool,
) -> Tensor:
    """Return normalised events that standard normal ``noise`` ``[n, *event_shape]`` turns into.

    Args:
        denoiser: Of the density.
        denoise: The same with its context, guided if need be.
        drawing: How.
        noise: Where to begin.
        generator: Of the noise on the way.
        on_step: Called after every step.
        return_trajectory: Return all states, ``[num_steps + 1, n, *event_shape]``.
    """
    process = Process(denoise, denoiser.schedule, generator)
    x = noise * most_noise(denoiser, float(drawing.times[0]))
    return trajectory(process, drawing.sampler, x, drawing.times, lambda *_: on_step(), return_trajectory)


def most_noise(denoiser: Denoiser, t: float) -> float:
    r"""Return the deviation of noisy events, :math:`\sqrt{\alpha^2 s^2 + \sigma^2}`, with ``s`` that of clean ones."""
    alpha, sigma = denoiser.schedule(torch.tensor(t, dtype=torch.float64))
    return float(torch.hypot(alpha * float(denoiser.data_std), sigma))
