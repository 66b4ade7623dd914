"""Linear maps of a vector event: reordering, and learned mixing of the features."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sciflow.bijections.base import Bijection
from sciflow.errors import ShapeError

__all__ = ["LULinear", "Permutation"]

_MIN_DIAGONAL = 1e-3  # keeps the matrix invertible, and its inverse within 1e3 along each pivot


class Permutation(Bijection):
    r"""Reorder the features.

    .. math:: z_i = x_{o(i)}, \qquad \log |\det J| = 0

    Args:
        order: Integers ``[num_features]``, each of 0 .. num_features - 1 once.

    Raises:
        ShapeError: ``order`` is not a permutation.

    Example:
        >>> Permutation(torch.tensor([2, 0, 1]))(torch.tensor([[10.0, 11.0, 12.0]]))[0]
        tensor([[12., 10., 11.]])
    """

    order: Tensor
    inverse_order: Tensor

    def __init__(self, order: Tensor) -> None:
        super().__init__(order.shape)
        self.register_buffer("order", _checked_order(order))
        self.register_buffer("inverse_order", order.argsort())

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        batch = self.batch_shape(x)
        return x[..., self.order], x.new_zeros(batch)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        batch = self.batch_shape(z)
        return z[..., self.inverse_order], z.new_zeros(batch)


class LULinear(Bijection):
    r"""Mix the features by a learned matrix, kept as a permutation and two triangular factors.

    .. math:: z = L U P x + b, \qquad \log |\det J| = \sum_i \log U_{ii}

    The diagonal of :math:`L` is 1, that of :math:`U` positive, so the determinant is a sum and the inverse two
    triangular solves. It starts as the permutation :math:`P` alone, which moves no volume and scales nothing.
    From Oliva et al., arXiv:1801.09819, as used in neural spline flows, arXiv:1906.04032.

    Args:
        order: Permutation of the features, integers ``[num_features]``; fixed, not learned.

    Example:
        >>> z, log_det = LULinear(torch.tensor([1, 0]))(torch.tensor([[3.0, 4.0]]))
        >>> torch.allclose(z, torch.tensor([[4.0, 3.0]])), log_det.shape
        (True, torch.Size([1]))
    """

    inverse_order: Tensor
    identity: Tensor

    def __init__(self, order: Tensor) -> None:
        super().__init__(order.shape)
        num_features = len(order)
        self.register_buffer("identity", torch.eye(num_features), persistent=False)
        self.register_buffer("inverse_order", _checked_order(order).argsort())
        # L below the diagonal, U above it, as LAPACK packs them.
        self.factors = nn.Parameter(torch.zeros(num_features, num_features))
        self.raw_diagonal = nn.Parameter(torch.full((num_features,), math.log(math.expm1(1 - _MIN_DIAGONAL))))
        self.bias = nn.Parameter(torch.zeros(num_features))

    @torch.no_grad()
    def whiten(self, x: Tensor) -> None:
        r"""Become the map that brings rows ``[n, num_features]`` to mean 0 and unit covariance.

        With the covariance :math:`C C^\top` of the permuted features it is :math:`z = C^{-1} (P x - m)`.
        """
        permuted = x[:, self.inverse_order.argsort()]
        mean = permuted.mean(0)
        centred = permuted - mean
        covariance = centred.T @ centred / max(1, len(x) - 1)
        jitter = torch.finfo(x.dtype).eps ** 0.5 * covariance.diagonal().mean() * torch.eye(x.shape[1]).to(x)
        lower = torch.linalg.cholesky(covariance + jitter)
        inverse = torch.linalg.solve_triangular(lower, torch.eye(x.shape[1]).to(x), upper=False)
        diagonal = inverse.diagonal().clamp_min(2 * _MIN_DIAGONAL)
        self.factors.copy_((inverse / diagonal).tril(-1))
        rest = diagonal - _MIN_DIAGONAL
        self.raw_diagonal.copy_(rest + torch.log(-torch.expm1(-rest)))
        self.bias.copy_(-inverse @ mean)

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        batch = self.batch_shape(x)
        # The mixing acts on the variables themselves: under autocast, half precision here would be error in the data.
        with torch.autocast(x.device.type, enabled=False):
            lower, upper, diagonal = self._triangles()
            weight = (lower @ upper).index_select(1, self.inverse_order)
            return F.linear(x, weight, self.bias), diagonal.log().sum().expand(batch)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        batch = self.batch_shape(z)
        with torch.autocast(z.device.type, enabled=False):
            lower, upper, diagonal = self._triangles()
            columns = (z.reshape(-1, len(diagonal)) - self.bias).T
            columns = torch.linalg.solve_triangular(lower, columns, upper=False, unitriangular=True)
            columns = torch.linalg.solve_triangular(upper, columns, upper=True)
            x = columns.T[:, self.inverse_order].reshape(z.shape)
            return x, -diagonal.log().sum().expand(batch)

    def _triangles(self) -> tuple[Tensor, Tensor, Tensor]:
        diagonal = F.softplus(self.raw_diagonal) + _MIN_DIAGONAL
        lower = self.factors.tril(-1) + self.identity
        upper = self.factors.triu(1) + self.identity * diagonal
        return lower, upper, diagonal


def _checked_order(order: Tensor) -> Tensor:
    if order.ndim != 1 or order.sort().values.tolist() != list(range(len(order))):
        raise ShapeError(f"order must hold each of 0 .. num_features - 1 once; got {order.tolist()}")
    return order
