"""The standard normal, which most flows map their events to."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sciflow.flows.base.contract import Base

__all__ = ["StandardNormal"]


class StandardNormal(Base):
    r"""Independent normals of mean 0 and variance 1, :math:`\log p(z) = -\frac12 \sum_i (z_i^2 + \log 2 \pi)`.

    Example:
        >>> StandardNormal((2,)).log_prob(torch.zeros(1, 2))
        tensor([-1.8379])
    """

    @property
    def specification(self) -> str:
        return "normal"

    def log_prob(self, z: Tensor) -> Tensor:
        return -0.5 * (z.flatten(1).square().sum(-1) + self.event_shape.numel() * math.log(2 * math.pi))

    def sample(self, n: int, generator: torch.Generator | None, dtype: torch.dtype, device: torch.device) -> Tensor:
        return torch.randn(n, *self.event_shape, generator=generator, dtype=dtype, device=device)
