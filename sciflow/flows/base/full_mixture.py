"""Several bumps of any orientation: a mixture of Gaussians with full covariances, fitted to rows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

from sciflow.arguments import Arguments
from sciflow.flows.base.contract import PACE, Base

__all__ = ["FullGaussianMixture"]

_MOST_COMPONENTS = 4096
_ROUNDS = 60
_DEGREES = 4.0  # of freedom, of the wide draws


class FullGaussianMixture(Base):
    r"""A mixture of Gaussians with full covariances; all of it is learned, or fitted to rows.

    .. math:: p(z) = \sum_k w_k \, \mathcal{N}(z; \, \mu_k, L_k L_k^\top), \qquad \sum_k w_k = 1

    It starts as standard normals, all at the origin; :meth:`fit` puts them where rows are.

    Args:
        event_shape: Shape of one event.
        num_components: Number of Gaussians.

    Raises:
        ConfigError: ``num_components`` is not a whole number from 1 to 4,096.

    Example:
        >>> mixture = FullGaussianMixture((2,), num_components=3)
        >>> rows = torch.randn(300, 2, generator=torch.Generator().manual_seed(0))
        >>> mixture.fit(rows, torch.Generator().manual_seed(0)).log_prob(rows).shape
        torch.Size([300])
    """

    def __init__(self, event_shape: Sequence[int], num_components: int = 1) -> None:
        num_components = Arguments("base: full_gaussian_mixture").whole(
            "num_components", num_components, 1, _MOST_COMPONENTS
        )
        super().__init__(event_shape)
        size = self.event_shape.numel()
        self.raw_means = nn.Parameter(torch.zeros(num_components, size))
        self.raw_lower = nn.Parameter(torch.zeros(num_components, size, size))
        self.raw_logits = nn.Parameter(torch.zeros(num_components))

    @property
    def means(self) -> Tensor:
        r""":math:`\mu`, ``[num_components, size]``."""
        return PACE * self.raw_means

    @property
    def lower(self) -> Tensor:
        r""":math:`L`, ``[num_components, size, size]``, with a positive diagonal."""
        raw = self.raw_lower
        return raw.tril(-1) + torch.diag_embed(raw.diagonal(dim1=1, dim2=2).exp())

    @property
    def log_weights(self) -> Tensor:
        r""":math:`\log w`, ``[num_components]``."""
        return (PACE * self.raw_logits).log_softmax(0)

    @property
    def specification(self) -> dict[str, Any]:
        return {"full_gaussian_mixture": {"num_components": len(self.raw_logits)}}

    def log_prob(self, z: Tensor) -> Tensor:
        squares, log_scales = self._distances(z)
        log_each = -0.5 * squares - log_scales - 0.5 * self.event_shape.numel() * math.log(2 * math.pi)
        return torch.logsumexp(log_each + self.log_weights, 1)

    def shares(self, z: Tensor) -> Tensor:
        """How likely each of rows ``[n, *event_shape]`` is of each Gaussian, ``[n, num_components]``, of sum 1."""
        squares, log_scales = self._distances(z)
        return torch.softmax(-0.5 * squares - log_scales + self.log_weights, 1)

    def log_prob_wide(self, z: Tensor) -> Tensor:
        """log p ``[n]`` of the same mixture with Student's t of 4 degrees of freedom in each Gaussian's place."""
        squares, log_scales = self._distances(z)
        size = self.event_shape.numel()
        constant = (
            math.lgamma((_DEGREES + size) / 2) - math.lgamma(_DEGREES / 2) - size / 2 * math.log(_DEGREES * math.pi)
        )
        log_each = constant - log_scales - (_DEGREES + size) / 2 * torch.log1p(squares / _DEGREES)
        return torch.logsumexp(log_each + self.log_weights, 1)

    def sample(self, n: int, generator: torch.Generator | None, dtype: torch.dtype, device: torch.device) -> Tensor:
        with torch.no_grad():
            return self.draw(n, generator)[0].to(device, dtype)

    def draw(self, n: int, generator: torch.Generator | None, wide: float = 0.0) -> tuple[Tensor, Tensor]:
        """Draw noise with a gradient, and say which component each draw is of.

        Args:
            n: Number of draws.
            generator: Of the draws.
            wide: Share of draws that come from :meth:`log_prob_wide` instead.

        Returns:
            ``[n, *event_shape]`` and ``[n]``.
        """
        size, kind, where = self.event_shape.numel(), self.raw_means.dtype, self.raw_means.device
        ends = self.log_weights.detach().exp().cumsum(0)
        uniform = torch.rand(n, generator=generator, dtype=kind, device=where)
        component = torch.searchsorted(ends, uniform, right=True).clamp_max(len(ends) - 1)
        noise = torch.randn(n, size, generator=generator, dtype=kind, device=where)
        if wide:
            chosen = torch.rand(n, 1, generator=generator, dtype=kind, device=where) < wide
            normals = torch.randn(n, int(_DEGREES), generator=generator, dtype=kind, device=where)
            stretch = torch.sqrt(_DEGREES / normals.square().sum(1, keepdim=True))
            noise = torch.where(chosen, noise * stretch, noise)
        z = self.means[component] + torch.einsum("nij,nj->ni", self.lower[component], noise)
        return z.reshape(n, *self.event_shape), component

    @torch.no_grad()
    def fit(self, z: Tensor, generator: torch.Generator) -> Self:
        """Fit all numbers to rows ``[n, *event_shape]`` by expectation maximisation, from means far from each other.

        Covariances are drawn towards that of all rows, shared out among the components, with the weight of as many rows
        as there are dimensions: a component cannot close in on a single row.
        """
        z = z.reshape(len(z), -1).to(self.raw_means)
        count, size = len(self.raw_logits), z.shape[1]
        unit = torch.eye(size, dtype=z.dtype, device=z.device)
        centred = z - z.mean(0)
        prior = centred.T @ centred / len(z) / count ** (2 / size) + 1e-8 * unit
        # Far from each other, by k-means++ of Arthur and Vassilvitskii (2007).
        places = [int(torch.randint(len(z), (1,), generator=generator))]
        nearest = (z - z[places[0]]).square().sum(1)
        for _ in range(count - 1):
            chances = (nearest + torch.finfo(z.dtype).tiny).cpu()
            places.append(int(torch.multinomial(chances, 1, generator=generator)))
            nearest = torch.minimum(nearest, (z - z[places[-1]]).square().sum(1))
        self._set(z[places], torch.linalg.cholesky(prior).expand(count, -1, -1), z.new_full((count,), 1 / count))
        for _ in range(_ROUNDS if count > 1 else 1):
            shares = self.shares(z)
            totals = shares.sum(0) + 1e-9
            means = shares.T @ z / totals[:, None]
            apart = z - means[:, None]
            spread = torch.einsum("nk,kni,knj->kij", shares, apart, apart)
            pulled = (spread + (size + 1) * prior) / (totals + size + 1)[:, None, None]
            self._set(means, torch.linalg.cholesky(pulled), totals / totals.sum())
        return self

    def _set(self, means: Tensor, lower: Tensor, weights: Tensor) -> None:
        log_diagonal = torch.diag_embed(lower.diagonal(dim1=1, dim2=2).log())
        self.raw_means.copy_(means / PACE)
        self.raw_lower.copy_(lower.tril(-1) + log_diagonal)
        self.raw_logits.copy_(weights.log() / PACE)

    def _distances(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Squared distances ``[n, num_components]`` in units of each Gaussian, and the logarithms of their volumes."""
        lower = self.lower
        apart = z.reshape(len(z), self.event_shape.numel()) - self.means[:, None]
        noise = torch.linalg.solve_triangular(lower, apart.mT, upper=False)
        return noise.square().sum(1).T, lower.diagonal(dim1=1, dim2=2).log().sum(1)
