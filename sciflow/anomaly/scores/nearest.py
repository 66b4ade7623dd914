"""The nearest of many rows."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["nearest"]

_VALUES_AT_A_TIME = 1 << 23


def nearest(x: Tensor, rows: Tensor, k: int, others: bool = False) -> tuple[Tensor, Tensor]:
    """Return the distances of the ``k`` nearest rows, rising, and their numbers, ``[n, k]`` each.

    Candidates are found by products of matrices; their distances are computed anew from differences, so that a row's
    own copy is at distance 0.

    Args:
        x: ``[n, d]``.
        rows: ``[m, d]``, ``k`` of them at least.
        k: How many.
        others: Leave the row of the same number out: ``x`` are the rows themselves.

    Example:
        >>> rows = torch.tensor([[0.0], [1.0], [3.0]])
        >>> distances, numbers = nearest(rows, rows, 1, others=True)
        >>> distances.flatten().tolist(), numbers.flatten().tolist()
        ([1.0, 1.0, 2.0], [1, 0, 1])
    """
    squares = rows.square().sum(1)
    distances, numbers = [], []
    step = max(1, _VALUES_AT_A_TIME // len(rows))
    for start in range(0, len(x), step):
        part = x[start : start + step]
        apart = squares - 2 * part @ rows.T
        if others:
            same = torch.arange(len(part), device=x.device)
            apart[same, same + start] = torch.inf
        found = apart.topk(k, largest=False).indices
        off = (part[:, None] - rows[found]).double().square().sum(2).sqrt()
        off, order = off.sort(1)
        distances.append(off)
        numbers.append(found.gather(1, order))
    if not distances:
        return x.new_zeros(0, k, dtype=torch.float64), torch.zeros(0, k, dtype=torch.long, device=x.device)
    return torch.cat(distances), torch.cat(numbers)
