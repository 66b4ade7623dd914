"""Scores of events in this process: ``sciflow.score``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from sciflow.arrays import numbers
from sciflow.data.coordinates import coordinates_along
from sciflow.data.layout import Layout
from sciflow.data.source import GridSource
from sciflow.data.sources import as_dataset
from sciflow.data.split import SPLITS
from sciflow.data.store import Store, open_store
from sciflow.density import Density
from sciflow.errors import ConfigError, ShapeError
from sciflow.kernels import repeated
from sciflow.likelihood import Status
from sciflow.modes import in_evaluation_mode
from sciflow.progress import progress_bar

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["BATCH_SIZE", "FIELDS", "NO_SPLIT", "known_by", "labelled", "score", "score_rows"]

BATCH_SIZE = 4096
BLOCK_BYTES = 32 << 20
NO_SPLIT = -1
# What is known of every event: dtype, value where there is no event, attributes.
FIELDS: dict[str, tuple[str, float, dict[str, Any]]] = {
    "log_prob": ("float32", np.nan, {"long_name": "log probability density", "units": "nats"}),
    "error": ("float32", np.nan, {"long_name": "error of log_prob, two of which hold the truth", "units": "nats"}),
    "nfe": ("int32", 0, {"long_name": "network evaluations", "units": "1"}),
    "status": (
        "int8",
        -1,
        {
            "long_name": "what became of the event",
            "flag_values": [-1, *map(int, Status)],
            "flag_meanings": " ".join(["no_event", *(status.name.lower() for status in Status)]),
        },
    ),
}


def score(
    density: Density,
    data: Any,
    *,
    context: Any = None,
    method: str | None = None,
    batch_size: int = BATCH_SIZE,
    progress: bool = True,
    **options: Any,
) -> xr.Dataset:
    """Return the likelihood of every event, labelled with the data's own coordinates.

    Args:
        density: A trained density; it stays in the mode it is in.
        data: A store or its path, labelled data with the variables that the density was trained on (``xarray``,
            pandas), or an array ``[n, *event_shape]``.
        context: ``[n, *context_shape]`` for a conditional density and an array, or one for all; where contexts have
            names, a mapping from them.
        method: ``"exact"``, ``"ode"`` or ``"elbo"``, where the family has it; None for the family's own.
        batch_size: Events at a time.
        progress: Show a progress bar on a terminal.
        **options: Of the method.

    Returns:
        ``log_prob`` and ``error`` in nats (of the data in their units), ``nfe`` and ``status``, over the sample
        dimensions; for a store also ``split``. NaN stands where the store has dropped an event. Attributes say how
        log p is known.

    Raises:
        ConfigError: ``batch_size`` is below 1, or the density has no such method or option.
        DataError: The data are no numbers.
        LayoutError: The data are laid out differently from those that the density was trained on.
        ShapeError: The array is of another shape.
        StoreError: There is no store at the path, or a shard is missing or damaged.

    Example:
        >>> from sciflow.flows import NSF
        >>> dict(score(NSF((2,), num_transforms=1), np.zeros((5, 2))).log_prob.sizes)
        {'row': 5}
    """
    if batch_size < 1:
        raise ConfigError(f"batch_size {batch_size}: 1 event or more at a time")
    if isinstance(data, (str, Path)):
        data = open_store(data)
    if isinstance(data, Store):
        return _score_store(density, data, method, batch_size, progress, options)
    if hasattr(data, "dims") or hasattr(data, "columns"):
        source = _source(density, data)
        layout, coordinates = source.layout, source.coordinates()
        blocks = list(source.blocks(BLOCK_BYTES))
        events = np.concatenate([block.events for block in blocks])
        contexts = [block.context for block in blocks if block.context is not None]
        context = np.concatenate(contexts) if contexts else context
    else:
        events, layout, coordinates = numbers(data), None, None
        if events.ndim != 1 + len(density.event_shape):
            raise ShapeError(f"events [n, *{list(density.event_shape)}] expected; got {list(events.shape)}")
    fields, kind = score_rows(density, events, context, method, options, batch_size)
    attributes = known_by(kind, method, options)
    shape = layout.grid_shape if layout is not None else (len(events),)
    dims = tuple(dim.name for dim in layout.sample_dims) if layout is not None else ("row",)
    return labelled({name: values.reshape(shape) for name, values in fields.items()}, dims, coordinates, attributes)


def score_rows(
    density: Density, events: Any, context: Any, method: str | None, options: Mapping[str, Any], batch_size: int
) -> tuple[dict[str, np.ndarray], str]:
    """Score rows in batches, in evaluation mode.

    Returns:
        An array ``[n]`` for every entry of :data:`FIELDS`, and the kind of likelihood.
    """
    parts: list[dict[str, np.ndarray]] = []
    kind = ""
    context = None if context is None else density.pack_context(context)
    # One context for all may come as one row, too.
    per_row = context is not None and context.ndim > len(density.context_shape or ()) and len(context) > 1
    starts = range(0, max(1, len(events)), batch_size)
    with torch.no_grad(), in_evaluation_mode(density), repeated(len(starts)):
        for start in starts:
            rows = slice(start, start + batch_size)
            record = density.likelihood(events[rows], context[rows] if per_row else context, method, **options)
            kind = record.kind
            parts.append({name: getattr(record, name).cpu().numpy().astype(FIELDS[name][0]) for name in FIELDS})
    return {name: np.concatenate([part[name] for part in parts]) for name in FIELDS}, kind


def labelled(
    fields: dict[str, np.ndarray],
    dims: tuple[str, ...],
    coordinates: xr.Dataset | None,
    attributes: Mapping[str, Any],
) -> xr.Dataset:
    """Put arrays over the sample dimensions together with their coordinates."""
    import xarray as xr

    arrays = {name: (dims, values, FIELDS[name][2] if name in FIELDS else {}) for name, values in fields.items()}
    return xr.Dataset(arrays, coordinates_along(dims, coordinates), attributes)


def known_by(kind: str, method: str | None, options: Mapping[str, Any]) -> dict[str, str]:
    """Attributes that say how log p is known: texts, as NetCDF holds them.

    Example:
        >>> known_by("elbo", None, {"num_draws": 16})
        {'likelihood': 'elbo', 'method': 'default', 'options': '{"num_draws": 16}'}
    """
    # A method of this name there is none: it is that of the family.
    shown = json.dumps(dict(options), sort_keys=True, default=repr)
    return {"likelihood": kind, "method": "default" if method is None else method, "options": shown}


def _score_store(
    density: Density, store: Store, method: str | None, batch_size: int, progress: bool, options: dict[str, Any]
) -> xr.Dataset:
    store.layout.require_fits(density.layout, density.event_shape, store.path, "the model")
    grid = {name: np.full(store.layout.num_grid_events, empty, dtype) for name, (dtype, empty, _) in FIELDS.items()}
    grid["split"] = np.full(store.layout.num_grid_events, NO_SPLIT, np.int8)
    kind, done = "", 0
    with progress_bar("scoring", len(store), progress) as update, repeated(len(store.manifest.shards)):
        for code, split in enumerate(store.splits):
            for record in split.shards:
                start, stop = split.shard_range(record.number)
                events = split[start:stop]
                context = None if store.context_shape is None else split.context[start:stop]
                fields, kind = score_rows(density, events, context, method, options, batch_size)
                index = split.grid_index(start, stop)
                for name, values in fields.items():
                    grid[name][index] = values
                grid["split"][index] = code
                done += len(events)
                update(done, record.name)
    shape = store.layout.grid_shape
    dims = tuple(dim.name for dim in store.layout.sample_dims)
    grids = {name: values.reshape(shape) for name, values in grid.items()}
    scores = labelled(grids, dims, store.coordinates, known_by(kind, method, options))
    scores["split"].attrs = split_attributes()
    return scores


def split_attributes() -> dict[str, Any]:
    """Attributes of the variable ``split``."""
    return {"flag_values": [NO_SPLIT, 0, 1, 2], "flag_meanings": " ".join(("no_event", *SPLITS))}


def _source(density: Density, data: Any) -> GridSource:
    """Cut labelled data into events as the density's training data were."""
    dataset = as_dataset(data)
    if density.layout is None:
        return GridSource(dataset)
    trained = Layout.from_json(density.layout)
    source = GridSource(dataset, **trained.request())
    source.layout.require_fits(density.layout, density.event_shape, "data", "the model")
    return source
