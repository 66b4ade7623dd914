"""Whether a density can be normalised: how it falls off far away."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sciflow.errors import DataError
from sciflow.inference.variational.gaussians import covariance
from sciflow.inference.variational.log_density import LogDensity

__all__ = ["require_proper"]

_FARTHEST = 1e6  # standard deviations
_SHARES = (0.01, 0.1, 1.0)  # of the way along a ray, where only the tail is left
_SHARES_OF_FLOATS = (0.25, 0.5, 1.0)  # of the way to where floats end
_RANDOM = 32
_NOTHING = 700.0  # nats below the middle: a density may stop falling where it is 0 to any number that there is


def require_proper(
    density: LogDensity, particles: Tensor, generator: torch.Generator, least_scale: float = 0.0
) -> None:
    r"""Refuse a density whose integral grows without bound, as far as rays can tell.

    Along a ray :math:`x_0 + r v` a density of finite integral falls faster than :math:`1 / r`: so must
    :math:`\log \tilde p(x_0 + r v) + \log r` fall in the end. Rays go along the axes, along the directions in which the
    particles are spread, and along directions at random; up to a million standard deviations, or to where floats hold
    no values of a constraint (of ``positive``, beyond :math:`e^{\pm 567}`).

    Args:
        density: What is to be normalised, unconstrained.
        particles: ``[n, d]``, of it.
        generator: Of the random directions.
        least_scale: What counts as a standard deviation, at the least.

    Raises:
        DataError: It does not fall along a ray: names the parameters.
    """
    d = particles.shape[1]
    centre = particles.median(0).values
    spread = covariance(particles)
    scales = spread.diagonal().sqrt().clamp_min(max(least_scale, torch.finfo(spread.dtype).tiny))
    _, axes = torch.linalg.eigh(spread / scales / scales[:, None])
    random = torch.randn(_RANDOM, d, generator=generator, dtype=particles.dtype).to(particles.device)
    unit = torch.eye(d, dtype=particles.dtype, device=particles.device)
    directions = torch.cat([unit, axes.T[-min(d, 8) :], random / random.norm(dim=1, keepdim=True)])
    directions = torch.cat([directions, -directions])
    rays = directions * scales
    radii = _radii(rays, centre, density.parameters.reach(particles.dtype).to(particles.device))
    points = centre + radii[:, :, None] * rays
    heights = density(points.reshape(-1, d)).reshape(radii.shape)
    mass = heights + radii.log()
    # What has fallen to nothing has fallen.
    flat = (mass[-1] > density(centre[None]) - _NOTHING) & (mass[-1] >= mass[-2]) & (mass[-2] >= mass[-3])
    if not flat.any():
        return
    direction = directions[flat][0]
    largest = direction.abs() >= 0.5 * direction.abs().max()
    names = [label for label, is_large in zip(_labels(density), largest.tolist(), strict=True) if is_large]
    shown = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
    raise DataError(
        f"log_density is improper: far out along {shown} it does not fall off, so that its integral, and the ELBO, "
        "grow without bound. Give these parameters a prior, or bounds by parameters={...: interval(low, high)}"
    )


def _radii(rays: Tensor, centre: Tensor, reach: Tensor) -> Tensor:
    """How far to look along rays ``[n, d]``, three times, in their own lengths: ``[3, n]``."""
    # Where the middle itself is further out, floats are no bound.
    ends = torch.where(centre.abs() < reach, (reach - centre * rays.sign()) / rays.abs(), math.inf).amin(1)
    shares = rays.new_tensor(_SHARES)[:, None], rays.new_tensor(_SHARES_OF_FLOATS)[:, None]
    return torch.where(ends < _FARTHEST, shares[1] * ends, shares[0] * _FARTHEST)


def _labels(density: LogDensity) -> list[str]:
    """A label for each unconstrained number."""
    labels = []
    for name, constraint in density.parameters.items():
        count = constraint.num_free
        labels += [name] if count == 1 and not constraint.shape else [f"{name}[{i}]" for i in range(count)]
    return labels
