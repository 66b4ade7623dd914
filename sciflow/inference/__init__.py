"""Posteriors: of a density that is written down, or of a simulator; and what shows whether they are right."""

from __future__ import annotations

import importlib
from typing import Any

# Loaded when first used, as in ``sciflow`` itself; a new name joins by one line.
_HOMES: dict[str, str] = {
    "C2ST": "sciflow.inference.diagnostics.c2st",
    "ConditionalPosterior": "sciflow.inference.conditional.result",
    "Constraint": "sciflow.inference.constraint",
    "Coverage": "sciflow.inference.diagnostics.coverage",
    "DiffusionSampler": "sciflow.inference.variational.diffusion_sampler",
    "Evidence": "sciflow.inference.evidence",
    "LocalC2ST": "sciflow.inference.diagnostics.local_c2st",
    "LogDensity": "sciflow.inference.variational.log_density",
    "Parameters": "sciflow.inference.parameters",
    "Posterior": "sciflow.inference.posterior",
    "PosteriorPredictive": "sciflow.inference.diagnostics.predictive",
    "SBC": "sciflow.inference.diagnostics.sbc",
    "TARP": "sciflow.inference.diagnostics.tarp",
    "as_constraint": "sciflow.inference.constraints",
    "c2st": "sciflow.inference.diagnostics.c2st",
    "expected_coverage": "sciflow.inference.diagnostics.coverage",
    "fit_conditional": "sciflow.inference.conditional.fit",
    "fit_diffusion_sampler": "sciflow.inference.variational.sampler_training",
    "fit_posterior": "sciflow.inference.variational.fit_posterior",
    "interval": "sciflow.inference.constraints",
    "load_conditional": "sciflow.inference.conditional.saving",
    "local_c2st": "sciflow.inference.diagnostics.local_c2st",
    "ordered": "sciflow.inference.constraints",
    "positive": "sciflow.inference.constraints",
    "posterior_predictive": "sciflow.inference.diagnostics.predictive",
    "real": "sciflow.inference.constraints",
    "sbc": "sciflow.inference.diagnostics.sbc",
    "simplex": "sciflow.inference.constraints",
    "tarp": "sciflow.inference.diagnostics.tarp",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'sciflow.inference' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
