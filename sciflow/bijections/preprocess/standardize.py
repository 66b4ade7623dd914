"""To mean 0 and standard deviation 1."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sciflow.bijections.preprocess.preprocessor import Preprocessor

__all__ = ["Standardize"]


class Standardize(Preprocessor):
    r"""Bring every element to mean 0 and standard deviation 1 over the training rows.

    .. math:: z = (x - \mu) / \sigma, \qquad \log |\det J| = -\sum_i \log \sigma_i

    An element that never varies keeps its unit: :math:`\sigma = 1`.

    Args:
        event_shape: Shape of one event.

    Example:
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
        # In float64: the squares of 1e5 +- 1 have no digits left in float32.
        mean = x.mean(0, dtype=torch.float64)
        squares = torch.zeros_like(mean)
        for rows in x.split(65536):  # a float64 copy of a few rows at a time, not of all
            squares += (rows.double() - mean).square().sum(0)
        std = (squares / len(x)).sqrt()
        # Rounding of the mean alone can make a constant seem to vary.
        constant = (x.amin(0) == x.amax(0)) | (std < torch.finfo(self.std.dtype).tiny)
        self.mean.copy_(mean)
        self.std.copy_(std.masked_fill(constant, 1.0))
