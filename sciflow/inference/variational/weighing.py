"""What the draws of a fit, weighted, say of it: log Z, the effective share, and the tail of the weights."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sciflow.density import Density
from sciflow.flows import Reparametrised
from sciflow.inference.evidence import Evidence, bridge, effective_share, importance
from sciflow.inference.posterior import Posterior
from sciflow.inference.psis import USABLE, pareto_smoothed
from sciflow.inference.variational.annealing import Annealed
from sciflow.inference.variational.diffusion_sampler import DiffusionSampler
from sciflow.inference.variational.log_density import LogDensity

__all__ = ["Weighed", "weighed"]

_WIDE = 0.1  # share of heavy-tailed draws among those that are weighted
_PART = 1 << 14
_PLAIN = 4096
_FINE_ENOUGH = 0.005  # nats, of log Z
_MOST_DRAWS = 1 << 17
_MOVES = 10


@dataclass(frozen=True)
class Weighed:
    """What weighted draws say of a fit.

    Attributes:
        pool: Draws, ``[n, d]``.
        log_weights: Theirs, smoothed, of sum 1, ``[n]``.
        k_hat: Shape of the tail of the weights.
        ess: Effective share of the draws.
        elbo: Evidence lower bound, nats.
        elbo_error: Its standard error.
        log_z: Estimate of log Z.
        outside: Share of the fit's draws at which the density is zero.
    """

    pool: Tensor
    log_weights: Tensor
    k_hat: float
    ess: float
    elbo: float
    elbo_error: float
    log_z: Evidence
    outside: float

    def posterior(
        self, density: Density | DiffusionSampler, target: LogDensity, notes: list[str], history: dict[str, Any]
    ) -> Posterior:
        """The posterior that this says of ``density``, fitted to ``target``."""
        return Posterior(
            density,
            target.parameters,
            target.by_name,
            self.elbo,
            self.elbo_error,
            self.log_z,
            self.ess,
            self.k_hat,
            self.pool,
            self.log_weights,
            notes,
            history,
        )


@torch.no_grad()
def weighed(
    fitted: Density | DiffusionSampler,
    target: LogDensity,
    generator: torch.Generator,
    num_draws: int | None = None,
    particles: Callable[[], Annealed] | None = None,
) -> Weighed:
    """Weigh draws of a fit, as many as log Z needs.

    Where the tail of the weights is too heavy for their mean, log Z is that of annealed particles, or of a bridge
    between them and the fit, whichever is known better.

    Args:
        fitted: The fit.
        target: What was fitted.
        generator: Of the draws.
        num_draws: At the least; more where log Z is not known to 0.005 nats. None for as many as the target has enough
            of.
        particles: Gives annealed particles, where they are asked for; None for none.
    """
    num_draws = target.enough_draws() if num_draws is None else num_draws
    most = num_draws if target.is_random else _MOST_DRAWS
    rows: list[Tensor] = []
    ratios: list[Tensor] = []
    drawn = 0
    while drawn < num_draws or (drawn < most and importance(torch.cat(ratios)).standard_error > _FINE_ENOUGH):
        x, log_w = _drawn(fitted, target, min(_PART, num_draws), generator, _WIDE)
        rows.append(x)
        ratios.append(log_w)
        drawn += len(x)
    x, log_w = torch.cat(rows), torch.cat(ratios)
    smoothed, k_hat = pareto_smoothed(log_w)
    # The bound is of draws without heavy tails, which not all have.
    plain = (
        _drawn(fitted, target, min(_PLAIN, num_draws), generator)[1] if isinstance(fitted, Reparametrised) else log_w
    )
    inside = plain[torch.isfinite(plain)]
    # Of draws that are thrown away outside the support: E[log w | w > 0] + log P(w > 0) <= log Z.
    share = len(inside) / len(plain)
    elbo = float(inside.mean()) + math.log(share) if share else -math.inf
    return Weighed(
        x,
        smoothed,
        k_hat,
        effective_share(log_w),
        elbo,
        float(inside.std() / math.sqrt(max(1, len(inside)))),
        importance(log_w, k_hat=k_hat)
        if k_hat <= USABLE or particles is None
        else _by_particles(fitted, plain, particles()),
        1 - share,
    )


def _by_particles(fitted: Density | DiffusionSampler, log_w: Tensor, particles: Annealed) -> Evidence:
    if isinstance(fitted, DiffusionSampler):
        return particles.evidence
    particles.move(_MOVES)
    bridged = bridge(log_w, particles.walkers.log_p - fitted.log_prob(particles.x))
    return min(bridged, particles.evidence, key=lambda evidence: evidence.standard_error)


def _drawn(
    fitted: Density | DiffusionSampler, target: LogDensity, n: int, generator: torch.Generator, wide: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Draws ``[n, d]`` of a fit and their log weights ``[n]``."""
    if isinstance(fitted, DiffusionSampler):
        return fitted.draw(n, generator)
    if isinstance(fitted, Reparametrised):
        found = fitted.draw(n, generator, wide)
        x, log_q = found.x, found.log_q
    else:
        x = fitted.sample(n, seed=generator)
        log_q = fitted.log_prob(x)
    x = x.to(target.dtype)
    return x, torch.where(torch.isfinite(log_q), target.exact(x) - log_q, -math.inf)
