"""Distillation of diffusion models: students that draw in one to four evaluations."""

from sciflow.diffusion.distillation.student import METHODS, Student

__all__ = ["METHODS", "Student"]
