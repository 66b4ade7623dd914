"""Hamiltonian moves of many particles at once."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

__all__ = ["Hamiltonian", "Walkers"]

Valued = Callable[[Tensor], tuple[Tensor, Tensor]]  # rows [n, d] -> log density [n], gradient [n, d]

_WANTED, _PACE, _SPREAD = 0.7, 0.7, 0.6
_SHORTEST, _LONGEST = 1e-4, 1.5


@dataclass
class Walkers:
    """Particles with their log density under two densities, and gradients: what is moved, and what is annealed from.

    Attributes:
        x: ``[n, d]``.
        log_q, log_p: ``[n]``, of base and target; log_q is zero where there is no base.
        gradient_q, gradient_p: ``[n, d]``.
    """

    x: Tensor
    log_q: Tensor
    gradient_q: Tensor
    log_p: Tensor
    gradient_p: Tensor

    @classmethod
    def at(cls, x: Tensor, target: Valued, base: Valued | None = None) -> Walkers:
        """Evaluate both densities at rows ``x``."""
        log_p, gradient_p = target(x)
        log_q, gradient_q = base(x) if base is not None else (torch.zeros_like(log_p), torch.zeros_like(x))
        return cls(x, log_q, gradient_q, log_p, gradient_p)

    def taken(self, index: Tensor) -> Walkers:
        """The particles at these places, which may come several times."""
        return Walkers(*(part[index] for part in self._parts()))

    def where(self, chosen: Tensor, other: Walkers) -> Walkers:
        """Those of ``other`` where ``chosen``, else these."""
        pairs = zip(self._parts(), other._parts(), strict=True)
        return Walkers(*(torch.where(chosen if a.ndim == 1 else chosen[:, None], b, a) for a, b in pairs))

    def log_density(self, beta: float) -> Tensor:
        """Logarithm of ``q^(1 - beta) p^beta``, ``[n]``."""
        return self.log_p if beta == 1 else (1 - beta) * self.log_q + beta * self.log_p

    def gradient(self, beta: float) -> Tensor:
        """Its gradient, ``[n, d]``."""
        return self.gradient_p if beta == 1 else (1 - beta) * self.gradient_q + beta * self.gradient_p

    def _parts(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        return self.x, self.log_q, self.gradient_q, self.log_p, self.gradient_p


@dataclass
class Hamiltonian:
    r"""Hamiltonian Monte Carlo with one mass matrix for all particles, and steps that differ between them.

    Leapfrog steps of length :math:`\epsilon`, drawn for every particle from a log-normal about a length that is adapted
    until 70 % are accepted: where a density is narrow in one place and wide in another, each finds those that do.
    From Neal, arXiv:1206.1901.

    Args:
        target: Log density and gradient.
        generator: Of momenta and acceptance.
        base: Of the density that is annealed from; None for none.
        num_leapfrog: Leapfrog steps a move.

    Example:
        >>> target = lambda x: (-0.5 * x.square().sum(-1), -x)
        >>> moves = Hamiltonian(target, torch.Generator().manual_seed(0))
        >>> walkers = Walkers.at(torch.full((2000, 1), 3.0), target)
        >>> for _ in range(20):
        ...     walkers = moves.moved(walkers, torch.eye(1))
        >>> bool(walkers.x.mean().abs() < 0.2 and (walkers.x.std() - 1).abs() < 0.2)
        True
    """

    target: Valued
    generator: torch.Generator
    base: Valued | None = None
    num_leapfrog: int = 8
    length: float = 0.5
    acceptance: float = field(default=math.nan, init=False)

    def moved(self, walkers: Walkers, lower: Tensor, beta: float = 1.0) -> Walkers:
        """Move all particles once, under ``q^(1 - beta) p^beta``.

        Args:
            walkers: Particles.
            lower: Lower root ``[d, d]`` of about their covariance.
            beta: How far from base to target.
        """
        momentum = self._normal(walkers.x.shape, walkers.x)
        length = self.length * torch.exp(_SPREAD * self._normal((len(walkers.x), 1), walkers.x))
        new, p = walkers, momentum
        for _ in range(self.num_leapfrog):
            p = p + 0.5 * length * (new.gradient(beta) @ lower)
            new = Walkers.at(new.x + length * (p @ lower.T), self.target, self.base)
            p = p + 0.5 * length * (new.gradient(beta) @ lower)
        gained = new.log_density(beta) - walkers.log_density(beta) + 0.5 * (momentum.square() - p.square()).sum(-1)
        chance = torch.exp(gained.clamp_max(0)).nan_to_num(0.0)
        uniform = torch.rand(chance.shape, generator=self.generator, dtype=chance.dtype).to(chance.device)
        self.acceptance = float(chance.mean())
        longer = self.length * math.exp(_PACE * (self.acceptance - _WANTED))
        self.length = min(max(longer, _SHORTEST), _LONGEST)
        return walkers.where(uniform < chance, new)

    def _normal(self, shape: torch.Size | tuple[int, ...], like: Tensor) -> Tensor:
        return torch.randn(shape, generator=self.generator, dtype=like.dtype).to(like.device)
