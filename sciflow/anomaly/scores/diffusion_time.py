"""How long ago a row left the data, if it diffused away from them (DTE)."""

from __future__ import annotations

import torch
from torch import Tensor

from sciflow.anomaly.scores.nearest import nearest
from sciflow.anomaly.scores.rows import RowScore
from sciflow.arguments import Arguments

__all__ = ["DiffusionTime"]


class DiffusionTime(RowScore):
    r"""Noise that must have come to a row, estimated from the normal rows next to it.

    .. math:: s(x)^2 = \frac1K \sum_{k=1}^K \| x - x_{(k)} \|^2

    A row :math:`x = x_0 + \sigma \varepsilon` that began as one of the normal rows has :math:`\| x - x_0 \|^2` about
    :math:`d \sigma^2`; given that, :math:`\sigma^2` follows an inverse gamma distribution, whose mean is proportional
    to the squared distance. The :math:`K` nearest rows are those it may have begun as. Source: Livernoche et al.,
    arXiv:2305.18593, the variant without a network. With one neighbour it is the distance from the nearest row.

    Args:
        num_neighbours: Nearest rows :math:`K`.

    Example:
        >>> score = DiffusionTime().fit(torch.randn(100, 2, generator=torch.Generator().manual_seed(0)))
        >>> bool(score(torch.zeros(1, 2)) < score(torch.full((1, 2), 4.0)))
        True
    """

    name = "diffusion_time"

    def __init__(self, num_neighbours: int = 5) -> None:
        checked = Arguments("DiffusionTime")
        checked.whole("num_neighbours", num_neighbours, 1, 1000)
        super().__init__(**checked.values)

    def _look_at(self, rows: Tensor) -> None:
        self.found["rows"] = rows
        self.found["normal"] = self._times(rows, others=True).sort().values

    def _compare(self, x: Tensor) -> Tensor:
        return self._times(x, others=False)

    def attribution(self, x: Tensor, context: Tensor | None) -> Tensor:
        """The score, by the elements' shares in its square."""
        self._require_fitted()
        rows, compared = self.found["rows"], self._compared(x)
        numbers = nearest(compared, rows, self._k)[1]
        squares = torch.zeros(compared.shape, dtype=torch.float64, device=x.device)
        for number in numbers.T:
            squares += (compared.double() - rows[number].double()).square() / self._k
        score = squares.sum(1, keepdim=True).sqrt()
        return self._of_elements(squares / score.clamp_min(torch.finfo(torch.float64).tiny), x)

    def _times(self, x: Tensor, others: bool) -> Tensor:
        return nearest(x, self.found["rows"], self._k, others)[0].square().mean(1).sqrt()

    @property
    def _k(self) -> int:
        return max(1, min(self.arguments["num_neighbours"], len(self.found["rows"]) - 1))
