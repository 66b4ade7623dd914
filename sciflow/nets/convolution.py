"""A convolutional network with residual blocks."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["ResidualConvolution"]


class ResidualConvolution(nn.Module):
    r"""Map fields to fields of the same height and width.

    .. math:: h_1 = W_1 * x + V c + b_1, \qquad h_{i+1} = h_i + B_i \, \mathrm{relu}(A_i * \mathrm{relu}(h_i)), \qquad
              y = W_2 * \mathrm{relu}(h_n) + b_2

    with :math:`*` a convolution of 3 x 3 places and :math:`B_i` one of 1 x 1: the widths of :class:`ResidualMLP`, in
    channels. The context, a vector, adds a bias to the first layer, the same at every place: what extra channels that
    hold it would do, for less. Blocks are those of He et al., arXiv:1603.05027; the last layer starts at zero, so that
    whatever the network steers starts at its neutral setting.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        num_context: Length of the context vector; 0 for none.
        hidden_features: Channels of each hidden state; equal neighbours make residual blocks.
        dropout: Probability with which a channel inside a block is silenced while training.
        padding: What lies beyond the edge: ``"zeros"``, which lets the network know where the edge is;
            ``"replicate"`` for the nearest value; ``"circular"`` where the field closes on itself.

    Example:
        >>> import torch
        >>> net = ResidualConvolution(3, 5, num_context=2, hidden_features=(16, 16))
        >>> net(torch.ones(7, 3, 4, 6), torch.ones(7, 2)).shape
        torch.Size([7, 5, 4, 6])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        num_context: int = 0,
        hidden_features: Sequence[int] = (128, 128),
        dropout: float = 0.0,
        padding: Literal["zeros", "replicate", "circular"] = "zeros",
    ) -> None:
        super().__init__()
        convolution = partial(nn.Conv2d, kernel_size=3, padding=1, padding_mode=padding)
        self.first = convolution(in_channels, hidden_features[0])
        self.embed = nn.Linear(num_context, hidden_features[0], bias=False) if num_context else None
        self.blocks = nn.ModuleList(
            _Block(convolution(width, width), dropout)
            if width == before
            else nn.Sequential(nn.ReLU(), convolution(before, width))
            for before, width in pairwise(hidden_features)
        )
        self.last = convolution(hidden_features[-1], out_channels)
        nn.init.zeros_(self.last.weight)
        assert self.last.bias is not None
        nn.init.zeros_(self.last.bias)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Return ``[*batch, out_channels, height, width]`` for ``x`` of the same shape but ``in_channels``.

        Args:
            x: ``[*batch, in_channels, height, width]``.
            context: ``[*batch, num_context]``, where there is one.
        """
        *batch, _, height, width = x.shape
        h = self.first(x.reshape(-1, *x.shape[-3:]))
        if self.embed is not None:
            assert context is not None
            h = h + self.embed(context.reshape(-1, context.shape[-1]))[:, :, None, None]
        for block in self.blocks:
            h = block(h)
        return self.last(F.relu(h)).reshape(*batch, self.last.out_channels, height, width)


class _Block(nn.Module):
    def __init__(self, inner: nn.Conv2d, dropout: float) -> None:
        super().__init__()
        self.inner = inner
        self.outer = nn.Conv2d(inner.out_channels, inner.out_channels, kernel_size=1)
        self.dropout = nn.Dropout2d(dropout)

    def forward(self, h: Tensor) -> Tensor:
        return h + self.outer(self.dropout(F.relu(self.inner(F.relu(h)))))
