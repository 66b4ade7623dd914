"""What a density may be conditioned on: labels, vectors, fields, tokens, and any mix of them as one vector."""

from __future__ import annotations

import math
import operator
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from sciflow.errors import ConfigError, DataError, ShapeError, nearest

__all__ = ["Context", "Contexts", "Field", "Label", "Tokens", "Vector"]

_MOST = 1 << 24  # whole numbers up to this are exact in float32, in which a mix is packed


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

    def require_valid(self, name: str, values: Tensor) -> None:  # noqa: B027 - most take any number
        """Refuse values that stand for nothing.

        Raises:
            DataError: Names the context and the first such value.
        """


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
        _require_whole("Label: num_classes", self.num_classes, 2, _MOST)

    @property
    def shape(self) -> torch.Size:
        return torch.Size()

    def require_valid(self, name: str, values: Tensor) -> None:
        _require_index(name, values, self.num_classes, "class")


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
        _require_whole("Vector: size", self.size, 1, _MOST)

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
        sizes = tuple(self.sizes) if isinstance(self.sizes, Sequence) and not isinstance(self.sizes, str) else ()
        if len(sizes) < 2:
            raise ConfigError(
                f"Field: sizes must be those of channels and one grid dimension or more; got {self.sizes!r}"
            )
        for size in sizes:
            _require_whole("Field: each of sizes", size, 1, _MOST)
        object.__setattr__(self, "sizes", tuple(map(operator.index, sizes)))

    @property
    def shape(self) -> torch.Size:
        return torch.Size(self.sizes)


@dataclass(frozen=True)
class Tokens(Context):
    """A sequence: words of a text by their numbers in a vocabulary, or vectors that the user brings.

    Args:
        length: Most tokens; shorter sequences are filled up with -1, or with vectors of NaN.
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
        _require_whole("Tokens: length", self.length, 1, _MOST)
        if (self.vocabulary is None) == (self.features is None):
            raise ConfigError("Tokens: give vocabulary, for numbers of words, or features, for vectors; one of both")
        if self.vocabulary is not None:
            _require_whole("Tokens: vocabulary", self.vocabulary, 1, _MOST)
        else:
            _require_whole("Tokens: features", self.features, 1, _MOST)

    @property
    def shape(self) -> torch.Size:
        return torch.Size([self.length] if self.features is None else [self.length, self.features])

    def require_valid(self, name: str, values: Tensor) -> None:
        if self.vocabulary is not None:
            _require_index(name, torch.where(values == -1, torch.nan, values), self.vocabulary, "token")


class Contexts(Mapping[str, Context]):
    """All that a density is conditioned on, by name, and how it lies in one vector.

    Args:
        parts: Contexts by name, in the order in which they are packed.

    Example:
        >>> contexts = Contexts({"season": Label(4), "coarse": Field((1, 2, 2))})
        >>> packed = contexts.pack({"season": torch.tensor([0, 3]), "coarse": torch.ones(1, 2, 2)})
        >>> packed.shape, contexts.unpack(packed)["coarse"].shape
        (torch.Size([2, 5]), torch.Size([2, 1, 2, 2]))
    """

    def __init__(self, parts: Mapping[str, Context]) -> None:
        if not parts:
            raise ConfigError("context_shape: no contexts: name at least one, or leave it out")
        self._parts = dict(parts)
        self.size = sum(part.shape.numel() for part in parts.values())

    @classmethod
    def of(cls, given: Any) -> Contexts | None:
        """Read what ``context_shape`` may be beside a plain shape: contexts by name, or one alone; as JSON, too.

        Args:
            given: A mapping from names to contexts or shapes, a context, or their :attr:`specification`.

        Returns:
            None where it is neither, and so a plain shape, or None itself.

        Raises:
            ConfigError: A name is no text, or what it names is no context.

        Example:
            >>> Contexts.of({"season": {"label": {"num_classes": 4}}, "place": (2,)})
            Contexts(season=Label(num_classes=4), place=Vector(size=2))
        """
        if isinstance(given, Contexts) or given is None:
            return given
        if isinstance(given, Context):
            return cls({"context": given})
        if not isinstance(given, Mapping):
            return None
        for name in given:
            if not isinstance(name, str) or not name:
                raise ConfigError(f"context_shape: contexts have names that are texts; got {name!r}")
        return cls({name: _context(name, part) for name, part in given.items()})

    @property
    def specification(self) -> dict[str, Any]:
        """As JSON holds it."""
        return {name: {type(part).__name__.lower(): asdict(part)} for name, part in self.items()}

    def pack(self, values: Mapping[str, Any]) -> Tensor:
        """Put contexts side by side.

        Args:
            values: A tensor ``[*batch, *shape]`` for every context; the batches broadcast.

        Returns:
            ``[*batch, size]``.

        Raises:
            ShapeError: One is missing, unknown, or of another shape.
            DataError: A label or a token is outside its range.
        """
        missing = [name for name in self if name not in values]
        unknown = [name for name in values if name not in self]
        if unknown:
            raise ShapeError(f"context {unknown[0]!r}: not one of this density's; {nearest(str(unknown[0]), self)}")
        if missing:
            raise ShapeError(f"context {missing[0]!r} is missing: give {', '.join(self)}")
        flat, batches = [], []
        for name, part in self.items():
            value = torch.as_tensor(values[name])
            num_batch_dims = value.ndim - len(part.shape)
            if num_batch_dims < 0 or value.shape[num_batch_dims:] != part.shape:
                raise ShapeError(f"context {name!r}: shape {_shown(part.shape)} expected; got {list(value.shape)}")
            part.require_valid(name, value)
            batches.append(value.shape[:num_batch_dims])
            flat.append(value.reshape(*batches[-1], part.shape.numel()))
        try:
            batch = torch.broadcast_shapes(*batches)
        except RuntimeError:
            found = ", ".join(f"{name} {list(shape)}" for name, shape in zip(self, batches, strict=True))
            raise ShapeError(f"contexts do not broadcast: {found}: give one for all rows, or one a row") from None
        dtype = torch.promote_types(torch.float32, flat[0].dtype)
        for value in flat:
            dtype = torch.promote_types(dtype, value.dtype)
        return torch.cat([value.to(dtype).expand(*batch, -1) for value in flat], -1)

    def unpack(self, packed: Tensor) -> dict[str, Tensor]:
        """Undo :meth:`pack`: every context as ``[*batch, *shape]``, views of ``packed``."""
        parts = packed.split([part.shape.numel() for part in self.values()], -1)
        batch = packed.shape[:-1]
        return {name: value.reshape(*batch, *self[name].shape) for name, value in zip(self, parts, strict=True)}

    def require_valid(self, packed: Tensor) -> None:
        """Refuse labels and tokens outside their ranges.

        Raises:
            DataError: Names the context and the first such value.
        """
        for name, values in self.unpack(packed).items():
            self[name].require_valid(name, values)

    def __getitem__(self, name: str) -> Context:
        return self._parts[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._parts)

    def __len__(self) -> int:
        return len(self._parts)

    def __repr__(self) -> str:
        return f"Contexts({', '.join(f'{name}={part!r}' for name, part in self.items())})"


_KINDS: dict[str, Callable[..., Context]] = {"label": Label, "vector": Vector, "field": Field, "tokens": Tokens}


def _context(name: str, part: Any) -> Context:
    if isinstance(part, Context):
        return part
    if isinstance(part, Mapping) and len(part) == 1:
        kind, arguments = next(iter(part.items()))
        if kind not in _KINDS:
            raise ConfigError(f"context_shape: {name}: unknown {kind!r}; {nearest(str(kind), _KINDS)}")
        try:
            return _KINDS[kind](**arguments) if isinstance(arguments, Mapping) else _KINDS[kind](arguments)
        except TypeError:
            raise ConfigError(f"context_shape: {name}: {kind} does not take {arguments!r:.100}") from None
    if isinstance(part, Sequence) and not isinstance(part, str):
        return Vector(*part) if len(part) == 1 else Field(part)
    raise ConfigError(
        f"context_shape: {name}: a context or a shape expected, such as Label(4) or (5,); got {part!r:.100}"
    )


def _require_whole(what: str, value: Any, least: int, most: int) -> None:
    try:
        valid = not isinstance(value, bool) and least <= operator.index(value) <= most
    except TypeError:
        valid = False
    if not valid:
        raise ConfigError(f"{what} must be a whole number from {least} to {most:,}; got {value!r:.80}")


def _require_index(name: str, values: Tensor, count: int, what: str) -> None:
    """Whole numbers from 0 to below ``count``, or NaN."""
    bad = ~(torch.isnan(values) | ((values >= 0) & (values < count) & (values == values.round())))
    if bad.any():
        first = values[bad][0].item()
        raise DataError(f"context {name!r}: there is no {what} {first:g}: they are 0 to {count - 1}")


def _shown(shape: torch.Size) -> str:
    return str([*shape]) if math.prod(shape) != 1 or shape else "of one number"
