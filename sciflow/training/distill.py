"""Distillation in one call: a student that draws in one to four evaluations."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sciflow.diffusion.diffusion import Diffusion
from sciflow.diffusion.distillation.progressive import Progressive
from sciflow.diffusion.distillation.student import Student
from sciflow.errors import ConfigError
from sciflow.training.fit import fit

__all__ = ["distill", "require_trained"]


def distill(
    teacher: Diffusion | str | Path,
    data: Any,
    method: str = "shortcut",
    num_steps: int = 2,
    *,
    validation: Any = None,
    context: Any = None,
    validation_context: Any = None,
    guidance: float = 1.0,
    network: Any = None,
    seed: int = 0,
    progress: bool = True,
    **training: Any,
) -> Student:
    """Teach a student to draw in few evaluations what its teacher draws in many.

    It is ``sf.fit(Student(teacher=teacher, ...), data)``, which gives the history, too; by method ``"progressive"``
    several of them, of which each halves the steps of the one before.

    Args:
        teacher: A trained :class:`sciflow.diffusion.Diffusion`, or the folder of one.
        data: As :func:`sciflow.fit` takes it, as are ``validation``, ``context`` and ``validation_context``. They
            should be those of the teacher; others say at which events the student is to be like it.
        method: See :class:`sciflow.diffusion.Student`.
        num_steps: Evaluations that a draw takes, 1 to 4.
        guidance: Scale of the classifier-free guidance of the teacher that is learned.
        network: None for one that begins with the teacher's weights.
        seed: Of hold-out, order and noise.
        progress: Show a progress bar on a terminal.
        **training: Any key of a workflow file's ``training`` section, such as ``max_steps=500``; of every stage, where
            there are several.

    Returns:
        The student, in evaluation mode. Printed, it says what it is; ``student.provenance`` says how it was trained.

    Raises:
        ConfigError: A setting is unknown or out of range, or there is no such teacher.

    Example:
        >>> import torch
        >>> teacher = Diffusion((2,), network={"mlp": {"hidden_features": (16, 16)}}, seed=0)
        >>> rows = torch.randn(300, 2, generator=torch.Generator().manual_seed(0))
        >>> student = distill(teacher, rows, method="progressive", num_steps=2, max_steps=20)
        >>> student.sample(5, seed=0).shape
        torch.Size([5, 2])
    """
    if teacher is None:
        raise ConfigError("teacher: give a trained Diffusion, or the folder of one; got None")
    held: dict[str, Any] = {"validation": validation, "validation_context": validation_context, "context": context}
    student = Student(
        teacher=teacher, method=method, num_steps=num_steps, guidance=guidance, network=network, seed=seed
    )
    require_trained(student.teacher)
    if isinstance(student.method, Progressive):
        wanted = student.num_steps
        for stage in student.method.stages(wanted):
            student.num_steps = stage
            fit(student, data, seed=seed, progress=progress, **held, **training)
            student.method = Progressive(previous=copy.deepcopy(student.flow_map))
        student.method, student.num_steps = Progressive(), wanted
    else:
        fit(student, data, seed=seed, progress=progress, **held, **training)
    return student


def require_trained(teacher: nn.Module | None) -> None:
    """Refuse a teacher whose own training has diverged, before anything is taught nonsense.

    Raises:
        ConfigError: Some of its weights are not finite.
    """
    if teacher is not None and not all(bool(torch.isfinite(weight).all()) for weight in teacher.parameters()):
        raise ConfigError("teacher: its weights are not finite: its training has diverged; train it again")
