"""A bijection of some features, which leaves the others alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor

from sciflow.bijections.base import Bijection
from sciflow.errors import ShapeError

__all__ = ["OnSome"]


class OnSome(Bijection):
    r"""Apply a bijection to some features of a vector.

    Args:
        bijection: Of a vector of these features.
        features: Which ones.
        num_features: Length of the whole vector.

    Raises:
        ShapeError: The bijection is of another number of features.

    Example:
        >>> from sciflow.bijections import Permutation
        >>> OnSome(Permutation(torch.tensor([1, 0])), [0, 2], 3)(torch.tensor([[5.0, 6.0, 7.0]]))[0]
        tensor([[7., 6., 5.]])
    """

    features: Tensor

    def __init__(self, bijection: Bijection, features: Sequence[int], num_features: int) -> None:
        if bijection.event_shape != (len(features),):
            raise ShapeError(f"{len(features)} features for a bijection of {list(bijection.event_shape)}")
        super().__init__((num_features,), bijection.context_shape)
        self.bijection = bijection
        self.register_buffer("features", torch.tensor(features), persistent=False)

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        self.batch_shape(x)
        part, log_det = self.bijection(x[..., self.features], context)
        return x.index_copy(-1, self.features, part), log_det

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        self.batch_shape(z)
        part, log_det = self.bijection.inverse(z[..., self.features], context)
        return z.index_copy(-1, self.features, part), log_det

    def fit(self, x: Tensor) -> Self:
        """Fit the bijection on its features."""
        self.batch_shape(x)
        self.bijection.fit(x[..., self.features])
        return self

    @property
    def is_fitted(self) -> bool:
        """Whether the bijection is."""
        return self.bijection.is_fitted
