"""Diffusion transformer: every patch of an event looks at every other."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sciflow.contexts import Contexts
from sciflow.errors import ConfigError
from sciflow.nets.attention import Attention
from sciflow.nets.conditioning import Conditioning
from sciflow.nets.patches import Patches

__all__ = ["DiffusionTransformer"]


class DiffusionTransformer(nn.Module):
    r"""Map noisy events of any shape, the level of their noise and a context to tensors of the same shape.

    .. math:: h \leftarrow h + g \cdot \mathrm{attention}((1 + s) \, \mathrm{norm}(h) + m), \qquad
              h \leftarrow h + g' \cdot \mathrm{mlp}((1 + s') \, \mathrm{norm}(h) + m')

    An event is cut into patches, its tokens: of a vector ``patch_size`` neighbours, of everything else all channels of
    ``patch_size`` cells along every side. Scales, shifts and gates of all layers are one linear map of the
    :class:`sciflow.nets.conditioning.Conditioning`, which starts at zero, and so do all layers and the output: the
    adaLN-Zero of Peebles & Xie, arXiv:2212.09748. Fields of the context on the grid of the event are read beside the
    event; its tokens by the attention. Positions are learned, and start as waves along every side.

    Args:
        event_shape: ``[features]``, or ``[channel, *sides]`` with any number of sides.
        contexts: What the network is conditioned on, or None.
        num_levels: How many levels of noise a row has.
        hidden_features: Widths of the layers: as many layers as entries, all equally wide.
        num_heads: Heads of the attention, a divisor of the width.
        patch_size: Side of a patch, or one for each side of the event; a last patch that is not full is filled with
            zeros. None chooses the least that makes at most 256 tokens.
        dropout: Probability with which what a layer adds to a feature is silenced while training.

    Raises:
        ConfigError: An argument is out of range.

    Example:
        >>> net = DiffusionTransformer((1, 18, 30), hidden_features=(32, 32), patch_size=4)
        >>> net(torch.ones(2, 1, 18, 30), torch.zeros(2)).shape
        torch.Size([2, 1, 18, 30])
    """

    def __init__(
        self,
        event_shape: Sequence[int],
        contexts: Contexts | None = None,
        *,
        num_levels: int = 1,
        hidden_features: Sequence[int] = (256, 256, 256, 256),
        num_heads: int = 4,
        patch_size: int | Sequence[int] | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        width = hidden_features[0]
        if any(other != width for other in hidden_features):
            raise ConfigError(f"DiffusionTransformer: hidden_features must be equal widths; got {hidden_features!r}")
        if width % num_heads:
            raise ConfigError(
                f"DiffusionTransformer: num_heads must be a divisor of the width {width}; got {num_heads}"
            )
        channels, sides = (1, [*event_shape]) if len(event_shape) == 1 else (event_shape[0], [*event_shape[1:]])
        self.patches = Patches(sides, patch_size)
        # A vector is read as a series of one channel, but has no grid that a field could lie on.
        grid = sides if len(event_shape) > 1 else []
        self.conditioning = Conditioning(contexts, width, num_levels, grid)
        num_token_features = width if self.conditioning.has_tokens else 0
        cells = self.patches.num_cells
        self.first = nn.Linear((channels + self.conditioning.num_channels) * cells, width)
        self.positions = nn.Parameter(_waves(self.patches.grid, width))
        self.layers = nn.ModuleList(_Layer(width, num_heads, num_token_features, dropout) for _ in hidden_features)
        self.last = nn.Linear(width, channels * cells)
        # Of each layer scale, shift and gate of attention and perceptron; scale and shift of what the last one reads.
        self.modulation = nn.Linear(width, (6 * len(self.layers) + 2) * width)
        for layer in (self.modulation, self.last):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor, level: Tensor, context: Tensor | None = None) -> Tensor:
        """Return a tensor of ``x``'s shape.

        Args:
            x: ``[n, *event_shape]``.
            level: ``[n]``, or ``[n, num_levels]`` where there are several; of one row where all rows have the same.
            context: ``[n, contexts.size]``, or one row for all; None where none of it is given.
        """
        conditions = self.conditioning(level, context)
        steering = self.modulation(conditions.vector).unflatten(-1, (-1, 1, self.positions.shape[-1])).unbind(1)
        grid = x[:, None] if x.ndim == 2 else x
        if conditions.field is not None:
            field = conditions.field.to(x.dtype)
            grid = torch.cat((grid, field.expand(len(x), *field.shape[1:])), 1)
        h = self.first(self.patches.cut(grid)) + self.positions
        for place, layer in enumerate(self.layers):
            h = layer(h, steering[6 * place : 6 * place + 6], conditions.tokens, conditions.mask)
        return self.patches.joined(self.last(_modulated(h, *steering[-2:]))).reshape(x.shape)


class _Layer(nn.Module):
    """Attention and a perceptron, each steered, and added to what it reads."""

    def __init__(self, width: int, num_heads: int, num_token_features: int, dropout: float) -> None:
        super().__init__()
        self.attention = Attention(width, num_heads, num_token_features)
        self.perceptron = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU("tanh"), nn.Linear(4 * width, width))
        self.dropout = nn.Dropout(dropout)

    def forward(self, h: Tensor, steering: tuple[Tensor, ...], tokens: Tensor | None, mask: Tensor | None) -> Tensor:
        scale, shift, gate, *rest = steering
        h = torch.addcmul(h, gate, self.dropout(self.attention(_modulated(h, scale, shift), tokens, mask)))
        scale, shift, gate = rest
        return torch.addcmul(h, gate, self.dropout(self.perceptron(_modulated(h, scale, shift))))


def _modulated(h: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    return torch.addcmul(shift, F.layer_norm(h, h.shape[-1:]), 1 + scale)


def _waves(grid: Sequence[int], width: int) -> Tensor:
    """Positions ``[num_places, width]``: sines and cosines along every side, each with its share of the width."""
    count = max(1, width // (2 * len(grid)))
    frequencies = math.pi * torch.logspace(0, -2, count)
    places = torch.cartesian_prod(*(torch.arange(float(side)) for side in grid)).reshape(-1, len(grid))
    angles = (places[..., None] * frequencies).flatten(1)
    waves = torch.cat((angles.sin(), angles.cos()), 1)[:, :width]
    return F.pad(waves, (0, width - waves.shape[1]))
