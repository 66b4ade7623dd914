"""From what a user hands over to rows for training, and the checks that they can be trained on."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from sciflow.arrays import numbers
from sciflow.conditions import Columns, Conditions
from sciflow.contexts import Field, Vector
from sciflow.data.layout import Layout
from sciflow.data.loader import ArrayRows, Rows, sequential
from sciflow.data.source import GridSource
from sciflow.data.sources import as_dataset
from sciflow.data.store import Store, open_store
from sciflow.density import Density
from sciflow.errors import ConfigError, DataError, LayoutError, ShapeError
from sciflow.training.doubts import complain, doubts
from sciflow.training.evaluate import named_rows
from sciflow.training.loop import TrainingData

__all__ = ["as_floats", "examine", "prepare", "training_data"]

SAMPLE_ROWS = 1 << 16
SAMPLE_BYTES = 1 << 28
SAMPLE_RANGES = 64


def training_data(
    density: Density, data: Any, validation: Any, context: Any, validation_context: Any, seed: int
) -> tuple[TrainingData, Layout | None, str | None]:
    """Return rows for training and validation, with the layout and fingerprint of a store.

    Args:
        density: What is to be trained; decides shapes and dtype.
        data: A store or its path, or arrays of events.
        validation: Arrays of held-out events; None holds out a tenth (a fifth of fewer than 1,000).
        context: Context of ``data``, where they are arrays; a mapping where contexts have names.
        validation_context: Context of ``validation``.
        seed: Of the hold-out.

    Raises:
        ConfigError: The density was built in inference mode.
        DataError: There are too few rows, or some are not finite, or not in the density's floating type, or have a
            label or token that there is not.
        LayoutError: The store's events are not of the density's shape.
        ShapeError: The arrays are not of the density's shape.
    """
    if any(tensor.is_inference() for tensor in (*density.parameters(), *density.buffers())):
        raise ConfigError("a density that is built under torch.inference_mode() cannot be trained: build it outside")
    if not any(parameter.requires_grad for parameter in density.parameters()):
        raise ConfigError(f"this {type(density).__name__} has no parameters to train")
    if isinstance(data, (str, Path)):
        data = open_store(data)
    if isinstance(data, Store):
        if validation is not None or context is not None:
            raise DataError(f"{data.path}: a store brings its own validation rows and context: leave them out")
        return _of_store(density, data), data.layout, data.fingerprint
    dtype = "float64" if density.dtype == torch.float64 else "float32"
    events, layout = _events(data, density, dtype, "events")
    columns = None if context is None or density.conditions is None else density.conditions.columns(context)
    contexts = _contexts(context, density, len(events), dtype, "context", columns)
    if validation is not None:
        held_events, held_layout = _events(validation, density, dtype, "validation events")
        if layout is not None and held_layout is not None:
            difference = layout.difference(held_layout.to_json())
            if difference is not None:
                raise LayoutError(f"validation events are laid out differently from the training events: {difference}")
        what = "validation context"
        held_contexts = _contexts(validation_context, density, len(held_events), dtype, what, columns)
        _require_count(len(events), len(held_events))
        held = ArrayRows(held_events, held_contexts)
        return TrainingData(ArrayRows(events, contexts), held, dtype, extrema=_extrema(events)), layout, None
    if validation_context is not None:
        raise DataError("validation_context without validation: give both, or neither")
    if len(events) < 3:
        raise DataError(f"{len(events)} events: at least 3 are needed, to train on and to hold out")
    order = np.random.default_rng([seed, len(events)]).permutation(len(events))
    num_held = max(1, round(len(events) * (0.1 if len(events) >= 1000 else 0.2)))
    parts = np.sort(order[num_held:]), np.sort(order[:num_held])
    train, held = (ArrayRows(events[part], None if contexts is None else contexts[part]) for part in parts)
    return TrainingData(train, held, dtype, numbers=parts[0], extrema=_extrema(events[parts[0]])), layout, None


def prepare(
    density: Density, data: TrainingData, degenerate: Literal["error", "warn"] | None, layout: Layout | None = None
) -> None:
    """Check a sample of the training rows, and fit the data-unit bijections on it.

    Args:
        density: Its preprocessing is fitted.
        data: Rows.
        degenerate: What constant, duplicate and discrete elements of the event lead to; None where that is settled.
        layout: Names the event's elements, where they have names.

    Raises:
        DataError: A value is not finite, or an element of the event is constant, another's copy, or discrete; or a
            label or token is none that there is.
    """
    events, context, places = _sample(data.train, density, data.dtype)
    rows = places if data.numbers is None else data.numbers[places]
    bad = ~np.isfinite(events.reshape(len(events), -1)).all(-1)
    if bad.any():
        raise DataError(f"{data.name} {named_rows(rows[bad].tolist())}: not finite; drop or fill them first")
    if context is not None:
        _require_known(density, context, rows, data.name)
    if degenerate is not None:
        complain(_doubts(density, data, events, layout), degenerate, stacklevel=3)
    density.fit_preprocessing(events, context)


def examine(
    density: Density, data: TrainingData, degenerate: Literal["error", "warn"], layout: Layout | None = None
) -> None:
    """Say what in a sample of the training rows a density cannot do right by, before anything starts.

    Raises:
        DataError: An element of the event is constant, another's copy, or discrete, and that is to be an error.
    """
    events, _, _ = _sample(data.train, density, data.dtype)
    complain(_doubts(density, data, events, layout), degenerate, stacklevel=4)


def _doubts(density: Density, data: TrainingData, events: np.ndarray, layout: Layout | None) -> list[str]:
    dequantized = bool(density.preprocess.num_draws)
    columns = events.reshape(len(events), -1)
    return density.doubts(layout) + doubts(columns, data.extrema, dequantized, density.event_shape, layout)


def _of_store(density: Density, store: Store) -> TrainingData:
    if tuple(density.event_shape) != store.event_shape:
        raise LayoutError(
            f"{store.path}: its events have shape {list(store.event_shape)}, the density is for "
            f"{list(density.event_shape)}: build it with store.event_shape"
        )
    mine = None if density.context_shape is None else tuple(density.context_shape)
    if mine != store.context_shape:
        raise LayoutError(f"{store.path}: its context has shape {store.context_shape}, the density is for {mine}")
    _require_count(len(store.train), len(store.validation))
    found = store.statistics
    name = f"{store.path}, train rows"
    extrema = found.minimum, found.maximum
    return TrainingData(store.train, store.validation, store.layout.dtype, name, extrema=extrema)


def _events(data: Any, density: Density, dtype: str, what: str) -> tuple[np.ndarray, Layout | None]:
    """Events as one array; labelled data bring a layout."""
    layout: Layout | None = None
    if hasattr(data, "dims") or hasattr(data, "columns"):
        dataset = as_dataset(data)
        source = GridSource(dataset, dtype=dtype)
        layout = source.layout
        data = _all_events(source)
        low, high = _extrema(data)
        if (low == high).any():
            # It may be the type that makes a constant: what was given shows.
            data = _all_events(GridSource(dataset, dtype="float64"))
    events = numbers(data, what)
    shape = tuple(density.event_shape)
    if events.ndim == 0 or events.shape[1:] != shape:
        raise ShapeError(f"events [n, {', '.join(map(str, shape))}] expected; got {list(events.shape)}")
    if len(events) == 0:
        raise DataError("there are no events: 0 rows")
    return as_floats(events, dtype, what), layout


def _all_events(source: GridSource) -> np.ndarray:
    return np.concatenate([block.events for block in source.blocks(1 << 26)])


def _contexts(context: Any, density: Density, n: int, dtype: str, what: str, columns: Columns) -> np.ndarray | None:
    conditions = density.conditions
    if conditions is None:
        if context is not None:
            raise ShapeError("this density has no context: build it with context_shape=..., or leave context out")
        return None
    if context is None and not conditions.declared:
        raise ShapeError(f"this density is conditional: give context [n, {', '.join(map(str, conditions.shape))}]")
    if conditions.declared or (isinstance(context, Mapping) and not hasattr(context, "data_vars")):
        values = conditions.pack(context, columns, what).detach().numpy()
    else:
        assert not isinstance(columns, Mapping)
        values = numbers(context, what, columns)
    if values.shape != (n, *conditions.shape):
        expected = [n, *conditions.shape]
        raise ShapeError(f"{what} of shape {expected} expected, one row an event; got {list(values.shape)}")
    if not conditions.declared:
        return as_floats(values, dtype, what)
    floats = _floats_of_each(values, conditions, dtype, what)
    _require_known(density, floats, np.arange(n), what.replace("context", "rows"))
    return floats


def _floats_of_each(values: np.ndarray, conditions: Conditions, dtype: str, what: str) -> np.ndarray:
    """Packed contexts in the density's own type; labels and tokens are so small that nothing is lost."""
    parts = []
    for name, part in conditions.contexts.unpack(torch.from_numpy(values)).items():
        column = part.reshape(len(values), math.prod(part.shape[1:])).numpy()
        is_real = isinstance(conditions.contexts[name], Vector | Field)
        parts.append(as_floats(column, dtype, f"{what} {name!r}") if is_real else column.astype(dtype))
    return np.concatenate(parts, 1)


def _require_known(density: Density, contexts: np.ndarray, rows: np.ndarray, name: str) -> None:
    """Refuse rows whose context is missing, or is a label or token that there is not."""
    assert density.conditions is not None
    packed = torch.from_numpy(contexts)
    unknown = ~density.knows(packed)
    if unknown.any():
        where = f"{name} {named_rows(rows[unknown.numpy()].tolist())}"
        try:
            density.conditions.require_allowed(packed[unknown])
        except DataError as error:
            raise DataError(f"{where}: {error}") from None
        raise DataError(f"{where}: context not finite; drop or fill them first")


def as_floats(values: np.ndarray, dtype: str, what: str) -> np.ndarray:
    """Return rows in the density's own type, with nothing lost unseen.

    Args:
        values: ``[n, *event_shape]``.
        dtype: The density's.
        what: What to call them in messages.

    Raises:
        DataError: Some are not finite, or beyond the type, or what varies is all one number in it.
    """
    _require_finite(values, what)
    with np.errstate(over="ignore"):
        floats = values.astype(dtype, copy=False)
    if floats.dtype == values.dtype:
        return floats
    wider = ", or use density.double()" if dtype == "float32" else ""
    low, high = _extrema(floats)
    beyond = np.argwhere(~np.isfinite(low) | ~np.isfinite(high))
    if len(beyond):
        raise DataError(
            f"{what}: element {beyond[0].tolist()} holds values that are finite, but beyond {dtype}: give them in "
            f"other units{wider}"
        )
    least, most = _extrema(values)
    rounded = np.argwhere((low == high) & (least != most))
    if len(rounded):
        first = tuple(rounded[0])
        raise DataError(
            f"{what}: element {rounded[0].tolist()} varies from {least[first].item()!r} to {most[first].item()!r}, "
            f"which is all one number in {dtype}: take off an offset{wider}"
        )
    return floats


def _require_finite(values: np.ndarray, what: str) -> None:
    finite = np.isfinite(values)
    if not finite.all():
        rows = np.flatnonzero(~finite.reshape(len(values), -1).all(-1))
        first = tuple(int(i) for i in np.argwhere(~finite)[0])
        raise DataError(
            f"{what}: {len(rows)} of {len(values)} rows have missing or infinite values, first at row {first[0]}, "
            f"element {list(first[1:])}: drop or fill them first"
        )


def _extrema(events: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return events.min(0), events.max(0)


def _require_count(num_train: int, num_validation: int) -> None:
    if num_train < 2 or num_validation < 1:
        raise DataError(f"{num_train} training and {num_validation} validation events: 2 and 1 are needed at the least")


def _sample(rows: Rows, density: Density, dtype: str) -> tuple[np.ndarray, np.ndarray | None, np.ndarray]:
    """All rows, or ranges spread over all of them, within bounds of number and memory; and their numbers."""
    context_shape = None if density.context_shape is None else tuple(density.context_shape)
    row_bytes = math.prod(rows.event_shape) * np.dtype(dtype).itemsize
    most = min(len(rows), SAMPLE_ROWS, max(SAMPLE_RANGES, SAMPLE_BYTES // row_bytes))
    size = max(1, math.ceil(most / SAMPLE_RANGES))
    every = max(1, len(rows) // (size * SAMPLE_RANGES))
    batches = list(sequential(rows, size, context_shape, dtype, every=every))
    events = np.concatenate([batch.events.numpy() for batch in batches])
    contexts = [batch.context.numpy() for batch in batches if batch.context is not None]
    places = np.concatenate([batch.rows for batch in batches])
    return events, np.concatenate(contexts) if contexts else None, places
