"""Solutions in few steps that are trained through: what is computed is what is optimised."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

__all__ = ["Trajectory", "discretised", "jittered"]


class Trajectory(NamedTuple):
    r"""Where rows end, and integrals along their way.

    Attributes:
        end: ``[n, d]``.
        log_det: ``[n]``, of :math:`\operatorname{tr} J`.
        kinetic: ``[n]``, of :math:`|v|^2`.
        roughness: ``[n]``, of :math:`|J|^2`, by Frobenius' norm.
    """

    end: Tensor
    log_det: Tensor
    kinetic: Tensor
    roughness: Tensor


def discretised(velocity: Callable[[Tensor, Tensor], Tensor], z: Tensor, times: Tensor, probes: Tensor) -> Trajectory:
    r"""Follow rows by the classical method of Runge and Kutta, with a graph; memory holds that of one step at a time.

    .. math:: \operatorname{tr} J \approx \epsilon^T J \epsilon, \qquad |J|^2 \approx |\epsilon^T J|^2

    with one probe :math:`\epsilon` of a row all the way; right on average, and in one dimension. Source: Grathwohl et
    al., arXiv:1810.01367; Finlay et al., arXiv:2002.02798, for the other two integrals; Onken and Ruthotto,
    arXiv:2005.13420, for steps that are fixed before they are optimised.

    Args:
        velocity: ``velocity(t, z)`` returns ``[n, d]``, with ``t`` ``[1]``: one time for all rows.
        z: ``[n, d]``, where rows begin.
        times: ``[steps + 1]``, where steps begin and end.
        probes: ``[n, d]``, signs.

    Example:
        >>> found = discretised(lambda t, z: z, torch.ones(1, 2), torch.linspace(0, 1, 9), torch.ones(1, 2))
        >>> [round(value.item(), 3) for value in found[1:]]
        [2.0, 6.389, 2.0]
    """

    def rates(t: Tensor, z: Tensor) -> Trajectory:
        with torch.enable_grad():
            if not z.requires_grad:
                z = z.detach().requires_grad_()
            v = velocity(t[None], z)
            (product,) = torch.autograd.grad(v, z, probes, create_graph=True)
        return Trajectory(v, (product * probes).sum(1), v.square().sum(1), product.square().sum(1))

    def step(begin: Tensor, end: Tensor, *state: Tensor) -> Trajectory:
        h, half = end - begin, (begin + end) / 2
        first = rates(begin, state[0])
        second = rates(half, state[0] + h / 2 * first.end)
        third = rates(half, state[0] + h / 2 * second.end)
        fourth = rates(end, state[0] + h * third.end)
        stages = zip(state, first, second, third, fourth, strict=True)
        return Trajectory(*(at + h / 6 * (a + 2 * b + 2 * c + d) for at, a, b, c, d in stages))

    zero = z.new_zeros(len(z))
    state = Trajectory(z, zero, zero, zero)
    for begin, end in zip(times[:-1].to(z), times[1:].to(z), strict=True):
        state = checkpoint(step, begin, end, *state, use_reentrant=False)
    return state


def jittered(num_steps: int, device: torch.device) -> Tensor:
    """Return times ``[num_steps + 1]`` from 0 to 1, those between moved by chance: no network fits such a grid.

    Each moves by up to a quarter of a step to both sides.

    Example:
        >>> times = jittered(4, torch.device("cpu"))
        >>> (4 * times).round().tolist()
        [0.0, 1.0, 2.0, 3.0, 4.0]
    """
    times = torch.arange(num_steps + 1, dtype=torch.float64, device=device)
    times[1:-1] += (torch.rand(num_steps - 1, dtype=torch.float64, device=device) - 0.5) / 2
    return times / num_steps
