"""Contexts as the numbers that the networks of a flow read."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sciflow.contexts import Context, Contexts, Label, Tokens

__all__ = ["ContextFeatures", "num_context_features"]

_WIDTH = 32  # of the vector that is learned for a word, at most


class ContextFeatures(nn.Module):
    """Put contexts side by side as numbers.

    Vectors and fields are flat as they are. A label is one-hot. Tokens are averaged over those that there are: vectors
    as they come, words by vectors that are learned. Of what is not given all features are NaN.

    Args:
        contexts: What there is.

    Example:
        >>> features = ContextFeatures(Contexts({"season": Label(4), "place": (2,)}))
        >>> features(torch.tensor([[2.0, 0.5, 0.1]]))
        tensor([[0.0000, 0.0000, 1.0000, 0.0000, 0.5000, 0.1000]])
    """

    def __init__(self, contexts: Contexts) -> None:
        super().__init__()
        self.contexts = contexts
        self.words = nn.ModuleList(_words(part) for part in contexts.values())

    def forward(self, context: Tensor) -> Tensor:
        """Map packed contexts ``[n, contexts.size]``, normalised, to features ``[n, num_context_features]``."""
        values = self.contexts.unpack(context).values()
        features = [_features(*of_one) for of_one in zip(self.contexts.values(), values, self.words, strict=True)]
        return features[0] if len(features) == 1 else torch.cat(features, -1)


def num_context_features(contexts: Contexts) -> int:
    """How many numbers contexts are for a network.

    Example:
        >>> num_context_features(Contexts({"season": Label(4), "place": (2,)}))
        6
    """
    return sum(map(_num_features, contexts.values()))


def _num_features(part: Context) -> int:
    if isinstance(part, Label):
        return part.num_classes
    if isinstance(part, Tokens):
        return _word_width(part.vocabulary) if part.features is None else part.features
    return part.shape.numel()


def _words(part: Context) -> nn.Module:
    """Vectors of words; of anything else, nothing."""
    if isinstance(part, Tokens) and part.vocabulary is not None:
        return nn.Embedding(part.vocabulary, _word_width(part.vocabulary))
    return nn.Identity()


def _features(part: Context, values: Tensor, words: nn.Module) -> Tensor:
    if isinstance(part, Label):
        classes = torch.arange(part.num_classes, dtype=values.dtype, device=values.device)
        features = (values.unsqueeze(-1) == classes).to(values.dtype)
    elif isinstance(part, Tokens):
        there = part.there(values)
        if part.vocabulary is None:
            vectors = torch.where(there.unsqueeze(-1), values, 0.0)
        else:
            vectors = words(torch.where(there, values, 0.0).long())
        weights = there.to(vectors.dtype).unsqueeze(-1)
        features = (weights * vectors).sum(-2) / weights.sum(-2).clamp_min(1)
    else:
        return values.flatten(1)
    return torch.where(part.known(values).unsqueeze(-1), features, torch.nan)


def _word_width(vocabulary: int | None) -> int:
    return min(vocabulary or _WIDTH, _WIDTH)
