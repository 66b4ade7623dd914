"""A version of the results: it shares with the one before every chunk that has not changed, and writes the others."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
import zarr

from sciflow.anomaly.scheduled.axis import Axis
from sciflow.anomaly.scheduled.chunk import Chunk
from sciflow.anomaly.scheduled.grid import Grid
from sciflow.anomaly.scheduled.results import ATTRIBUTION, AXIS, CHUNK_ROWS, FIELDS, Chunks, Results
from sciflow.anomaly.scheduled.runs import Runs
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
    was: Runs,
    fresh: Sequence[int],
    sources: Sequence[Source],
    attributes: Mapping[str, Any],
) -> int:
    """Write a version of the results, whole, in memory that does not grow with them.

    Args:
        path: Where it goes.
        old: The version before.
        grid: Where results lie.
        axis: Positions along the first dimension.
        was: ``[n]``, where each of them was in the version before; below 0 where it is new.
        fresh: Numbers of stores that were written anew: what was there is no longer so, but for what the sources keep.
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
        here = slice(start, stop)
        blank = np.isin(axis.stores(here), fresh)
        moved = not np.array_equal(was[here], np.arange(start, stop)) or blank.any()
        if old is not None and not (touched[number] or moved or _was_other(old, stop, chunks)):
            _share(old.path, path, number, chunks, grid)
            continue
        inside = [source for source in sources if source.bounds[0] < stop and source.bounds[1] >= start]
        chunk = Chunk(grid, old, start, was[here], blank, inside)
        for name, values in chunk.fields.items():
            group[name][here] = values.reshape(len(blank), *grid.inner)  # type: ignore[index]
        for low, slab in chunk.attributions(chunks.attribution[0]):
            group["attribution"][start + low : start + low + len(slab)] = slab  # type: ignore[index]
        news += chunk.news
    consolidate(path)
    return news


def _was_other(old: Results, stop: int, chunks: Chunks) -> bool:
    """Whether the chunk that ends here ended elsewhere."""
    return old.chunks != chunks or min(len(old.axis), -(-stop // chunks.length) * chunks.length) != stop


def _laid_out(path: Path, grid: Grid, axis: Axis, chunks: Chunks, attributes: Mapping[str, Any]) -> zarr.Group:
    dataset = xr.Dataset(coords={**grid.fixed, **axis.coordinates}, attrs=dict(attributes))
    encoding = {name: {"compressors": [CODEC]} for name in dataset.coords}
    dataset.to_zarr(str(path), mode="w", zarr_format=3, consolidated=False, encoding=encoding)
    group = zarr.open_group(str(path), mode="r+")
    _write_axis(group, axis)
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


def _write_axis(group: zarr.Group, axis: Axis) -> None:
    """Write the coordinates by which a row is found in its store, part by part: they are as long as the results."""
    known = str(group.attrs.get("coordinates", ""))
    # As xarray tells coordinates from variables.
    group.attrs["coordinates"] = " ".join(sorted([*known.split(), *AXIS]))
    for name, (dtype, attrs) in AXIS.items():
        array = group.create_array(
            name,
            shape=(len(axis),),
            dtype=dtype,
            chunks=(CHUNK_ROWS,),
            compressors=[CODEC],
            fill_value=-1,
            dimension_names=(axis.dim,),
            attributes=dict(attrs),
        )
        values = axis.stores if name == "store" else axis.positions
        for start in range(0, len(axis), CHUNK_ROWS):
            array[start : start + CHUNK_ROWS] = values(slice(start, start + CHUNK_ROWS))


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
