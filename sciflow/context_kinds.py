"""Kinds of things that a density may be conditioned on: labels, vectors, fields, tokens."""

from __future__ import annotations

import operator
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sciflow.errors import ConfigError, DataError

__all__ = ["Context", "Field", "Label", "Tokens", "Vector"]

# Classes or words, for each of which networks learn a vector; such numbers are exact in float32, too.
_MOST = 1 << 20
_MOST_SIZE = 1 << 30


@dataclass(frozen=True)
class Context(ABC):
    """One thing that a density is conditioned on.

    All are packed as real numbers, so that they travel with the events from store to worker. NaN stands for "not
    given", of which networks that were trained with dropped contexts know what to make.
    """

    @property
    @abstractmethod
    def shape(self) -> torch.Size:
        """Shape of one such context as the user gives it; of a label, that of a number."""

    def allowed(self, values: Tensor) -> Tensor:
        """Which of ``values`` may be there, as a mask of their shape; most kinds take any number, all take NaN."""
        return torch.ones_like(values, dtype=torch.bool)

    def known(self, values: Tensor) -> Tensor:
        """Whether contexts ``[*batch, *shape]`` are given, and whole: ``[*batch]``."""
        known = torch.isfinite(values) & self.allowed(values)
        return known.reshape(*_batch(values, self), self.shape.numel()).all(-1)

    def require_allowed(self, what: str, values: Tensor) -> None:
        """Refuse values that stand for nothing.

        Raises:
            DataError: Says ``what`` has the first such value, and what there is.
        """
        allowed = self.allowed(values)
        if not allowed.all():
            raise DataError(f"{what}: {self._refusal(values[~allowed][0].item())}")

    def _refusal(self, value: float) -> str:
        return f"{value:g} is not allowed"


@dataclass(frozen=True)
class Label(Context):
    """One of several classes: a season, a station, a type of star.

    Args:
        num_classes: How many there are; labels are 0 to ``num_classes - 1``.

    Example:
        >>> Label(4).shape
        torch.Size([])
    """

    num_classes: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "num_classes", _whole("Label: num_classes", self.num_classes, 2, _MOST))

    @property
    def shape(self) -> torch.Size:
        return torch.Size()

    def allowed(self, values: Tensor) -> Tensor:
        return torch.isnan(values) | _is_index(values, self.num_classes)

    def _refusal(self, value: float) -> str:
        return f"there is no class {value:g}: they are 0 to {self.num_classes - 1}"


@dataclass(frozen=True)
class Vector(Context):
    """Real numbers: parameters, positions, measurements.

    Args:
        size: How many.

    Example:
        >>> Vector(5).shape
        torch.Size([5])
    """

    size: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "size", _whole("Vector: size", self.size, 1, _MOST_SIZE))

    @property
    def shape(self) -> torch.Size:
        return torch.Size([self.size])


@dataclass(frozen=True)
class Field(Context):
    """Numbers on a grid: another variable, the state of the day before, or the same on a coarser grid.

    Args:
        sizes: ``[channel, length]`` or ``[channel, height, width]``; a grid of another size than that of the event is
            interpolated onto it.

    Example:
        >>> Field((1, 8, 8)).shape
        torch.Size([1, 8, 8])
    """

    sizes: Sequence[int]

    def __post_init__(self) -> None:
        given: Any = self.sizes
        sizes = tuple(given) if isinstance(given, Sequence) and not isinstance(given, str) else ()
        if len(sizes) < 2:
            raise ConfigError(f"Field: sizes must be those of channels and one grid dimension or more; got {given!r}")
        sizes = tuple(_whole("Field: each of sizes", size, 1, _MOST_SIZE) for size in sizes)
        object.__setattr__(self, "sizes", sizes)

    @property
    def shape(self) -> torch.Size:
        return torch.Size(self.sizes)


@dataclass(frozen=True)
class Tokens(Context):
    """A sequence: words of a text by their numbers in a vocabulary, or vectors that the user brings.

    Args:
        length: Most tokens; shorter sequences are filled up with -1 (or NaN), or with vectors of NaN. Between tokens,
            too, such a place holds none: it is left out, and the others keep theirs. A sequence of nothing but NaN is
            not given; one of nothing but -1 is empty.
        vocabulary: Number of different tokens, where they are numbers from 0 to ``vocabulary - 1``, whose vectors are
            learned.
        features: Length of a vector, where they are vectors. Exactly one of both is given.

    Example:
        >>> Tokens(12, vocabulary=1000).shape, Tokens(12, features=64).shape
        (torch.Size([12]), torch.Size([12, 64]))
    """

    length: int
    vocabulary: int | None = None
    features: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "length", _whole("Tokens: length", self.length, 1, _MOST_SIZE))
        if (self.vocabulary is None) == (self.features is None):
            raise ConfigError("Tokens: give vocabulary, for numbers of words, or features, for vectors; one of both")
        if self.vocabulary is not None:
            object.__setattr__(self, "vocabulary", _whole("Tokens: vocabulary", self.vocabulary, 1, _MOST))
        else:
            object.__setattr__(self, "features", _whole("Tokens: features", self.features, 1, _MOST_SIZE))

    @property
    def shape(self) -> torch.Size:
        return torch.Size([self.length] if self.features is None else [self.length, self.features])

    def there(self, values: Tensor) -> Tensor:
        """Which places of sequences ``[*batch, *shape]`` hold a token, not what fills them up: ``[*batch, length]``.

        Example:
            >>> Tokens(3, vocabulary=10).there(torch.tensor([4.0, 7.0, -1.0]))
            tensor([ True,  True, False])
        """
        if self.vocabulary is not None:
            return _is_index(values, self.vocabulary)
        return torch.isfinite(values).all(-1)

    def allowed(self, values: Tensor) -> Tensor:
        if self.vocabulary is None:
            return super().allowed(values)
        return torch.isnan(values) | (values == -1) | _is_index(values, self.vocabulary)

    def known(self, values: Tensor) -> Tensor:
        vectors = values.reshape(*_batch(values, self), self.length, self.features or 1)
        nothing = torch.isnan(vectors).all(-1)
        whole = (self.there(values) | nothing).all(-1) if self.vocabulary is None else self.allowed(values).all(-1)
        return whole & ~nothing.all(-1)

    def _refusal(self, value: float) -> str:
        assert self.vocabulary is not None
        return f"there is no token {value:g}: they are 0 to {self.vocabulary - 1}, and -1 for none"


def _whole(what: str, value: Any, least: int, most: int) -> int:
    try:
        valid = not isinstance(value, bool) and least <= operator.index(value) <= most
    except TypeError:
        valid = False
    if not valid:
        raise ConfigError(f"{what} must be a whole number from {least} to {most:,}; got {value!r:.80}")
    return operator.index(value)


def _is_index(values: Tensor, count: int) -> Tensor:
    """Which are whole numbers from 0 to below ``count``."""
    return (values >= 0) & (values < count) & (values == values.trunc())


def _batch(values: Tensor, part: Context) -> torch.Size:
    return values.shape[: values.ndim - len(part.shape)]
