"""Typicality: how far log p is from what it usually is, to either side."""

from __future__ import annotations

from torch import Tensor

from sciflow.anomaly.scores.base import Score
from sciflow.density import Density

__all__ = ["Typicality"]


class Typicality(Score):
    r"""Distance of the surprise from its median, in units of its usual distance.

    .. math:: s(x) = \frac{|-\log p(x) - m|}{\operatorname{median} |-\log p - m|}, \qquad
              m = \operatorname{median} (-\log p)

    In many dimensions normal rows lie in a shell: a row that is more likely than any of them is odd, too. Medians in
    the place of means, so that a few rows far out do not set the scale. Source: Nalisnick et al., arXiv:1906.02994.

    Args:
        density: Any trained density.

    Example:
        >>> import torch
        >>> from sciflow.flows import NSF
        >>> rows = torch.randn(200, 2, generator=torch.Generator().manual_seed(0))
        >>> score = Typicality(NSF((2,), num_transforms=1)).fit(rows)
        >>> bool(score(torch.zeros(1, 2)) < score(torch.full((1, 2), 9.0)))
        True
    """

    name = "typicality"
    has_gradient = True

    def __init__(self, density: Density) -> None:
        super().__init__(density)

    def _fit(self, x: Tensor, context: Tensor | None, reference: Tensor, reference_context: Tensor | None) -> None:
        surprise = self._surprise(reference, reference_context)
        surprise = surprise[surprise.isfinite()]
        centre = surprise.median()
        width = (surprise - centre).abs().median()
        self.found = {"centre": centre, "width": width.clamp_min(1e-6 * centre.abs().clamp_min(1))}

    def _scores(self, x: Tensor, context: Tensor | None) -> Tensor:
        return (self._surprise(x, context) - self.found["centre"]).abs() / self.found["width"]

    def _surprise(self, x: Tensor, context: Tensor | None) -> Tensor:
        return -self.densities[0].log_prob(x, context).double()
