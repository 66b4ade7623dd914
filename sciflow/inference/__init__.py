"""Posteriors: of a density that is written down, or of a simulator; and what shows whether they are right."""

from __future__ import annotations

import importlib
from typing import Any

# Loaded when first used, as in ``sciflow`` itself; a new name joins by one line.
_HOMES: dict[str, str] = {
    "C2ST": "sciflow.inference.diagnostics.c2st",
    "Coverage": "sciflow.inference.diagnostics.coverage",
    "LocalC2ST": "sciflow.inference.diagnostics.local_c2st",
    "PosteriorPredictive": "sciflow.inference.diagnostics.predictive",
    "SBC": "sciflow.inference.diagnostics.sbc",
    "TARP": "sciflow.inference.diagnostics.tarp",
    "c2st": "sciflow.inference.diagnostics.c2st",
    "expected_coverage": "sciflow.inference.diagnostics.coverage",
    "local_c2st": "sciflow.inference.diagnostics.local_c2st",
    "posterior_predictive": "sciflow.inference.diagnostics.predictive",
    "sbc": "sciflow.inference.diagnostics.sbc",
    "tarp": "sciflow.inference.diagnostics.tarp",
}

__all__: list[str] = [
    "C2ST",
    "SBC",
    "TARP",
    "Coverage",
    "LocalC2ST",
    "PosteriorPredictive",
    "c2st",
    "expected_coverage",
    "local_c2st",
    "posterior_predictive",
    "sbc",
    "tarp",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'sciflow.inference' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value
