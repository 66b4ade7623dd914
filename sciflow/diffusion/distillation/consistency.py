"""Consistency models: every point of a trajectory is mapped to the trajectory's end."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from sciflow.diffusion.distillation.flow_map import LEAST_LEVEL, heun, jumped
from sciflow.diffusion.distillation.method import Lesson, Method
from sciflow.matching import spread_evenly

__all__ = ["Consistency", "ConsistencyTraining"]

_RHO = 7.0
# Of the logarithm of noise levels; -1.1 is for images, whose deviation is 0.5, and so is 0.00054.
_MEAN, _STD = -1.1 + math.log(2), 2.0
_HUBER = 2 * 0.00054
_FEWEST = 10


@dataclass(frozen=True)
class Consistency(Method):
    r"""Match the ends of two neighbouring points of one trajectory.

    .. math:: L = E \, \frac{1}{k - s} \Big( \sqrt{\| \hat x(z_k, k) - \hat x^-(z_s, s) \|^2 + c^2} - c \Big), \qquad
              \hat x(z, k) = G(z, k, 0)

    with :math:`z_k` a noisy event, :math:`z_s` where one step of the teacher by Heun's method takes it, and
    :math:`\hat x^-` the student itself, without gradient. At level 0 an event is its own end, which anchors all others.
    Levels are log-normal; the steps begin long (10 from noise to data) and halve every so often while
    training.

    Draws go to the end from noise, and with more than one step, from the end with fresh noise. Source: Song et al.,
    arXiv:2303.01469; target, distance, weight and levels are those of Song and Dhariwal, arXiv:2310.14189.

    Args:
        most: Steps from noise to data at last.
        halved_every: Steps of training after which they are twice as many.
    """

    needs_teacher: ClassVar[bool] = True
    renoises: ClassVar[bool] = True

    most: int = 160
    halved_every: int = 250

    def loss(self, lesson: Lesson) -> Tensor:
        flow_map = lesson.flow_map
        data_std = flow_map.data_std.double()
        level, target = self._neighbours(lesson)
        z = lesson.noisy(level)
        end = torch.zeros_like(level)
        with torch.no_grad():
            if lesson.teacher is None:
                # The same noise, and less of it.
                ahead = jumped(z, level, target, lesson.events)
            else:
                ahead = heun(lesson.teacher, z, torch.stack((level, target)), lesson.context)
            goal = flow_map(ahead, target, end, lesson.context)
        off = (flow_map(z, level, end, lesson.context) - goal) / data_std.to(z.dtype)
        distance = torch.sqrt(off.flatten(1).square().mean(1) + _HUBER**2) - _HUBER
        return distance * (data_std / (level - target)).to(z.dtype)

    def _neighbours(self, lesson: Lesson) -> tuple[Tensor, Tensor]:
        """Noise levels of two neighbouring points, the upper and the lower; the lowest is 0."""
        data_std = lesson.flow_map.data_std.double()
        most = lesson.flow_map.most_level / data_std
        shares = spread_evenly(len(lesson.events), most.device)
        normal = math.sqrt(2) * torch.erfinv((2 * shares - 1).clamp(-1 + 1e-7, 1 - 1e-7))
        level = torch.exp(_MEAN + _STD * normal).clamp_min(2 * LEAST_LEVEL).minimum(most)
        # Even in the 7th root, as Karras et al., arXiv:2206.00364, have it.
        least = LEAST_LEVEL ** (1 / _RHO)
        num_steps = min(_FEWEST * 2 ** min(lesson.step // self.halved_every, 20), self.most)
        lower = level.pow(1 / _RHO) - (most.pow(1 / _RHO) - least) / num_steps
        target = torch.where(lower > least, lower.clamp_min(0).pow(_RHO), 0.0)
        return level * data_std, target * data_std


@dataclass(frozen=True)
class ConsistencyTraining(Consistency):
    r"""The same, where the neighbour is the same event with less of the same noise: no teacher is asked.

    That is the teacher's step on average, the more exactly the shorter it is: steps halve further than with a teacher.
    Source: Song and Dhariwal, arXiv:2310.14189.

    Args:
        most: Steps from noise to data at last.
        halved_every: Steps of training after which they are twice as many.
    """

    needs_teacher: ClassVar[bool] = False
    asks_teacher: ClassVar[bool] = False

    most: int = 1280
