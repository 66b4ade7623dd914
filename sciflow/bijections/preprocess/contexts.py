"""From contexts in data units to numbers that networks read easily, each kind in its own way."""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor, nn

from sciflow.bijections.base import Bijection
from sciflow.bijections.identity import Identity
from sciflow.bijections.normal_scores import NormalScores
from sciflow.bijections.preprocess.standardize import Standardize
from sciflow.conditions import Conditions
from sciflow.contexts import Context, Contexts, ContextShape, Field, Tokens, Vector
from sciflow.errors import DataError

__all__ = ["EachContext", "context_preprocessing"]


def context_preprocessing(context_shape: ContextShape | None) -> Bijection | None:
    """Build what brings the context of a density near zero.

    Vectors are taken to normal scores where they are uneven, see :class:`NormalScores`, and else standardised; fields,
    whose elements must stay comparable, by their scale alone; vectors that are tokens likewise, one scale for all
    places. Labels and words are left as they are.

    Args:
        context_shape: What the density is conditioned on, as its constructor takes it.

    Returns:
        A bijection of ``[*batch, *shape]``, of a plain shape, or else of contexts that are packed; None for None.

    Example:
        >>> from sciflow.contexts import Label
        >>> context_preprocessing((2,))
        NormalScores(event_shape=(2,))
        >>> context_preprocessing({"season": Label(4), "place": (2,)}).event_shape
        torch.Size([3])
    """
    conditions = Conditions.of(context_shape)
    if conditions is None:
        return None
    if conditions.declared:
        return EachContext(conditions.contexts)
    (part,) = conditions.contexts.values()
    return _of_kind(part)


class EachContext(Bijection):
    """Map every one of several packed contexts by itself.

    What is missing, NaN, stays NaN, and spoils nothing else; labels and tokens that there are not become NaN, so that
    no network takes them for an index.

    Args:
        contexts: What is packed, and how.

    Example:
        >>> each = EachContext(Contexts({"place": Vector(1), "words": Tokens(2, vocabulary=10)}))
        >>> rows = torch.tensor([[100.0, 3, -1], [300.0, 7, 1], [torch.nan, 7, 10]])
        >>> z, _ = each.fit(rows)(rows)
        >>> z.round(decimals=2).tolist()
        [[-1.0, 3.0, -1.0], [1.0, 7.0, 1.0], [nan, 7.0, nan]]
    """

    def __init__(self, contexts: Contexts) -> None:
        super().__init__((contexts.size,))
        self.contexts = contexts
        self.parts = nn.ModuleList(_of_kind(part) for part in contexts.values())

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._mapped(x, inverse=False)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._mapped(z, inverse=True)

    def fit(self, x: Tensor) -> Self:
        """Learn from the rows ``[n, size]`` in which a context is whole; of tokens, from all that there are.

        Raises:
            DataError: There is no row, or a context varies by less than the dtype has digits for.
        """
        if len(self.batch_shape(x)) != 1 or len(x) == 0:
            raise DataError(f"contexts are fitted on rows [n, {self.contexts.size}], n >= 1; got {list(x.shape)}")
        for (name, values), bijection in zip(self.contexts.unpack(x).items(), self.parts, strict=True):
            part = self.contexts[name]
            whole = values[part.there(values) if isinstance(part, Tokens) else part.known(values)]
            if len(whole):
                try:
                    bijection.fit(whole)  # type: ignore[operator]
                except DataError as error:
                    raise DataError(f"context {name!r}: {error}") from None
        return self

    @property
    def is_fitted(self) -> bool:
        """Whether all of them are."""
        return all(bool(bijection.is_fitted) for bijection in self.parts)

    def _mapped(self, x: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        batch = self.batch_shape(x)
        mapped, log_det = [], x.new_zeros(batch)
        for (name, values), bijection in zip(self.contexts.unpack(x).items(), self.parts, strict=True):
            part = self.contexts[name]
            if isinstance(bijection, Identity):
                values = torch.where(part.allowed(values), values, torch.nan)
            new, log_dets = bijection.inverse(values) if inverse else bijection(values)  # type: ignore[operator]
            log_det = log_det + (log_dets.sum(-1) if isinstance(part, Tokens) else log_dets)
            mapped.append(new.reshape(*batch, part.shape.numel()))
        return torch.cat(mapped, -1), log_det


def _of_kind(part: Context) -> Bijection:
    """The map of one context; of tokens, that of one of them."""
    if isinstance(part, Vector):
        return NormalScores(part.shape, uneven_only=True)
    if isinstance(part, Field):
        return Standardize(part.shape)
    if isinstance(part, Tokens) and part.features is not None:
        return Standardize((part.features,))
    return Identity(())
