"""How far from its centre the noise is that a row is made of."""

from __future__ import annotations

from torch import Tensor

from sciflow.anomaly.scores.base import Score
from sciflow.density import Density

__all__ = ["LatentNorm"]


class LatentNorm(Score):
    r"""Norm of the noise, :math:`\|f(x)\|`, where the density is that of :math:`f^{-1}` of normal noise.

    It leaves out what the map stretches, and so does not mind units or dimensions that are nearly constant.

    Args:
        density: A density that encodes: any flow, or a diffusion model by its ODE.

    Example:
        >>> import torch
        >>> from sciflow.flows import NSF
        >>> flow = NSF((2,), num_transforms=1, preprocess="none")
        >>> LatentNorm(flow)(torch.tensor([[3.0, 4.0]])).round(decimals=3)
        tensor([5.], dtype=torch.float64)
    """

    name = "latent_norm"
    has_gradient = True

    def __init__(self, density: Density) -> None:
        super().__init__(density)

    def _scores(self, x: Tensor, context: Tensor | None) -> Tensor:
        return self.densities[0].encode(x, context).flatten(1).double().norm(dim=1)
