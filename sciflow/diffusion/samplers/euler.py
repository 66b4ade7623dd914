"""Steps in the schedule's own time: along the probability-flow ODE, and along the reverse SDE."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from sciflow.diffusion.samplers.contract import Past, Process, Sampler

__all__ = ["LONGEST_HEUN", "Euler", "EulerMaruyama", "Heun"]

# Fall of the logarithm of the noise level, beyond which the tangent at the end of a step overshoots.
LONGEST_HEUN = math.log(6)


@dataclass(frozen=True)
class Euler(Sampler):
    r"""Follow the probability-flow ODE by its tangent.

    .. math:: x_s = x_t + (s - t) \, v(x_t, t), \qquad v = \dot\alpha \, \hat x_0 + \dot\sigma \, \hat\varepsilon

    Of order 1, in the schedule's own time: exact for :math:`\hat x_0` that does not move where the schedule is
    straight ("flow", "edm"); on "ve" few steps overshoot. Source: Song et al., arXiv:2011.13456.
    """

    def step(self, process: Process, x: Tensor, t: float, s: float, past: Past) -> Tensor:
        return x + (s - t) * process.velocity(x, t)


@dataclass(frozen=True)
class Heun(Sampler):
    r"""Follow the probability-flow ODE by the mean of the tangents at both ends of the step.

    .. math:: x' = x_t + (s - t) \, v(x_t, t), \qquad x_s = x_t + \tfrac{s - t}{2} \left( v(x_t, t) + v(x', s) \right)

    Of order 2, with two evaluations a step. A step to less than a sixth of the noise level stays Euler's, with one:
    the tangent at its end would lead far astray. On "ve" few steps overshoot all the same. In the time of the "edm"
    schedule it is algorithm 1 of Karras et al., arXiv:2206.00364; :class:`~sciflow.diffusion.samplers.EDM` takes that
    to other schedules.
    """

    @property
    def evaluations(self) -> int:
        return 2

    def step(self, process: Process, x: Tensor, t: float, s: float, past: Past) -> Tensor:
        velocity = process.velocity(x, t)
        ahead = x + (s - t) * velocity
        if process.fall(t, s) > LONGEST_HEUN:
            return ahead
        return x + (s - t) / 2 * (velocity + process.velocity(ahead, s))


@dataclass(frozen=True)
class EulerMaruyama(Sampler):
    r"""Follow the reverse SDE by its tangent.

    .. math:: x_s = x_t + (s - t) \, v(x_t, t) + c \, (\alpha \hat x_0 - x_t) + \sigma \sqrt{2 c} \, z, \qquad
              c = (t - s) \, \frac{d}{dt} \log \frac{\sigma}{\alpha} \le \tfrac12

    :math:`2 c \sigma^2` is the noise of the SDE in one step. More noise than a step can lose again is not added, as
    where the signal ends: any amount leaves the marginals as they are. Of order 1 in distribution, in the schedule's
    own time. Source: Song et al., arXiv:2011.13456.
    """

    def step(self, process: Process, x: Tensor, t: float, s: float, past: Past) -> Tensor:
        (alpha, sigma), (alpha_rate, sigma_rate) = process.levels(t), process.rates(t)
        rate = sigma_rate / sigma - alpha_rate / alpha if alpha > 0 else math.inf
        share = min((t - s) * rate, 0.5)
        mean = process.mean(x, t)
        drift = alpha_rate * mean + (sigma_rate / sigma) * (x - alpha * mean)
        return x + (s - t) * drift + share * (alpha * mean - x) + sigma * math.sqrt(2 * share) * process.noise(x)
