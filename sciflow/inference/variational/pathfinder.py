"""Where a density is: many ascents at once, and the best Gaussian on the way of each."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sciflow.errors import DataError
from sciflow.inference.variational.gaussians import FullGaussian, root
from sciflow.inference.variational.log_density import LogDensity

__all__ = ["Paths", "laplace", "pathfinder"]

_WIDEST = 100.0  # standard deviation of the widest starts, in unconstrained units
_HALVINGS, _SHRINK, _SUFFICIENT = 20, 0.4, 1e-4
_SETTLED = 1e-9
_MOST_NUMBERS = 1 << 26  # of all inverse Hessians together


@dataclass(frozen=True)
class Paths:
    """What the ascents found, one entry a path.

    Attributes:
        means: ``[paths, d]``.
        covariances: ``[paths, d, d]``.
        elbo: Evidence lower bound of each Gaussian, ``[paths]``, nats.
        modes: Where the ascents ended, ``[paths, d]``.
        heights: Log density there, ``[paths]``.
        lost: How many starts had no finite density.
        unsettled: How many ascents were still rising when they were ended.
    """

    means: Tensor
    covariances: Tensor
    elbo: Tensor
    modes: Tensor
    heights: Tensor
    lost: int
    unsettled: int

    def best(self) -> FullGaussian:
        """The Gaussian of largest evidence bound."""
        place = self.elbo.argmax()
        return FullGaussian(self.means[place], root(self.covariances[place]))

    def pooled(self) -> FullGaussian:
        """One Gaussian over all paths that are within reach of the best: mean and covariance of their mixture.

        Where there are many modes, those of other heights count as well: bounds differ by some nats a dimension.
        """
        weights = torch.softmax(self.elbo / (1 + self.means.shape[1] / 4), 0)
        mean = weights @ self.means
        apart = self.means - mean
        between = (weights[:, None] * apart).T @ apart
        return FullGaussian(mean, root(torch.einsum("m,mij->ij", weights, self.covariances) + between))


def pathfinder(
    density: LogDensity,
    generator: torch.Generator,
    num_paths: int = 64,
    num_draws: int = 10,
    max_steps: int = 200,
    start: Tensor | None = None,
) -> Paths:
    r"""Climb from many starts by BFGS, and keep the Gaussian of largest evidence bound along each path.

    At a point with gradient :math:`g` and inverse Hessian :math:`H` of minus log p, the Gaussian is
    :math:`\mathcal{N}(x + H g, H)`. Half of the starts lie within 2 of the origin, the others at any scale up to 100:
    modes may be far away. On a funnel the best Gaussian is on the way, not at the top. From Zhang et al.,
    arXiv:2108.03782, with dense inverse Hessians, and all paths at once.

    Args:
        density: What is climbed.
        generator: Of starts and draws.
        num_paths: Number of starts, fewer where there are so many dimensions that memory would not hold their Hessians.
        num_draws: By which each Gaussian is judged.
        max_steps: At the most.
        start: Rows ``[n, d]`` that take the place of the first starts.

    Raises:
        DataError: The density is finite at none of the starts.
    """
    d = density.num_features
    num_paths = max(4, min(num_paths, _MOST_NUMBERS // d**2))
    x = _starts(num_paths, d, generator, density)
    if start is not None:
        x = torch.cat([start.to(x), x])[: max(num_paths, len(start))]
    values, gradient = density.with_gradient(x)
    finite = torch.isfinite(values)
    if not finite.any():
        raise DataError(
            f"log_density is finite at none of {len(x)} starts, near the origin of the unconstrained numbers and up to "
            f"{_WIDEST:g} away ({density.counts}): give start=..., or constraints that keep parameters in the support"
        )
    lost = int((~finite).sum())
    x, values, gradient = x[finite], values[finite], gradient[finite]
    unit = torch.eye(d, dtype=x.dtype, device=x.device)
    inverse = unit / gradient.norm(dim=1).clamp_min(1.0)[:, None, None]
    best = torch.full_like(values, -math.inf)
    means, covariances = x.clone(), inverse.clone()
    still = torch.zeros_like(values, dtype=torch.long)
    for step in range(max_steps):
        # Those that have come to rest would ask for every step length in vain.
        on = torch.nonzero(still <= 1)[:, 0]
        if not len(on):
            break
        direction = torch.einsum("mij,mj->mi", inverse[on], gradient[on])
        if step:
            elbo = _elbo(density, x[on] + direction, inverse[on], num_draws, generator)
            better = elbo > best[on]
            improved = on[better]
            best[improved] = elbo[better]
            means[improved], covariances[improved] = x[improved] + direction[better], inverse[improved]
        new, new_values, new_gradient = _line_search(density, x[on], values[on], gradient[on], direction)
        inverse[on] = _updated(inverse[on], new - x[on], gradient[on] - new_gradient, first=step == 0)
        settled = (new_values - values[on]).abs() <= _SETTLED * (1 + values[on].abs())
        still[on] = torch.where(settled, still[on] + 1, 0)
        x[on], values[on], gradient[on] = new, new_values, new_gradient
    if not torch.isfinite(best).any():
        best = values - values.max()
    return Paths(means, covariances, best, x, values, lost, int((still <= 1).sum()))


def laplace(density: LogDensity, paths: Paths) -> FullGaussian:
    r"""The Gaussian of the curvature at the highest mode.

    .. math:: \mathcal{N}(\hat x, \; (-\nabla^2 \log \tilde p(\hat x))^{-1})

    Directions in which the density does not curve downwards get the scale of the others.

    Args:
        density: What is approximated.
        paths: Of :func:`pathfinder`.
    """
    mode = paths.modes[paths.heights.argmax()]
    steps = 1e-4 * (1 + mode.abs())
    moves = torch.diag(steps)
    _, up = density.with_gradient(mode + moves)
    _, down = density.with_gradient(mode - moves)
    hessian = -(up - down) / (2 * steps[:, None])
    curvature, axes = torch.linalg.eigh((hessian + hessian.T) / 2)
    usual = curvature[curvature > 0].median() if (curvature > 0).any() else torch.ones_like(curvature[0])
    curvature = torch.where(curvature > 1e-8 * usual, curvature, usual)
    return FullGaussian(mode, root((axes / curvature) @ axes.T))


def _starts(num_paths: int, d: int, generator: torch.Generator, density: LogDensity) -> Tensor:
    near = num_paths // 2
    uniform = 4 * torch.rand(near, d, generator=generator, dtype=density.dtype) - 2
    scales = _WIDEST ** torch.rand(num_paths - near, 1, generator=generator, dtype=density.dtype)
    far = scales * torch.randn(num_paths - near, d, generator=generator, dtype=density.dtype)
    return torch.cat([uniform, far]).to(density.device)


def _elbo(
    density: LogDensity, means: Tensor, covariances: Tensor, num_draws: int, generator: torch.Generator
) -> Tensor:
    """Evidence bound of each Gaussian, ``[paths]``; -inf where it is none, or reaches where the density is 0."""
    paths, d = means.shape
    lower, info = torch.linalg.cholesky_ex(covariances)
    noise = torch.randn(paths, num_draws, d, generator=generator, dtype=density.dtype).to(density.device)
    draws = means[:, None] + torch.einsum("mij,mkj->mki", lower, noise)
    log_p = density(draws.reshape(-1, d)).reshape(paths, num_draws)
    log_det = lower.diagonal(dim1=1, dim2=2).log().sum(-1)
    log_q = -0.5 * noise.square().sum(-1) - log_det[:, None] - 0.5 * d * math.log(2 * math.pi)
    elbo = (log_p - log_q).mean(1)
    return torch.where((info == 0) & torch.isfinite(elbo), elbo, -math.inf)


def _line_search(
    density: LogDensity, x: Tensor, values: Tensor, gradient: Tensor, direction: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Go back from the full step until the density has risen as the slope promises (Armijo), each path by itself."""
    new, new_values, new_gradient = x.clone(), values.clone(), gradient.clone()
    slope = (direction * gradient).sum(-1)
    length = torch.ones_like(values)
    todo = torch.arange(len(x), device=x.device)
    for _ in range(_HALVINGS):
        tried = x[todo] + length[todo, None] * direction[todo]
        found, at = density.with_gradient(tried)
        risen = found >= values[todo] + _SUFFICIENT * length[todo] * slope[todo]
        there = todo[risen]
        new[there], new_values[there], new_gradient[there] = tried[risen], found[risen], at[risen]
        todo = todo[~risen]
        if not len(todo):
            break
        length[todo] *= _SHRINK
    return new, new_values, new_gradient


def _updated(inverse: Tensor, moved: Tensor, fell: Tensor, first: bool) -> Tensor:
    """BFGS on the inverse Hessian of minus log p; ``fell`` is by how much the gradient of log p went down."""
    curvature = (moved * fell).sum(-1)
    usable = curvature > 1e-10 * moved.norm(dim=1) * fell.norm(dim=1)
    safe = torch.where(usable, curvature, 1.0)
    unit = torch.eye(moved.shape[1], dtype=moved.dtype, device=moved.device)
    before = inverse
    if first:
        scale = safe / fell.square().sum(-1).clamp_min(torch.finfo(fell.dtype).tiny)
        inverse = scale[:, None, None] * unit
    rotate = unit - moved[:, :, None] * fell[:, None] / safe[:, None, None]
    after = rotate @ inverse @ rotate.mT + moved[:, :, None] * moved[:, None] / safe[:, None, None]
    finite = usable & torch.isfinite(after).all(-1).all(-1)
    return torch.where(finite[:, None, None], after, before)
