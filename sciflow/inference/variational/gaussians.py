"""Gaussians of full rank, as starts and bases."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["FullGaussian", "covariance", "root"]


@dataclass(frozen=True)
class FullGaussian:
    """A Gaussian by its mean ``[d]`` and the lower root ``[d, d]`` of its covariance.

    Example:
        >>> gaussian = FullGaussian(torch.zeros(2), torch.eye(2))
        >>> gaussian.log_prob(torch.zeros(5, 2)).shape
        torch.Size([5])
    """

    mean: Tensor
    lower: Tensor

    def log_prob(self, x: Tensor) -> Tensor:
        """log p of rows ``[n, d]``, ``[n]``."""
        noise = torch.linalg.solve_triangular(self.lower, (x - self.mean).T, upper=False)
        log_det = self.lower.diagonal().log().sum()
        return -0.5 * noise.square().sum(0) - log_det - 0.5 * len(self.mean) * math.log(2 * math.pi)

    def log_prob_with_gradient(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """log p ``[n]`` and its gradient ``[n, d]``."""
        noise = torch.linalg.solve_triangular(self.lower, (x - self.mean).T, upper=False)
        gradient = -torch.linalg.solve_triangular(self.lower.T, noise, upper=True).T
        log_det = self.lower.diagonal().log().sum()
        return -0.5 * noise.square().sum(0) - log_det - 0.5 * len(self.mean) * math.log(2 * math.pi), gradient

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw rows ``[n, d]``."""
        noise = torch.randn(n, len(self.mean), generator=generator, dtype=self.mean.dtype, device=self.mean.device)
        return self.mean + noise @ self.lower.T

    def widened(self, factor: float) -> FullGaussian:
        """The same with all standard deviations ``factor`` times as large."""
        return FullGaussian(self.mean, factor * self.lower)


def covariance(x: Tensor) -> Tensor:
    """Covariance ``[d, d]`` of rows ``[n, d]``."""
    centred = x - x.mean(0)
    return centred.T @ centred / max(1, len(x) - 1)


def root(matrix: Tensor) -> Tensor:
    """Lower root of covariances ``[*batch, d, d]``, which rounding may have left a little short of positive.

    Example:
        >>> root(torch.zeros(2, 2)).diagonal().gt(0).all()
        tensor(True)
    """
    scale = matrix.diagonal(dim1=-2, dim2=-1).mean(-1).clamp_min(torch.finfo(matrix.dtype).tiny)[..., None, None]
    unit = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
    for jitter in (0.0, 1e-10, 1e-7, 1e-4, 1e-2):
        lower, info = torch.linalg.cholesky_ex(matrix + jitter * scale * unit)
        if not info.any():
            return lower
    # As a last resort, each direction by itself.
    return torch.diag_embed(matrix.diagonal(dim1=-2, dim2=-1).clamp_min(torch.finfo(matrix.dtype).tiny).sqrt())
