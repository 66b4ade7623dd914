"""The contract of a sampler: it knows x at time t, wants it at an earlier time s, and may ask the denoiser."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from numbers import Integral
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sciflow.arguments import is_number
from sciflow.diffusion.schedules import Schedule
from sciflow.errors import ConfigError

__all__ = ["Past", "Point", "Process", "Sampler", "combined", "require"]

_LEAST_ALPHA = 1e-100  # of which a logarithm is taken
_FEW_STEPS = 15  # below which the last steps are of lower order, as DPM-Solver++ and UniPC have it


@dataclass
class Process:
    """What is sampled from: a denoiser and its schedule, with noise by a generator.

    Times and all that follows from them are Python's own floats, so that no step waits for a device.

    Attributes:
        denoise: ``denoise(x_t, t)`` of ``t`` ``[n]``: the mean of the clean events, ``[n, *event_shape]``.
        schedule: Of the times.
        generator: Of the noise; None for torch's own.
        nfe: Calls of ``denoise`` so far.
    """

    denoise: Callable[[Tensor, Tensor], Tensor]
    schedule: Schedule
    generator: torch.Generator | None = None
    nfe: int = 0
    _levels: dict[float, tuple[float, float]] = field(default_factory=dict, repr=False)

    def mean(self, x: Tensor, t: float) -> Tensor:
        """Return what the denoiser makes of ``x`` at time ``t``, in the dtype of ``x``; one evaluation."""
        self.nfe += 1
        return self.denoise(x, torch.full((), t, dtype=torch.float64, device=x.device).expand(len(x))).to(x.dtype)

    def noise(self, like: Tensor) -> Tensor:
        """Return standard normal noise of the shape of ``like``."""
        return torch.randn(like.shape, generator=self.generator, dtype=like.dtype, device=like.device)

    def levels(self, t: float) -> tuple[float, float]:
        """Return ``(alpha, sigma)`` at one time."""
        if t not in self._levels:  # a step asks for the same ones several times
            alpha, sigma = self.schedule(torch.tensor(t, dtype=torch.float64))
            self._levels[t] = float(alpha), float(sigma)
        return self._levels[t]

    def rates(self, t: float) -> tuple[float, float]:
        """Return the rates of change of ``alpha`` and ``sigma`` at one time."""
        alpha_rate, sigma_rate = self.schedule.derivatives(torch.tensor(t, dtype=torch.float64))
        return float(alpha_rate), float(sigma_rate)

    def time(self, noise_level: float) -> float:
        """Return the time at which a noise level is reached."""
        return float(self.schedule.time(torch.tensor(noise_level, dtype=torch.float64)))

    def log_signal(self, t: float) -> float:
        r"""Return :math:`\lambda = \log(\alpha / \sigma)`, finite where there is no signal, too."""
        alpha, sigma = self.levels(t)
        return math.log(max(alpha, _LEAST_ALPHA) / sigma)

    def fall(self, t: float, s: float) -> float:
        """Return by how much the logarithm of the noise level falls from ``t`` to ``s``."""
        return self.log_signal(s) - self.log_signal(t)

    def velocity(self, x: Tensor, t: float) -> Tensor:
        r"""Return :math:`\dot\alpha \, \hat x_0 + \dot\sigma \, \hat\varepsilon`, dx/dt of the probability-flow ODE."""
        (alpha, sigma), (alpha_rate, sigma_rate) = self.levels(t), self.rates(t)
        mean = self.mean(x, t)
        return alpha_rate * mean + (sigma_rate / sigma) * (x - alpha * mean)


class Point(NamedTuple):
    """Where a trajectory was: the state at a time, and what the denoiser made of it."""

    t: float
    x: Tensor
    mean: Tensor


@dataclass
class Past:
    """What is known of one trajectory beside its state; each has its own.

    Attributes:
        num_steps: How many steps it has in all; the last is the denoiser's mean.
        steps_left: How many are still to come, the present one and the last among them.
        points: The latest points, oldest first, as far as a multistep sampler wants them.
    """

    num_steps: int
    steps_left: int
    points: list[Point] = field(default_factory=list)

    def order(self, highest: int) -> int:
        """Return the order of the present step, for a sampler of a highest one: short trajectories end with less."""
        return min(highest, self.steps_left) if self.num_steps < _FEW_STEPS else highest

    def add(self, point: Point, keep: int) -> None:
        """Remember one more point, and forget all but ``keep``."""
        self.points.append(point)
        del self.points[:-keep]


def combined(shares: Sequence[float], points: Sequence[Point]) -> Tensor:
    """Return the sum of the means of ``points``, each times its share."""
    total = shares[0] * points[0].mean
    for share, point in zip(shares[1:], points[1:], strict=True):
        total = total + share * point.mean
    return total


class Sampler(ABC):
    """One step of a sampler, from time ``t`` to an earlier time ``s``.

    The steps of a trajectory are :meth:`step` from one time of a grid to the next; whoever drives them ends with the
    denoiser's mean at the last time, which is close to 0. A sampler holds its settings alone, and so serves any number
    of trajectories. One of your own is a frozen dataclass with :meth:`step`.
    """

    @property
    def evaluations(self) -> int:
        """How often a step calls the denoiser, at most."""
        return 1

    @abstractmethod
    def step(self, process: Process, x: Tensor, t: float, s: float, past: Past) -> Tensor:
        """Return the trajectory at time ``s``.

        Args:
            process: Denoiser, schedule and noise.
            x: ``[n, *event_shape]`` at time ``t``.
            t: Where the trajectory is.
            s: Where it goes, below ``t`` and above 0.
            past: Of the same trajectory; a multistep sampler reads it and adds to it.
        """


def require(name: str, value: Any, least: float, most: float, whole: bool = False) -> None:
    """Raise the error of a sampler's setting that is no number from ``least`` to ``most``."""
    number = (isinstance(value, Integral) or not whole) and is_number(value)
    if not (number and least <= value <= most):
        kind = "a whole number" if whole else "a number"
        raise ConfigError(f"sampler: {name} must be {kind} from {least:g} to {most:g}; got {value!r:.80}")
