"""Residual maps: the identity plus a contraction, which no weights can make singular."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from sciflow.bijections.base import Bijection
from sciflow.bijections.fixed_point import solve
from sciflow.bijections.roulette import Roulette, log_det_estimates
from sciflow.nets.lipschitz import Contraction, LipschitzMLP

__all__ = ["Residual"]

_PART_NUMBERS = 1 << 22  # of one layer's tangents at a time: more of them only miss the cache


class Residual(Bijection):
    r"""Add a contraction to the identity.

    .. math:: z = x + g(x, c), \qquad \| g(x, c) - g(y, c) \| \le L \, \| x - y \|, \; L < 1, \qquad
              \log |\det J| = \log \det (I + \partial g / \partial x)

    All features move at once and by each other, and the map is invertible for all weights. From Behrmann et al.,
    arXiv:1811.00995, and Chen et al., arXiv:1906.02735.

    *Log-determinant.* Up to ``exact_features`` features that of the Jacobian, whose columns the network gives together.
    Above it is estimated without bias (:mod:`sciflow.bijections.roulette`): once, with fresh draws, in training mode;
    otherwise as the mean of ``num_estimates`` estimates with draws that are always the same, and the same for all rows.

    *Inverse.* By fixed-point iteration, checked (:mod:`sciflow.bijections.fixed_point`). Its gradient is that of the
    solution, not of the iterations; it takes the Jacobian, in any dimension.

    Args:
        network: The contraction.
        exact_features: Up to this many features the log-determinant is exact.
        num_estimates: Of the log-determinant above, in eval mode.

    Example:
        >>> residual = Residual(LipschitzMLP(3, hidden_features=(16, 16)))
        >>> z, log_det = residual(torch.ones(5, 3))
        >>> x, _ = residual.inverse(z)
        >>> torch.allclose(x, torch.ones(5, 3)), log_det.shape
        (True, torch.Size([5]))
    """

    def __init__(self, network: LipschitzMLP, exact_features: int = 64, num_estimates: int = 16) -> None:
        super().__init__((network.num_features,), (network.num_context,) if network.num_context else None)
        self.network = network
        self.exact_features = exact_features
        self.num_estimates = num_estimates

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        with torch.autocast(x.device.type, enabled=False):
            rows, function, batch = self._rows(x, context)
            z, log_det = self._forward(rows, function)
            return z.reshape(x.shape), log_det.reshape(batch)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        with torch.autocast(z.device.type, enabled=False):
            rows, function, batch = self._rows(z, context)
            x = self._solved(rows, function)
            _, log_det = self._forward(x, function)
            return x.reshape(z.shape), -log_det.reshape(batch)

    def _forward(self, x, function):
        if self.network.num_features <= self.exact_features:
            return _exact(x, function)
        fresh = self.training
        roulette = Roulette.drawn(
            len(x) if fresh else 1,
            1 if fresh else self.num_estimates,
            self.network.num_features,
            x,
            self.network.bound,
            None if fresh else torch.Generator().manual_seed(0),
        )
        g, product = function.linearise(x)
        return x + g, log_det_estimates(product, roulette).mean(-1)

    def _solved(self, z, function):
        x = solve(function, z, self.network.bound)
        if not torch.is_grad_enabled():
            return x
        with torch.no_grad():
            _, product = function.linearise(x)
            jacobian = _jacobian(product, x)
        off = x + function(x) - z
        return x - torch.linalg.solve(jacobian, off.unsqueeze(-1)).squeeze(-1)

    def _rows(self, x, context):
        batch = self.batch_shape(x)
        context = self.broadcast_context(context, batch)
        given = None if context is None else context.reshape(-1, context.shape[-1])
        return x.reshape(-1, x.shape[-1]), self.network.given(given), batch


def _exact(x, function):
    g, product = function.linearise(x)
    return x + g, torch.linalg.slogdet(_jacobian(product, x)).logabsdet


def _jacobian(product: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    eye = torch.eye(x.shape[-1], dtype=x.dtype, device=x.device)
    return eye + product(eye).mT
