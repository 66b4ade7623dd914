"""What is fitted, and how: densities of simulations that are there."""

from __future__ import annotations

import copy
import operator
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch

from sciflow.config import Training, validate
from sciflow.data.store import Store
from sciflow.density import Density
from sciflow.errors import ConfigError, DataError
from sciflow.inference.conditional.methods import Method, member, method_of, unit_of
from sciflow.inference.conditional.prior import Prior
from sciflow.inference.conditional.randomness import checked_seed, child_seed
from sciflow.inference.conditional.result import ConditionalPosterior
from sciflow.inference.conditional.simulations import Simulations
from sciflow.inference.conditional.support import Support
from sciflow.inference.conditional.surprise import Surprise
from sciflow.training.fit import Fit, fit

__all__ = ["LEAST_SIMULATIONS", "Task"]

LEAST_SIMULATIONS = 20
_MOST_MEMBERS = 100
_SETTINGS = "sciflow.inference.fit_conditional"


@dataclass(frozen=True)
class Task:
    """A method, its density, and how that is trained; :meth:`of` checks them.

    Attributes:
        method: Which way.
        density: A density of the user's, family and arguments, or None.
        embedding: Of observations, as the user says it.
        members: How many densities.
        dtype: ``"float32"`` or ``"float64"``.
        seed: Of weights and training.
        progress: Show a progress bar.
        settings: Of training.
    """

    method: Method
    density: Density | Mapping[str, Any] | None
    embedding: Any
    members: int
    dtype: Literal["float32", "float64"]
    seed: int
    progress: bool
    settings: Mapping[str, Any]

    @classmethod
    def of(
        cls,
        method: Any,
        density: Any,
        embedding: Any,
        members: Any,
        dtype: Any,
        seed: Any,
        progress: bool,
        settings: Mapping[str, Any],
    ) -> Task:
        """Check what a user says.

        Raises:
            ConfigError: Something is unknown, out of range, or does not go with the rest.
        """
        chosen = method_of(method)
        if dtype not in ("float32", "float64"):
            raise ConfigError(f"dtype {dtype!r:.80}: float32 or float64")
        number = 1 if isinstance(density, Density) else chosen.members
        if members is not None:
            try:
                number = 0 if isinstance(members, bool) else operator.index(members)
            except TypeError:
                number = 0
            if not 1 <= number <= _MOST_MEMBERS:
                raise ConfigError(f"members {members!r:.80}: 1 to {_MOST_MEMBERS} densities are fitted")
        seed = checked_seed(seed)
        validate(Training, {**settings, "seed": 0}, _SETTINGS)
        return cls(chosen, density, embedding, number, dtype, seed, progress, settings)

    def fit(self, simulations: Simulations, prior: Prior | None, store: Store | None) -> ConditionalPosterior:
        """Fit the densities.

        Args:
            simulations: That are there.
            prior: Of the parameters; None where it is not known.
            store: The same simulations, as training streams them; None to train in memory.

        Raises:
            DataError: Too many failed, or there are too few.
        """
        d = simulations.num_parameters
        if prior is not None and prior.num_parameters != d:
            raise DataError(f"prior: of {prior.num_parameters} parameters, and the simulations have {d}")
        simulations.require_enough()
        if len(simulations) < LEAST_SIMULATIONS:
            raise DataError(f"{len(simulations)} simulations: {LEAST_SIMULATIONS} at the least are needed")
        support = Support.of(None, d) if prior is None else prior.support
        fits = [self._member(simulations, support, store, number) for number in range(self.members)]
        surprise = Surprise.of(simulations, self.seed)
        notes = simulations.notes(of_likelihood=self.method.event == "x")
        if surprise is not None and surprise.is_void:
            notes.append("x is the same in all simulations: it tells nothing of the parameters; look at the simulator")
        for note in notes:
            warnings.warn(note, stacklevel=4)
        return ConditionalPosterior(
            method=self.method.name,
            densities=[fit.density for fit in fits],
            prior=prior,
            x_shape=simulations.x_shape,
            num_simulations=len(simulations),
            failures=simulations.failures,
            validation=tuple(fit.validation.mean for fit in fits),
            unit=unit_of(fits[0].density),
            surprise=surprise,
            notes=tuple(notes),
        )

    def _member(self, simulations: Simulations, support: Support, store: Store | None, number: int) -> Fit:
        seed = child_seed(self.seed, number, 5)
        density = member(self.method, self.density, self.embedding, support, simulations.x_shape, seed)
        if self.members > 1 and isinstance(self.density, Density):
            density = copy.deepcopy(density)
        density = density.double() if self.dtype == "float64" else density
        # Of the method's own density; another family has its own.
        own = self.method.settings_for(len(simulations)) if self.density is None else {}
        settings = {**own, **self.settings, "seed": seed, "progress": self.progress}
        if store is not None:
            return fit(density, store, **settings)
        theta, x = simulations.arrays()
        rows = torch.from_numpy(theta), torch.from_numpy(x.reshape(len(x), -1))
        if self.method.event == "x":
            return fit(density, torch.from_numpy(x), context=rows[0], **settings)
        return fit(density, rows[0], context=rows[1], **settings)
