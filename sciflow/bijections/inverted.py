"""A bijection the other way round."""

from __future__ import annotations

from torch import Tensor

from sciflow.bijections.base import Bijection

__all__ = ["Inverted"]


class Inverted(Bijection):
    r"""Take :math:`g = f^{-1}` for the way from data to noise: what was fast one way is fast the other way.

    Args:
        bijection: :math:`f`.

    Example:
        >>> import torch
        >>> from sciflow.bijections import Affine
        >>> shrink = Affine(mean=torch.zeros(1), log_scale=torch.ones(1))
        >>> Inverted(shrink)(torch.zeros(1, 1))
        (tensor([[0.]]), tensor([1.]))
    """

    def __init__(self, bijection: Bijection) -> None:
        super().__init__(bijection.event_shape, bijection.context_shape)
        self.bijection = bijection

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        self.batch_shape(x)
        return self.bijection.inverse(x, context)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        self.batch_shape(z)
        return self.bijection(z, context)
