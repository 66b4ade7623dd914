"""Densities whose draws carry a gradient, with the log density of each: what a divergence to them is lowered by."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sciflow.density import Density

__all__ = ["Draws", "Reparametrised", "frozen"]


@dataclass(frozen=True)
class Draws:
    r"""Rows that a density was asked for.

    The mean over the density is :math:`E_q[f] \approx \sum_i s_i \, f(x_i)`.

    Attributes:
        x: ``[n, *event_shape]``, with a gradient along the path that each came.
        log_q: Their log density, ``[n]``.
        share: What each counts, :math:`s`, ``[n]``, of sum 1. Where a component was chosen, no path leads to the
            probability of the choice: its gradient is here.
    """

    x: Tensor
    log_q: Tensor
    share: Tensor


class Reparametrised(Density):
    """A density without context that draws with a gradient."""

    @abstractmethod
    def draw(self, n: int, generator: torch.Generator, wide: float = 0.0) -> Draws:
        """Draw rows independently of each other, and tell their log density.

        Args:
            n: Number of draws.
            generator: Of the noise.
            wide: Share of draws whose noise has heavy tails, for importance weights that are bounded where the target
                is wider; a density that has none leaves it out. ``log_q`` is that of both together.

        Returns:
            The draws, each of which counts the same.
        """

    @abstractmethod
    def draw_along_paths(self, n: int, generator: torch.Generator, even: bool = False) -> Draws:
        """Draw rows whose ``log_q`` has the gradient of the path alone, where that is to be had.

        Args:
            n: Number of draws.
            generator: Of the noise.
            even: As many draws of each component as of any other, which count by its weight; otherwise draws are
                independent of each other, and count the same.
        """


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
