"""Fits of one posterior in a mixture, by weights that are right for it however the fits share its modes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from sciflow.families import FAMILIES
from sciflow.flows import Flow, MixtureOfFlows
from sciflow.inference.posterior import Posterior
from sciflow.inference.psis import pareto_smoothed
from sciflow.inference.variational.log_density import LogDensity
from sciflow.inference.variational.weighing import weighed

__all__ = ["can_be_mixed", "mixed", "weights_by_importance"]

_DRAWS, _BATCHES = 4096, 2
_ROUNDS, _SETTLED = 500, 1e-6
_WIDE = 0.1
_LEAST = 1e-4  # weight of a component that is kept


def mixed(
    posteriors: Sequence[Posterior], target: LogDensity, num_draws: int | None, seed: int
) -> tuple[Posterior, list[float]]:
    """Put fits in one mixture, and weigh draws of it.

    Args:
        posteriors: The fits, of flows or mixtures of them.
        target: What they were fitted to.
        num_draws: That are weighted in the end, at the least.
        seed: Of all draws.

    Returns:
        The mixture's posterior, and how much of it is of each fit.
    """
    generator = torch.Generator().manual_seed(seed)
    parts = [_parts(posterior) for posterior in posteriors]
    flows = [flow for of_one, _ in parts for flow in of_one]
    start = torch.cat([log_weights for _, log_weights in parts]) - math.log(len(parts))
    whose = torch.tensor([i for i, (of_one, _) in enumerate(parts) for _ in of_one])
    mixture = MixtureOfFlows.of(flows, start)
    log_weights = weights_by_importance(mixture, target, generator)
    of_each = torch.zeros(len(parts), dtype=torch.float64).index_add(0, whose, log_weights.exp().double().cpu())
    kept = torch.nonzero(log_weights > math.log(_LEAST))[:, 0].tolist()
    mixture = MixtureOfFlows.of([flows[k] for k in kept], log_weights[kept])
    found = weighed(mixture, target, generator, num_draws)
    first = posteriors[int(of_each.argmax())]
    notes = list(dict.fromkeys(note for posterior in posteriors for note in posterior.notes))
    return found.posterior(mixture, target, notes, dict(first.history)), of_each.tolist()


@torch.no_grad()
def weights_by_importance(mixture: MixtureOfFlows, target: LogDensity, generator: torch.Generator) -> Tensor:
    r"""Weights of a mixture's components by which it is nearest to a density, in forward KL.

    .. math:: w_k \leftarrow \sum_i W_i \, r_{ik}, \qquad r_{ik} = \frac{w_k q_k(x_i)}{\sum_j w_j q_j(x_i)}

    over draws of the mixture with importance weights :math:`W`, of sum 1: expectation maximisation, to the one maximum
    that there is. Two components in one mode share its mass, which a weight for each by its own evidence would count
    twice. Draws are made twice: the second time by what the first found.

    Args:
        mixture: Its weights are where it begins, and are set to what is found.
        target: The density.
        generator: Of the draws.

    Returns:
        Logarithms of the weights, ``[num_components]``.
    """
    log_weights = mixture.log_weights
    count = max(_DRAWS, 512 * len(log_weights))
    for _ in range(_BATCHES):
        drawn = mixture.draw(count, generator, _WIDE)
        shares, _ = pareto_smoothed(target(drawn.x) - drawn.log_q)
        each = mixture.log_prob_of_each(drawn.x).double()
        used = torch.isfinite(shares) & torch.isfinite(each).any(1)
        shares, each, found = shares[used].exp(), each[used], log_weights.double()
        for _ in range(_ROUNDS):
            answered = torch.softmax(each + found, 1)
            new = (shares @ answered).clamp_min(torch.finfo(torch.float64).tiny).log().log_softmax(0)
            settled = float((new.exp() - found.exp()).abs().max()) < _SETTLED
            found = new
            if settled:
                break
        # A few draws of each stay, so that the second time none has been lost by chance.
        log_weights = torch.logaddexp(found + math.log(0.99), mixture.log_weights.double() + math.log(0.01))
        mixture.set_log_weights(log_weights)
    mixture.set_log_weights(found)
    return mixture.log_weights


def can_be_mixed(name: str) -> bool:
    """Whether densities of a family can be components.

    Example:
        >>> can_be_mixed("nsf"), can_be_mixed("mixtureofflows"), can_be_mixed("diffusion")
        (True, True, False)
    """
    return name in FAMILIES and issubclass(FAMILIES[name], Flow | MixtureOfFlows)


def _parts(posterior: Posterior) -> tuple[list[Flow], Tensor]:
    """The flows of a fit, and the logarithms of their weights."""
    density = posterior.density
    if isinstance(density, MixtureOfFlows):
        return density.flows, density.log_weights.detach()
    assert isinstance(density, Flow)
    return [density], torch.zeros(1, dtype=density.dtype, device=density.device)
