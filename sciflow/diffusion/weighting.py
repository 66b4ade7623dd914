"""Which times a network is trained at, and how much each of them counts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from sciflow.arguments import is_number, named
from sciflow.diffusion.schedules import Schedule
from sciflow.errors import ConfigError, nearest

__all__ = ["WEIGHTINGS", "Weighting", "weighting"]


_Times = Literal["time", "level", "normal"]
_Counts = Literal["answer", "noise", "min-snr"]


@dataclass(frozen=True)
class Weighting:
    r"""A distribution of times, and a weight for each of them.

    .. math:: L = E_{t, \varepsilon} \; w(t) \, \| \hat x_0 - x_0 \|^2

    Attributes:
        times: ``"time"`` spreads the schedule's time evenly, ``"level"`` the logarithm of the noise level;
            ``"normal"`` draws that logarithm, in units of the events' deviation, from a normal distribution.
        counts: What is counted alike at all times: ``"answer"`` the network's answer, ``"noise"`` the error of the
            noise (the weight is the signal-to-noise ratio :math:`\alpha^2 / \sigma^2`), ``"min-snr"`` the same where it
            is below ``most``, and the error of the event above.
        mean: Of the normal distribution.
        std: Of the normal distribution.
        most: See ``"min-snr"``.

    Raises:
        ConfigError: One of them is none that there is, or out of range.
    """

    times: _Times
    counts: _Counts
    mean: float = 0.0
    std: float = 1.0
    most: float = 5.0

    def __post_init__(self) -> None:
        for name, known in (("times", get_args(_Times)), ("counts", get_args(_Counts))):
            value = getattr(self, name)
            if not isinstance(value, str) or value not in known:
                raise ConfigError(f"weighting: {name}: got {value!r:.80}; {nearest(str(value), known)}")
        for name in ("mean", "std", "most"):
            value = getattr(self, name)
            number = is_number(value) and math.isfinite(value)
            if not number or (name != "mean" and value <= 0):
                kind = "a number" if name == "mean" else "a positive number"
                raise ConfigError(f"weighting: {name} must be {kind}; got {value!r:.80}")
            object.__setattr__(self, name, float(value))

    @property
    def specification(self) -> dict[str, Any] | None:
        """The weighting as JSON holds it, and :func:`weighting` takes it; None for one that is not of this module."""
        return asdict(self) if type(self) is Weighting else None

    def draw(self, shares: Tensor, schedule: Schedule, data_std: Tensor) -> Tensor:
        """Return times for ``shares``, even in (0, 1)."""
        first, last = schedule.t_min, schedule.t_max
        if self.times == "time":
            return first + shares * (last - first)
        ends = shares.new_tensor([first, last])
        low, high = schedule.noise_level(ends).log()
        if self.times == "level":
            return schedule.time(torch.exp(low + shares * (high - low)))
        normal = math.sqrt(2) * torch.erfinv((2 * shares - 1).clamp(-1 + 1e-7, 1 - 1e-7))
        log_level = self.mean + self.std * normal + data_std.to(shares).log()
        return schedule.time(torch.exp(log_level.clamp(low, high)))

    def weight(self, alpha: Tensor, sigma: Tensor, out: Tensor, data_std: Tensor) -> Tensor:
        """Return the weight of a squared error of the network's answer, which ``out`` times is that of the event."""
        if self.counts == "answer":
            return torch.ones_like(out)
        ratio = (alpha / sigma).square()
        if self.counts == "min-snr":
            ratio = ratio.clamp_max(self.most / data_std.square())
        return ratio * out.square()


#: By name, each with its source.
WEIGHTINGS: dict[str, Weighting] = {
    "simple": Weighting("time", "answer"),  # Ho et al., arXiv:2006.11239
    "min-snr": Weighting("time", "min-snr"),  # Hang et al., arXiv:2303.09556
    # Karras et al., arXiv:2206.00364: -1.2 is for images, whose deviation is 0.5.
    "edm": Weighting("normal", "answer", mean=-1.2 + math.log(2), std=1.2),
    # The same for densities, whose edges and ridges are finer than what the eye sees of an image: over five thousand
    # steps on a table of 8 columns (HTRU2) the bound is 1.6 nats above that of "edm", and draws are as good or better.
    "wide": Weighting("normal", "answer", mean=-1.2, std=1.6),
    # Kingma et al., arXiv:2107.00630; Song et al., arXiv:2101.09258, with times drawn by importance.
    "likelihood": Weighting("level", "noise"),
    # Esser et al., arXiv:2403.03206: for straight paths, the logit of time is the logarithm of the noise level.
    "logit-normal": Weighting("normal", "answer"),
}


def weighting(given: str | Mapping[str, Any] | Weighting) -> Weighting:
    """Return a weighting by name, with numbers of the user's where there are any, or as it is.

    Args:
        given: ``"wide"``, ``"edm"``, ``"simple"``, ``"min-snr"``, ``"likelihood"`` or ``"logit-normal"``; a mapping
            such as ``{"edm": {"mean": -1.2}}``; or a :class:`Weighting`, also as a mapping from its attributes, such
            as ``{"times": "time", "counts": "noise"}``.

    Raises:
        ConfigError: There is none of this name, or it has no such number.

    Example:
        >>> weighting({"edm": {"std": 1.6}}).std
        1.6
        >>> weighting(Weighting("time", "noise").specification) == Weighting("time", "noise")
        True
    """
    if isinstance(given, Weighting):
        return given
    if isinstance(given, Mapping) and given.keys() >= {"times", "counts"}:
        known = [field.name for field in fields(Weighting)]
        for key in given:
            if key not in known:
                raise ConfigError(f"weighting: unknown {key!r:.80}; {nearest(str(key), known)}")
        return Weighting(**given)
    name, numbers = named("weighting", given, WEIGHTINGS)
    numbers_of = {"normal": ("mean", "std")}.get(WEIGHTINGS[name].times, ()) + (
        ("most",) if WEIGHTINGS[name].counts == "min-snr" else ()
    )
    if any(key not in numbers_of for key in numbers):
        raise ConfigError(f"weighting: {name} takes {', '.join(numbers_of) or 'no numbers'}; got {numbers!r:.80}")
    return Weighting(**{**asdict(WEIGHTINGS[name]), **numbers})
