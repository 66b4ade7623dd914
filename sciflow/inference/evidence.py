"""log Z: the evidence, with its standard error and how it came about."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

__all__ = ["Evidence", "bridge", "effective_share", "importance"]

_ROUNDS, _SETTLED = 200, 1e-10


@dataclass(frozen=True)
class Evidence:
    """An estimate of log Z.

    Attributes:
        value: In nats.
        standard_error: In nats.
        method: ``"importance"`` sampling, a ``"bridge"`` to particles of the posterior, or ``"annealed"`` sampling.
    """

    value: float
    standard_error: float
    method: Literal["importance", "bridge", "annealed", "paths"]

    def __float__(self) -> float:
        return self.value

    def __repr__(self) -> str:
        return f"{self.value:.{_digits(self.standard_error)}f} +- {self.standard_error:.2g} nats ({self.method})"


def importance(
    log_weights: Tensor, method: Literal["importance", "paths"] = "importance", k_hat: float = 0.0
) -> Evidence:
    r"""The mean of importance weights, :math:`\log \frac{1}{n} \sum_i w_i`.

    Weights whose tail has a shape :math:`k > 1/2` have no variance, and their mean converges as :math:`n^{k - 1}`, not
    as :math:`n^{-1/2}` (the generalised central limit theorem): the standard error is then :math:`n^{k - 1/2}` times
    what their spread says.

    Args:
        log_weights: ``[n]``; -inf where the target is 0.
        method: What the weights are of.
        k_hat: Shape of their tail, see :func:`sciflow.inference.psis.pareto_smoothed`.

    Example:
        >>> importance(torch.zeros(100))
        0.000 +- 0 nats (importance)
    """
    log_weights = log_weights.double()
    value = torch.logsumexp(log_weights, 0) - math.log(len(log_weights))
    relative = torch.exp(log_weights - value)
    slower = len(relative) ** max(0.0, min(k_hat, 1.0) - 0.5)
    return Evidence(float(value), slower * float(relative.std() / math.sqrt(len(relative))), method)


def effective_share(log_weights: Tensor) -> float:
    r"""Effective sample size over the number of draws, :math:`(\sum w)^2 / (n \sum w^2)`.

    Example:
        >>> round(effective_share(torch.tensor([0.0, 0.0, -1e9, -1e9])), 6)
        0.5
    """
    weights = torch.softmax(log_weights.double(), 0)
    return float(1 / (len(weights) * weights.square().sum()))


def bridge(log_weights: Tensor, log_weights_of_particles: Tensor) -> Evidence:
    r"""Bridge sampling between draws of q and particles of the posterior.

    .. math:: Z = \frac{\mathbb{E}_q[\alpha \, \tilde p]}{\mathbb{E}_p[\alpha \, q]}, \qquad
              \alpha \propto (s_p \tilde p / Z + s_q q)^{-1}

    by iteration. It is right where the two overlap, even if the tails of q are too light for importance weights. From
    Meng and Wong (1996), Statistica Sinica 6; the error is that of Frühwirth-Schnatter (2004), Econometrics Journal 7,
    for particles that are independent.

    Args:
        log_weights: ``log p~ - log q`` at draws of q, ``[n]``.
        log_weights_of_particles: The same at particles of the posterior, ``[m]``.

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> q, p = torch.randn(2, 4000, generator=generator)
        >>> p = p + 1.0  # q is N(0, 1), and p~ e^3 times N(1, 1)
        >>> found = bridge(3 + q - 0.5, 3 + p - 0.5)
        >>> abs(found.value - 3) < 0.1 and found.standard_error < 0.05
        True
    """
    ours = log_weights.double()
    theirs = log_weights_of_particles.double()
    ours, theirs = ours.nan_to_num(-math.inf, neginf=-math.inf), theirs[torch.isfinite(theirs)]
    n, m = len(ours), len(theirs)
    log_n, log_m = math.log(n / (n + m)), math.log(m / (n + m))
    log_z = torch.logsumexp(ours, 0) - math.log(n)
    for _ in range(_ROUNDS):
        above = torch.logsumexp(ours - torch.logaddexp(log_m + ours, log_n + log_z), 0) - math.log(n)
        below = torch.logsumexp(-torch.logaddexp(log_m + theirs, log_n + log_z), 0) - math.log(m)
        new = above - below
        settled = abs(new - log_z) < _SETTLED
        log_z = new
        if settled:
            break
    share_ours = torch.exp(ours - log_z - torch.logaddexp(log_m + ours - log_z, torch.full_like(ours, log_n)))
    share_theirs = torch.exp(-torch.logaddexp(log_m + theirs - log_z, torch.full_like(theirs, log_n)))
    variance = _relative_variance(share_ours) / n + _relative_variance(share_theirs) / m
    return Evidence(float(log_z), math.sqrt(variance), "bridge")


def _relative_variance(x: Tensor) -> float:
    return float(x.var() / x.mean().square().clamp_min(torch.finfo(x.dtype).tiny))


def _digits(error: float) -> int:
    return 3 if not 0 < error < 1 else min(6, max(2, 1 - math.floor(math.log10(error))))
