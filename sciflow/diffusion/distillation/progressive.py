"""Progressive distillation: a jump does what two jumps of the stage before did."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from sciflow.diffusion.distillation.flow_map import FlowMap, aim, heun, jumped
from sciflow.diffusion.distillation.method import Lesson, Method

__all__ = ["Progressive"]

_TEACHER_STEPS = 16  # of a whole trajectory, of second order
_MOST_JUMPS = 8  # of the first stage


@dataclass(frozen=True)
class Progressive(Method):
    r"""Match the end of one jump with where two jumps of half the length go.

    .. math:: L = E \, \Big(1 + \frac{s_y^2}{k^2}\Big) \, \| \hat x(z, k, s) - \tilde x \|^2, \qquad
              G(z, k, s) \,\big|_{\hat x = \tilde x} = G'(G'(z, k, m), m, s)

    with :math:`G'` the student of the stage before, which had twice as many jumps. The first stage learns from the
    teacher, which takes 16 steps of Heun's method for a whole trajectory; where there is one stage alone, as in a
    workflow, it goes all the way. Source: Salimans and Ho, arXiv:2202.00512, with their weight, and with a second-order
    teacher in place of DDIM.

    Args:
        previous: The map of the stage before; None for the teacher itself.
    """

    needs_teacher: ClassVar[bool] = True
    any_num_steps: ClassVar[bool] = False

    previous: FlowMap | None = None

    @staticmethod
    def stages(num_steps: int) -> list[int]:
        """Return the numbers of jumps of the stages, the last of which is ``num_steps``.

        Example:
            >>> Progressive.stages(2), Progressive.stages(3)
            ([8, 4, 2], [6, 3])
        """
        stages = [num_steps]
        while 2 * stages[0] <= _MOST_JUMPS:
            stages.insert(0, 2 * stages[0])
        return stages

    def loss(self, lesson: Lesson) -> Tensor:
        begins, ends = self.jumps(lesson.flow_map, lesson.num_steps)
        jump = torch.arange(len(lesson.events), device=begins.device) % lesson.num_steps
        level, target = begins[jump], ends[jump]
        z = lesson.noisy(level)
        with torch.no_grad():
            goal = aim(z, level, target, self._end(lesson, z, level, target))
        data_std = lesson.flow_map.data_std
        off = (lesson.flow_map(z, level, target, lesson.context) - goal) / data_std
        weight = 1 + (data_std.double() / level).square()
        return weight.to(z.dtype) * off.flatten(1).square().mean(1)

    def _end(self, lesson: Lesson, z: Tensor, level: Tensor, target: Tensor) -> Tensor:
        if self.previous is None:
            num_steps = max(2, _TEACHER_STEPS // lesson.num_steps)
            return heun(lesson.mean, z, lesson.flow_map.between(level, target, num_steps), lesson.context)
        _, middle, _ = lesson.flow_map.between(level, target, 2)
        half = jumped(z, level, middle, self.previous(z, level, middle, lesson.context))
        return jumped(half, middle, target, self.previous(half, middle, target, lesson.context))
