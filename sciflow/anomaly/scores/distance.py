"""Distance from what is normal: all that few rows can tell."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from sciflow.anomaly.scores.nearest import nearest
from sciflow.anomaly.scores.rows import RowScore
from sciflow.arguments import Arguments

__all__ = ["Distance"]

_KINDS = ("nearest", "mean")


class Distance(RowScore):
    r"""Distance from the nearest normal row, or from the mean of all.

    .. math:: s(x) = \min_i \| x - x_i \| \quad \text{or} \quad \| x - \bar x \|

    in the units of :class:`~sciflow.anomaly.scores.rows.RowScore`. Of few rows the nearest serves tables, which have
    clusters; of few fields, in many more dimensions than there are fields, another one is as far off as its own noise
    makes it, and the mean has next to none.

    Args:
        to: ``"nearest"`` or ``"mean"``.

    Example:
        >>> rows = torch.randn(20, 8, generator=torch.Generator().manual_seed(0))
        >>> score = Distance().fit(rows)
        >>> bool(score(rows[:1] + 0.1) < score(rows[:1] + 9.0))
        True
    """

    name = "distance"

    def __init__(self, to: Literal["nearest", "mean"] = "nearest") -> None:
        checked = Arguments("Distance")
        super().__init__(to=checked.choice("to", to, _KINDS))

    def _look_at(self, rows: Tensor) -> None:
        self.found["rows"] = rows
        if self.arguments["to"] == "mean":
            # Rows are centred: from the mean of the others each is n / (n - 1) times as far.
            normal = rows.double().norm(dim=1) * (len(rows) / max(1, len(rows) - 1))
        else:
            normal = nearest(rows, rows, 1, others=len(rows) > 1)[0][:, 0]
        self.found["normal"] = normal.sort().values

    def _compare(self, x: Tensor) -> Tensor:
        return self._off(x).norm(dim=1)

    def attribution(self, x: Tensor, context: Tensor | None) -> Tensor:
        """The distance, by the elements' shares in its square."""
        self._require_fitted()
        off = self._off(self._compared(x))
        share = off.square() / off.norm(dim=1, keepdim=True).clamp_min(torch.finfo(torch.float64).tiny)
        return self._of_elements(share, x)

    def _off(self, x: Tensor) -> Tensor:
        """What lies between rows ``[n, d]`` and normal ones, float64."""
        if self.arguments["to"] == "mean":
            return x.double()
        rows = self.found["rows"]
        return x.double() - rows[nearest(x, rows, 1)[1][:, 0]].double()
