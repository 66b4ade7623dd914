"""A denoiser hides the parametrisation: whoever calls it gets the mean of the clean event."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from sciflow.derivatives import require_graph
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

    def forward(self, x: Tensor, t: Tensor, context: Tensor | None = None) -> Tensor:
        """Return the mean of the clean events.

        Args:
            x: ``[n, *event_shape]``, events at times ``t``.
            t: ``[n]``.
            context: ``[n, *context_shape]`` or None; NaN where it is not given.
        """
        answer, skip, out = self.answer(x, t, context)
        return skip.to(x.dtype) * x + out.to(x.dtype) * answer

    def residual(self, z: Tensor, t: Tensor, context: Tensor | None = None) -> Tensor:
        r"""Return what the mean has beyond that of a normal event of deviation :math:`s`, in units of its own spread.

        .. math:: F = \left( \hat x_0 - \frac{\alpha s^2}{v} x_t \right) \frac{\sqrt v}{s \, \sigma},
                  \qquad v = \alpha^2 s^2 + \sigma^2, \qquad z = \frac{x_t}{\sqrt v}

        Of a network it is computed without the difference: where there is next to no noise nothing would be left of it.

        Args:
            z: ``[n, *event_shape]``, events at times ``t`` in units of their spread.
            t: ``[n]``, above 0; float64.
            context: ``[n, *context_shape]`` or None.
        """
        std = self.data_std.double()
        alpha, sigma = (over_events(level, z) for level in self.schedule(t))
        power = (alpha * std).square() + sigma.square()
        spread = power.sqrt()
        x = spread.to(z.dtype) * z
        answer, skip, out = self.answer(x, t, context)
        require_graph(answer, x, "denoiser")
        unit = spread / (std * sigma)
        share = (unit * (skip - alpha * std.square() / power)).to(x.dtype)
        return torch.addcmul(share * x, (unit * out).to(x.dtype), answer)

    @abstractmethod
    def answer(self, x: Tensor, t: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Return what is computed, and what turns it into the mean, ``skip * x + out * answer``.

        Args:
            x: ``[n, *event_shape]``, events at times ``t``.
            t: ``[n]``.
            context: ``[n, *context_shape]`` or None; NaN where it is not given.

        Returns:
            The answer, of ``x``'s shape; ``skip`` and ``out``, which broadcast to it, in double precision.
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

    def answer(self, x: Tensor, t: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        # In double precision: near noise alone, the signal is what is left of a difference.
        at = self.levels(t, x)
        skip, out = mean_from(self.parametrization, at)
        log_level = (at.sigma / at.alpha).clamp_min(torch.finfo(torch.float32).tiny).log()
        level = log_level.clamp(*self._log_levels).flatten() / 4
        scale = torch.rsqrt((at.alpha * at.data_std).square() + at.sigma.square())
        context = None if context is None else context.flatten(1)
        answer = self.network(scale.to(x.dtype) * x, level.to(x.dtype), context)
        return answer.to(x.dtype), skip, out

    def levels(self, t: Tensor, x: Tensor) -> Levels:
        """Return where in the schedule rows are, in double precision, to be broadcast over events like ``x``."""
        if len(t) > 1 and t.stride(0) == 0:  # one time for all rows: embedded once
            t = t[:1]
        t = over_events(t.double().clamp_max(self._t_max), x)
        alpha, sigma = self.schedule(t)
        return Levels(alpha, sigma, turn(self.parametrization, self.schedule, t), self.data_std.double())
