"""From a source to a sharded store: one pass, bounded memory, every shard written whole by one writer."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import zarr

from sciflow.data.layout import Layout
from sciflow.data.like import request_like, require_like
from sciflow.data.lock import writing
from sciflow.data.missing import Missing, survey
from sciflow.data.place import already_there, put_in_place, require_apart, require_free
from sciflow.data.source import Block, EventSource
from sciflow.data.sources import expand, open_source
from sciflow.data.split import ONLY_TEST, SPLITS, SplitRule, assign
from sciflow.data.store import Store, is_url, open_store
from sciflow.data.writer import StoreWriter
from sciflow.errors import ConfigError, DataError, SciflowError, StoreError
from sciflow.progress import progress_bar

__all__ = ["shard"]

CHUNK_BYTES = 1 << 20
SHARD_BYTES = 64 << 20
# Of what is larger than so many chunks: a shard is the work of one task.
FEWEST_SHARDS = 16


def shard(
    data: Any,
    path: str | Path,
    *,
    variables: Sequence[str] | None = None,
    event: Mapping[str, int | None] | Sequence[str] | None = None,
    sample: Sequence[str] | None = None,
    stride: Mapping[str, int] | None = None,
    context: Sequence[str] = (),
    split: Sequence[float] | None = None,
    split_by: str | None = None,
    split_block: int | None = None,
    missing: Literal["error", "drop", "fill"] | None = None,
    fill_value: float | Sequence[float] | None = None,
    dtype: str | None = None,
    like: Store | str | Path | None = None,
    shard_rows: int | None = None,
    seed: int = 0,
    num_writers: int | None = None,
    overwrite: bool = False,
    progress: bool = True,
) -> Store:
    """Write events into one Zarr v3 store, laid out for the events that will be read.

    The source is read once, block by block (twice where missing values are dropped, or filled with a mean), and each
    shard is compressed and written by one writer. A shard appears whole or not at all; a run that was interrupted goes
    on when the same call is made again on files that have not changed.

    Args:
        data: Paths of NetCDF, Zarr, GRIB, CSV, TSV, Parquet, npz or npy; or xarray, pandas, NumPy, torch.
        path: Where the store is to be: a folder, or a URL that fsspec knows.
        variables: What an event is made of; needed where the source has several arrays.
        event: Window length by dimension (``{"time": 24}``), None for a whole dimension; or names of whole dimensions.
        sample: Dimensions that are counted; all others belong to the event.
        stride: Steps from one window to the next, by dimension; by default windows do not overlap.
        context: Variables that an event is conditioned on.
        split: Shares of training, validation and test; by default 0.8, 0.1, 0.1.
        split_by: Dimension whose positions stay in one split; in order along it, unless ``split_block`` is given.
        split_block: Number of consecutive positions along ``split_by`` that stay together, drawn at random.
        missing: What becomes of NaN and infinity: ``error`` (by default), ``drop`` the event, or ``fill``.
        fill_value: What to fill with, in data units, one for each variable or for all; None for the variable's mean.
        dtype: ``float32`` (by default) or ``float64``.
        like: A store that is there, or its path: new data are laid out as its own, and all of them are for the test,
            since a model is to be held against them. Of what is said above only ``missing`` and ``fill_value`` may
            differ.
        shard_rows: Events in a training shard; by default 64 MiB of them, or a sixteenth of all.
        seed: Of the split.
        num_writers: Writing threads; each holds a shard in memory.
        overwrite: Replace a store that is already there.
        progress: Show a progress bar on a terminal.

    Returns:
        The store, opened.

    Raises:
        DataError: The data cannot be used as they are.
        LayoutError: A variable or dimension does not exist or does not fit.
        StoreError: A store is already there, or it cannot be written.

    Example:
        >>> import tempfile
        >>> rows = np.random.default_rng(0).normal(size=(1000, 3))
        >>> store = shard(rows, tempfile.mkdtemp() + "/rows.zarr")
        >>> len(store.train), store.event_shape
        (800, (3,))
    """
    _require_place(path, overwrite)
    data = expand(data)
    _require_no_source(path, data)
    layout: dict[str, Any] = {
        "variables": variables,
        "event": event,
        "sample": sample,
        "stride": stride,
        "context": context,
        "dtype": dtype,
    }
    if isinstance(like, Store):
        like = like.path
    if like is not None:
        layout, missing, fill_value = request_like(
            like, {**layout, "split": split, "split_by": split_by, "split_block": split_block}, missing, fill_value
        )
        split = ONLY_TEST
    missing, split = missing or "error", (0.8, 0.1, 0.1) if split is None else split
    source = open_source(data, **{**layout, "dtype": layout["dtype"] or "float32"})
    if like is not None:
        require_like(source, like)
    if len(split) != 3:
        raise ConfigError(f"split {list(split)}: give three shares, of training, validation and test")
    rule = SplitRule((split[0], split[1], split[2]), split_by, split_block, seed).resolved(source.layout)
    if missing not in ("error", "drop", "fill"):
        raise ConfigError(f"missing '{missing}': choose error, drop or fill")
    if fill_value is not None and missing != "fill":
        raise ConfigError("fill_value without missing='fill' does nothing: add it, or leave fill_value out")
    if num_writers is not None and num_writers < 1:
        raise ConfigError(f"num_writers {num_writers}: 1 or more threads write")
    if shard_rows is not None and shard_rows < 1:
        raise ConfigError(f"shard_rows {shard_rows}: a shard holds 1 event or more")
    sizes = _sizes(source.layout, shard_rows)
    request = {
        "layout": source.layout.to_json(),
        "split": asdict(rule),
        "missing": {"policy": missing, "fill_value": fill_value},
        "shard_rows": sizes.shard_rows,
        "chunk_rows": sizes.chunk_rows,
        "source": _identity(data, source),
    }
    found = survey(source, sizes.block_bytes, missing, fill_value, progress)
    codes = assign(rule, source.layout, found.keep)
    counts = {name: int(np.count_nonzero(codes == place)) for place, name in enumerate(SPLITS)}
    _require_events(counts, rule, source.layout, found)
    with _place(path, overwrite) as target:
        writer = StoreWriter(target, source.layout, request, counts, sizes.shard_rows, sizes.chunk_rows)
        _write(source, writer, codes, counts, sizes, found, num_writers, progress)
    return open_store(path)


@dataclass(frozen=True)
class _Sizes:
    chunk_rows: int
    shard_rows: dict[str, int]
    block_bytes: int


def _sizes(layout: Layout, shard_rows: int | None) -> _Sizes:
    """Rows of a chunk and of a shard: chunks hold whole events, shards hold whole chunks."""
    row_bytes = layout.event_bytes + layout.context_size * np.dtype(layout.dtype).itemsize
    chunk = max(1, min(CHUNK_BYTES // row_bytes, layout.num_grid_events, shard_rows or layout.num_grid_events))
    wanted = shard_rows or min(SHARD_BYTES // row_bytes, layout.num_grid_events // FEWEST_SHARDS)
    train = max(1, min(wanted, layout.num_grid_events) // chunk) * chunk
    # Validation and test are smaller: with smaller shards they, too, are work for several workers.
    held_out = max(1, train // 4 // chunk) * chunk
    rows = {"train": train, "validation": held_out, "test": held_out}
    return _Sizes(chunk, rows, max(row_bytes, train * row_bytes // 8))


def _write(
    source: EventSource,
    writer: StoreWriter,
    codes: np.ndarray,
    counts: dict[str, int],
    sizes: _Sizes,
    found: Missing,
    num_writers: int | None,
    progress: bool,
) -> None:
    done = writer.finished_shards()
    streams = [
        _Stream(writer, codes, place, counts[name], sizes.shard_rows[name], {n for split, n in done if split == name})
        for place, name in enumerate(SPLITS)
    ]
    # Values that are filled are counted on the way, so that none may be skipped.
    start = 0 if found.policy == "fill" else min(stream.first_missing() for stream in streams)
    total = source.layout.num_grid_events
    writers = num_writers or max(1, min(4, (os.cpu_count() or 1) - 1))
    with ThreadPoolExecutor(2 * writers) as pool, progress_bar("sharding", total, progress) as update:
        pending = _Pending(pool, writers)
        for block in source.blocks(sizes.block_bytes, start):
            block = found.resolve(block, source)
            for stream in streams:
                stream.put(block, pending)
            update(block.start + len(block.events), "")
        pending.wait()
    writer.finish(source.coordinates(), found)


class _Stream:
    """Collects the rows of one split, and hands over every shard that is full."""

    def __init__(
        self, writer: StoreWriter, codes: np.ndarray, code: int, num_rows: int, shard_rows: int, done: set[int]
    ) -> None:
        self._writer, self._name = writer, SPLITS[code]
        self._codes, self._code = codes, code
        self._num_rows, self._shard_rows, self._done = num_rows, shard_rows, done
        self._row: int | None = None
        self._buffers: tuple[np.ndarray, np.ndarray, np.ndarray | None] | None = None

    def first_missing(self) -> int:
        """Grid index of the first row of the first shard that is not there yet."""
        num_shards = -(-self._num_rows // self._shard_rows)
        number = next((number for number in range(num_shards) if number not in self._done), None)
        if number is None:
            return len(self._codes)
        return int(np.flatnonzero(self._codes == self._code)[number * self._shard_rows]) if number else 0

    def put(self, block: Block, pending: _Pending) -> None:
        if self._row is None:
            self._row = int(np.count_nonzero(self._codes[: block.start] == self._code))
        rows = np.flatnonzero(self._codes[block.start : block.start + len(block.events)] == self._code)
        while len(rows):
            number, filled = divmod(self._row, self._shard_rows)
            size = min(self._shard_rows, self._num_rows - number * self._shard_rows)
            take, rows = rows[: size - filled], rows[size - filled :]
            if number not in self._done:
                if self._buffers is None:
                    self._buffers = self._writer.buffers(size)
                events, index, context = self._buffers
                into = slice(filled, filled + len(take))
                # Into memory that is there already: fresh memory for the rows would be paged in first.
                np.take(block.events, take, 0, out=events[into], mode="clip")
                index[into] = block.start + take
                if context is not None and block.context is not None:
                    context[into] = block.context[take]
                if filled + len(take) == size:
                    pending.submit(
                        partial(self._writer.write, self._name, number, events, index, context),
                        partial(self._writer.account, self._name, number, events, index, context),
                    )
                    self._buffers = None
                    del events, index, context
            self._row += len(take)


class _Pending:
    """Shards under way, no more of them than there are writers: what is full waits, and memory stays bounded."""

    def __init__(self, pool: ThreadPoolExecutor, most: int) -> None:
        self._pool, self._most = pool, most
        self._shards: list[list[Future[None]]] = []

    def submit(self, *tasks: Callable[[], None]) -> None:
        while len(self._shards) >= self._most:
            self._finish_first()
        self._shards.append([self._pool.submit(task) for task in tasks])

    def wait(self) -> None:
        while self._shards:
            self._finish_first()

    def _finish_first(self) -> None:
        for future in self._shards.pop(0):
            future.result()


@contextmanager
def _place(path: str | Path, overwrite: bool) -> Iterator[Path | str]:
    """Yield where to write; what was written there appears under ``path`` once it is whole."""
    if is_url(path):
        with _one_line(path):
            yield path
        return
    path = Path(path)
    with writing(path), _one_line(path):
        # Another process may have written it while this one looked at its source.
        _require_place(path, overwrite)
        unfinished = Path(f"{path}.partial")
        try:
            yield unfinished
        except DataError:
            shutil.rmtree(unfinished, ignore_errors=True)
            raise
        put_in_place(unfinished, path)


@contextmanager
def _one_line(path: str | Path) -> Iterator[None]:
    try:
        yield
    except SciflowError:
        raise
    except OSError as error:
        raise StoreError(
            f"{path}: cannot be written: {error.strerror or error}; what is written so far is whole: "
            "make room or mend it, and run the same command again"
        ) from None


def _require_place(path: str | Path, overwrite: bool) -> None:
    if not is_url(path):
        require_free(Path(path), overwrite)
    elif _is_taken(str(path)) and not overwrite:
        raise already_there(path)


def _is_taken(url: str) -> bool:
    """Whether there is something at a URL that is not a half-written store of ours."""
    try:
        group = zarr.open_group(url, mode="r")
    except FileNotFoundError:
        return False
    except ValueError:
        return True
    return "sciflow" not in group.attrs or "manifest" in group


def _require_no_source(path: str | Path, data: Any) -> None:
    for source in _paths(data) or ():
        require_apart(path, source)


def _require_events(counts: dict[str, int], rule: SplitRule, layout: Layout, found: Missing) -> None:
    if found.num_dropped == layout.num_grid_events:
        raise DataError(f"no events left: all {found.num_dropped} had missing values")
    for name, share in zip(SPLITS, rule.fractions, strict=True):
        if share == 0 or counts[name]:
            continue
        what = f"{layout.num_grid_events - found.num_dropped} event"
        if rule.by is not None:
            (size,) = (dim.size for dim in layout.sample_dims if dim.name == rule.by)
            blocks = "" if rule.block is None else f"{-(-size // rule.block)} blocks of {rule.block}, "
            what = f"{blocks}{size} position{'s' if size > 1 else ''} of '{rule.by}'"
        elif what != "1 event":
            what += "s"
        overlap = ", where windows that share values with another split are left out" if layout.overlapping else ""
        raise DataError(
            f"{what} cannot be shared out over train, validation and test{overlap}: "
            f"none is left for {name}; give more, smaller blocks, or other shares (--split 1,0,0)"
        )


def _identity(data: Any, source: EventSource) -> dict[str, Any]:
    """What the events come from: files by name, size and time; data in memory by their kind, never the same twice."""
    paths = _paths(data)
    if paths is not None:
        return {"files": [_file_identity(path) for path in paths]}
    return {"memory": type(data).__name__, "token": hashlib.sha256(os.urandom(16)).hexdigest()[:16]}


def _paths(data: Any) -> list[str | Path] | None:
    paths = [data] if isinstance(data, (str, Path)) else data
    is_paths = isinstance(paths, (list, tuple)) and all(isinstance(path, (str, Path)) for path in paths)
    return list(paths) if is_paths else None


def _file_identity(path: str | Path) -> list[Any]:
    if is_url(path):
        return [str(path)]
    files = [Path(path), *Path(path).rglob("*")] if Path(path).is_dir() else [Path(path)]
    stats = [file.stat() for file in files]
    return [str(path), sum(stat.st_size for stat in stats), max(stat.st_mtime_ns for stat in stats)]
