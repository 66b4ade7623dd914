"""Coupling of fields: one part of the channels, or of the places, decides what becomes of the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from sciflow.bijections.base import Bijection
from sciflow.bijections.field import field_shape
from sciflow.bijections.univariate import Univariate
from sciflow.errors import ConfigError, nearest

__all__ = ["FieldCoupling"]

_MASKS = ("channel", "checkerboard")


class FieldCoupling(Bijection):
    r"""Map a part of a field by functions of one variable, whose parameters a network reads off the rest.

    .. math:: z_a = x_a, \qquad z_b = f(x_b; \, \mathrm{network}(x_a, c)), \qquad
              \log |\det J| = \sum_{i \in b} \log \partial z_i / \partial x_i

    The mask ``"channel"`` keeps half of the channels; ``"checkerboard"`` keeps every other place, in all channels,
    and shows the network zeros at the others. A single channel cannot be halved, and gets a checkerboard; a single
    place has no neighbours, and its channels are halved. Where there is but one place in one channel, nothing is kept:
    the parameters depend on the context alone or, without one, are learned as they are. From Dinh et al.,
    arXiv:1605.08803.

    Args:
        event_shape: ``[channel, height, width]``.
        univariate: The functions :math:`f`.
        network: Called as ``network(in_channels, out_channels, num_context)``, returns the conditioner, which takes a
            field ``[*batch, in_channels, height, width]`` and the context ``[*batch, num_context]`` or None.
        mask: ``"checkerboard"`` or ``"channel"``.
        num_context: Length of the context vector; 0 for none.
        keep_last: Keep the last channels (or the odd places), and map the first (or the even, where row and column
            add up to an even number), instead of the other way about.

    Raises:
        ConfigError: There is no such mask.
        ShapeError: The event is no field.

    Example:
        >>> from sciflow.bijections import ShiftScale
        >>> from sciflow.nets import ResidualConvolution
        >>> coupling = FieldCoupling((2, 4, 4), ShiftScale(), ResidualConvolution, mask="channel")
        >>> z, log_det = coupling(torch.ones(5, 2, 4, 4))
        >>> z.shape, log_det.shape
        (torch.Size([5, 2, 4, 4]), torch.Size([5]))
    """

    is_kept: Tensor

    def __init__(
        self,
        event_shape: Sequence[int],
        univariate: Univariate,
        network: Callable[[int, int, int], nn.Module],
        mask: Literal["checkerboard", "channel"] = "checkerboard",
        num_context: int = 0,
        keep_last: bool = False,
    ) -> None:
        if mask not in _MASKS:
            raise ConfigError(f"mask: got {mask!r}; {nearest(str(mask), _MASKS)}")
        channels, height, width = field_shape(event_shape)
        super().__init__(event_shape, (num_context,) if num_context else None)
        self.univariate = univariate
        self.keep_last = keep_last
        self.by_channel = channels > 1 and (mask == "channel" or height * width == 1)
        self.num_kept = channels // 2 if self.by_channel else channels
        self.num_mapped = channels - self.num_kept if self.by_channel else channels
        if not self.by_channel:
            parity = (torch.arange(height)[:, None] + torch.arange(width)) % 2
            self.register_buffer("is_kept", (parity == int(keep_last)) & (height * width > 1), persistent=False)
        self.network = network(self.num_kept, univariate.num_parameters * self.num_mapped, num_context)

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        kept, mapped, parameters = self._split(x, context)
        return self._join(kept, *self.univariate.forward(mapped, parameters))

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        kept, mapped, parameters = self._split(z, context)
        return self._join(kept, *self.univariate.inverse(mapped, parameters))

    def _split(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Return what stays, what is mapped, and its parameters, a leading dimension more.

        In a checkerboard all places are mapped, which costs less than to gather half of them.
        """
        context = self.broadcast_context(context, self.batch_shape(x))
        if not self.by_channel:
            kept, mapped = torch.where(self.is_kept, x, 0.0), x
        elif self.keep_last:
            mapped, kept = x.split((self.num_mapped, self.num_kept), dim=-3)
        else:
            kept, mapped = x.split((self.num_kept, self.num_mapped), dim=-3)
        parameters = self.network(kept, context).unflatten(-3, (-1, self.num_mapped))
        return kept, mapped, parameters.movedim(-4, 0)

    def _join(self, kept: Tensor, mapped: Tensor, log_slope: Tensor) -> tuple[Tensor, Tensor]:
        if not self.by_channel:
            mapped, log_slope = torch.where(self.is_kept, kept, mapped), log_slope.masked_fill(self.is_kept, 0.0)
        else:
            mapped = torch.cat((mapped, kept) if self.keep_last else (kept, mapped), dim=-3)
        return mapped, log_slope.sum((-3, -2, -1))
