"""A normalizing flow: a bijection to noise, and so an exact density."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sciflow.bijections import Bijection
from sciflow.density import Density, Likelihood, Status
from sciflow.errors import ConfigError

__all__ = ["Flow"]

_SAMPLE_ROWS = 65536  # drawn at a time: the splines of one row take some hundred times the memory of the row


class Flow(Density):
    r"""The density of a standard normal, seen through a bijection.

    .. math:: \log p_Y(y \mid c) = \log \mathcal N(z; 0, I) + \log |\det \partial z / \partial y|, \qquad
              z = f(y \mid c)

    Sampling is the inverse of :math:`f` at normal noise. From Rezende and Mohamed, arXiv:1505.05770.

    Args:
        transform: Bijection of the flattened event (and flattened context), data to noise.
        event_shape: Shape of one event.
        context_shape: Shape of what the density is conditioned on, or None.
        preprocess: Bijection from data units to normalised units.
        preprocess_context: The same for the context.
        arguments: The constructor's arguments, as JSON can hold them.
    """

    def __init__(
        self,
        transform: Bijection,
        event_shape: Sequence[int],
        context_shape: Sequence[int] | None = None,
        *,
        preprocess: Bijection,
        preprocess_context: Bijection | None = None,
        arguments: dict[str, Any],
    ) -> None:
        super().__init__(
            event_shape,
            context_shape,
            preprocess=preprocess,
            preprocess_context=preprocess_context,
            arguments=arguments,
        )
        self.transform = transform

    def _log_prob(self, y: Tensor, context: Tensor | None) -> Tensor:
        z, log_det = self.transform(y.flatten(1), _flat(context))
        return log_det - 0.5 * (z.square().sum(-1) + z.shape[-1] * math.log(2 * math.pi))

    def _likelihood(self, y: Tensor, context: Tensor | None, method: str | None, **options: Any) -> Likelihood:
        if method not in (None, "exact"):
            raise ConfigError(f"{type(self).__name__} knows its log p by method 'exact' alone; got {method!r}")
        if options:
            raise ConfigError(f"method 'exact' takes no options; got {', '.join(options)}")
        log_prob = self._log_prob(y, context)
        return Likelihood(
            log_prob=log_prob,
            error=torch.zeros_like(log_prob),
            nfe=torch.ones_like(log_prob, dtype=torch.int32),
            status=torch.full_like(log_prob, Status.OK, dtype=torch.int32),
            kind="exact",
        )

    def _sample(self, n: int, context: Tensor | None, generator: torch.Generator | None, **options: Any) -> Tensor:
        if options:
            raise ConfigError(f"sampling from {type(self).__name__} takes no options; got {', '.join(options)}")
        z = torch.randn(n, *self.event_shape, generator=generator, dtype=self.dtype, device=self.device)
        parts = z.split(_SAMPLE_ROWS)
        contexts = [None] * len(parts) if context is None else context.split(_SAMPLE_ROWS)
        return torch.cat([self._decode(part, c) for part, c in zip(parts, contexts, strict=True)])

    def _encode(self, y: Tensor, context: Tensor | None) -> Tensor:
        z, _ = self.transform(y.flatten(1), _flat(context))
        return z.reshape(y.shape)

    def _decode(self, z: Tensor, context: Tensor | None) -> Tensor:
        y, _ = self.transform.inverse(z.flatten(1), _flat(context))
        return y.reshape(z.shape)

    def __repr__(self) -> str:
        context_shape = None if self.context_shape is None else tuple(self.context_shape)
        return (
            f"{type(self).__name__}(event_shape={tuple(self.event_shape)}, context_shape={context_shape}, "
            f"{self._summary()}{sum(p.numel() for p in self.parameters()):,} parameters)"
        )

    def _summary(self) -> str:
        """What ``repr`` says of the architecture; ends with a comma and a space if it says anything."""
        return ""


def _flat(context: Tensor | None) -> Tensor | None:
    return None if context is None else context.flatten(1)
