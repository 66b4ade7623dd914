"""The contract: everything that is trained is a Density, and says how it knows log p."""

from __future__ import annotations

import inspect
import math
import operator
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from sciflow.arrays import as_tensor
from sciflow.conditions import Columns, Conditions
from sciflow.contexts import Contexts, ContextShape
from sciflow.degenerate import blur
from sciflow.errors import ConfigError, ShapeError, nearest
from sciflow.likelihood import Likelihood, Status, concatenated, importance_weighted
from sciflow.modes import in_evaluation_mode
from sciflow.shapes import checked_draws, checked_shape

__all__ = ["MOST_SEED", "Density", "Likelihood", "Status", "checked_shape"]

MOST_SEED = 2**63 - 1  # What torch's generators take.
_ROWS_AT_A_TIME = 1 << 16  # where each row comes as several draws
_DRAWS, _MOST_DRAWS = 16, 1 << 16
_MOST_VALUES = 1 << 38  # a terabyte in float32
_NO_CONTEXT = "this density has no context: build it with context_shape=..., or leave context out"


class Density(nn.Module, ABC):
    r"""A trainable probability density over events, in the units of the data.

    A family models the *normalised* event :math:`y = T(x)`, where :math:`T` (standardising, log1p, logit,
    dequantising) is fitted on training rows and saved with the model. This class adds its Jacobian,

    .. math:: \log p(x \mid c) = \log p_Y(T(x) \mid c) + \log |\det \partial T / \partial x| ,

    so that no family can forget the units. It also checks shapes and broadcasts the context, once for all families.
    A family gives the underscored methods, which see one batch dimension: ``y`` of shape ``[n, *event_shape]`` and
    ``context`` of shape ``[n, *context_shape]`` or None, as :meth:`_normalise_context` leaves it.

    Args:
        event_shape: Shape of one event.
        context_shape: What the density is conditioned on: a shape, a kind of context such as
            :class:`sciflow.contexts.Label`, or several of them by name; or None. Contexts by name are packed in one
            vector.
        preprocess: Bijection from data units to normalised units.
        preprocess_context: The same for the context; its Jacobian does not count. None where there is no context.
        arguments: The constructor's arguments, as JSON can hold them; ``load`` builds the model from them.
    """

    family: ClassVar[str]
    #: What the training loss is called: "loss" where it is minus log p, in nats; "objective" where it is not.
    objective: ClassVar[Literal["loss", "objective"]] = "loss"
    #: How many times as many steps of training as a flow it takes, where the user does not say how many.
    relative_steps: int = 1
    #: Of minus the loss in evaluation mode, by which training is judged: "nats" where that is log p.
    unit: str = "nats"
    blur: Tensor | None
    layout: dict[str, Any] | None
    context_columns: Columns
    provenance: dict[str, Any]

    def __init__(
        self,
        event_shape: Sequence[int],
        context_shape: ContextShape | None = None,
        *,
        preprocess: nn.Module,
        preprocess_context: nn.Module | None = None,
        arguments: dict[str, Any],
    ) -> None:
        super().__init__()
        self.event_shape = checked_shape(event_shape, "event_shape")
        self.conditions = Conditions.of(context_shape)
        self.preprocess = preprocess
        self.preprocess_context = preprocess_context
        self.arguments = {
            "event_shape": list(self.event_shape),
            "context_shape": None if self.conditions is None else self.conditions.specification,
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
                table goes by name where a table was trained on. Of contexts by name, a mapping from name to
                ``[*context_batch, *shape]``, which broadcast, or all of them side by side as one array.

        Returns:
            ``[*batch]``, with a gradient where ``x`` or ``context`` is a tensor.

        Raises:
            ShapeError: Event or context has another shape than the density was made for.
            DataError: They are no real numbers, columns are missing, or a label or token is none that there is.
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
            context: As :meth:`log_prob` takes it, broadcast over the batch.
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
            context: As :meth:`log_prob` takes it: ``n`` draws for each of ``[*context_batch]``.
            seed: A seed or a generator on the model's device; None draws from torch's own generator.
            **options: Of the family's sampler.

        Returns:
            ``[n, *context_batch, *event_shape]``, without gradient. Draws that are not finite are warned of.
        """
        shape = checked_draws(n)
        c = self._context(context)
        if c is not None and self.conditions is not None and not torch.compiler.is_compiling():
            self.conditions.require_no_infinity(c)
        context_batch = () if c is None else c.shape[: c.ndim - len(self.context_shape or ())]
        batch = (*shape, *context_batch)
        if math.prod(batch) * self.event_shape.numel() > _MOST_VALUES:
            raise ShapeError(f"cannot draw {n!r:.80} events at once: no memory holds so many; draw them part by part")
        generator = self._generator(seed)
        with torch.no_grad(), in_evaluation_mode(self):
            if c is not None:
                # Normalised once for all draws of a context.
                c = self._normalise_context(c.reshape(math.prod(context_batch), *c.shape[len(context_batch) :]))
                assert c is not None
                one = c.shape[1:]
                c = c.reshape(*context_batch, *one).expand(*batch, *one).reshape(math.prod(batch), *one)
            y = self._sample(math.prod(batch), c, generator, **options)
            x, _ = self.preprocess.inverse(y)  # type: ignore[operator]
        _warn_of_what_is_not_finite(x, math.prod(batch), self.event_shape.numel())
        # A family may return what it passed on the way, too, in dimensions that lead.
        return x.reshape(*y.shape[: y.ndim - len(self.event_shape) - 1], *batch, *self.event_shape)

    def loss(self, x: Any, context: Any = None) -> Tensor:
        """Return what training lowers, ``[*batch]``, one value a row.

        In evaluation mode it is minus log p, or minus what bounds log p from below: nats, data units; or what
        :attr:`unit` says. While training it may be something else, see :attr:`objective`.
        """
        num_draws = self._num_draws
        y, c, log_det, batch = self._normalise(x, context, num_draws, checked=False)
        losses = self._loss(y, c, log_det).reshape(batch)
        return losses.mean(0) if num_draws else losses

    def encode(self, x: Any, context: Any = None, **options: Any) -> Tensor:
        """Map events to noise of the same shape, the inverse of :meth:`decode`.

        Args:
            x: ``[*batch, *event_shape]``, data units.
            context: As :meth:`log_prob` takes it, broadcast over the batch.
            **options: Where the map is the solution of an ODE, ``tolerance``: what log p of the noise may be off, in
                nats; 1e-5 by default.

        Returns:
            ``[*batch, *event_shape]``, with a gradient where ``x`` or ``context`` is a tensor.

        Raises:
            ConfigError: There is no such option, or it is out of range.
            ShapeError: Event or context has another shape than the density was made for.
        """
        self._require_options("encode", self._encode, options)
        with self._gradient(x, context):
            y, c, _, batch = self._normalise(x, context)
            return self._encode(y, c, **options).reshape(*batch, *self.event_shape)

    def decode(self, z: Any, context: Any = None, **options: Any) -> Tensor:
        """Map noise ``[*batch, *event_shape]`` to events, in data units; options are those of :meth:`encode`."""
        self._require_options("decode", self._decode, options)
        with self._gradient(z, context):
            z, c, batch = self._rows(z, context)
            y = self._decode(z, self._normalise_context(c), **options)
            x, _ = self.preprocess.inverse(y)  # type: ignore[operator]
            return x.reshape(*batch, *self.event_shape)

    def pack_context(self, context: Any) -> Tensor:
        """Put contexts as users give them side by side, as stores hold them.

        Args:
            context: As :meth:`log_prob` takes it.

        Returns:
            ``[*context_batch, *context_shape]``, float64, on the CPU; it is a context for all other methods.

        Raises:
            ShapeError: The density has no context, or one of another shape.
            DataError: They are no real numbers, columns are missing, or a label or token is none that there is.
        """
        if self.conditions is None:
            raise ShapeError(_NO_CONTEXT)
        packed = self.conditions.pack(context, self._context_columns())
        self.conditions.require_allowed(packed)
        return packed

    def knows(self, context: Tensor) -> Tensor:
        """Which of packed contexts ``[n, *context_shape]`` log p can be told for, ``[n]``; of others it is NaN."""
        assert self.contexts is not None
        return self.contexts.known(context.flatten(1))

    @property
    def context_shape(self) -> torch.Size | None:
        """Shape of one context as it is packed, or None."""
        return None if self.conditions is None else self.conditions.shape

    @property
    def contexts(self) -> Contexts | None:
        """What the density is conditioned on, or None."""
        return None if self.conditions is None else self.conditions.contexts

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

    def doubts(self, layout: Any) -> list[str]:
        """Say what the density would misread in events that are laid out like this, one sentence each.

        Args:
            layout: Of a store or of labelled data, see :class:`sciflow.data.layout.Layout`; None where there is none.
        """
        return []

    def save(self, path: str | Path) -> Path:
        """Write ``model.safetensors`` and ``model.json`` into the folder ``path``; see :func:`sciflow.load`."""
        from sciflow.model_file import save

        return save(self, path)

    @property
    def dtype(self) -> torch.dtype:
        """The floating dtype of the model's own numbers."""
        return next(t.dtype for t in chain(self.parameters(), self.buffers()) if t.is_floating_point())

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(t.device for t in chain(self.parameters(), self.buffers()))

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
    def _encode(self, y: Tensor, context: Tensor | None) -> Tensor:
        """Noise of normalised events; keyword arguments of a family's own are what :meth:`encode` takes."""

    @abstractmethod
    def _decode(self, z: Tensor, context: Tensor | None) -> Tensor:
        """Normalised events of noise, likewise."""

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
        usable = (record.status == ok) | (record.status == int(Status.TARGET_MISSED))
        found = torch.where(failed, worst, torch.where(underflow, small, ok))
        return replace(
            record,
            error=torch.where(failed | underflow, torch.nan, record.error),
            status=torch.where(usable & (found != ok), found, record.status).to(record.status.dtype),
        )

    def _normalise(
        self, x: Any, context: Any, num_draws: int = 0, checked: bool = True
    ) -> tuple[Tensor, Tensor | None, Tensor, tuple[int, ...]]:
        """Rows in normalised units, their context and Jacobian, and the shape of the batch; draws of noise lead it."""
        rows, c, batch = self._rows(x, context, checked)
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
            log_det = torch.where(self.knows(context), log_det, torch.nan)
        return y, self._normalise_context(context), log_det

    def _normalise_context(self, context: Tensor | None) -> Tensor | None:
        if context is None or self.preprocess_context is None:
            return context
        return self.preprocess_context(context)[0]

    def _rows(self, x: Any, context: Any, checked: bool = True) -> tuple[Tensor, Tensor | None, torch.Size]:
        """Flatten the batch to one dimension and give every row its context."""
        x = self._events(x)
        num_event_dims = len(self.event_shape)
        if x.ndim < num_event_dims or x.shape[x.ndim - num_event_dims :] != self.event_shape:
            raise ShapeError(
                f"events of shape {list(self.event_shape)} expected, in a tensor [*batch, *event_shape]; "
                f"got {list(x.shape)}"
            )
        batch = x.shape[: x.ndim - num_event_dims]
        c = self._context(context, checked)
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

    def _context(self, context: Any, checked: bool = True) -> Tensor | None:
        """Contexts in one tensor; ``checked`` for labels and tokens that there are not, which costs a GPU a wait."""
        if self.conditions is None:
            if context is not None:
                raise ShapeError(_NO_CONTEXT)
            return None
        c = self.conditions.pack(context, self._context_columns(), dtype=self.dtype, device=self.device)
        if checked and not torch.compiler.is_compiling():
            self.conditions.require_allowed(c)
        return c

    def _events(self, x: Any) -> Tensor:
        columns = None if isinstance(x, Tensor) else self._columns()
        return as_tensor(x, "events", columns, dtype=self.dtype, device=self.device)

    def _columns(self) -> Sequence[str] | None:
        """Names of the columns, where the density was trained on a table."""
        if self.layout is None or self.layout["event_dims"]:
            return None
        columns: Sequence[str] = self.layout["variables"]
        return columns

    def _context_columns(self) -> Columns:
        """The same of the context: of a table of its own, or of variables of a store that are a column each."""
        if self.context_columns is not None or self.layout is None:
            return self.context_columns
        names: Sequence[str] = self.layout.get("context", ())
        return names if names and len(names) == self.layout["context_size"] else None

    def _gradient(self, *given: Any) -> AbstractContextManager[Any]:
        """Keep track of gradients for those who work with tensors; others want numbers."""
        values = [inner for value in given for inner in (value.values() if isinstance(value, Mapping) else (value,))]
        return nullcontext() if any(isinstance(value, Tensor) for value in values) else torch.no_grad()

    def _require_options(self, whose: str, method: Callable[..., Tensor], options: Mapping[str, Any]) -> None:
        """Refuse options that are no keyword arguments of a family's method."""
        if not options:
            return
        parameters = inspect.signature(method).parameters.values()
        known = [parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY]
        for name in options:
            if name not in known:
                takes = f"unknown option; {nearest(name, known)}" if known else "it takes no options"
                raise ConfigError(f"{type(self).__name__}: {whose}: {name!r:.80}: {takes}")

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


def _checked_draws(num_draws: Any) -> int:
    if not isinstance(num_draws, int) or isinstance(num_draws, bool) or not 4 <= num_draws <= _MOST_DRAWS:
        raise ConfigError(f"num_draws must be 4 to {_MOST_DRAWS:,}; got {num_draws!r}")
    return num_draws


def _warn_of_what_is_not_finite(x: Tensor, num_draws: int, num_elements: int) -> None:
    if num_draws == 0 or torch.compiler.is_compiling():
        return
    finite = torch.isfinite(x).reshape(-1, num_draws, num_elements)
    bad = int((~finite.all(-1).all(0)).sum())
    if bad:
        warnings.warn(
            f"{bad:,} of {num_draws:,} draws are not finite: look at the context and at the sampler's settings, or "
            "train again with a lower learning_rate",
            stacklevel=3,
        )


def _rows_finite(x: Tensor, num_event_dims: int) -> Tensor:
    return torch.isfinite(x).flatten(x.ndim - num_event_dims).all(-1)
