"""What networks are told of the context: one vector, channels on the event's grid, and tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sciflow.contexts import Context, Contexts, Field, Label, Tokens

__all__ = ["ContextEmbedding", "EmbeddedContext"]


@dataclass(frozen=True)
class EmbeddedContext:
    """A context as networks take it; None stands for what it has nothing of.

    Attributes:
        vector: Labels, vectors, pooled tokens, and fields that have no place on the grid, ``[n, width]``.
        field: Fields on the event's grid and whether each is given, ``[n, channels, *sides]``.
        tokens: For the attention to read, ``[n, length, width]``.
        mask: Which of them there are, ``[n, length]``: True where one is.
    """

    vector: Tensor | None = None
    field: Tensor | None = None
    tokens: Tensor | None = None
    mask: Tensor | None = None


class ContextEmbedding(nn.Module):
    r"""Map packed contexts to what a network can read.

    - A label becomes a learned vector, and a vector what a small perceptron makes of it.
    - A field is interpolated linearly onto the grid of the event, about the centres of cells, to be joined to the
      event as channels. Where the grid is coarser than the field, as many cells are averaged as one of the grid
      covers. One more channel says whether the field is given. A field of another number of dimensions, or of an event
      without a grid, is read as a vector.
    - Tokens become vectors that know their places. A network with attention reads all of them; their mean joins the
      vector in any case, as in Saharia et al., arXiv:2205.11487.

    All vectors are added up. A context that is not whole (:meth:`sciflow.contexts.Context.known`) counts as not given.
    It is then replaced, before anything is computed of it, by a learned vector or by a field of zeros: networks that
    were trained with some contexts left out can do without (Ho & Salimans, arXiv:2207.12598).

    Args:
        contexts: What there is.
        width: Length of vectors and tokens.
        sides: Of the event's grid; empty where it has none.
        circular: Of each side, whether the grid closes on itself; None for none.

    Example:
        >>> from sciflow.contexts import Vector
        >>> embed = ContextEmbedding(Contexts({"season": Label(4), "coarse": Field((2, 3, 3))}), 32, sides=(6, 6))
        >>> season_only = torch.cat((torch.ones(5, 1), torch.full((5, 18), torch.nan)), 1)
        >>> embedded = embed(season_only)
        >>> embedded.vector.shape, embedded.field.shape, embedded.tokens
        (torch.Size([5, 32]), torch.Size([5, 3, 6, 6]), None)
    """

    def __init__(
        self, contexts: Contexts, width: int, sides: Sequence[int] = (), circular: Sequence[bool] | None = None
    ) -> None:
        super().__init__()
        circular = circular or [False] * len(sides)
        self.sizes = [part.shape.numel() for part in contexts.values()]
        self.parts = nn.ModuleList()
        self.num_channels = 0
        for part in contexts.values():
            if isinstance(part, Label):
                self.parts.append(_LabelEmbedding(part, width))
            elif isinstance(part, Tokens):
                self.parts.append(_TokensEmbedding(part, width))
            elif isinstance(part, Field) and len(part.shape) == 1 + len(sides):
                self.parts.append(_OnGrid(part, sides, circular))
                self.num_channels += part.shape[0] + 1
            else:
                self.parts.append(_VectorEmbedding(part, width))

    @property
    def has_tokens(self) -> bool:
        """Whether there are tokens for an attention to read."""
        return any(isinstance(part, _TokensEmbedding) for part in self.parts)

    def forward(self, context: Tensor) -> EmbeddedContext:
        """Embed ``[n, contexts.size]``."""
        vectors, fields, tokens, masks = [], [], [], []
        for part, values in zip(self.parts, context.split(self.sizes, -1), strict=True):
            if isinstance(part, _OnGrid):
                fields.append(part(values))
            elif isinstance(part, _TokensEmbedding):
                series, mask, pooled = part(values)
                tokens.append(series)
                masks.append(mask)
                vectors.append(pooled)
            else:
                vectors.append(part(values))
        return EmbeddedContext(
            vector=torch.stack(vectors).sum(0) if vectors else None,
            field=torch.cat(fields, 1) if fields else None,
            tokens=torch.cat(tokens, 1) if tokens else None,
            mask=torch.cat(masks, 1) if masks else None,
        )


class _LabelEmbedding(nn.Module):
    """A learned vector for every class, and one for none."""

    def __init__(self, part: Label, width: int) -> None:
        super().__init__()
        self.part = part
        self.vectors = nn.Embedding(part.num_classes + 1, width)

    def forward(self, values: Tensor) -> Tensor:
        label = values[..., 0]
        return self.vectors(torch.where(self.part.known(label), label, self.part.num_classes).long())


class _VectorEmbedding(nn.Module):
    """A perceptron of a vector, or of a field as one; a learned vector for none."""

    def __init__(self, part: Context, width: int) -> None:
        super().__init__()
        self.part = part
        self.perceptron = nn.Sequential(nn.Linear(part.shape.numel(), width), nn.SiLU(), nn.Linear(width, width))
        self.none = nn.Parameter(torch.zeros(width))

    def forward(self, values: Tensor) -> Tensor:
        known = self.part.known(values.unflatten(-1, self.part.shape))[..., None]
        values = torch.where(known, values, 0).to(self.none.dtype)
        return torch.where(known, self.perceptron(values), self.none)


class _TokensEmbedding(nn.Module):
    """Vectors of all tokens, which of them there are, and their mean; a learned vector where none are given."""

    def __init__(self, part: Tokens, width: int) -> None:
        super().__init__()
        self.part = part
        self.words = None if part.vocabulary is None else nn.Embedding(part.vocabulary, width)
        self.embed = None if part.features is None else nn.Linear(part.features, width)
        self.positions = nn.Parameter(torch.randn(part.length, width))
        self.perceptron = nn.Sequential(nn.SiLU(), nn.Linear(width, width))
        self.none = nn.Parameter(torch.zeros(width))

    def forward(self, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        values = values.unflatten(-1, self.part.shape)
        known = self.part.known(values)[..., None]
        there = self.part.there(values) & known
        if self.words is not None:
            vectors = self.words(torch.where(there, values, 0).long())
        else:
            assert self.embed is not None
            vectors = self.embed(torch.where(there[..., None], values, 0).to(self.none.dtype))
        tokens = self.perceptron(vectors + self.positions)
        weights = there.to(tokens.dtype)
        mean = torch.einsum("nl,nlw->nw", weights, tokens) / weights.sum(-1, keepdim=True).clamp_min(1)
        return tokens, there, torch.where(known, mean, self.none)


class _OnGrid(nn.Module):
    """A field on the grid of the event, and one channel more: 1 where it is given, 0 where not."""

    def __init__(self, part: Field, sides: Sequence[int], circular: Sequence[bool]) -> None:
        super().__init__()
        self.part = part
        self.resized: list[tuple[int, str]] = []
        for axis, (before, after, wraps) in enumerate(zip(part.shape[1:], sides, circular, strict=True), start=2):
            if before != after:
                self.register_buffer(f"axis_{axis}", _interpolation(before, after, wraps), persistent=False)
                self.resized.append((axis, f"axis_{axis}"))

    def forward(self, values: Tensor) -> Tensor:
        field = values.unflatten(-1, self.part.shape)
        known = self.part.known(field).reshape(-1, *[1] * (field.ndim - 1))
        field = torch.where(known, field, 0)
        for axis, name in self.resized:
            weights = self.get_buffer(name)
            field = (field.movedim(axis, -1).to(weights.dtype) @ weights).movedim(-1, axis)
        return torch.cat((field, known.to(field.dtype).expand(-1, 1, *field.shape[2:])), 1)


def _interpolation(before: int, after: int, wraps: bool) -> Tensor:
    """The matrix ``[before, after]`` that interpolates linearly between cells of a line, or of a ring.

    It is that of torch's ``interpolate`` with ``antialias=True`` and ``align_corners=False``, which knows no ring, and
    whose gradient is not the same at every run on a GPU.
    """
    ratio = before / after
    centres = (torch.arange(after, dtype=torch.float64) + 0.5) * ratio - 0.5
    turns = torch.tensor([-before, 0, before] if wraps else [0], dtype=torch.float64)
    cells = torch.arange(before, dtype=torch.float64)[:, None] + turns
    weights = (1 - (cells[..., None] - centres).abs() / max(1.0, ratio)).clamp_min(0).sum(1)
    return (weights / weights.sum(0)).to(torch.get_default_dtype())
