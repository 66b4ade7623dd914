"""The contract of a preprocessor: a bijection from data units with numbers that are given, or learned by a formula."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Self

import torch
from torch import Tensor

from sciflow.arguments import is_number
from sciflow.bijections.base import Bijection
from sciflow.errors import ConfigError, DataError

__all__ = ["Exact", "Preprocessor", "require_numbers", "require_positive", "require_whole"]

_ROWS = 1 << 16


class Exact(Bijection):
    """A bijection whose given constants are exact in every dtype: moved to float64, 0.1 is 0.1, not float32's.

    Args:
        event_shape: Shape of one event.
    """

    def __init__(self, event_shape: Sequence[int]) -> None:
        super().__init__(event_shape)
        self._constants: dict[str, Tensor] = {}

    def _constant(self, name: str, values: Tensor) -> None:
        """Keep what was given, in float64, as a buffer of the default dtype."""
        self._constants[name] = values
        self.register_buffer(name, values.to(torch.get_default_dtype()))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """What ``to``, ``double`` and ``cuda`` come down to."""
        before = {name: self.get_buffer(name).dtype for name in self._constants}
        super()._apply(fn, recurse)
        for name, values in self._constants.items():
            buffer = self.get_buffer(name)
            # Anything else than what was given comes from a state dict, and stays.
            as_given = buffer == values.to(before[name]).to(buffer)
            buffer.copy_(torch.where(as_given, values.to(buffer), buffer))
        return self


class Preprocessor(Exact):
    """A bijection of every element by itself, with numbers that are learned from training rows.

    A kind gives the map, its inverse and ``_fit``. The numbers are buffers of fixed shape: they are saved, and
    broadcast to other workers, with the weights.

    Args:
        event_shape: Shape of one event.
    """

    fitted: Tensor

    def __init__(self, event_shape: Sequence[int]) -> None:
        super().__init__(event_shape)
        self.register_buffer("fitted", torch.tensor(False))

    def fit(self, x: Tensor) -> Self:
        """Learn the numbers from training rows.

        Args:
            x: ``[n, *event_shape]``, data units.

        Raises:
            DataError: There is no row, a value is not finite, or a value is outside the support of the map.
        """
        if len(self.batch_shape(x)) != 1 or len(x) == 0:
            raise DataError(f"{type(self).__name__} is fitted on rows [n, *event_shape], n >= 1; got {list(x.shape)}")
        self._refuse(x, ~torch.isfinite(x), "not finite; drop or fill them first")
        with torch.no_grad():
            self._fit(x)
        self.fitted.fill_(True)
        return self

    @property
    def is_fitted(self) -> bool:
        """Whether :meth:`fit` has been called, on this or on the model that this was loaded from."""
        return bool(self.fitted)

    @abstractmethod
    def _fit(self, x: Tensor) -> None:
        """Set the buffers, in place, from rows that are finite."""

    def _element(self, name: str, value: float, given: bool = False) -> None:
        if given:
            self._constant(name, torch.full(self.event_shape, float(value), dtype=torch.float64))
        else:
            self.register_buffer(name, torch.full(self.event_shape, value))

    def _sum(self, terms: Tensor, batch: torch.Size) -> Tensor:
        return terms.flatten(len(batch)).sum(-1)

    def _refuse(self, x: Tensor, bad: Tensor, what: str) -> None:
        if bad.any():
            row, *element = bad.nonzero()[0].tolist()
            raise DataError(
                f"{type(self).__name__}: {int(bad.sum())} of {x.numel()} values are {what}. "
                f"The first is {x[(row, *element)].item():g}, in row {row}, element {tuple(element)}"
            )

    def _moments(self, x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        """Mean and standard deviation of rows, in float64, and which elements never vary: their deviation is 1.

        Raises:
            DataError: An element varies by less than ``dtype`` has digits for.
        """
        least, most = x.amin(0), x.amax(0)
        # Divided by a power of two, which is exact, no square overflows or vanishes.
        largest = torch.maximum(-least, most).double()
        unit = torch.exp2(largest.log2().floor().clamp(-1000, 1000))
        mean, squares = torch.zeros_like(unit), torch.zeros_like(unit)
        parts = x.split(_ROWS)  # a float64 copy of a few rows at a time, not of all
        for rows in parts:
            mean += (rows.double() / unit).sum(0) / len(x)
        for rows in parts:
            squares += (rows.double() / unit - mean).square().sum(0)
        constant = least == most  # rounding of the mean alone can make it seem to vary
        std = ((squares / len(x)).sqrt() * unit).masked_fill(constant, 1.0)
        info = torch.finfo(dtype)
        bad = std < info.tiny
        if bad.any():
            element = tuple(bad.nonzero()[0].tolist())
            remedy = "rescale them" if info.bits == 64 else "rescale them, or use float64: density.double()"
            raise DataError(
                f"{type(self).__name__}: {int(bad.sum())} of {bad.numel()} elements vary by less than {info.tiny:.2g}, "
                f"below which {str(dtype).removeprefix('torch.')} has no full digits; {remedy}. "
                f"The first is element {element}, with a standard deviation of {std[element].item():.2g}"
            )
        return mean * unit, std, constant


def require_numbers(kind: str, **options: Any) -> None:
    """Refuse what float32, in which models start, cannot hold: NaN, infinity, 1e39, and what is no number."""
    for name, value in options.items():
        if value is not None and not (is_number(value) and abs(value) <= torch.finfo(torch.float32).max):
            raise ConfigError(f"{kind}: {name} must be a finite number; got {value!r}")


def require_positive(kind: str, **options: Any) -> None:
    """Refuse what is no positive number in float32, in which models start: 0 and less, 1e-60, 1e39."""
    require_numbers(kind, **options)
    least = torch.finfo(torch.float32).tiny
    for name, value in options.items():
        if value is not None and not value >= least:
            raise ConfigError(f"{kind}: {name} must be positive, and {least:.2g} at least; got {value!r}")


def require_whole(kind: str, name: str, value: object, least: int, most: int) -> None:
    """Refuse what is no whole number from ``least`` to ``most``."""
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise ConfigError(f"{kind}: {name} must be {least} to {most:,}; got {value!r}")
