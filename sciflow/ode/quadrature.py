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
    r"""Return how far the integrals of smooth integrands over neighbouring panels may be off.

    Each is held against that of the polynomial :math:`p` through the nodes of a panel and of its neighbours on both
    sides, three times as many, which is of a higher order. In Newton's form, its own nodes first,

    .. math:: p(u) = \sum_k f[u_0, \dots, u_k] \prod_{i < k} (u - u_i)

    the terms of its own nodes are what Gauss's rule is right for, and the integrals of the others are the difference.

    Args:
        values: ``[panels, m, *]``, integrands at the nodes, float64.
        rows: ``[panels]``, whose panels these are; those of one row are together, in the order of time, without gaps.
        start: ``[panels]``, when each begins.
        width: ``[panels]``, its length.

    Returns:
        ``[panels, *]``, differences without sign.
    """
    nodes, _ = gauss(values.shape[1], values)
    first = torch.searchsorted(rows, rows)
    count = torch.searchsorted(rows, rows, right=True) - first
    place = torch.arange(len(values), device=values.device)
    kinds = values.shape[2:]
    result = torch.full((len(values), *kinds), torch.inf, dtype=values.dtype, device=values.device)
    for size in range(2, _WINDOW + 1):
        chosen = torch.nonzero(count.clamp_max(_WINDOW) == size).squeeze(1)
        if not len(chosen):
            continue
        latest = first[chosen] + count[chosen] - size
        begin = torch.minimum(torch.maximum(chosen - size // 2, first[chosen]), latest)
        window = begin[:, None] + place[:size]
        # In units of its own panel, which is [0, 1].
        at = ((start[window] - start[chosen, None])[..., None] + width[window][..., None] * nodes).flatten(1)
        at = at / width[chosen, None]
        # From the inside out, so that no digits are lost: its own nodes come first.
        order = torch.argsort((at - 0.5).abs(), dim=1)
        found = values[window].flatten(1, 2)
        found = found.gather(1, order.reshape(*order.shape, *[1] * len(kinds)).expand_as(found))
        at = at.gather(1, order)
        terms, products = _divided_differences(at, found), _integrals_of_products(at)
        own = values.shape[1]
        result[chosen] = torch.einsum("p,pk...,pk->p...", width[chosen], terms[:, own:], products[:, own:]).abs()
    return result


def _divided_differences(at: Tensor, values: Tensor) -> Tensor:
    """Newton's coefficients of the polynomials through values ``[panels, k, *]`` at ``[panels, k]``, of that shape."""
    shape = (*at.shape, *[1] * (values.ndim - 2))
    at = at.reshape(shape)
    found = [values[:, 0]]
    for degree in range(1, at.shape[1]):
        values = values.diff(dim=1) / (at[:, degree:] - at[:, :-degree])
        found.append(values[:, 0])
    return torch.stack(found, 1)


def _integrals_of_products(at: Tensor) -> Tensor:
    r"""Integrals from 0 to 1 of :math:`\prod_{i < k} (u - u_i)`, ``[panels, k]``."""
    points, weights = gauss(at.shape[1] // 2 + 1, at)
    products = (points - at[:, :, None])[:, :-1].cumprod(1)
    ones = torch.ones_like(products[:, :1])
    return torch.cat([ones, products], 1) @ weights
