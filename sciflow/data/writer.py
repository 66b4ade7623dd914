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
from zarr.codecs import BloscCodec, Crc32cCodec
from zarr.core.sync import sync

from sciflow.data.layout import Layout
from sciflow.data.manifest import Manifest, ShardRecord, hash_rows
from sciflow.data.split import SPLITS
from sciflow.data.statistics import Statistics, merge
from sciflow.data.store import FORMAT, VERSION

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["StoreWriter"]


class StoreWriter:
    """A store being written. :meth:`write` may be called from several threads, once for every shard.

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
        self._lock = threading.Lock()
        self._token = hashlib.sha256(json.dumps([request, counts], sort_keys=True).encode()).hexdigest()
        if not self._goes_on():
            self._begin()

    def finished_shards(self) -> set[tuple[str, int]]:
        """Shards that an interrupted run left whole: they are read back, which checks them, and not written again."""
        for split in SPLITS:
            array = self._array(split, "events")
            rows = self._shard_rows[split]
            for number in range(-(-self._counts[split] // rows)):
                start, stop = number * rows, min((number + 1) * rows, self._counts[split])
                if not self._is_there(split, number):
                    continue
                events = np.asarray(array[start:stop])
                context = np.asarray(self._array(split, "context")[start:stop]) if self._layout.context else None
                self._account(split, number, events, context)
        return set(self._records)

    def buffers(self, rows: int) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """Memory for the events, grid indices and contexts of one shard."""
        events = np.empty((rows, *self._layout.event_shape), self._layout.dtype)
        context = np.empty((rows, self._layout.context_size), self._layout.dtype) if self._layout.context else None
        return events, np.empty(rows, np.int64), context

    def write(
        self, split: str, number: int, events: np.ndarray, index: np.ndarray, context: np.ndarray | None
    ) -> None:
        """Write one shard. Its events come last, so that a shard whose events are there is whole."""
        start = number * self._shard_rows[split]
        rows = slice(start, start + len(events))
        self._array(split, "index")[rows] = index
        if context is not None:
            self._array(split, "context")[rows] = context
        self._array(split, "events")[rows] = events
        self._account(split, number, events, context)

    def finish(self, coordinates: xr.Dataset, missing: dict[str, int]) -> None:
        """Write coordinates, statistics and, last of all, the manifest that makes the store readable."""
        coordinates.to_zarr(self._path, group="coordinates", mode="a", consolidated=False, zarr_format=3)
        group = zarr.open_group(self._path, path="statistics", mode="w")
        # In order of the shards: sums of floats depend on it, and writers finish in any.
        statistics = merge(self._statistics[number] for number in sorted(self._statistics))
        for name in ("mean", "variance", "minimum", "maximum"):
            values = getattr(statistics, name)
            group.create_array(name, data=values, chunks=values.shape, dimension_names=self._layout.event_axes)
        group.attrs.update({"count": statistics.count, "missing": missing})
        manifest = Manifest.of(self._records.values())
        zarr.open_group(self._path, path="manifest", mode="w").attrs["shards"] = json.dumps(manifest.to_json())

    def _account(self, split: str, number: int, events: np.ndarray, context: np.ndarray | None) -> None:
        record = ShardRecord(split, number, len(events), hash_rows(events, context))
        statistics = Statistics.of(events) if split == "train" else None
        with self._lock:
            self._records[split, number] = record
            if statistics is not None:
                self._statistics[number] = statistics

    def _goes_on(self) -> bool:
        try:
            return zarr.open_group(self._path, mode="r").attrs["sciflow"]["token"] == self._token  # type: ignore[index,call-overload,comparison-overlap]
        except (OSError, KeyError, ValueError, TypeError):
            return False

    def _begin(self) -> None:
        if isinstance(self._path, Path):
            shutil.rmtree(self._path, ignore_errors=True)
            self._path.parent.mkdir(parents=True, exist_ok=True)
        group = zarr.open_group(self._path, mode="w", zarr_format=3)
        layout = self._layout
        dtype = np.dtype(layout.dtype)
        for split in SPLITS:
            n, shard_rows = self._counts[split], self._shard_rows[split]
            codecs = [BloscCodec(typesize=dtype.itemsize, cname="lz4", clevel=5, shuffle="bitshuffle"), Crc32cCodec()]
            group.create_array(
                f"{split}/events",
                shape=(n, *layout.event_shape),
                dtype=dtype,
                chunks=(self._chunk_rows, *layout.event_shape),
                shards=(shard_rows, *layout.event_shape),
                compressors=codecs,
                fill_value=float("nan"),
                dimension_names=("event", *layout.event_axes),
                # An event may well be all fill values; a chunk left out would look like a shard that is gone.
                config={"write_empty_chunks": True},
            )
            group.create_array(
                f"{split}/index",
                shape=(n,),
                dtype="int64",
                chunks=(shard_rows,),
                compressors=[BloscCodec(typesize=8, cname="lz4", clevel=5, shuffle="bitshuffle"), Crc32cCodec()],
                dimension_names=("event",),
            )
            if layout.context:
                group.create_array(
                    f"{split}/context",
                    shape=(n, layout.context_size),
                    dtype=dtype,
                    chunks=(shard_rows, layout.context_size),
                    compressors=codecs,
                    dimension_names=("event", "context"),
                )
        # The request last: a store that has it has all its arrays.
        group.attrs["sciflow"] = {"format": FORMAT, "version": VERSION, "token": self._token, **self._request}

    def _array(self, split: str, name: str) -> zarr.Array:
        with zarr.config.set({"array.write_empty_chunks": True}):
            return zarr.open_array(self._path, path=f"{split}/{name}", mode="r+")

    def _is_there(self, split: str, number: int) -> bool:
        key = "/".join([split, "events", "c", str(number), *["0"] * len(self._layout.event_shape)])
        store = zarr.open_group(self._path, mode="r").store_path
        return bool(sync((store / key).exists()))
