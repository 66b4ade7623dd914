"""A density whose context goes through a network of its own first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sciflow.arguments import plain, seeded
from sciflow.bijections import Identity, Standardize
from sciflow.density import Density, Likelihood, checked_shape
from sciflow.errors import ModelFileError, ShapeError
from sciflow.families import FAMILIES, build
from sciflow.inference.conditional.embeddings import embedding_network
from sciflow.model_file import load

__all__ = ["Embedded", "load_member"]


class Embedded(Density):
    r"""Condition a density on what a network reads off its context.

    .. math:: p(x \mid c) = q\big(x \mid F(c)\big)

    The network :math:`F` and the density :math:`q` are trained together. The context is brought near zero by one scale
    for all of its elements, which stay comparable.

    Args:
        event_shape: Shape of one event.
        context_shape: Shape of the context, ``[*shape]``; it is packed as a vector.
        density: Family and arguments of :math:`q`, as :func:`sciflow.families.build` takes them.
        embedding: The network, see :func:`sciflow.inference.conditional.embeddings.embedding_network`.

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
        self.density = inner
        self.embedding = network
        self.objective, self.unit = inner.objective, inner.unit  # type: ignore[misc]
        self.relative_steps = inner.relative_steps

    def embedded(self, context: Any) -> Tensor:
        """What the network reads off contexts ``[*batch, *x_shape]``, packed or not: ``[*batch, k]``."""
        c = torch.as_tensor(context, dtype=self.dtype, device=self.device)
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
        rows = torch.as_tensor(x, dtype=self.dtype, device=self.device)
        c = torch.as_tensor(context, dtype=self.dtype, device=self.device)
        assert self.preprocess_context is not None
        self.preprocess_context.fit(c.reshape(-1, 1))  # type: ignore[operator]
        # Features change with every step: they stay as the network gives them.
        self.density.fit_preprocessing(rows, rows.new_zeros(len(rows), *(self.density.context_shape or ())))

    def loss(self, x: Any, context: Any = None) -> Tensor:
        return self.density.loss(x, self.embedded(context))

    def log_prob(self, x: Any, context: Any = None) -> Tensor:
        return self.density.log_prob(x, self.embedded(context))

    def likelihood(self, x: Any, context: Any = None, method: str | None = None, **options: Any) -> Likelihood:
        return self.density.likelihood(x, self.embedded(context), method, **options)

    def sample(self, n: Any, context: Any = None, seed: int | torch.Generator | None = None, **options: Any) -> Tensor:
        with torch.no_grad():
            features = self.embedded(context)
        return self.density.sample(n, features, seed, **options)

    def encode(self, x: Any, context: Any = None, **options: Any) -> Tensor:
        return self.density.encode(x, self.embedded(context), **options)

    def decode(self, z: Any, context: Any = None, **options: Any) -> Tensor:
        return self.density.decode(z, self.embedded(context), **options)

    def save(self, path: str | Path) -> Path:
        if isinstance(self.arguments["embedding"], nn.Module):
            raise ModelFileError(
                f"{path}: the embedding is a network of your own, which no file can hold: keep its state_dict() beside "
                "the code that builds it"
            )
        return super().save(path)

    # All of the above goes past these.
    def _log_prob(self, y: Tensor, context: Tensor | None) -> Tensor:
        raise NotImplementedError

    def _likelihood(self, y: Tensor, context: Tensor | None, method: str | None, **options: Any) -> Likelihood:
        raise NotImplementedError

    def _sample(self, n: int, context: Tensor | None, generator: torch.Generator | None, **options: Any) -> Tensor:
        raise NotImplementedError

    def _encode(self, y: Tensor, context: Tensor | None) -> Tensor:
        raise NotImplementedError

    def _decode(self, z: Tensor, context: Tensor | None) -> Tensor:
        raise NotImplementedError


def load_member(path: str | Path, device: str | torch.device = "cpu") -> Density:
    """Read a density back, embedded or not; see :func:`sciflow.load`."""
    return load(path, {**FAMILIES, Embedded.family: Embedded}, device)
