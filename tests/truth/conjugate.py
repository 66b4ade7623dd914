"""A simulator whose posterior is known: Gaussian noise on a linear map of Gaussian parameters."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import Independent, Normal

__all__ = ["MAP", "NOISE", "PRIOR", "moments", "simulate"]

PRIOR = Independent(Normal(torch.tensor([1.0, -2.0]), torch.tensor([1.0, 2.0])), 1)
MAP = torch.tensor([[1.0, 0.5], [0.0, 1.0], [1.0, -1.0]])
NOISE = 0.5


def simulate(theta: Tensor) -> Tensor:
    """Observations ``[n, 3]`` of parameters ``[n, 2]``."""
    return theta @ MAP.T.to(theta) + NOISE * torch.randn(len(theta), 3)


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean ``[2]`` and covariance ``[2, 2]`` of the posterior given ``x`` ``[3]``."""
    precision = torch.diag(PRIOR.variance.reciprocal())
    covariance = torch.linalg.inv(precision + MAP.T @ MAP / NOISE**2)
    return covariance @ (precision @ PRIOR.mean + MAP.T @ x / NOISE**2), covariance
