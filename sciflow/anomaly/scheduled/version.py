"""A version of the results: it shares with the one before every chunk that has not changed, and writes the others."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
import zarr

from sciflow.anomaly.scheduled.axis import Axis
from sciflow.anomaly.scheduled.grid import Grid
from sciflow.anomaly.scheduled.results import ATTRIBUTION, FIELDS, Chunks, Results
from sciflow.anomaly.scheduled.source import Source
from sciflow.data.place import consolidate

__all__ = ["write_results"]

# A flipped byte is an error, never a wrong number.
CODEC = zarr.codecs.ZstdCodec(level=0, checksum=True)


def write_results(
    path: Path,
    old: Results | None,
    grid: Grid,
    axis: Axis,
    was: np.ndarray,
    blank: np.ndarray,
    sources: Sequence[Source],
    attributes: Mapping[str, Any],
) -> int:
    """Write a version of the results, whole, in memory that does not grow with them.

    Args:
        path: Where it goes.
        old: The version before.
        grid: Where results lie.
        axis: Positions along the first dimension.
        was: ``[n]``, where each of them was in the version before; -1 where it is new.
        blank: ``[n]``, whether what was there is no longer so, but for what the sources keep.
        sources: Rows that are new, or kept.
        attributes: Of the store.

    Returns:
        How many rows are flagged that were not flagged before.
    """
    chunks = Chunks.of(grid)
    group = _laid_out(path, grid, axis, chunks, attributes)
    touched = np.zeros(-(-len(axis) // chunks.length), bool)
    for source in sources:
        first, last = source.bounds
        if source.is_judged and last >= first:
            touched[first // chunks.length : last // chunks.length + 1] = True
    news = 0
    for number in range(len(touched)):
        start, stop = number * chunks.length, min((number + 1) * chunks.length, len(axis))
        moved = not np.array_equal(was[start:stop], np.arange(start, stop)) or blank[start:stop].any()
        if old is not None and not (touched[number] or moved or _was_other(old, stop, chunks)):
            _share(old.path, path, number, chunks, grid)
        else:
            inside = [source for source in sources if source.bounds[0] < stop and source.bounds[1] >= start]
            news += _write_chunk(group, old, grid, chunks, start, was[start:stop], blank[start:stop], inside)
    consolidate(path)
    return news


def _was_other(old: Results, stop: int, chunks: Chunks) -> bool:
    """Whether the chunk that ends here ended elsewhere."""
    return old.chunks != chunks or min(len(old.axis), -(-stop // chunks.length) * chunks.length) != stop


def _laid_out(path: Path, grid: Grid, axis: Axis, chunks: Chunks, attributes: Mapping[str, Any]) -> zarr.Group:
    dim = grid.dims[0]
    grown = {
        **axis.coordinates,
        "store": xr.Variable((dim,), axis.store, {"long_name": "number of the store, as in the attribute stores"}),
        "position": xr.Variable((dim,), axis.position, {"long_name": "place in that store"}),
    }
    dataset = xr.Dataset(coords={**grid.fixed, **grown}, attrs=dict(attributes))
    encoding = {name: {"compressors": [CODEC]} for name in dataset.coords}
    dataset.to_zarr(str(path), mode="w", zarr_format=3, consolidated=False, encoding=encoding)
    group = zarr.open_group(str(path), mode="r+")
    shape = (len(axis), *grid.inner)
    for name, (dtype, empty, attrs) in FIELDS.items():
        group.create_array(
            name,
            shape=shape,
            dtype=dtype,
            chunks=(chunks.length, *(max(1, size) for size in grid.inner)),
            compressors=[CODEC],
            fill_value=empty,
            dimension_names=grid.dims,
            attributes=dict(attrs),
        )
    group.create_array(
        "attribution",
        shape=(*shape, *grid.event_shape),
        dtype="float32",
        chunks=(*chunks.attribution, *grid.event_shape),
        compressors=[CODEC],
        fill_value=np.nan,
        dimension_names=(*grid.dims, *grid.event_axes),
        attributes=dict(ATTRIBUTION),
    )
    return group


def _share(old: Path, new: Path, number: int, chunks: Chunks, grid: Grid) -> None:
    """Let a chunk of the new version be that of the old one: the same files under two names."""
    for name in FIELDS:
        _link(old / name / "c" / str(number), new / name / "c" / str(number))
    times = chunks.length // chunks.attribution[0]
    for part in range(number * times, (number + 1) * times):
        _link(old / "attribution" / "c" / str(part), new / "attribution" / "c" / str(part))


def _link(old: Path, new: Path) -> None:
    files = [old] if old.is_file() else [file for file in old.rglob("*") if file.is_file()]
    for file in files:
        target = new / file.relative_to(old)
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(file, target)
        except OSError:
            shutil.copy2(file, target)  # Not every file system has links.


def _write_chunk(
    group: zarr.Group,
    old: Results | None,
    grid: Grid,
    chunks: Chunks,
    start: int,
    was: np.ndarray,
    blank: np.ndarray,
    sources: Sequence[Source],
) -> int:
    inner, stop = grid.inner_size, start + len(was)
    before = np.flatnonzero(was >= 0) if old is not None else np.empty(0, np.int64)
    stays = np.repeat(~blank, inner)
    own: list[tuple[np.ndarray, np.ndarray, Source]] = []
    for source in sources:
        index = source.index()
        mine = np.flatnonzero((index >= start * inner) & (index < stop * inner))
        places = index[mine] - start * inner
        if not source.is_judged:
            stays[places] = True
        else:
            own.append((mine, places, source))
    values: dict[str, np.ndarray] = {}
    flagged_before = np.zeros(len(was) * inner, bool)
    for name, (dtype, empty, _) in FIELDS.items():
        block = np.full((len(was), inner), empty, dtype)
        if old is not None and len(before):
            block[before] = old.read(name, was[before]).reshape(-1, inner)
        values[name] = block.reshape(-1)
        if name == "flag":
            flagged_before = values[name].copy()
        values[name][~stays] = empty
    is_old = np.ones(len(was) * inner, bool)
    news = 0
    for mine, places, source in own:
        for name, of_source in source.fields().items():
            values[name][places] = of_source[mine]
        news += int(np.count_nonzero(values["flag"][places] & ~flagged_before[places]))
        is_old[places] = False
    for name, flat in values.items():
        group[name][start:stop] = flat.reshape(len(was), *grid.inner)  # type: ignore[index]
    _write_attribution(group, old, grid, chunks, start, was, values["flag"], is_old, own)
    return news


def _write_attribution(
    group: zarr.Group,
    old: Results | None,
    grid: Grid,
    chunks: Chunks,
    start: int,
    was: np.ndarray,
    flag: np.ndarray,
    is_old: np.ndarray,
    own: Sequence[tuple[np.ndarray, np.ndarray, Source]],
) -> None:
    inner, step = grid.inner_size, chunks.attribution[0]
    of_own = list(_attributions(flag, own))
    for low in range(0, len(was), step):
        high = min(low + step, len(was))
        if not flag[low * inner : high * inner].any():
            continue
        slab = np.full(((high - low) * inner, *grid.event_shape), np.nan, np.float32)
        there = np.flatnonzero((flag & is_old)[low * inner : high * inner])
        if old is not None and len(there):
            positions = np.unique(there // inner)
            read = old.read("attribution", was[low + positions]).reshape(len(positions), inner, *grid.event_shape)
            slab[there] = read[np.searchsorted(positions, there // inner), there % inner]
        for places, found in of_own:
            inside = np.flatnonzero((places >= low * inner) & (places < high * inner))
            slab[places[inside] - low * inner] = found[inside]
        shape = (high - low, *grid.inner, *grid.event_shape)
        group["attribution"][start + low : start + high] = slab.reshape(shape)  # type: ignore[index]


def _attributions(
    flag: np.ndarray, own: Sequence[tuple[np.ndarray, np.ndarray, Source]]
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Places in the chunk of flagged rows of each source, and what their scores are made of."""
    for mine, places, source in own:
        if not flag[places].any():
            continue
        found = source.attribution()
        if len(found):
            number = np.cumsum(source.fields()["flag"]) - 1  # of a flagged row among those of its source
            flagged = flag[places]
            yield places[flagged], found[number[mine[flagged]]]
