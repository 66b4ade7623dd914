"""U-Net: a convolutional network that sees a grid at several resolutions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sciflow.contexts import Contexts
from sciflow.errors import ConfigError, nearest
from sciflow.nets.conditioning import Conditioning
from sciflow.nets.unet_blocks import Convolution, GroupNorm, Padding, UNetBlock, doubled, halved

__all__ = ["UNet", "default_levels"]

_PADDINGS = ("zeros", "replicate", "circular")
_LEAST_SIDE, _MOST_LEVELS = 4, 4


class UNet(nn.Module):
    r"""Map noisy series, fields or volumes, the level of their noise and a context to tensors of the same shape.

    Down: at every level ``blocks_per_level`` residual blocks, between levels the average of neighbours. Up: the same
    backwards, where each block also reads what its counterpart on the way down said. Scales and shifts of all blocks
    are one linear map of the :class:`sciflow.nets.conditioning.Conditioning`. Fields of the context on the grid of the
    event are read beside the event; its tokens by the attention. The last layer starts at zero. Blocks as in Dhariwal
    & Nichol, arXiv:2105.05233, between levels as in Karras et al., arXiv:2206.00364.

    Sides need not be powers of two: an odd one gets one cell of padding before it is halved, and loses it on the way
    back. A circular side remains one ring at all levels, without a seam: where it is odd, its first cell counts once
    more in the last of the coarser ones.

    Args:
        event_shape: ``[channel, *sides]`` with one, two or three sides.
        contexts: What the network is conditioned on, or None.
        num_levels: How many levels of noise a row has.
        channels: Channels at the finest level, before they are multiplied.
        channel_multipliers: How many times as many there are at each level, from the finest to the coarsest. None for
            1, 2, 2, ... at as many levels as :func:`default_levels` says.
        blocks_per_level: Residual blocks at each level, on the way down and again on the way up.
        attention_levels: Levels with attention, counted as Python counts: -1 is the coarsest.
        num_heads: Heads of the attention, a divisor of the channels there.
        dropout: Probability with which an element inside a block is silenced while training.
        padding: What lies beyond the edge: ``"zeros"``, which lets the network know where the edge is;
            ``"replicate"`` for the nearest value; ``"circular"`` where the grid closes on itself, as longitude does;
            or one for each side.

    Raises:
        ConfigError: An argument is out of range, or a side is too small for so many levels.

    Example:
        >>> net = UNet((1, 18, 30), channels=8, padding=("zeros", "circular"))
        >>> net(torch.ones(2, 1, 18, 30), torch.zeros(2)).shape
        torch.Size([2, 1, 18, 30])
    """

    def __init__(
        self,
        event_shape: Sequence[int],
        contexts: Contexts | None = None,
        *,
        num_levels: int = 1,
        channels: int = 64,
        channel_multipliers: Sequence[int] | None = None,
        blocks_per_level: int = 2,
        attention_levels: Sequence[int] = (-1,),
        num_heads: int = 4,
        dropout: float = 0.0,
        padding: Padding | Sequence[Padding] = "zeros",
    ) -> None:
        super().__init__()
        event_channels, *sides = event_shape
        self.padding = _one_a_side(padding, sides)
        if channel_multipliers is None:
            channel_multipliers = [1] + [2] * (default_levels(sides) - 1)
        depth = len(channel_multipliers)
        _require_room(sides, depth)
        widths = [channels * multiplier for multiplier in channel_multipliers]
        attentive = _attentive(attention_levels, widths, num_heads)

        embedding = 4 * channels
        circular = [kind == "circular" for kind in self.padding]
        self.conditioning = Conditioning(contexts, embedding, num_levels, sides, circular)
        num_token_features = embedding if self.conditioning.has_tokens else 0

        def block(before: int, level: int) -> UNetBlock:
            heads = num_heads if level in attentive else 0
            return UNetBlock(before, widths[level], self.padding, heads, num_token_features, dropout)

        self.first = Convolution(event_channels + self.conditioning.num_channels, widths[0], self.padding)
        # Flat lists: where a level ends follows from their length.
        down = [
            block(widths[level if i else max(level - 1, 0)], level)
            for level in range(depth)
            for i in range(blocks_per_level)
        ]
        middle = block(widths[-1], depth - 1)
        up = [
            block(widths[level if i else min(level + 1, depth - 1)] + widths[level], level)
            for level in reversed(range(depth))
            for i in range(blocks_per_level)
        ]
        self.down, self.middle, self.up = nn.ModuleList(down), middle, nn.ModuleList(up)
        self.last_norm = GroupNorm(widths[0])
        self.last = Convolution(widths[0], event_channels, self.padding)
        for parameter in self.last.parameters():
            nn.init.zeros_(parameter)
        self.blocks_per_level = blocks_per_level
        self.sizes = [b.out_channels for b in (*down, middle, *up)]
        self.modulation = nn.Linear(embedding, 2 * sum(self.sizes))

    def forward(self, x: Tensor, level: Tensor, context: Tensor | None = None) -> Tensor:
        """Return a tensor of ``x``'s shape.

        Args:
            x: ``[n, *event_shape]``.
            level: ``[n]``, or ``[n, num_levels]`` where there are several; of one row where all rows have the same.
            context: ``[n, contexts.size]``, or one row for all; None where none of it is given.
        """
        conditions = self.conditioning(level, context)
        tokens, mask = conditions.tokens, conditions.mask
        steered = self.modulation(conditions.vector)
        scales, shifts = steered.reshape(len(steered), 2, sum(self.sizes), *[1] * (x.ndim - 2)).unbind(1)
        steering = zip((1 + scales).split(self.sizes, 1), shifts.split(self.sizes, 1), strict=True)
        h = x
        if conditions.field is not None:
            h = torch.cat((x, conditions.field.to(x.dtype).expand(len(x), *conditions.field.shape[1:])), 1)
        h = self.first(h)
        said: list[Tensor] = []
        for place, block in enumerate(self.down):
            if place and place % self.blocks_per_level == 0:
                h = halved(h, self.padding)
            h = block(h, *next(steering), tokens, mask)
            said.append(h)
        h = self.middle(h, *next(steering), tokens, mask)
        for block in self.up:
            past = said.pop()
            if past.shape[2:] != h.shape[2:]:
                h = doubled(h, past.shape[2:])
            h = block(torch.cat((h, past), 1), *next(steering), tokens, mask)
        return self.last(F.silu(self.last_norm(h)))


def default_levels(sides: Sequence[int]) -> int:
    """How many levels a grid has room for: as many, up to four, as leave four cells along its shortest side.

    Example:
        >>> default_levels((18, 30)), default_levels((33, 49)), default_levels((5,)), default_levels((1, 64))
        (3, 4, 1, 1)
    """
    return max(1, min(_MOST_LEVELS, (min(sides) // _LEAST_SIDE).bit_length()))


def _one_a_side(padding: Padding | Sequence[Padding], sides: Sequence[int]) -> tuple[Padding, ...]:
    if not 1 <= len(sides) <= 3:
        shape = f"[channel, {', '.join(map(str, sides))}]" if sides else "of one dimension"
        raise ConfigError(f"UNet: events must be [channel, *sides] with one to three sides; got events {shape}")
    several = isinstance(padding, Iterable) and not isinstance(padding, str)
    kinds: tuple[Any, ...] = tuple(padding) if several else (padding,) * len(sides)
    for kind in kinds:
        if kind not in _PADDINGS:
            raise ConfigError(f"UNet: padding: got {kind!r}; {nearest(str(kind), _PADDINGS)}")
    if len(kinds) != len(sides):
        raise ConfigError(f"UNet: padding must be one for all sides, or one for each of {len(sides)}; got {padding!r}")
    return kinds


def _require_room(sides: Sequence[int], depth: int) -> None:
    most = min(sides).bit_length()
    if not 1 <= depth <= most:
        raise ConfigError(
            f"UNet: channel_multipliers: {depth} levels, at each of which sides are half as long; "
            f"a grid {' x '.join(map(str, sides))} has room for 1 to {most}"
        )


def _attentive(levels: Sequence[int], widths: Sequence[int], num_heads: int) -> set[int]:
    """The levels with attention, counted from the finest."""
    depth = len(widths)
    for level in levels:
        if not -depth <= level < depth:
            raise ConfigError(f"UNet: attention_levels must be from {-depth} to {depth - 1}; got {level!r}")
        if widths[level] % num_heads:
            raise ConfigError(
                f"UNet: num_heads must be a divisor of the {widths[level]} channels at level {level}; got {num_heads}"
            )
    return {level % depth for level in levels}
