"""Where the steps of a sampler fall between noise and data."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor

from sciflow.diffusion.samplers.contract import require
from sciflow.diffusion.schedules import Schedule
from sciflow.errors import ConfigError, nearest

__all__ = ["SPACINGS", "Spacing", "times"]

Spacing = Literal["sigmoid", "power", "log", "time"]
SPACINGS: tuple[Spacing, ...] = get_args(Spacing)

_RHO = 7.0
_STEEPNESS = 0.7
_MOST_STEPS = 1_000_000


def times(
    schedule: Schedule,
    num_steps: int,
    spacing: Spacing = "sigmoid",
    least_noise: float = 2e-3,
    data_std: float = 1.0,
) -> Tensor:
    r"""Return falling times, from the schedule's last one to one with next to no noise.

    ``"sigmoid"`` spaces :math:`k^{0.7} / (1 + k^{0.7})` evenly, with the noise level :math:`k` in units of the events'
    deviation: steps are short where an event is decided, and neither pure noise nor the last digits take many.
    ``"power"`` spaces the 7th root of the noise level evenly (Karras et al., arXiv:2206.00364), ``"log"`` its logarithm
    (Lu et al., arXiv:2206.00927), ``"time"`` the schedule's own time.

    Args:
        schedule: Of the times.
        num_steps: How many, 1 or more.
        spacing: Which of the four.
        least_noise: Noise level at the last time, in units of the events' deviation; what is finer is lost.
        data_std: Standard deviation of the events.

    Returns:
        ``[num_steps]``, float64; a single one is the time of most noise.

    Raises:
        ConfigError: There is no such spacing, or a number is out of range.

    Example:
        >>> from sciflow.diffusion.schedules import EDM
        >>> times(EDM(), 3, "time").round(decimals=2).tolist()
        [1.0, 0.5, 0.0]
    """
    require("num_steps", num_steps, 1, _MOST_STEPS, whole=True)
    if spacing not in SPACINGS:
        raise ConfigError(f"spacing: got {spacing!r:.80}; {nearest(str(spacing), SPACINGS)}")
    ends = torch.tensor([schedule.t_max, schedule.t_min], dtype=torch.float64)
    most, least = (schedule.noise_level(ends) / data_std).tolist()
    require("least_noise", least_noise, 1e-12, most / 2)
    least = max(least, float(least_noise))
    share = torch.linspace(0, 1, num_steps, dtype=torch.float64) if num_steps > 1 else torch.zeros(1).double()
    if spacing == "time":
        first, last = schedule.time(data_std * torch.tensor([most, least], dtype=torch.float64)).tolist()
        return first + share * (last - first)
    to, back = _MAPS[spacing]
    first, last = to(most), to(least)
    return schedule.time(data_std * back(first + share * (last - first)))


# From noise levels to what is spaced evenly, and back.
_MAPS: dict[str, tuple[Callable[[float], float], Callable[[Tensor], Tensor]]] = {
    "sigmoid": (lambda k: 1 / (1 + k**-_STEEPNESS), lambda place: (place / (1 - place)) ** (1 / _STEEPNESS)),
    "power": (lambda k: k ** (1 / _RHO), lambda root: root**_RHO),
    "log": (math.log, torch.exp),
}
