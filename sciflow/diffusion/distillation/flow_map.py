"""A student's map from one noise level to another, and the teacher's own way between them."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn

from sciflow.diffusion.parametrization import Levels, mean_from, turn
from sciflow.diffusion.rows import over_events
from sciflow.diffusion.schedules import Schedule

__all__ = ["FlowMap", "aim", "heun", "jumped"]

# In units of the events' deviation: with less noise events count as clean, with more as noise alone.
LEAST_LEVEL, MOST_LEVEL = 2e-3, 80.0
_STEEPNESS = 0.7
_TINY = 1e-12
Mean = Callable[[Tensor, Tensor, Tensor | None], Tensor]


class FlowMap(nn.Module):
    r"""Where a trajectory of the probability-flow ODE is at a lower noise level, in one evaluation.

    .. math:: z = x_t / \alpha = x_0 + k \, \varepsilon, \qquad
              G(z, k, s) = \frac{s}{k} z + \Big(1 - \frac{s}{k}\Big) \, \hat x(z, k, s), \qquad k = \sigma / \alpha

    :math:`\hat x` is an estimate of the clean event: the mean :math:`E[x_0 \mid z]` as :math:`s` comes to :math:`k`,
    where :math:`G` is a step of DDIM, and the trajectory's own end at :math:`s = 0`. Seen by noise level, all schedules
    are alike, so that a network is asked as its teacher's is, whatever the teacher's schedule. At level 0 the event is
    what it is, exactly: all but one of the parametrisations have it so, and the last (``"data"``) is told.

    Args:
        network: ``network(x, levels, context)`` of two levels: where the trajectory is, and where it is to go.
        schedule: Of the teacher; says which levels its network was shown.
        parametrization: What the network is asked for, see :func:`sciflow.diffusion.parametrization.mean_from`.

    Example:
        >>> from sciflow.nets.by_name import network
        >>> from sciflow.diffusion.schedules import EDM
        >>> flow_map = FlowMap(network("mlp", (2,), None, num_levels=2), EDM(), "edm")
        >>> z, zero = torch.randn(3, 2), torch.zeros(3)
        >>> bool((flow_map(z, zero, zero) == z).all())
        True
    """

    data_std: Tensor

    def __init__(self, network: nn.Module, schedule: Schedule, parametrization: str) -> None:
        super().__init__()
        self.network = network
        self.schedule = schedule
        self.parametrization = parametrization
        self.register_buffer("data_std", torch.tensor(1.0))
        ends = torch.tensor([schedule.t_min, schedule.t_max], dtype=torch.float64)
        self._ends: list[float] = schedule.noise_level(ends).tolist()

    def forward(self, z: Tensor, level: Tensor, target: Tensor, context: Tensor | None = None) -> Tensor:
        """Return the estimate of the clean event.

        Args:
            z: ``[n, *event_shape]``, noisy events over their alpha.
            level: ``[n]``, noise levels where they are.
            target: ``[n]``, noise levels where they are to go, no higher.
            context: ``[n, *context_shape]`` or None.
        """
        # In double precision: near noise alone, the signal is what is left of a difference.
        k = over_events(level.double(), z)
        data_std = self.data_std.double()
        change = turn(self.parametrization, self.schedule, self.schedule.time(k))
        skip, out = mean_from(self.parametrization, Levels(torch.ones_like(k), k, change, data_std))
        low, high = self._ends
        levels = torch.stack((level.double(), target.double()), -1).clamp(low, high).log() / 4
        scale = torch.rsqrt(data_std.square() + k.square())
        context = None if context is None else context.flatten(1)
        answer = self.network(scale.to(z.dtype) * z, levels.to(z.dtype), context)
        mean = skip.to(z.dtype) * z + out.to(z.dtype) * answer.to(z.dtype)
        return torch.where(k > 0, mean, z)

    @property
    def most_level(self) -> Tensor:
        """Noise level at which drawing begins; 0-dimensional, float64."""
        return (MOST_LEVEL * self.data_std.double()).clamp_max(self._ends[1])

    @property
    def least_level(self) -> Tensor:
        """Noise level below which events count as clean; 0-dimensional, float64."""
        return LEAST_LEVEL * self.data_std.double()

    def grid(self, num_jumps: int) -> Tensor:
        r"""Return noise levels ``[num_jumps + 1]`` from most noise to 0, even in :math:`k^{0.7} / (1 + k^{0.7})`.

        Those of fewer jumps are among those of twice as many. See ``"sigmoid"`` in
        :func:`sciflow.diffusion.samplers.spacing.times`.
        """
        most = self.most_level
        return self.between(most, torch.zeros_like(most), num_jumps)

    def between(self, level: Tensor, target: Tensor, num_jumps: int) -> Tensor:
        """Return noise levels ``[num_jumps + 1, *level.shape]`` from one to another, spaced as those of the grid."""
        high, low = (1 / (1 + (k / self.data_std.double()).pow(-_STEEPNESS)) for k in (level, target))
        shares = torch.linspace(0, 1, num_jumps + 1, dtype=torch.float64, device=level.device)
        place = high + shares.reshape(-1, *[1] * level.ndim) * (low - high)
        levels = self.data_std.double() * (place / (1 - place)).pow(1 / _STEEPNESS)
        return torch.cat((level[None], levels[1:-1], target[None]))


def jumped(z: Tensor, level: Tensor, target: Tensor, mean: Tensor) -> Tensor:
    """Return ``z`` taken from one noise level to another, by an estimate of the clean event."""
    left = over_events(target / level, z).to(z.dtype)
    return left * z + (1 - left) * mean


def aim(z: Tensor, level: Tensor, target: Tensor, end: Tensor) -> Tensor:
    """Return the estimate of the clean event by which a jump goes to ``end``: :func:`jumped`, undone."""
    left = over_events(target / level, z).to(z.dtype)
    return (end - left * z) / (1 - left)


def heun(mean: Mean, z: Tensor, levels: Tensor, context: Tensor | None = None) -> Tensor:
    r"""Return ``z`` taken along the probability-flow ODE by Heun's method.

    .. math:: z' = \frac{s}{k} z + \Big(1 - \frac{s}{k}\Big) \hat x(z, k), \qquad
              z_s = z' + \frac12 \Big(\frac{k}{s} - 1\Big) (\hat x(z', s) - \hat x(z, k))

    and to level 0 by the first alone. See :class:`sciflow.diffusion.samplers.EDM`; here every row has its own levels.

    Args:
        mean: ``mean(z, level, context)``: the mean of clean events, of noisy ones over their alpha.
        z: ``[n, *event_shape]`` at the first levels.
        levels: ``[num_steps + 1, n]``, falling in every row.
        context: ``[n, *context_shape]`` or None.
    """
    for level, target in pairwise(levels.unbind(0)):
        here = mean(z, level, context)
        z = jumped(z, level, target, here)
        if not bool((target > 0).any()):
            continue
        rise = torch.where(target > 0, level / target.clamp_min(_TINY) - 1, 0.0)
        there = mean(z, target.maximum(_TINY * level), context)
        z = z + over_events(rise / 2, z).to(z.dtype) * (there - here)
    return z
