"""Posteriors: of a density that is written down, or of a simulator; and what shows whether they are right."""

from __future__ import annotations

import importlib
from typing import Any

# Loaded when first used, as in ``sciflow`` itself; a new name joins by one line.
_HOMES: dict[str, str] = {
    "ConditionalPosterior": "sciflow.inference.conditional.result",
    "fit_conditional": "sciflow.inference.conditional.fit",
    "load_conditional": "sciflow.inference.conditional.saving",
}

__all__: list[str] = ["ConditionalPosterior", "fit_conditional", "load_conditional"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'sciflow.inference' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value
