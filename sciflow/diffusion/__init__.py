"""Diffusion models and flow matching."""

from sciflow.diffusion.diffusion import Diffusion
from sciflow.diffusion.schedules import Schedule, schedule

__all__ = ["Diffusion", "Schedule", "schedule"]
