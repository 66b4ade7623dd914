r"""The rational-quadratic spline for a compiler: element by element, so that it becomes one pass over memory.

The same functions as in :mod:`sciflow.bijections.spline`, with the bins written out one by one: a compiler then keeps
all of a spline in registers. The gradient is by the formulas below; the pass back computes the spline anew instead of
keeping it. With :math:`\theta, s, d_0, d_1` as in :mod:`sciflow.bijections.spline_bin`,
:math:`m = \theta (1 - \theta)`, :math:`D = s + (d_0 + d_1 - 2 s) m`,
:math:`N = d_1 \theta^2 + 2 s m + d_0 (1 - \theta)^2` and :math:`f = (s \theta^2 + d_0 m) / D`, so that
:math:`z = z_k + h f` and :math:`l = \log dz/dx = 2 \log (s / D) + \log N`,

.. math::
    \frac{\partial f}{\partial \theta} &= \frac{s N}{D^2} &
    \frac{\partial l}{\partial \theta} &= 2 \frac{d_1 \theta + s (1 - 2 \theta) - d_0 (1 - \theta)}{N}
                                          - 2 \frac{(d_0 + d_1 - 2 s) (1 - 2 \theta)}{D} \\
    \frac{\partial f}{\partial s} &= \frac{\theta^2 - f (1 - 2 m)}{D} &
    \frac{\partial l}{\partial s} &= \frac{2}{s} - 2 \frac{1 - 2 m}{D} + \frac{2 m}{N} \\
    \frac{\partial f}{\partial d_0} &= \frac{m (1 - f)}{D} &
    \frac{\partial l}{\partial d_0} &= \frac{(1 - \theta)^2}{N} - \frac{2 m}{D} \\
    \frac{\partial f}{\partial d_1} &= -\frac{m f}{D} &
    \frac{\partial l}{\partial d_1} &= \frac{\theta^2}{N} - \frac{2 m}{D} .

The inverse :math:`x(z; p)` with log-slope :math:`-l(x; p)` needs no formulas of its own: for gradients :math:`g_x` and
:math:`g_l` of its outputs, with :math:`t = (g_x - g_l \, \partial l / \partial x) / (dz/dx)`, that of :math:`z` is
:math:`t`, and that of :math:`p` is the forward map's for gradients :math:`-t` and :math:`-g_l`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sciflow.bijections.spline_bin import MIN_SIZE, SLOPE_OFFSET, climb, descend, slope_at_knot
from sciflow.kernels import Kernel

__all__ = ["fused_spline", "fused_spline_inverse"]


def fused_spline(x: Tensor, parameters: Tensor, tail_bound: float) -> tuple[Tensor, Tensor]:
    """:func:`sciflow.bijections.rational_quadratic_spline`, as one pass forward and one back.

    Example:
        >>> z, log_slope = fused_spline(torch.zeros(2), torch.zeros(23, 2), 3.0)
        >>> torch.allclose(z, torch.zeros(2), atol=1e-6), log_slope.shape
        (True, torch.Size([2]))
    """
    if torch.is_grad_enabled():
        return _FusedSpline.apply(x, parameters, tail_bound)
    z, log_slope = _forward_kernel(_row(x), _rows(parameters), _bound(x, tail_bound))
    return z.reshape(x.shape), log_slope.reshape(x.shape)


def fused_spline_inverse(z: Tensor, parameters: Tensor, tail_bound: float) -> tuple[Tensor, Tensor]:
    """:func:`sciflow.bijections.rational_quadratic_spline_inverse`, likewise.

    Example:
        >>> x, log_slope = fused_spline_inverse(torch.zeros(2), torch.zeros(23, 2), 3.0)
        >>> torch.allclose(x, torch.zeros(2), atol=1e-6), log_slope.shape
        (True, torch.Size([2]))
    """
    if torch.is_grad_enabled():
        return _FusedSplineInverse.apply(z, parameters, tail_bound)
    x, log_slope = _inverse_kernel(_row(z), _rows(parameters), _bound(z, tail_bound))
    return x.reshape(z.shape), log_slope.reshape(z.shape)


class _FusedSpline(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, parameters: Tensor, tail_bound: float) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(x, parameters)
        ctx.tail_bound = tail_bound
        return fused_spline(x, parameters, tail_bound)  # without gradients, in here

    @staticmethod
    def backward(ctx: Any, grad_z: Tensor, grad_log_slope: Tensor) -> tuple[Tensor | None, ...]:
        x, parameters = ctx.saved_tensors
        bound = _bound(x, ctx.tail_bound)
        if torch.is_grad_enabled():  # somebody will differentiate again
            return *_differentiable(_forward, x, parameters, bound, grad_z, grad_log_slope), None
        grads = _backward_kernel(_row(x), _rows(parameters), bound, _row(grad_z), _row(grad_log_slope))
        return grads[0].reshape(x.shape), grads[1].reshape(parameters.shape), None


class _FusedSplineInverse(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, parameters: Tensor, tail_bound: float) -> tuple[Tensor, Tensor]:
        x, log_slope = fused_spline_inverse(z, parameters, tail_bound)
        ctx.save_for_backward(z, parameters, x, log_slope)
        ctx.tail_bound = tail_bound
        return x, log_slope

    @staticmethod
    def backward(ctx: Any, grad_x: Tensor, grad_log_slope: Tensor) -> tuple[Tensor | None, ...]:
        z, parameters, x, log_slope = ctx.saved_tensors
        bound = _bound(z, ctx.tail_bound)
        if torch.is_grad_enabled():
            return *_differentiable(_inverse, z, parameters, bound, grad_x, grad_log_slope), None
        rows, grad_l = _rows(parameters), -_row(grad_log_slope)
        through_slope, _ = _backward_kernel(_row(x), rows, bound, torch.zeros_like(grad_l), grad_l)
        grad_z = (_row(grad_x) + through_slope) * torch.exp(_row(log_slope))
        _, grad_parameters = _backward_kernel(_row(x), rows, bound, -grad_z, grad_l)
        return grad_z.reshape(z.shape), grad_parameters.reshape(parameters.shape), None


# As plain tensors, by ``.data``: of a view, the compiler would look at what it is a view of, and compile that in.
def _row(x: Tensor) -> Tensor:
    return x.reshape(-1).contiguous().data


def _rows(parameters: Tensor) -> Tensor:
    return parameters.reshape(len(parameters), -1).contiguous().data


def _bound(x: Tensor, tail_bound: float) -> Tensor:
    """As a tensor: a number would be compiled in, and every other one compiled anew."""
    return torch.tensor(tail_bound, dtype=x.dtype)


def _differentiable(
    function: Callable[..., tuple[Tensor, Tensor]], x: Tensor, parameters: Tensor, bound: Tensor, *grads: Tensor
) -> tuple[Tensor | None, ...]:
    wanted = [tensor for tensor in (x, parameters) if tensor.requires_grad]
    found = iter(torch.autograd.grad(function(x, parameters, bound.to(x.device)), wanted, grads, create_graph=True))
    return tuple(next(found) if tensor.requires_grad else None for tensor in (x, parameters))


def _forward(x: Tensor, parameters: Tensor, bound: Tensor) -> tuple[Tensor, Tensor]:
    inner = torch.minimum(torch.maximum(x, -bound), bound)
    found = _find(inner, parameters, bound, by_height=False)
    theta = ((inner - found.left) / found.width).clamp(0, 1)
    slope0, slope1 = slope_at_knot(found.raw_slope0), slope_at_knot(found.raw_slope1)
    fraction, log_slope = climb(theta, found.height / found.width, slope0, slope1)
    outside = x.abs() > bound
    return torch.where(outside, x, found.bottom + found.height * fraction), log_slope.masked_fill(outside, 0)


def _inverse(z: Tensor, parameters: Tensor, bound: Tensor) -> tuple[Tensor, Tensor]:
    inner = torch.minimum(torch.maximum(z, -bound), bound)
    found = _find(inner, parameters, bound, by_height=True)
    slope = found.height / found.width
    slope0, slope1 = slope_at_knot(found.raw_slope0), slope_at_knot(found.raw_slope1)
    theta = descend(((inner - found.bottom) / found.height).clamp(0, 1), slope, slope0, slope1)
    _, log_slope = climb(theta, slope, slope0, slope1)
    outside = z.abs() > bound
    return torch.where(outside, z, found.left + found.width * theta), -log_slope.masked_fill(outside, 0)


def _backward(x: Tensor, parameters: Tensor, bound: Tensor, grad_z: Tensor, grad_l: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of ``x`` and of ``parameters``; the formulas are in the module's docstring."""
    inner = torch.minimum(torch.maximum(x, -bound), bound)
    found = _find(inner, parameters, bound, by_height=False)
    d0, d1 = slope_at_knot(found.raw_slope0), slope_at_knot(found.raw_slope1)
    per_width = found.width.reciprocal()
    theta = ((inner - found.left) * per_width).clamp(0, 1)
    s = found.height * per_width
    rest = 1 - theta
    m, bend = theta * rest, d0 + d1 - 2 * s
    per_d = (s + bend * m).reciprocal()
    n = d1 * theta * theta + 2 * s * m + d0 * rest * rest
    per_n = n.reciprocal()
    f = (s * theta * theta + d0 * m) * per_d

    outside = x.abs() > bound
    g_z, g_l = grad_z.masked_fill(outside, 0), grad_l.masked_fill(outside, 0)
    g_f = g_z * found.height
    l_theta = 2 * ((d1 * theta + s * (1 - 2 * theta) - d0 * rest) * per_n - bend * (1 - 2 * theta) * per_d)
    g_theta = g_f * s * n * per_d * per_d + g_l * l_theta
    g_s = g_f * (theta * theta - f * (1 - 2 * m)) * per_d + g_l * 2 * (1 / s - (1 - 2 * m) * per_d + m * per_n)
    g_d0 = g_f * m * (1 - f) * per_d + g_l * (rest * rest * per_n - 2 * m * per_d)
    g_d1 = -g_f * m * f * per_d + g_l * (theta * theta * per_n - 2 * m * per_d)

    g_left, g_width = -g_theta * per_width, -(g_theta * theta + g_s * s) * per_width
    g_bottom, g_height = g_z, g_z * f + g_s * per_width
    g_raw0 = g_d0 * torch.sigmoid(found.raw_slope0 + SLOPE_OFFSET)
    g_raw1 = g_d1 * torch.sigmoid(found.raw_slope1 + SLOPE_OFFSET)
    side = 2 * bound * (1 - MIN_SIZE * len(found.widths))
    grads = [
        *_grad_sizes(g_left, g_width, found.widths, found.past, side),
        *_grad_sizes(g_bottom, g_height, found.heights, found.past, side),
        *_grad_slopes(g_raw0, g_raw1, found.past, circular=len(parameters) % 3 == 0),
    ]
    return torch.where(outside, grad_z, g_theta * per_width), torch.stack(grads)


class _Found(NamedTuple):
    """The bin that holds an element, and what its gradient needs of the others."""

    left: Tensor
    bottom: Tensor
    width: Tensor
    height: Tensor
    raw_slope0: Tensor
    raw_slope1: Tensor
    widths: list[Tensor]  # of all bins, as shares of the box
    heights: list[Tensor]
    past: list[Tensor]  # whether the element is at or beyond each inner knot


def _find(at: Tensor, parameters: Tensor, bound: Tensor, by_height: bool) -> _Found:
    """Walk through the bins, and keep the last one that begins before ``at``."""
    raw = parameters.unbind(0)
    num_bins = (len(raw) + 1) // 3
    widths, heights = _softmax(raw[:num_bins]), _softmax(raw[num_bins : 2 * num_bins])
    least, scale = 2 * bound * MIN_SIZE, 2 * bound * (1 - MIN_SIZE * num_bins)
    end = raw[-1] if len(raw) % 3 == 0 else torch.zeros_like(at)  # of a circle; or slope 1, that of the tails
    slopes = [end, *raw[2 * num_bins : 3 * num_bins - 1], end]

    edge = top = left = bottom = torch.zeros_like(at) - bound
    width, height = widths[0] * scale + least, heights[0] * scale + least
    next_width, next_height = width, height
    raw_slope0, raw_slope1 = slopes[0], slopes[1]
    past = []
    for k in range(1, num_bins):
        edge, top = edge + next_width, top + next_height
        next_width, next_height = widths[k] * scale + least, heights[k] * scale + least
        here = at >= (top if by_height else edge)
        left, bottom = torch.where(here, edge, left), torch.where(here, top, bottom)
        width, height = torch.where(here, next_width, width), torch.where(here, next_height, height)
        raw_slope0 = torch.where(here, slopes[k], raw_slope0)
        raw_slope1 = torch.where(here, slopes[k + 1], raw_slope1)
        past.append(here)
    return _Found(left, bottom, width, height, raw_slope0, raw_slope1, widths, heights, past)


def _softmax(raw: Sequence[Tensor]) -> list[Tensor]:
    largest = raw[0]
    for value in raw[1:]:
        largest = torch.maximum(largest, value)
    powers = [torch.exp(value - largest) for value in raw]
    per_total = _total(powers).reciprocal()
    return [power * per_total for power in powers]


def _grad_sizes(
    grad_start: Tensor, grad_size: Tensor, shares: list[Tensor], past: list[Tensor], side: Tensor
) -> list[Tensor]:
    """Back through the softmax: bins before the element's move its start, its own bin has its size."""
    zero = torch.zeros_like(grad_start)
    grads = []
    for k in range(len(shares)):
        grad = grad_size if k == 0 else torch.where(past[k - 1], grad_size, zero)
        grads.append(torch.where(past[k], grad_start, grad) if k < len(past) else grad)
    mean = _total([grad * share for grad, share in zip(grads, shares, strict=True)])
    return [(grad - mean) * share * side for grad, share in zip(grads, shares, strict=True)]


def _grad_slopes(grad0: Tensor, grad1: Tensor, past: list[Tensor], circular: bool) -> list[Tensor]:
    """Every inner knot ends one bin and begins the next; both ends of a circle are one knot."""
    zero = torch.zeros_like(grad0)
    last = len(past) - 1
    grads = []
    for k in range(len(past)):
        begins = grad0 if k == last else torch.where(past[k + 1], zero, grad0)
        ends = grad1 if k == 0 else torch.where(past[k - 1], grad1, zero)
        grads.append(torch.where(past[k], begins, ends))
    if circular:
        grads.append(torch.where(past[0], zero, grad0) + torch.where(past[last], grad1, zero))
    return grads


def _total(terms: Sequence[Tensor]) -> Tensor:
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total


_forward_kernel, _inverse_kernel, _backward_kernel = Kernel(_forward), Kernel(_inverse), Kernel(_backward)
