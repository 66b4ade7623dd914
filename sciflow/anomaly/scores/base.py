"""What every score of anomalies is: one number a row, higher where the row is less like what is normal."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from sciflow.arrays import as_tensor, column_names
from sciflow.density import Density
from sciflow.errors import ConfigError, ShapeError
from sciflow.modes import in_evaluation_mode

__all__ = ["Score", "values_at_a_time"]


class Score(ABC):
    """A function of one row alone, higher where the row is more anomalous.

    It stands on trained densities, none to several, and may have to see normal rows before it can be used. A new score
    is a file with a subclass that gives ``name``, ``_scores`` and, where rows must be seen, ``_fit``; and a line in
    ``SCORES`` of :mod:`sciflow.anomaly.scores`.

    Args:
        *densities: What it stands on; all of one event shape.
        members: Scores that it is made of.
        **arguments: The constructor's other arguments, as JSON can hold them.

    Attributes:
        found: What fitting has found, by name; saved with the score.
    """

    name: ClassVar[str]
    #: Family of the density that a detector trains for it; None where it stands on the rows alone.
    needs: ClassVar[str | None] = "nsf"
    #: Whether it is a smooth function of the row, known to autograd.
    has_gradient: ClassVar[bool] = False

    def __init__(self, *densities: Density, members: Sequence[Score] = (), **arguments: Any) -> None:
        self.densities = densities
        self.members = tuple(members)
        self.arguments = arguments
        self.found: dict[str, Tensor] = {}
        self._columns: list[str] | None = None

    def fit(self, x: Any, context: Any = None, *, reference: Any = None, reference_context: Any = None) -> Self:
        """Look at normal rows; the densities are left as they are.

        Args:
            x: ``[n, *event_shape]``, those that the densities were trained on.
            context: As densities take it.
            reference: Normal rows that they were not trained on; None where there are none.
            reference_context: The same for these.
        """
        self.found = {}  # Whatever it has seen before, rows may be others now.
        # Columns go by name where a table has been seen.
        self._columns = column_names(x, "events")
        rows, c = self._rows(x, context)
        held, held_context = (rows, c) if reference is None else self._rows(reference, reference_context)
        if not len(rows) or not len(held):
            raise ShapeError(f"{self.name}: no rows to look at")
        with self._evaluating():
            self._fit(rows, c, held, held_context)
        return self

    def __call__(self, x: Any, context: Any = None) -> Tensor:
        """Return the score of every row.

        Args:
            x: ``[*batch, *event_shape]``, data units; a tensor, an array or a table.
            context: As densities take it, broadcast over the batch.

        Returns:
            ``[*batch]``, float64; NaN of rows that are not finite, or whose context is not known. Of rows so far out
            that their score cannot be computed it is infinite; numbers beyond single precision count as its largest.

        Raises:
            ConfigError: It has to be fitted first.
            ShapeError: Events or contexts are of another shape.
        """
        self._require_fitted()
        x = self._events(x)
        batch = x.shape[: x.ndim - len(self.event_shape)]
        rows, c = self._rows(x, context)
        size = max(1, values_at_a_time(rows.device) // max(1, self.event_shape.numel()))
        contexts = [None] * len(rows.split(size)) if c is None else c.split(size)
        with self._evaluating():
            parts = [
                self._scores(part, of_part).double() for part, of_part in zip(rows.split(size), contexts, strict=True)
            ]
        scores = torch.cat(parts)
        finite = torch.isfinite(rows).flatten(1).all(1)
        density = self._first_density
        known = finite if c is None or density is None else finite & density.knows(c)
        scores = torch.where(known & scores.isnan(), torch.inf, scores)
        return torch.where(finite, scores, torch.nan).reshape(batch)

    def normal_values(self, reference: Tensor, context: Tensor | None) -> Tensor:
        """Return what rows score that are normal, and were not trained on: those of :meth:`fit`, sorted, finite."""
        values = self(reference, context)
        return values[values.isfinite()].sort().values

    def all_densities(self) -> list[Density]:
        """Return the densities of it and its members, each once."""
        found = list(self.densities)
        for member in self.members:
            found += [density for density in member.all_densities() if all(density is not other for other in found)]
        return found

    def gradient(self, x: Tensor, context: Tensor | None) -> Tensor:
        """Return the gradient of the scores of rows ``[n, *event_shape]``, of their shape."""
        with self._evaluating(), torch.enable_grad():
            x = x.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(self._scores(x, context).sum(), x)
        return gradient

    def attribution(self, x: Tensor, context: Tensor | None) -> Tensor | None:
        """What every element of rows ``[n, *event_shape]`` adds to the score; None where it does not know by itself."""
        return None

    @property
    def event_shape(self) -> torch.Size:
        """Shape of one event."""
        return self.densities[0].event_shape if self.densities else self.found["rows"].shape[1:]

    @property
    def is_fitted(self) -> bool:
        """Whether it can be used."""
        return type(self)._fit is Score._fit or bool(self.found)

    @abstractmethod
    def _scores(self, x: Tensor, context: Tensor | None) -> Tensor:
        """Scores ``[n]`` of rows ``[n, *event_shape]`` with contexts ``[n, *context_shape]`` or None."""

    def _fit(  # noqa: B027
        self, x: Tensor, context: Tensor | None, reference: Tensor, reference_context: Tensor | None
    ) -> None:
        """Put into :attr:`found` what is needed of training rows, and of others that nothing was trained on."""

    def _require_fitted(self) -> None:
        if not self.is_fitted:
            raise ConfigError(f"the score '{self.name}' has seen no normal rows yet: call fit(rows) first")

    @property
    def _first_density(self) -> Density | None:
        """Of its own or its members', which are all of the same events; None where none has any."""
        return next(iter(self.all_densities()), None)

    def _events(self, x: Any) -> Tensor:
        columns: Sequence[str] | None = self._columns
        density = self._first_density
        if density is not None:
            dtype, device = density.dtype, density.device
            columns = None if isinstance(x, Tensor) else density._columns() or columns
        else:
            like = self.found.get("rows")
            dtype, device = (torch.float32, torch.device("cpu")) if like is None else (like.dtype, like.device)
        events = as_tensor(x, "events", columns, dtype=dtype, device=device)
        if events.isinf().any():
            # A finite number that single precision does not hold is as far out as can be, and not missing.
            is_finite = as_tensor(x, "events", columns, device=device).isfinite()
            largest = torch.finfo(dtype).max
            events = torch.where(is_finite, events.clamp(-largest, largest), events)
        return events

    def _rows(self, x: Any, context: Any) -> tuple[Tensor, Tensor | None]:
        """Rows ``[n, *event_shape]`` and a context for each."""
        x = self._events(x)
        density = self._first_density
        if density is not None:
            rows, c, _ = density._rows(x, context)
            return rows, c
        if context is not None:
            raise ShapeError(f"{self.name}: knows rows alone, without a context")
        if self.found and x.shape[x.ndim - len(self.event_shape) :] != self.event_shape:
            raise ShapeError(f"events of shape {list(self.event_shape)} expected; got {list(x.shape)}")
        return (x.reshape(-1, *self.event_shape) if self.found else x), None

    def _evaluating(self) -> ExitStack:
        """No gradients, no dropout."""
        stack = ExitStack()
        stack.enter_context(torch.no_grad())
        for density in self.densities:
            stack.enter_context(in_evaluation_mode(density))
        return stack

    def __repr__(self) -> str:
        shown = [type(density).__name__ for density in self.densities]
        shown += [f"{name}={value!r}" for name, value in self.arguments.items()]
        return f"{type(self).__name__}({', '.join(shown)})"


def values_at_a_time(device: torch.device) -> int:
    """How many numbers are best scored at once.

    What networks make of so many lies in a processor's cache: of 32 numbers by a flow it is twice as fast as with eight
    times as many (``tests/benchmarks/anomaly_throughput.py``). Other devices want more.
    """
    return 1 << 17 if device.type == "cpu" else 1 << 20
