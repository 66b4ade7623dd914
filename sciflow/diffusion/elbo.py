"""The variational bound on log p, by which a diffusion model is compared with any other density."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sciflow.diffusion.denoiser import Denoiser
from sciflow.diffusion.rows import over_events
from sciflow.row_noise import RowNoise

__all__ = ["elbo"]

# Half of the noise levels are drawn about this multiple of the events' deviation, in logarithms: there the integrand
# varies most.
_CENTRE, _WIDTH = -1.0, 1.5


def elbo(
    denoiser: Denoiser,
    y: Tensor,
    context: Tensor | None,
    num_draws: int,
    random: RowNoise | None = None,
) -> Tensor:
    r"""Estimate the variational bound on log p of normalised events, without bias.

    .. math:: \log p(y) \ge -\mathrm{KL}\left( q(y_{t_1} \mid y) \,\|\, p(y_{t_1}) \right) + E \log p(y \mid y_{t_0})
              - \int E \| \varepsilon - \hat\varepsilon(y_t) \|^2 \; d \log \frac{\sigma}{\alpha}

    It holds for the generative process that begins at :math:`N(0, \alpha^2 s^2 + \sigma^2)` at time :math:`t_1`,
    and ends with :math:`y \sim N(y_{t_0} / \alpha, \sigma^2 / \alpha^2)`, at a thousandth of noise. Source: Kingma et
    al., arXiv:2107.00630.

    Three things make the estimate of the integral less noisy: noise levels are spread evenly over a mixture, half of
    which lies where the integrand varies most; what a Gaussian of deviation :math:`s` would have is integrated
    exactly; and of every term multiples of :math:`\|\varepsilon\|^2 - d` and :math:`\varepsilon \cdot y` are taken off,
    whose means are 0. The one comes from the draw before, at a level just below, so that it does not depend on this
    draw's noise; the other from the Gaussian.

    Args:
        denoiser: Of the model.
        y: ``[n, *event_shape]``, normalised.
        context: ``[n, *context_shape]`` or None.
        num_draws: Evaluations a row.
        random: Levels and noise of every row; None draws them from torch's own generator.

    Returns:
        ``[n]``, float64, nats in normalised units.
    """
    schedule = denoiser.schedule
    ends = torch.tensor([schedule.t_min, schedule.t_max], dtype=torch.float64)
    low, high = schedule.noise_level(ends).log()
    num_elements = math.prod(y.shape[1:])
    data_std = denoiser.data_std.double().cpu()
    shift = torch.rand(len(y), dtype=torch.float64) if random is None else random.uniform(0).cpu()
    log_levels, weights = _log_levels(num_draws, shift, low, high, data_std)
    log_levels, weights = log_levels.to(y.device), weights.to(y.device)
    power = data_std.square().to(y.device)

    total = torch.zeros(len(y), dtype=torch.float64, device=y.device)
    slope = power / (power + torch.exp(2 * low))
    for draw, (log_level, weight) in enumerate(zip(log_levels, weights, strict=True)):
        level = torch.exp(log_level)
        t = schedule.time(level)
        alpha, sigma = (over_events(part, y).to(y.dtype) for part in schedule(t))
        noise = torch.randn_like(y) if random is None else random.normal(draw)
        mean = denoiser(alpha * y + sigma * noise, t, context)
        # (mean - y) / level is the noise less its estimate.
        error = _squares((mean - y) / over_events(level, y).to(y.dtype))
        size = _squares(noise)
        gaussian = power / (power + level.square())
        tilt = -2 * gaussian * (1 - gaussian) / level * (noise * y).flatten(1).sum(1, dtype=torch.float64)
        even = slope.minimum(gaussian) * (size - num_elements)
        total += weight * (error - num_elements * gaussian - even - tilt)
        slope = (error.detach() / size).clamp(0, 1)

    # The same Gaussian's integral of s^2 / (s^2 + level^2), over the logarithm of the level.
    known = 0.5 * (torch.log1p(power * torch.exp(-2 * low)) - torch.log1p(power * torch.exp(-2 * high)))
    reconstruction = -0.5 * math.log(2 * math.pi * math.e) - low
    alpha, sigma = schedule(ends[1])
    share = sigma.square() / (alpha.square() * power + sigma.square())
    divergence = 0.5 * (share - 1 - share.log())
    furthest = 0.5 * share * (alpha / sigma).square() * _squares(y)
    return num_elements * (reconstruction - divergence - known) - furthest - total / num_draws


def _log_levels(num_draws: int, shift: Tensor, low: Tensor, high: Tensor, data_std: Tensor) -> tuple[Tensor, Tensor]:
    """Rising logarithms of noise levels from a mixture of an even and a normal distribution, each spread evenly, and
    one over the mixture's density; ``[num_draws, n]``, float64."""
    share = (torch.arange(num_draws, dtype=torch.float64)[:, None] + shift) / num_draws
    normal = torch.distributions.Normal(data_std.log() + _CENTRE, _WIDTH)
    least, most = normal.cdf(low), normal.cdf(high)
    even = low + 2 * share * (high - low)
    bell = normal.icdf(least + (2 * share - 1).clamp_min(0) * (most - least))
    log_levels = torch.where(share < 0.5, even, bell).clamp(low, high).sort(0).values
    density = 0.5 / (high - low) + 0.5 * normal.log_prob(log_levels).exp() / (most - least)
    return log_levels, 1 / density


def _squares(x: Tensor) -> Tensor:
    return x.flatten(1).square().sum(1, dtype=torch.float64)
