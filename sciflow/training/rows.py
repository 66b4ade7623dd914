"""From what a user hands over to rows for training, and the checks that they can be trained on."""

from __future__ import annotations

import math
import warnings
from typing import Any, Literal

import numpy as np
import torch

from sciflow.data.layout import Layout
from sciflow.data.loader import ArrayRows, Rows, sequential
from sciflow.data.source import GridSource
from sciflow.data.sources import as_dataset
from sciflow.data.store import Store
from sciflow.density import Density
from sciflow.errors import DataError, LayoutError, ShapeError
from sciflow.training.loop import TrainingData

__all__ = ["prepare", "training_data"]

SAMPLE_ROWS = 1 << 16
SAMPLE_RANGES = 64
MANY_COLUMNS = 4096


def training_data(
    density: Density, data: Any, validation: Any, context: Any, validation_context: Any, seed: int
) -> tuple[TrainingData, dict[str, Any] | None, str | None]:
    """Return rows for training and validation, with the layout and fingerprint of a store.

    Args:
        density: What is to be trained; decides shapes and dtype.
        data: A store, or arrays of events.
        validation: Arrays of held-out events; None holds out a tenth (a fifth of fewer than 1,000).
        context: Context of ``data``, where they are arrays.
        validation_context: Context of ``validation``.
        seed: Of the hold-out.

    Raises:
        DataError: There are too few rows, or some are not finite.
        LayoutError: The store's events are not of the density's shape.
        ShapeError: The arrays are not of the density's shape.
    """
    if isinstance(data, Store):
        if validation is not None or context is not None:
            raise DataError(f"{data.path}: a store brings its own validation rows and context: leave them out")
        return _of_store(density, data), data.layout.to_json(), data.fingerprint
    dtype = "float64" if density.dtype == torch.float64 else "float32"
    events, layout = _events(data, density, dtype)
    contexts = _contexts(context, density, len(events), dtype)
    _require_finite(events, "events")
    if contexts is not None:
        _require_finite(contexts, "context")
    if validation is not None:
        held_events, _ = _events(validation, density, dtype)
        held_contexts = _contexts(validation_context, density, len(held_events), dtype)
        _require_finite(held_events, "validation events")
        _require_count(len(events), len(held_events))
        return TrainingData(ArrayRows(events, contexts), ArrayRows(held_events, held_contexts), dtype), layout, None
    if len(events) < 3:
        raise DataError(f"{len(events)} event{'s' * (len(events) != 1)}: at least 3 are needed, to train on and to hold out")
    order = np.random.default_rng([seed, len(events)]).permutation(len(events))
    num_held = max(1, round(len(events) * (0.1 if len(events) >= 1000 else 0.2)))
    held, kept = np.sort(order[:num_held]), np.sort(order[num_held:])
    rows = [ArrayRows(events[part], None if contexts is None else contexts[part]) for part in (kept, held)]
    return TrainingData(rows[0], rows[1], dtype), layout, None


def prepare(density: Density, data: TrainingData, degenerate: Literal["error", "warn"], names: list[str] | None) -> None:
    """Check a sample of the training rows, and fit the data-unit bijections on it.

    Args:
        density: Its preprocessing is fitted.
        data: Rows.
        degenerate: What constant or duplicate elements of the event lead to.
        names: Names of the event's elements, where they have any.

    Raises:
        DataError: An element of the event is constant or is another's copy.
    """
    context_shape = None if density.context_shape is None else tuple(density.context_shape)
    events, context = _sample(data.train, context_shape, data.dtype)
    problem = _degenerate(events.reshape(len(events), -1), density.event_shape, names)
    if problem is not None:
        if degenerate == "error":
            raise DataError(f"{problem}: leave it out, or go on all the same with degenerate=warn")
        warnings.warn(f"{problem}; log p says little along it", stacklevel=3)
    density.fit_preprocessing(events, context)


def _of_store(density: Density, store: Store) -> TrainingData:
    if tuple(density.event_shape) != store.event_shape:
        raise LayoutError(
            f"{store.path}: its events have shape {list(store.event_shape)}, the density is for {list(density.event_shape)}: "
            "build it with store.event_shape"
        )
    mine = None if density.context_shape is None else tuple(density.context_shape)
    if mine != store.context_shape:
        raise LayoutError(f"{store.path}: its context has shape {store.context_shape}, the density is for {mine}")
    _require_count(len(store.train), len(store.validation))
    return TrainingData(store.train, store.validation, store.layout.dtype, f"{store.path}, train rows")


def _events(data: Any, density: Density, dtype: str) -> tuple[np.ndarray, dict[str, Any] | None]:
    """Events as one array; labelled data bring a layout."""
    if hasattr(data, "detach"):
        data = data.detach().cpu().numpy()
    layout: Layout | None = None
    if hasattr(data, "dims") or hasattr(data, "columns"):
        source = GridSource(as_dataset(data), dtype=dtype)
        layout = source.layout
        data = np.concatenate([block.events for block in source.blocks(1 << 26)])
    events = np.asarray(data)
    if events.dtype.kind not in "fiub":
        raise DataError(f"events are made of numbers; got an array of {events.dtype}")
    shape = tuple(density.event_shape)
    if events.ndim == 0 or events.shape[1:] != shape:
        raise ShapeError(f"events [n, {', '.join(map(str, shape))}] expected; got {list(events.shape)}")
    if len(events) == 0:
        raise DataError("there are no events: 0 rows")
    return events.astype(dtype, copy=False), None if layout is None else layout.to_json()


def _contexts(context: Any, density: Density, n: int, dtype: str) -> np.ndarray | None:
    if density.context_shape is None:
        if context is not None:
            raise ShapeError("this density has no context: build it with context_shape=..., or leave context out")
        return None
    if context is None:
        raise ShapeError(f"this density is conditional: give context [n, {', '.join(map(str, density.context_shape))}]")
    values = np.asarray(context.detach().cpu() if hasattr(context, "detach") else context).astype(dtype, copy=False)
    if values.shape != (n, *density.context_shape):
        raise ShapeError(f"context of shape {[n, *density.context_shape]} expected, one row an event; got {list(values.shape)}")
    return values


def _require_finite(values: np.ndarray, what: str) -> None:
    finite = np.isfinite(values)
    if not finite.all():
        rows = np.flatnonzero(~finite.reshape(len(values), -1).all(-1))
        first = tuple(int(i) for i in np.argwhere(~finite)[0])
        raise DataError(
            f"{what}: {len(rows)} of {len(values)} rows have missing or infinite values, first at row {first[0]}, "
            f"element {list(first[1:])}: drop or fill them first"
        )


def _require_count(num_train: int, num_validation: int) -> None:
    if num_train < 2 or num_validation < 1:
        raise DataError(f"{num_train} training and {num_validation} validation events: 2 and 1 are needed at the least")


def _sample(rows: Rows, context_shape: tuple[int, ...] | None, dtype: str) -> tuple[np.ndarray, np.ndarray | None]:
    """All rows, or ranges spread over all of them."""
    size = max(1, math.ceil(min(len(rows), SAMPLE_ROWS) / SAMPLE_RANGES))
    every = max(1, len(rows) // (size * SAMPLE_RANGES))
    batches = list(sequential(rows, size, context_shape, dtype, every=every))
    events = np.concatenate([batch.events.numpy() for batch in batches])
    contexts = [batch.context.numpy() for batch in batches if batch.context is not None]
    return events, np.concatenate(contexts) if contexts else None


def _degenerate(columns: np.ndarray, event_shape: torch.Size, names: list[str] | None) -> str | None:
    """Say which element is constant or another's copy; its density would be infinite."""

    def name(column: int) -> str:
        place = [int(i) for i in np.unravel_index(column, event_shape)]
        named = f"'{names[column]}'" if names is not None and len(names) == columns.shape[1] else str(place)
        return f"element {named} of the event"

    low, high = columns.min(0), columns.max(0)
    constant = np.flatnonzero(low == high)
    if len(constant):
        more = f" ({len(constant)} such elements)" if len(constant) > 1 else ""
        return f"{name(int(constant[0]))} is constant, always {low[constant[0]]:g}{more}, so its density is infinite"
    if columns.shape[1] <= MANY_COLUMNS:
        seen: dict[bytes, int] = {}
        for column, values in enumerate(np.ascontiguousarray(columns.T)):
            first = seen.setdefault(values.tobytes(), column)
            if first != column:
                return f"{name(column)} is a copy of {name(first)}, so their joint density is infinite"
    return None
