"""The flow of a velocity field whose score is not known: log p along its paths, with an error on every row."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from sciflow.ode.divergence import Divergence
from sciflow.ode.log_det import Change, change_along, log_normal
from sciflow.ode.path import Path
from sciflow.ode.replay import replayed
from sciflow.ode.solve import Dynamics, Steps, norms, solve

__all__ = ["FieldFlow", "VelocityField"]

VelocityField = Callable[[Tensor, Tensor, Tensor | None], Tensor]

# What is left uncorrected of the errors of steps grows on the way to noise: by so much tighter are they taken.
_TIGHTER = 300.0
# Of the tolerance, in the error of every row: a difference may be small by accident.
_LEAST_ERROR = 0.2


class FieldFlow:
    r"""The way between events at :math:`t = 0` and standard normal noise at :math:`t = 1` by any velocity field.

    .. math:: \frac{dz}{dt} = v(z, t), \qquad
              \log p_0(z_0) = \log N(z_1; 0, 1) + \int_0^1 \operatorname{tr} \frac{\partial v}{\partial z} \, dt

    The score of the densities on the way is not known. That of the noise, :math:`-z`, tells which mistakes in the
    state matter, but cannot take them off log p. What they do to it is told by a second solution, in steps of twice the
    length. Source: Chen et al., arXiv:1806.07366.

    Args:
        field: ``field(t, z, context)`` returns :math:`v`, ``[n, d]``, with ``t`` ``[n]`` in float64; a row depends on
            itself alone.
        context: ``[n, *context_shape]`` or None.
        with_error: Whether there is a second solution; without, which takes two thirds of the time, errors are NaN.

    Example:
        >>> import math
        >>> from sciflow.ode.divergence import Exact
        >>> from sciflow.ode.options import steps_for
        >>> flow = FieldFlow(lambda t, z, context: z * math.log(2))  # events are half as wide as noise
        >>> steps = replace(steps_for(1e-5), kept=True)
        >>> found, path = flow.log_prob(torch.zeros(1, 2, dtype=torch.float64), Exact(), 1e-5, steps)
        >>> round(found.log_det.item(), 4), round(2 * math.log(2) - math.log(math.tau), 4)
        (-0.4516, -0.4516)
    """

    def __init__(self, field: VelocityField, context: Tensor | None = None, with_error: bool = True) -> None:
        self.field, self.context, self.with_error = field, context, with_error

    def path_to_noise(self, z: Tensor, steps: Steps) -> Path:
        """Solve from events ``[n, d]``."""
        return solve(self, z, 0.0, 1.0, steps)

    def path_to_events(self, z: Tensor, steps: Steps) -> Path:
        """Solve from noise ``[n, d]``."""
        return solve(self, z, 1.0, 0.0, steps)

    def noise_of(self, z: Tensor, path: Path) -> Tensor:
        """Return the noise that events become, ``[n, d]``."""
        return self._end(z, path)

    def events_of(self, z: Tensor, path: Path) -> Tensor:
        """Return the events that noise becomes, ``[n, d]``."""
        return self._end(z, path)

    def log_prob(
        self, z: Tensor, divergence: Divergence, tolerance: float, steps: Steps, path: Path | None = None
    ) -> tuple[Change, Path]:
        """Return log p of events, one for every estimate of the divergence, and their path to noise.

        Args:
            z: ``[n, d]``.
            divergence: How traces are found.
            tolerance: Error that is aimed at, in nats.
            steps: How steps are taken; as many panels as fixed ones, and more of others where the error asks for it.
            path: Whose steps are taken again, with a graph where gradients are tracked, and without an error; None to
                find them.
        """
        if path is not None:
            path = replayed(path, self, z)
            return self._along(path, divergence, tolerance, steps), path
        tighter = replace(steps, tolerance=steps.tolerance / _TIGHTER)
        path = self.path_to_noise(z, tighter)
        found = self._along(path, divergence, tolerance, steps)
        if not self.with_error:
            return found._replace(error=torch.full_like(found.error, torch.nan)), path
        with torch.no_grad():
            longer = replayed(_by_twos(path), self, z)
            other = self._along(longer, divergence, tolerance, steps)
            apart = (found.log_det - other.log_det).mean(1)
            parts = (found.error, apart, _rounding(path), torch.full_like(apart, _LEAST_ERROR * tolerance))
            error = torch.stack(parts).square().sum(0).sqrt()
        return Change(found.log_det, error, found.nfe + other.nfe), path

    # Dynamics. -------------------------------------------------------------------------------------------------

    def velocity(self, u: Tensor, z: Tensor, rows: Tensor) -> Tensor:
        """Return dz/dt, ``[n, d]``."""
        return self.field(u, z, None if self.context is None else self.context[rows])

    def score(self, u: Tensor, z: Tensor, velocity: Tensor) -> Tensor:
        """Return the score of noise, ``[n, d]``."""
        return -z

    # How it is done. -------------------------------------------------------------------------------------------

    def _end(self, z: Tensor, path: Path) -> Tensor:
        return replayed(path, self, z).end if torch.is_grad_enabled() else path.end

    def _along(self, path: Path, divergence: Divergence, tolerance: float, steps: Steps) -> Change:
        change = change_along(path, _Uncorrected(self), divergence, tolerance, cut=steps.fixed is None)
        return Change(log_normal(path.end)[:, None] + change.log_det, change.error, path.nfe + change.nfe)


class _Uncorrected:
    """Dynamics that take nothing off log p: of a score that is not known, that of zero does no harm."""

    def __init__(self, dynamics: Dynamics) -> None:
        self.velocity = dynamics.velocity

    def score(self, u: Tensor, z: Tensor, velocity: Tensor) -> Tensor:
        return torch.zeros_like(z)


def _by_twos(path: Path) -> Path:
    """The same way in steps of which each takes the place of two, the last of a row perhaps of itself alone."""
    first = torch.searchsorted(path.rows, path.rows)
    number = torch.arange(len(path.rows), device=path.rows.device) - first
    opens = number % 2 == 0
    place = opens.cumsum(0) - 1
    rows, start = path.rows[opens], path.start[opens]
    width = torch.zeros_like(start).index_add(0, place, path.width)
    nfe = len(path.pair.nodes) * torch.bincount(rows, minlength=len(path.end))
    return replace(path, rows=rows, start=start, width=width, nfe=nfe.to(path.nfe.dtype))


def _rounding(path: Path) -> Tensor:
    """What log p of rows may be off because states are rounded at every step, ``[n]``, as random walks add up."""
    n, d = path.end.shape
    of_step = torch.finfo(path.end.dtype).eps / d**0.5 * norms(path.begin).square()
    return of_step.new_zeros(n).index_add(0, path.rows, of_step.square()).sqrt()
