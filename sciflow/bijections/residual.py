"""Residual maps: the identity plus a contraction, which no weights can make singular."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from sciflow.bijections.base import Bijection
from sciflow.bijections.fixed_point import solve
from sciflow.bijections.roulette import Roulette, log_det_estimates
from sciflow.derivatives import differentiable_once
from sciflow.nets.lipschitz import Contraction, LipschitzMLP

__all__ = ["NUM_ESTIMATES", "Residual"]

# One estimate serves training, whose batches average it. A value that is reported would take many, and up to this many
# times the features the exact one costs less than NUM_ESTIMATES.
_EVALUATED_EXACTLY = 16
NUM_ESTIMATES = 16
# Of one layer, for all vectors and rows of a part: 2 MB stay in the cache of a CPU; elsewhere memory is the limit.
_PART_NUMBERS_CPU, _PART_NUMBERS = 1 << 19, 1 << 26


class Residual(Bijection):
    r"""Add a contraction to the identity.

    .. math:: z = x + g(x, c), \qquad \| g(x, c) - g(y, c) \| \le L \, \| x - y \|, \; L < 1, \qquad
              \log |\det J| = \log \det (I + \partial g / \partial x)

    All features move at once, each by all, and the map is invertible whatever the weights. From Behrmann et al.,
    arXiv:1811.00995, and Chen et al., arXiv:1906.02735.

    *Log-determinant.* Up to ``exact_features`` features while training, and 16 times as many in eval mode, that of the
    Jacobian, at the cost of a product with it for every feature. Above, it is estimated without bias
    (:func:`sciflow.bijections.roulette.log_det_estimates`): in training mode once, by fresh draws; in eval mode by the
    mean of 16 estimates with draws that are always the same, and the same for all rows, so that it is a function of
    the row alone.

    *Inverse.* By fixed-point iteration (:func:`sciflow.bijections.fixed_point.solve`), checked. Its gradient is that of
    the solution and not of the iterations; it takes the Jacobian, in any dimension.

    Args:
        network: The contraction.
        exact_features: Up to this many features training takes the exact log-determinant.

    Example:
        >>> residual = Residual(LipschitzMLP(3, hidden_features=(16, 16)))
        >>> z, log_det = residual(torch.ones(5, 3))
        >>> x, _ = residual.inverse(z)
        >>> torch.allclose(x, torch.ones(5, 3)), log_det.shape
        (True, torch.Size([5]))
    """

    def __init__(self, network: LipschitzMLP, exact_features: int = 16) -> None:
        super().__init__((network.num_features,), (network.num_context,) if network.num_context else None)
        self.network = network
        self.exact_features = exact_features

    @property
    def is_exact(self) -> bool:
        """Whether the log-determinant is exact, in the present mode."""
        return self.network.num_features <= self.exact_features * (1 if self.training else _EVALUATED_EXACTLY)

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        if self.is_exact:
            return self.exact(x, context)
        if self.training:
            z, log_dets, _ = self.estimated(x, context)
        else:
            z, log_dets, _ = self.estimated(x, context, NUM_ESTIMATES, torch.Generator().manual_seed(0))
        return z, log_dets.mean(-1)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        x = self.solved(z, context)
        return x, -self(x, context)[1]

    def moved(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Map data to noise, and leave the log-determinant."""
        with _full_precision(x):
            rows, g = self._rows(x, context)
            return (rows + g(rows)).reshape(x.shape)

    def solved(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        """Map noise to data, and leave the log-determinant.

        Raises:
            ConvergenceError: The iteration has not converged.
        """
        with _full_precision(z):
            rows, g = self._rows(z, context)
            x = solve(g, rows.detach(), self.network.bound)
            if torch.is_grad_enabled():
                # One step of Newton's: next to nothing in value, and the derivative of the solution.
                with torch.no_grad():
                    parts = self._parts(x, g, self.network.num_features)
                    jacobian = torch.cat([_jacobian(g_of_part.linearise(part)[1], part) for part, g_of_part in parts])
                off = differentiable_once(
                    x + g(x) - rows, "the inverse of a residual map", "Differentiate forward, and invert the Jacobian"
                )
                x = x - torch.linalg.solve(jacobian, off.unsqueeze(-1)).squeeze(-1)
            return x.reshape(z.shape)

    def exact(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map data to noise, with the exact log-determinant in any dimension."""
        with _full_precision(x):
            rows, g = self._rows(x, context)
            moved, log_dets = [], []
            for part, g_of_part in self._parts(rows, g, self.network.num_features):
                shift, product = g_of_part.linearise(part)
                moved.append(part + shift)
                log_dets.append(torch.linalg.slogdet(_jacobian(product, part)).logabsdet)
            return torch.cat(moved).reshape(x.shape), torch.cat(log_dets).reshape(self.batch_shape(x))

    def estimated(
        self,
        x: Tensor,
        context: Tensor | None = None,
        num_estimates: int = 1,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Map data to noise, with independent estimates of the log-determinant.

        Args:
            x: ``[*batch, num_features]``.
            context: ``[*context_batch, *context_shape]``.
            num_estimates: Number of them.
            generator: On the CPU; its draws are the same for all rows. None draws for every row, from torch's own.

        Returns:
            ``z``, the estimates ``[*batch, num_estimates]``, and how many products with the Jacobian they took for each
            row, ``[*batch]``.
        """
        with _full_precision(x):
            rows, g = self._rows(x, context)
            # Shared draws are the same in every part.
            shared = None if generator is None else self._drawn(rows, num_estimates, generator)
            moved, log_dets, counts = [], [], []
            for part, g_of_part in self._parts(rows, g, num_estimates):
                shift, product = g_of_part.linearise(part)
                estimates, count = log_det_estimates(product, shared or self._drawn(part, num_estimates, None))
                moved.append(part + shift)
                log_dets.append(estimates)
                counts.append(torch.full((len(part),), count, dtype=torch.int32, device=x.device))
            batch = self.batch_shape(x)
            return (
                torch.cat(moved).reshape(x.shape),
                torch.cat(log_dets).reshape(*batch, num_estimates),
                torch.cat(counts).reshape(batch),
            )

    def _drawn(self, rows: Tensor, num_estimates: int, generator: torch.Generator | None) -> Roulette:
        return Roulette.drawn(rows, num_estimates, self.network.bound, generator)

    def _rows(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Contraction]:
        """Flatten the batch to one dimension, and fix weights and context."""
        context = self.broadcast_context(context, self.batch_shape(x))
        given = None if context is None else context.reshape(-1, context.shape[-1])
        return x.reshape(-1, x.shape[-1]), self.network.given(given)

    def _parts(self, rows: Tensor, g: Contraction, num_vectors: int) -> Iterator[tuple[Tensor, Contraction]]:
        """Rows in parts, each with its contraction, such that as many vectors a row leave the layers in the cache."""
        numbers = _PART_NUMBERS_CPU if rows.device.type == "cpu" else _PART_NUMBERS
        size = max(1, numbers // (num_vectors * g.width))
        if torch.compiler.is_compiling() or len(rows) <= size:
            yield rows, g
            return
        for start in range(0, len(rows), size):
            part = slice(start, start + size)
            yield rows[part], g.rows(part)


def _jacobian(product: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """The Jacobian of x + g(x), ``[n, num_features, num_features]``."""
    eye = torch.eye(x.shape[-1], dtype=x.dtype, device=x.device)
    return eye + product(eye).mT


def _full_precision(x: Tensor) -> AbstractContextManager[Any]:
    """What the network says is the map itself: half precision would be error in the data, and in its Jacobian."""
    return torch.autocast(x.device.type, enabled=False)
