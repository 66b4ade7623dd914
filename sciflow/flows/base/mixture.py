"""Several bumps: a mixture of diagonal Gaussians."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sciflow.arguments import Arguments
from sciflow.flows.base.contract import PACE, Base

__all__ = ["GaussianMixture"]

_MIN_SCALE = 1e-2  # narrower bumps are for the flow to make; here one could sit on a single row
_MOST_COMPONENTS = 4096


class GaussianMixture(Base):
    r"""A mixture of Gaussians with diagonal covariances; means, scales and weights are learned.

    .. math:: p(z) = \sum_k w_k \prod_i \mathcal{N}(z_i; \, \mu_{ki}, \sigma_{ki}^2), \qquad \sum_k w_k = 1,
              \qquad \sigma_{ki} > 0.01

    For data that fall into groups: a flow from a single bump must join the groups by bridges, for it cannot tear, and
    puts events where there are none. It starts close to a standard normal, with the mean and the variance of one in
    every element, and with means that differ, so that the components can part. From Izmailov et al., arXiv:1912.13025.

    Args:
        event_shape: Shape of one event.
        num_components: Number of Gaussians.

    Raises:
        ConfigError: ``num_components`` is not a whole number from 1 to 4,096.

    Example:
        >>> mixture = GaussianMixture((2,), num_components=3)
        >>> mixture.log_prob(torch.zeros(5, 2)).shape, mixture.means.shape
        (torch.Size([5]), torch.Size([3, 2]))
    """

    def __init__(self, event_shape: Sequence[int], num_components: int = 8) -> None:
        num_components = Arguments("base: gaussian_mixture").whole(
            "num_components", num_components, 1, _MOST_COMPONENTS
        )
        super().__init__(event_shape)
        means, scale = _spread(num_components, self.event_shape)
        raw_scale = math.log(math.expm1(scale - _MIN_SCALE))
        self.raw_means = nn.Parameter(means / PACE)
        self.raw_scales = nn.Parameter(torch.full_like(means, raw_scale / PACE))
        self.raw_logits = nn.Parameter(torch.zeros(num_components))

    @property
    def means(self) -> Tensor:
        r""":math:`\mu`, ``[num_components, *event_shape]``."""
        return PACE * self.raw_means

    @property
    def scales(self) -> Tensor:
        r""":math:`\sigma`, ``[num_components, *event_shape]``."""
        return _MIN_SCALE + F.softplus(PACE * self.raw_scales)

    @property
    def log_weights(self) -> Tensor:
        r""":math:`\log w`, ``[num_components]``."""
        return (PACE * self.raw_logits).log_softmax(0)

    @property
    def specification(self) -> dict[str, Any]:
        return {"gaussian_mixture": {"num_components": len(self.raw_logits)}}

    def log_prob(self, z: Tensor) -> Tensor:
        scales = self.scales
        squares = ((z[:, None] - self.means) / scales).square() + math.log(2 * math.pi)
        log_each = -0.5 * squares.flatten(2).sum(-1) - scales.log().flatten(1).sum(-1)
        return torch.logsumexp(log_each + self.log_weights, dim=1)

    def sample(self, n: int, generator: torch.Generator | None, dtype: torch.dtype, device: torch.device) -> Tensor:
        normal = torch.randn(n, *self.event_shape, generator=generator, dtype=dtype, device=device)
        uniform = torch.rand(n, generator=generator, dtype=dtype, device=device)
        ends = self.log_weights.detach().to(device, dtype).exp().cumsum(0)
        component = torch.searchsorted(ends, uniform, right=True).clamp_max(len(ends) - 1)
        return self.means[component].detach().to(dtype) + self.scales[component].detach().to(dtype) * normal


def _spread(num_components: int, event_shape: torch.Size) -> tuple[Tensor, float]:
    """Return means of mean 0 and equal variance in every element, and the scale that makes up the variance of 1.

    In every element they are quantiles of a normal, in another order each. They lie about a standard deviation apart
    in any number of dimensions: far enough to part, and near enough that the whole is hardly told from one normal.
    """
    if num_components == 1:
        return torch.zeros(1, *event_shape), 1.0
    # Numbers of its own: the weights of a flow with a seed are a function of that seed.
    generator = torch.Generator().manual_seed(0)
    ranks = torch.rand(num_components, *event_shape, generator=generator).argsort(0)
    means = torch.special.ndtri((ranks + 0.5) / num_components)
    spread = math.sqrt(0.5 / event_shape.numel())
    return spread * means / means.std(0, correction=0), math.sqrt(1 - spread**2)
