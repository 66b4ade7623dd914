"""Increasing functions of one variable, each fixed by a few numbers: what couplings and autoregressive maps steer."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from sciflow.bijections.spline import (
    num_spline_parameters,
    rational_quadratic_spline,
    rational_quadratic_spline_inverse,
)

__all__ = ["Shift", "ShiftScale", "Spline", "Univariate"]


class Univariate(ABC):
    """A family of increasing functions of one variable.

    Both directions work element by element, on ``x`` of any shape and ``parameters`` of shape
    ``[num_parameters, *x.shape]``, unconstrained; zeros give the identity. They return the value and the logarithm of
    the slope, both of the shape of ``x``, in float32 at least whatever the autocast.
    """

    num_parameters: int

    @abstractmethod
    def forward(self, x: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        """Map data to noise: ``(z, log dz/dx)``."""

    @abstractmethod
    def inverse(self, z: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        """Map noise to data: ``(x, log dx/dz)``."""


class Shift(Univariate):
    r"""Move by an amount, :math:`z = x + t`: the additive map of NICE, Dinh et al., arXiv:1410.8516.

    Example:
        >>> Shift().forward(torch.tensor([1.0]), torch.tensor([[0.5]]))
        (tensor([1.5000]), tensor([0.]))
    """

    num_parameters = 1

    def forward(self, x: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        z = x + parameters[0]
        return z, torch.zeros_like(z)

    def inverse(self, z: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        x = z - parameters[0]
        return x, torch.zeros_like(x)


class ShiftScale(Univariate):
    r"""Stretch and move, as RealNVP (arXiv:1605.08803), MAF (arXiv:1705.07057) and Glow (arXiv:1807.03039) do.

    .. math:: z = x \, e^s + t, \qquad s = b \tanh(r / b), \qquad \log dz/dx = s

    Args:
        bound: Largest :math:`|s|`, so that no exponential can overflow.

    Example:
        >>> z, log_slope = ShiftScale().forward(torch.tensor([1.0]), torch.tensor([[0.5], [0.0]]))
        >>> z, log_slope
        (tensor([1.5000]), tensor([0.]))
    """

    num_parameters = 2

    def __init__(self, bound: float = 3.0) -> None:
        self.bound = bound

    def forward(self, x: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        shift, log_scale = self._shift_and_log_scale(x, parameters)
        return x * torch.exp(log_scale) + shift, log_scale

    def inverse(self, z: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        shift, log_scale = self._shift_and_log_scale(z, parameters)
        return (z - shift) * torch.exp(-log_scale), -log_scale

    def _shift_and_log_scale(self, x: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        shift, raw = parameters.to(torch.promote_types(x.dtype, torch.float32)).unbind(0)
        return shift, self.bound * torch.tanh(raw / self.bound)


class Spline(Univariate):
    """Bend within a box by a monotonic rational-quadratic spline; see :mod:`sciflow.bijections.spline`.

    Args:
        num_bins: Bins of each spline.
        tail_bound: The splines act on [-tail_bound, tail_bound] and leave the rest alone.

    Example:
        >>> spline = Spline(num_bins=8, tail_bound=3.0)
        >>> z, log_slope = spline.forward(torch.tensor([0.5]), torch.zeros(spline.num_parameters, 1))
        >>> torch.allclose(z, torch.tensor([0.5])), log_slope.shape
        (True, torch.Size([1]))
    """

    def __init__(self, num_bins: int = 8, tail_bound: float = 3.0) -> None:
        self.tail_bound = tail_bound
        self.num_parameters = num_spline_parameters(num_bins)

    def forward(self, x: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        return rational_quadratic_spline(x, parameters, self.tail_bound)

    def inverse(self, z: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        return rational_quadratic_spline_inverse(z, parameters, self.tail_bound)
