"""A sharded store, opened for reading: what is read is what was written, or an error that says where it is not."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import zarr
from torch import Tensor

from sciflow.data.codec import decode_chunk, decode_index, index_bytes
from sciflow.data.files import read_bytes, require_files, shard_keys
from sciflow.data.layout import Layout
from sciflow.data.manifest import Manifest, ShardRecord, hash_rows
from sciflow.data.split import SPLITS
from sciflow.data.statistics import Statistics
from sciflow.errors import ShapeError, StoreError, first_line
from sciflow.progress import progress_bar

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["FORMAT", "VERSION", "Split", "Store", "is_url", "open_store", "read_attributes"]

FORMAT = "sciflow-store"
VERSION = 1
CURE = "restore it, or shard the source again"
# Chunks of one read are decoded in threads, where there are enough of them.
MOST_THREADS, CHUNKS_PER_THREAD = 4, 4


def open_store(path: str | Path, *, whole: bool = True) -> Store:
    """Open a store that :func:`sciflow.shard` wrote.

    Args:
        path: A folder, or a URL that fsspec knows (``s3://...``).
        whole: Refuse a store of which a shard is missing; otherwise reading that shard is the error.

    Raises:
        StoreError: There is no store, it is incomplete or damaged, or another version wrote it.
    """
    return Store(path, whole)


class Store:
    """Events in shards, with what is known about them.

    Attributes:
        path: Where it is.
        layout: What is counted, and what an event is made of.
        manifest: Its shards.
        train, validation, test: The splits, each a :class:`Split`.
    """

    def __init__(self, path: str | Path, whole: bool = True) -> None:
        self.path = str(path)
        self.attributes = read_attributes(self.path)
        try:
            self._group = zarr.open_group(self.path, mode="r")
            self.manifest = Manifest.from_json(self._group["manifest"].attrs.asdict())
        except (KeyError, ValueError, TypeError) as error:
            raise StoreError(f"{self.path}: damaged or incomplete: no readable manifest ({_line(error)})") from None
        self._require_files("zarr.json", *(f"{name}/" for name in SPLITS))
        self.layout = Layout.from_json(self.attributes["layout"])
        self.train, self.validation, self.test = (Split(self, name) for name in SPLITS)
        if whole and not is_url(self.path):
            for split in self.splits:
                split.require_shards()

    def __len__(self) -> int:
        return sum(len(split) for split in self.splits)

    def __repr__(self) -> str:
        sizes = ", ".join(f"{split.name} {len(split):,}" for split in self.splits)
        return f"Store({self.path}: events {list(self.event_shape)} of {', '.join(self.layout.variables)}; {sizes})"

    @property
    def splits(self) -> tuple[Split, Split, Split]:
        """Training, validation and test."""
        return self.train, self.validation, self.test

    @property
    def event_shape(self) -> tuple[int, ...]:
        """Shape of one event."""
        return self.layout.event_shape

    @property
    def context_shape(self) -> tuple[int, ...] | None:
        """Shape of what events are conditioned on, or None."""
        return self.layout.context_shape

    @property
    def fingerprint(self) -> str:
        """Hash of all events in their order."""
        return self.manifest.fingerprint

    @property
    def coordinates(self) -> xr.Dataset:
        """Coordinates of the sample dimensions and of the event's axes, loaded."""
        import xarray as xr

        self._require_files("coordinates/")
        return xr.open_zarr(self.path, group="coordinates", consolidated=False).load()

    @property
    def statistics(self) -> Statistics:
        """Moments and extrema of the training events; of the test events, where no others are there."""
        self._require_files("statistics/")
        group = self._group["statistics"]
        assert isinstance(group, zarr.Group)
        arrays = {name: np.asarray(group[name][...]) for name in ("mean", "variance", "minimum", "maximum")}  # type: ignore[index]
        return Statistics(int(str(group.attrs["count"])), **arrays)

    def verify(self, progress: bool = True) -> None:
        """Read every shard and hold it against the manifest's hash.

        Reading alone finds what is damaged or missing; this also finds a shard's file that was put in another's place.

        Args:
            progress: Show a progress bar on a terminal.

        Raises:
            StoreError: A shard is not what was written; names it.
        """
        done = 0
        with progress_bar("verifying", len(self), progress) as update:
            for split in self.splits:
                for record in split.shards:
                    start, stop = split.shard_range(record.number)
                    context = None if self.context_shape is None else split.context[start:stop].numpy()
                    if hash_rows(split[start:stop].numpy(), split.grid_index(start, stop), context) != record.sha256:
                        raise StoreError(f"{self.path}: shard {record.name} is not the one that was written: {CURE}")
                    done += record.rows
                    update(done, record.name)

    @property
    def missing(self) -> dict[str, int]:
        """Missing values that the source had, by variable; they were dropped, or filled."""
        self._require_files("statistics/")
        return dict(self._group["statistics"].attrs["missing"])  # type: ignore[arg-type]

    @property
    def filled_with(self) -> list[float] | None:
        """What missing values were filled with, one for each variable; None where they were not, or it is not known."""
        self._require_files("statistics/")
        return self._group["statistics"].attrs.get("filled_with")  # type: ignore[return-value]

    def _require_files(self, *prefixes: str) -> None:
        require_files(self._group, self.manifest.files, prefixes, self.path)


class Split:
    """One split of a store; indexing returns events as a tensor.

    Attributes:
        name: ``train``, ``validation`` or ``test``.
        shard_rows: Events in every shard but the last.
    """

    def __init__(self, store: Store, name: str) -> None:
        self.name = name
        self._path = store.path
        self._layout = store.layout
        self.shards = store.manifest.of_split(name)
        self.shard_rows = int(store.attributes["shard_rows"][name])
        self.chunk_rows = int(store.attributes["chunk_rows"])
        self._num_events = sum(record.rows for record in self.shards)
        self._group = store._group
        self._indices: dict[tuple[str, int], np.ndarray] = {}
        self._last_part: tuple[tuple[str, int, int] | None, np.ndarray] = None, np.empty(0)

    def __len__(self) -> int:
        return self._num_events

    def __repr__(self) -> str:
        return f"Split({self.name}: {len(self):,} events in {len(self.shards)} shards)"

    @property
    def event_shape(self) -> tuple[int, ...]:
        """Shape of one event."""
        return self._layout.event_shape

    def __getitem__(self, rows: int | slice | np.ndarray | Tensor) -> Tensor:
        """Events as a tensor: ``split[3]``, ``split[:256]``, ``split[[5, 2]]``."""
        return self._take("events", rows)

    @property
    def context(self) -> _Rows:
        """The context of the same rows: ``split.context[:256]``."""
        return _Rows(self, "context")

    def __iter__(self) -> Iterator[Tensor]:
        return (self[row] for row in range(len(self)))

    def read(self, start: int, stop: int, events: np.ndarray, context: np.ndarray | None = None) -> None:
        """Read rows ``start:stop`` into arrays that the caller keeps.

        Decoding into a buffer that is used again is half the cost of reading: fresh memory must be paged in.

        Args:
            start: First row.
            stop: One past the last row.
            events: ``[stop - start, *event_shape]``, contiguous, of the layout's dtype.
            context: ``[stop - start, context_size]``, or None to leave the context out.

        Raises:
            StoreError: A shard is missing or damaged; the message names it.
        """
        self._read("events", start, stop, events)
        if context is not None:
            self._read("context", start, stop, context)

    def grid_index(self, start: int, stop: int) -> np.ndarray:
        """Places of rows ``start:stop`` in the grid of all events."""
        out = np.empty(stop - start, np.int64)
        self._read("index", start, stop, out)
        return out

    def shard_range(self, number: int) -> tuple[int, int]:
        """First row of a shard, and one past its last."""
        start = number * self.shard_rows
        return start, start + self.shards[number].rows

    def _take(self, name: str, rows: int | slice | np.ndarray | Tensor) -> Tensor:
        if isinstance(rows, slice):
            start, stop, step = rows.indices(len(self))
            if step == 1:
                out = self._empty(name, max(0, stop - start))
                self._read(name, start, max(start, stop), out)
                return torch.from_numpy(out)
            rows = np.arange(start, stop, step)
        index = self._numbers(rows)
        if index.ndim == 0:
            return self._take(name, slice(int(index), int(index) + 1))[0]
        out = self._empty(name, len(index))
        # Each chunk is decoded once, whatever the order of the rows.
        chunks = index // self.chunk_rows
        order = np.argsort(chunks, kind="stable")
        for places in np.split(order, np.flatnonzero(np.diff(chunks[order])) + 1) if len(order) else ():
            start = int(chunks[places[0]]) * self.chunk_rows
            block = self._empty(name, min(self.chunk_rows, len(self) - start))
            self._read(name, start, start + len(block), block)
            out[places] = block[index[places] - start]
        return torch.from_numpy(out)

    def _numbers(self, rows: Any) -> np.ndarray:
        """Numbers of rows, counted from the first one, for a number, a list or a mask."""
        index = np.asarray(rows)
        if index.dtype == bool and index.shape == (len(self),):
            return np.flatnonzero(index)
        if index.size == 0 and index.ndim == 1:
            return index.astype(np.int64)
        if index.dtype.kind not in "iu" or index.ndim > 1:
            what = f"an array of {index.dtype} {list(index.shape)}"
            raise IndexError(
                f"{what} is no index of the {len(self)} rows of {self.name}: give numbers, a slice or a mask"
            )
        index = index.astype(np.int64)
        outside = index[(index < -len(self)) | (index >= len(self))]
        if outside.size:
            raise IndexError(f"row {outside.flat[0]} of {len(self)} in {self.name}")
        return np.where(index < 0, index + len(self), index)

    def _empty(self, name: str, n: int) -> np.ndarray:
        if name == "context" and not self._layout.context:
            raise ShapeError(f"{self._path}: this store has no context")
        shape = self._layout.event_shape if name == "events" else (self._layout.context_size,)
        return np.empty((n, *shape), self._layout.dtype)

    def require_shards(self) -> None:
        """Check that the file of every shard is there, on a file system of this machine.

        Raises:
            StoreError: One is missing; names it.
        """
        for record in self.shards:
            for key in shard_keys(self._layout, self.name, record.number).values():
                if not Path(self._path, key).is_file():
                    raise StoreError(f"{self._path}: shard {record.name} is missing ({key}): {CURE}")

    def _read(self, name: str, start: int, stop: int, out: np.ndarray) -> None:
        if stop <= start:
            return
        if not 0 <= start < stop <= len(self):
            raise IndexError(f"rows {start}:{stop} of {len(self)} in {self.name}")
        for record in self.shards[start // self.shard_rows : (stop - 1) // self.shard_rows + 1]:
            first = record.number * self.shard_rows
            low, high = max(start, first), min(stop, first + record.rows)
            self._read_shard(name, record, low - first, high - first, out[low - start : high - start])

    def _read_shard(self, name: str, record: ShardRecord, low: int, high: int, out: np.ndarray) -> None:
        key = shard_keys(self._layout, self.name, record.number)[name]
        try:
            index = self._index(name, record.number, key)
            size = self.chunk_rows
            chunks = range(low // size, -(-high // size))
            fetch = self._fetcher(key, *index[[chunks[0], chunks[-1]]].tolist())

            def decode(number: int) -> None:
                begin, end = number * size, min((number + 1) * size, record.rows)
                into = out[max(low, begin) - low : min(high, end) - low]
                if len(into) == size:
                    decode_chunk(fetch(*index[number].tolist()), into)
                else:
                    rows = self._part((name, record.number, number), fetch, index[number], out)
                    into[:] = rows[max(low, begin) - begin : min(high, end) - begin]

            threads = min(MOST_THREADS, os.cpu_count() or 1, len(chunks) // CHUNKS_PER_THREAD)
            if threads > 1:
                with ThreadPoolExecutor(threads) as pool:
                    list(pool.map(decode, chunks))
            else:
                for number in chunks:
                    decode(number)
        except FileNotFoundError:
            raise StoreError(f"{self._path}: shard {record.name} is missing ({key}): {CURE}") from None
        except OSError as error:
            reason = error.strerror or error
            raise StoreError(f"{self._path}: shard {record.name} cannot be read ({key}): {reason}") from None
        except (ValueError, RuntimeError) as error:
            raise StoreError(f"{self._path}: shard {record.name} is damaged ({key}: {error}): {CURE}") from None

    def _index(self, name: str, number: int, key: str) -> np.ndarray:
        """Where the chunks of a shard lie, kept from one read to the next."""
        if (name, number) not in self._indices:
            data = read_bytes(self._group, key, -index_bytes(self.shard_rows // self.chunk_rows))
            self._indices[name, number] = decode_index(data)
        elif not is_url(self._path) and not Path(self._path, key).is_file():
            raise FileNotFoundError(key)
        return self._indices[name, number]

    def _fetcher(self, key: str, first: list[int], last: list[int]) -> Callable[[int, int], bytes]:
        """How the bytes of chunks come: one by one from a disk, all with one request from elsewhere."""
        if not is_url(self._path):
            return lambda offset, size: read_bytes(self._group, key, offset, offset + size)
        data = read_bytes(self._group, key, first[0], sum(last))
        return lambda offset, size: data[offset - first[0] :][:size]

    def _part(self, place: tuple[str, int, int], fetch: Callable, span: np.ndarray, like: np.ndarray) -> np.ndarray:
        """A chunk of which only a part is wanted; the next read often wants the other part."""
        kept, rows = self._last_part
        if kept != place:
            rows = np.empty((self.chunk_rows, *like.shape[1:]), like.dtype)
            decode_chunk(fetch(*span.tolist()), rows)
            self._last_part = place, rows
        return rows


class _Rows:
    """The context of a split, indexed as the split is."""

    def __init__(self, split: Split, name: str) -> None:
        self._split, self._name = split, name

    def __getitem__(self, rows: int | slice | np.ndarray | Tensor) -> Tensor:
        return self._split._take(self._name, rows)


def read_attributes(path: str) -> dict[str, Any]:
    """What the store says of itself, read without opening its arrays.

    Raises:
        StoreError: There is no store, it is incomplete, or another version wrote it.
    """
    if not is_url(path):
        folder = Path(path)
        if not folder.exists():
            partial = Path(f"{path}.partial")
            hint = (
                f"{partial} is half-written: run the command that wrote it again"
                if partial.exists()
                else "make one with sciflow shard"
            )
            raise StoreError(f"{path}: no such store; {hint}")
        if not folder.is_dir():
            raise StoreError(f"{path}: a file, not a store: make one of it with sciflow shard {path} STORE")
    try:
        attributes = zarr.open_group(path, mode="r").attrs.asdict().get("sciflow")
    except PermissionError:
        raise StoreError(f"{path}: no permission to read it") from None
    except Exception as error:
        raise StoreError(f"{path}: not a Zarr v3 group, or damaged ({_line(error)})") from None
    if not isinstance(attributes, dict) or attributes.get("format") != FORMAT:
        raise StoreError(
            f"{path}: a Zarr group, but not a store of ours: make one of it with sciflow shard {path} STORE"
        )
    if attributes.get("version") != VERSION:
        raise StoreError(
            f"{path}: written as store version {attributes.get('version')}, this sciflow reads version {VERSION}: "
            "shard the source again, or use the sciflow that wrote it"
        )
    return attributes


def is_url(path: str | Path) -> bool:
    """Whether a path is for fsspec rather than for this file system."""
    return "://" in str(path)


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {first_line(error)}"
