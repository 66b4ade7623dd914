"""Elementwise affine bijection: the smallest map with a tractable Jacobian."""

from __future__ import annotations

import torch
from torch import Tensor

from sciflow.bijections.base import Bijection
from sciflow.errors import ShapeError

__all__ = ["Affine"]


class Affine(Bijection):
    r"""Shift and scale every element by fixed numbers.

    .. math:: z = (x - \mu) \, e^{-s}, \qquad \log |\det J| = -\sum_i s_i

    Args:
        mean: Centre :math:`\mu` of shape ``event_shape``, in data units.
        log_scale: Logarithm :math:`s` of the scale, same shape. A logarithm, so that no scale is zero or negative.

    Raises:
        ShapeError: The two have different shapes.

    Example:
        >>> affine = Affine(mean=torch.tensor([280.0]), log_scale=torch.tensor([1.0]))
        >>> z, log_det = affine(torch.tensor([[283.0]]))
        >>> z.shape, log_det.shape
        (torch.Size([1, 1]), torch.Size([1]))
    """

    mean: Tensor
    log_scale: Tensor

    def __init__(self, mean: Tensor, log_scale: Tensor) -> None:
        if mean.shape != log_scale.shape:
            raise ShapeError(f"mean {list(mean.shape)} and log_scale {list(log_scale.shape)} must have one shape")
        super().__init__(event_shape=mean.shape)
        self.register_buffer("mean", mean)
        self.register_buffer("log_scale", log_scale)

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        batch = self.batch_shape(x)
        return (x - self.mean) * torch.exp(-self.log_scale), -self.log_scale.sum().expand(batch)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        batch = self.batch_shape(z)
        return z * torch.exp(self.log_scale) + self.mean, self.log_scale.sum().expand(batch)
