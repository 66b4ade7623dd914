"""What the ways to teach a student have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from sciflow.diffusion.distillation.flow_map import FlowMap
from sciflow.diffusion.rows import over_events

__all__ = ["Lesson", "Method"]


@dataclass(frozen=True)
class Lesson:
    """What a student is taught with, for one batch.

    Attributes:
        flow_map: Of the student.
        teacher: ``teacher(z, level, context)``: the teacher's mean of clean events, of noisy ones over their alpha,
            without gradient; None where it is not asked.
        events: ``[n, *event_shape]``, normalised.
        context: ``[n, *context_shape]`` or None.
        num_steps: Jumps that the student is to draw with.
        step: Steps of training that have been.
    """

    flow_map: FlowMap
    teacher: Callable[[Tensor, Tensor, Tensor | None], Tensor] | None
    events: Tensor
    context: Tensor | None
    num_steps: int
    step: int

    def noisy(self, level: Tensor) -> Tensor:
        """Return the events with fresh noise of levels ``[n]``."""
        noise = torch.randn_like(self.events)
        return self.events + over_events(level, noise).to(noise.dtype) * noise

    def mean(self, z: Tensor, level: Tensor, context: Tensor | None) -> Tensor:
        """The teacher's mean; without a teacher the event itself, of which that is the mean."""
        return self.events if self.teacher is None else self.teacher(z, level, context)


class Method(ABC):
    """A way to teach a student.

    Attributes:
        needs_teacher: Whether there must be one.
        asks_teacher: Whether its mean is asked for, where there is one; it gives the first weights in any case.
        needs_target: Whether the network must be told where a jump goes: there are several ends to one start.
        renoises: Whether jumps go to level 0, with fresh noise in between, or from level to level without.
        any_num_steps: Whether a student draws with other numbers of steps than the one it was made for.
    """

    needs_teacher: ClassVar[bool] = False
    asks_teacher: ClassVar[bool] = True
    needs_target: ClassVar[bool] = False
    renoises: ClassVar[bool] = False
    any_num_steps: ClassVar[bool] = True

    @abstractmethod
    def loss(self, lesson: Lesson) -> Tensor:
        """Return what training lowers, ``[n]``."""

    def jumps(self, flow_map: FlowMap, num_steps: int) -> tuple[Tensor, Tensor]:
        """Return where the jumps of a draw begin and end: noise levels ``[num_steps]`` and ``[num_steps]``."""
        grid = flow_map.grid(num_steps)
        return grid[:-1], torch.zeros_like(grid[1:]) if self.renoises else grid[1:]
