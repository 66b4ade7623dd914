"""From a Gaussian to a density, by many small steps of temperature: particles in all of its modes, and log Z."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from sciflow.errors import DataError
from sciflow.inference.evidence import Evidence
from sciflow.inference.variational.gaussians import FullGaussian, covariance, root
from sciflow.inference.variational.hamiltonian import Hamiltonian, Walkers
from sciflow.inference.variational.log_density import LogDensity

__all__ = ["Annealed", "anneal"]

_LEAST_ESS = 0.6  # of the particles, after each step of temperature
_MOST_TEMPERATURES = 500
_ISLANDS = 8


@dataclass
class Annealed:
    """Particles of a density, which can be moved on.

    Attributes:
        walkers: The particles.
        log_z: Estimate of log Z by the way they came, nats.
        log_z_error: Its standard error, from groups of particles that did not know of each other.
        num_temperatures: Steps of temperature.
        moves: How they move.
    """

    walkers: Walkers
    log_z: float
    log_z_error: float
    num_temperatures: int
    moves: Hamiltonian

    @property
    def evidence(self) -> Evidence:
        """log Z as the weights on the way say it."""
        return Evidence(self.log_z, self.log_z_error, "annealed")

    @property
    def x(self) -> Tensor:
        """Particles ``[n, d]``."""
        return self.walkers.x

    def move(self, times: int = 1) -> None:
        """Move the particles on under the density itself."""
        lower = root(covariance(self.x))
        for _ in range(times):
            self.walkers = self.moves.moved(self.walkers, lower)

    def batches(self, size: int, generator: torch.Generator, moved_every: int = 8) -> Iterator[Tensor]:
        """Batches ``[size, d]`` of particles, without end; they move on while they are being used."""
        number = 0
        while True:
            if number % moved_every == 0:
                self.move()
            yield self.x[torch.randint(len(self.x), (size,), generator=generator).to(self.x.device)]
            number += 1


def anneal(
    density: LogDensity, base: FullGaussian, generator: torch.Generator, num_particles: int = 2048, num_moves: int = 2
) -> Annealed:
    r"""Sequential Monte Carlo along :math:`q^{1-\beta} \tilde p^\beta`, from a wide Gaussian to the density.

    Each step of :math:`\beta` is as large as leaves six tenths of the particles in effect; they are weighted,
    resampled, and moved by Hamiltonian Monte Carlo. The mean weights multiply to an unbiased estimate of Z. From
    Del Moral et al. (2006), JRSS B 68; Neal, arXiv:physics/9803008.

    Args:
        density: Target.
        base: Where the particles start: at least as wide as the target.
        generator: Of everything that is drawn.
        num_particles: In 8 groups that know nothing of each other but covariance and temperatures.
        num_moves: Moves at each temperature; at the last, five times as many.

    Raises:
        DataError: The density is finite at hardly any of the particles.

    Example:
        >>> density = LogDensity(lambda x: -0.5 * ((x - 3) ** 2).sum(-1), event_shape=2)
        >>> base = FullGaussian(torch.zeros(2).double(), 3 * torch.eye(2).double())
        >>> particles = anneal(density, base, torch.Generator().manual_seed(0), 800)
        >>> abs(particles.log_z - 1.8379) < 0.2  # log 2 pi
        True
    """
    group = max(1, num_particles // _ISLANDS)
    walkers = Walkers.at(base.sample(group * _ISLANDS, generator), density.with_gradient, base.log_prob_with_gradient)
    if torch.isfinite(walkers.log_p).sum() < _ISLANDS:
        raise DataError(f"log_density is finite nearly nowhere about where it is highest ({density.counts})")
    moves = Hamiltonian(density.with_gradient, generator, base.log_prob_with_gradient)
    totals = torch.zeros(_ISLANDS, dtype=torch.float64)
    beta, number = 0.0, 0
    while beta < 1:
        new = 1.0 if number == _MOST_TEMPERATURES else _next(walkers, beta)
        gained = ((new - beta) * (walkers.log_p - walkers.log_q)).reshape(_ISLANDS, group)
        totals += torch.logsumexp(gained.double(), 1).cpu() - math.log(group)
        walkers = walkers.taken(_resampled(gained, generator))
        beta, number = new, number + 1
        lower = root(covariance(walkers.x))
        for _ in range(num_moves if beta < 1 else 5 * num_moves):
            walkers = moves.moved(walkers, lower, beta)
    log_z = float(torch.logsumexp(totals, 0)) - math.log(_ISLANDS)
    error = float((totals - log_z).exp().std()) / math.sqrt(_ISLANDS)
    onwards = Hamiltonian(density.with_gradient, generator, length=moves.length)
    return Annealed(walkers, log_z, error, number, onwards)


def _next(walkers: Walkers, beta: float) -> float:
    """The largest next beta that leaves enough of the particles in effect, by bisection."""
    ratio = walkers.log_p - walkers.log_q

    def enough(candidate: float) -> bool:
        weights = torch.softmax((candidate - beta) * ratio, 0)
        return float(1 / weights.square().sum()) >= _LEAST_ESS * len(ratio)

    if enough(1.0):
        return 1.0
    low, high = beta, 1.0
    while high - low > 1e-3 * (low - beta) + 1e-9:
        middle = (low + high) / 2
        low, high = (middle, high) if enough(middle) else (low, middle)
    return max(low, beta + 1e-9)


def _resampled(log_weights: Tensor, generator: torch.Generator) -> Tensor:
    """Places of the particles that go on, drawn systematically within each group ``[groups, size]``; flat."""
    groups, size = log_weights.shape
    ends = torch.softmax(log_weights, 1).nan_to_num(1 / size).cumsum(1)
    offset = torch.rand(groups, 1, generator=generator, dtype=ends.dtype).to(ends.device)
    at = (torch.arange(size, dtype=ends.dtype, device=ends.device) + offset) / size
    index = torch.searchsorted(ends.contiguous(), at.contiguous()).clamp_max(size - 1)
    return (index + size * torch.arange(groups, device=index.device)[:, None]).flatten()
