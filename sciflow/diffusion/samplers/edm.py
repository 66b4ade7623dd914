"""Heun's method in the noise level, with noise added before each step or without."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from sciflow.diffusion.samplers.contract import Past, Process, Sampler, require
from sciflow.diffusion.samplers.euler import LONGEST_HEUN

__all__ = ["EDM"]

_MOST_CHURN = math.sqrt(2) - 1


@dataclass(frozen=True)
class EDM(Sampler):
    r"""Raise the noise level a little, then go down by Heun's method in the noise level.

    With :math:`k = \sigma / \alpha` and :math:`\gamma = \min(\mathrm{churn} / \mathrm{num\_steps}, \sqrt2 - 1)`,

    .. math:: \hat k &= (1 + \gamma) \, k_t, \qquad
              x_{\hat t} = \frac{\alpha_{\hat t}}{\alpha_t} x_t +
                    \sqrt{\sigma_{\hat t}^2 - (\alpha_{\hat t} \sigma_t / \alpha_t)^2} \; \mathrm{churn\_noise} \; z \\
              x' &= \alpha_s \hat x_0(x_{\hat t}) + \sigma_s \hat\varepsilon(x_{\hat t}), \qquad
              x_s = x' + \tfrac12 \alpha_s \left( \hat k / k_s - 1 \right) (\hat x_0(x') - \hat x_0(x_{\hat t}))

    Of order 2, with two evaluations a step; the same on every schedule, where the noise levels are the same. A step to
    less than a sixth of the noise level ends with :math:`x'`, after one evaluation: the rest would lead far astray.
    Source: Karras et al., arXiv:2206.00364, algorithm 2, and algorithm 1 without churn; these are the defaults of
    their code. Their names are S_churn, S_tmin, S_tmax and S_noise.

    Args:
        churn: How much noise is added in all; 0 for none. Their best on images are 40 and 80.
        churn_min: Noise level below which none is added.
        churn_max: Noise level above which none is added.
        churn_noise: Scale of the added noise; a little above 1 makes up for a denoiser that takes away too much.
    """

    churn: float = 0.0
    churn_min: float = 0.0
    churn_max: float = math.inf
    churn_noise: float = 1.0

    def __post_init__(self) -> None:
        for name in ("churn", "churn_min", "churn_max"):
            require(name, getattr(self, name), 0, math.inf)
        require("churn_noise", self.churn_noise, 0, 10)

    @property
    def evaluations(self) -> int:
        return 2

    def step(self, process: Process, x: Tensor, t: float, s: float, past: Past) -> Tensor:
        if self.churn:
            x, t = self._churned(process, x, t, past.num_steps)
        (alpha_t, sigma_t), (alpha_s, sigma_s) = process.levels(t), process.levels(s)
        mean = process.mean(x, t)
        ahead = (sigma_s / sigma_t) * x + (alpha_s - alpha_t * sigma_s / sigma_t) * mean
        fall = process.fall(t, s)
        if fall > LONGEST_HEUN:
            return ahead
        return ahead + (alpha_s * math.expm1(fall) / 2) * (process.mean(ahead, s) - mean)

    def _churned(self, process: Process, x: Tensor, t: float, num_steps: int) -> tuple[Tensor, float]:
        """``x`` at a time with a higher noise level, no later than the schedule's last."""
        alpha, sigma = process.levels(t)
        if alpha == 0 or not self.churn_min <= sigma / alpha <= self.churn_max:
            return x, t
        gamma = min(self.churn / num_steps, _MOST_CHURN)
        later = min(process.time((1 + gamma) * sigma / alpha), process.schedule.t_max)
        if later <= t:
            return x, t
        alpha_later, sigma_later = process.levels(later)
        kept = alpha_later / alpha
        added = math.sqrt(max(0.0, sigma_later**2 - (kept * sigma) ** 2))
        return kept * x + self.churn_noise * added * process.noise(x), later
