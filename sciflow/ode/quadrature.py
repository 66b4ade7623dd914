"""Integrals along paths, from values at the nodes of Gauss inside panels, and how far they may be off."""

from __future__ import annotations

import torch
from numpy.polynomial import legendre
from torch import Tensor

__all__ = ["doubts", "gauss"]

# Panels whose nodes make the polynomial that the rule is held against.
_WINDOW = 3


def gauss(num_nodes: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Return the nodes in (0, 1) and the weights of Gauss and Legendre's rule, of order ``2 num_nodes``.

    Args:
        num_nodes: How many.
        like: A tensor whose dtype and device they get.

    Example:
        >>> gauss(1, torch.zeros(()))
        (tensor([0.5000]), tensor([1.]))
    """
    nodes, weights = legendre.leggauss(num_nodes)
    return torch.from_numpy(0.5 + nodes / 2).to(like), torch.from_numpy(weights / 2).to(like)


def doubts(values: Tensor, rows: Tensor, start: Tensor, width: Tensor) -> Tensor:
    """Return how far the integrals of a smooth integrand over neighbouring panels may be off.

    Each is held against that of the polynomial through the nodes of a panel and of its neighbours on both sides, three
    times as many, which is of a higher order.

    Args:
        values: ``[panels, m]``, the integrand at the nodes, float64.
        rows: ``[panels]``, whose panels these are; those of one row are together, in the order of time, without gaps.
        start: ``[panels]``, when each begins.
        width: ``[panels]``, its length.

    Returns:
        ``[panels]``, differences without sign.
    """
    nodes, weights = gauss(values.shape[1], values)
    place = torch.arange(len(values), device=values.device)
    first = torch.searchsorted(rows, rows)
    count = torch.searchsorted(rows, rows, right=True) - first
    result = width * (values @ weights)
    for size in range(2, _WINDOW + 1):
        chosen = torch.nonzero(count.clamp_max(_WINDOW) == size).squeeze(1)
        if not len(chosen):
            continue
        latest = first[chosen] + count[chosen] - size
        begin = torch.minimum(torch.maximum(chosen - size // 2, first[chosen]), latest)
        window = begin[:, None] + place[:size]
        left, right = start[window[:, 0]], start[window[:, -1]] + width[window[:, -1]]
        middle, half = (left + right) / 2, (right - left) / 2
        at = (start[window][..., None] + width[window][..., None] * nodes).flatten(1)
        degree = size * values.shape[1]
        basis = _legendre((at - middle[:, None]) / half[:, None], degree)
        coefficients = torch.linalg.solve(basis, values[window].flatten(1))
        ends = [(edge - middle) / half for edge in (start[chosen], start[chosen] + width[chosen])]
        before, after = (_primitives(edge, degree) for edge in ends)
        result[chosen] -= half * ((after - before) * coefficients).sum(1)
    return torch.where(count > 1, result.abs(), torch.inf)


def _legendre(x: Tensor, count: int) -> Tensor:
    """Legendre's polynomials of degrees below ``count``, ``[*x.shape, count]``."""
    found = [torch.ones_like(x), x]
    for degree in range(1, count - 1):
        found.append(((2 * degree + 1) * x * found[-1] - degree * found[-2]) / (degree + 1))
    return torch.stack(found[:count], -1)


def _primitives(x: Tensor, count: int) -> Tensor:
    """Their integrals up to ``x``, give or take a constant."""
    found = _legendre(x, count + 1)
    degrees = torch.arange(1, count).to(x)
    return torch.cat([found[..., 1:2], (found[..., 2:] - found[..., :-2]) / (2 * degrees + 1)], -1)
