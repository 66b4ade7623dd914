"""The contract of a preprocessor: a bijection from data units with numbers that are learned by a formula."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from numbers import Real
from typing import Any, Self

import torch
from torch import Tensor

from sciflow.bijections.base import Bijection
from sciflow.errors import ConfigError, DataError

__all__ = ["Preprocessor", "require_numbers", "require_whole"]


class Preprocessor(Bijection):
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

    def _element(self, name: str, value: float) -> None:
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


def require_numbers(kind: str, **options: Any) -> None:
    """Refuse what float32, in which the numbers are kept, cannot hold: NaN, infinity, 1e39, and what is no number."""
    for name, value in options.items():
        number = isinstance(value, Real) and not isinstance(value, bool)
        if value is not None and not (number and abs(value) <= torch.finfo(torch.float32).max):
            raise ConfigError(f"{kind}: {name} must be a finite number; got {value!r}")


def require_whole(kind: str, name: str, value: object, least: int, most: int) -> None:
    """Refuse what is no whole number from ``least`` to ``most``."""
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise ConfigError(f"{kind}: {name} must be {least} to {most:,}; got {value!r}")
