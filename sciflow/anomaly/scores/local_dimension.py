"""Local intrinsic dimension with the likelihood: a row may be likely because few directions matter about it."""

from __future__ import annotations

import torch
from torch import Tensor

from sciflow.anomaly.scores.base import Score
from sciflow.anomaly.scores.surprise import surprise
from sciflow.arguments import Arguments
from sciflow.density import Density
from sciflow.diffusion import Diffusion
from sciflow.diffusion.rows import over_events
from sciflow.ode.divergence import Divergence, Exact, Probed
from sciflow.row_noise import RowNoise

__all__ = ["LocalDimension"]

_MOST_EXACT = 128
_PROBES = 16


class LocalDimension(Score):
    r"""The larger of two surprises: log p is low, or the number of directions in which the density is wide.

    .. math:: s(x) = \max \left( -\log \hat P[-\log p \ge -\log p(x)], \; -\log \hat P[d \le d(x)] \right)

    with :math:`\hat P` by ranks among normal rows, see :func:`sciflow.anomaly.scores.surprise.surprise`. Densities of
    images and fields find simple events likely because there is little to get wrong; their local dimension
    :math:`d(x)` tells. It is that of the density seen through noise of a small deviation :math:`k`,

    .. math:: d(x) = \operatorname{tr} \frac{\partial \hat x_0}{\partial x} + \frac{\| \hat x_0(x) - x \|^2}{k^2}
              \quad \text{(diffusion)}, \qquad
              d(x) = \operatorname{tr} \left( 1 + k^2 J^T J \right)^{-1}, \; J = \frac{\partial z}{\partial x}
              \quad \text{(flow)} .

    Both are the number of directions along which the density is wider than :math:`k`: of a normal density with
    covariance :math:`C = (J^T J)^{-1}`, that the noise is taken off, the first term is the second formula. Sources:
    Kamkari et al., arXiv:2406.03537 (diffusion) and arXiv:2403.18910 (with the likelihood).

    Args:
        density: A trained density: a diffusion model, or one that encodes.
        noise: Deviation :math:`k` of the noise, in units of the events'.

    Example:
        >>> from sciflow.flows import NSF
        >>> rows = torch.randn(200, 2, generator=torch.Generator().manual_seed(0))
        >>> score = LocalDimension(NSF((2,), num_transforms=1)).fit(rows)
        >>> score.dimension(rows[:3]).round(decimals=1)
        tensor([2., 2., 2.], dtype=torch.float64)
    """

    name = "local_dimension"

    def __init__(self, density: Density, noise: float = 0.05) -> None:
        checked = Arguments("LocalDimension")
        checked.positive("noise", noise)
        super().__init__(density, **checked.values)

    def dimension(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Return the local dimension of rows ``[n, *event_shape]``, ``[n]``, float64."""
        rows, c = self._rows(x, context)
        with self._evaluating():
            return self._dimension(rows, c)

    def _fit(self, x: Tensor, context: Tensor | None, reference: Tensor, reference_context: Tensor | None) -> None:
        both = self._both(reference, reference_context)
        self.found = {"normal": both[both.isfinite().all(1)].sort(0).values}

    def _scores(self, x: Tensor, context: Tensor | None) -> Tensor:
        normal = self.found["normal"]
        both = self._both(x, context)
        each = torch.stack([surprise(both[:, k], normal[:, k].contiguous()) for k in range(2)], 1)
        return each.amax(1)

    def _both(self, x: Tensor, context: Tensor | None) -> Tensor:
        """Minus log p and minus the dimension, ``[n, 2]``, float64."""
        surprise = -self.densities[0].log_prob(x, context).double()
        return torch.stack([surprise, -self._dimension(x, context)], 1)

    def _dimension(self, x: Tensor, context: Tensor | None) -> Tensor:
        density = self.densities[0]
        y, c, _ = density._normalise_rows(x, context, 0)
        return (
            _of_diffusion(density, y, c, self.arguments["noise"])
            if isinstance(density, Diffusion)
            else _of_map(density, y, c, self.arguments["noise"])
        )


def _of_diffusion(density: Diffusion, y: Tensor, context: Tensor | None, noise: float) -> Tensor:
    denoiser = density.denoiser
    level = noise * denoiser.data_std.double()
    t = denoiser.schedule.time(level).expand(len(y))
    alpha, _ = (over_events(part, y).to(y.dtype) for part in denoiser.schedule(t))

    def mean(state: Tensor, part: Tensor) -> Tensor:
        of_part = None if context is None else context[part]
        return denoiser(alpha[part] * state.reshape(-1, *y.shape[1:]), t[part], of_part).flatten(1)

    local = _divergence(y / denoiser.data_std.to(y.dtype))(mean, y.flatten(1), torch.arange(len(y), device=y.device))
    off = (local.velocity - y.flatten(1)).double().square().sum(1) / level.square()
    return local.trace.mean(1) + off


def _of_map(density: Density, y: Tensor, context: Tensor | None, noise: float) -> Tensor:
    """By the singular values of the map to noise."""
    d = y.shape[1:].numel()
    with torch.enable_grad():
        state = y.detach().requires_grad_()
        z = density._encode(state, context).flatten(1)
        rows = [torch.autograd.grad(z[:, k].sum(), state, retain_graph=True)[0].flatten(1) for k in range(d)]
    jacobian = torch.stack(rows, 1).detach().double()
    squares = torch.linalg.svdvals(jacobian.nan_to_num()).square()
    return (1 / (1 + noise**2 * squares)).sum(1)


def _divergence(y: Tensor) -> Divergence:
    if y.shape[1:].numel() <= _MOST_EXACT:
        return Exact()
    random = RowNoise(y, seed=0)
    return Probed(torch.stack([random.signs(draw).flatten(1) for draw in range(_PROBES)], 1))
