"""Shortcut models: jumps of all lengths at once, each of which does what two of half its length do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from sciflow.diffusion.distillation.flow_map import aim, heun, jumped
from sciflow.diffusion.distillation.method import Lesson, Method

__all__ = ["Shortcut"]

_DOUBLINGS = 6  # from the shortest jump to the whole trajectory
_ROWS_PER_SHORTEST = 4
_MOST_WEIGHT = 100.0


@dataclass(frozen=True)
class Shortcut(Method):
    r"""Match the end of a jump with where the student's own two jumps of half its length go.

    .. math:: L = E \, \Big(1 + \frac{s_y^2}{k^2}\Big) \, \| \hat x(z, k, s) - \tilde x \|^2, \qquad
              G(z, k, s) \,\big|_{\hat x = \tilde x} = G^-(G^-(z, k, m), m, s)

    with :math:`G^-` the student itself, without gradient. Jumps are 1, 2, 4, ..., 64 intervals of a grid of noise
    levels. A quarter of the rows learns the shortest, which go where a step of the teacher by Heun's method goes;
    without a teacher they are of no length, and learn the event itself, of which they become the mean. It is
    :class:`~sciflow.diffusion.distillation.progressive.Progressive` with all its stages at once, and so serves any
    number of jumps. Source: Frans et al., arXiv:2410.12557, there without a teacher, and in the time of straight paths.
    """

    needs_target: ClassVar[bool] = True

    def loss(self, lesson: Lesson) -> Tensor:
        n, flow_map, context = len(lesson.events), lesson.flow_map, lesson.context
        grid = flow_map.grid(2**_DOUBLINGS)
        num_shortest = -(-n // _ROWS_PER_SHORTEST)
        doublings = torch.randint(1, _DOUBLINGS + 1, (n,), device=grid.device)
        doublings[:num_shortest] = 0
        size = 2**doublings
        place = (torch.rand(n, device=grid.device) * (2**_DOUBLINGS // size)).long() * size
        level, middle, target = grid[place], grid[place + size // 2], grid[place + size]
        z = lesson.noisy(level)
        asked = target
        with torch.no_grad():
            short, long = slice(num_shortest), slice(num_shortest, None)
            part = None if context is None else context[short]
            if lesson.teacher is None:
                asked = torch.where(size == 1, level, target)
                first = lesson.events[short]
            else:
                way = torch.stack((level[short], target[short]))
                first = aim(z[short], level[short], target[short], heun(lesson.teacher, z[short], way, part))
            goals = first, self._halves(lesson, z[long], level[long], middle[long], target[long], size[long], long)
        data_std = flow_map.data_std
        off = (flow_map(z, level, asked, context) - torch.cat(goals)) / data_std
        weight = (1 + (data_std.double() / level).square()).clamp_max(_MOST_WEIGHT)
        return weight.to(z.dtype) * off.flatten(1).square().mean(1)

    def _halves(
        self, lesson: Lesson, z: Tensor, level: Tensor, middle: Tensor, target: Tensor, size: Tensor, rows: slice
    ) -> Tensor:
        """What the student is to answer, to jump where two jumps of half the length go."""
        context = None if lesson.context is None else lesson.context[rows]
        # Without a teacher the shortest jumps are by the mean, of no length.
        by_mean = (size == 2) & (lesson.teacher is None)
        half = z
        for start, end in ((level, middle), (middle, target)):
            asked = torch.where(by_mean, start, end)
            half = jumped(half, start, end, lesson.flow_map(half, start, asked, context))
        return aim(z, level, target, half)
