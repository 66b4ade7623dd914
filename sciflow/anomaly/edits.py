"""Rows made usual by changing as few of their elements as will do, little by little."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from sciflow.anomaly.scores.normal_scores import from_normal_scores, normal_scores

__all__ = ["EDITS", "Edits", "edits", "typical_rows"]

_NEIGHBOURS = 30
# Share of a row's elements that its neighbours resemble, whatever they are in the others.
_ALIKE = 0.6
# Variance that an element has beyond what neighbours show of it, where that of all normal rows is 1.
_OWN_VARIANCE = 0.1
# However far out a number is, it is no further, in standard deviations: others are still seen beside it.
_FURTHEST = 20.0
#: Edits of a row.
EDITS = 16
# The price of the last one beside that of none, and rounds to find each.
_CHEAPEST, _ROUNDS = 0.01, 20
# Normal rows that are kept: so many, or fewer where they are large.
_MOST_ROWS, _LEAST_ROWS, _MOST_KEPT = 2000, 100, 1 << 21
_VALUES_AT_A_TIME = 1 << 23


class Edits(NamedTuple):
    """Edits of rows, each larger than the one before.

    Attributes:
        rows: ``[k, n, d]``, the edited rows; numbers that are left as they are, are so to the bit.
        sizes: ``[k, n, d]``, by how much each number was moved, in standard deviations; float64, 0 where it was not.
    """

    rows: Tensor
    sizes: Tensor


def typical_rows(rows: Tensor) -> Tensor:
    """Return some of normal rows ``[n, *event_shape]``, enough to compare odd ones with: 2,000 at the most."""
    most = max(_LEAST_ROWS, min(_MOST_ROWS, _MOST_KEPT // max(1, rows.shape[1:].numel())))
    return rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))[:most]]


def edits(x: Tensor, normal: Tensor) -> Edits:
    r"""Return rows without what is odd about them, as few of their numbers changed as will do.

    A row is taken to be a normal one, of which some numbers have been moved. In normal quantiles of ranks, and with the
    mean :math:`m` and covariance :math:`C` of the normal rows next to it, the fewest numbers that explain it are

    .. math:: \delta(\lambda) = \operatorname{argmin}_\delta \;
              \tfrac12 (x - m - \delta)^T (C + \epsilon I)^{-1} (x - m - \delta) + \lambda \| \delta \|_1,
              \qquad x^{(k)} = x - \delta(\lambda_k)

    for a price :math:`\lambda` that falls from where nothing is worth its change to a hundredth of that. Where
    neighbours vary together, as the values of a smooth series do, a bump is moved as a whole, because its rest would
    be odder than all of it; where they do not, each number is moved by itself. The mean-shift model with a penalty is
    that of She and Owen, 2011, doi:10.1198/jasa.2011.tm10390; it is solved by alternating directions, Boyd et al.,
    2011, doi:10.1561/2200000016. Neighbours are nearest in three fifths of the numbers, those that are most alike:
    what is odd about a row does not choose them.

    Args:
        x: ``[n, d]``.
        normal: Normal rows ``[m, d]``, two at least.

    Example:
        >>> level = torch.randn(500, 1, generator=torch.Generator().manual_seed(0))
        >>> normal = level + 0.1 * torch.randn(500, 6, generator=torch.Generator().manual_seed(1))
        >>> row = torch.tensor([[0.5, 0.5, 3.0, 3.0, 0.5, 0.5]])
        >>> rows, sizes = edits(row, normal)
        >>> (sizes[-1] > 0.5).int().tolist(), rows[-1].round(decimals=0).abs().amax().item()
        ([[0, 0, 1, 1, 0, 0]], 1.0)
    """
    ordered, scale, known = _known(normal)
    rows, sizes = [], []
    for part in x.split(max(1, _VALUES_AT_A_TIME // (normal.numel() + normal.shape[1] ** 2))):
        scores = normal_scores(part.double(), ordered, scale).clamp(-_FURTHEST, _FURTHEST)
        mean, covariance = _neighbourhoods(scores, known)
        moved = _sparse(scores - mean, covariance)
        edited = from_normal_scores((scores - moved).flatten(0, 1), ordered, scale).reshape(moved.shape)
        rows.append(torch.where(moved == 0, part, edited.to(part.dtype)))
        sizes.append(moved)
    return Edits(torch.cat(rows, 1), torch.cat(sizes, 1))


@lru_cache(maxsize=2)
def _known(normal: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Columns of normal rows, sorted, their scales, and the rows' normal scores; kept for those that come again."""
    ordered = normal.double().sort(0).values
    spread = ordered.std(0)
    scale = torch.where(spread > 1e-12 * ordered.abs().amax(0), spread, 1.0)
    return ordered, scale, normal_scores(normal.double(), ordered, scale)


def _neighbourhoods(x: Tensor, normal: Tensor) -> tuple[Tensor, Tensor]:
    """Mean ``[n, d]`` and covariance ``[n, d, d]`` of the normal rows next to each row."""
    d = x.shape[1]
    num_alike = max(1, round(_ALIKE * d))
    apart = _least((x[:, None] - normal).square(), num_alike).sum(2)
    nearest = normal[apart.topk(min(_NEIGHBOURS, len(normal)), largest=False).indices]
    mean = nearest.mean(1)
    off = nearest - mean[:, None]
    covariance = off.mT @ off / max(1, off.shape[1] - 1)
    return mean, covariance + _OWN_VARIANCE * torch.eye(d, dtype=x.dtype, device=x.device)


def _least(values: Tensor, num: int) -> Tensor:
    """The least numbers along the last axis, in any order."""
    if values.device.type == "cpu":
        # Six times as fast as torch's topk, which sorts.
        return torch.from_numpy(np.partition(values.numpy(), num - 1, -1)[..., :num])
    return values.topk(num, largest=False, sorted=False).values


def _sparse(x: Tensor, covariance: Tensor) -> Tensor:
    """What of rows ``[n, d]`` is worth its price, ``[k, n, d]``, for prices that fall."""
    eye = torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
    price = torch.linalg.solve(covariance, x).abs().amax(1, keepdim=True)
    # Of the two that alternate, one is a quadratic, whose minimum is a mean of x and where the other is.
    weight = torch.linalg.inv(eye + covariance)
    explained, over = torch.zeros_like(x), torch.zeros_like(x)
    found = []
    for step in range(1, EDITS + 1):
        least = price * _CHEAPEST ** (step / EDITS)
        for _ in range(_ROUNDS):
            target = explained - over
            smooth = target + (weight @ (x - target)[..., None])[..., 0]
            explained = _shrunk(smooth + over, least)
            over = over + smooth - explained
        found.append(explained)
    return torch.stack(found)


def _shrunk(x: Tensor, by: Tensor) -> Tensor:
    return x.sign() * (x.abs() - by).clamp_min(0)
