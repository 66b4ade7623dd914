"""Distance from the mean of what is normal: all that few fields can tell."""

from __future__ import annotations

import torch
from torch import Tensor

from sciflow.anomaly.scores.rows import RowScore

__all__ = ["MeanDistance"]


class MeanDistance(RowScore):
    r"""Distance from the mean of normal rows.

    .. math:: s(x) = \| x - \bar x \|

    in the units of :class:`~sciflow.anomaly.scores.rows.RowScore`. Where there are far more dimensions than rows,
    another row is as far off as its own noise makes it, and the mean has next to none. Of tables, which have clusters,
    the nearest row says more: :class:`~sciflow.anomaly.scores.diffusion_time.DiffusionTime` of one neighbour.

    Example:
        >>> rows = torch.randn(20, 8, generator=torch.Generator().manual_seed(0))
        >>> score = MeanDistance().fit(rows)
        >>> bool(score(rows[:1]) < score(rows[:1] + 9.0))
        True
    """

    name = "mean_distance"

    def __init__(self) -> None:
        super().__init__()

    def _look_at(self, rows: Tensor) -> None:
        # Rows are centred: from the mean of the others each is n / (n - 1) times as far.
        self.found["normal"] = (self._compare(rows) * (len(rows) / max(1, len(rows) - 1))).sort().values

    def _compare(self, x: Tensor) -> Tensor:
        return x.double().norm(dim=1)

    def attribution(self, x: Tensor, context: Tensor | None) -> Tensor:
        """The distance, by the elements' shares in its square."""
        self._require_fitted()
        off = self._compared(x).double()
        distance = off.norm(dim=1, keepdim=True)
        return self._of_elements(off.square() / distance.clamp_min(torch.finfo(torch.float64).tiny), x)
