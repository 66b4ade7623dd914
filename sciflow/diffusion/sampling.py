"""From noise to normalised events: a sampler driven along a grid of times, in batches that memory holds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sciflow.diffusion.denoiser import Denoiser
from sciflow.diffusion.samplers import Process, Sampler, trajectory

__all__ = ["Drawing", "draw", "most_noise"]


@dataclass(frozen=True)
class Drawing:
    """How events are drawn.

    Attributes:
        sampler: Takes the steps.
        times: Where they begin, ``[num_steps]``, falling.
    """

    sampler: Sampler
    times: Tensor


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
