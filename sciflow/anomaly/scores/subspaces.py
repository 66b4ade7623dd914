"""Distance to normal rows in small groups of numbers: what is odd about a row may lie in few of them."""

from __future__ import annotations

from itertools import combinations
from math import ceil, comb

import torch
from torch import Tensor

from sciflow.anomaly.scores.nearest import nearest
from sciflow.anomaly.scores.rows import RowScore
from sciflow.anomaly.scores.surprise import surprise
from sciflow.arguments import Arguments

__all__ = ["SubspaceDistance"]

_MOST_ROWS = 1500  # to compare with, in every subspace
_ALARMED = 0.1


class SubspaceDistance(RowScore):
    r"""Distance of the fifth nearest normal row in each of many subsets of the numbers: the tenth that is most alarmed.

    .. math:: s(x) = \frac{1}{|T|} \sum_{j \in T} u_j \left( \| x_{A_j} - (x_{A_j})_{(5)} \| \right)

    with :math:`u_j` how unusual the distance is in the subset :math:`A_j`, see
    :func:`sciflow.anomaly.scores.surprise.surprise`, and :math:`T` the tenth of the subsets where it is most so. Among
    all numbers at once, those that are as usual drown the few that are not. Subsets are parts of random orders, so that
    every number is in as many; what stands for numbers that never vary is in all of them. Source: feature bagging,
    Lazarevic and Kumar, 2005, doi:10.1145/1081870.1081891.

    Args:
        size: Numbers in a subset: a number, or a share of them.
        num_subspaces: Subsets, at the least; all there are, where there are no more.
        seed: Of the subsets.

    Example:
        >>> rows = torch.randn(200, 8, generator=torch.Generator().manual_seed(0))
        >>> score = SubspaceDistance(size=2).fit(rows)
        >>> bool(score(rows[:1]) < score(rows[:1] + 9.0))
        True
    """

    name = "subspace_distance"

    def __init__(self, size: int | float = 0.5, num_subspaces: int = 20, seed: int = 0) -> None:
        checked = Arguments("SubspaceDistance")
        if isinstance(size, float):
            checked.fraction("size", size)
        else:
            checked.whole("size", size, 1, 1 << 20)
        checked.whole("num_subspaces", num_subspaces, 1, 10_000)
        checked.seed(seed)
        super().__init__(**checked.values)

    def _look_at(self, rows: Tensor) -> None:
        generator = torch.Generator().manual_seed(self.arguments["seed"] or 0)
        rows = rows[torch.randperm(len(rows), generator=generator)[:_MOST_ROWS].to(rows.device)]
        size, d = self.arguments["size"], len(self.found["varies"])
        size = max(2, int(size * d)) if isinstance(size, float) else size
        subsets = _subsets(d, min(size, d), self.arguments["num_subspaces"], generator)
        if rows.shape[1] > d:
            subsets = torch.cat([subsets, torch.full((len(subsets), 1), d)], 1)
        subsets = subsets.to(rows.device)
        distances = [_distance(rows[:, subset], rows[:, subset], others=True) for subset in subsets]
        each = torch.stack([distance.sort().values for distance in distances])
        self.found |= {"rows": rows, "subsets": subsets, "distances": each}
        self.found["normal"] = self._most_alarmed(distances).sort().values

    def _compare(self, x: Tensor) -> Tensor:
        rows = self.found["rows"]
        return self._most_alarmed([_distance(x[:, subset], rows[:, subset]) for subset in self.found["subsets"]])

    def _most_alarmed(self, distances: list[Tensor]) -> Tensor:
        each = torch.stack([surprise(d, normal) for d, normal in zip(distances, self.found["distances"], strict=True)])
        return each.topk(ceil(_ALARMED * len(each)), 0).values.mean(0)


def _distance(x: Tensor, rows: Tensor, others: bool = False) -> Tensor:
    return nearest(x, rows, max(1, min(5, len(rows) - 1)), others)[0][:, -1]


def _subsets(d: int, size: int, least: int, generator: torch.Generator) -> Tensor:
    """Subsets of ``size`` of ``d`` numbers, ``[num, size]``, in which all come equally often, or nearly."""
    if comb(d, size) <= least:
        return torch.tensor(list(combinations(range(d), size)), dtype=torch.long).reshape(-1, size)
    found: list[Tensor] = []
    while len(found) < least:
        order = torch.randperm(d, generator=generator)
        parts = list(order.split(size))
        if len(parts[-1]) < size:
            # Filled up with numbers of the other parts.
            others = order[: d - len(parts[-1])][torch.randperm(d - len(parts[-1]), generator=generator)]
            parts[-1] = torch.cat([parts[-1], others[: size - len(parts[-1])]])
        found += parts
    return torch.stack(found)
