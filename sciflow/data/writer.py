"""Writes the shards of a store, each whole and once, and the manifest when all are there."""

from __future__ import annotations

import hashlib
import json
import shutil
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import zarr
from zarr.core.sync import sync

from sciflow.data.codec import codecs, encode_shard
from sciflow.data.files import hash_files, shard_keys, write_file
from sciflow.data.layout import Layout
from sciflow.data.manifest import Manifest, ShardRecord, hash_rows
from sciflow.data.missing import Missing
from sciflow.data.split import SPLITS
from sciflow.data.statistics import Statistics, merge
from sciflow.data.store import FORMAT, VERSION
from sciflow.errors import StoreError

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["StoreWriter"]


class StoreWriter:
    """A store being written, by one process; :meth:`write` and :meth:`account` may be called from several threads.

    Args:
        path: Where it is written.
        layout: What its events are.
        request: All that decides the bytes of the store; a half-written store of another request is begun anew.
        counts: Events by split.
        shard_rows: Events of a shard, by split.
        chunk_rows: Events of a chunk.
    """

    def __init__(
        self,
        path: str | Path,
        layout: Layout,
        request: dict[str, Any],
        counts: dict[str, int],
        shard_rows: dict[str, int],
        chunk_rows: int,
    ) -> None:
        self._path, self._layout, self._request, self._counts = path, layout, request, counts
        self._shard_rows, self._chunk_rows = shard_rows, chunk_rows
        self._records: dict[tuple[str, int], ShardRecord] = {}
        self._statistics: dict[int, Statistics] = {}
        # Of the training events; where there are none, of those that are tested.
        self._described = "train" if counts["train"] else "test"
        self._taken: set[tuple[str, int]] = set()
        self._lock = threading.Lock()
        self._token = hashlib.sha256(json.dumps([request, counts], sort_keys=True).encode()).hexdigest()
        if self._goes_on():
            self._sweep()
        else:
            self._begin()
        self._group = zarr.open_group(self._path, mode="r+")

    def finished_shards(self) -> set[tuple[str, int]]:
        """Shards that an interrupted run left whole: they are read back, which checks them, and not written again."""
        for split in SPLITS:
            for number in range(-(-self._counts[split] // self._shard_rows[split])):
                if all(sync((self._group.store_path / key).exists()) for key in self._keys(split, number).values()):
                    self._take_over(split, number)
        return set(self._records)

    def buffers(self, rows: int) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """Memory for the events, grid indices and contexts of one shard."""
        events = np.empty((rows, *self._layout.event_shape), self._layout.dtype)
        context = np.empty((rows, self._layout.context_size), self._layout.dtype) if self._layout.context else None
        return events, np.empty(rows, np.int64), context

    def write(self, split: str, number: int, events: np.ndarray, index: np.ndarray, context: np.ndarray | None) -> None:
        """Write one shard. Its events come last, so that a shard whose events are there is whole.

        Raises:
            StoreError: The shard was written before, or these are not all of its rows.
        """
        start, stop = self._range(split, number)
        if number < 0 or start >= stop:
            raise StoreError(f"{self._path}: no shard {split}/{number}: the split has {self._counts[split]} events")
        lengths = [
            len(events),
            len(index),
            *([len(() if context is None else context)] if self._layout.context else []),
        ]
        if set(lengths) != {stop - start}:
            raise StoreError(
                f"{self._path}: shard {split}/{number} has {stop - start} rows, and is written whole: "
                f"got {' and '.join(map(str, lengths))} (events, grid indices, contexts)"
            )
        with self._lock:
            if (split, number) in self._taken:
                raise StoreError(f"{self._path}: shard {split}/{number} has a writer already: a shard has one, once")
            self._taken.add((split, number))
        keys = self._keys(split, number)
        for name, rows in (("index", index), ("context", context), ("events", events)):
            if rows is not None:
                write_file(self._group, keys[name], encode_shard(rows, self._chunk_rows, self._shard_rows[split]))

    def account(
        self, split: str, number: int, events: np.ndarray, index: np.ndarray, context: np.ndarray | None
    ) -> None:
        """Enter a shard in the manifest and the statistics."""
        record = ShardRecord(split, number, len(events), hash_rows(events, index, context))
        statistics = Statistics.of(events) if split == self._described else None
        with self._lock:
            self._records[split, number] = record
            if statistics is not None:
                self._statistics[number] = statistics

    def finish(self, coordinates: xr.Dataset, found: Missing) -> None:
        """Write coordinates, statistics and, last of all, the manifest that makes the store readable."""
        coordinates.to_zarr(self._path, group="coordinates", mode="w", consolidated=False, zarr_format=3)
        group = self._group.require_group("statistics", overwrite=True)
        # In order of the shards: sums of floats depend on it, and writers finish in any.
        statistics = merge(self._statistics[number] for number in sorted(self._statistics))
        for name in ("mean", "variance", "minimum", "maximum"):
            values = getattr(statistics, name)
            group.create_array(name, data=values, chunks=values.shape, dimension_names=self._layout.event_axes)
        filled = {} if found.fill is None else {"filled_with": np.atleast_1d(found.fill).tolist()}
        group.attrs.update({"count": statistics.count, "missing": found.counts, **filled})
        manifest = Manifest.of(self._records.values(), hash_files(self._group))
        self._group.require_group("manifest", overwrite=True).attrs.update(manifest.to_json())

    def _range(self, split: str, number: int) -> tuple[int, int]:
        start = number * self._shard_rows[split]
        return start, min(start + self._shard_rows[split], self._counts[split])

    def _keys(self, split: str, number: int) -> dict[str, str]:
        return shard_keys(self._layout, split, number)

    def _take_over(self, split: str, number: int) -> None:
        start, stop = self._range(split, number)
        try:
            arrays = [np.asarray(self._group[f"{split}/{name}"][start:stop]) for name in self._keys(split, number)]  # type: ignore[index]
        except Exception:
            # Whatever a decoder raises: it is not whole, and is written anew.
            return
        self.account(split, number, arrays[0], arrays[1], arrays[2] if self._layout.context else None)
        self._taken.add((split, number))

    def _goes_on(self) -> bool:
        try:
            return zarr.open_group(self._path, mode="r").attrs["sciflow"]["token"] == self._token  # type: ignore[index,call-overload]
        except (OSError, KeyError, ValueError, TypeError):
            return False

    def _sweep(self) -> None:
        """Remove what a process that was killed had half written."""
        if isinstance(self._path, Path):
            for file in self._path.rglob("*.partial"):
                file.unlink()

    def _begin(self) -> None:
        if isinstance(self._path, Path):
            shutil.rmtree(self._path, ignore_errors=True)
        group = zarr.open_group(self._path, mode="w", zarr_format=3)
        layout = self._layout
        dtype = np.dtype(layout.dtype)
        for split in SPLITS:
            n, shard_rows = self._counts[split], self._shard_rows[split]
            group.create_array(
                f"{split}/events",
                shape=(n, *layout.event_shape),
                dtype=dtype,
                chunks=(self._chunk_rows, *layout.event_shape),
                shards=(shard_rows, *layout.event_shape),
                compressors=codecs(dtype),
                fill_value=float("nan"),
                dimension_names=("event", *layout.event_axes),
            )
            group.create_array(
                f"{split}/index",
                shape=(n,),
                dtype="int64",
                chunks=(self._chunk_rows,),
                shards=(shard_rows,),
                compressors=codecs(np.dtype(np.int64)),
                dimension_names=("event",),
            )
            if layout.context:
                group.create_array(
                    f"{split}/context",
                    shape=(n, layout.context_size),
                    dtype=dtype,
                    chunks=(self._chunk_rows, layout.context_size),
                    shards=(shard_rows, layout.context_size),
                    fill_value=float("nan"),
                    compressors=codecs(dtype),
                    dimension_names=("event", "context"),
                )
        # The request last: a store that has it has all its arrays.
        group.attrs["sciflow"] = {"format": FORMAT, "version": VERSION, "token": self._token, **self._request}
