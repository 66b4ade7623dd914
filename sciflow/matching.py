"""Which noise and which times go with the events of a batch while training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from sciflow.contexts import Contexts
from sciflow.errors import ConfigError

__all__ = ["PAIRINGS", "Pairing", "paired", "require_pairable", "spread_evenly"]

Pairing = Literal["independent", "optimal-transport"]
PAIRINGS: Sequence[Pairing] = ("independent", "optimal-transport")

_AT_A_TIME = 512  # the cost grows with the cube: larger batches are paired part by part


def paired(noise: Tensor, y: Tensor) -> Tensor:
    """Return the noise in the order in which it lies closest to the events: minibatch optimal transport.

    Paths of noise and event cross less, so that trajectories are straighter, and fewer steps do. What a batch pairs
    is an approximation of the transport between the whole distributions, and biased for few rows. Source: Tong et al.,
    arXiv:2302.00482; Pooladian et al., arXiv:2304.14772.

    Args:
        noise: ``[n, *event_shape]``.
        y: ``[n, *event_shape]``.

    Example:
        >>> paired(torch.tensor([[5.0], [-5.0]]), torch.tensor([[-1.0], [1.0]])).tolist()
        [[-5.0], [5.0]]
    """
    from scipy.optimize import linear_sum_assignment  # slow to import

    parts = []
    for ours, theirs in zip(noise.split(_AT_A_TIME), y.split(_AT_A_TIME), strict=True):
        cost = torch.cdist(theirs.detach().flatten(1).float(), ours.flatten(1).float()).square()
        _, order = linear_sum_assignment(torch.nan_to_num(cost).cpu().numpy())
        parts.append(ours[torch.from_numpy(order).to(ours.device)])
    return torch.cat(parts) if parts else noise


def require_pairable(whose: str, pairing: str, contexts: Contexts | None) -> None:
    """Refuse to pair the noise with events that are conditioned on something.

    Args:
        whose: Begins the message.
        pairing: One of ``PAIRINGS``.
        contexts: What events are conditioned on, or None.

    Raises:
        ConfigError: Optimal transport is asked for, and they are.
    """
    if pairing == "optimal-transport" and contexts is not None:
        raise ConfigError(
            f"{whose}: pairing: optimal transport would pair the noise with events of any context, which bends "
            "p(x | c): leave it out, or the context"
        )


def spread_evenly(n: int, device: torch.device, generator: torch.Generator | None = None) -> Tensor:
    """Return ``n`` shares, one in each nth of (0, 1): a grid, moved by chance.

    The mean over a batch then hardly depends on luck with times: arXiv:2107.00630, appendix I.1.

    Example:
        >>> spread_evenly(4, torch.device("cpu")).mul(4).floor().tolist()
        [0.0, 1.0, 2.0, 3.0]
    """
    shift = torch.rand((), dtype=torch.float64, device=device, generator=generator)
    return (torch.arange(n, device=device) + shift) / max(1, n)
