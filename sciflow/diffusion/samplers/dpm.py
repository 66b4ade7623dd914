"""DPM-Solver++: the means of the last steps, continued as a polynomial."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from sciflow.diffusion.samplers.contract import Past, Point, Process, Sampler, combined, require
from sciflow.diffusion.samplers.exponential import Variable, require_variable, weights

__all__ = ["DPMSolver"]


@dataclass(frozen=True)
class DPMSolver(Sampler):
    r"""Continue the denoiser's means of the last steps as a polynomial, and solve the ODE with it exactly.

    .. math:: x_s = \frac{\sigma_s}{\sigma_t} e^{-\eta h} x_t +
                    \alpha_s (1 + \eta) \int_{\lambda_t}^{\lambda_s} e^{(1 + \eta) (\lambda - \lambda_s)}
                    \hat x_0(\lambda) \, d\lambda + \sigma_s \sqrt{1 - e^{-2 \eta h}} \, z, \qquad
              h = \lambda_s - \lambda_t

    Of the order that it is asked for, with one evaluation a step; the first steps have what order their past allows,
    and so has the last where a trajectory is short. Source: Lu et al., arXiv:2211.01095; ``variable="log"`` is theirs
    (2M, and SDE-2M with ``eta=1``). Their code of order 3 halves the last term and loses that order; this keeps it.

    Args:
        order: Means that are looked at: 1, 2 or 3. At 1 it is DDIM.
        variable: In what the means are a polynomial, see :func:`~sciflow.diffusion.samplers.exponential.weights`.
        eta: Noise, from 0 (the ODE) to 1 (the reverse SDE).
    """

    order: int = 2
    variable: Variable = "signal"
    eta: float = 0.0

    def __post_init__(self) -> None:
        require("order", self.order, 1, 3, whole=True)
        require("eta", self.eta, 0, 1)
        require_variable(self.variable)

    def step(self, process: Process, x: Tensor, t: float, s: float, past: Past) -> Tensor:
        past.add(Point(t, x, process.mean(x, t)), keep=past.order(self.order))
        (_, sigma_t), (alpha_s, sigma_s) = process.levels(t), process.levels(s)
        start, end = process.log_signal(t), process.log_signal(s)
        places = tuple(process.log_signal(point.t) for point in past.points)
        mean = combined(weights(start, end, places, self.variable, 1 + self.eta), past.points)
        forget = self.eta * (end - start)
        x = sigma_s / sigma_t * math.exp(-forget) * x + alpha_s * mean
        return x + sigma_s * math.sqrt(-math.expm1(-2 * forget)) * process.noise(x) if self.eta else x
