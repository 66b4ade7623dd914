"""log p of a diffusion model by its probability-flow ODE, and its events as noise and back."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from sciflow.diffusion.denoiser import Denoiser
from sciflow.diffusion.probability_flow import ProbabilityFlow
from sciflow.likelihood import Likelihood
from sciflow.ode import likelihood as by_ode
from sciflow.ode.options import likelihood_options

__all__ = ["ode_likelihood", "to_events", "to_noise"]


def ode_likelihood(denoiser: Denoiser, y: Tensor, context: Tensor | None, options: Mapping[str, Any]) -> Likelihood:
    r"""Compute log p of normalised events by the probability-flow ODE.

    .. math:: \log p(y) = \log N(z_1; 0, 1) + \int_0^1 \operatorname{tr} \frac{\partial f}{\partial z} \, du
              - d \log s

    Source: Chen et al., arXiv:1806.07366; Song et al., arXiv:2011.13456; see
    :class:`sciflow.diffusion.probability_flow.ProbabilityFlow` for the variables, and
    :func:`sciflow.ode.log_det.change_along` for the error.

    Args:
        denoiser: Of the density.
        y: ``[n, *event_shape]``, normalised.
        context: ``[n, *context_shape]``, normalised, or None.
        options: See :func:`sciflow.ode.options.likelihood_options`.

    Returns:
        Entries ``[n]``, nats in normalised units.
    """
    num_features = math.prod(y.shape[1:])
    chosen = likelihood_options(options, num_features, y.dtype)
    z = (y / denoiser.data_std.to(y.dtype)).flatten(1)
    found = by_ode.likelihood_of(_flow(denoiser, y), z, context, chosen, denoiser)
    units = num_features * denoiser.data_std.double().log()
    return replace(found, log_prob=(found.log_prob.double() - units).to(y.dtype))


def to_noise(denoiser: Denoiser, y: Tensor, context: Tensor | None, tolerance: float) -> Tensor:
    """Take normalised events along the probability-flow ODE to standard normal noise.

    Args:
        denoiser: Of the density.
        y: ``[n, *event_shape]``, normalised.
        context: ``[n, *context_shape]``, normalised, or None.
        tolerance: How much of log p noise may be off, in nats.

    Returns:
        ``[n, *event_shape]``; NaN where there is no way.
    """
    z = (y / denoiser.data_std.to(y.dtype)).flatten(1)
    return by_ode.to_noise(_flow(denoiser, y), z, context, tolerance, denoiser).reshape(y.shape)


def to_events(denoiser: Denoiser, z: Tensor, context: Tensor | None, tolerance: float) -> Tensor:
    """Undo :func:`to_noise`."""
    y = by_ode.to_events(_flow(denoiser, z), z.flatten(1), context, tolerance, denoiser)
    return denoiser.data_std.to(z.dtype) * y.reshape(z.shape)


def _flow(denoiser: Denoiser, y: Tensor) -> by_ode.Given:
    return lambda context: ProbabilityFlow(denoiser, context, y.shape[1:])
