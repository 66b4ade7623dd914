"""Whether an observation is like the simulations: where it is not, no network knows what to make of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from sciflow.inference.conditional.randomness import child_seed
from sciflow.inference.conditional.simulations import Simulations

__all__ = ["Surprise"]

_REFERENCE = 4000
_NEIGHBOURS = 5
_MOST_COMPONENTS = 32
_ROUNDING = 1e-5  # of the largest deviation: what varies by less hardly varies


@dataclass(frozen=True)
class Surprise:
    r"""A p-value of observations, by the distance to the nearest simulations.

    .. math:: p(x) = \frac{1 + \#\{i : d(x_i) \ge d(x)\}}{1 + n}

    with the distance :math:`d` to the fifth-nearest simulation, itself left out, in principal components of equal
    variance and what they leave over. Observations of the simulator get p-values that are uniform, whatever they are.

    Attributes:
        mean: Of the simulations, flat, ``[e]``.
        axes: Principal components, each divided by its deviation, ``[e, k]``.
        rest: Deviation of what the components leave over.
        reference: Simulations in components, ``[n, k + 1]``.
        distances: From each of them to the others, sorted, ``[n]``.
    """

    mean: Tensor
    axes: Tensor
    rest: Tensor
    reference: Tensor
    distances: Tensor

    @classmethod
    def of(cls, simulations: Simulations, seed: int) -> Surprise | None:
        """Learn from a part of the simulations; None where they are too few."""
        rows = _some(simulations, _REFERENCE, seed)
        if len(rows) < 10 * _NEIGHBOURS:
            return None
        mean = rows.mean(0)
        _, sizes, axes = torch.linalg.svd(rows - mean, full_matrices=False)
        deviations = sizes / (len(rows) - 1) ** 0.5
        # What does not vary, or by rounding alone, is told by the least that is taken for a deviation.
        least = (_ROUNDING * deviations[0]).clamp_min(torch.finfo(torch.float32).tiny)
        number = min(_MOST_COMPONENTS, len(deviations))
        scaled = axes[:number].T / deviations[:number].clamp_min(least)
        none = torch.empty(0, dtype=torch.float64)
        found = cls(mean, scaled, torch.ones((), dtype=torch.float64), none, none)
        rest = found._left_over(rows).square().mean().sqrt().clamp_min(least)
        found = replace(found, rest=rest)
        found = replace(found, reference=found._components(rows))
        return replace(found, distances=found._nearest(found.reference, _NEIGHBOURS + 1).sort().values)

    def p_value(self, x: Tensor) -> Tensor:
        """P-values of observations ``[*batch, e]``, flat: ``[*batch]``; 0 to 1, small where they are unlike."""
        rows = x.double().reshape(-1, len(self.mean))
        found = self._nearest(self._components(rows), _NEIGHBOURS)
        above = len(self.distances) - torch.searchsorted(self.distances, found.contiguous())
        return ((1 + above) / (1 + len(self.distances))).reshape(x.shape[:-1])

    @property
    def is_void(self) -> bool:
        """Whether all simulations are the same."""
        return bool((self.reference == self.reference[0]).all())

    def tensors(self) -> dict[str, Tensor]:
        """Its numbers by name, as a file holds them."""
        return {name: tensor.contiguous() for name, tensor in vars(self).items()}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> Surprise:
        """Undo :meth:`tensors`."""
        return cls(**tensors)

    def _components(self, rows: Tensor) -> Tensor:
        return torch.cat(((rows - self.mean) @ self.axes, (self._left_over(rows) / self.rest)[:, None]), -1)

    def _nearest(self, components: Tensor, number: int) -> Tensor:
        """Distance to the nearest but some of the simulations, ``[n]``."""
        parts = components.split(512)
        return torch.cat([torch.cdist(part, self.reference).kthvalue(number, dim=-1).values for part in parts])

    def _left_over(self, rows: Tensor) -> Tensor:
        """Length of what the components do not tell of rows, ``[n]``."""
        off = rows - self.mean
        units = self.axes / torch.linalg.vector_norm(self.axes, dim=0)
        inside = (off @ units).square().sum(-1)
        return (off.square().sum(-1) - inside).clamp_min(0).sqrt()


def _some(simulations: Simulations, most: int, seed: int) -> Tensor:
    """A random part of the observations, flat, in random order."""
    generator = np.random.default_rng(child_seed(seed, 77))
    share = min(1.0, 1.2 * most / max(1, len(simulations)))
    parts = [
        x[generator.random(len(x)) < share].reshape(-1, int(np.prod(simulations.x_shape)))
        for _, x in simulations.blocks()
    ]
    rows = np.concatenate(parts)
    return torch.from_numpy(rows[generator.permutation(len(rows))[:most]].astype("float64"))
