"""A density whose context goes through a network of its own first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sciflow.arguments import plain, seeded
from sciflow.bijections import Identity, Standardize
from sciflow.density import Density, checked_shape
from sciflow.errors import ModelFileError, ShapeError
from sciflow.families import FAMILIES, build
from sciflow.inference.conditional.embeddings import embedding_network
from sciflow.inference.conditional.regressed import Regressed
from sciflow.inference.conditional.wrapped import Wrapped
from sciflow.model_file import load

__all__ = ["Embedded", "load_member"]


class Embedded(Wrapped):
    r"""Condition a density on what a network reads off its context.

    .. math:: p(x \mid c) = q\big(x \mid F(c)\big)

    The network :math:`F` and the density :math:`q` are trained together. The context is brought near zero by one scale
    for all of its elements, which stay comparable.

    Args:
        event_shape: Shape of one event.
        context_shape: Shape of one context; packed it is a vector.
        density: Family and arguments of :math:`q`, as :func:`sciflow.families.build` takes them.
        embedding: The network, see :func:`sciflow.inference.conditional.embeddings.embedding_network`.
        x_shape: Shape of one context, where ``context_shape`` is that of the vector, as a file has it.

    Example:
        >>> model = Embedded((2,), (3, 16), density={"name": "maf", "num_transforms": 1}, embedding="convolution")
        >>> model.log_prob(torch.zeros(5, 2), torch.zeros(5, 48)).shape
        torch.Size([5])
    """

    family = "embedded"

    def __init__(
        self,
        event_shape: Sequence[int],
        context_shape: Sequence[int],
        *,
        density: Mapping[str, Any],
        embedding: str | Mapping[str, Any] | nn.Module,
        x_shape: Sequence[int] | None = None,
    ) -> None:
        shape = checked_shape(context_shape if x_shape is None else x_shape, "context_shape")
        with seeded(density.get("seed")):
            network, size = embedding_network(embedding, shape)
        inner = build(density, event_shape, (size,))
        super().__init__(
            event_shape,
            (shape.numel(),),
            preprocess=Identity(checked_shape(event_shape, "event_shape")),
            preprocess_context=Standardize((1,)),
            arguments={
                "density": plain("density", density),
                "embedding": embedding if isinstance(embedding, nn.Module) else plain("embedding", embedding),
                "x_shape": list(shape),
            },
        )
        self.x_shape = shape
        self.embedding = network
        self._wrap(inner)

    def _given(self, context: Any) -> Tensor:
        """What the network reads off contexts ``[*batch, *x_shape]``, packed or not: ``[*batch, k]``."""
        c = self._numbers(context)
        if c.shape[c.ndim - len(self.x_shape) :] != self.x_shape or c.ndim < len(self.x_shape):
            if c.ndim == 0 or c.shape[-1] != self.x_shape.numel():
                raise ShapeError(f"context [*batch, {self.x_shape.numel()}] expected; got {list(c.shape)}")
            c = c.unflatten(-1, self.x_shape)
        batch = c.shape[: c.ndim - len(self.x_shape)]
        assert self.preprocess_context is not None
        rows, _ = self.preprocess_context(c.reshape(-1, 1))
        features: Tensor = self.embedding(rows.reshape(-1, *self.x_shape))
        return features.reshape(*batch, -1)

    def fit_preprocessing(self, x: Any, context: Any = None) -> None:
        """Fit the bijections of the event, and the scale of the context."""
        rows, c = self._numbers(x), self._numbers(context)
        assert self.preprocess_context is not None
        self.preprocess_context.fit(c.reshape(-1, 1))  # type: ignore[operator]
        # Features change with every step: they stay as the network gives them.
        self.density.fit_preprocessing(rows, rows.new_zeros(len(rows), *(self.density.context_shape or ())))

    def save(self, path: str | Path) -> Path:
        if isinstance(self.arguments["embedding"], nn.Module):
            raise ModelFileError(
                f"{path}: the embedding is a network of your own, which no file can hold: keep its state_dict() beside "
                "the code that builds it"
            )
        return super().save(path)


def load_member(path: str | Path, device: str | torch.device = "cpu") -> Density:
    """Read a density back, wrapped or not; see :func:`sciflow.load`."""
    return load(path, {**FAMILIES, Embedded.family: Embedded, Regressed.family: Regressed}, device)
