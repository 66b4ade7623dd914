"""Posteriors of a simulator for all observations: what ``fit_conditional`` returns."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sciflow.arrays import numbers
from sciflow.density import Density
from sciflow.errors import DataError, ShapeError
from sciflow.inference.conditional.by_likelihood import ByLikelihood
from sciflow.inference.conditional.direct import Direct
from sciflow.inference.conditional.observed import ObservedPosterior, checked_count, checked_parameters
from sciflow.inference.conditional.prior import Prior
from sciflow.inference.conditional.randomness import seed_of
from sciflow.inference.conditional.simulations import Failures
from sciflow.inference.conditional.surprise import Surprise

__all__ = ["ConditionalPosterior", "describe"]

SURPRISING = 0.005


@dataclass(frozen=True, repr=False)
class ConditionalPosterior:
    """Densities of parameters given observations, for any observation.

    Attributes:
        method: ``"npe"``, ``"fmpe"``, ``"npse"`` or ``"nle"``.
        densities: Fitted ones, each on another share of the simulations, which count the same.
        prior: None where it is not known.
        x_shape: Shape of one observation.
        num_simulations: That the densities were fitted to.
        failures: Simulations that failed: parameters, and reasons.
        validation: What held-out simulations say of each density: log p in nats, or what else it is judged by.
        unit: Of ``validation``.
        surprise: Tells observations that are unlike the simulations; None where it does not.
        x_observed: Of later rounds, whose simulations were made for one observation, that one; else None.
        notes: What a user should know.
    """

    method: str
    densities: Sequence[Density]
    prior: Prior | None
    x_shape: tuple[int, ...]
    num_simulations: int
    failures: Failures
    validation: tuple[float, ...]
    unit: str = "nats"
    surprise: Surprise | None = None
    x_observed: Tensor | None = None
    notes: tuple[str, ...] = ()

    @property
    def known(self) -> Direct | ByLikelihood:
        """What draws, and knows log p."""
        if self.method == "nle":
            if self.prior is None:
                raise DataError("method nle: posteriors need the prior: give prior= when it is loaded")
            return ByLikelihood(self.densities, self.prior)
        return Direct(self.densities, self.prior)

    def posterior(self, x: Any) -> ObservedPosterior:
        """The posterior of one observation.

        Warns where the observation is unlike the simulations, whose posterior nobody then knows; and where simulations
        of later rounds were made for another one.

        Args:
            x: ``[*x_shape]``.

        Raises:
            DataError: It is no numbers, or not finite.
            ShapeError: It has another shape.
        """
        rows, batch = self._observations(x)
        if batch.numel() != 1:
            raise ShapeError(
                f"x: one observation {list(self.x_shape)} expected; got {batch.numel()}: use sample and log_prob"
            )
        surprise = None if self.surprise is None else float(self.surprise.p_value(rows)[0])
        if surprise is not None and surprise < SURPRISING:
            warnings.warn(
                f"the observation is unlike the simulations: of those, a share of {surprise:.2g} is as far from the "
                "others. The posterior there is a guess: look at the observation, the simulator and the prior",
                stacklevel=2,
            )
        self._require_trained_for(rows)
        return ObservedPosterior(self.known, rows[0], self.x_shape, surprise, self.method)

    def sample(self, n: int, x: Any, seed: int | torch.Generator | None = None) -> Tensor:
        """Draw parameters for many observations at once.

        Args:
            n: Draws for each observation.
            x: ``[*batch, *x_shape]``.
            seed: A seed, a generator, or None for torch's own.

        Returns:
            ``[n, *batch, d]``, in their own units, all of them possible to the prior.
        """
        rows, batch = self._observations(x)
        draws = self.known.sample(checked_count(n), rows, seed_of(seed))
        return draws.reshape(n, *batch, draws.shape[-1])

    def log_prob(self, theta: Any, x: Any) -> Tensor:
        """Return log p of parameters given observations, in nats and the parameters' own units.

        Args:
            theta: ``[*draws, *batch, d]``: of each observation one set of parameters, or many.
            x: ``[*batch, *x_shape]``.

        Returns:
            ``[*draws, *batch]``; -inf where the prior rules the parameters out.

        Raises:
            ShapeError: The batches do not fit together.
        """
        rows, batch = self._observations(x)
        known = self.known
        parameters, lead = checked_parameters(theta, known)
        # One observation for all parameters, or one of its own for each of the last ones.
        cases = batch.numel()
        if cases == 1:
            batch = torch.Size()
        if lead[len(lead) - len(batch) :] != batch:
            raise ShapeError(
                f"theta {[*lead, parameters.shape[-1]]} and x {[*batch, *self.x_shape]} do not fit: give theta "
                f"[*draws, *batch, {parameters.shape[-1]}] for x [*batch, {', '.join(map(str, self.x_shape))}]"
            )
        found = known.log_prob(parameters.reshape(-1, cases, parameters.shape[-1]), rows)
        return found.reshape(lead)

    def save(self, path: str | Path) -> Path:
        """Write a folder, which :func:`sciflow.inference.load_conditional` reads: JSON and safetensors.

        A prior is a function or an object, which no file holds: it is given again when the folder is read.
        """
        from sciflow.inference.conditional.saving import save

        return save(self, path)

    def _observations(self, x: Any) -> tuple[Tensor, torch.Size]:
        """Observations as rows ``[n, e]``, and the shape of their batch."""
        values = numbers(x, "x")
        if values.shape == () and self.x_shape == (1,):
            values = values[None]
        lead = values.ndim - len(self.x_shape)
        if lead < 0 or tuple(values.shape[lead:]) != tuple(self.x_shape):
            expected = ", ".join(("*batch", *map(str, self.x_shape)))
            raise ShapeError(f"x: observations [{expected}] expected; got {list(values.shape)}")
        batch = torch.Size(values.shape[:lead])
        rows = values.reshape(batch.numel(), math.prod(self.x_shape))
        bad = np.flatnonzero(~np.isfinite(rows).all(-1))
        if len(bad):
            raise DataError(
                f"x: observation {bad[0]} has missing or infinite values: fill or leave out what is missing"
            )
        return torch.from_numpy(np.ascontiguousarray(rows)).to(self.densities[0].dtype), batch

    def _require_trained_for(self, rows: Tensor) -> None:
        if self.x_observed is not None and not torch.allclose(rows[0], self.x_observed.to(rows).flatten()):
            warnings.warn(
                "the later rounds were simulated for another observation: of this one, parameters are missing; fit "
                "with rounds=1 for posteriors of any observation",
                stacklevel=3,
            )

    def __repr__(self) -> str:
        mean = sum(self.validation) / max(1, len(self.validation))
        members = "" if len(self.densities) == 1 else f"{len(self.densities)} densities, "
        return (
            f"ConditionalPosterior({self.method}, {members}{self.num_simulations:,} simulations, "
            f"validation {mean:.3f} {self.unit}, {len(self.failures):,} failed)"
        )


def describe(result: ConditionalPosterior) -> Mapping[str, Any]:
    """What a file says of it, as JSON holds it."""
    return {
        "method": result.method,
        "members": len(result.densities),
        "x_shape": list(result.x_shape),
        "num_simulations": result.num_simulations,
        "validation": list(result.validation),
        "unit": result.unit,
        "notes": list(result.notes),
        "failures": {"reasons": list(result.failures.reasons), "total": result.failures.total},
        "parameters": int(result.failures.parameters.shape[1]),
    }
