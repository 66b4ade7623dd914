"""To mean 0 and standard deviation 1."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from sciflow.bijections.preprocess.preprocessor import Preprocessor

__all__ = ["Standardize"]


class Standardize(Preprocessor):
    r"""Bring every element to mean 0 and standard deviation 1 over the training rows.

    .. math:: z = (x - \mu) / \sigma, \qquad \log |\det J| = -\sum_i \log \sigma_i

    An element that never varies keeps its unit: :math:`\sigma = 1`.

    Args:
        event_shape: Shape of one event.

    Raises:
        DataError: While fitting: an element varies, but by less than the model's dtype has digits for.

    Example:
        >>> import torch
        >>> standardize = Standardize((1,)).fit(torch.tensor([[101324.0], [101326.0]]))
        >>> standardize(torch.tensor([[101327.0]]))
        (tensor([[2.]]), tensor([-0.]))
    """

    mean: Tensor
    std: Tensor

    def __init__(self, event_shape: Sequence[int]) -> None:
        super().__init__(event_shape)
        self._element("mean", 0.0)
        self._element("std", 1.0)

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        batch = self.batch_shape(x)
        return (x - self.mean) / self.std, -self.std.log().sum().expand(batch)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        batch = self.batch_shape(z)
        return z * self.std + self.mean, self.std.log().sum().expand(batch)

    def _fit(self, x: Tensor) -> None:
        mean, std, _ = self._moments(x, self.std.dtype)
        self.mean.copy_(mean)
        self.std.copy_(std)
