"""The contract: everything that is trained is a Density, and says how it knows log p."""

from __future__ import annotations

import math
import operator
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from sciflow.arrays import numbers, require_values
from sciflow.degenerate import blur
from sciflow.errors import ConfigError, ShapeError
from sciflow.likelihood import Likelihood, Status, concatenated, importance_weighted

__all__ = ["MOST_SEED", "Density", "Likelihood", "Status", "checked_shape"]

MOST_SEED = 2**63 - 1  # What torch's generators take.
_ROWS_AT_A_TIME = 1 << 16  # where each row comes as several draws
_DRAWS, _MOST_DRAWS = 16, 1 << 16
_MOST_VALUES = 1 << 38  # a terabyte in float32
_MOST_ELEMENTS = 1 << 30  # of one event


class Density(nn.Module, ABC):
    r"""A trainable probability density over events, in the units of the data.

    A family models the *normalised* event :math:`y = T(x)`, where :math:`T` (standardising, log1p, logit,
    dequantising) is fitted on training rows and saved with the model. This class adds its Jacobian,

    .. math:: \log p(x \mid c) = \log p_Y(T(x) \mid c) + \log |\det \partial T / \partial x| ,

    so that no family can forget the units. It also checks shapes and broadcasts the context, once for all families.
    A family gives the underscored methods, which see one batch dimension: ``y`` of shape ``[n, *event_shape]`` and
    ``context`` of shape ``[n, *context_shape]`` or None.

    Args:
        event_shape: Shape of one event.
        context_shape: Shape of what the density is conditioned on, or None.
        preprocess: Bijection from data units to normalised units.
        preprocess_context: The same for the context; its Jacobian does not count. None where there is no context.
        arguments: The constructor's arguments, as JSON can hold them; ``load`` builds the model from them.
    """

    family: ClassVar[str]
    blur: Tensor | None
    layout: dict[str, Any] | None
    context_columns: Sequence[str] | None
    provenance: dict[str, Any]

    def __init__(
        self,
        event_shape: Sequence[int],
        context_shape: Sequence[int] | None = None,
        *,
        preprocess: nn.Module,
        preprocess_context: nn.Module | None = None,
        arguments: dict[str, Any],
    ) -> None:
        super().__init__()
        self.event_shape = checked_shape(event_shape, "event_shape")
        self.context_shape = None if context_shape is None else checked_shape(context_shape, "context_shape")
        self.preprocess = preprocess
        self.preprocess_context = preprocess_context
        self.arguments = {
            "event_shape": list(self.event_shape),
            "context_shape": None if self.context_shape is None else list(self.context_shape),
            **arguments,
        }
        self.register_buffer("blur", None, persistent=False)
        self.layout = None
        self.context_columns = None
        self.provenance = {}

    # What users call. ------------------------------------------------------------------------------------------

    def log_prob(self, x: Any, context: Any = None) -> Tensor:
        """Return log p in nats, data units; for a row that noise dequantises, a lower bound of it.

        Args:
            x: ``[*batch, *event_shape]``, data units; a tensor, an array, or a table with the trained columns.
            context: ``[*context_batch, *context_shape]``, broadcast over the batch; one for all, or one a row; a
                table goes by name where a table was trained on.

        Returns:
            ``[*batch]``, with a gradient where ``x`` or ``context`` is a tensor.

        Raises:
            ShapeError: Event or context has another shape than the density was made for.
            DataError: They are no real numbers, or columns are missing.
        """
        num_draws = self._num_draws
        with self._gradient(x, context):
            y, c, log_det, batch = self._normalise(x, context, num_draws)
            log_prob = (self._log_prob(y, c) + log_det).reshape(batch)
            return torch.logsumexp(log_prob, 0) - math.log(num_draws) if num_draws else log_prob

    def likelihood(self, x: Any, context: Any = None, method: str | None = None, **options: Any) -> Likelihood:
        """Return log p with its kind, error bar, cost and status, one entry a row.

        Args:
            x: ``[*batch, *event_shape]``, data units.
            context: ``[*context_batch, *context_shape]``, broadcast over the batch.
            method: ``"exact"``, ``"ode"`` or ``"elbo"``, where the family has it; None for the family's own. Every
                density of values that are dequantised has ``"elbo"``, a mean over the cell of the value, with
                ``num_draws`` for an option.
            **options: Of the method, such as ``tolerance``.
        """
        num_draws = self._num_draws
        if method == "elbo" and self.preprocess.num_draws:
            method, num_draws = None, _checked_draws(options.pop("num_draws", max(_DRAWS, num_draws)))
        elif method is not None and num_draws:
            raise ConfigError(f"log p of values that noise dequantises is known by method 'elbo' alone; got {method!r}")
        with self._gradient(x, context):
            rows, c, batch = self._rows(x, context)
            parts = rows.split(max(1, _ROWS_AT_A_TIME // num_draws) if num_draws else max(1, len(rows)))
            contexts = [None] * len(parts) if c is None else c.split(len(parts[0]))
            records = [
                self._record(part, of_part, num_draws, method, options)
                for part, of_part in zip(parts, contexts, strict=True)
            ]
            return concatenated(records).reshape(batch)

    def sample(
        self, n: int | Sequence[int], context: Any = None, seed: int | torch.Generator | None = None, **options: Any
    ) -> Tensor:
        """Draw events, in data units.

        Args:
            n: Number of draws, or a shape of draws.
            context: ``[*context_batch, *context_shape]``: ``n`` draws for each of them.
            seed: A seed or a generator on the model's device; None draws from torch's own generator.
            **options: Of the family's sampler.

        Returns:
            ``[n, *context_batch, *event_shape]``, without gradient.
        """
        shape = _draws(n)
        c = self._context(context)
        batch = shape if c is None else (*shape, *c.shape[: c.ndim - len(self.context_shape or ())])
        if math.prod(batch) * self.event_shape.numel() > _MOST_VALUES:
            raise ShapeError(f"cannot draw {n!r:.80} events at once: no memory holds so many; draw them part by part")
        if c is not None:
            assert self.context_shape is not None
            c = c.expand(*batch, *self.context_shape).reshape(-1, *self.context_shape)
        generator = self._generator(seed)
        with torch.no_grad():
            y = self._sample(math.prod(batch), self._normalise_context(c), generator, **options)
            x, _ = self.preprocess.inverse(y)  # type: ignore[operator]
        return x.reshape(*batch, *self.event_shape)

    def loss(self, x: Any, context: Any = None) -> Tensor:
        """Return what training lowers, ``[*batch]``, one value a row: nats in data units wherever it bounds log p."""
        num_draws = self._num_draws
        y, c, log_det, batch = self._normalise(x, context, num_draws)
        losses = self._loss(y, c, log_det).reshape(batch)
        return losses.mean(0) if num_draws else losses

    def encode(self, x: Any, context: Any = None) -> Tensor:
        """Map events to noise of the same shape, the inverse of :meth:`decode`."""
        with self._gradient(x, context):
            y, c, _, batch = self._normalise(x, context)
            return self._encode(y, c).reshape(*batch, *self.event_shape)

    def decode(self, z: Any, context: Any = None) -> Tensor:
        """Map noise ``[*batch, *event_shape]`` to events, in data units."""
        with self._gradient(z, context):
            z, c, batch = self._rows(z, context)
            x, _ = self.preprocess.inverse(self._decode(z, self._normalise_context(c)))  # type: ignore[operator]
            return x.reshape(*batch, *self.event_shape)

    @property
    def latent_angles(self) -> Sequence[int]:
        """Places in the flattened noise of what lives on a circle, in [-pi, pi]."""
        return ()

    def fit_preprocessing(self, x: Any, context: Any = None) -> None:
        """Fit the data-unit bijections on training rows ``x`` (and ``context``), before the first training step.

        Elements that never vary, or repeat another, are noted: training adds noise to them, see
        :func:`sciflow.degenerate.blur`.
        """
        rows, c, _ = self._rows(x, context)
        self.preprocess.fit(rows)  # type: ignore[operator]
        self.blur = self._blur_for(rows)
        if self.preprocess_context is not None and c is not None:
            self.preprocess_context.fit(c)  # type: ignore[operator]

    def save(self, path: str | Path) -> Path:
        """Write ``model.safetensors`` and ``model.json`` into the folder ``path``; see :func:`sciflow.load`."""
        from sciflow.model_file import save

        return save(self, path)

    @property
    def dtype(self) -> torch.dtype:
        """The floating dtype of the model's own numbers."""
        return next(t.dtype for t in (*self.parameters(), *self.buffers()) if t.is_floating_point())

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(t.device for t in (*self.parameters(), *self.buffers()))

    # What a family gives. --------------------------------------------------------------------------------------

    @abstractmethod
    def _log_prob(self, y: Tensor, context: Tensor | None) -> Tensor:
        """log p of normalised events, ``[n]``."""

    @abstractmethod
    def _likelihood(self, y: Tensor, context: Tensor | None, method: str | None, **options: Any) -> Likelihood:
        """The same with its error, cost and status; entries ``[n]``."""

    @abstractmethod
    def _sample(self, n: int, context: Tensor | None, generator: torch.Generator | None, **options: Any) -> Tensor:
        """``n`` normalised events; ``context`` is None or has ``n`` rows."""

    @abstractmethod
    def _encode(self, y: Tensor, context: Tensor | None) -> Tensor: ...

    @abstractmethod
    def _decode(self, z: Tensor, context: Tensor | None) -> Tensor: ...

    def _loss(self, y: Tensor, context: Tensor | None, log_det: Tensor) -> Tensor:
        """Per-row training loss; ``log_det`` is the data-unit Jacobian of each row."""
        return -(self._log_prob(y, context) + log_det)

    # Shapes and units, once for all. ---------------------------------------------------------------------------

    @property
    def _num_draws(self) -> int:
        """How many draws of noise stand for a row: none while training, where each comes with fresh noise."""
        num_draws: int = self.preprocess.num_draws  # type: ignore[assignment]
        return num_draws if num_draws > 1 and not self.training else 0

    def _blur_for(self, rows: Tensor) -> Tensor | None:
        if self.preprocess.num_draws:
            return None  # dequantisation has filled the cells of such elements, too
        with torch.no_grad():
            y, _ = self.preprocess(rows)
        widths = blur(y.flatten(1).cpu().numpy())
        return None if widths is None else torch.from_numpy(widths).to(y).reshape(self.event_shape)

    def _record(
        self, rows: Tensor, context: Tensor | None, num_draws: int, method: str | None, options: dict[str, Any]
    ) -> Likelihood:
        """The likelihood of rows ``[n, *event_shape]``."""
        y, c, log_det = self._normalise_rows(rows, context, num_draws)
        record = self._likelihood(y, c, method, **options)
        record = replace(record, log_prob=record.log_prob + log_det)
        finite = _rows_finite(y, len(self.event_shape))
        outside = torch.isneginf(log_det)
        if num_draws:
            record = importance_weighted(record.reshape((num_draws, len(rows))))
            finite, outside = (flags.reshape(num_draws, len(rows)).all(0) for flags in (finite, outside))
        log_prob = record.log_prob
        # A row outside the support is known for certain to have log p = -inf; any other has it by underflow.
        underflow = torch.isneginf(log_prob) & ~outside
        failed = ~(torch.isfinite(log_prob) | torch.isneginf(log_prob)) | ~finite
        # As plain numbers, which a compiler knows, too.
        ok, worst, small = int(Status.OK), int(Status.NON_FINITE), int(Status.UNDERFLOW)
        found = torch.where(failed, worst, torch.where(underflow, small, ok))
        return replace(
            record,
            error=torch.where(failed | underflow, torch.nan, record.error),
            status=torch.where(record.status == ok, found, record.status).to(record.status.dtype),
        )

    def _normalise(
        self, x: Any, context: Any, num_draws: int = 0
    ) -> tuple[Tensor, Tensor | None, Tensor, tuple[int, ...]]:
        """Rows in normalised units, their context and Jacobian, and the shape of the batch; draws of noise lead it."""
        rows, c, batch = self._rows(x, context)
        return *self._normalise_rows(rows, c, num_draws), (num_draws, *batch) if num_draws else batch

    def _normalise_rows(
        self, rows: Tensor, context: Tensor | None, num_draws: int
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        if num_draws:
            y, log_det = (t.flatten(0, 1) for t in self.preprocess.draws(rows, num_draws))  # type: ignore[operator]
            context = None if context is None else context.repeat(num_draws, *[1] * (context.ndim - 1))
        else:
            y, log_det = self.preprocess(rows)
        if self.training and self.blur is not None:
            y = y + self.blur * torch.randn_like(y)
        if context is not None:
            # Networks may lose a NaN on the way, and answer with a number.
            log_det = torch.where(_rows_finite(context, context.ndim - 1), log_det, torch.nan)
        return y, self._normalise_context(context), log_det

    def _normalise_context(self, context: Tensor | None) -> Tensor | None:
        if context is None or self.preprocess_context is None:
            return context
        return self.preprocess_context(context)[0]

    def _rows(self, x: Any, context: Any) -> tuple[Tensor, Tensor | None, torch.Size]:
        """Flatten the batch to one dimension and give every row its context."""
        x = self._tensor(x, "events")
        num_event_dims = len(self.event_shape)
        if x.ndim < num_event_dims or x.shape[x.ndim - num_event_dims :] != self.event_shape:
            raise ShapeError(
                f"events of shape {list(self.event_shape)} expected, in a tensor [*batch, *event_shape]; "
                f"got {list(x.shape)}"
            )
        batch = x.shape[: x.ndim - num_event_dims]
        c = self._context(context)
        if c is not None:
            assert self.context_shape is not None
            lead = c.shape[: c.ndim - len(self.context_shape)]
            try:
                c = c.expand(*batch, *self.context_shape)
            except RuntimeError:
                raise ShapeError(
                    f"context rows {list(lead)} do not broadcast over event rows {list(batch)}: "
                    "give one context for all, or one a row"
                ) from None
            c = c.reshape(-1, *self.context_shape)
        return x.reshape(-1, *self.event_shape), c, batch

    def _context(self, context: Any) -> Tensor | None:
        if self.context_shape is None:
            if context is not None:
                raise ShapeError("this density has no context: build it with context_shape=..., or leave context out")
            return None
        if context is None:
            raise ShapeError(f"this density is conditional: give context of shape {list(self.context_shape)}")
        c = self._tensor(context, "context")
        num_context_dims = len(self.context_shape)
        if c.ndim < num_context_dims or c.shape[c.ndim - num_context_dims :] != self.context_shape:
            raise ShapeError(f"context of shape {list(self.context_shape)} expected, got {list(c.shape)}")
        return c

    def _tensor(self, values: Any, what: str) -> Tensor:
        """A tensor of the model's dtype, on its device; arrays, labelled ones too, are taken by value."""
        if isinstance(values, Tensor):
            require_values(values, what)
        else:
            columns = self._columns() if what == "events" else self._context_columns()
            # A copy: the caller's array may be read-only.
            values = torch.from_numpy(np.array(numbers(values, what, columns), np.float64))
        return values.to(device=self.device, dtype=self.dtype)

    def _columns(self) -> Sequence[str] | None:
        """Names of the columns, where the density was trained on a table."""
        if self.layout is None or self.layout["event_dims"]:
            return None
        columns: Sequence[str] = self.layout["variables"]
        return columns

    def _context_columns(self) -> Sequence[str] | None:
        """The same of the context: of a table of its own, or of variables of a store that are a column each."""
        if self.context_columns is not None or self.layout is None:
            return self.context_columns
        names: Sequence[str] = self.layout.get("context", ())
        return names if names and len(names) == self.layout["context_size"] else None

    def _gradient(self, *given: Any) -> AbstractContextManager[Any]:
        """Keep track of gradients for those who work with tensors; others want numbers."""
        return nullcontext() if any(isinstance(value, Tensor) for value in given) else torch.no_grad()

    def _generator(self, seed: int | torch.Generator | None) -> torch.Generator | None:
        if seed is None or isinstance(seed, torch.Generator):
            return seed
        try:
            number = operator.index(seed)
        except TypeError:
            raise ConfigError(f"seed {seed!r}: give a whole number, a generator, or None") from None
        if not 0 <= number <= MOST_SEED:
            raise ConfigError(f"seed {seed}: 0 to 2**63 - 1")
        return torch.Generator(device=self.device).manual_seed(number)


def checked_shape(shape: Sequence[int], name: str) -> torch.Size:
    """Return an event or context shape as torch has it; an error names it as the argument ``name``."""
    if isinstance(shape, int):
        raise ShapeError(f"{name} must be a sequence, such as ({shape},); got {shape}")
    try:
        sizes = tuple(operator.index(n) for n in shape)
    except TypeError:
        raise ShapeError(f"{name} must be a sequence of whole numbers, such as (3,); got {shape!r}") from None
    if len(sizes) == 0 or min(sizes) < 1:
        raise ShapeError(f"{name} must hold at least one dimension, each of 1 or more; got {sizes}")
    if math.prod(sizes) > _MOST_ELEMENTS:
        raise ShapeError(f"{name} must hold at most {_MOST_ELEMENTS:,} elements; got {sizes!r:.80}")
    return torch.Size(sizes)


def _checked_draws(num_draws: Any) -> int:
    if not isinstance(num_draws, int) or isinstance(num_draws, bool) or not 4 <= num_draws <= _MOST_DRAWS:
        raise ConfigError(f"num_draws must be 4 to {_MOST_DRAWS:,}; got {num_draws!r}")
    return num_draws


def _draws(n: Any) -> tuple[int, ...]:
    """The shape of what is drawn."""
    try:
        shape = (
            tuple(operator.index(size) for size in n) if isinstance(n, Sequence | torch.Size) else (operator.index(n),)
        )
    except TypeError:
        raise ShapeError(f"cannot draw {n!r} events: give a whole number, or a shape") from None
    if any(size < 0 for size in shape):
        raise ShapeError(f"cannot draw {n} events: ask for 0 or more")
    return shape


def _rows_finite(x: Tensor, num_event_dims: int) -> Tensor:
    return torch.isfinite(x).flatten(x.ndim - num_event_dims).all(-1)
