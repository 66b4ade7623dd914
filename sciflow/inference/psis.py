"""Pareto-smoothed importance sampling: how far weights can be trusted, and the same with a tail that is smoothed."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["GOOD", "USABLE", "pareto_smoothed", "verdict_on"]

GOOD, USABLE = 0.5, 0.7
_LEAST_TAIL = 5


def pareto_smoothed(log_weights: Tensor) -> tuple[Tensor, float]:
    r"""Fit a generalised Pareto distribution to the largest weights, and put its quantiles in their place.

    .. math:: p(w - u \mid w > u) = \frac{1}{\sigma} \left(1 + \frac{k (w - u)}{\sigma}\right)^{-1/k - 1}

    over the :math:`\min(S / 5, 3 \sqrt S)` largest of :math:`S` weights. With :math:`k < 0.5` weights have a variance;
    with :math:`k < 0.7` sums of them still converge in practice; beyond, they are in the hands of a few draws. From
    Vehtari et al., arXiv:1507.02646; the fit is that of Zhang and Stephens (2009), Technometrics 51, drawn towards 0.5
    with the weight of 10 draws.

    Args:
        log_weights: ``[n]``, of importance; -inf where the target is 0.

    Returns:
        Smoothed log weights ``[n]``, of sum 1, and k-hat; infinity where all weight lies on a handful of draws.

    Example:
        >>> noise = torch.rand(20_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        >>> _, k_hat = pareto_smoothed(-0.4 * noise.log())  # a Pareto tail of k = 0.4
        >>> abs(k_hat - 0.4) < 0.1
        True
    """
    log_weights = log_weights.double()
    log_weights = torch.where(torch.isnan(log_weights), -math.inf, log_weights)
    count = len(log_weights)
    normalised = log_weights - torch.logsumexp(log_weights, 0)
    tail_size = math.ceil(min(0.2 * count, 3 * math.sqrt(count)))
    if tail_size < _LEAST_TAIL or not torch.isfinite(normalised).any():
        return normalised, math.inf
    ordered, order = normalised.sort()
    tail, cutoff = ordered[-tail_size:], ordered[-tail_size - 1]
    if not torch.isfinite(cutoff):
        return normalised, math.inf
    highest = ordered[-1]
    excess = torch.exp(tail - highest) - torch.exp(cutoff - highest)
    if excess[-1] <= 1e-12:
        return normalised, -math.inf  # weights that are all the same: nothing is better
    k, sigma = _pareto_fit(excess.clamp_min(torch.finfo(excess.dtype).tiny))
    at = (torch.arange(tail_size, dtype=excess.dtype, device=excess.device) + 0.5) / tail_size
    quantiles = sigma * (torch.expm1(-k * torch.log1p(-at)) / k if abs(k) > 1e-12 else -torch.log1p(-at))
    smoothed = torch.log(quantiles + torch.exp(cutoff - highest)).clamp_max(0.0) + highest
    result = normalised.clone()
    result[order[-tail_size:]] = smoothed
    return result - torch.logsumexp(result, 0), k


def verdict_on(k_hat: float) -> str:
    """Say in one word what k-hat means.

    Example:
        >>> [verdict_on(k) for k in (0.1, 0.6, 0.9)]
        ['good', 'usable', 'poor']
    """
    return "good" if k_hat <= GOOD else "usable" if k_hat <= USABLE else "poor"


def _pareto_fit(excess: Tensor) -> tuple[float, float]:
    """Shape and scale of sorted excesses over a threshold, by a posterior mean over a grid of scales."""
    count = len(excess)
    grid = 30 + int(math.sqrt(count))
    steps = torch.arange(1, grid + 1, dtype=excess.dtype, device=excess.device)
    quartile = excess[int(count / 4 + 0.5) - 1]
    theta = 1 / excess[-1] + (1 - torch.sqrt(grid / (steps - 0.5))) / (3 * quartile)
    shapes = torch.log1p(-theta[:, None] * excess).mean(1)
    heights = count * (torch.log(-theta / shapes) - shapes - 1)
    weights = torch.softmax(heights.nan_to_num(-math.inf), 0)
    best = float((theta * weights).sum())
    k = float(torch.log1p(-best * excess).mean())
    sigma = -k / best
    return (count * k + 10 * 0.5) / (count + 10), sigma
