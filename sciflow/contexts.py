"""What a density is conditioned on: labels, vectors, fields, tokens, and any mix of them as one vector."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from sciflow.context_kinds import Context, Field, Label, Tokens, Vector
from sciflow.errors import ConfigError, DataError, ShapeError, nearest

__all__ = ["Context", "ContextShape", "Contexts", "Field", "Label", "Tokens", "Vector"]


class Contexts(Mapping[str, Context]):
    """All that a density is conditioned on, by name, and how it lies in one vector.

    Args:
        parts: Contexts by name, in the order in which they are packed; a plain shape stands for a vector or a field.

    Raises:
        ConfigError: There is none, a name is no text, or what it names is no context.

    Example:
        >>> contexts = Contexts({"season": Label(4), "coarse": (1, 2, 2)})
        >>> packed = contexts.pack({"season": torch.tensor([0, 3]), "coarse": torch.ones(1, 2, 2)})
        >>> packed.shape, contexts.unpack(packed)["coarse"].shape
        (torch.Size([2, 5]), torch.Size([2, 1, 2, 2]))
    """

    def __init__(self, parts: Mapping[str, Any]) -> None:
        if not parts:
            raise ConfigError("context_shape: no contexts: name at least one, or leave it out")
        for name in parts:
            if not isinstance(name, str) or not name:
                raise ConfigError(f"context_shape: contexts have names that are texts; got {name!r}")
        self._parts = {name: _context(name, part) for name, part in parts.items()}
        self._sizes = [part.shape.numel() for part in self._parts.values()]
        self.size = sum(self._sizes)

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
        return cls(given) if isinstance(given, Mapping) else None

    @property
    def specification(self) -> dict[str, Any]:
        """As JSON holds it."""
        return {name: {type(part).__name__.lower(): _plain(asdict(part))} for name, part in self.items()}

    def pack(self, values: Mapping[str, Any], what: str = "context") -> Tensor:
        """Put contexts side by side.

        Args:
            values: A tensor ``[*batch, *shape]`` for every context; the batches broadcast. What the numbers stand for
                is looked at by :meth:`require_allowed`.
            what: What to call them in messages.

        Returns:
            ``[*batch, size]``.

        Raises:
            ShapeError: One is missing, unknown, or of another shape, or their batches do not broadcast.
        """
        self.require_names(values, what)
        flat, batches = [], []
        for name, part in self._parts.items():
            value = torch.as_tensor(values[name])
            num_batch_dims = value.ndim - len(part.shape)
            if num_batch_dims < 0 or value.shape[num_batch_dims:] != part.shape:
                expected = ", ".join(("*batch", *map(str, part.shape)))
                raise ShapeError(f"{what} {name!r}: shape [{expected}] expected; got {list(value.shape)}")
            batches.append(value.shape[:num_batch_dims])
            flat.append(value.reshape(*batches[-1], part.shape.numel()))
        try:
            batch = torch.broadcast_shapes(*batches)
        except RuntimeError:
            found = ", ".join(f"{name} {list(shape)}" for name, shape in zip(self._parts, batches, strict=True))
            raise ShapeError(f"{what}s do not broadcast: {found}: give one for all rows, or one a row") from None
        dtype = torch.promote_types(torch.float32, flat[0].dtype)
        for value in flat:
            dtype = torch.promote_types(dtype, value.dtype)
        return torch.cat([value.to(dtype).expand(*batch, -1) for value in flat], -1)

    def unpack(self, packed: Tensor) -> dict[str, Tensor]:
        """Undo :meth:`pack`: every context as ``[*batch, *shape]``, views of ``packed``."""
        batch, flat = packed.shape[:-1], packed.split(self._sizes, -1)
        parts = zip(self._parts.items(), flat, strict=True)
        return {name: values.reshape((*batch, *part.shape)) for (name, part), values in parts}

    def known(self, packed: Tensor) -> Tensor:
        """Which rows ``[*batch, size]`` have every context, whole and within its range: ``[*batch]``."""
        known = packed.new_ones(packed.shape[:-1], dtype=torch.bool)
        for name, values in self.unpack(packed).items():
            known = known & self._parts[name].known(values)
        return known

    def require_allowed(self, packed: Tensor, what: str = "context") -> None:
        """Refuse labels and tokens outside their ranges.

        Raises:
            DataError: Names the context and the first such value.
        """
        for name, values in self.unpack(packed).items():
            self._parts[name].require_allowed(f"{what} {name!r}", values)

    def require_no_infinity(self, packed: Tensor, what: str = "context") -> None:
        """Refuse infinite numbers: networks would draw as if they were not given, which NaN alone says.

        Raises:
            DataError: Names the context.
        """
        for name, values in self.unpack(packed).items():
            if torch.isinf(values).any():
                raise DataError(
                    f"{what} {name!r}: a number is infinite, or beyond the density's dtype: give finite ones, or NaN "
                    "for what is not given"
                )

    def require_names(self, names: Iterable[str], what: str = "context") -> None:
        """Refuse names of other contexts, or of too few.

        Raises:
            ShapeError: Says which, and which there are.
        """
        for name in names:
            if name not in self._parts:
                raise ShapeError(f"{what} {name!r}: not one of this density's; {nearest(str(name), self)}")
        missing = [name for name in self._parts if name not in names]
        if missing:
            raise ShapeError(f"{what} {missing[0]!r} is missing: give {', '.join(self._parts)}")

    def __getitem__(self, name: str) -> Context:
        return self._parts[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._parts)

    def __len__(self) -> int:
        return len(self._parts)

    def __repr__(self) -> str:
        return f"Contexts({', '.join(f'{name}={part!r}' for name, part in self.items())})"


# What a density is conditioned on, as users write it: a plain shape, one context, or contexts and shapes by name.
ContextShape = Sequence[int] | Context | Mapping[str, Any]

_KINDS: dict[str, Callable[..., Context]] = {"label": Label, "vector": Vector, "field": Field, "tokens": Tokens}


def _context(name: str, part: Any) -> Context:
    try:
        return _kind(part)
    except ConfigError as error:
        raise ConfigError(f"context_shape: {name}: {error}") from None


def _kind(part: Any) -> Context:
    if isinstance(part, Context):
        return part
    if isinstance(part, Mapping) and len(part) == 1:
        kind, arguments = next(iter(part.items()))
        if kind not in _KINDS:
            raise ConfigError(f"unknown {kind!r:.80}; {nearest(str(kind), _KINDS)}")
        try:
            return _KINDS[kind](**arguments) if isinstance(arguments, Mapping) else _KINDS[kind](arguments)
        except TypeError:
            raise ConfigError(f"{kind} does not take {arguments!r:.100}") from None
    sizes = part.tolist() if hasattr(part, "tolist") else part
    if isinstance(sizes, Sequence) and not isinstance(sizes, str):
        return Vector(*sizes) if len(sizes) == 1 else Field(sizes)
    raise ConfigError(
        f"a context or a shape expected, such as Label(4) or (5,), which are {{label: 4}} and [5] in a file; "
        f"got {part!r:.100}"
    )


def _plain(arguments: dict[str, Any]) -> dict[str, Any]:
    """Tuples as lists, which is how they come back from a file."""
    return {name: list(value) if isinstance(value, tuple) else value for name, value in arguments.items()}
