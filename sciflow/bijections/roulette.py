"""The log-determinant of the identity plus a contraction, from products of its Jacobian with random vectors."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sciflow.derivatives import differentiable_once

__all__ = ["Roulette", "log_det_estimates"]

_CERTAIN_TERMS = 4  # the largest ones, which every estimate has


@dataclass(frozen=True)
class Roulette:
    r"""How many terms of the series each estimate has, and the vectors that it is made with.

    Attributes:
        num_terms: Of each estimate, the longest first.
        survival: Probability with which an estimate that has the certain terms goes on, at every further one.
        probes: Vectors of random signs ``[n, num_estimates, num_features]``; :math:`n = 1` serves all rows.
    """

    num_terms: list[int]
    survival: float
    probes: Tensor

    @classmethod
    def drawn(cls, rows: Tensor, num_estimates: int, bound: float, generator: torch.Generator | None) -> Roulette:
        """Draw the estimates of a contraction.

        Args:
            rows: Where it is looked at, ``[n, num_features]``.
            num_estimates: Independent estimates of each row.
            bound: Lipschitz bound of the contraction: the survival is its square. A term's weight then grows no faster
                than the square of its own size may shrink, and the variance is finite for every contraction.
            generator: On the CPU, so that it draws the same for every device, and the same probes for all rows. None
                draws every row's own, from torch's generator on its device.
        """
        survival = bound**2
        uniform = 1 - torch.rand(num_estimates, generator=generator, dtype=torch.float64)
        lengths = sorted((int(math.log(u) / math.log(survival)) for u in uniform.tolist()), reverse=True)
        shape = (len(rows) if generator is None else 1, num_estimates, rows.shape[-1])
        device = rows.device if generator is None else torch.device("cpu")
        signs = 2 * torch.randint(0, 2, shape, generator=generator, device=device) - 1
        return cls([_CERTAIN_TERMS + length for length in lengths], survival, signs.to(rows))


def log_det_estimates(product: Callable[[Tensor], Tensor], roulette: Roulette) -> tuple[Tensor, int]:
    r"""Estimate log det(I + J) without bias, from products with J alone.

    .. math:: \log \det (I + J) = \sum_{k \ge 1} \frac{(-1)^{k+1}}{k} \, \mathrm{tr} \, J^k =
              \mathbb{E}_{v, N} \sum_{k=1}^{N} \frac{(-1)^{k+1}}{k} \, \frac{v^\top J^k v}{P(N \ge k)}

    The gradient is an estimate of its own, :math:`v^\top (\partial J) \, u` with
    :math:`u = \sum_{k=0}^N (-J)^k v / P(N \ge k)`, which is :math:`(I + J)^{-1} v` in the mean: it takes the memory of
    one product, whatever the number of terms. To differentiate it again raises an error. From Chen et al.,
    arXiv:1906.02735.

    Args:
        product: Gives J times vectors ``[n, m, num_features]``; ``n = 1`` stands for all rows.
        roulette: The draws.

    Returns:
        Independent estimates ``[n, num_estimates]``, and how many products they took.

    Example:
        >>> jacobian = torch.tensor([[0.3, 0.1], [0.0, -0.2]])
        >>> roulette = Roulette.drawn(torch.zeros(1, 2), 4000, 0.5, torch.Generator().manual_seed(0))
        >>> estimates, _ = log_det_estimates(lambda vectors: vectors @ jacobian.T, roulette)
        >>> abs(estimates.mean() - math.log(1.3 * 0.8)) < 3 * estimates.std() / 4000**0.5
        tensor(True)
    """
    probes, num_terms = roulette.probes, roulette.num_terms
    negligible = 1e-3 * torch.finfo(probes.dtype).eps
    with torch.no_grad():
        power = product(probes)
        estimates, solution, num_products = (probes * power).sum(-1), probes - power, len(num_terms)
        for term in range(2, num_terms[0] + 1):
            # Estimates that have all their terms leave from the back.
            num_left = sum(length >= term for length in num_terms)
            power = product(power[:, :num_left])
            weight = (-1) ** term / roulette.survival ** max(0, term - _CERTAIN_TERMS)
            estimates[:, :num_left] -= weight / term * (probes[:, :num_left] * power).sum(-1)
            solution[:, :num_left] += weight * power
            num_products += num_left
            # What follows is below rounding, and numbers this small are slow to multiply.
            if (power.abs() * abs(weight) < negligible).all():
                break
    if not torch.is_grad_enabled():
        return estimates, num_products
    slope = differentiable_once(
        (probes * product(solution)).sum(-1),
        "an estimated log-determinant",
        "Take the exact one: likelihood(x, method='exact'), or a larger exact_features",
    )
    return estimates + slope - slope.detach(), num_products + len(num_terms)
