"""A learned scale for every element of the event."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sciflow.bijections.base import Bijection

__all__ = ["Scale"]

_MOST_LOG_SCALE = 50.0  # e^50 = 5e21: far beyond any use, and no overflow


class Scale(Bijection):
    r"""Stretch every element by a learned factor.

    .. math:: z = x \, e^{s}, \qquad \log |\det J| = \sum_i s_i

    The diagonal scaling that gives NICE, whose couplings move no volume, a volume to learn: Dinh et al.,
    arXiv:1410.8516. It starts as the identity.

    Args:
        event_shape: Shape of one event.

    Example:
        >>> Scale((2,))(torch.ones(1, 2))[0].tolist()
        [[1.0, 1.0]]
    """

    def __init__(self, event_shape: Sequence[int]) -> None:
        super().__init__(event_shape)
        self.log_scale = nn.Parameter(torch.zeros(self.event_shape))

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        batch = self.batch_shape(x)
        log_scale = self.log_scale.clamp(-_MOST_LOG_SCALE, _MOST_LOG_SCALE)
        return x * torch.exp(log_scale), log_scale.sum().expand(batch)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        batch = self.batch_shape(z)
        log_scale = self.log_scale.clamp(-_MOST_LOG_SCALE, _MOST_LOG_SCALE)
        return z * torch.exp(-log_scale), -log_scale.sum().expand(batch)
