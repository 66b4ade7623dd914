"""The probability-flow ODE makes a diffusion model an invertible map between events and noise."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor

from sciflow.diffusion.denoiser import Denoiser
from sciflow.diffusion.samplers import EDM, Past, Process, times
from sciflow.diffusion.sampling import most_noise

__all__ = ["to_events", "to_noise"]

_STEPS = 64
_LEAST_NOISE = 1e-3


def to_noise(denoiser: Denoiser, y: Tensor, context: Tensor | None) -> Tensor:
    r"""Take normalised events along the probability-flow ODE to noise of unit size, by steps of second order.

    .. math:: \frac{dx}{dt} = \dot\alpha \, \hat x_0(x, t) + \dot\sigma \, \hat\varepsilon(x, t)

    Source: Song et al., arXiv:2011.13456.

    Args:
        denoiser: Of the density.
        y: ``[n, *event_shape]``, normalised.
        context: ``[n, *context_shape]``, normalised, or None.

    Returns:
        ``[n, *event_shape]``, standard normal as far as the denoiser is right.
    """
    process, grid = _process(denoiser, context)
    return _carried(process, process.levels(grid[-1])[0] * y, grid[::-1]) / most_noise(denoiser, grid[0])


def to_events(denoiser: Denoiser, z: Tensor, context: Tensor | None) -> Tensor:
    """Undo :func:`to_noise`."""
    process, grid = _process(denoiser, context)
    return _carried(process, most_noise(denoiser, grid[0]) * z, grid) / process.levels(grid[-1])[0]


def _process(denoiser: Denoiser, context: Tensor | None) -> tuple[Process, list[float]]:
    grid = times(denoiser.schedule, _STEPS, "power", _LEAST_NOISE, float(denoiser.data_std)).tolist()
    return Process(lambda x, t: denoiser(x, t, context), denoiser.schedule), grid


def _carried(process: Process, x: Tensor, grid: list[float]) -> Tensor:
    past = Past(len(grid), len(grid))
    for t, s in pairwise(grid):
        x = EDM().step(process, x, t, s, past)
    return x
