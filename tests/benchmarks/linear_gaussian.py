"""The linear Gaussian task of sbibm, whose posterior is known, and posteriors of it that are wrong in known ways."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

VARIANCE = 0.1
KINDS = ("right", "too narrow", "too wide", "biased", "one too narrow", "the prior", "one ignored")


def simulated(num: int, dims: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Parameters of the prior ``[num, dims]``, and data of them."""
    theta, noise = np.sqrt(VARIANCE) * np.random.default_rng([seed, 77]).normal(size=(2, num, dims))
    return theta, theta + noise


def log_likelihood(theta: Any, x: Any) -> Any:
    """Up to a constant."""
    return -((theta - x) ** 2).sum(-1) / (2 * VARIANCE)


class Posterior:
    """N(x / 2, variance / 2), or one that is wrong; with the methods of a conditional model."""

    def __init__(self, kind: str = "right") -> None:
        self.kind = kind

    def moments(self, x: Any) -> tuple[np.ndarray, np.ndarray]:
        mean = np.asarray(x, np.float64) / 2
        first = np.arange(mean.shape[-1]) == 0
        right, prior = np.sqrt(VARIANCE / 2), np.sqrt(VARIANCE)
        scale = np.full(mean.shape[-1], right)
        if self.kind == "too narrow":
            scale = 0.8 * scale
        elif self.kind == "too wide":
            scale = 1.25 * scale
        elif self.kind == "biased":
            mean = mean + 0.5 * right * first
        elif self.kind == "one too narrow":
            scale = np.where(first, 0.8 * right, right)
        elif self.kind == "the prior":
            mean, scale = 0 * mean, np.full_like(scale, prior)
        elif self.kind == "one ignored":
            mean, scale = mean * ~first, np.where(first, prior, right)
        return mean, scale

    def sample(self, n: int, x: Any, seed: int) -> torch.Tensor:
        mean, scale = self.moments(x)
        return torch.from_numpy(mean + scale * np.random.default_rng(seed).normal(size=(n, *mean.shape)))

    def log_prob(self, theta: Any, x: Any) -> torch.Tensor:
        mean, scale = self.moments(x)
        return torch.as_tensor((-0.5 * ((np.asarray(theta) - mean) / scale) ** 2 - np.log(scale)).sum(-1))

    def __call__(self, x: Any, n: int, seed: int) -> torch.Tensor:
        return self.sample(n, x, seed)
