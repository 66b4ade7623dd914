"""Draws of a posterior whose likelihood is a density: a population that goes from prior to posterior step by step."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sciflow.errors import ConvergenceError

__all__ = ["Population", "Target", "tempered"]

_SHARE = 0.5  # of the population that counts after a step
_LEAST_MOVED, _LAST_MOVED = 2.0, 8.0  # accepted moves of a draw, on average, before the next step; and after the last
_MOST_SWEEPS, _MOST_STEPS = 40, 200
_JUMP = 0.1  # of moves go by whole differences, from mode to mode


@dataclass(frozen=True)
class Target:
    """What is drawn from, in unconstrained units.

    Attributes:
        log_prior: Of rows ``[n, d]``, ``[n]``, in nats.
        log_likelihood: Likewise.
    """

    log_prior: Callable[[Tensor], Tensor]
    log_likelihood: Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Population:
    """Draws of a posterior, and how well they are known.

    Attributes:
        draws: ``[n, d]``, unconstrained.
        log_evidence: Log of the mean likelihood under the prior, nats.
        error: Its standard error, as far as the weights of the steps tell.
        steps: From prior to posterior.
        acceptance: Share of the last moves that were accepted.
        distinct: Share of draws that are no copies of others.
    """

    draws: Tensor
    log_evidence: float
    error: float
    steps: int
    acceptance: float
    distinct: float


def tempered(target: Target, start: Tensor, generator: torch.Generator) -> Population:
    r"""Move draws of a prior to the posterior.

    .. math:: p_\beta(u) \propto p(u) \, L(u)^\beta, \qquad 0 = \beta_0 < \beta_1 < \dots < 1

    At each step draws are weighted, drawn again by their weights, and moved by Metropolis steps along differences of
    other draws, which fit themselves to the shape of the posterior and lead from one mode to another. Steps are as wide
    as leaves half of the draws their weight. Source: Del Moral et al., J. R. Stat. Soc. B 68 (2006); ter Braak,
    Stat. Comput. 16 (2006).

    Args:
        target: Prior and likelihood.
        start: Draws of the prior ``[n, d]``.
        generator: Of the random numbers.

    Raises:
        ConvergenceError: The likelihood is zero at all of them, or the steps come to no end.

    Example:
        >>> normal = lambda u: -0.5 * u.square().sum(-1)
        >>> generator = torch.Generator().manual_seed(0)
        >>> start = torch.randn(2000, 1, generator=generator, dtype=torch.float64)
        >>> found = tempered(Target(normal, lambda u: normal(u - 2)), start, generator)
        >>> round(float(found.draws.mean()), 1)
        1.0
    """
    u = start.clone()
    prior, likelihood = target.log_prior(u), _cleaned(target.log_likelihood(u))
    beta, log_evidence, variance, steps, acceptance = 0.0, 0.0, 0.0, 0, 0.0
    while beta < 1:
        if steps == _MOST_STEPS or not torch.isfinite(likelihood).any():
            raise ConvergenceError(
                f"posterior: after {steps} steps of tempering the likelihood is still zero nearly everywhere: look at "
                "the observation, or train the likelihood longer"
            )
        step = _step(likelihood, beta)
        weights = step * likelihood
        log_mean = float(torch.logsumexp(weights, 0)) - math.log(len(u))
        relative = (weights - log_mean).exp()
        log_evidence += log_mean
        variance += float(relative.var()) / len(u)
        chosen = _systematic(relative / relative.sum(), generator)
        u, prior, likelihood = u[chosen], prior[chosen], likelihood[chosen]
        beta, steps = min(1.0, beta + step), steps + 1
        wanted = _LAST_MOVED if beta == 1 else _LEAST_MOVED
        u, prior, likelihood, acceptance = _moved(target, u, prior, likelihood, beta, wanted, generator)
    distinct = len(torch.unique(u, dim=0)) / len(u)
    return Population(u, log_evidence, math.sqrt(variance), steps, acceptance, distinct)


def _step(likelihood: Tensor, beta: float) -> float:
    """The widest step in beta that leaves enough of the population its weight."""

    def share(step: float) -> float:
        weights = step * likelihood
        weights = (weights - weights.max()).exp()
        return float(weights.sum().square() / weights.square().sum()) / len(likelihood)

    low, high = 0.0, 1 - beta
    if share(high) >= _SHARE:
        return high
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if share(middle) >= _SHARE else (low, middle)
    # Where many rows are impossible no step leaves so many, and they are left behind at once.
    return max(low, 1e-6 * (1 - beta))


def _moved(
    target: Target,
    u: Tensor,
    prior: Tensor,
    likelihood: Tensor,
    beta: float,
    wanted: float,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor, Tensor, float]:
    """Move every draw until it has moved often enough; each half along differences of the other."""
    n, size = u.shape
    u, prior, likelihood = u.clone(), prior.clone(), likelihood.clone()
    moved, acceptance = 0.0, 0.0
    order = torch.randperm(n, generator=generator)
    halves = order[: n // 2], order[n // 2 :]
    scale = 2.38 / math.sqrt(2 * size)
    for _ in range(_MOST_SWEEPS):
        accepted = 0
        for mine, others in (halves, halves[::-1]):
            pairs = torch.randint(len(others), (2, len(mine)), generator=generator)
            # Two of a pair that are one would be no move.
            pairs[1] = torch.where(pairs[0] == pairs[1], (pairs[1] + 1) % len(others), pairs[1])
            lengths = scale * torch.exp(0.5 * torch.randn(len(mine), 1, generator=generator, dtype=u.dtype) - 0.3)
            whole = torch.rand(len(mine), 1, generator=generator, dtype=u.dtype) < _JUMP
            lengths = torch.where(whole, 1.0, lengths)
            noise = 1e-4 * u.std(0) * torch.randn(len(mine), size, generator=generator, dtype=u.dtype)
            proposed = u[mine] + lengths * (u[others[pairs[0]]] - u[others[pairs[1]]]) + noise
            new_prior = target.log_prior(proposed)
            new_likelihood = _cleaned(target.log_likelihood(proposed))
            # Beta may be tiny, and minus infinity times that is still minus infinity.
            change = new_prior - prior[mine] + beta * (new_likelihood - likelihood[mine])
            chance = torch.rand(len(mine), generator=generator, dtype=u.dtype).log()
            taken = chance < change.nan_to_num(nan=-math.inf, posinf=math.inf, neginf=-math.inf)
            rows = mine[taken]
            u[rows], prior[rows], likelihood[rows] = proposed[taken], new_prior[taken], new_likelihood[taken]
            accepted += int(taken.sum())
        acceptance = accepted / n
        moved += acceptance
        if moved >= wanted:
            break
    return u, prior, likelihood, acceptance


def _systematic(weights: Tensor, generator: torch.Generator) -> Tensor:
    """Places of draws by their weights, with the least chance in it."""
    n = len(weights)
    at = (torch.arange(n, dtype=torch.float64) + torch.rand((), generator=generator, dtype=torch.float64)) / n
    ends = weights.cumsum(0)
    return torch.searchsorted(ends / ends[-1], at).clamp_max(n - 1)


def _cleaned(values: Tensor) -> Tensor:
    return values.nan_to_num(nan=-math.inf, posinf=-math.inf, neginf=-math.inf)
