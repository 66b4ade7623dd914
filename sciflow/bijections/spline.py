r"""Monotonic rational-quadratic splines, as pure functions.

In bin :math:`k` of width :math:`w`, height :math:`h` and end slopes :math:`d_0, d_1`, with
:math:`\theta = (x - x_k) / w` and :math:`s = h / w`,

.. math::
    z = z_k + h \frac{s \theta^2 + d_0 \theta (1 - \theta)}{s + (d_0 + d_1 - 2 s) \theta (1 - \theta)}, \qquad
    \frac{dz}{dx} = s^2 \frac{d_1 \theta^2 + 2 s \theta (1 - \theta) + d_0 (1 - \theta)^2}
                             {[s + (d_0 + d_1 - 2 s) \theta (1 - \theta)]^2} .

Outside the box [-tail_bound, tail_bound] the map is the identity, and meets the spline with slope 1.
From Durkan et al., Neural Spline Flows, arXiv:1906.04032.

The bins are the first dimension of ``parameters``: ``num_bins`` widths, ``num_bins`` heights, ``num_bins - 1`` inner
slopes, all unconstrained; zeros give the identity. Bins first, because reductions over a leading dimension run
vectorised over the elements: three times faster on a CPU than over a trailing dimension of eight.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["num_spline_parameters", "rational_quadratic_spline", "rational_quadratic_spline_inverse"]

_MIN_SIZE = 1e-3  # of a bin, as a fraction of the box: bounds the steepness, and so the rounding error
_MIN_SLOPE = 1e-3


def num_spline_parameters(num_bins: int) -> int:
    """Return how many parameters one spline takes.

    Example:
        >>> num_spline_parameters(8)
        23
    """
    return 3 * num_bins - 1


def rational_quadratic_spline(x: Tensor, parameters: Tensor, tail_bound: float) -> tuple[Tensor, Tensor]:
    """Map every element of ``x`` by its own spline.

    Computed in float32 at least, whatever the autocast; finite, with finite gradients, for any finite input.

    Args:
        x: Any shape.
        parameters: ``[num_spline_parameters(num_bins), *x.shape]``.
        tail_bound: Half the side of the box.

    Returns:
        ``z`` and the logarithm of dz/dx, both of the shape of ``x``.

    Example:
        >>> x = torch.tensor([-9.0, 0.3, 9.0])
        >>> z, log_slope = rational_quadratic_spline(x, torch.zeros(23, 3), tail_bound=5.0)
        >>> torch.allclose(z, x), torch.allclose(log_slope, torch.zeros(3), atol=1e-6)
        (True, True)
    """
    x, parameters = _at_least_float32(x, parameters)
    # The branch comes last: where() hides a value that is not wanted, but not a NaN gradient behind it.
    inner = x.clamp(-tail_bound, tail_bound)
    left, bottom, width, height, slope0, slope1 = _bin_of(inner, parameters, tail_bound, axis=0)
    theta = ((inner - left) / width).clamp(0, 1)
    slope = height / width
    z, log_slope = _evaluate(theta, slope, slope0, slope1)
    outside = x.abs() >= tail_bound
    return torch.where(outside, x, bottom + height * z), log_slope.masked_fill(outside, 0)


def rational_quadratic_spline_inverse(z: Tensor, parameters: Tensor, tail_bound: float) -> tuple[Tensor, Tensor]:
    r"""Undo :func:`rational_quadratic_spline`.

    With :math:`v = (z - z_k) / h` and :math:`\kappa = d_0 + d_1 - 2 s`, :math:`\theta` is the root in [0, 1] of

    .. math:: (s - d_0 + v \kappa) \theta^2 + (d_0 - v \kappa) \theta - s v = 0 .

    Args:
        z: Any shape.
        parameters: ``[num_spline_parameters(num_bins), *z.shape]``, those of the forward map.
        tail_bound: Half the side of the box.

    Returns:
        ``x`` and the logarithm of dx/dz, both of the shape of ``z``.

    Example:
        >>> parameters = torch.linspace(-2.0, 2.0, 23)[:, None]
        >>> z, log_slope = rational_quadratic_spline(torch.tensor([0.3]), parameters, tail_bound=5.0)
        >>> x, inverse_log_slope = rational_quadratic_spline_inverse(z, parameters, tail_bound=5.0)
        >>> torch.allclose(x, torch.tensor([0.3]), atol=1e-5), torch.allclose(log_slope, -inverse_log_slope, atol=1e-5)
        (True, True)
    """
    z, parameters = _at_least_float32(z, parameters)
    inner = z.clamp(-tail_bound, tail_bound)
    left, bottom, width, height, slope0, slope1 = _bin_of(inner, parameters, tail_bound, axis=1)
    v = ((inner - bottom) / height).clamp(0, 1)
    slope = height / width
    excess = v * (slope0 + slope1 - 2 * slope)
    a, b, minus_c = slope - slope0 + excess, slope0 - excess, slope * v
    # The discriminant is positive. Should rounding ever say otherwise, the root stays real and its gradient finite.
    root = (b * b + 4 * a * minus_c).clamp_min(torch.finfo(z.dtype).tiny).sqrt()
    # Of the two forms of the root, each time the one that adds numbers of one sign: the other would cancel.
    positive = b >= 0
    theta = torch.where(positive, 2 * minus_c, root - b) / torch.where(positive, b + root, 2 * a)
    theta = theta.clamp(0, 1)
    _, log_slope = _evaluate(theta, slope, slope0, slope1)
    outside = z.abs() >= tail_bound
    return torch.where(outside, z, left + width * theta), -log_slope.masked_fill(outside, 0)


def _at_least_float32(x: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
    dtype = torch.promote_types(torch.promote_types(x.dtype, parameters.dtype), torch.float32)
    return x.to(dtype), parameters.to(dtype)


def _bin_of(at: Tensor, parameters: Tensor, tail_bound: float, axis: int) -> tuple[Tensor, ...]:
    """Return left edge, bottom edge, width, height and end slopes of the bin that holds ``at`` on x (0) or z (1)."""
    num_bins = (len(parameters) + 1) // 3
    side = 2 * tail_bound
    fractions = F.softmax(parameters[: 2 * num_bins].unflatten(0, (2, num_bins)), dim=1)
    sizes = fractions * (side * (1 - _MIN_SIZE * num_bins)) + side * _MIN_SIZE
    ends = sizes.cumsum(1) - tail_bound
    index = (at.detach() >= ends[axis, :-1]).sum(0)

    here = index.expand(2, 1, *index.shape)
    size = sizes.gather(1, here).squeeze(1)
    start = ends.gather(1, here).squeeze(1) - size

    # Zeros at both ends stand for slope 1, that of the tails.
    raw_slopes = F.pad(parameters[2 * num_bins :], [0, 0] * at.ndim + [1, 1])
    raw_slopes = raw_slopes.gather(0, torch.stack((index, index + 1)))
    slopes = F.softplus(raw_slopes + math.log(math.expm1(1 - _MIN_SLOPE))) + _MIN_SLOPE
    return (*start.unbind(0), *size.unbind(0), *slopes.unbind(0))


def _evaluate(theta: Tensor, slope: Tensor, slope0: Tensor, slope1: Tensor) -> tuple[Tensor, Tensor]:
    """Return the height reached, as a fraction of the bin's, and the log-slope there."""
    theta_squared, remainder = theta * theta, 1 - theta
    mixed = theta * remainder
    denominator = slope + (slope0 + slope1 - 2 * slope) * mixed
    fraction = (slope * theta_squared + slope0 * mixed) / denominator
    numerator = slope1 * theta_squared + 2 * slope * mixed + slope0 * remainder * remainder
    return fraction, 2 * torch.log(slope / denominator) + torch.log(numerator)
