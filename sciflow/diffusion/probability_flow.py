"""The probability-flow ODE makes a diffusion model an invertible map between events and noise."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from sciflow.diffusion.denoiser import Denoiser
from sciflow.diffusion.rows import over_events
from sciflow.ode.divergence import Divergence
from sciflow.ode.log_det import Change, change_along
from sciflow.ode.path import Path
from sciflow.ode.replay import replayed
from sciflow.ode.solve import Steps, norms, solve

__all__ = ["ProbabilityFlow"]

# Noise by the size of events, below which time counts in proportion to it; and one over that above which it counts in
# proportion to one over it.
_LITTLE, _MUCH = 0.005, 0.1
# Integrals from 0 to 1 of polynomials through values at 0, 1, 2 and 3, by rising degree; and from 1 to 2 and 3, of
# those through the last three.
_TO_NOISE = ((1 / 2, 1 / 2, 0.0, 0.0), (5 / 12, 8 / 12, -1 / 12, 0.0), (9 / 24, 19 / 24, -5 / 24, 1 / 24))
_BACK = ((5 / 12, 2 / 3, -1 / 12), (1 / 3, 4 / 3, 1 / 3))
_MOST_ROUNDS, _CLOSE = 64, 8
_HELD = 2e-4


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
    held at what it is there, so that :math:`F` falls to 0 as :math:`\tan \theta`; and from the most noise on,
    where :math:`F` is smooth in what is left of the quarter turn, the way to noise alone is a polynomial. Sources: Song
    et al., arXiv:2011.13456; Lu and Song, arXiv:2410.11081, for the rotation.

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
        self.looks = [self._at(max(self.low, math.tan(math.pi / 2 - place * self.left))) for place in (1, 2, 3)]
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
        return self._reach_noise(path.end, self._mean(z))

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
        d = z.shape[1]
        begun, of_events = self._change_at_events(z, divergence)
        path = solve(self, begun, self.start, self.end, steps) if path is None else replayed(path, self, begun)
        change = change_along(path, self, divergence, tolerance, cut=steps.fixed is None)
        ended, of_noise = self._change_at_noise(path.end, divergence)
        log_noise = -0.5 * (ended.square().sum(1, dtype=torch.float64) + d * math.log(math.tau))
        log_det = change.log_det + of_events.log_det + of_noise.log_det
        error = (change.error.square() + of_events.error.square() + of_noise.error.square()).sqrt()
        nfe = path.nfe + change.nfe + of_events.nfe + of_noise.nfe
        return Change(log_noise[:, None] + log_det, error, nfe), path

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
        alpha, _ = self.denoiser.schedule(t)
        scale = alpha * self.data_std * torch.sqrt(1 + tan.square())
        events = z.reshape(-1, *self.event_shape).to(self.denoiser.data_std.dtype)
        x = over_events(scale, events).to(events.dtype) * events
        return self.denoiser.residual(x, t, context).to(z.dtype).flatten(1)

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
            # The score is not quite constant there.
            error = _HELD * log_det.mean(1).abs()
            nfe = torch.full_like(error, 2, dtype=torch.int32)
        return z - tau * local.velocity, Change(log_det, error, nfe)

    # At the other end, with psi the angle that is left, F at 0, psi, 2 psi and 3 psi on the way tells that of the rest.
    # A first look with the state held says where the way was. At 0 F is the mean of all events, and its Jacobian 0.

    def _reach_noise(self, z: Tensor, mean: Tensor) -> Tensor:
        first, states = self._before_noise(z)
        fields = [mean, first, *(look(state) for look, state in zip(self.looks[1:], states[1:], strict=True))]
        return z - self.left * _weighted(_TO_NOISE[-1], fields)

    def _leave_noise(self, noise: Tensor) -> Tensor:
        z, mean = noise, self._mean(noise)
        # What is left of the way is short, so that few rounds are needed: but for a denoiser that knows nothing yet.
        for _ in range(_MOST_ROUNDS):
            before, z = z, noise - (self._reach_noise(z, mean) - z)
            if not bool(((z - before).abs() > _CLOSE * torch.finfo(z.dtype).eps * z.abs()).any()):
                break
        return z

    def _change_at_noise(self, z: Tensor, divergence: Divergence) -> tuple[Tensor, Change]:
        every = torch.arange(len(z), device=z.device)
        _, states = self._before_noise(z)
        local = [divergence(look, state, every) for look, state in zip(self.looks, states, strict=True)]
        fields = [self._mean(z), *(each.velocity for each in local)]
        traces = [torch.zeros_like(local[0].trace), *(each.trace for each in local)]
        ended = [z - self.left * _weighted(weights, fields) for weights in _TO_NOISE]
        log_det = [-self.left * _weighted(weights, traces) for weights in _TO_NOISE]
        with torch.no_grad():
            weight = ended[-1].square().mean(1, keepdim=True, dtype=torch.float64).sqrt()
            error = torch.hypot(
                _remainder([weight * each for each in ended], self.left), _remainder(log_det, self.left)
            )
            nfe = torch.full_like(error, 2 * len(states) + 1, dtype=torch.int32)
        return ended[-1], Change(log_det[-1], error, nfe)

    def _mean(self, z: Tensor) -> Tensor:
        """The mean of all events by their deviation, given a context; ``[n, d]``.

        It is what is left of an event of noise alone. At the origin it is known but for a term in one over the square
        of the noise level, which a second level takes off.
        """
        origin = torch.zeros_like(z if self.context is not None else z[:1])
        angles = [self.left, 2 * self.left]
        means = [math.cos(angle) * look(origin) for angle, look in zip(angles, self.looks, strict=False)]
        near, far = (math.tan(angle) ** 2 for angle in angles)
        return ((far * means[0] - near * means[1]) / (far - near)).expand_as(z)

    def _before_noise(self, z: Tensor) -> tuple[Tensor, list[Tensor]]:
        """F for a state that is reached, at the first of three angles before noise alone, and its states at all."""
        fields = [look(z) for look in self.looks]
        return fields[0], [z, *(z + self.left * _weighted(weights, fields) for weights in _BACK)]


def _weighted(weights: tuple[float, ...], parts: list[Tensor]) -> Tensor:
    return torch.stack([weight * part for weight, part in zip(weights, parts, strict=True)]).sum(0)


def _remainder(values: list[Tensor], left: float) -> Tensor:
    """What is left of a series, of which three values are known: its last difference, which falls as it did before."""
    before, last = (norms(later - earlier) for earlier, later in pairwise(values))
    ratio = last / torch.where(before > 0, before, 1)
    return last * ratio.clamp(min(1.0, 3 * left), 1)
