"""The log-determinant of a contraction added to the identity, from products of its Jacobian with random vectors."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Roulette", "log_det_estimates"]

_CERTAIN_TERMS = 4  # the largest ones, of which every estimate has all


@dataclass(frozen=True)
class Roulette:
    """How many terms of the series each estimate has, and the vectors that it is made with.

    Attributes:
        num_terms: Of each estimate, the longest first.
        probes: Vectors of random signs, ``[rows, num_estimates, num_features]``; one row stands for all rows.
        survival: Probability with which an estimate that has come past the certain terms goes on, at every term.
    """

    num_terms: list[int]
    probes: Tensor
    survival: float

    @classmethod
    def drawn(
        cls,
        rows: int,
        num_estimates: int,
        num_features: int,
        like: Tensor,
        bound: float,
        generator: torch.Generator | None = None,
    ) -> Roulette:
        """Draw estimates for a contraction by the factor ``bound``.

        Args:
            rows: 1 for the same probes in all rows, or the number of rows.
            num_estimates: Independent estimates a row.
            num_features: Length of the vectors.
            like: A tensor of the dtype and device that the probes are to have.
            bound: Lipschitz bound of the contraction.
            generator: On the CPU, so that every device sees the same draws; None takes torch's own, and draws probes
                on the device.
        """
        # The weight of a term grows by 1 / survival where the term itself may shrink by no more than bound: with a
        # survival of bound**2 or above the variance is finite for every contraction.
        survival = bound**2
        uniform = 1 - torch.rand(num_estimates, generator=generator, dtype=torch.float64)
        lengths = sorted((int(math.log(u) / math.log(survival)) for u in uniform.tolist()), reverse=True)
        device = like.device if generator is None else torch.device("cpu")
        signs = torch.randint(0, 2, (rows, num_estimates, num_features), generator=generator, device=device)
        probes = (2 * signs - 1).to(like)
        return cls([_CERTAIN_TERMS + length for length in lengths], probes, survival)

    def weight(self, term: int) -> float:
        """The inverse of the probability that an estimate has the term, counted from 1."""
        return self.survival ** -max(0, term - _CERTAIN_TERMS)


def log_det_estimates(product: Callable[[Tensor], Tensor], roulette: Roulette) -> Tensor:
    r"""Estimate log det(I + J) without bias, from products with J alone.

    .. math:: \log \det (I + J) = \sum_{k \ge 1} \frac{(-1)^{k+1}}{k} \, \mathrm{tr} \, J^k =
              \mathbb{E}_{v, N} \sum_{k=1}^{N} \frac{(-1)^{k+1}}{k} \, \frac{v^\top J^k v}{P(N \ge k)}

    The gradient is an estimate of its own, :math:`v^\top (\partial J) \, u` with :math:`u = \sum_k (-J)^k v /
    P(N \ge k)`, which is :math:`(I + J)^{-1} v` on average: it takes the memory of one product, not of all. It has a
    first derivative alone. From Chen et al., arXiv:1906.02735.

    Args:
        product: Takes vectors ``[n, m, num_features]``, or ``[1, m, num_features]`` for all rows, to J times them.
        roulette: The draws.

    Returns:
        Independent estimates ``[n, num_estimates]``.

    Example:
        >>> one = Roulette.drawn(1, 4000, 2, torch.zeros(()), bound=0.5, generator=torch.Generator().manual_seed(0))
        >>> estimates = log_det_estimates(lambda v: v @ torch.tensor([[0.3, 0.1], [0.0, -0.2]]), one)
        >>> abs(float(estimates.mean()) - math.log(1.3 * 0.8)) < 2 * float(estimates.std()) / 4000**0.5
        True
    """
    probes = roulette.probes
    with torch.no_grad():
        power, estimates, solution = probes, 0.0 * probes.sum(-1), probes
        for term in range(1, roulette.num_terms[0] + 1):
            alive = sum(length >= term for length in roulette.num_terms)
            power = product(power[:, :alive])
            weighted = (-roulette.weight(term) if term % 2 == 0 else roulette.weight(term)) * power
            estimates = _add(estimates, (probes[:, :alive] * weighted).sum(-1) / term, 1)
            solution = _add(solution, -weighted, 1)
    if not torch.is_grad_enabled():
        return estimates
    slope = (probes * product(solution)).sum(-1)
    return estimates + slope - slope.detach()


def _add(total: Tensor, part: Tensor, dim: int) -> Tensor:
    """Add to the first entries along a dimension."""
    rest = total.narrow(dim, part.shape[dim], total.shape[dim] - part.shape[dim])
    head = total.narrow(dim, 0, part.shape[dim]) + part
    return torch.cat((head, rest.expand(head.shape[0], *rest.shape[1:])), dim) if rest.shape[dim] else head
