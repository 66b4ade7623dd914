"""The contract of a bijection: an invertible map that knows its Jacobian."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor, nn

from sciflow.errors import ShapeError

__all__ = ["Bijection"]


class Bijection(nn.Module, ABC):
    r"""An invertible, differentiable map of events.

    .. math:: z = f(x \mid c), \qquad \log p_X(x \mid c) = \log p_Z(z) + \log |\det \partial z / \partial x|

    ``forward`` goes from data to noise, the direction that training uses, everywhere in sciflow. Both directions take
    ``[*batch, *event_shape]`` and return it with a log-determinant ``[*batch]``; ``context`` of shape
    ``[*context_batch, *context_shape]`` broadcasts over the batch.

    Args:
        event_shape: Shape of one event.
        context_shape: Shape of what the map is conditioned on; None where there is nothing.
    """

    def __init__(self, event_shape: Sequence[int], context_shape: Sequence[int] | None = None) -> None:
        super().__init__()
        self.event_shape = torch.Size(event_shape)
        self.context_shape = None if context_shape is None else torch.Size(context_shape)

    @abstractmethod
    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map data to noise: ``(z, log |det dz/dx|)``."""

    @abstractmethod
    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map noise to data: ``(x, log |det dx/dz|)``."""

    def fit(self, x: Tensor) -> Self:
        """Learn from training rows ``[n, *event_shape]`` what a formula can give; most bijections have nothing to."""
        self.batch_shape(x)
        return self

    @property
    def is_fitted(self) -> bool:
        """Whether :meth:`fit` has been called, or need not be; it is saved with the model."""
        return True

    @property
    def num_draws(self) -> int:
        """How many draws of its noise stand for an event in eval mode; 0 where the map draws none, as most do."""
        return 0

    def draws(self, x: Tensor, num_draws: int) -> tuple[Tensor, Tensor]:
        """Map data to noise once for each of ``num_draws`` fixed draws of the map's own noise, the same at every call.

        Returns:
            ``z`` and the log-determinant as from :meth:`forward`, with a leading dimension of ``num_draws``.
        """
        z, log_det = self.forward(x)
        return z.expand(num_draws, *z.shape), log_det.expand(num_draws, *log_det.shape)

    def batch_shape(self, x: Tensor) -> torch.Size:
        """Return the leading dimensions of ``x``, after checking that the trailing ones are an event.

        Raises:
            ShapeError: They are not.
        """
        num_batch_dims = x.ndim - len(self.event_shape)
        if num_batch_dims < 0 or x.shape[num_batch_dims:] != self.event_shape:
            raise ShapeError(
                f"{type(self).__name__} maps events of shape {list(self.event_shape)}, in a tensor "
                f"[*batch, *event_shape]; got {list(x.shape)}"
            )
        return x.shape[:num_batch_dims]

    def broadcast_context(self, context: Tensor | None, batch: torch.Size) -> Tensor | None:
        """Return the context with one entry for every row of the batch.

        Raises:
            ShapeError: The context is missing, not wanted, or does not broadcast.
        """
        if self.context_shape is None:
            return None
        shape = torch.Size((*batch, *self.context_shape))
        if context is None:
            raise ShapeError(f"{type(self).__name__} needs a context of shape {list(self.context_shape)}")
        if context.shape == shape:
            return context
        try:
            return context.expand(shape)
        except RuntimeError:
            raise ShapeError(
                f"{type(self).__name__} needs a context that broadcasts to {list(shape)}; got {list(context.shape)}"
            ) from None

    def extra_repr(self) -> str:
        """What ``repr`` shows of every bijection."""
        context = "" if self.context_shape is None else f", context_shape={tuple(self.context_shape)}"
        return f"event_shape={tuple(self.event_shape)}{context}"
