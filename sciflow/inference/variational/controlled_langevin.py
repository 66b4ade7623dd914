"""Langevin steps from a Gaussian to a density, steered by a network, and the same steps backwards."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["ControlledLangevin", "Kernel", "gaussian_log_prob"]

_FURTHEST_PULL = 3.0  # of a score, in standard deviations of the noise of its step
_WIDEST_INPUT = 10.0
_MOST_RESCALED = 2.0  # the noise is at most e^2 times as wide as that of its time, or as narrow
_NUM_FREQUENCIES = 8

Kernel = tuple[Tensor, Tensor]  # mean and logarithm of the standard deviation, [times, n, d] each


class ControlledLangevin(nn.Module):
    r"""Gaussian kernels to the next time, and to the one before.

    .. math:: F_k(\cdot \mid y) = \mathcal{N}(y + \epsilon_k(y) \, g_{\beta_k}(y) + \sqrt{2 \epsilon_k(y)} \, u_k(y),
              \; 2 \epsilon_k(y)), \qquad
              g_\beta(y) = -(1 - \beta) \, y + \beta \nabla \log \tilde p(y)

    The kernels back, :math:`B_k(\cdot \mid y)`, have the sign of the control turned, and the step of the time before.
    In the limit of short steps they undo those forth where the control is that which carries the annealed densities
    into each other. Every time has a step for every coordinate, which the network lengthens or shortens by place. A
    score pulls no further than three standard deviations of the noise: where the target is steep, Euler's step would
    leave for infinity. A kernel that is cut so is still a Gaussian, and weights stay exact.

    Args:
        num_features: Length :math:`d` of a row.
        num_steps: Number of kernels each way, ``K``.
        hidden: Width of the network's two hidden layers.

    Source:
        Vargas et al., arXiv:2307.01050, whose steps do not depend on the place; pulls are cut as in
        Hutzenthaler et al., arXiv:1010.3756.

    Example:
        >>> kernels = ControlledLangevin(2, num_steps=4, hidden=8).double()
        >>> y = torch.zeros(5, 7, 2).double()
        >>> (mean, log_std), back = kernels(slice(0, 5), y, torch.ones_like(y))
        >>> mean.shape, log_std.shape
        (torch.Size([5, 7, 2]), torch.Size([5, 7, 2]))
    """

    times: Tensor

    def __init__(self, num_features: int, num_steps: int, hidden: int) -> None:
        super().__init__()
        self.num_steps = num_steps
        self.log_step = nn.Parameter(torch.full((num_steps, num_features), math.log(0.05)))
        self.log_share = nn.Parameter(torch.full((num_steps,), -math.log(num_steps)))
        self.network = nn.Sequential(
            nn.Linear(2 * num_features + 2 * _NUM_FREQUENCIES, hidden),
            nn.SiLU(),
            nn.Linear(hidden, hidden),
            nn.SiLU(),
            nn.Linear(hidden, 2 * num_features),
        )
        # At first there is no control.
        for parameter in self.network[-1].parameters():
            nn.init.zeros_(parameter)
        phases = math.pi * torch.linspace(0, 1, num_steps + 1)[:, None] * torch.arange(1, _NUM_FREQUENCIES + 1)
        self.register_buffer("times", torch.cat([phases.cos(), phases.sin()], 1), persistent=False)

    def betas(self) -> Tensor:
        """How far from base to target, from 0 to 1: ``[num_steps + 1]``, rising."""
        return F.pad(torch.softmax(self.log_share, 0).cumsum(0), (1, 0)).clamp_max(1)

    def forward(self, at: slice, y: Tensor, score: Tensor) -> tuple[Kernel, Kernel]:
        """Kernels to the next time and to the one before, of rows at each of several times.

        Args:
            at: Times, of 0 to ``num_steps``; that before the first and after the last have a kernel without a use.
            y: Rows ``[times, n, d]``, in coordinates in which the base is standard normal.
            score: Gradient of the target's logarithm there, same shape.
        """
        beta = self.betas()[at][:, None, None]
        annealed = beta * score - (1 - beta) * y
        time = self.times[at][:, None].to(y).expand(-1, y.shape[1], -1)
        near = y.clamp(-_WIDEST_INPUT, _WIDEST_INPUT)
        steered = self.network(torch.cat([near, torch.asinh(score), time], -1))
        control, rescale = steered.chunk(2, -1)
        steps = torch.cat([self.log_step[:1], self.log_step, self.log_step[-1:]])
        on = _kernel(y, annealed, control, steps[1:][at][:, None], rescale)
        return on, _kernel(y, annealed, -control, steps[:-1][at][:, None], rescale)


def gaussian_log_prob(x: Tensor, kernel: Kernel) -> Tensor:
    """log p of rows ``[*batch, d]`` under Gaussians of the same shape, ``[*batch]``.

    Example:
        >>> gaussian_log_prob(torch.zeros(3, 2), (torch.zeros(3, 2), torch.zeros(3, 2)))
        tensor([-1.8379, -1.8379, -1.8379])
    """
    mean, log_std = kernel
    noise = (x - mean) * torch.exp(-log_std)
    return (-0.5 * noise.square() - log_std).sum(-1) - 0.5 * x.shape[-1] * math.log(2 * math.pi)


def _kernel(y: Tensor, score: Tensor, control: Tensor, log_step: Tensor, rescale: Tensor) -> Kernel:
    log_std = 0.5 * (log_step + math.log(2)) + _MOST_RESCALED * torch.tanh(rescale / _MOST_RESCALED)
    std = torch.exp(log_std)
    pull = 0.5 * std * score  # in standard deviations of the noise
    # By hypot: the square of a pull may leave what floating point holds.
    pull = pull / torch.hypot(torch.ones_like(pull), pull / _FURTHEST_PULL)
    return y + std * (pull + control), log_std
