"""Schedules: how much of the signal is left at time t, and how much noise has come to it."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from sciflow.arguments import is_number, named
from sciflow.errors import ConfigError

__all__ = [
    "EDM",
    "Cosine",
    "Rectified",
    "Schedule",
    "SubVariancePreserving",
    "VarianceExploding",
    "VariancePreserving",
    "schedule",
]

_LEAST_NOISE, _MOST_NOISE = 1e-3, 1e3  # noise over signal, for events of unit variance
_BISECTIONS = 64
_LOOKED_AT = 101  # times at which a schedule is looked at before it is used


class Schedule(ABC):
    r"""A pure function of time that says how an event turns into noise.

    .. math:: x_t = \alpha(t) \, x_0 + \sigma(t) \, \varepsilon, \qquad \varepsilon \sim N(0, 1), \qquad t \in [0, 1]

    with :math:`\alpha(0) = 1` and :math:`\sigma(0) = 0`: time 0 is data, time 1 noise. The ratio
    :math:`\sigma / \alpha`, the *noise level*, rises all the way; two schedules differ in when a level is reached, and
    in the scale of :math:`x_t`, and in nothing else (Kingma et al., arXiv:2107.00630).

    A schedule of your own gives ``__call__``; the rest follows from it, by automatic derivatives and bisection. Those
    here give closed forms.

    Example:
        >>> class Quadratic(Schedule):
        ...     def __call__(self, t):
        ...         return 1 - t**2, t**2
        >>> alpha_rate, sigma_rate = Quadratic().derivatives(torch.tensor(0.5))
        >>> float(sigma_rate), round(float(Quadratic().time(torch.tensor(1 / 3))), 6)
        (1.0, 0.5)
    """

    @abstractmethod
    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``(alpha, sigma)`` at times ``t`` of any shape, in their dtype."""

    def derivatives(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return the rates of change of ``alpha`` and ``sigma``, at times above 0."""
        rates: tuple[Tensor, Tensor] = torch.func.jvp(self.__call__, (t,), (torch.ones_like(t),))[1]
        return rates

    def noise_level(self, t: Tensor) -> Tensor:
        r"""Return :math:`\sigma / \alpha`; infinite where no signal is left."""
        alpha, sigma = self(t)
        return sigma / alpha

    def time(self, noise_level: Tensor) -> Tensor:
        """Return the time at which a noise level is reached; 1 where it never is."""
        low, high = torch.zeros_like(noise_level), torch.ones_like(noise_level)
        for _ in range(_BISECTIONS):
            middle = (low + high) / 2
            alpha, sigma = self(middle)
            below = sigma < noise_level * alpha
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        return (low + high) / 2

    @property
    def t_min(self) -> float:
        """Time at which an event of unit variance is as good as free of noise: there are a thousandth of it."""
        return float(self.time(torch.tensor(_LEAST_NOISE, dtype=torch.float64)))

    @property
    def t_max(self) -> float:
        """Time at which it is as good as noise; 1, unless a thousandth of the signal is reached before."""
        return min(1.0, float(self.time(torch.tensor(_MOST_NOISE, dtype=torch.float64))))

    @property
    def specification(self) -> dict[str, Any] | None:
        """The schedule as JSON holds it; None for one that is not of this module."""
        name = next((name for name, kind in _KINDS.items() if kind is type(self)), None)
        return None if name is None else {name: dict(vars(self))}

    def __repr__(self) -> str:
        numbers = [f"{name}={value:g}" for name, value in vars(self).items() if isinstance(value, Real)]
        return f"{type(self).__name__}({', '.join(numbers)})"


class VariancePreserving(Schedule):
    r"""Linear rates of noise, the continuous form of DDPM's.

    .. math:: \log \alpha = -\tfrac14 t^2 (\beta_1 - \beta_0) - \tfrac12 t \beta_0, \qquad \sigma^2 = 1 - \alpha^2

    Source: Song et al., arXiv:2011.13456; Ho et al., arXiv:2006.11239.

    Args:
        beta_min: Rate :math:`\beta_0` at time 0.
        beta_max: Rate :math:`\beta_1` at time 1.

    Example:
        >>> alpha, sigma = VariancePreserving()(torch.tensor(1.0))
        >>> round(float(alpha), 4), round(float(sigma), 4)
        (0.0066, 1.0)
    """

    def __init__(self, beta_min: float = 0.1, beta_max: float = 20.0) -> None:
        _require_rising("beta_min", beta_min, "beta_max", beta_max)
        self.beta_min, self.beta_max = float(beta_min), float(beta_max)

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        log_alpha = self._log_alpha(t)
        return torch.exp(log_alpha), torch.sqrt(-torch.expm1(2 * log_alpha))

    def derivatives(self, t: Tensor) -> tuple[Tensor, Tensor]:
        alpha, sigma = self(t)
        half_rate = (self.beta_min + t * (self.beta_max - self.beta_min)) / 2
        return -half_rate * alpha, half_rate * alpha.square() / sigma

    def time(self, noise_level: Tensor) -> Tensor:
        return self._time_of(torch.log1p(noise_level.square()))

    def _log_alpha(self, t: Tensor) -> Tensor:
        return -t * (t * (self.beta_max - self.beta_min) / 4 + self.beta_min / 2)

    def _time_of(self, minus_two_log_alpha: Tensor) -> Tensor:
        # The root of a quadratic, in the form that loses no digits near 0.
        slope = self.beta_max - self.beta_min
        root = torch.sqrt(self.beta_min**2 + 2 * slope * minus_two_log_alpha)
        return (2 * minus_two_log_alpha / (self.beta_min + root)).clamp_max(1)


class SubVariancePreserving(VariancePreserving):
    r"""The signal of :class:`VariancePreserving` with less noise: :math:`\sigma = 1 - \alpha^2`.

    Source: Song et al., arXiv:2011.13456, who find better likelihoods with it.

    Args:
        beta_min: Rate of noise at time 0.
        beta_max: Rate of noise at time 1.

    Example:
        >>> alpha, sigma = SubVariancePreserving()(torch.tensor(0.3, dtype=torch.float64))
        >>> bool(torch.isclose(sigma, 1 - alpha**2))
        True
    """

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        log_alpha = self._log_alpha(t)
        return torch.exp(log_alpha), -torch.expm1(2 * log_alpha)

    def derivatives(self, t: Tensor) -> tuple[Tensor, Tensor]:
        alpha, _ = self(t)
        rate = self.beta_min + t * (self.beta_max - self.beta_min)
        return -rate / 2 * alpha, rate * alpha.square()

    def time(self, noise_level: Tensor) -> Tensor:
        return self._time_of(2 * torch.asinh(noise_level / 2))


class Cosine(Schedule):
    r"""A quarter of a circle: :math:`\alpha = \cos(\pi t / 2), \; \sigma = \sin(\pi t / 2)`.

    Noise comes in more slowly at both ends than in :class:`VariancePreserving`. Source: Nichol and Dhariwal,
    arXiv:2102.09672; without their offset as in Salimans and Ho, arXiv:2202.00512.

    Example:
        >>> alpha, sigma = Cosine()(torch.tensor(0.5))
        >>> bool(torch.isclose(alpha, sigma))
        True
    """

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        angle = t * (math.pi / 2)
        return torch.cos(angle), torch.sin(angle)

    def derivatives(self, t: Tensor) -> tuple[Tensor, Tensor]:
        alpha, sigma = self(t)
        return -math.pi / 2 * sigma, math.pi / 2 * alpha

    def time(self, noise_level: Tensor) -> Tensor:
        return torch.atan(noise_level) * (2 / math.pi)


class VarianceExploding(Schedule):
    r"""All of the signal, and noise that grows geometrically.

    .. math:: \alpha = 1, \qquad \sigma^2 = \sigma_0^2 \left( (\sigma_1 / \sigma_0)^{2t} - 1 \right)

    Source: Song et al., arXiv:2011.13456; this is the exact solution of their equation, which begins without noise.

    Args:
        sigma_min: Scale :math:`\sigma_0` from which on noise grows, in units of the normalised event.
        sigma_max: Scale :math:`\sigma_1` of the noise at time 1.

    Example:
        >>> alpha, sigma = VarianceExploding()(torch.tensor([0.0, 1.0]))
        >>> alpha.tolist(), sigma.round(decimals=3).tolist()
        ([1.0, 1.0], [0.0, 50.0])
    """

    def __init__(self, sigma_min: float = 0.01, sigma_max: float = 50.0) -> None:
        _require_rising("sigma_min", sigma_min, "sigma_max", sigma_max)
        self.sigma_min, self.sigma_max = float(sigma_min), float(sigma_max)

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return torch.ones_like(t), self.sigma_min * torch.sqrt(torch.expm1(2 * self._log_ratio * t))

    def derivatives(self, t: Tensor) -> tuple[Tensor, Tensor]:
        _, sigma = self(t)
        rate = self._log_ratio * self.sigma_min**2 * torch.exp(2 * self._log_ratio * t) / sigma
        return torch.zeros_like(t), rate

    def time(self, noise_level: Tensor) -> Tensor:
        growth = torch.log1p((noise_level / self.sigma_min).square())
        return (growth / (2 * self._log_ratio)).clamp_max(1)

    @property
    def _log_ratio(self) -> float:
        return math.log(self.sigma_max / self.sigma_min)


class EDM(Schedule):
    r"""All of the signal, and noise that grows steadily: :math:`\alpha = 1, \; \sigma = \sigma_1 t`.

    Its probability-flow trajectories bend least. Source: Karras et al., arXiv:2206.00364, whose time is
    :math:`\sigma` itself.

    Args:
        sigma_max: Scale :math:`\sigma_1` of the noise at time 1, in units of the normalised event.

    Example:
        >>> EDM()(torch.tensor([0.0, 0.5]))
        (tensor([1., 1.]), tensor([ 0., 40.]))
    """

    def __init__(self, sigma_max: float = 80.0) -> None:
        _require_positive("sigma_max", sigma_max)
        self.sigma_max = float(sigma_max)

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return torch.ones_like(t), self.sigma_max * t

    def derivatives(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return torch.zeros_like(t), torch.full_like(t, self.sigma_max)

    def time(self, noise_level: Tensor) -> Tensor:
        return (noise_level / self.sigma_max).clamp_max(1)


class Rectified(Schedule):
    r"""Straight paths, the schedule of flow matching: :math:`\alpha = 1 - t, \; \sigma = t`.

    Source: Lipman et al., arXiv:2210.02747; Liu et al., arXiv:2209.03003. Their time runs the other way in the former.

    Example:
        >>> Rectified()(torch.tensor([0.0, 0.25]))
        (tensor([1.0000, 0.7500]), tensor([0.0000, 0.2500]))
    """

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return 1 - t, t.clone()

    def derivatives(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return -torch.ones_like(t), torch.ones_like(t)

    def time(self, noise_level: Tensor) -> Tensor:
        return noise_level / (1 + noise_level)


_KINDS: dict[str, type[Schedule]] = {
    "vp": VariancePreserving,
    "cosine": Cosine,
    "sub-vp": SubVariancePreserving,
    "ve": VarianceExploding,
    "edm": EDM,
    "flow": Rectified,
}


def schedule(given: str | Mapping[str, Any] | Schedule) -> Schedule:
    """Return a schedule by name, or as it is.

    Args:
        given: ``"vp"``, ``"cosine"``, ``"sub-vp"``, ``"ve"``, ``"edm"`` or ``"flow"``; with numbers of yours a mapping,
            such as ``{"vp": {"beta_max": 10.0}}``; or a :class:`Schedule`.

    Raises:
        ConfigError: The name or a number is none that there is; or it does not lead from events to noise.

    Example:
        >>> alpha, sigma = schedule("flow")(torch.tensor(0.25))
        >>> float(alpha), float(sigma)
        (0.75, 0.25)
        >>> schedule("vpp")
        Traceback (most recent call last):
        sciflow.errors.ConfigError: schedule: unknown 'vpp'; did you mean vp?
    """
    if isinstance(given, Schedule):
        _require_way_to_noise(given)
        return given
    plain = "sub-vp" if isinstance(given, str) and given.lower() == "subvp" else given  # as many write it
    name, numbers = named("schedule", plain, _KINDS)
    try:
        chosen = _KINDS[name](**numbers)
    except TypeError:
        raise ConfigError(f"schedule: {name} does not take {numbers!r:.80}") from None
    _require_way_to_noise(chosen)
    return chosen


def _require_way_to_noise(chosen: Schedule) -> None:
    """Refuse what is no function of time, or does not lead from events to noise."""
    t = torch.linspace(0, 1, _LOOKED_AT, dtype=torch.float64)[:, None]
    with torch.no_grad():
        found: Any = chosen(t)
    pair: list[Any] = list(found) if isinstance(found, tuple | list) else [found]
    fits = [isinstance(part, Tensor) and part.is_floating_point() and part.shape == t.shape for part in pair]
    if fits != [True, True]:
        raise ConfigError(f"schedule: {chosen!r} must return (alpha, sigma), two tensors of the shape of t")
    alpha, sigma = (part.flatten() for part in pair)
    # At time 1 there may be no signal left, and rounding may have it on either side of 0.
    if not (torch.isfinite(alpha).all() and torch.isfinite(sigma).all() and (alpha[:-1] >= 0).all()):
        raise ConfigError(f"schedule: {chosen!r} must have alpha of 0 or more, and both finite, at all t from 0 to 1")
    levels = torch.where(alpha > 0, sigma / alpha, torch.inf).clamp(_LEAST_NOISE, _MOST_NOISE)
    beyond = (levels == _LEAST_NOISE) | (levels == _MOST_NOISE)
    if not ((levels.diff() > 0) | ((levels.diff() == 0) & beyond[1:])).all():
        raise ConfigError(f"schedule: {chosen!r} must have noise that rises against signal, sigma / alpha, all the way")
    if levels[-1] < 1:
        raise ConfigError(
            f"schedule: {chosen!r} ends at a noise level, sigma / alpha, of {sigma[-1] / alpha[-1]:.2g}, through which "
            "events of deviation 1 still show: draws begin at noise alone, at a level of 10 or more"
        )


def _require_positive(name: str, value: Any) -> None:
    if not (is_number(value) and 1e-12 <= value <= 1e12):
        raise ConfigError(f"schedule: {name} must be a positive number; got {value!r:.80}")


def _require_rising(low_name: str, low: Any, high_name: str, high: Any) -> None:
    _require_positive(low_name, low)
    _require_positive(high_name, high)
    if not low < high:
        raise ConfigError(f"schedule: {low_name} must be below {high_name}; got {low!r} and {high!r}")
