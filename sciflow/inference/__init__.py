"""Posteriors: of a density that is written down, or of a simulator; and what shows whether they are right."""

from __future__ import annotations

import importlib
from typing import Any

# Loaded when first used, as in ``sciflow`` itself; a new name joins by one line.
_HOMES: dict[str, str] = {
    "Constraint": "sciflow.inference.constraint",
    "DiffusionSampler": "sciflow.inference.variational.diffusion_sampler",
    "Parameters": "sciflow.inference.parameters",
    "as_constraint": "sciflow.inference.constraints",
    "fit_diffusion_sampler": "sciflow.inference.variational.sampler_training",
    "interval": "sciflow.inference.constraints",
    "ordered": "sciflow.inference.constraints",
    "positive": "sciflow.inference.constraints",
    "real": "sciflow.inference.constraints",
    "simplex": "sciflow.inference.constraints",
}

__all__: list[str] = [
    "Constraint",
    "DiffusionSampler",
    "Parameters",
    "as_constraint",
    "fit_diffusion_sampler",
    "interval",
    "ordered",
    "positive",
    "real",
    "simplex",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'sciflow.inference' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value
