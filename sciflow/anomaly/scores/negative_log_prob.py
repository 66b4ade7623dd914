"""Minus log p: how surprising a row is to a density."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from sciflow.anomaly.scores.base import Score
from sciflow.anomaly.scores.denoising_error import DenoisingError
from sciflow.arguments import plain
from sciflow.density import Density
from sciflow.diffusion import Diffusion

__all__ = ["NegativeLogProb"]


class NegativeLogProb(Score):
    r"""Surprise in nats, :math:`-\log p(x)`, in the units of the data.

    Args:
        density: Any trained density.
        method: How log p is to be known, ``"exact"``, ``"ode"`` or ``"elbo"``; None for the family's own.
        **options: Of the method.

    Example:
        >>> import torch
        >>> from sciflow.flows import NSF
        >>> NegativeLogProb(NSF((2,), num_transforms=1))(torch.zeros(3, 2)).shape
        torch.Size([3])
    """

    name = "nll"
    has_gradient = True

    def __init__(self, density: Density, method: str | None = None, **options: Any) -> None:
        super().__init__(density, method=method, **{key: plain(f"option {key}", v) for key, v in options.items()})

    def attribution(self, x: Tensor, context: Tensor | None) -> Tensor | None:
        """Of a diffusion model, what it is off by in every element when it takes noise off; None of others."""
        density = self.densities[0]
        return DenoisingError(density).attribution(x, context) if isinstance(density, Diffusion) else None

    def _scores(self, x: Tensor, context: Tensor | None) -> Tensor:
        options = {name: value for name, value in self.arguments.items() if name != "method"}
        return -self.densities[0].likelihood(x, context, self.arguments["method"], **options).log_prob
