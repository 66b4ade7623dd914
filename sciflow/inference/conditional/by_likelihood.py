"""Draws and log p of parameters given observations, where densities know the likelihood."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from sciflow.bijections import preprocessing
from sciflow.density import Density
from sciflow.inference.conditional.direct import Leakage, exact_log_prob
from sciflow.inference.conditional.prior import Prior
from sciflow.inference.conditional.randomness import child_seed
from sciflow.inference.conditional.tempered import Population, Target, tempered

__all__ = ["ByLikelihood"]

_LEAST_DRAWS = 2000
_AT_ONCE = 1 << 16


@dataclass(frozen=True)
class ByLikelihood:
    r"""The posterior of a prior and a mixture of densities of observations given parameters.

    .. math:: p(\theta \mid x) = p(\theta) \; \frac1K \sum_k q_k(x \mid \theta) \Big/ Z(x)

    Draws are those of :func:`sciflow.inference.conditional.tempered.tempered`, in the units that the prior's bounds are
    opened up to, which knows the evidence :math:`Z`, too.

    Attributes:
        densities: Fitted ones, which count the same.
        prior: Its log_prob must be known.
    """

    densities: Sequence[Density]
    prior: Prior

    can_leak = False

    @cached_property
    def _units(self) -> torch.nn.Module:
        """From parameters to unconstrained units."""
        return preprocessing(self.prior.support.opening[:-1], (self.prior.num_parameters,)).double()

    def log_likelihood(self, theta: Tensor, x: Tensor) -> Tensor:
        """Log p of observations ``[n, e]`` given parameters ``[n, d]``: ``[n]``."""
        shape = self.densities[0].event_shape
        parts = []
        for some, given in zip(theta.split(_AT_ONCE), x.split(_AT_ONCE), strict=True):
            events = given.reshape(-1, *shape)
            each = [exact_log_prob(density, events, some).double().cpu() for density in self.densities]
            parts.append(torch.logsumexp(torch.stack(each), 0) - math.log(len(self.densities)))
        return torch.cat(parts) if parts else torch.empty(0, dtype=torch.float64)

    def population(self, n: int, x: Tensor, seed: int) -> Population:
        """Draws for one observation ``[e]``, ``n`` at the least, in unconstrained units."""

        def back(u: Tensor) -> tuple[Tensor, Tensor]:
            theta, log_det = self._units.inverse(u)  # type: ignore[operator]
            return theta, log_det

        def log_prior(u: Tensor) -> Tensor:
            theta, log_det = back(u)
            return self.prior.log_prob(theta) + log_det

        def log_likelihood(u: Tensor) -> Tensor:
            theta, _ = back(u)
            return self.log_likelihood(theta, x.expand(len(u), -1))

        with torch.no_grad():
            start, _ = self._units(self.prior.sample(max(n, _LEAST_DRAWS), child_seed(seed, 0)))
            generator = torch.Generator().manual_seed(child_seed(seed, 1))
            return tempered(Target(log_prior, log_likelihood), start, generator)

    def sample(self, n: int, x: Tensor, seed: int) -> Tensor:
        """Draws ``[n, cases, d]`` for observations ``[cases, e]``."""
        dtype = self.densities[0].dtype
        found = [
            self._shuffled(self.population(n, row, child_seed(seed, place)), n, seed) for place, row in enumerate(x)
        ]
        size = self.prior.num_parameters
        return torch.stack(found, 1).to(dtype) if found else torch.empty(n, 0, size, dtype=dtype)

    def leakage(self, x: Tensor, seed: int = 0) -> list[Leakage]:
        """Nothing leaks: the prior is a factor."""
        return [Leakage(0.0, 0.0)] * len(x)

    def log_prob_uncut(self, theta: Tensor, x: Tensor) -> Tensor:
        """Log of prior times likelihood for rows ``[n, d]`` and ``[n, e]``, without the evidence: ``[n]``."""
        return self.prior.log_prob(theta) + self.log_likelihood(theta, x)

    def log_prob(self, theta: Tensor, x: Tensor, leakage: Sequence[Leakage] | None = None) -> Tensor:
        """Log p ``[n, cases]`` of parameters ``[n, cases, d]`` given observations ``[cases, e]``."""
        n, cases = theta.shape[:2]
        found = self.log_prob_uncut(theta.flatten(0, 1), x.repeat(n, 1)).reshape(n, cases)
        evidence = [self.population(_LEAST_DRAWS, row, 0).log_evidence for row in x]
        return found - torch.tensor(evidence, dtype=torch.float64)

    def _shuffled(self, population: Population, n: int, seed: int) -> Tensor:
        """``n`` of the draws in random order, data units."""
        order = torch.randperm(len(population.draws), generator=torch.Generator().manual_seed(child_seed(seed, 2)))
        theta, _ = self._units.inverse(population.draws[order[:n]])  # type: ignore[operator]
        return torch.as_tensor(theta)
