"""How a fit comes near to its density: by ascents, and by particles that are annealed to it."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from sciflow.inference.variational.annealing import Annealed, anneal
from sciflow.inference.variational.gaussians import FullGaussian
from sciflow.inference.variational.log_density import LogDensity
from sciflow.inference.variational.pathfinder import laplace, pathfinder
from sciflow.inference.variational.propriety import require_proper

__all__ = ["INITIALS", "Approach"]

INITIALS = ("annealed", "pathfinder", "laplace")
_RUNAWAYS = 256  # draws
_WIDENED = 2.0  # standard deviations of the Gaussian that particles start from, over those that were found


class Approach:
    """Rows about where a density is, from which a family is set up.

    Args:
        target: What is approached.
        generator: Of everything that is drawn.
        initial: ``"annealed"``: particles, annealed from a Gaussian over all that ascents have found, in every mode;
            ``"pathfinder"``: draws of the Gaussian of largest evidence bound on the way of the ascents;
            ``"laplace"``: draws of the Gaussian of the curvature at the highest mode.
        num_rows: How many.
        start: Rows ``[n, d]`` at which the first ascents begin; None for none.

    Attributes:
        paths: Of the ascents.

    Raises:
        DataError: The density is finite nowhere that was looked at, or it is improper.

    Example:
        >>> density = LogDensity(lambda x: -0.5 * ((x - 3) ** 2).sum(-1), event_shape=2)
        >>> near = Approach(density, torch.Generator().manual_seed(0), "laplace", 1000)
        >>> bool((near.rows.mean(0) - 3).abs().max() < 0.2)
        True
    """

    def __init__(
        self,
        target: LogDensity,
        generator: torch.Generator,
        initial: str,
        num_rows: int,
        start: Tensor | None = None,
    ) -> None:
        self.initial = initial
        self._target, self._generator, self._num_rows = target, generator, num_rows
        self.paths = pathfinder(target, generator, start=start)
        if self.paths.unsettled == len(self.paths.heights):
            # Nowhere to stop: as a rule there is none, and annealing would take long to find that out.
            require_proper(target, self.paths.best().sample(_RUNAWAYS, generator), generator, least_scale=1.0)
        require_proper(target, self.rows, generator)

    @cached_property
    def rows(self) -> Tensor:
        """``[n, d]``, unconstrained."""
        return (
            self.particles.x if self.initial == "annealed" else self._gaussian().sample(self._num_rows, self._generator)
        )

    @cached_property
    def particles(self) -> Annealed:
        """Particles of the density, annealed when they are first asked for."""
        return anneal(self._target, self.paths.pooled().widened(_WIDENED), self._generator, self._num_rows)

    def _gaussian(self) -> FullGaussian:
        return self.paths.best() if self.initial == "pathfinder" else laplace(self._target, self.paths)
