"""The contract of a constraint: a bijection between a set of values and unconstrained numbers."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from sciflow.errors import ConfigError, ShapeError

__all__ = ["Constraint", "grow", "most_grown", "off", "ungrow"]


class Constraint(ABC):
    r"""A set of values, and a smooth bijection between it and :math:`R^d`, whose Jacobian counts.

    .. math:: v = g(u), \qquad \log p_U(u) = \log p_V(g(u)) + \log |\det \partial v / \partial u|

    However far out ``u`` is (some hundreds in every direction), ``v`` is strictly inside the set, and it, the
    log-determinant and their gradients are finite, in float32 too.

    Args:
        shape: Shape of one value; () of a number.
        num_free: How many unconstrained numbers stand for a value.
    """

    name: ClassVar[str]

    def __init__(self, shape: Sequence[int], num_free: int) -> None:
        self.shape = torch.Size(shape)
        self.num_free = num_free

    def from_free(self, free: Tensor) -> tuple[Tensor, Tensor]:
        """Map unconstrained numbers ``[*batch, num_free]`` to values ``[*batch, *shape]``.

        Returns:
            The values, and ``log |d value / d free|`` of shape ``[*batch]``.

        Raises:
            ShapeError: ``free`` has another shape.
        """
        if free.ndim < 1 or free.shape[-1] != self.num_free:
            expected = f"[*batch, {self.num_free}]"
            raise ShapeError(f"{self!r} takes unconstrained numbers {expected}; got {list(free.shape)}")
        return self._from_free(free)

    def to_free(self, value: Tensor) -> tuple[Tensor, Tensor]:
        """Map values ``[*batch, *shape]`` to unconstrained numbers ``[*batch, num_free]``.

        Returns:
            The numbers, and ``log |d free / d value|`` of shape ``[*batch]``.

        Raises:
            ConfigError: A value is not inside.
            ShapeError: ``value`` has another shape.
        """
        self.require(value, "value")
        free = self._to_free(value)
        return free, -self._from_free(free)[1]

    def require(self, value: Tensor, what: str) -> None:
        """Refuse values that are not of this constraint.

        Args:
            value: ``[*batch, *shape]``.
            what: What to call them in messages.

        Raises:
            ConfigError: One is outside, on the boundary, or not finite.
            ShapeError: They have another shape.
        """
        batch = value.ndim - len(self.shape)
        if batch < 0 or value.shape[batch:] != self.shape:
            raise ShapeError(f"{what} must have shape {list(self.shape)}, as {self!r} has; got {list(value.shape)}")
        inside = self._inside(value) & self._flat(value).isfinite().all(-1)
        if not bool(inside.all()):
            wrong = value[~inside][0].tolist()
            raise ConfigError(f"{what} = {wrong} does not fit {self!r}: it must be {self.description}")

    def reach(self, dtype: torch.dtype) -> Tensor:
        """How far out unconstrained numbers stand for the values of the formula: ``[num_free]``, inf for any distance.

        Further out floats hold no such values, and the bijection goes on in another way.
        """
        return torch.full((self.num_free,), math.inf, dtype=dtype)

    def _flat(self, value: Tensor) -> Tensor:
        """Values as rows ``[*batch, numbers]``."""
        return value.reshape(*value.shape[: value.ndim - len(self.shape)], self.shape.numel())

    @property
    @abstractmethod
    def description(self) -> str:
        """What a value must be, in messages."""

    @abstractmethod
    def options(self) -> dict[str, Any]:
        """Arguments that make this constraint again, as JSON can hold them."""

    @abstractmethod
    def _inside(self, value: Tensor) -> Tensor:
        """Whether each value is strictly inside: ``[*batch]``."""

    @abstractmethod
    def _from_free(self, free: Tensor) -> tuple[Tensor, Tensor]: ...

    @abstractmethod
    def _to_free(self, value: Tensor) -> Tensor: ...

    def to_json(self) -> dict[str, dict[str, Any]]:
        """Return what :func:`~sciflow.inference.constraints.as_constraint` reads, in what JSON can hold.

        Example:
            >>> from sciflow.inference.constraints import as_constraint, positive
            >>> as_constraint(positive(3).to_json())
            positive(3)
        """
        return {self.name: self.options()}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Constraint) and self.to_json() == other.to_json()

    def __hash__(self) -> int:
        return hash(repr(self))


def most_grown(dtype: torch.dtype) -> float:
    """How far out the exponential of :func:`grow` is one: what floats hold well."""
    return 0.8 * math.log(torch.finfo(dtype).max)


def grow(free: Tensor) -> tuple[Tensor, Tensor]:
    """The exponential and the logarithm of its slope: a line above and a hyperbola below what floats hold well."""
    limit = most_grown(free.dtype)
    inner, over, under = free.clamp(-limit, limit), (free - limit).clamp_min(0), (-limit - free).clamp_min(0)
    return inner.exp() * (1 + over) / (1 + under), inner - 2 * torch.log1p(under)


def ungrow(value: Tensor) -> Tensor:
    """The inverse of :func:`grow`, of numbers above zero."""
    limit = most_grown(value.dtype)
    over, under = (value * math.exp(-limit) - 1).clamp_min(0), (math.exp(-limit) / value - 1).clamp_min(0)
    return value.log().clamp(-limit, limit) + over - under


def off(step: Tensor, bound: Tensor) -> Tensor:
    """A step away from ``bound`` that rounding does not undo; its gradient is that of ``step``, however small."""
    finfo = torch.finfo(step.dtype)
    least = (bound.abs() * finfo.eps).clamp_min(finfo.tiny)
    return step + (least - step).clamp_min(0).detach()
