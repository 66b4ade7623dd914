"""A trajectory from noise to a clean event: the steps of a sampler, one after the other."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from sciflow.diffusion.samplers.contract import Past, Process, Sampler
from sciflow.errors import ConfigError

__all__ = ["trajectory"]


def trajectory(
    process: Process,
    sampler: Sampler,
    x: Tensor,
    times: Tensor,
    on_step: Callable[[int, float, Tensor], None] | None = None,
    return_trajectory: bool = False,
) -> Tensor:
    r"""Take ``x`` from the first of the times to a clean event.

    From each time to the next goes a step of the sampler; the last step is the denoiser's mean at the last time. So
    ``num_steps`` times are ``num_steps`` steps, and as many evaluations for a sampler that needs one a step, or
    :math:`1 + 2 (\mathrm{num\_steps} - 1)` for one that needs two.

    Args:
        process: Denoiser, schedule and noise; counts the evaluations.
        sampler: Takes the steps.
        x: ``[n, *event_shape]`` at the first time: noise of scale :math:`\sqrt{\alpha^2 + \sigma^2}`.
        times: ``[num_steps]``, falling, above 0; see :func:`~sciflow.diffusion.samplers.times`.
        on_step: Called after every step with the number of steps done, the time, which is 0 at the end, and the state.
        return_trajectory: Whether to return all states, and not the last alone.

    Returns:
        Clean events ``[n, *event_shape]``; or the states at all times and these, ``[num_steps + 1, n, *event_shape]``.

    Raises:
        ConfigError: The times do not fall, or end at 0.

    Example:
        >>> from sciflow.diffusion.samplers import sampler, times
        >>> from sciflow.diffusion.schedules import Cosine
        >>> def denoise(x, t):  # of events that are all 3
        ...     return torch.full_like(x, 3.0)
        >>> process = Process(denoise, Cosine())
        >>> trajectory(process, sampler("dpm++"), torch.randn(2, 1), times(Cosine(), 10)), process.nfe
        (tensor([[3.],
                [3.]]), 10)
    """
    grid = torch.as_tensor(times, dtype=torch.float64).tolist()
    if not grid or not grid[-1] > 0 or not all(t > s for t, s in pairwise(grid)):
        raise ConfigError(f"sampler: times must fall and stay above 0; got {grid!r:.200}")
    past = Past(num_steps=len(grid), steps_left=len(grid))
    states = [x] if return_trajectory else []
    for done, (t, s) in enumerate(zip(grid, [*grid[1:], 0.0], strict=True), start=1):
        x = sampler.step(process, x, t, s, past) if s > 0 else process.mean(x, t)
        past.steps_left -= 1
        if return_trajectory:
            states.append(x)
        if on_step is not None:
            on_step(done, s, x)
    return torch.stack(states) if return_trajectory else x
