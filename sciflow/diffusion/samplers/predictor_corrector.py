"""Ancestral steps, each followed by Langevin steps at the time it came to."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from sciflow.diffusion.samplers.contract import Past, Process, Sampler, require
from sciflow.diffusion.samplers.ddim import DDIM

__all__ = ["PredictorCorrector"]

_ANCESTRAL = DDIM(eta=1.0)


@dataclass(frozen=True)
class PredictorCorrector(Sampler):
    r"""Predict :math:`x_s` by an ancestral step, then let it settle in the density at time s.

    .. math:: x_s \leftarrow x_s + \epsilon \nabla \log p(x_s) + \sqrt{2 \epsilon} \, z
                    = x_s + 2 r^2 (\alpha_s \hat x_0 - x_s) + 2 r \sigma_s \, z, \qquad \epsilon = 2 (r \sigma_s)^2

    Source: Song et al., arXiv:2011.13456. They set :math:`\epsilon = 2 (r \|z\| / \|\nabla \log p\|)^2` by norms
    averaged over all rows; here the score has the norm of the noise that it points away from,
    :math:`\|z\| / \sigma_s`, so that no row depends on others.

    Args:
        signal_to_noise: :math:`r`, above 0 and below 1.
        num_corrections: Langevin steps after each prediction.
    """

    signal_to_noise: float = 0.16
    num_corrections: int = 1

    def __post_init__(self) -> None:
        require("signal_to_noise", self.signal_to_noise, 1e-6, 0.9)
        require("num_corrections", self.num_corrections, 1, 1000, whole=True)

    @property
    def evaluations(self) -> int:
        return 1 + self.num_corrections

    def step(self, process: Process, x: Tensor, t: float, s: float, past: Past) -> Tensor:
        x = _ANCESTRAL.step(process, x, t, s, past)
        alpha, sigma = process.levels(s)
        for _ in range(self.num_corrections):
            towards = alpha * process.mean(x, s) - x
            x = x + 2 * self.signal_to_noise**2 * towards + 2 * self.signal_to_noise * sigma * process.noise(x)
        return x
