"""To mean 0 and standard deviation 1, over all elements together."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sciflow.bijections.preprocess.preprocessor import Preprocessor

__all__ = ["Rescale"]


class Rescale(Preprocessor):
    r"""Bring all elements, by the same two numbers, to mean 0 and standard deviation 1 over the training rows.

    .. math:: z = (x - \mu) / \sigma, \qquad \log |\det J| = -d \log \sigma

    Elements keep what tells them apart: fields of one variable their warm and their cold places. Where no element of
    any row differs from another, :math:`\sigma = 1`.

    Args:
        event_shape: Shape of one event, of :math:`d` elements.

    Raises:
        DataError: While fitting: elements differ, but by less than the model's dtype has digits for.

    Example:
        >>> rescale = Rescale((2,)).fit(torch.tensor([[1.0, 3.0], [1.0, 3.0]]))
        >>> rescale(torch.tensor([[2.0, 4.0]]))
        (tensor([[0., 2.]]), tensor([-0.]))
    """

    mean: Tensor
    std: Tensor

    def __init__(self, event_shape: Sequence[int]) -> None:
        super().__init__(event_shape)
        self.register_buffer("mean", torch.tensor(0.0))
        self.register_buffer("std", torch.tensor(1.0))

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return (x - self.mean) / self.std, -self._log_det().expand(self.batch_shape(x))

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return z * self.std + self.mean, self._log_det().expand(self.batch_shape(z))

    def _log_det(self) -> Tensor:
        return self.event_shape.numel() * self.std.log()

    def _fit(self, x: Tensor) -> None:
        mean, std, _ = self._moments(x.reshape(-1, 1), self.std.dtype)
        self.mean.copy_(mean[0])
        self.std.copy_(std[0])
