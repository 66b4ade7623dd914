"""What steers a denoising network: level of the noise and context, together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sciflow.contexts import Contexts
from sciflow.nets.context import ContextEmbedding, EmbeddedContext
from sciflow.nets.noise_level import NoiseLevelEmbedding

__all__ = ["Conditioning"]


class Conditioning(nn.Module):
    r"""Map noise level and context to one vector, and to what else there is of the context.

    .. math:: v = \mathrm{silu}(e(l) + c)

    as in Dhariwal & Nichol, arXiv:2105.05233: what scales and shifts the states of a network is linear in it.

    Args:
        contexts: What the network is conditioned on, or None.
        width: Length of the vector.
        num_levels: How many levels of noise a row has.
        sides: Of the event's grid; empty where it has none.
        circular: Of each side, whether the grid closes on itself; None for none.

    Example:
        >>> from sciflow.contexts import Label
        >>> conditioning = Conditioning(Contexts({"season": Label(4)}), width=32)
        >>> conditioning(torch.zeros(5), torch.ones(5, 1)).vector.shape
        torch.Size([5, 32])
    """

    def __init__(
        self,
        contexts: Contexts | None,
        width: int,
        num_levels: int = 1,
        sides: Sequence[int] = (),
        circular: Sequence[bool] | None = None,
    ) -> None:
        super().__init__()
        self.num_context = 0 if contexts is None else contexts.size
        self.level = NoiseLevelEmbedding(width, num_levels)
        self.context = None if contexts is None else ContextEmbedding(contexts, width, sides, circular)

    @property
    def num_channels(self) -> int:
        """Channels that the context adds to the event."""
        return 0 if self.context is None else self.context.num_channels

    @property
    def has_tokens(self) -> bool:
        """Whether there are tokens for an attention to read."""
        return self.context is not None and self.context.has_tokens

    def forward(self, level: Tensor, context: Tensor | None) -> EmbeddedContext:
        """Embed level and context.

        Args:
            level: ``[n]``, or ``[n, num_levels]`` where there are several; of one row where all rows have the same.
            context: ``[n, num_context]``, or one row for all; None where none of it is given.

        Returns:
            What there is, with as many rows as it takes: 1 where all rows have the same.
        """
        vector = self.level(level)
        if self.context is None:
            return EmbeddedContext(vector=F.silu(vector))
        if context is None:
            context = level.new_full((1, self.num_context), torch.nan)
        embedded = self.context(context)
        if embedded.vector is not None:
            vector = vector + embedded.vector
        return replace(embedded, vector=F.silu(vector))
