"""Denoising diffusion: ancestral steps, and implicit ones with less noise or none."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from sciflow.diffusion.samplers.contract import Past, Process, Sampler, require

__all__ = ["DDIM"]


@dataclass(frozen=True)
class DDIM(Sampler):
    r"""Go to time s by way of the clean event, with as much fresh noise as asked for.

    .. math:: x_s = \alpha_s \hat x_0 + \sqrt{\sigma_s^2 - v} \, \hat\varepsilon + \sqrt{v} \, z, \qquad
              v = \eta^2 \sigma_s^2 (1 - e^{-2h}), \qquad
              e^{-h} = \frac{\alpha_t \sigma_s}{\alpha_s \sigma_t}

    :math:`v` at :math:`\eta = 1` is the variance of :math:`x_s` given :math:`x_t` and :math:`x_0`: ancestral sampling.
    At 0 it is the probability-flow ODE, exact where :math:`\hat x_0` does not move; of order 1 in the step.
    Source: Song et al., arXiv:2010.02502; Ho et al., arXiv:2006.11239 for the ancestral one.

    Args:
        eta: :math:`\eta`, from 0 (no noise) to 1.
    """

    eta: float = 0.0

    def __post_init__(self) -> None:
        require("eta", self.eta, 0, 1)

    def step(self, process: Process, x: Tensor, t: float, s: float, past: Past) -> Tensor:
        (alpha_t, sigma_t), (alpha_s, sigma_s) = process.levels(t), process.levels(s)
        lost = -math.expm1(-2 * process.fall(t, s))
        kept = sigma_s / sigma_t * math.sqrt(1 - self.eta**2 * lost)
        x = kept * x + (alpha_s - kept * alpha_t) * process.mean(x, t)
        return x + self.eta * sigma_s * math.sqrt(lost) * process.noise(x) if self.eta else x
