"""The map that changes nothing, for chains that are asked to do nothing."""

from __future__ import annotations

from torch import Tensor

from sciflow.bijections.base import Bijection

__all__ = ["Identity"]


class Identity(Bijection):
    r"""Leave every event as it is.

    .. math:: z = x, \qquad \log |\det J| = 0

    Args:
        event_shape: Shape of one event.

    Example:
        >>> import torch
        >>> z, log_det = Identity((2,))(torch.ones(3, 2))
        >>> log_det
        tensor([0., 0., 0.])
    """

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return x, x.new_zeros(self.batch_shape(x))

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self.forward(z)
