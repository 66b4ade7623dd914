"""Where parameters live, in the words of users: ``real``, ``positive``, ``interval``, ``simplex``, ``ordered``."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from sciflow.errors import ConfigError, nearest
from sciflow.inference.constraint import Constraint, grow, most_grown, off, ungrow
from sciflow.inference.intervals import Interval

__all__ = [
    "Constraint",
    "Interval",
    "Ordered",
    "Simplex",
    "as_constraint",
    "interval",
    "ordered",
    "positive",
    "real",
    "simplex",
]


class Simplex(Constraint):
    r"""Numbers above zero that sum to one, by breaking a stick, as Stan does.

    .. math::
        z_i = \sigma(u_i - \log(k - i)), \qquad v_i = z_i \prod_{j<i} (1 - z_j), \qquad i = 1, \dots, k - 1

    and :math:`v_k` is what is left; :math:`u = 0` is the centre. The volume, of which densities on the simplex speak,
    is that of the first :math:`k - 1` numbers.

    Args:
        k: How many numbers, 2 or more.

    Raises:
        ConfigError: ``k`` is not.

    Example:
        >>> simplex(4).from_free(torch.zeros(3))[0]
        tensor([0.2500, 0.2500, 0.2500, 0.2500])
    """

    name = "simplex"

    def __init__(self, k: int) -> None:
        k = _several(k, self.name)
        super().__init__((k,), k - 1)
        self.offset = torch.arange(k - 1, 0, -1, dtype=torch.float64).log()

    @property
    def description(self) -> str:
        return "numbers above 0 that sum to 1"

    def options(self) -> dict[str, Any]:
        return {"k": self.shape[0]}

    def _inside(self, value: Tensor) -> Tensor:
        return (value > 0).all(-1) & ((value.sum(-1) - 1).abs() <= 1e-4)

    def _from_free(self, free: Tensor) -> tuple[Tensor, Tensor]:
        logits = free - self.offset.to(free)
        log_taken, log_left = F.logsigmoid(logits), F.logsigmoid(-logits)
        left = F.pad(log_left.cumsum(-1), (1, 0))
        log_value = left + F.pad(log_taken, (0, 1))
        finfo = torch.finfo(free.dtype)
        # No number is 0, and none is 1, in floats.
        value = log_value.exp().clamp(finfo.tiny, 1 - finfo.eps)
        return value, (left[..., :-1] + log_taken + log_left).sum(-1)

    def _to_free(self, value: Tensor) -> Tensor:
        rest = value.flip(-1).cumsum(-1).flip(-1)[..., 1:]
        return value[..., :-1].log() - rest.log() + self.offset.to(value)

    def __repr__(self) -> str:
        return f"simplex({self.shape[0]})"


class Ordered(Constraint):
    r"""Numbers each of which is above the one before.

    .. math:: v_1 = u_1, \qquad v_i = v_{i-1} + e^{u_i}, \qquad \log |\det J| = \sum_{i>1} u_i

    The exponential goes on far out as that of :class:`Interval` does.

    Args:
        k: How many numbers, 2 or more.

    Raises:
        ConfigError: ``k`` is not.

    Example:
        >>> ordered(3).from_free(torch.zeros(3))
        (tensor([0., 1., 2.]), tensor(0.))
    """

    name = "ordered"

    def __init__(self, k: int) -> None:
        k = _several(k, self.name)
        super().__init__((k,), k)

    @property
    def description(self) -> str:
        return "increasing numbers"

    def options(self) -> dict[str, Any]:
        return {"k": self.shape[0]}

    def reach(self, dtype: torch.dtype) -> Tensor:
        reach = super().reach(dtype)
        reach[1:] = most_grown(dtype)
        return reach

    def _inside(self, value: Tensor) -> Tensor:
        return (value.diff(dim=-1) > 0).all(-1)

    def _from_free(self, free: Tensor) -> tuple[Tensor, Tensor]:
        steps, log_slope = grow(free[..., 1:])
        values = [free[..., 0]]
        for step in steps.unbind(-1):
            values.append(values[-1] + off(step, values[-1]))
        return torch.stack(values, -1), log_slope.sum(-1)

    def _to_free(self, value: Tensor) -> Tensor:
        return torch.cat([value[..., :1], ungrow(value.diff(dim=-1))], -1)

    def __repr__(self) -> str:
        return f"ordered({self.shape[0]})"


interval, simplex, ordered = Interval, Simplex, Ordered
real, positive = Interval(), Interval(low=0)

_KINDS: dict[str, Callable[..., Constraint]] = {"interval": interval, "simplex": simplex, "ordered": ordered}
_SCALARS: dict[str, Callable[..., Constraint]] = {"real": real, "positive": positive}


def as_constraint(given: Any, what: str = "constraint") -> Constraint:
    """Return a constraint that is given as such, by name, or by name and arguments.

    Args:
        given: A :class:`Constraint`; ``"real"`` or ``"positive"``; or a name with arguments, as a tuple or a mapping:
            ``("interval", 0, 1)``, ``{"positive": [2, 2]}``, ``{"interval": {"low": 0, "high": 1}}``.
        what: What to call it in messages.

    Raises:
        ConfigError: There is no such constraint, or it does not take these arguments.
        ShapeError: A shape among the arguments is none.

    Example:
        >>> as_constraint("positive"), as_constraint({"interval": [0, 1]}), as_constraint(("simplex", 3))
        (positive, interval(0.0, 1.0), simplex(3))
    """
    if isinstance(given, Constraint):
        return given
    name: Any = given
    arguments: Any = ()
    if isinstance(given, Mapping) and len(given) == 1:
        name, arguments = next(iter(given.items()))
    elif isinstance(given, tuple | list) and given:
        name, *arguments = given
    known = [*_SCALARS, *_KINDS]
    if not isinstance(name, str) or name not in known:
        raise ConfigError(f"{what}: unknown {given!r:.80}; {nearest(str(name), known)}")
    if not isinstance(arguments, Mapping | list | tuple):
        arguments = [arguments]
    if name in _SCALARS and not isinstance(arguments, Mapping):
        # ("real", 2, 3) and ("real", (2, 3)) mean the same.
        arguments = {"shape": arguments[0] if len(arguments) == 1 else arguments}
    make = _SCALARS.get(name) or _KINDS[name]
    try:
        return make(**arguments) if isinstance(arguments, Mapping) else make(*arguments)
    except TypeError:
        raise ConfigError(f"{what}: {name} does not take {arguments!r:.80}") from None


def _several(k: Any, name: str) -> int:
    try:
        number = operator.index(k)
    except TypeError:
        number = 0
    if number < 2 or isinstance(k, bool):
        raise ConfigError(f"{name}: k must be a whole number of 2 or more; got {k!r:.80}")
    return number
