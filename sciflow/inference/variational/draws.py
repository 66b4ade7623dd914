"""Draws of a flow that carry gradients, and their log density."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sciflow.flows import IAF, NSF, Flow
from sciflow.flows.base import FullGaussianMixture

__all__ = ["Draws", "draw", "frozen", "has_quick_encode"]


@dataclass(frozen=True)
class Draws:
    """Rows that a flow was asked for.

    Attributes:
        x: ``[n, d]``.
        log_q: ``[n]``, by the way they came.
        component: Which component of the base each is of, ``[n]``; None where there is one.
    """

    x: Tensor
    log_q: Tensor
    component: Tensor | None


def draw(flow: Flow, n: int, generator: torch.Generator, wide: float = 0.0) -> Draws:
    """Draw rows with a gradient, and their log density, in one pass.

    Args:
        flow: Of rows ``[d]``.
        n: Number of draws.
        generator: Of the noise.
        wide: Share of draws whose noise has heavy tails, for importance weights that are bounded where the density is
            wider than the flow; a flow whose base is no mixture of full Gaussians has none. ``log_q`` is that of both.
    """
    base, component = flow.base, None
    if isinstance(base, FullGaussianMixture):
        z, component = base.draw(n, generator, wide)
        log_base = base.log_prob(z)
        if wide:
            log_base = torch.logaddexp(math.log1p(-wide) + log_base, math.log(wide) + base.log_prob_wide(z))
        component = component if len(base.log_weights) > 1 else None
    else:
        z = base.sample(n, generator, flow.dtype, flow.device)
        log_base = base.log_prob(z)
    y, log_det = flow.transform.inverse(z.reshape(n, *flow.transform.event_shape))
    x, log_units = flow.preprocess.inverse(y.reshape(z.shape))  # type: ignore[operator]
    return Draws(x, log_base - log_det - log_units, component)


def has_quick_encode(flow: Flow) -> bool:
    """Whether log q of given rows costs one pass: then path gradients do, too."""
    return not isinstance(flow, IAF) and not (isinstance(flow, NSF) and flow.arguments.get("autoregressive"))


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """Keep gradients from the weights, not from what passes through.

    Example:
        >>> layer = nn.Linear(1, 1)
        >>> x = torch.ones(1, requires_grad=True)
        >>> with frozen(layer):
        ...     layer(x).sum().backward()
        >>> x.grad is not None, layer.weight.grad is None
        (True, True)
    """
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)
