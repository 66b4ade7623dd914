"""Taking contexts as users give them: by name, in one array, or as a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from sciflow.arrays import as_tensor, column_names
from sciflow.contexts import Context, Contexts, ContextShape, Field, Label, Vector
from sciflow.errors import ShapeError
from sciflow.shapes import checked_shape

__all__ = ["Columns", "Conditions"]

# Names of a table's columns; of those of several contexts, by the contexts' names.
Columns = Sequence[str] | Mapping[str, Sequence[str]] | None


@dataclass(frozen=True)
class Conditions:
    """What a density is conditioned on, and how it lies in one tensor.

    Attributes:
        contexts: By name; a plain shape is one vector or field called "context".
        shape: Of one context as it is packed: the plain shape, or that of the vector in which all are side by side.
        declared: Whether kinds or names were given, and no plain shape.

    Example:
        >>> from sciflow.contexts import Label
        >>> Conditions.of((3,)).shape, Conditions.of({"season": Label(4), "place": (2,)}).shape
        (torch.Size([3]), torch.Size([3]))
    """

    contexts: Contexts
    shape: torch.Size
    declared: bool

    @classmethod
    def of(cls, context_shape: ContextShape | None) -> Conditions | None:
        """Read the argument ``context_shape``.

        Raises:
            ConfigError: A name or a kind of context is none.
            ShapeError: A shape is none, or one that no memory holds.
        """
        if context_shape is None:
            return None
        contexts = Contexts.of(context_shape)
        if contexts is not None:
            return cls(contexts, checked_shape((contexts.size,), "context_shape"), declared=True)
        shape = checked_shape(cast(Sequence[int], context_shape), "context_shape")
        part: Context = Vector(*shape) if len(shape) == 1 else Field(shape)
        return cls(Contexts({"context": part}), shape, declared=False)

    @property
    def specification(self) -> list[int] | dict[str, Any]:
        """The argument ``context_shape``, as JSON holds it."""
        return self.contexts.specification if self.declared else list(self.shape)

    def pack(
        self,
        given: Any,
        columns: Columns = None,
        what: str = "context",
        *,
        dtype: torch.dtype = torch.float64,
        device: torch.device | str = "cpu",
    ) -> Tensor:
        """Put contexts into one tensor.

        Args:
            given: A mapping, an ``xarray.Dataset`` or a table that has all of them by name, each
                ``[*batch, *its shape]``, or None where it is not given; or one array of them packed,
                ``[*batch, *shape]``; or, where there is only one, that one. Numbers ``[..., 1]`` for one label are
                taken as packed.
            columns: Names of the columns of a table, where they are known.
            what: What to call them in messages.
            dtype: Of the tensor.
            device: Where it is to be.

        Returns:
            ``[*batch, *shape]``.

        Raises:
            ShapeError: One is missing, unknown or of another shape, or their batches do not broadcast.
            DataError: They are no real numbers, or columns are missing.
        """
        if given is None:
            expected = f"by name: {', '.join(self.contexts)}" if self.declared else f"of shape {list(self.shape)}"
            raise ShapeError(f"this density is conditional: give {what} {expected}")
        named = self._by_name(given, columns)
        if named is None:
            table = None if isinstance(columns, Mapping) else columns
            return self._packed(as_tensor(given, what, table, dtype=dtype, device=device), what)
        self.contexts.require_names(named, what)
        tables = columns if isinstance(columns, Mapping) else {}
        tensors = {
            name: as_tensor(
                torch.full(self.contexts[name].shape, torch.nan) if value is None else value,
                f"{what} {name!r}",
                tables.get(name),
                dtype=dtype,
                device=device,
            )
            for name, value in named.items()
        }
        packed = self.contexts.pack(tensors, what)
        return packed.reshape(*packed.shape[:-1], *self.shape)

    def require_allowed(self, packed: Tensor, what: str = "context") -> None:
        """Refuse labels and tokens that there are not, in ``[*batch, *shape]``.

        Raises:
            DataError: Names the context and the first of them.
        """
        self.contexts.require_allowed(self._side_by_side(packed), what)

    def require_no_infinity(self, packed: Tensor, what: str = "context") -> None:
        """Refuse infinite numbers in ``[*batch, *shape]``, of which nothing is to be drawn.

        Raises:
            DataError: Names the context.

        Example:
            >>> Conditions.of((2,)).require_no_infinity(torch.tensor([[1.0, torch.inf]]))
            Traceback (most recent call last):
            sciflow.errors.DataError: context 'context': a number is infinite, or beyond the density's dtype: give ...
        """
        self.contexts.require_no_infinity(self._side_by_side(packed), what)

    def columns(self, given: Any) -> Columns:
        """Names by which columns of later tables are to be found; None where ``given`` has none that matter.

        Raises:
            DataError: Two columns have one name.
        """
        named = self._by_name(given, None)
        if named is None:
            return column_names(given, "context")
        found = {name: column_names(value, f"context {name!r}") for name, value in named.items()}
        return {name: names for name, names in found.items() if names is not None} or None

    def _by_name(self, given: Any, columns: Columns) -> Mapping[str, Any] | None:
        """Contexts by name; None where they are in one array, or in a table of other columns."""
        if isinstance(given, Tensor):
            return None
        if not (hasattr(given, "columns") or hasattr(given, "data_vars")):
            return given if isinstance(given, Mapping) else None
        have = {str(name): name for name in (given.variables if hasattr(given, "data_vars") else given.columns)}
        known = columns is not None and not isinstance(columns, Mapping) and have.keys() >= set(columns)
        if known or not self.declared or not have.keys() >= self.contexts.keys():
            return None
        return {name: _column(given[have[name]], name, part) for name, part in self.contexts.items()}

    def _side_by_side(self, packed: Tensor) -> Tensor:
        """Contexts ``[*batch, *shape]`` as ``[*batch, size]``."""
        num_batch_dims = packed.ndim - len(self.shape)
        return packed.reshape(*packed.shape[:num_batch_dims], self.contexts.size)

    def _packed(self, values: Tensor, what: str) -> Tensor:
        """Contexts ``[*batch, *shape]`` of those, or of such as have the one context's own shape."""
        if self.declared and len(self.contexts) == 1:
            (own,) = self.contexts.values()
            num_batch_dims = values.ndim - len(own.shape)
            is_label = isinstance(own, Label)
            if values.shape[-1:] != (1,) if is_label else values.shape[max(0, num_batch_dims) :] == own.shape:
                return values.reshape(*values.shape[:num_batch_dims], *self.shape)
        num_dims = len(self.shape)
        if values.ndim < num_dims or values.shape[values.ndim - num_dims :] != self.shape:
            parts = ", ".join(f"{name} {part.shape.numel()}" for name, part in self.contexts.items())
            by_name = f" ({parts}, side by side; or a mapping from these names)" if self.declared else ""
            raise ShapeError(f"{what} of shape {list(self.shape)} expected{by_name}, got {list(values.shape)}")
        return values


def _column(values: Any, name: str, part: Context) -> Any:
    """One number a row, as a vector of one where that is the context's shape."""
    if part.shape.numel() == 1 and getattr(values, "ndim", 0) == 1:
        return as_tensor(values, f"context {name!r}").reshape(-1, *part.shape)
    return values
