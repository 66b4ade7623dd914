"""Diffusion models and flow matching."""

from sciflow.diffusion.diffusion import Diffusion
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
    "schedule",
]
