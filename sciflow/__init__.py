"""Distributed density estimation for scientists.

Example:
    >>> import sciflow as sf
    >>> import torch
    >>> rows = torch.randn(500, 3, generator=torch.Generator().manual_seed(0))
    >>> fitted = sf.fit(sf.flows.NSF((3,), num_transforms=1, seed=0), rows, max_steps=10)
    >>> fitted.density.log_prob(rows[:5]).shape
    torch.Size([5])
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from sciflow.version import __version__ as __version__

if TYPE_CHECKING:
    from sciflow import anomaly, bijections, contexts, diffusion, errors, flows, inference
    from sciflow.anomaly.detector import Detector
    from sciflow.anomaly.scheduled.detect import detect
    from sciflow.data.shard import shard
    from sciflow.data.store import Store, open_store
    from sciflow.density import Density, Likelihood, Status
    from sciflow.families import load
    from sciflow.interpolation import interpolate
    from sciflow.scoring.samples import write_samples
    from sciflow.scoring.score import score
    from sciflow.training.distill_to_flow import distill_to_flow
    from sciflow.training.fit import Fit, fit
    from sciflow.training.run import Run
    from sciflow.training.train import train

# Loaded when first used: a script that only reads scores pays for no Ray, and one that only trains for no matplotlib.
_HOMES = {
    "Density": "sciflow.density",
    "Detector": "sciflow.anomaly.detector",
    "Fit": "sciflow.training.fit",
    "Likelihood": "sciflow.density",
    "Run": "sciflow.training.run",
    "Status": "sciflow.density",
    "Store": "sciflow.data.store",
    "detect": "sciflow.anomaly.scheduled.detect",
    "distill_to_flow": "sciflow.training.distill_to_flow",
    "fit": "sciflow.training.fit",
    "interpolate": "sciflow.interpolation",
    "load": "sciflow.families",
    "open_store": "sciflow.data.store",
    "score": "sciflow.scoring.score",
    "shard": "sciflow.data.shard",
    "train": "sciflow.training.train",
    "write_samples": "sciflow.scoring.samples",
}
_SUBPACKAGES = ("anomaly", "bijections", "contexts", "diffusion", "errors", "flows", "inference")

__all__ = [
    "Density",
    "Detector",
    "Fit",
    "Likelihood",
    "Run",
    "Status",
    "Store",
    "anomaly",
    "bijections",
    "contexts",
    "detect",
    "diffusion",
    "distill_to_flow",
    "errors",
    "fit",
    "flows",
    "inference",
    "interpolate",
    "load",
    "open_store",
    "score",
    "shard",
    "train",
    "write_samples",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        value = getattr(importlib.import_module(_HOMES[name]), name)
    elif name in _SUBPACKAGES:
        value = importlib.import_module(f"sciflow.{name}")
    else:
        raise AttributeError(f"module 'sciflow' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
