"""Densities to draw from, as if they had been trained, and what was drawn."""

from __future__ import annotations

from pathlib import Path

import torch
import xarray as xr

import sciflow as sf
from sciflow.errors import ConfigError

__all__ = ["Spy", "Stepping", "diffusion", "opened", "spied"]


class Stepping(sf.flows.NSF):
    """A flow that takes options, as the samplers of diffusion models do."""

    family = "stepping"

    def _sample(self, n, context, generator, *, num_steps=1, path=False, **others):
        if others:
            raise ConfigError(f"unknown option {next(iter(others))}; did you mean num_steps?")
        draws = super()._sample(n, context, generator) + num_steps
        return torch.stack([draws, draws]) if path else draws


class Spy(sf.flows.NSF):
    """Counts its draws, and may be stopped at one of them."""

    stop_at: int | None = None

    def sample(self, n, *rest, **named):
        if n:
            self.seen = [*getattr(self, "seen", []), n]
            if len(self.seen) == self.stop_at:
                self.stop_at = None
                raise KeyboardInterrupt
        return super().sample(n, *rest, **named)


def spied(kind: type[sf.flows.NSF] = Spy, **arguments) -> sf.flows.NSF:
    density = kind((2,), **{"num_transforms": 1, "hidden_features": (8,), "seed": 0} | arguments)
    # As if it had been trained: a new one is the identity, whatever its context.
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in density.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return density


def diffusion(seed: int = 0) -> sf.diffusion.Diffusion:
    density = sf.diffusion.Diffusion((40,), network={"mlp": {"hidden_features": (8,)}}, seed=seed)
    with torch.no_grad():
        for parameter in density.parameters():
            parameter.normal_(std=0.3, generator=torch.Generator().manual_seed(seed))
    return density


def opened(path: Path | str) -> xr.Dataset:
    return xr.open_zarr(path).load()
