"""From one event to another through the latent space of a density."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from sciflow.density import Density
from sciflow.errors import ConfigError, DataError, ShapeError

__all__ = ["interpolate"]

_MOST_STEPS = 1 << 20


def interpolate(density: Density, x_a: Any, x_b: Any, n: int, context: Any = None) -> Tensor:
    r"""Go from one event to another in ``n`` steps along the great circle between their latent vectors.

    .. math:: x_k = f^{-1}(r_k \, d_k), \qquad r_k = (1 - t) \|z_a\| + t \|z_b\|, \qquad t = \frac{k}{n - 1}

    with :math:`d_k` the direction at the share :math:`t` of the angle from :math:`z_a` to :math:`z_b`. In many
    dimensions noise lies in a thin shell about the origin: a straight line would cut through the empty inside, and the
    events on it would be none that the density knows. From White, arXiv:1609.04468.

    Of opposite vectors the circle goes by way of an axis; one that is zero takes the direction of the other; and with
    a single element there are no directions, and the path is straight. Noise on circles, that of periodic features,
    goes the short way round.

    Args:
        density: One that encodes and decodes, such as a flow.
        x_a: First events, ``[*batch, *event_shape]``, data units.
        x_b: Last events; the two broadcast.
        n: Number of events on the path, the two ends included.
        context: ``[*context_batch, *context_shape]`` for a conditional density, the same along the path.

    Returns:
        ``[n, *batch, *event_shape]``, data units, without gradient; the ends are ``x_a`` and ``x_b`` up to rounding.

    Raises:
        ConfigError: The density has no latent vectors, or ``n`` is below 2.
        DataError: An event is not finite, or so far out that its latent vector is not.
        ShapeError: The events are not of the density's shape, or do not broadcast.

    Example:
        >>> from sciflow.flows import NSF
        >>> flow = NSF(event_shape=(2,), num_transforms=1, seed=0)
        >>> path = interpolate(flow, torch.tensor([2.0, 0.0]), torch.tensor([0.0, 1.0]), n=3)
        >>> torch.allclose(path[1], torch.tensor([1.0607, 1.0607]), atol=1e-3)
        True
    """
    steps = _checked_steps(n)
    if not isinstance(density, Density):
        raise ConfigError(f"interpolate: a density expected, such as a trained flow; got {density!r:.80}")
    with torch.no_grad():
        try:
            z_a, z_b = (density.encode(x, context) for x in (x_a, x_b))
        except NotImplementedError:
            name = type(density).__name__
            raise ConfigError(f"{name} has no latent vectors to interpolate between; a flow has") from None
        for name, z in (("x_a", z_a), ("x_b", z_b)):
            if not torch.isfinite(z).all():
                raise DataError(f"interpolate: {name} or its latent vector is not finite")
        try:
            z_a, z_b = torch.broadcast_tensors(z_a, z_b)
        except RuntimeError:
            raise ShapeError(f"x_a {list(z_a.shape)} and x_b {list(z_b.shape)} do not broadcast") from None
        num_batch_dims = z_a.ndim - len(density.event_shape)
        path = _path(z_a.flatten(num_batch_dims), z_b.flatten(num_batch_dims), steps, density.latent_angles)
        return density.decode(path.reshape(steps, *z_a.shape), context)


def _path(a: Tensor, b: Tensor, steps: int, angles: Sequence[int]) -> Tensor:
    """Points ``[steps, *batch, num_features]``: angles by the short arc, the others by the great circle."""
    if not angles:
        return _great_circle(a, b, steps)
    others = [place for place in range(a.shape[-1]) if place not in angles]
    path = a.expand(steps, *a.shape).clone()
    share = torch.linspace(0, 1, steps, dtype=a.dtype, device=a.device).reshape(-1, *[1] * a.ndim)
    arc = torch.remainder(b[..., angles] - a[..., angles] + math.pi, math.tau) - math.pi
    turned = a[..., angles] + share * arc
    path[..., angles] = torch.remainder(turned + math.pi, math.tau) - math.pi
    if others:
        path[..., others] = _great_circle(a[..., others], b[..., others], steps)
    return path


def _great_circle(a: Tensor, b: Tensor, steps: int) -> Tensor:
    """Points ``[steps, *batch, num_features]`` from ``a`` to ``b``, the ends as they are."""
    share = torch.linspace(0, 1, steps, dtype=torch.float64, device=a.device).reshape(-1, *[1] * a.ndim)
    start, end = a.double(), b.double()
    if a.shape[-1] == 1:
        points = (1 - share) * start + share * end
    else:
        norm_a, norm_b = _norm(start), _norm(end)
        from_a, from_b = _direction(start, norm_a), _direction(end, norm_b)
        from_a, from_b = torch.where(norm_a > 0, from_a, from_b), torch.where(norm_b > 0, from_b, from_a)
        # Of Kahan: all digits, near 0 and near pi.
        angle = 2 * torch.atan2(_norm(from_a - from_b), _norm(from_a + from_b))
        across = _across(from_a, from_b)
        direction = torch.cos(share * angle) * from_a + torch.sin(share * angle) * across
        points = ((1 - share) * norm_a + share * norm_b) * direction
    points = points.to(a.dtype)
    points[0], points[-1] = a, b
    return points


def _norm(v: Tensor) -> Tensor:
    return v.norm(dim=-1, keepdim=True)


def _direction(v: Tensor, norm: Tensor) -> Tensor:
    return v / torch.where(norm > 0, norm, 1.0)


def _across(a: Tensor, b: Tensor) -> Tensor:
    """The direction at a right angle to ``a`` in which ``b`` lies; of opposite ones, that of an axis."""
    axis = F.one_hot(a.abs().argmin(-1), a.shape[-1]).to(a)
    candidates = []
    for v in (b, axis):
        for _ in range(2):  # the second time takes off what rounding left
            v = v - (v * a).sum(-1, keepdim=True) * a
        candidates.append(v)
    norms = [_norm(v) for v in candidates]
    towards, aside = (_direction(v, norm) for v, norm in zip(candidates, norms, strict=True))
    return torch.where(norms[0] > 1e-12, towards, aside)


def _checked_steps(n: Any) -> int:
    try:
        steps = operator.index(n)
    except TypeError:
        steps = 0
    if isinstance(n, bool) or not 2 <= steps <= _MOST_STEPS:
        raise ConfigError(f"interpolate: n must be 2 to {_MOST_STEPS:,}, the two ends included; got {n!r}")
    return steps
