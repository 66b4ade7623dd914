"""The mean of clean events given noisy ones, and an observation of the clean ones besides."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sciflow.diffusion.guidance import Denoise, require_gradients, slope
from sciflow.diffusion.rows import over_events
from sciflow.diffusion.schedules import Schedule
from sciflow.errors import ConfigError, DataError

if TYPE_CHECKING:
    from sciflow.diffusion.diffusion import Diffusion

__all__ = ["posterior_mean"]

# Up to here, in deviations of the events, networks know how their mean moves: the covariance is this level squared
# times a derivative, and so is the derivative's error, while the covariance itself grows no more.
_MOST_NOISE = 10.0

_Map = Callable[[Tensor], Tensor]


def posterior_mean(
    density: Diffusion,
    denoise: Denoise,
    observe: _Map,
    value: Tensor,
    std: Tensor,
    iterations: int,
) -> Denoise:
    r"""Return the denoiser of events of which something was observed, by moment matching.

    .. math:: E[x_0 \mid x_t, y] \approx \hat x + V A^T (R + A V A^T)^{-1} (y - A(\hat x)), \qquad
              V = \operatorname{Cov}[x_0 \mid x_t] = \frac{\sigma^2}{\alpha} \frac{\partial \hat x}{\partial x_t}

    with :math:`A` the derivative of the observation at :math:`\hat x`; exact where :math:`p(x_0 \mid x_t)` is Gaussian
    and the observation linear. Neither :math:`V` nor :math:`A` is ever formed: the equations are solved by Lanczos
    iterations, each of which costs a pass backwards through the denoiser.

    A learned derivative is not quite symmetric, as :math:`V` must be, and at much noise its errors grow. So what is not
    symmetric counts as the error of the rest, and no eigenvalue is taken to be below noise alone and that error; and
    beyond a noise level of 10 the derivative is that at level 10, of the same event. Without the two, few iterations
    more may throw draws far off.

    Source: Rozet et al., arXiv:2405.13712; Boys et al., arXiv:2310.06721.

    Args:
        density: Whose schedule and scale of events it is.
        denoise: Its denoiser ``denoise(x_t, t)``, differentiable.
        observe: From normalised events ``[n, *event_shape]`` to observations ``[n, m]``, differentiable.
        value: What was observed, ``[n, m]`` or ``[1, m]``.
        std: Standard deviation of its noise, of the same shape.
        iterations: How many; more than ``m`` are never needed.

    Raises:
        ConfigError: Inference mode is on; or, while drawing, the denoiser or the observation has no derivative.
        DataError: While drawing: the numbers leave the range of the dtype.
    """
    require_gradients()
    schedule = density.schedule
    latest = float(schedule.time(_MOST_NOISE * density.denoiser.data_std.double()))

    def conditioned(x: Tensor, t: Tensor) -> Tensor:
        t = t.double()
        near, near_t = x, t
        centre = None
        if bool((t > latest).any()):
            with torch.no_grad():
                centre = denoise(x, t)
            near, near_t = _with_less_noise(x, t, centre, latest, schedule)
        with torch.enable_grad():
            noisy = near.detach().clone().requires_grad_()
            mean = denoise(noisy, near_t)
        centre = mean.detach() if centre is None else centre
        alpha, sigma = (over_events(level, x) for level in schedule(near_t))
        gain = (sigma.square() / alpha).to(x.dtype)

        observed, pull, push = _linearised(observe, centre)

        def spread(direction: Tensor) -> tuple[Tensor, Tensor]:
            """Take a direction, in deviations of the observation, through the covariance: to events, and on."""
            moved = slope("the denoiser", mean, noisy, pull(direction / std))
            return gain * moved, push(gain * moved) / std

        shift = _shift((value - observed) / std, spread, iterations)
        _require_finite(shift)
        return centre + shift

    return conditioned


def _linearised(observe: _Map, at: Tensor) -> tuple[Tensor, _Map, _Map]:
    """What is observed at a point, and the derivative there: of the observation back to events, and of events to it.

    Raises:
        ConfigError: There is none.
    """
    with torch.enable_grad():
        point = at.detach().clone().requires_grad_()
        observed = observe(point)
        # Linear in the weights: its derivative by them is that of the observation by the event.
        weights = torch.zeros_like(observed, requires_grad=True)
        pulled = slope("the operator", observed, point, weights, create_graph=True)
    if not pulled.requires_grad:
        raise ConfigError("guidance: the operator has slope 0 everywhere, so that nothing follows from its value")

    def pull(direction: Tensor) -> Tensor:
        return slope("the operator", observed, point, direction)

    def push(direction: Tensor) -> Tensor:
        return slope("the operator's slope", pulled, weights, direction)

    return observed.detach(), pull, push


def _with_less_noise(x: Tensor, t: Tensor, mean: Tensor, latest: float, schedule: Schedule) -> tuple[Tensor, Tensor]:
    """The same events at no later a time: their mean stays, and so does the direction of their noise."""
    earlier = t.clamp_max(latest)
    pairs = [[over_events(level, x).to(x.dtype) for level in schedule(at)] for at in (t, earlier)]
    (alpha, sigma), (alpha_earlier, sigma_earlier) = pairs
    moved = alpha_earlier * mean + sigma_earlier / sigma * (x - alpha * mean)
    late = over_events(t > latest, x)
    return torch.where(late, moved, x), earlier


def _shift(off: Tensor, spread: Callable[[Tensor], tuple[Tensor, Tensor]], iterations: int) -> Tensor:
    r"""Solve :math:`(1 + C) v = \mathrm{off}` in the Krylov space of every row, and return where ``v`` takes the event.

    Args:
        off: ``[n, m]``, in standard deviations.
        spread: Of directions ``[n, m]``: the event's shift, and :math:`C` times the direction.
        iterations: Dimensions of the space, 1 or more.
    """
    rounding = 100 * torch.finfo(off.dtype).eps
    size = off.norm(dim=1)
    direction = _unit(off, size, size > 0)
    directions: list[Tensor] = []
    shifts: list[Tensor] = []
    images: list[Tensor] = []
    for _ in range(min(iterations, off.shape[1])):
        shift, seen = spread(direction)
        directions.append(direction)
        shifts.append(shift)
        images.append(direction + seen)
        rest = images[-1]
        for known in directions * 2:  # twice: what is left is small, and rounding is not
            rest = rest - (known * rest).sum(1, keepdim=True) * known
        left = rest.norm(dim=1)
        # Of a row whose space is exhausted, nothing more comes: it does not wait for the others with noise.
        direction = _unit(rest, left, left > rounding * images[-1].norm(dim=1))
        if not direction.any():
            break
    basis, moved = torch.stack(directions, 1).double(), torch.stack(images, 1).double()
    projected = basis @ moved.mT
    _require_finite(projected)
    symmetric, doubt = (projected + projected.mT) / 2, torch.linalg.matrix_norm(projected - projected.mT) / 2
    eigenvalues, axes = torch.linalg.eigh(symmetric)
    eigenvalues = torch.maximum(eigenvalues, 1 + doubt[:, None])
    # All of it lies along the first direction.
    along = axes @ (axes[:, 0] * size.double()[:, None] / eigenvalues)[..., None]
    return torch.einsum("nk,nk...->n...", along[..., 0].to(off.dtype), torch.stack(shifts, 1))


def _require_finite(values: Tensor) -> None:
    if not torch.isfinite(values).all():
        raise DataError(
            "guidance: what was observed cannot be reckoned with, numbers become NaN or infinite: a value lies far "
            "beyond what the density knows, std is too small beside it, the operator's slope is infinite somewhere, as "
            "that of a root at 0, or the density's own mean is NaN"
        )


def _unit(vectors: Tensor, sizes: Tensor, valid: Tensor) -> Tensor:
    """Rows of length 1, and of 0 where there is none."""
    return vectors * torch.where(valid, 1 / torch.where(valid, sizes, 1), 0)[:, None]
