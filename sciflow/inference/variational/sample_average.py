"""The divergence of a few fixed draws, which is an ordinary function, lowered to the end."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from sciflow.flows import Flow, VariationalFlow
from sciflow.inference.variational.log_density import LogDensity

__all__ = ["is_small", "lower_sample_average"]

_MOST_WEIGHTS = 10_000
_DRAWS_A_WEIGHT = 2  # at the least: fewer can be fitted to themselves
_FEWEST, _MOST = 2048, 1 << 14
_ITERATIONS, _MEMORY = 60, 20
_CHANGE = 1e-9  # of the divergence, relative: no more is to be had
_APART = 2.0  # standard errors, between the draws that were fitted to and fresh ones


def is_small(flow: Flow) -> bool:
    """Whether a flow is a Gaussian of few enough weights for :func:`lower_sample_average`.

    Splines have bends that L-BFGS does not settle on, and components are drawn by no path.
    """
    return (
        isinstance(flow, VariationalFlow)
        and flow.arguments["num_transforms"] == 0
        and not flow.arguments["marginals"]
        and len(flow.base.log_weights) == 1
        and _num_weights(flow) <= _MOST_WEIGHTS
    )


def lower_sample_average(flow: Flow, target: LogDensity, generator: torch.Generator) -> tuple[int, int]:
    r"""Lower the reverse KL of common random numbers by L-BFGS, with more of them until fresh ones agree.

    .. math:: \frac{1}{n} \sum_i \log q_\theta(x_\theta(\epsilon_i)) - \log \tilde p(x_\theta(\epsilon_i))

    With the noise :math:`\epsilon` held, this is a deterministic function of the weights: there is no step size to
    choose, and it can be told when it is at its lowest. Noise is doubled until the value at fresh noise is no further
    off than noise explains. From Burroni et al., arXiv:2304.06803; Giordano et al., arXiv:2304.05527.

    Args:
        flow: Trained in place; a small one, see :func:`is_small`.
        target: What is approximated.
        generator: Of the noise.

    Returns:
        Evaluations of the sum, and draws in the last one.
    """
    count = min(_MOST, max(_FEWEST, _DRAWS_A_WEIGHT * _num_weights(flow)))
    evaluations = 0
    while True:
        seed, fresh = torch.randint(1 << 62, (2,), generator=generator).tolist()
        evaluations += _lowered(flow, target, count, seed)
        with torch.no_grad():
            fitted, anew = _terms(flow, target, count, seed), _terms(flow, target, count, fresh)
        apart = (anew.mean() - fitted.mean()).abs()
        error = ((anew.var() + fitted.var()) / count).sqrt()
        if apart <= _APART * error or 2 * count > _MOST:
            return evaluations, count
        count *= 2


def _lowered(flow: Flow, target: LogDensity, count: int, seed: int) -> int:
    """Lower the divergence of these draws; how often it was evaluated. Where they are all outside, it is infinite."""
    from scipy.optimize import minimize

    weights = [weight for weight in flow.parameters() if weight.requires_grad]
    before = parameters_to_vector(weights).detach()

    def divergence(numbers: np.ndarray) -> tuple[float, np.ndarray]:
        vector_to_parameters(torch.from_numpy(numbers).to(before), weights)
        loss = _terms(flow, target, count, seed).mean()
        if not torch.isfinite(loss):
            return math.inf, np.zeros_like(numbers)
        slope = torch.cat([part.flatten() for part in torch.autograd.grad(loss, weights)])
        return loss.item(), slope.double().cpu().numpy()

    found = minimize(
        divergence,
        before.double().cpu().numpy(),
        jac=True,
        method="L-BFGS-B",
        options={"maxiter": _ITERATIONS, "maxcor": _MEMORY, "ftol": _CHANGE},
    )
    best = torch.from_numpy(found.x).to(before)
    vector_to_parameters(best if torch.isfinite(best).all() else before, weights)
    return int(found.nfev)


def _terms(flow: Flow, target: LogDensity, count: int, seed: int) -> Tensor:
    """``log q - log p`` of the draws that have one, ``[<= count]``."""
    drawn = flow.draw(count, torch.Generator().manual_seed(seed))
    log_p, usable = target.differentiable(drawn.x)
    return (drawn.log_q - log_p)[usable]


def _num_weights(flow: Flow) -> int:
    return sum(weight.numel() for weight in flow.parameters() if weight.requires_grad)
