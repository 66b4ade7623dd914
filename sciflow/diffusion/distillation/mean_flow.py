"""Mean flow: the mean velocity of a stretch of trajectory, by an identity at its start."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from sciflow.diffusion.distillation.flow_map import over_events
from sciflow.diffusion.distillation.method import Lesson, Method
from sciflow.diffusion.weighting import spread_evenly

__all__ = ["MeanFlow"]

_SHARE_OF_NO_LENGTH, _SHARE_TO_THE_END = 0.25, 0.2
_LEAST_TIME = 1e-3
_SOFTENING = 1e-3


@dataclass(frozen=True)
class MeanFlow(Method):
    r"""Match the velocity at the start of a stretch, less what its mean velocity changes there.

    In the time of straight paths, :math:`\tau = k / (s_y + k)`, the end of a stretch that reaches to :math:`r` does not
    depend on where on the trajectory it begins:

    .. math:: \hat x = \hat x^- + \frac{r}{\tau} (\hat x_0 - \hat x^-) - (\tau - r) \frac{d \hat x^-}{d\tau}

    with :math:`\hat x_0` the teacher's mean, or the event itself where there is no teacher, and the derivative that
    along the trajectory, by forward differentiation. Errors count by their adaptive weight. It is the identity of Geng
    et al., arXiv:2505.13447, for the mean velocity :math:`(x_\tau - \hat x) / \tau`.
    """

    def loss(self, lesson: Lesson) -> Tensor:
        flow_map, context = lesson.flow_map, lesson.context
        data_std = flow_map.data_std.double()
        start, stop = self._stretches(lesson)
        level, target = (data_std * time / (1 - time) for time in (start, stop))
        z = lesson.noisy(level)
        mean = lesson.mean(z, level, context)
        length = (start - stop) * data_std / (1 - start).square()
        tangent = over_events(length / level, z).to(z.dtype) * (z - mean)
        # Of fused attention torch knows no forward derivative.
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
            before, change = torch.func.jvp(
                lambda z, level: flow_map(z, level, target, context), (z, level), (tangent, length)
            )
        goal = before + over_events(stop / start, z).to(z.dtype) * (mean - before) - change
        off = (flow_map(z, level, target, context) - goal) / data_std.to(z.dtype)
        square = off.flatten(1).square().mean(1) / start.to(z.dtype).square()
        return square / (square.detach() + _SOFTENING)

    def _stretches(self, lesson: Lesson) -> tuple[Tensor, Tensor]:
        """Where stretches begin and end, in the time of straight paths."""
        n, most = len(lesson.events), lesson.flow_map.most_level / lesson.flow_map.data_std.double()
        one = spread_evenly(n, most.device)
        other, kind = torch.rand(2, n, dtype=torch.float64, device=most.device)
        last = most / (1 + most)
        start, stop = last * torch.maximum(one, other).clamp_min(_LEAST_TIME), last * torch.minimum(one, other)
        stop = torch.where(kind < _SHARE_OF_NO_LENGTH, start, stop)
        return start, torch.where(kind > 1 - _SHARE_TO_THE_END, 0.0, stop).minimum(start)
