"""Numbers as normal quantiles of their ranks among normal rows, and back."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["from_normal_scores", "normal_scores"]


def normal_scores(x: Tensor, ordered: Tensor, scale: Tensor | float = 1.0) -> Tensor:
    r"""Return the normal quantile of every number's rank; outside of all it goes on in units of ``scale``.

    .. math:: q_j = \Phi^{-1} \left( \frac{r_j(x_j)}{m + 1} \right)

    with :math:`r_j` the middle of the ranks that it has among the :math:`m` numbers of its column. So heavy tails do
    not hide what is odd beside them, and columns of any distribution have one unit.

    Args:
        x: ``[n, d]``.
        ordered: ``[m, d]``, every column sorted.
        scale: ``[d]``, or one for all.

    Example:
        >>> ordered = torch.arange(9.0)[:, None]
        >>> normal_scores(torch.tensor([[4.0], [8.0], [10.0]]), ordered).round(decimals=2).flatten()
        tensor([0.0000, 1.2800, 3.6400])
    """
    columns, values = ordered.T.contiguous(), x.T.contiguous()
    ranks = torch.searchsorted(columns, values) + torch.searchsorted(columns, values, right=True)
    inside = torch.special.ndtri((ranks.to(x.dtype) / 2 + 0.5) / (len(ordered) + 1))
    outside = (values - columns[:, -1:]).clamp_min(0) - (columns[:, :1] - values).clamp_min(0)
    return inside.T + outside.T / scale


def from_normal_scores(q: Tensor, ordered: Tensor, scale: Tensor | float = 1.0) -> Tensor:
    """Return the numbers that have such scores: what :func:`normal_scores` undoes, linear from one number to the next.

    Args:
        q: ``[n, d]``.
        ordered: ``[m, d]``, every column sorted.
        scale: ``[d]``, or one for all.

    Example:
        >>> ordered = torch.arange(9.0)[:, None]
        >>> from_normal_scores(torch.tensor([[0.0], [3.2816]]), ordered).round(decimals=2).flatten()
        tensor([ 4., 10.])
    """
    m = len(ordered)
    grid = torch.special.ndtri(torch.arange(1, m + 1, dtype=q.dtype, device=q.device) / (m + 1))
    within = q.clamp(grid[0], grid[-1])
    above = torch.searchsorted(grid, within.contiguous()).clamp(1, max(1, m - 1)).clamp_max(m - 1)
    below = (above - 1).clamp_min(0)
    share = ((within - grid[below]) / (grid[above] - grid[below]).clamp_min(torch.finfo(q.dtype).tiny)).clamp(0, 1)
    low, high = ordered.gather(0, below), ordered.gather(0, above)
    return low + share * (high - low) + (q - within) * scale
