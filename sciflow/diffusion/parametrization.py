"""What a network is asked for, and how the mean of the clean event follows from its answer."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from sciflow.diffusion.schedules import Schedule

__all__ = ["PARAMETRIZATIONS", "Levels", "mean_from", "turn"]

_EARLIEST = 1e-12  # at time 0 the rate of the noise may be infinite


class Levels(NamedTuple):
    """Where in a schedule a row is; every entry ``[n, 1, ...]``, so that it broadcasts over events.

    Attributes:
        alpha: Signal.
        sigma: Noise.
        turn: Rate of change of the signal by that of the noise, which stays finite where the latter does not; see
            :func:`turn`.
        data_std: Standard deviation of normalised events.
    """

    alpha: Tensor
    sigma: Tensor
    turn: Tensor
    data_std: Tensor


def _noise(at: Levels) -> tuple[Tensor, Tensor]:
    return 1 / at.alpha, -at.sigma / at.alpha


def _score(at: Levels) -> tuple[Tensor, Tensor]:
    return 1 / at.alpha, at.sigma / at.alpha


def _data(at: Levels) -> tuple[Tensor, Tensor]:
    return torch.zeros_like(at.alpha), at.data_std.expand_as(at.alpha)


def _v(at: Levels) -> tuple[Tensor, Tensor]:
    power = at.alpha.square() + at.sigma.square()
    size = torch.sqrt(at.alpha.square() + (at.sigma * at.data_std).square())
    return at.alpha / power, -at.sigma * size / power


def _velocity(at: Levels) -> tuple[Tensor, Tensor]:
    size = torch.sqrt(1 + (at.turn * at.data_std).square())
    signal = at.alpha - at.sigma * at.turn
    return 1 / signal, -at.sigma * size / signal


def _edm(at: Levels) -> tuple[Tensor, Tensor]:
    power = (at.alpha * at.data_std).square() + at.sigma.square()
    return at.alpha * at.data_std.square() / power, at.sigma * at.data_std / torch.sqrt(power)


#: Skip and output scales of each, by name.
PARAMETRIZATIONS: dict[str, Callable[[Levels], tuple[Tensor, Tensor]]] = {
    "edm": _edm,
    "noise": _noise,
    "data": _data,
    "v": _v,
    "score": _score,
    "velocity": _velocity,
}


def turn(name: str, schedule: Schedule, t: Tensor) -> Tensor:
    """Return the rate of change of the signal by that of the noise, where a parametrisation asks for it; or zeros.

    Args:
        name: Of the parametrisation.
        schedule: Of the times.
        t: Times.
    """
    if name != "velocity":
        return torch.zeros_like(t)
    alpha_rate, sigma_rate = schedule.derivatives(t.clamp_min(_EARLIEST))
    return alpha_rate / sigma_rate


def mean_from(name: str, at: Levels) -> tuple[Tensor, Tensor]:
    r"""Return what turns a network's answer :math:`F` into the mean of the clean event, ``(skip, out)``.

    .. math:: \hat x_0 = c_\mathrm{skip} \, x_t + c_\mathrm{out} \, F

    with :math:`s` the standard deviation of events, and the answer of unit size or so in all of them:

    - ``"noise"``: :math:`F = \hat\varepsilon` (Ho et al., arXiv:2006.11239);
    - ``"score"``: :math:`F = \sigma \nabla \log p_t` (Song et al., arXiv:2011.13456), the same but for the sign;
    - ``"data"``: :math:`F = \hat x_0 / s`;
    - ``"v"``: :math:`F \propto \alpha \hat\varepsilon - \sigma \hat x_0` (Salimans and Ho, arXiv:2202.00512);
    - ``"velocity"``: :math:`F \propto \dot\alpha \hat x_0 + \dot\sigma \hat\varepsilon`, which for straight paths is
      the field of flow matching (Lipman et al., arXiv:2210.02747);
    - ``"edm"``: :math:`c_\mathrm{skip} = \alpha s^2 / (\alpha^2 s^2 + \sigma^2)` is what a Gaussian would have for an
      answer by itself, and :math:`c_\mathrm{out}` makes the remainder of unit size (Karras et al., arXiv:2206.00364).

    Args:
        name: One of them.
        at: Where in the schedule.

    Example:
        >>> one = torch.ones(1)
        >>> mean_from("edm", Levels(alpha=one, sigma=one, turn=0 * one, data_std=one))
        (tensor([0.5000]), tensor([0.7071]))
    """
    return PARAMETRIZATIONS[name](at)
