"""A learned scale for every element of the event."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sciflow.bijections.base import Bijection

__all__ = ["Scale"]

_MOST_LOG_SCALE = 50.0  # e^50 = 5e21: far beyond any use, and no overflow
# Optimisers move a number by about the learning rate a step. A network's output is moved by many weights at once; this
# has one alone, and would lag behind what it is to scale.
_SPEED = 10.0


class Scale(Bijection):
    r"""Stretch every element by a learned factor.

    .. math:: z = x \, e^{s}, \qquad \log |\det J| = \sum_i s_i, \qquad s = 10 \, r

    The diagonal scaling that gives NICE, whose couplings move no volume, a volume to learn: Dinh et al.,
    arXiv:1410.8516. It starts as the identity. What is learned is :math:`r`.

    Args:
        event_shape: Shape of one event.

    Example:
        >>> Scale((2,))(torch.ones(1, 2))[0].tolist()
        [[1.0, 1.0]]
    """

    def __init__(self, event_shape: Sequence[int]) -> None:
        super().__init__(event_shape)
        self.raw_log_scale = nn.Parameter(torch.zeros(self.event_shape))

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        batch = self.batch_shape(x)
        log_scale = self._log_scale()
        return x * torch.exp(log_scale), log_scale.sum().expand(batch)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        batch = self.batch_shape(z)
        log_scale = self._log_scale()
        return z * torch.exp(-log_scale), -log_scale.sum().expand(batch)

    def _log_scale(self) -> Tensor:
        return (_SPEED * self.raw_log_scale).clamp(-_MOST_LOG_SCALE, _MOST_LOG_SCALE)
