"""Attention of the places of an event to one another, and to the tokens of a context."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["Attention", "attended_values"]

_MOST_ROWS = 65_535  # that torch's kernels on a GPU take at a time


class Attention(nn.Module):
    r"""Let every place of an event look at all places, and at the tokens of its context.

    .. math:: A(h) = W \, \mathrm{softmax}\big( Q h \, [K h, \, K' c]^\top / \sqrt{d} \big) \, [V h, \, V' c]

    One softmax over both, as in Nichol et al., arXiv:2112.10741: there is something to look at where no token is.

    Forward-mode derivatives need ``torch.nn.attention.sdpa_kernel(SDPBackend.MATH)`` around them, as second ones do.

    Args:
        width: Length of a state.
        num_heads: Heads, which share the width.
        num_token_features: Length of a token; 0 where there are none.

    Example:
        >>> attention = Attention(32, num_heads=4)
        >>> attention(torch.ones(5, 9, 32)).shape
        torch.Size([5, 9, 32])
    """

    def __init__(self, width: int, num_heads: int, num_token_features: int = 0) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.queries_keys_values = nn.Linear(width, 3 * width)
        self.tokens_keys_values = nn.Linear(num_token_features, 2 * width) if num_token_features else None
        self.out = nn.Linear(width, width)

    def forward(self, h: Tensor, tokens: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """Return ``[n, num_places, width]``.

        Args:
            h: ``[n, num_places, width]``.
            tokens: ``[n, length, num_token_features]``, or one row for all.
            mask: Which of them there are, ``[n, length]``.
        """
        queries, keys, values = self._heads(self.queries_keys_values(h), 3)
        if self.tokens_keys_values is not None:
            assert tokens is not None
            assert mask is not None
            rows = len(h)
            more_keys, more_values = self._heads(self.tokens_keys_values(tokens).expand(rows, -1, -1), 2)
            keys, values = torch.cat((keys, more_keys), -2), torch.cat((values, more_values), -2)
            there = F.pad(mask, (h.shape[1], 0), value=True)[:, None, None]
            mask = there.expand(rows, self.num_heads, h.shape[1], -1)
        return self.out(attended_values(queries, keys, values, mask).transpose(1, 2).flatten(2))

    def _heads(self, joined: Tensor, count: int) -> tuple[Tensor, ...]:
        """Cut ``[n, length, count * width]`` into ``count`` times ``[n, num_heads, length, head_features]``."""
        return joined.unflatten(-1, (count, self.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)


def attended_values(
    queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None = None, causal: bool = False
) -> Tensor:
    """Return what every query sees; in parts, where there are more rows than torch's kernels take.

    Args:
        queries: ``[n, num_heads, num_queries, head_features]``.
        keys: ``[n, num_heads, length, head_features]``.
        values: The same.
        mask: Who sees whom, ``[n, num_heads, num_queries, length]``; None for all.
        causal: A query sees the keys up to its own place alone.
    """
    if len(queries) <= _MOST_ROWS:
        return F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask, is_causal=causal)
    parts = [slice(start, start + _MOST_ROWS) for start in range(0, len(queries), _MOST_ROWS)]
    return torch.cat(
        [attended_values(queries[p], keys[p], values[p], None if mask is None else mask[p], causal) for p in parts]
    )
