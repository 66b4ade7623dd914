"""Priors of temperature fields: a Gaussian whose covariance fades with distance, and a diffusion model built on it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor, nn

import sciflow as sf
from sciflow.contexts import Contexts
from sciflow.nets.denoising_mlp import DenoisingMLP

TEST_DAYS, GAP_DAYS, VALIDATION_DAYS = (8, 9, 19, 20, 29, 30), (7, 10, 18, 21, 28), (4, 14, 25)
NUM_SOURCES, PATCH_LENGTH, HOURS_APART = 8, 150.0, 2  # of blended fields
TAPER_LENGTH = 300.0  # km
STARTS = ("gaussian", "perceptron")
_CELL = 27.8  # km, a quarter of a degree of latitude


@dataclass(frozen=True)
class Fields:
    """Hourly fields less the diurnal cycle of the training hours, by day of the month.

    Attributes:
        anomaly: ``[time, height, width]``, K.
        cycle: ``[24, height, width]``, K: what was taken off at every hour of the day.
        places: ``[height * width, 2]``, km northwards and eastwards.
    """

    anomaly: Tensor
    cycle: Tensor
    places: Tensor

    @classmethod
    def read(cls, path: Path) -> Fields:
        """Read hourly fields that begin at midnight; the diurnal cycle is two harmonics a cell."""
        with xr.open_dataset(path) as dataset:
            field = next(iter(dataset.data_vars.values()))
            values = torch.from_numpy(field.values.astype(np.float64))
            latitude = field.latitude.values
        height, width = values.shape[1:]
        hour = torch.arange(len(values)) % 24
        rows = torch.cat([times_of(len(values), "train"), times_of(len(values), "validation")])
        design = clock(hour)
        coefficients = torch.linalg.lstsq(design[rows], values[rows].flatten(1)).solution
        cycle = (clock(torch.arange(24)) @ coefficients).reshape(24, height, width)
        east = _CELL * np.cos(np.deg2rad(latitude.mean()))
        grid = np.stack(np.meshgrid(_CELL * np.arange(height), east * np.arange(width), indexing="ij"), -1)
        return cls((values - cycle[hour]).float(), cycle.float(), torch.from_numpy(grid.reshape(-1, 2)))

    def rows(self, part: str) -> Tensor:
        """Anomalies ``[n, height, width]`` of ``"train"``, ``"validation"`` or ``"test"`` hours."""
        return self.anomaly[times_of(len(self.anomaly), part)]


def times_of(num_hours: int, part: str) -> Tensor:
    """Hours of whole days: those of test, with a day before and after that nobody sees, of validation, and the rest."""
    day = torch.arange(num_hours) // 24
    test, gap, validation = (torch.isin(day, torch.tensor(days)) for days in (TEST_DAYS, GAP_DAYS, VALIDATION_DAYS))
    chosen = {"test": test, "validation": validation, "train": ~(test | gap | validation)}[part]
    return chosen.nonzero()[:, 0]


def clock(hour: Tensor) -> Tensor:
    """One, and two harmonics of the hour of the day, ``[n, 5]``, float64."""
    angle = 2 * torch.pi * hour.double() / 24
    return torch.stack([torch.ones_like(angle), *(f(k * angle) for k in (1, 2) for f in (torch.cos, torch.sin))], 1)


def taper(places: Tensor, length: float) -> Tensor:
    """Gaussian of the distance between places ``[d, 2]``, ``[d, d]``: by it, far covariances of few fields fade."""
    return torch.exp(-0.5 * (torch.cdist(places, places) / length).square())


def blended(
    fields: Tensor, hour: Tensor, places: Tensor, num: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    r"""Mix fields of different days, each in a region of its own, so that few of them make many.

    .. math:: x(s) = \sum_k \sqrt{w_k(s)} \, x_{i_k}(s), \qquad w_k(s) \propto e^{-|s - c_k|^2 / 2 L^2},
              \qquad \sum_k w_k = 1

    Variances stay, and so does what goes on within a region; covariances fade with distance.

    Args:
        fields: ``[n, height, width]``, of mean 0 at any hour.
        hour: ``[n]``, of the day; fields that are mixed are of nearly the same.
        places: ``[height * width, 2]``.
        num: How many to make.
        generator: Of places and choices.

    Returns:
        ``[num, height, width]``, and their hours ``[num]``.
    """
    flat = fields.flatten(1)
    made, hours = torch.empty(num, flat.shape[1]), torch.randint(24, (num,), generator=generator)
    apart = (hour[None] - torch.arange(24)[:, None]) % 24
    near = [((row <= HOURS_APART) | (row >= 24 - HOURS_APART)).nonzero()[:, 0] for row in apart]
    for row, at in enumerate(hours.tolist()):
        centres = places[torch.randint(len(places), (NUM_SOURCES,), generator=generator)]
        share = torch.softmax(-0.5 * (torch.cdist(places, centres) / PATCH_LENGTH).square(), 1)
        chosen = near[at][torch.randint(len(near[at]), (NUM_SOURCES,), generator=generator)]
        made[row] = (share.sqrt().float() * flat[chosen].T).sum(1)
    return made.reshape(num, *fields.shape[1:]), hours


class GaussianDenoiser(nn.Module):
    r"""The network whose answer makes the denoiser that of N(0, C), with C of a few modes and a floor for the rest.

    .. math:: F = \sum_k u_k u_k^T z \, \frac{\sigma (\lambda_k - 1)}{\lambda_k + \sigma^2}, \qquad
              z = \frac{x_t}{\sqrt{1 + \sigma^2}}

    in the parametrisation ``"edm"``, for events of unit size.

    Args:
        covariance: ``[d, d]``, of normalised events.
        num_modes: The rest has the mean of the remaining eigenvalues.
    """

    modes: Tensor
    eigenvalues: Tensor
    floor: Tensor

    def __init__(self, covariance: Tensor, num_modes: int) -> None:
        super().__init__()
        eigenvalues, vectors = torch.linalg.eigh(covariance.double())
        rest, kept = eigenvalues[:-num_modes].clamp_min(0), eigenvalues[-num_modes:]
        self.register_buffer("modes", vectors[:, -num_modes:].flip(1).float())
        self.register_buffer("eigenvalues", kept.flip(0).float())
        self.register_buffer("floor", rest.mean().clamp_min(1e-5).float())

    def forward(self, x: Tensor, level: Tensor, context: Tensor | None = None) -> Tensor:
        sigma = torch.exp(4 * level)[:, None]
        flat = x.flatten(1)
        along = flat @ self.modes
        factor, floor = (sigma * (of - 1) / (of + sigma.square()) for of in (self.eigenvalues, self.floor))
        return (floor * flat + ((factor - floor) * along) @ self.modes.T).reshape(x.shape)

    def covariance(self) -> Tensor:
        """Of the normalised events that it is the denoiser of, ``[d, d]``, float64."""
        modes, floor = self.modes.double(), self.floor.double()
        beyond = (modes * (self.eigenvalues.double() - floor)) @ modes.T
        return beyond + floor * torch.eye(len(modes), dtype=torch.float64)


class GaussianAndMore(GaussianDenoiser):
    """The Gaussian's denoiser, and a perceptron of its leading modes that learns what the Gaussian does not know.

    It begins as the Gaussian: the perceptron's last layer starts at zero. What it reads of a mode has unit size at any
    noise, and what it says is in units of what the Gaussian leaves open.

    Args:
        covariance: As of :class:`GaussianDenoiser`.
        num_modes: Of the Gaussian.
        num_learned: Leading modes that the perceptron reads and answers for.
        contexts: Numbers that go with an event.
        hidden_features: Of the perceptron.
        dropout: Of the perceptron.
    """

    def __init__(
        self,
        covariance: Tensor,
        num_modes: int,
        num_learned: int,
        contexts: int,
        hidden_features: tuple[int, ...],
        dropout: float,
    ) -> None:
        super().__init__(covariance, num_modes)
        self.num_learned = num_learned
        self.more = DenoisingMLP(
            (num_learned,),
            Contexts({"clock": (contexts,)}),
            hidden_features=hidden_features,
            num_frequencies=0,
            dropout=dropout,
        )

    def forward(self, x: Tensor, level: Tensor, context: Tensor | None = None) -> Tensor:
        modes, eigenvalues = self.modes[:, : self.num_learned], self.eigenvalues[: self.num_learned]
        size = ((1 + torch.exp(8 * level))[:, None] / (eigenvalues + torch.exp(8 * level)[:, None])).sqrt()
        more = eigenvalues.sqrt() * size * self.more(size * (x.flatten(1) @ modes), level, context)
        return super().forward(x, level) + (more @ modes.T).reshape(x.shape)


def covariance_of(fields: Tensor, places: Tensor, length: float | None) -> Tensor:
    """Covariance ``[d, d]`` of fields ``[n, height, width]`` about their mean, float64; tapered, where asked."""
    covariance = fields.flatten(1).double().T.cov()
    return covariance if length is None else covariance * taper(places, length)


def normalised_covariance(fields: Tensor, places: Tensor) -> Tensor:
    """The tapered covariance of fields that are standardised cell by cell."""
    rows = fields / fields.std(0)
    return covariance_of(rows, places, TAPER_LENGTH)


def prior(fields: Tensor, places: Tensor, start: str | None, seed: int = 0) -> sf.diffusion.Diffusion:
    """A diffusion model of anomalies, not yet trained.

    Args:
        fields: ``[n, height, width]``, which say how events vary.
        places: ``[height * width, 2]``, km.
        start: Of what is learned: ``"gaussian"``, from the Gaussian of ``fields`` on; ``"perceptron"``, from nothing;
            None for the Gaussian itself.
        seed: Of the weights.
    """
    network: Any = {"mlp": {"hidden_features": (512, 512, 512), "num_frequencies": 0, "dropout": 0.1}}
    if start != "perceptron":
        covariance = normalised_covariance(fields, places)
        torch.manual_seed(seed)
        network = (
            GaussianDenoiser(covariance, 300)
            if start is None
            else GaussianAndMore(covariance, 300, 100, 4, (384, 384, 384), 0.1)
        )
    context_shape = None if start is None else (4,)
    return sf.diffusion.Diffusion(
        fields.shape[1:], context_shape=context_shape, network=network, context_dropout=0.0, seed=seed
    )
