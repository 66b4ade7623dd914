r"""One bin of a monotonic rational-quadratic spline.

In a bin of width :math:`w`, height :math:`h` and end slopes :math:`d_0, d_1`, with :math:`\theta = (x - x_k) / w` and
:math:`s = h / w`,

.. math::
    z = z_k + h \frac{s \theta^2 + d_0 \theta (1 - \theta)}{s + (d_0 + d_1 - 2 s) \theta (1 - \theta)}, \qquad
    \frac{dz}{dx} = s^2 \frac{d_1 \theta^2 + 2 s \theta (1 - \theta) + d_0 (1 - \theta)^2}
                             {[s + (d_0 + d_1 - 2 s) \theta (1 - \theta)]^2} .

From Durkan et al., Neural Spline Flows, arXiv:1906.04032.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["MIN_SIZE", "MIN_SLOPE", "SLOPE_OFFSET", "climb", "descend", "slope_at_knot"]

MIN_SIZE = 1e-3  # of a bin, as a fraction of the box: bounds the steepness, and so the rounding error
MIN_SLOPE = 1e-3
SLOPE_OFFSET = math.log(math.expm1(1 - MIN_SLOPE))  # zero stands for slope 1


def slope_at_knot(raw: Tensor) -> Tensor:
    """Return the positive slope that an unconstrained number stands for.

    Example:
        >>> round(slope_at_knot(torch.zeros(1)).item(), 6)
        1.0
    """
    return F.softplus(raw + SLOPE_OFFSET) + MIN_SLOPE


def climb(theta: Tensor, slope: Tensor, slope0: Tensor, slope1: Tensor) -> tuple[Tensor, Tensor]:
    """Return the height reached at ``theta``, as a fraction of the bin's, and the log-slope there.

    Example:
        >>> one = torch.ones(1)
        >>> climb(0.5 * one, one, one, one)
        (tensor([0.5000]), tensor([0.]))
    """
    remainder = 1 - theta
    mixed = theta * remainder
    denominator = slope + (slope0 + slope1 - 2 * slope) * mixed
    fraction = (slope * theta * theta + slope0 * mixed) / denominator
    numerator = slope1 * theta * theta + 2 * slope * mixed + slope0 * remainder * remainder
    return fraction, 2 * torch.log(slope / denominator) + torch.log(numerator)


def descend(fraction: Tensor, slope: Tensor, slope0: Tensor, slope1: Tensor) -> Tensor:
    r"""Return :math:`\theta` where a fraction :math:`v` of the bin's height is reached.

    With :math:`\kappa = d_0 + d_1 - 2 s`, it is the root in [0, 1] of

    .. math:: (s - d_0 + v \kappa) \theta^2 + (d_0 - v \kappa) \theta - s v = 0 .

    Example:
        >>> one = torch.ones(1)
        >>> descend(0.5 * one, one, one, one)
        tensor([0.5000])
    """
    excess = fraction * (slope0 + slope1 - 2 * slope)
    a, b, minus_c = slope - slope0 + excess, slope0 - excess, slope * fraction
    # The discriminant is positive. Should rounding ever say otherwise, the root stays real and its gradient finite.
    root = (b * b + 4 * a * minus_c).clamp_min(torch.finfo(fraction.dtype).tiny).sqrt()
    # Of the two forms of the root, each time the one that adds numbers of one sign: the other would cancel.
    positive = b >= 0
    theta = torch.where(positive, 2 * minus_c, root - b) / torch.where(positive, b + root, 2 * a)
    return theta.clamp(0, 1)
