r"""Monotonic rational-quadratic splines, as pure functions.

The box [-tail_bound, tail_bound] is cut into bins, in each of which the map is a quotient of two quadratics
(:mod:`sciflow.bijections.spline_bin`). Outside the box it is the identity, and meets the spline with slope 1. A
*circular* spline has one slope of its own for both ends of the box, which are the same point of a circle. From Durkan
et al., arXiv:1906.04032, and Rezende et al., arXiv:2002.02428.

The bins are the first dimension of ``parameters``: ``num_bins`` widths, ``num_bins`` heights, ``num_bins - 1`` inner
slopes, all unconstrained; zeros give the identity. One slope more makes the spline circular. Bins first, because
reductions over a leading dimension run vectorised over the elements: three times faster on a CPU than over a trailing
dimension of eight.

Where much is to be done (see :mod:`sciflow.kernels`), the same functions run as compiled kernels.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from sciflow.bijections.spline_bin import MIN_SIZE, climb, descend, slope_at_knot
from sciflow.bijections.spline_kernel import fused_spline, fused_spline_inverse
from sciflow.kernels import worthwhile

__all__ = ["num_spline_parameters", "rational_quadratic_spline", "rational_quadratic_spline_inverse"]


def num_spline_parameters(num_bins: int, circular: bool = False) -> int:
    """Return how many parameters one spline takes; the number tells which kind it is.

    Example:
        >>> num_spline_parameters(8), num_spline_parameters(8, circular=True)
        (23, 24)
    """
    return 3 * num_bins if circular else 3 * num_bins - 1


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
    if worthwhile(x):
        return fused_spline(x, parameters, tail_bound)
    # The branch comes last: where() hides a value that is not wanted, but not a NaN gradient behind it.
    inner = x.clamp(-tail_bound, tail_bound)
    left, bottom, width, height, slope0, slope1 = _bin_of(inner, parameters, tail_bound, axis=0)
    theta = ((inner - left) / width).clamp(0, 1)
    fraction, log_slope = climb(theta, height / width, slope0, slope1)
    outside = x.abs() > tail_bound
    return torch.where(outside, x, bottom + height * fraction), log_slope.masked_fill(outside, 0)


def rational_quadratic_spline_inverse(z: Tensor, parameters: Tensor, tail_bound: float) -> tuple[Tensor, Tensor]:
    """Undo :func:`rational_quadratic_spline`.

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
    if worthwhile(z):
        return fused_spline_inverse(z, parameters, tail_bound)
    inner = z.clamp(-tail_bound, tail_bound)
    left, bottom, width, height, slope0, slope1 = _bin_of(inner, parameters, tail_bound, axis=1)
    slope = height / width
    theta = descend(((inner - bottom) / height).clamp(0, 1), slope, slope0, slope1)
    _, log_slope = climb(theta, slope, slope0, slope1)
    outside = z.abs() > tail_bound
    return torch.where(outside, z, left + width * theta), -log_slope.masked_fill(outside, 0)


def _at_least_float32(x: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
    dtype = torch.promote_types(torch.promote_types(x.dtype, parameters.dtype), torch.float32)
    return x.to(dtype), parameters.to(dtype)


def _bin_of(at: Tensor, parameters: Tensor, tail_bound: float, axis: int) -> tuple[Tensor, ...]:
    """Return left edge, bottom edge, width, height and end slopes of the bin that holds ``at`` on x (0) or z (1)."""
    num_bins = (len(parameters) + 1) // 3
    side = 2 * tail_bound
    fractions = F.softmax(parameters[: 2 * num_bins].unflatten(0, (2, num_bins)), dim=1)
    sizes = fractions * (side * (1 - MIN_SIZE * num_bins)) + side * MIN_SIZE
    ends = sizes.cumsum(1) - tail_bound
    index = (at.detach() >= ends[axis, :-1]).sum(0)

    here = index.expand(2, 1, *index.shape)
    size = sizes.gather(1, here).squeeze(1)
    start = ends.gather(1, here).squeeze(1) - size

    raw_slopes = parameters[2 * num_bins :]
    if len(raw_slopes) == num_bins:
        raw_slopes = torch.cat((raw_slopes[-1:], raw_slopes))
    else:
        # Zeros at both ends stand for slope 1, that of the tails.
        raw_slopes = F.pad(raw_slopes, [0, 0] * at.ndim + [1, 1])
    slopes = slope_at_knot(raw_slopes.gather(0, torch.stack((index, index + 1))))
    return (*start.unbind(0), *size.unbind(0), *slopes.unbind(0))
