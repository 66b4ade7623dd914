"""Numbers with a lower bound, an upper one, both or none."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from sciflow.arguments import is_number
from sciflow.arrays import as_tensor
from sciflow.errors import ConfigError, DataError, ShapeError
from sciflow.inference.constraint import Constraint, grow, most_grown, off, ungrow
from sciflow.shapes import checked_shape

__all__ = ["Interval"]


class Interval(Constraint):
    r"""Numbers between two bounds, either of which may be infinite: ``real`` and ``positive`` are such.

    .. math::
        v = u, \qquad v = l + e^u, \qquad v = h - e^u, \qquad v = l + (h - l) \, \sigma(u)

    without a bound, with a lower one, with an upper one, and with both. Beyond :math:`|u| = 0.8 \log(\text{the
    largest number})` (71 in float32), where it would leave what floats hold, the exponential goes on as a line upwards
    and as a hyperbola downwards, with its own Jacobian. Next to a bound, values stay a rounding error away from it.

    Args:
        low: Lower bound, a number or an array that broadcasts to ``shape``; -inf or None for none.
        high: Upper bound, likewise.
        shape: Shape of one value, a number or several; bounds that are arrays bring their own.

    Raises:
        ConfigError: A bound is no number, or ``low`` is not below ``high`` by more than float32's rounding errors.
        ShapeError: ``shape`` is none, or the bounds do not broadcast to it.

    Example:
        >>> value, log_det = Interval(-1, 1).from_free(torch.tensor([[0.0], [300.0]]))
        >>> value, log_det
        (tensor([0.0000, 1.0000]), tensor([  -0.6931, -299.3069]))
        >>> Interval(low=0, shape=2).to_free(torch.tensor([1.0, 1.0]))
        (tensor([0., 0.]), tensor(-0.))
        >>> Interval(low=5)
        interval(5.0, None)
    """

    name = "interval"

    def __init__(self, low: Any = -math.inf, high: Any = math.inf, shape: int | Sequence[int] = ()) -> None:
        bounds = [_bound(low, "low", -math.inf), _bound(high, "high", math.inf)]
        given = torch.broadcast_shapes(*(bound.shape for bound in bounds)) if _broadcast(*bounds) else None
        if given is None:
            shapes = " and ".join(str(list(bound.shape)) for bound in bounds)
            raise ShapeError(f"interval: low and high must have one shape; got {shapes}")
        size = _shape(shape) or given
        super().__init__(size, size.numel())
        if not _broadcast(torch.empty(given), torch.empty(size)) or torch.broadcast_shapes(given, size) != size:
            raise ShapeError(f"interval: bounds of shape {list(given)} do not broadcast to shape {list(size)}")
        self.low, self.high = (bound.expand(size).flatten() for bound in bounds)
        single, extent = torch.finfo(torch.float32), self.high - self.low
        largest = torch.maximum(*(bound.abs().nan_to_num(posinf=0) for bound in (self.low, self.high)))
        apart = extent > (4 * single.eps * largest).clamp_min(4 * single.tiny)
        held = (largest < single.max) & ((extent < single.max) | extent.isinf())
        if not bool((apart & held).all()):
            raise ConfigError(
                "interval: low must be below high, and float32 must tell them and their distance apart; "
                f"got low={low}, high={high}"
            )

    def __call__(self, shape: int | Sequence[int]) -> Interval:
        """Return the same for values of another shape, to which the bounds broadcast."""
        return Interval(self.low.view(self.shape), self.high.view(self.shape), shape)

    @property
    def description(self) -> str:
        sides = zip(("above", "below"), self._ends(), strict=True)
        return " and ".join(["finite", *(f"{side} {bound}" for side, bound in sides if bound is not None)])

    def options(self) -> dict[str, Any]:
        low, high = self._ends()
        return {"low": low, "high": high, "shape": list(self.shape)}

    def _ends(self) -> tuple[Any, Any]:
        """The bounds as JSON has them: one number where all are the same, None for an infinite one."""
        low, high = (
            bound[0].item() if bool((bound == bound[0]).all()) else bound.view(self.shape).tolist()
            for bound in (self.low, self.high)
        )
        return _infinite_to_none(low), _infinite_to_none(high)

    def reach(self, dtype: torch.dtype) -> Tensor:
        one_sided = self.low.isfinite() ^ self.high.isfinite()
        return super().reach(dtype).masked_fill(one_sided, most_grown(dtype))

    def _inside(self, value: Tensor) -> Tensor:
        flat = self._flat(value)
        return ((flat > self.low.to(flat)) & (flat < self.high.to(flat))).all(-1)

    def _parts(self, like: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Finite stand-ins for the bounds, and which of them are bounds."""
        low, high = self.low.to(like), self.high.to(like)
        below, above = low.isfinite(), high.isfinite()
        return low.masked_fill(~below, 0), high.masked_fill(~above, 0), below, above

    def _from_free(self, free: Tensor) -> tuple[Tensor, Tensor]:
        low, high, below, above = self._parts(free)
        grown, log_slope = grow(free)
        extent = torch.where(below & above, high - low, 1)
        # From the nearer bound, where the digits are.
        up = low + off(torch.where(above, extent * torch.sigmoid(free), grown), low)
        down = high - off(torch.where(below, extent * torch.sigmoid(-free), grown), high)
        value = torch.where(above & ((free >= 0) | ~below), down, up)
        value = torch.where(below | above, value, free)
        both = extent.log() + F.logsigmoid(free) + F.logsigmoid(-free)
        terms = torch.where(below & above, both, torch.where(below | above, log_slope, 0))
        return value.reshape((*free.shape[:-1], *self.shape)), terms.sum(-1)

    def _to_free(self, value: Tensor) -> Tensor:
        value = self._flat(value)
        low, high, below, above = self._parts(value)
        over, under = torch.where(below, value - low, 1), torch.where(above, high - value, 1)
        one = ungrow(torch.where(below, over, under))
        return torch.where(below & above, over.log() - under.log(), torch.where(below | above, one, value))

    def __repr__(self) -> str:
        inner = ", ".join(str(size) for size in self.shape)
        inner = f"({inner})" if len(self.shape) > 1 else inner
        low, high = self._ends()
        for name, ends in (("real", (None, None)), ("positive", (0, None))):
            if (low, high) == ends:
                return f"{name}({inner})" if inner else name
        return f"interval({low}, {high}{', ' + inner if inner else ''})"


def _bound(value: Any, name: str, default: float) -> Tensor:
    try:
        bound = as_tensor(_none_to(default, value), name)
    except DataError as error:
        raise ConfigError(f"interval: {error}") from None
    if bool(bound.isnan().any()):
        raise ConfigError(f"interval: {name} must be a number; got {value}")
    return bound


def _none_to(default: float, value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_none_to(default, item) for item in value]
    return default if value is None else value


def _infinite_to_none(value: Any) -> Any:
    if isinstance(value, list):
        return [_infinite_to_none(item) for item in value]
    return value if math.isfinite(value) else None


def _broadcast(*tensors: Tensor) -> bool:
    try:
        torch.broadcast_tensors(*tensors)
    except RuntimeError:
        return False
    return True


def _shape(shape: Any) -> torch.Size:
    if is_number(shape):
        shape = (shape,)
    return torch.Size() if isinstance(shape, Sequence) and len(shape) == 0 else checked_shape(shape, "shape")
