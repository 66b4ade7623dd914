"""The prior, cut to where the posterior of one observation is: what later rounds draw from."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sciflow.errors import DataError
from sciflow.inference.conditional.direct import Direct
from sciflow.inference.conditional.prior import Prior
from sciflow.inference.conditional.randomness import child_seed

__all__ = ["Truncated"]

_LOOKED_AT = 10_000
_AT_ONCE = 4096
_LEAST_ACCEPTED = 1e-3
_EACH = 64  # draws of the posterior from which one is chosen
_MOST_TRIES = 10_000


@dataclass(frozen=True)
class Truncated:
    r"""The prior within the region of highest density of a posterior.

    .. math:: p_t(\theta) \propto p(\theta) \; 1\big[q(\theta \mid x_o) > \tau\big]

    The threshold leaves out a small share of the posterior. Inside the region it is the prior, so that simulations of
    all rounds may be used together, and the loss stays what it is. Draws come from the prior, by rejection; where
    hardly one in a thousand is accepted, from the posterior, each chosen among several by its weight. Source:
    Deistler et al., arXiv:2210.04815.

    Attributes:
        prior: What is cut.
        posterior: Of the observation.
        x: The observation ``[e]``.
        threshold: Log of :math:`\tau`.
        acceptance: Share of the prior that is within the region.
    """

    prior: Prior
    posterior: Direct
    x: Tensor
    threshold: float
    acceptance: float

    @classmethod
    def of(cls, prior: Prior, posterior: Direct, x: Tensor, share: float, seed: int) -> Truncated:
        """Find the region.

        Args:
            prior: What is cut.
            posterior: Of the round before.
            x: The observation ``[e]``.
            share: Of the posterior that is left out.
            seed: Of the draws by which the threshold is known.
        """
        draws = posterior.sample(_LOOKED_AT, x[None], child_seed(seed, 0))[:, 0]
        threshold = float(torch.quantile(posterior.log_prob_uncut(draws, x.expand(len(draws), -1)), share))
        rough = cls(prior, posterior, x, threshold, 1.0)
        inside = rough.contains(prior.sample(_LOOKED_AT, child_seed(seed, 1)))
        return cls(prior, posterior, x, threshold, float(inside.double().mean()))

    def contains(self, theta: Tensor) -> Tensor:
        """Which parameters ``[n, d]`` are within the region."""
        rows = theta.to(self.posterior.densities[0].dtype)
        found: Tensor = self.posterior.log_prob_uncut(rows, self.x.expand(len(rows), -1)) > self.threshold
        return found

    def sample(self, n: int, seed: int) -> Tensor:
        """Draw parameters ``[n, d]``, float64.

        Raises:
            DataError: The region is hardly ever met.
        """
        by_prior = self.acceptance >= _LEAST_ACCEPTED or not self.prior.has_log_prob
        found: list[Tensor] = []
        count = 0
        for number in range(_MOST_TRIES):
            if count >= n:
                return torch.cat(found)[:n]
            own = child_seed(seed, number)
            rows = self._of_prior(own) if by_prior else self._of_posterior(n - count, own)
            found.append(rows)
            count += len(rows)
        raise DataError(
            f"rounds: {_MOST_TRIES * _AT_ONCE:,} draws of the prior met the region of the posterior {count} times: "
            "give a prior with log_prob, so that draws can come from the posterior, or fewer rounds"
        )

    def _of_prior(self, seed: int) -> Tensor:
        theta = self.prior.sample(_AT_ONCE, seed)
        return theta[self.contains(theta)]

    def _of_posterior(self, n: int, seed: int) -> Tensor:
        draws = self.posterior.sample(n * _EACH, self.x[None], seed)[:, 0]
        log_q = self.posterior.log_prob_uncut(draws, self.x.expand(len(draws), -1))
        theta = self.prior.support.within(draws.double())
        weights = torch.where(log_q > self.threshold, self.prior.log_prob(theta) - log_q, -math.inf).reshape(n, _EACH)
        some = torch.isfinite(weights).any(1)
        weights = weights[some]
        generator = torch.Generator().manual_seed(child_seed(seed, 1))
        noise = -torch.empty(weights.shape, dtype=torch.float64).exponential_(generator=generator).log()
        rows = torch.arange(n)[some] * _EACH + (weights + noise).argmax(1)
        return theta[rows]
