"""Diffusion models and flow matching."""

import importlib
from typing import Any

from sciflow.diffusion.diffusion import Diffusion
from sciflow.diffusion.distillation import Student
from sciflow.diffusion.guidance import Autoguidance, ClassifierFree, ClassifierGuidance, Guidance
from sciflow.diffusion.inpainting import Inpainting
from sciflow.diffusion.observation import Observation
from sciflow.diffusion.schedules import Schedule, schedule

__all__ = [
    "Autoguidance",
    "ClassifierFree",
    "ClassifierGuidance",
    "Diffusion",
    "Guidance",
    "Inpainting",
    "Observation",
    "Schedule",
    "Student",
    "distill",
    "schedule",
]


def __getattr__(name: str) -> Any:
    # It trains, which is none of this package's business: it is only found here.
    if name == "distill":
        return importlib.import_module("sciflow.training.distill").distill
    raise AttributeError(f"module 'sciflow.diffusion' has no attribute {name!r}")
