"""What a U-Net is built from: convolutions that know the edges of the grid, and residual blocks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sciflow.nets.attention import Attention

__all__ = ["Convolution", "GroupNorm", "Padding", "UNetBlock", "doubled", "halved"]

Padding = Literal["zeros", "replicate", "circular"]

_CONVOLUTIONS: tuple[type[nn.Conv1d | nn.Conv2d | nn.Conv3d], ...] = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_POOLINGS = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)


class Convolution(nn.Module):
    """A convolution of 3 places along each dimension of a grid, each with an edge of its own kind.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        padding: What lies beyond the edge, one for each dimension of the grid.

    Example:
        >>> convolution = Convolution(1, 4, padding=("zeros", "circular"))
        >>> convolution(torch.ones(2, 1, 5, 6)).shape
        torch.Size([2, 4, 5, 6])
    """

    def __init__(self, in_channels: int, out_channels: int, padding: Sequence[Padding]) -> None:
        super().__init__()
        self.padding = tuple(padding)
        convolution = _CONVOLUTIONS[len(padding) - 1]
        # Zeros cost nothing: the convolution itself knows of them. The others are put there first.
        zeros = tuple(int(kind == "zeros") for kind in padding)
        self.convolution = convolution(in_channels, out_channels, kernel_size=3, padding=zeros)  # type: ignore[arg-type]

    def forward(self, h: Tensor) -> Tensor:
        for axis, kind in enumerate(self.padding, start=2):
            if kind != "zeros":
                first, last = h.narrow(axis, 0, 1), h.narrow(axis, h.shape[axis] - 1, 1)
                h = torch.cat((last, h, first) if kind == "circular" else (first, h, last), axis)
        return self.convolution(h)


class GroupNorm(nn.GroupNorm):
    """A norm of groups of four channels or more, 32 groups at the most, as in Karras et al., arXiv:2206.00364.

    Args:
        channels: How many there are.
        affine: Whether to scale and shift each by learned numbers.

    Example:
        >>> GroupNorm(24).num_groups, GroupNorm(25).num_groups, GroupNorm(3).num_groups
        (6, 5, 1)
    """

    def __init__(self, channels: int, affine: bool = True) -> None:
        groups = range(1, min(32, max(1, channels // 4)) + 1)
        super().__init__(max(count for count in groups if channels % count == 0), channels, affine=affine)

    def forward(self, h: Tensor) -> Tensor:
        # torch's forward-mode derivative refuses any other layout, such as that of events whose channels come last.
        return super().forward(h.contiguous())


class UNetBlock(nn.Module):
    r"""A residual block, whose state is scaled and shifted by noise level and context, and attention behind it.

    .. math:: b(h) = S h + B * \mathrm{silu}\big( (1 + s) \, \mathrm{norm}(A * \mathrm{silu}(\mathrm{norm}(h))) + m
              \big), \qquad b'(h) = b(h) + \mathrm{attention}(\mathrm{norm}(b(h)))

    of Dhariwal & Nichol, arXiv:2105.05233. The second convolution and what the attention adds start at zero, so that
    the block starts as :math:`S h`: as the identity, or a map of 1 x 1 places where the channels differ.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        padding: What lies beyond the edge, one for each dimension of the grid.
        num_heads: Heads of the attention; 0 for no attention.
        num_token_features: Length of a token of the context; 0 where there are none.
        dropout: Probability with which an element inside the block is silenced while training.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        padding: Sequence[Padding],
        num_heads: int = 0,
        num_token_features: int = 0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.in_channels, self.out_channels = in_channels, out_channels
        self.norm = GroupNorm(in_channels)
        self.inner = Convolution(in_channels, out_channels, padding)
        self.inner_norm = GroupNorm(out_channels, affine=False)
        self.dropout = nn.Dropout(dropout)
        self.outer = Convolution(out_channels, out_channels, padding)
        _zero(self.outer.convolution)
        # Of the same map at every place, a product of matrices is the quickest form.
        self.past = None if in_channels == out_channels else nn.Linear(in_channels, out_channels)
        self.attention: Attention | None = None
        if num_heads:
            self.attention_norm = GroupNorm(out_channels)
            self.attention = Attention(out_channels, num_heads, num_token_features)
            _zero(self.attention.out)

    def forward(
        self, h: Tensor, scale: Tensor, shift: Tensor, tokens: Tensor | None = None, mask: Tensor | None = None
    ) -> Tensor:
        """Return ``[n, out_channels, *sides]``.

        Args:
            h: ``[n, in_channels, *sides]``.
            scale: What the inner state is multiplied by, ``[n, out_channels, 1, ...]``, or one row for all.
            shift: What is added to it, the same shape.
            tokens: For the attention, ``[n, length, num_token_features]``.
            mask: Which of them there are, ``[n, length]``.
        """
        inner = self.inner_norm(self.inner(F.silu(self.norm(h))))
        inner = self.outer(self.dropout(F.silu(torch.addcmul(shift, inner, scale))))
        h = inner + (h if self.past is None else self.past(h.movedim(1, -1)).movedim(-1, 1))
        if self.attention is None:
            return h
        places = self.attention_norm(h).flatten(2).transpose(1, 2)
        return h + self.attention(places, tokens, mask).transpose(1, 2).unflatten(-1, h.shape[2:])


def halved(h: Tensor, padding: Sequence[Padding]) -> Tensor:
    """Average two neighbours along every side; an odd side is longer by one cell first, of the kind of its edge.

    Example:
        >>> halved(torch.tensor([[[1.0, 3.0, 5.0]]]), ["circular"])
        tensor([[[2., 3.]]])
    """
    for axis, kind in enumerate(padding, start=2):
        if h.shape[axis] % 2:
            more = h.narrow(axis, 0 if kind == "circular" else h.shape[axis] - 1, 1)
            h = torch.cat((h, more), axis)
    return _POOLINGS[len(padding) - 1](h, 2)


def doubled(h: Tensor, sides: Sequence[int]) -> Tensor:
    """Undo :func:`halved` up to the averages: put every cell twice along every side, and cut off what is too much.

    Example:
        >>> doubled(torch.tensor([[[2.0, 3.0]]]), [3])
        tensor([[[2., 2., 3.]]])
    """
    h = F.interpolate(h, scale_factor=2, mode="nearest")
    for axis, side in enumerate(sides, start=2):
        h = h.narrow(axis, 0, side)
    return h


def _zero(layer: nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear) -> None:
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
