"""Likelihood ratio: what a row owes to being of the kind that was learned, and not to what all rows have in common."""

from __future__ import annotations

from torch import Tensor

from sciflow.anomaly.scores.base import Score
from sciflow.density import Density
from sciflow.errors import ShapeError

__all__ = ["LikelihoodRatio"]


class LikelihoodRatio(Score):
    r"""Log-likelihood under a background model, less that under the density.

    .. math:: s(x) = \log p_{\text{background}}(x) - \log p(x)

    The background is trained on rows of a wider kind: all stations, perturbed rows, fields without the structure that
    counts. What makes a row likely under both cancels. Source: Ren et al., arXiv:1906.02845.

    Args:
        density: Of what is normal.
        background: Of the wider kind; of the same events.

    Raises:
        ShapeError: The densities are of different events.

    Example:
        >>> import torch
        >>> from sciflow.flows import NSF
        >>> flow = NSF((2,), num_transforms=1)
        >>> LikelihoodRatio(flow, background=flow)(torch.zeros(2, 2))
        tensor([0., 0.], dtype=torch.float64)
    """

    name = "likelihood_ratio"
    has_gradient = True

    def __init__(self, density: Density, background: Density) -> None:
        mine, other = ((d.event_shape, d.context_shape) for d in (density, background))
        if mine != other:
            raise ShapeError(f"likelihood_ratio: events and contexts {mine} of the density, {other} of the background")
        super().__init__(density, background)

    def _scores(self, x: Tensor, context: Tensor | None) -> Tensor:
        density, background = self.densities
        return background.log_prob(x, context).double() - density.log_prob(x, context).double()
