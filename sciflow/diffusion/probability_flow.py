"""The probability-flow ODE makes a diffusion model an invertible map between events and noise."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from sciflow.diffusion.denoiser import Denoiser
from sciflow.ode.divergence import Divergence
from sciflow.ode.log_det import Change, change_along, log_normal
from sciflow.ode.path import Path
from sciflow.ode.replay import replayed
from sciflow.ode.solve import Steps, norms, solve

__all__ = ["ProbabilityFlow"]

# Noise by the size of events, below which time counts in proportion to it; and one over that above which it counts in
# proportion to one over it.
_LITTLE, _MUCH = 0.005, 0.1
# Nodes of Gauss's rule on the way that is left before noise alone, as shares of it; their weights are the same.
_NODES = (0.5 - 12**-0.5, 0.5 + 12**-0.5)
_MOST_ROUNDS, _CLOSE = 64, 8
# Of what is corrected at either end, how much it may be off.
_HELD, _STEEP, _TILTED = 2e-4, 0.6, 0.05


class ProbabilityFlow:
    r"""The way between events and noise, in the variables in which it is least work: the same for every schedule.

    With :math:`k = \sigma / \alpha` the noise level, :math:`s` the deviation of events and

    .. math:: k = s \tan \theta, \qquad z = \frac{x_t}{\alpha \sqrt{s^2 + k^2}}, \qquad
              \hat x_0 = \cos^2\!\theta \, \frac{x_t}{\alpha} + s \sin\theta \, F

    the probability-flow ODE of every schedule is a rotation that begins with the event and ends with noise,

    .. math:: \frac{dz}{d\theta} = -F(z, \theta), \qquad \nabla_z \log p_\theta(z) = -z + F \cot\theta

    Its linear part has gone, so that normal events of deviation :math:`s` have :math:`F = 0`: this is an exponential
    integrator. Learned :math:`F` change with the logarithm of the noise, and so steps are taken in

    .. math:: u = \log \frac{\tan\theta + \delta_0}{1 + \delta_1 \tan\theta}

    which is finite at both ends. Nothing is cut off there: below the least noise that the schedule knows the score is
    held at what it is there, so that :math:`F` falls to 0 as :math:`\tan \theta`; and from the most noise on the mean
    of the clean event is that of a state with the same tilt. Sources: Song et al., arXiv:2011.13456; Lu and Song,
    arXiv:2410.11081, for the rotation.

    Args:
        denoiser: Of the model.
        context: ``[n, *context_shape]``, normalised, or None.
        event_shape: Of its events.
    """

    def __init__(self, denoiser: Denoiser, context: Tensor | None, event_shape: torch.Size) -> None:
        self.denoiser, self.context, self.event_shape = denoiser, context, event_shape
        self.data_std = float(denoiser.data_std)
        schedule = denoiser.schedule
        ends = torch.tensor([schedule.t_min, schedule.t_max], dtype=torch.float64)
        self.low, self.high = (schedule.noise_level(ends) / self.data_std).tolist()
        self.left = math.atan(1 / self.high)
        self.looks = [self._at(max(self.low, math.tan(math.pi / 2 - place * self.left))) for place in (1, 2)]
        self.start, self.end = (math.log((tan + _LITTLE) / (1 + _MUCH * tan)) for tan in (self.low, self.high))

    def path_to_noise(self, z: Tensor, steps: Steps) -> Path:
        """Solve from events by their deviation, ``[n, d]``, up to the most noise that the schedule knows."""
        return solve(self, self._leave_events(z), self.start, self.end, steps)

    def path_to_events(self, z: Tensor, steps: Steps) -> Path:
        """Solve from noise ``[n, d]`` down to the least."""
        return solve(self, self._leave_noise(z), self.end, self.start, steps)

    def noise_of(self, z: Tensor, path: Path) -> Tensor:
        """Return the noise that events by their deviation become, ``[n, d]``."""
        if torch.is_grad_enabled():
            path = replayed(path, self, self._leave_events(z))
        return self._reach_noise(path.end)

    def events_of(self, z: Tensor, path: Path) -> Tensor:
        """Return the events by their deviation that noise becomes, ``[n, d]``."""
        if torch.is_grad_enabled():
            path = replayed(path, self, self._leave_noise(z))
        return self._reach_events(path.end)

    def log_prob(
        self, z: Tensor, divergence: Divergence, tolerance: float, steps: Steps, path: Path | None = None
    ) -> tuple[Change, Path]:
        """Return log p of events by their deviation, one for every estimate of the divergence, and their path to noise.

        Args:
            z: ``[n, d]``.
            divergence: How traces are found.
            tolerance: Error that is aimed at, in nats.
            steps: How steps are taken; as many panels as fixed ones, and more of others where the error asks for it.
            path: Whose steps are taken again, with a graph where gradients are tracked; None to find them.
        """
        begun, of_events = self._change_at_events(z, divergence)
        path = solve(self, begun, self.start, self.end, steps) if path is None else replayed(path, self, begun)
        change = change_along(path, self, divergence, tolerance, cut=steps.fixed is None)
        ended, of_noise = self._change_at_noise(path.end, divergence)
        log_det = change.log_det + of_events.log_det + of_noise.log_det
        error = (change.error.square() + of_events.error.square() + of_noise.error.square()).sqrt()
        nfe = path.nfe + change.nfe + of_events.nfe + of_noise.nfe
        return Change(log_normal(ended)[:, None] + log_det, error, nfe), path

    # Dynamics. -------------------------------------------------------------------------------------------------

    def velocity(self, u: Tensor, z: Tensor, rows: Tensor) -> Tensor:
        """Return dz/du, ``[n, d]``."""
        tan, rate = self._angle(u)
        return -rate[:, None].to(z.dtype) * self._residual(tan, z, rows)

    def score(self, u: Tensor, z: Tensor, velocity: Tensor) -> Tensor:
        """Return the score of noisy events, ``[n, d]``."""
        tan, rate = self._angle(u)
        return -z - (1 / (tan * rate))[:, None].to(z.dtype) * velocity

    def _angle(self, u: Tensor) -> tuple[Tensor, Tensor]:
        r"""Return :math:`\tan\theta` and :math:`d\theta / du`."""
        growth = u.exp()
        tan = ((growth - _LITTLE) / (1 - _MUCH * growth)).clamp(self.low, self.high)
        return tan, (tan + _LITTLE) * (1 + _MUCH * tan) / ((1 - _LITTLE * _MUCH) * (1 + tan.square()))

    def _residual(self, tan: Tensor, z: Tensor, rows: Tensor | None = None) -> Tensor:
        """Return F, ``[n, d]``, of all rows or of some."""
        context = self.context if self.context is None or rows is None else self.context[rows]
        t = self.denoiser.schedule.time(self.data_std * tan)
        events = z.reshape(-1, *self.event_shape).to(self.denoiser.data_std.dtype)
        return self.denoiser.residual(events, t, context).to(z.dtype).flatten(1)

    # Both ends. ------------------------------------------------------------------------------------------------
    #
    # Up to the least noise, tan(theta) = theta: with tau = theta^2 / (2 low) the way is dz / dtau = -F(z, low), from 0
    # to low / 2. One step of the midpoint rule is exact there but for the third power of that.

    def _at(self, tan: float) -> Callable[..., Tensor]:
        def residual(z: Tensor, rows: Tensor | None = None) -> Tensor:
            return self._residual(torch.full((len(z),), tan, dtype=torch.float64, device=z.device), z, rows)

        return residual

    def _leave_events(self, z: Tensor) -> Tensor:
        residual, tau = self._at(self.low), self.low / 2
        return z - tau * residual(z - tau / 2 * residual(z))

    def _reach_events(self, z: Tensor) -> Tensor:
        residual, tau = self._at(self.low), self.low / 2
        return z + tau * residual(z + tau / 2 * residual(z))

    def _change_at_events(self, z: Tensor, divergence: Divergence) -> tuple[Tensor, Change]:
        residual, tau = self._at(self.low), self.low / 2
        first = residual(z)
        local = divergence(residual, z - tau / 2 * first, torch.arange(len(z), device=z.device))
        log_det = -tau * local.trace
        with torch.no_grad():
            # The score is not quite constant there, and less so where rows are off the bulk, and it is steep.
            steep = (first * (first - local.velocity)).sum(1, dtype=torch.float64)
            error = torch.hypot(_HELD * log_det.mean(1), _STEEP * steep)
            nfe = torch.full_like(error, 2, dtype=torch.int32)
        return z - tau * local.velocity, Change(log_det, error, nfe)

    # At the other end, with psi the angle that is left, p(x_0 | z) is p(x_0) exp(x_0 . tilt - |x_0|^2 tan(psi)^2 / 2)
    # for events by their deviation, with tilt = z tan(psi) / cos(psi). Beyond the most noise that the schedule knows
    # the mean is therefore asked for there, of a state that has the tilt; and at half of it, for the little that is
    # left to the square.

    def _reach_noise(self, z: Tensor) -> Tensor:
        states, far = self._before_noise(z)
        fields = [
            (1 - share) * self._tilted(node, 1, state) + share * self._tilted(node, 2, state)
            for node, share, state in zip(_NODES, far, states, strict=True)
        ]
        return z - self.left / 2 * sum(fields)

    def _leave_noise(self, noise: Tensor) -> Tensor:
        z = noise
        # What is left of the way is short, so that few rounds are needed: but for a denoiser that knows nothing yet.
        for _ in range(_MOST_ROUNDS):
            before, z = z, noise - (self._reach_noise(z) - z)
            if not bool(((z - before).abs() > _CLOSE * torch.finfo(z.dtype).eps * z.abs()).any()):
                break
        return z

    def _change_at_noise(self, z: Tensor, divergence: Divergence) -> tuple[Tensor, Change]:
        every = torch.arange(len(z), device=z.device)
        states, far = self._before_noise(z)
        ended, log_det = z, z.new_zeros(len(z), divergence.num_estimates, dtype=torch.float64)
        moved, counted = torch.zeros_like(z), torch.zeros_like(log_det)  # by what is left to the square
        for node, share, state in zip(_NODES, far, states, strict=True):
            at_most, at_half = (divergence(partial(self._tilted, node, level), state, every) for level in (1, 2))
            ended = ended - self.left / 2 * at_most.velocity
            log_det = log_det - self.left / 2 * at_most.trace
            moved = moved - self.left / 2 * share * (at_half.velocity - at_most.velocity)
            counted = counted - self.left / 2 * share * (at_half.trace - at_most.trace)
        ended, log_det = ended + moved, log_det + counted
        with torch.no_grad():
            weight = ended.square().mean(1, dtype=torch.float64).sqrt()
            error = _TILTED * torch.hypot(weight * norms(moved), counted.mean(1))
            nfe = torch.full_like(error, 1 + 2 * len(_NODES), dtype=torch.int32)
        return ended, Change(log_det, error, nfe)

    def _before_noise(self, z: Tensor) -> tuple[list[Tensor], list[float]]:
        """States at the nodes, from one at the most noise, and how much half of it counts there."""
        first = self.looks[0](z)
        near, away = (math.tan(place * self.left) ** 2 for place in (1, 2))
        far = [(near - math.tan(node * self.left) ** 2) / (near - away) for node in _NODES]
        return [z - (1 - node) * self.left * first for node in _NODES], far

    def _tilted(self, node: float, level: int, z: Tensor, rows: Tensor | None = None) -> Tensor:
        """F at a node beyond the most noise, as the mean at so many times its angle has it; ``[n, d]``."""
        here, known = node * self.left, level * self.left
        ratio = (math.tan(here) / math.cos(here)) / (math.tan(known) / math.cos(known))
        field = self.looks[level - 1](ratio * z, rows)
        return ((math.sin(known) * ratio - math.sin(here)) * z + math.cos(known) * field) / math.cos(here)
