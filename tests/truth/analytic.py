"""Densities whose every noisy marginal, denoiser and probability flow is known: what diffusion is tested against.

Not a test: load it by its path, as the tests of the samplers do.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from sciflow.diffusion.schedules import Schedule

__all__ = ["Gaussian", "GaussianMixture", "correlated", "events", "few_modes"]


class GaussianMixture:
    r"""Mixture of Gaussians: noise turns it into another one, and its denoiser has a closed form.

    .. math:: p(x_t) = \sum_k w_k N(\alpha m_k, \alpha^2 S_k + \sigma^2), \qquad
              E[x_0 \mid x_t] = \sum_k r_k
                \left( m_k + \alpha S_k (\alpha^2 S_k + \sigma^2)^{-1} (x_t - \alpha m_k) \right)

    with :math:`r_k` the probability of component k given :math:`x_t`. Numbers are float64; results have the dtype and
    the device of what they are asked about.

    Args:
        weights: ``[k]``, positive; they are normalised.
        means: ``[k, d]``.
        covariances: ``[k, d, d]``.
    """

    def __init__(self, weights: Tensor, means: Tensor, covariances: Tensor) -> None:
        self.weights = weights.double() / weights.double().sum()
        self.means, self.covariances = means.double(), covariances.double()
        # In the axes of a component noise is added to variances alone.
        self._variances, self._axes = torch.linalg.eigh(self.covariances)

    @classmethod
    def ring(cls, num_components: int = 6, radius: float = 1.2, width: float = 0.12) -> GaussianMixture:
        """In the plane: narrow components of unequal weight on a ring, each along its tangent."""
        angle = torch.arange(num_components).double() * (math.tau / num_components)
        radial = torch.stack([angle.cos(), angle.sin()], -1)
        tangent = torch.stack([-angle.sin(), angle.cos()], -1)
        outer = [direction[:, :, None] * direction[:, None, :] for direction in (radial, tangent)]
        covariances = width**2 * outer[0] + (2 * width) ** 2 * outer[1]
        return cls(1 + torch.arange(num_components) % 3, radius * radial, covariances)

    @classmethod
    def random(cls, num_features: int, num_components: int, width: float = 0.3, seed: int = 0) -> GaussianMixture:
        """Components of any direction and weight, in a space of normal means."""
        generator = torch.Generator().manual_seed(seed)
        means = torch.randn(num_components, num_features, generator=generator, dtype=torch.float64)
        factors = torch.randn(num_components, num_features, num_features, generator=generator, dtype=torch.float64)
        covariances = factors @ factors.mT * (width**2 / num_features)
        weights = 0.2 + torch.rand(num_components, generator=generator, dtype=torch.float64)
        floor = (width / 5) ** 2 * torch.eye(num_features, dtype=torch.float64)
        return cls(weights, means, covariances + floor)

    @property
    def mean(self) -> Tensor:
        """Mean ``[d]``."""
        return self.weights @ self.means

    @property
    def covariance(self) -> Tensor:
        """Covariance ``[d, d]``."""
        off = self.means - self.mean
        return torch.einsum("k,kij->ij", self.weights, self.covariances + off[:, :, None] * off[:, None, :])

    def normalised(self) -> GaussianMixture:
        """The same, shifted and scaled to mean 0 and variance 1 in every feature: what a diffusion model sees."""
        scale = self.covariance.diagonal().sqrt()
        return GaussianMixture(
            self.weights, (self.means - self.mean) / scale, self.covariances / (scale[:, None] * scale)
        )

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw ``[n, d]``, float64."""
        which = torch.multinomial(self.weights, n, replacement=True, generator=generator)
        z = torch.randn(n, self.means.shape[1], generator=generator, dtype=torch.float64)
        return self.means[which] + torch.einsum("nij,nj->ni", self._axes[which], self._variances[which].sqrt() * z)

    def log_prob(self, x: Tensor) -> Tensor:
        """log p of ``[n, d]``, in nats."""
        return torch.logsumexp(self._log_joint(*self._in_axes(x, torch.ones(()), torch.zeros(()))), -1)

    def marginal(self, t: float | Tensor, schedule: Schedule) -> GaussianMixture:
        """The mixture that :math:`x_t` follows, at one time."""
        alpha, sigma = schedule(torch.as_tensor(t, dtype=torch.float64))
        noise = sigma**2 * torch.eye(self.means.shape[1], dtype=torch.float64)
        return GaussianMixture(self.weights, alpha * self.means, alpha**2 * self.covariances + noise)

    def projected(self, direction: Tensor) -> GaussianMixture:
        """The mixture in one dimension that ``x @ direction`` follows."""
        variances = torch.einsum("i,kij,j->k", direction, self.covariances, direction)
        return GaussianMixture(self.weights, (self.means @ direction)[:, None], variances[:, None, None])

    def cdf(self, x: Tensor) -> Tensor:
        """Distribution function of a mixture in one dimension, at ``[n]``."""
        z = (x[:, None] - self.means[:, 0].to(x)) / self.covariances[:, 0, 0].sqrt().to(x)
        return torch.special.ndtr(z) @ self.weights.to(x)

    def denoise(self, x_t: Tensor, t: Tensor, schedule: Schedule) -> Tensor:
        r"""Return :math:`E[x_0 \mid x_t]` of ``x_t`` ``[n, d]`` at times ``t`` ``[n]`` or ``[]``."""
        alpha, sigma = (level.to(x_t)[..., None, None] for level in schedule(t))
        off, variances = self._in_axes(x_t, alpha, sigma)
        given = torch.softmax(self._log_joint(off, variances), -1)
        in_axes = alpha * self._variances.to(x_t) / variances * off
        means = self.means.to(x_t) + torch.einsum("kij,nkj->nki", self._axes.to(x_t), in_axes)
        return torch.einsum("nk,nki->ni", given, means)

    def score(self, x_t: Tensor, t: Tensor, schedule: Schedule) -> Tensor:
        r"""Return :math:`\nabla \log p(x_t)`, of the same shapes."""
        alpha, sigma = (level.to(x_t)[..., None] for level in schedule(t))
        return (alpha * self.denoise(x_t, t, schedule) - x_t) / sigma**2

    def velocity(self, x_t: Tensor, t: Tensor) -> Tensor:
        r"""Return :math:`E[\varepsilon - x_0 \mid x_t]` on straight paths, :math:`x_t = (1 - t) x_0 + t \varepsilon`.

        It takes the mixture to standard normal noise, and is finite at both ends.
        """
        alpha, sigma = (level.to(x_t)[..., None, None] for level in (1 - t, t))
        off, variances = self._in_axes(x_t, alpha, sigma)
        given = torch.softmax(self._log_joint(off, variances), -1)
        in_axes = (sigma - alpha * self._variances.to(x_t)) / variances * off
        each = (self._axes.to(x_t) @ in_axes[..., None]).squeeze(-1) - self.means.to(x_t)
        return (given[..., None] * each).sum(1)

    def _in_axes(self, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """Distances to every component in its own axes, and variances there, ``[n, k, d]``."""
        off = x_t[:, None, :] - alpha.to(x_t) * self.means.to(x_t)
        variances = alpha.to(x_t) ** 2 * self._variances.to(x_t) + sigma.to(x_t) ** 2
        return torch.einsum("kij,nki->nkj", self._axes.to(x_t), off), variances

    def _log_joint(self, off: Tensor, variances: Tensor) -> Tensor:
        quadratic = (off**2 / variances + variances.log()).sum(-1)
        return self.weights.log().to(off) - quadratic / 2 - off.shape[-1] / 2 * math.log(math.tau)


class Gaussian(GaussianMixture):
    """One Gaussian, of which the probability flow is known, too.

    Args:
        mean: ``[d]``.
        covariance: ``[d, d]``.
    """

    def __init__(self, mean: Tensor | Sequence[float], covariance: Tensor | Sequence[Sequence[float]]) -> None:
        mean, covariance = (torch.as_tensor(given, dtype=torch.float64) for given in (mean, covariance))
        super().__init__(torch.ones(1), mean[None], covariance[None])

    def transport(self, x: Tensor, t: float, s: float, schedule: Schedule) -> Tensor:
        """Return where the probability-flow ODE takes ``x`` ``[n, d]`` from time ``t`` to time ``s``.

        In the axes of the covariance the distance to the mean grows with the standard deviation.
        """
        times = torch.tensor([t, s], dtype=torch.float64)
        alpha, sigma = schedule(times)
        deviations = (alpha[:, None] ** 2 * self._variances + sigma[:, None] ** 2).sqrt()
        growth = (deviations[1] / deviations[0]).to(x)
        mean, axes = self.means[0].to(x), self._axes[0].to(x)
        off = (x - alpha[0].to(x) * mean) @ axes
        return alpha[1].to(x) * mean + (off * growth) @ axes.mT


def correlated(num_features: int) -> Gaussian:
    """A Gaussian of any axes, with standard deviations from 1 to below a tenth."""
    generator = torch.Generator().manual_seed(num_features)
    axes, _ = torch.linalg.qr(torch.randn(num_features, num_features, generator=generator, dtype=torch.float64))
    spread = torch.logspace(0, -1.1, num_features, dtype=torch.float64)
    return Gaussian(torch.zeros(num_features), axes @ torch.diag(spread**2) @ axes.mT)


def few_modes(num_features: int) -> GaussianMixture:
    """A mixture of three, or six on a ring, of mean 0 and variance 1 in every feature."""
    given = GaussianMixture.ring() if num_features == 2 else GaussianMixture.random(num_features, 3)
    return given.normalised()


def events(truth: GaussianMixture, n: int, off: float = 0.1) -> Tensor:
    """Draws ``[n, d]``, of which every fourth is moved off the bulk by so much in every feature."""
    generator = torch.Generator().manual_seed(1)
    x = truth.sample(n, generator)
    x[::4] += off * torch.randn(x[::4].shape, generator=generator, dtype=torch.float64)
    return x
