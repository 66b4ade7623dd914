"""Autoregressive affine map of tokens, steered by a causal transformer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sciflow.bijections.base import Bijection
from sciflow.bijections.linear import LULinear
from sciflow.bijections.univariate import ShiftScale
from sciflow.errors import ShapeError
from sciflow.nets import CausalTransformer

__all__ = ["TransformerAutoregressive"]

_MOST_MIXED = 256


class TransformerAutoregressive(Bijection):
    r"""Cut an event into patches, its tokens, and map each by a shift and scale that follow from those before it.

    .. math:: y_t = L U x_t + b, \qquad z_t = (y_t - \mu_t) \, e^{-s_t}, \qquad
              (\mu_t, s_t) = \mathrm{network}(y_1 \dots y_{t-1}, c)_t, \qquad
              \log |\det J| = \sum_t \Big( \sum_i \log U_{ii} - \sum_i s_{t, i} \Big)

    The first token is moved too, by what follows from the context alone (without one, by learned numbers): left as it
    is, as in the paper, it could not depend on the context at all. Within a token the affine maps do not look at each
    other; a mixing of its features that all tokens share, which the paper has not, stands in for that (up to 256
    features, since it grows with their square). On fields with a correlation length of four pixels two maps with it did
    better than four without.

    ``forward`` is one pass of the network. ``inverse`` goes token by token, ``num_tokens`` steps one after the other;
    thanks to the keys and values that are kept, they read every token once, as the pass does. From Zhai et al.,
    arXiv:2412.06329 (TarFlow).

    Second derivatives need ``torch.nn.attention.sdpa_kernel(SDPBackend.MATH)`` around them: torch's fused attention has
    first ones alone.

    Args:
        event_shape: Shape of one event.
        patch_shape: Shape of one token, as many dimensions, each a divisor of the event's. Tokens come in C order.
        hidden_features: Widths of the transformer's layers, all the same.
        num_heads: Heads of its attention, a divisor of the width.
        num_context: Length of the context vector; 0 for none.
        reverse: Begin with the last token.
        dropout: Of the network, while training.

    Raises:
        ShapeError: The patches do not tile the event.

    Example:
        >>> halves = TransformerAutoregressive((1, 4, 6), (1, 2, 3), hidden_features=(32,))
        >>> halves.num_tokens, halves.token_features
        (4, 6)
        >>> z, log_det = halves(torch.zeros(5, 1, 4, 6))
        >>> z.shape, log_det.shape
        (torch.Size([5, 1, 4, 6]), torch.Size([5]))
    """

    def __init__(
        self,
        event_shape: Sequence[int],
        patch_shape: Sequence[int],
        *,
        hidden_features: Sequence[int] = (128, 128),
        num_heads: int = 4,
        num_context: int = 0,
        reverse: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(event_shape, (num_context,) if num_context else None)
        self.patch_shape = torch.Size(patch_shape)
        if len(patch_shape) != len(event_shape) or any(n % p for n, p in zip(event_shape, patch_shape, strict=True)):
            raise ShapeError(f"patches {list(patch_shape)} do not tile events of shape {list(event_shape)}")
        self.grid_shape = torch.Size(n // p for n, p in zip(event_shape, patch_shape, strict=True))
        self.num_tokens, self.token_features = self.grid_shape.numel(), self.patch_shape.numel()
        self.reverse = reverse
        self.affine = ShiftScale()
        # One feature alone is scaled and moved by the affine map already.
        mixed = 1 < self.token_features <= _MOST_MIXED
        self.mixing = LULinear(torch.arange(self.token_features)) if mixed else None
        self.network = CausalTransformer(
            self.token_features, self.num_tokens, hidden_features, num_heads, num_context, dropout
        )
        # The shift may follow the token before as far out as it goes; a scale that did would run into its bound.
        width = hidden_features[0]
        self.shift = _zero(nn.Linear(width, self.token_features))
        self.log_scale = nn.Sequential(nn.LayerNorm(width), _zero(nn.Linear(width, self.token_features)))

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        batch = self.batch_shape(x)
        tokens, log_det = self._cut(x), x.new_zeros(())
        if self.mixing is not None:
            tokens, terms = self.mixing(tokens)
            log_det = terms.sum(1)
        states = self.network(tokens, self._context_rows(context, batch))
        # A token has the density N(shift, scale^2): its affine map goes from noise to data.
        noise, log_slope = self.affine.inverse(tokens, self._steered(states))
        return self._joined(noise, batch), (log_slope.sum((1, 2)) + log_det).reshape(batch)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        batch = self.batch_shape(z)
        rows, noise = self._context_rows(context, batch), self._cut(z).unbind(1)
        token, found, log_det = torch.zeros_like(noise[0]), [], z.new_zeros(())
        seen = self.network.start()
        for token_noise in noise:
            parameters = self._steered(self.network.step(token, rows, seen))
            token, log_slope = self.affine.forward(token_noise, parameters)
            found.append(token)
            log_det = log_det + log_slope.sum(1)
        tokens = torch.stack(found, dim=1)
        if self.mixing is not None:
            tokens, terms = self.mixing.inverse(tokens)
            log_det = log_det + terms.sum(1)
        return self._joined(tokens, batch), log_det.reshape(batch)

    def _context_rows(self, context: Tensor | None, batch: torch.Size) -> Tensor | None:
        context = self.broadcast_context(context, batch)
        return None if context is None else context.reshape(-1, context.shape[-1])

    def _steered(self, states: Tensor) -> Tensor:
        """Shift and log-scale, ``[2, ..., token_features]``, that follow from states ``[..., width]``."""
        with torch.autocast(states.device.type, enabled=False):
            return torch.stack((self.shift(states), self.log_scale(states)))

    def _cut(self, x: Tensor) -> Tensor:
        """Events ``[*batch, *event_shape]`` as tokens ``[n, num_tokens, token_features]``, in the order of the map."""
        sizes = [size for pair in zip(self.grid_shape, self.patch_shape, strict=True) for size in pair]
        axes = range(1, len(sizes) + 1)
        patches = x.reshape(-1, *sizes).permute(0, *axes[::2], *axes[1::2])
        tokens = patches.reshape(-1, self.num_tokens, self.token_features)
        return tokens.flip(1) if self.reverse else tokens

    def _joined(self, tokens: Tensor, batch: torch.Size) -> Tensor:
        """Undo :meth:`_cut`."""
        tokens = tokens.flip(1) if self.reverse else tokens
        num_dims = len(self.grid_shape)
        axes = [axis for dim in range(1, num_dims + 1) for axis in (dim, dim + num_dims)]
        patches = tokens.reshape(-1, *self.grid_shape, *self.patch_shape)
        return patches.permute(0, *axes).reshape(*batch, *self.event_shape)


def _zero(linear: nn.Linear) -> nn.Linear:
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    return linear
