"""Transformer flow: autoregressive over patches, exact, and able to see far."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from sciflow.arguments import Arguments, seeded
from sciflow.bijections import Composite, TransformerAutoregressive
from sciflow.contexts import ContextShape
from sciflow.flows.flow import Flow
from sciflow.flows.sizes import Sizes

__all__ = ["TransformerFlow"]

_MOST_TOKENS = 1 << 14
_DEFAULT_TOKENS = 64  # at the most, where a default patch is chosen
_CACHE_NUMBERS = 1 << 28  # keys and values kept at a time while sampling: 1 GiB in float32


class TransformerFlow(Flow):
    r"""Autoregressive affine flow steered by causal transformers, TarFlow of Zhai et al., arXiv:2412.06329.

    .. math:: f = f_n \circ \dots \circ f_1, \qquad
              f_i: \; z_t = (M_i x_t - \mu_i(x_{<t}, c)) \, e^{-s_i(x_{<t}, c)}

    An event is cut into tokens :math:`x_1 \dots x_T`; each map moves and scales a token by what a transformer says of
    those before it, the maps in turn from the first token to the last and from the last to the first. See
    :class:`sciflow.bijections.TransformerAutoregressive` for what one map does. It starts as a standard normal of the
    normalised event.

    ``log_prob`` is the fast direction: one pass of every network over all tokens at once. A draw needs the tokens one
    after the other, ``num_transforms * T`` small steps; the keys and values of earlier tokens are kept, so that every
    network reads every token once. On a CPU 1,000 draws took 0.7 (6 tokens) to 2 times (64) as long as their log p, and
    an eighth to a thirty-fifth of what they take without.

    What a token is:

    - a vector or a series ``[size]``: ``patch_size`` neighbours, by default one;
    - a field ``[channel, height, width]``, and any other event of three dimensions or more: all channels of a patch,
      ``patch_size`` along every other dimension;
    - an event of two dimensions, one field ``[height, width]`` or several series ``[variable, time]``: a patch, too.

    Patches follow one another in C order. Where none is given, the least that makes at most 64 tokens is taken, except
    for a vector. The fewer features a token has, the more the flow can learn, and the longer it takes.

    Its place is fields and long series, whose dependence reaches far. A table has few features and sharp edges: there
    the splines of :class:`sciflow.flows.NSF` learn more in less time.

    The paper's noise on the data, and the denoising of draws that it calls for, are left out: they model another
    density than that of the data. A discrete variable is better dequantised (``preprocess``).

    Second derivatives need ``torch.nn.attention.sdpa_kernel(SDPBackend.MATH)`` around them: torch's fused attention has
    first ones alone, and says so.

    Args:
        event_shape: Shape of one event.
        context_shape: What the density is conditioned on: a shape, a context, contexts by name, or None; see
            :mod:`sciflow.contexts`.
        num_transforms: Autoregressive maps, each with a transformer of its own.
        hidden_features: Widths of each transformer's layers: as many layers as entries, all equally wide.
        num_heads: Heads of the attention, a divisor of the width.
        patch_size: Side of a patch, which must divide the sides of the event; or one for each dimension of the event;
            None chooses.
        dropout: Of the transformers, while training.
        base: Density of the noise, see :func:`sciflow.flows.base.base_density`.
        preprocess: Name or chain of the data-unit bijections, see :func:`sciflow.bijections.preprocessing`.
        seed: Of the initial weights; None draws from torch's own generator.

    Raises:
        ConfigError: An argument is out of range.

    Example:
        >>> flow = TransformerFlow(event_shape=(1, 8, 8), num_transforms=2, patch_size=2, seed=0)
        >>> flow
        TransformerFlow(event_shape=(1, 8, 8), context_shape=None, num_transforms=2, 16 tokens of 4, 801,088 parameters)
        >>> flow.log_prob(torch.zeros(5, 1, 8, 8)).shape, flow.sample(5, seed=1).shape
        (torch.Size([5]), torch.Size([5, 1, 8, 8]))
    """

    family = "transformerflow"

    def __init__(
        self,
        event_shape: Sequence[int],
        context_shape: ContextShape | None = None,
        *,
        num_transforms: int = 4,
        hidden_features: Sequence[int] = (128, 128),
        num_heads: int = 4,
        patch_size: int | Sequence[int] | None = None,
        dropout: float = 0.0,
        base: Any = "normal",
        preprocess: str | Mapping[str, Any] | Sequence[str | Mapping[str, Any]] = "standardize",
        seed: int | None = None,
    ) -> None:
        checked = Arguments("TransformerFlow")
        sizes = Sizes.checked(checked, event_shape, context_shape, num_transforms, hidden_features, dropout)
        widths = sizes.hidden_features
        checked.require("hidden_features", hidden_features, len(set(widths)) == 1, "equal widths, one for each layer")
        num_heads = checked.whole("num_heads", num_heads, 1, widths[0])
        checked.require("num_heads", num_heads, widths[0] % num_heads == 0, f"a divisor of the width {widths[0]}")
        patch_shape = _patch_shape(checked, patch_size, sizes.event_shape)
        with seeded(checked.seed(seed)):
            transforms = [
                TransformerAutoregressive(
                    sizes.event_shape,
                    patch_shape,
                    hidden_features=widths,
                    num_heads=num_heads,
                    num_context=sizes.num_context,
                    reverse=i % 2 == 1,
                    dropout=sizes.dropout,
                )
                for i in range(sizes.num_transforms)
            ]
        super().__init__(
            Composite(transforms),
            sizes.event_shape,
            sizes.context_shape,
            base=base,
            preprocess=preprocess,
            arguments=checked.values,
        )
        self.num_tokens, self.token_features = transforms[0].num_tokens, transforms[0].token_features

    def _decode(self, z: Tensor, context: Tensor | None) -> Tensor:
        rows = max(1, _CACHE_NUMBERS // (2 * self.num_tokens * sum(self.arguments["hidden_features"])))
        parts = z.split(rows)
        contexts = [None] * len(parts) if context is None else context.split(rows)
        decode = super()._decode
        return torch.cat([decode(part, c) for part, c in zip(parts, contexts, strict=True)])

    def _summary(self) -> str:
        return f"{super()._summary()}{self.num_tokens} tokens of {self.token_features}, "


def _patch_shape(checked: Arguments, patch_size: int | Sequence[int] | None, event_shape: torch.Size) -> list[int]:
    """Return one divisor for each dimension of the event."""
    num_dims = len(event_shape)
    channels = event_shape[:1] if num_dims > 2 else event_shape[:0]
    if patch_size is None:
        patch = [1] if num_dims == 1 else [*channels, *_default_sides(event_shape[len(channels) :])]
    else:
        sizes = checked.widths("patch_size", patch_size)
        patch = list(sizes) if len(sizes) > 1 else [*channels, *sizes * (num_dims - len(channels))]
        fits = len(patch) == num_dims and not any(n % p for n, p in zip(event_shape, patch, strict=True))
        sides = "its length" if num_dims == 1 else "its sides" if num_dims == 2 else "all its sides but the first"
        expected = f"a divisor of an event {tuple(event_shape)}: of {sides}, or one for each dimension"
        checked.require("patch_size", patch_size, fits, expected)
    num_tokens = event_shape.numel() // math.prod(patch)
    checked.require(
        "patch_size", patch, num_tokens <= _MOST_TOKENS, f"large enough for {_MOST_TOKENS:,} tokens or fewer"
    )
    checked.values["patch_size"] = patch
    return patch


def _default_sides(sides: Sequence[int]) -> tuple[int, ...]:
    """The patch of least extent, and then of least size, that makes few enough tokens."""
    candidates = itertools.product(*([p for p in range(1, n + 1) if n % p == 0] for n in sides))
    few = [patch for patch in candidates if math.prod(sides) // math.prod(patch) <= _DEFAULT_TOKENS]
    return min(few, key=lambda patch: (max(patch), math.prod(patch)))
