"""A denoiser hides the parametrisation: whoever calls it gets the mean of the clean event."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from sciflow.diffusion.parametrization import Levels, mean_from, turn
from sciflow.diffusion.rows import over_events
from sciflow.diffusion.schedules import Schedule

__all__ = ["Denoiser", "NetworkDenoiser"]


class Denoiser(nn.Module, ABC):
    r"""What all of this package asks for: :math:`E[x_0 \mid x_t]`, for events in normalised units.

    By Tweedie's formula it knows the score, :math:`\nabla \log p_t(x_t) = (\alpha \hat x_0 - x_t) / \sigma^2`.

    Args:
        schedule: Of the times.
        data_std: Standard deviation of normalised events; measured on training rows.
    """

    data_std: Tensor

    def __init__(self, schedule: Schedule, data_std: float = 1.0) -> None:
        super().__init__()
        self.schedule = schedule
        self.register_buffer("data_std", torch.tensor(float(data_std)))

    @abstractmethod
    def forward(self, x: Tensor, t: Tensor, context: Tensor | None = None) -> Tensor:
        """Return the mean of the clean events.

        Args:
            x: ``[n, *event_shape]``, events at times ``t``.
            t: ``[n]``.
            context: ``[n, *context_shape]`` or None; NaN where it is not given.
        """


class NetworkDenoiser(Denoiser):
    """A denoiser that a network learns.

    Args:
        network: ``network(x, level, context)``, see :mod:`sciflow.nets`.
        schedule: Of the times.
        parametrization: What the network is asked for, see :func:`sciflow.diffusion.parametrization.mean_from`.
    """

    def __init__(self, network: nn.Module, schedule: Schedule, parametrization: str) -> None:
        super().__init__(schedule)
        self.network = network
        self.parametrization = parametrization
        self._t_max = schedule.t_max
        ends = torch.tensor([schedule.t_min, schedule.t_max], dtype=torch.float64)
        self._log_levels: list[float] = schedule.noise_level(ends).log().tolist()

    def forward(self, x: Tensor, t: Tensor, context: Tensor | None = None) -> Tensor:
        answer, skip, out = self.answer(x, t, context)
        return skip * x + out * answer

    def answer(self, x: Tensor, t: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Return the network's answer, and what turns it into the mean: ``(answer, skip, out)``."""
        # In double precision: near noise alone, the signal is what is left of a difference.
        at = self.levels(t, x)
        skip, out = mean_from(self.parametrization, at)
        log_level = (at.sigma / at.alpha).clamp_min(torch.finfo(torch.float32).tiny).log()
        level = log_level.clamp(*self._log_levels).flatten() / 4
        scale = torch.rsqrt((at.alpha * at.data_std).square() + at.sigma.square())
        context = None if context is None else context.flatten(1)
        answer = self.network(scale.to(x.dtype) * x, level.to(x.dtype), context)
        return answer.to(x.dtype), skip.to(x.dtype), out.to(x.dtype)

    def levels(self, t: Tensor, x: Tensor) -> Levels:
        """Return where in the schedule rows are, in double precision, to be broadcast over events like ``x``."""
        if len(t) > 1 and t.stride(0) == 0:  # one time for all rows: embedded once
            t = t[:1]
        t = over_events(t.double().clamp_max(self._t_max), x)
        alpha, sigma = self.schedule(t)
        return Levels(alpha, sigma, turn(self.parametrization, self.schedule, t), self.data_std.double())
