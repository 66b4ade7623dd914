"""Every feature by a function of its own, which is learned."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sciflow.bijections.base import Bijection
from sciflow.bijections.univariate import Univariate

__all__ = ["Elementwise"]

_PACE = 4.0  # an optimiser moves these as fast as what networks put out, not as their weights


class Elementwise(Bijection):
    r"""Map every feature by a function of one variable, whose parameters are learned as they are.

    .. math:: z_i = f(x_i; \theta_i), \qquad \log |\det J| = \sum_i \log \partial z_i / \partial x_i

    It takes the shapes of the marginals off before features are mixed. It starts as the identity.

    Args:
        num_features: Length of the vector event.
        univariate: The functions :math:`f`.

    Example:
        >>> from sciflow.bijections import Spline
        >>> z, log_det = Elementwise(3, Spline())(torch.tensor([[0.1, 0.2, 0.3]]))
        >>> torch.allclose(z, torch.tensor([[0.1, 0.2, 0.3]])), log_det.shape
        (True, torch.Size([1]))
    """

    def __init__(self, num_features: int, univariate: Univariate) -> None:
        super().__init__((num_features,))
        self.univariate = univariate
        self.raw = nn.Parameter(torch.zeros(univariate.num_parameters, num_features))

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        batch = self.batch_shape(x)
        columns = x.reshape(-1, x.shape[-1]).T
        z, log_slope = self.univariate.forward(columns, self._steering(columns))
        return z.T.reshape(x.shape), log_slope.sum(0).reshape(batch)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        batch = self.batch_shape(z)
        columns = z.reshape(-1, z.shape[-1]).T
        x, log_slope = self.univariate.inverse(columns, self._steering(columns))
        return x.T.reshape(z.shape), log_slope.sum(0).reshape(batch)

    def _steering(self, columns: Tensor) -> Tensor:
        return (_PACE * self.raw)[:, :, None].expand(-1, *columns.shape)
