"""How much emptier it is about a row than about the normal rows next to it."""

from __future__ import annotations

import torch
from torch import Tensor

from sciflow.anomaly.scores.nearest import nearest
from sciflow.anomaly.scores.normal_scores import normal_scores
from sciflow.anomaly.scores.rows import RowScore
from sciflow.arguments import Arguments

__all__ = ["LocalOutlierFactor"]


class LocalOutlierFactor(RowScore):
    r"""Logarithm of the distance to the nearest normal rows, over that which these have to theirs; among ranks.

    .. math:: s(x) = \log r(x) - \frac1K \sum_{k=1}^K \log r(x_{(k)}), \qquad
              r(x) = \frac1K \sum_{k=1}^K \max \left( \| x - x_{(k)} \|, \; \| x_{(k)} - (x_{(k)})_{(K)} \| \right)

    Where the data are sparse, a row apart from others is nothing odd; where they are dense, it is. Every number is
    first replaced by the normal quantile of its rank among normal rows, so that heavy tails and clusters of one number
    do not hide what is odd between several. Source: Breunig et al., 2000, doi:10.1145/342009.335388, with geometric
    means.

    Args:
        num_neighbours: Nearest rows :math:`K`.

    Example:
        >>> score = LocalOutlierFactor().fit(torch.randn(100, 2, generator=torch.Generator().manual_seed(0)))
        >>> bool(score(torch.zeros(1, 2)) < score(torch.full((1, 2), 4.0)))
        True
    """

    name = "local_outlier_factor"

    def __init__(self, num_neighbours: int = 10) -> None:
        checked = Arguments("LocalOutlierFactor")
        checked.whole("num_neighbours", num_neighbours, 1, 1000)
        super().__init__(**checked.values)

    def _look_at(self, rows: Tensor) -> None:
        self.found["sorted"] = rows.sort(0).values
        rows = normal_scores(rows, self.found["sorted"])
        distances, numbers = nearest(rows, rows, self._k(rows), others=True)
        furthest = distances[:, -1]
        # Copies have no distance at all between them.
        floor = 1e-3 * furthest.median() + 1e-12
        self.found |= {"rows": rows, "furthest": furthest, "floor": floor}
        reach = self._reach(distances, numbers)
        self.found["log_reach"] = reach.log()
        self.found["normal"] = (reach.log() - self.found["log_reach"][numbers].mean(1)).sort().values

    def _compare(self, x: Tensor) -> Tensor:
        distances, numbers = nearest(
            normal_scores(x, self.found["sorted"]), self.found["rows"], self._k(self.found["rows"])
        )
        return self._reach(distances, numbers).log() - self.found["log_reach"][numbers].mean(1)

    def _k(self, rows: Tensor) -> int:
        return max(1, min(self.arguments["num_neighbours"], len(rows) - 1))

    def _reach(self, distances: Tensor, numbers: Tensor) -> Tensor:
        return torch.maximum(distances, self.found["furthest"][numbers]).mean(1) + self.found["floor"]
