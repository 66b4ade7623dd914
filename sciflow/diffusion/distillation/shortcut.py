from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from sciflow.diffusion.distillation.flow_map import heun, jumped, over_events
from sciflow.diffusion.distillation.method import Lesson, Method


@dataclass(frozen=True)
class Shortcut(Method):
    needs_teacher: ClassVar[bool] = False
    renoises: ClassVar[bool] = False
    any_num_steps: ClassVar[bool] = True
    doublings: int = 6

    def loss(self, lesson: Lesson) -> Tensor:
        y, flow_map, context = lesson.events, lesson.flow_map, lesson.context
        n = len(y)
        data_std = flow_map.data_std.double()
        grid = flow_map.grid(2**self.doublings)
        j = torch.randint(self.doublings + 1, (n,), device=y.device)  # jump size 2^j of fine intervals
        size = 2**j
        i = (torch.rand(n, device=y.device) * (2 ** (self.doublings - j))).floor().long() * size
        level, target = grid[i], grid[i + size]
        middle = grid[i + (size // 2)]
        z = y + over_events(level, y).to(y.dtype) * torch.randn_like(y)
        with torch.no_grad():
            half = jumped(z, level, middle, flow_map(z, level, middle, context))
            end = jumped(half, middle, target, flow_map(half, middle, target, context))
            small = over_events(size == 1, y)
            if lesson.teacher is None:
                base = y
            else:
                base = heun(lesson.teacher, z, torch.stack((level, target)), context)
                end = torch.where(small, base, end)
            left = over_events(target / level, y).to(y.dtype)
            goal = (end - left * z) / (1 - left)
            if lesson.teacher is None:
                goal = torch.where(small, y, goal)
        told = torch.where(size == 1, level, target) if lesson.teacher is None else target
        off = (flow_map(z, level, told, context) - goal) / data_std.to(y.dtype)
        w = 1 + (data_std / level).square().clamp_max(100)
        return w.to(y.dtype) * off.flatten(1).square().mean(1)
