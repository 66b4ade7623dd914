"""A causal transformer: what it says of a token follows from the tokens before."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sciflow.nets.attention import attended_values

__all__ = ["CausalTransformer", "Seen"]

_POSITION_SCALE = 0.3  # so that places tell apart, and do not drown, what is there


class CausalTransformer(nn.Module):
    r"""Map a series of tokens to a series of states, each of which depends on the tokens before its own.

    .. math:: h_t = E x_{t-1} + p_t + C c \;\; (x_0 = 0), \qquad
              h \leftarrow h + \mathrm{attention}(\mathrm{norm}(h)), \qquad
              h \leftarrow h + \mathrm{mlp}(\mathrm{norm}(h))

    The series is moved on by one place, so that the first state depends on the context :math:`c` alone, and the last
    token is read by nobody. What the layers add is bounded, because they read normed states; what the token before adds
    is linear, however far out it lies. States have no norm behind them: who reads them chooses.

    A pass over a whole series and a series of :meth:`step` are the same function. The second reads one token at a time,
    and keeps of the earlier ones their keys and values: all steps together compute what the pass does, once.

    Norms before the layers as in Xiong et al., arXiv:2002.04745; as a conditioner, Zhai et al., arXiv:2412.06329.

    Args:
        in_features: Length of a token.
        num_tokens: Length of the series.
        hidden_features: Width of each layer, all the same.
        num_heads: Heads of the attention; they share the width.
        num_context: Length of the context vector; 0 for none.
        dropout: Probability with which what a layer adds to a feature is silenced while training.

    Example:
        >>> net = CausalTransformer(3, num_tokens=7, hidden_features=(64, 64))
        >>> net(torch.ones(2, 7, 3)).shape
        torch.Size([2, 7, 64])
    """

    def __init__(
        self,
        in_features: int,
        num_tokens: int,
        hidden_features: Sequence[int] = (128, 128),
        num_heads: int = 4,
        num_context: int = 0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        width = hidden_features[0]
        self.embed = nn.Linear(in_features, width)
        self.positions = nn.Parameter(_POSITION_SCALE * torch.randn(num_tokens, width))
        self.embed_context = nn.Linear(num_context, width, bias=False) if num_context else None
        self.layers = nn.ModuleList(_Layer(width, num_heads, dropout) for _ in hidden_features)

    def forward(self, tokens: Tensor, context: Tensor | None = None) -> Tensor:
        """Read a whole series.

        Args:
            tokens: ``[n, num_tokens, in_features]``.
            context: ``[n, num_context]``, or None.

        Returns:
            ``[n, num_tokens, width]``.
        """
        h = self._embedded(F.pad(tokens[:, :-1], (0, 0, 1, 0)), self.positions, context)
        for layer in self.layers:
            h = layer(h)
        return h

    def start(self) -> list[Seen]:
        """Begin a series of steps: return what :meth:`step` is to keep of it, nothing as yet."""
        return [Seen(len(self.positions)) for _ in self.layers]

    def step(self, before: Tensor, context: Tensor | None, seen: list[Seen]) -> Tensor:
        """Read one token more.

        Args:
            before: The token before the one that is asked about, ``[n, in_features]``; zeros at the first step.
            context: ``[n, num_context]``, or None.
            seen: What :meth:`start` returned; this token joins it.

        Returns:
            The next state ``[n, width]``.
        """
        h = self._embedded(before[:, None], self.positions[seen[0].num_tokens], context)
        for layer, past in zip(self.layers, seen, strict=True):
            h = layer(h, past)
        return h[:, 0]

    def _embedded(self, before: Tensor, positions: Tensor, context: Tensor | None) -> Tensor:
        # States carry the data themselves, to be subtracted from data again: half precision would be error in them.
        with torch.autocast(before.device.type, enabled=False):
            h = self.embed(before) + positions
            return h if self.embed_context is None else h + self.embed_context(context)[:, None]


class Seen:
    """Keys and values that one layer has computed of the tokens so far.

    Args:
        most_tokens: Length of the whole series.
    """

    def __init__(self, most_tokens: int) -> None:
        self.most_tokens = most_tokens
        self.num_tokens = 0
        self._kept: Tensor | None = None

    def join(self, new: Tensor) -> Tensor:
        """Add the next token's ``[2, n, num_heads, 1, head_features]``, and return those of all tokens so far."""
        place, self.num_tokens = self.num_tokens, self.num_tokens + 1
        if torch.is_grad_enabled():
            # Joined anew: a gradient through earlier steps still needs what they saw.
            self._kept = new if self._kept is None else torch.cat((self._kept, new), dim=-2)
            return self._kept
        if self._kept is None:
            self._kept = new.new_empty(*new.shape[:-2], self.most_tokens, new.shape[-1])
        self._kept[..., place, :] = new[..., 0, :]
        return self._kept[..., : self.num_tokens, :]


class _Layer(nn.Module):
    """Attention and a perceptron, each added to what it reads."""

    def __init__(self, width: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.attention_norm = nn.LayerNorm(width)
        self.queries_keys_values = nn.Linear(width, 3 * width)
        self.attention_out = nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )
        self.dropout = nn.Dropout(dropout)

    def forward(self, h: Tensor, seen: Seen | None = None) -> Tensor:
        """Map ``[n, num_new, width]``: the whole series, or the next token of one of which others have been seen."""
        heads = self.queries_keys_values(self.attention_norm(h)).unflatten(-1, (3, self.num_heads, -1))
        heads = heads.permute(2, 0, 3, 1, 4)
        queries, (keys, values) = heads[0], (heads[1:] if seen is None else seen.join(heads[1:])).unbind(0)
        attended = attended_values(queries, keys, values, causal=seen is None)
        h = h + self.dropout(self.attention_out(attended.transpose(1, 2).flatten(2)))
        return h + self.dropout(self.mlp(h))
