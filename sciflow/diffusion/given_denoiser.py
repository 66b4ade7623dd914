"""A denoiser that the user brings, and what is to be said of it."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sciflow.arrays import as_tensor, require_values
from sciflow.diffusion.denoiser import Denoiser
from sciflow.diffusion.rows import over_events
from sciflow.diffusion.sampling import most_noise
from sciflow.diffusion.schedules import Schedule
from sciflow.errors import ConfigError, ShapeError

__all__ = ["GivenDenoiser", "checked_mean", "warn_of_centre", "warn_of_sizes"]

_NEXT_TO_NOTHING, _OVERWHELMING = 0.05, 3.0  # noise by the size of events
_OFF_CENTRE = 0.1  # of the most noise


class GivenDenoiser(Denoiser):
    """A denoiser that the user brings.

    Args:
        denoise: ``denoise(x_t, t, context=None)``; a module's weights become those of the density. It gets copies, in
            which it may work in place.
        schedule: Of its times.
        data_std: Standard deviation of the events.
        data_mean: ``[*event_shape]``, mean of the events, where noise at time 1 is centred: normalised events are
            what is above it; None for 0.
    """

    data_mean: Tensor

    def __init__(
        self,
        denoise: Callable[..., Any],
        schedule: Schedule,
        data_std: float = 1.0,
        data_mean: Tensor | None = None,
    ) -> None:
        super().__init__(schedule, data_std)
        self.denoise = denoise
        self.register_buffer("data_mean", torch.tensor(0.0) if data_mean is None else data_mean)

    def forward(self, x: Tensor, t: Tensor, context: Tensor | None = None) -> Tensor:
        return self.answer(x, t, context)[0]

    def answer(self, x: Tensor, t: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        # Of its own: samplers go on with theirs.
        centre = self.data_mean.to(x.dtype)
        alpha = over_events(self.schedule(t.double())[0], x).to(x.dtype)
        given = [x + alpha * centre, t.to(x.dtype, copy=True), *([] if context is None else [context.clone()])]
        mean = self.denoise(*given)
        if not isinstance(mean, Tensor) or mean.shape != x.shape or not mean.is_floating_point():
            found = f"{list(mean.shape)} of {mean.dtype}" if isinstance(mean, Tensor) else type(mean).__name__
            expected = f"floating-point numbers of shape {list(x.shape)}"
            raise ShapeError(f"denoise(x_t, t) must return E[x_0 | x_t], {expected}; got {found}")
        require_values(mean, "what denoise(x_t, t) returns")
        one = torch.ones((), dtype=torch.float64, device=x.device)
        return mean.to(x.dtype) - centre, 0 * one, one


def checked_mean(data_mean: Any, event_shape: torch.Size) -> Tensor:
    """Return the mean of events that the user gives, in their shape.

    Raises:
        ConfigError: It is not finite.
        DataError: It is not made of numbers.
        ShapeError: It does not broadcast to events.
    """
    mean = as_tensor(data_mean, "data_mean", None, dtype=torch.get_default_dtype(), device=torch.device("cpu"))
    try:
        mean = mean.expand(event_shape)
    except RuntimeError:
        raise ShapeError(
            f"Diffusion.from_denoiser: data_mean {list(mean.shape)} does not broadcast to events {list(event_shape)}"
        ) from None
    if not torch.isfinite(mean).all():
        raise ConfigError(f"Diffusion.from_denoiser: data_mean must be finite; got {data_mean!r:.80}")
    return mean


def warn_of_centre(denoiser: GivenDenoiser, t: float, event_shape: torch.Size, context: Tensor | None) -> None:
    """Say so where events lie elsewhere than noise does: their mean is what is left of an event in noise alone."""
    one = denoiser.data_mean.new_zeros(1, *event_shape)
    at = torch.full((1,), t, dtype=torch.float64, device=one.device)
    off = denoiser(one, at, None if context is None else context[:1])[0]
    alpha, _ = denoiser.schedule(at)
    shift = float(alpha * off.abs().max()) / most_noise(denoiser, t)
    if shift > _OFF_CENTRE:
        around = (off + denoiser.data_mean).flatten()[:4].tolist()
        warnings.warn(
            f"Diffusion.from_denoiser: events lie around {', '.join(f'{value:.3g}' for value in around)}, and noise is "
            f"centred elsewhere, so that draws are off by {shift:.2g} of a standard deviation: give data_mean",
            stacklevel=5,
        )


def warn_of_sizes(schedule: Schedule, data_std: float) -> None:
    """Say so where a schedule leaves out levels of noise at which events of this size are decided."""
    least, most = schedule.noise_level(torch.tensor([schedule.t_min, schedule.t_max], dtype=torch.float64)).tolist()
    if least > _NEXT_TO_NOTHING * data_std or most < _OVERWHELMING * data_std:
        warnings.warn(
            f"Diffusion.from_denoiser: events have a standard deviation of {data_std:g}, and the schedule noise from "
            f"{least:.2g} to {most:.2g}: draws and log p miss what is outside; bring events to a deviation of about 1",
            stacklevel=3,
        )
