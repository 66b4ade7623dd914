"""A density around another: events and contexts are brought to it, and draws are brought back."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from sciflow.density import Density, Likelihood

__all__ = ["Wrapped", "innermost"]


class Wrapped(Density):
    r"""A density of events that another one sees through a bijection, or given what is made of their context.

    .. math:: \log p(x \mid c) = \log q\big(f(x, c) \mid g(c)\big) + \log |\det \partial f / \partial x|

    A kind sets ``density``, which is :math:`q`, and gives ``_given`` for :math:`g`, and ``_inward`` and ``_outward``
    for :math:`f`, where they do something.
    """

    density: Density

    def _wrap(self, density: Density) -> None:
        """Take the density in, and be trained and judged as it is."""
        self.density = density
        self.objective, self.unit = density.objective, density.unit  # type: ignore[misc]
        self.relative_steps = density.relative_steps

    def _given(self, context: Any) -> Tensor:
        """What the density is conditioned on, ``[*batch, k]``."""
        return self._numbers(context)

    def _inward(self, x: Tensor, context: Any) -> tuple[Tensor, Tensor]:
        """Events as the density sees them, and the log-determinant."""
        return x, x.new_zeros(())

    def _outward(self, u: Tensor, context: Any) -> Tensor:
        """Undo :meth:`_inward`."""
        return u

    def _numbers(self, values: Any) -> Tensor:
        return torch.as_tensor(values, dtype=self.dtype, device=self.device)

    def loss(self, x: Any, context: Any = None) -> Tensor:
        u, log_det = self._inward(self._numbers(x), context)
        return self.density.loss(u, self._given(context)) - log_det

    def log_prob(self, x: Any, context: Any = None) -> Tensor:
        u, log_det = self._inward(self._numbers(x), context)
        return self.density.log_prob(u, self._given(context)) + log_det

    def likelihood(self, x: Any, context: Any = None, method: str | None = None, **options: Any) -> Likelihood:
        u, log_det = self._inward(self._numbers(x), context)
        found = self.density.likelihood(u, self._given(context), method, **options)
        return replace(found, log_prob=found.log_prob + log_det)

    def sample(self, n: Any, context: Any = None, seed: int | torch.Generator | None = None, **options: Any) -> Tensor:
        with torch.no_grad():
            return self._outward(self.density.sample(n, self._given(context), seed, **options), context)

    def encode(self, x: Any, context: Any = None, **options: Any) -> Tensor:
        return self.density.encode(self._inward(self._numbers(x), context)[0], self._given(context), **options)

    def decode(self, z: Any, context: Any = None, **options: Any) -> Tensor:
        return self._outward(self.density.decode(z, self._given(context), **options), context)

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


def innermost(density: Density) -> Density:
    """The density that is not around another."""
    while isinstance(density, Wrapped):
        density = density.density
    return density
