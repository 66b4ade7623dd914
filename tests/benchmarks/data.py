"""Reading events for training: against a memory-map copy, the other Zarr readers, and xbatcher, in one run.

    python tests/benchmarks/data.py --gigabytes 1

Every figure is decoded megabytes of events a second, and a ratio. The field is simulated; the disk is warm.
"""

from __future__ import annotations

import argparse
import importlib.util
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import xarray as xr
import zarr
from beside import beside
from rich.console import Console
from rich.table import Table

import sciflow as sf
from sciflow.data.loader import Loader
from sciflow.data.plan import Plan
from sciflow.data.store import Store

HEIGHT, WIDTH = 128, 256
PATCH = 32
WINDOW = 24
BATCH_BYTES = 1 << 20
MEGA = 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gigabytes", type=float, default=1.0, help="size of the field")
    parser.add_argument("--epochs", type=int, default=6, help="epochs over which memory must stay flat")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    console = Console(width=120)
    with tempfile.TemporaryDirectory() as folder:
        steps = int(arguments.gigabytes * 1e9 / (4 * HEIGHT * WIDTH)) // WINDOW * WINDOW
        dataset = field(Path(folder), steps)
        for name, event in (
            ("patches of 32 x 32", {"lat": PATCH, "lon": PATCH}),
            ("windows of 24 steps", {"time": WINDOW}),
        ):
            store = sf.shard(
                dataset, Path(folder) / f"{name[:7]}.zarr", event=event, split=(1.0, 0.0, 0.0), progress=False
            )
            megabytes = len(store.train) * store.layout.event_bytes / MEGA
            console.print(
                f"\n{name}: {len(store.train):,} events, {megabytes:,.0f} MB, {len(store.train.shards)} shards"
            )
            console.print(whole_shards(store, Path(folder)))
            console.print(batches(store, dataset, event, arguments.epochs, Path(folder)))


def field(folder: Path, steps: int) -> xr.Dataset:
    """A simulated field of float32, lazy, with 64 time steps a chunk, as models write them."""
    simulate = beside("datasets/simulate")
    simulate.write_field(folder / "field.npy", steps, HEIGHT, WIDTH, seed=0)
    values = np.load(folder / "field.npy", mmap_mode="r")
    coordinates = {"time": np.arange(steps), "lat": np.arange(HEIGHT), "lon": np.arange(WIDTH)}
    return xr.Dataset({"t": (("time", "lat", "lon"), values)}, coordinates)


def whole_shards(store: Store, folder: Path) -> Table:
    """Read every shard once, into memory that is kept; the memory-map copy reads the same events from a .npy file."""
    split, event_shape = store.train, store.event_shape
    copy = np.lib.format.open_memmap(folder / "events.npy", "w+", np.float32, (len(split), *event_shape))
    for number in range(len(split.shards)):
        start, stop = split.shard_range(number)
        split.read(start, stop, copy[start:stop])
    copy.flush()
    del copy
    mapped = np.load(folder / "events.npy", mmap_mode="r")
    ranges = [split.shard_range(number) for number in range(len(split.shards))]
    buffer = np.empty((split.shard_rows, *event_shape), np.float32)
    readers: dict[str, Callable[[], object]] = {
        "memory-map copy": lambda: _each(ranges, lambda a, b: np.array(mapped[a:b])),
        "memory-map copy into kept memory": lambda: _each(ranges, lambda a, b: np.copyto(buffer[: b - a], mapped[a:b])),
        "sciflow": lambda: _each(ranges, lambda a, b: split.read(a, b, buffer[: b - a])),
        "zarr-python": lambda: _read_with(store, ranges, "zarr.core.codec_pipeline.BatchedCodecPipeline"),
        "zarrs": lambda: _read_with(store, ranges, "zarrs.ZarrsCodecPipeline"),
    }
    if importlib.util.find_spec("tensorstore"):
        readers["tensorstore"] = lambda: _read_with_tensorstore(store, ranges)
    return _table("whole-shard reading", readers, len(split) * store.layout.event_bytes)


def batches(store: Store, dataset: xr.Dataset, event: dict[str, int], epochs: int, folder: Path) -> Table:
    """Shuffled batches, the first of them, and memory; xbatcher cuts the same events from a store of the field."""
    event_bytes = store.layout.event_bytes
    plan = Plan(len(store.train), store.train.shard_rows, BATCH_BYTES // event_bytes, (128 << 20) // event_bytes)
    began = time.perf_counter()
    loader = Loader(store.train, plan)
    next(loader.epoch(0))
    first = time.perf_counter() - began
    memory, rates = [], []
    for epoch in range(epochs):
        began = time.perf_counter()
        rows = sum(len(batch.events) for batch in loader.epoch(epoch))
        rates.append(rows * event_bytes / MEGA / (time.perf_counter() - began))
        memory.append(_resident())
    table = Table("what", "figure", title="batches for training", title_justify="left")
    table.add_row("first batch, from opening", f"{first:.3f} s")
    table.add_row("shuffled batches of 1 MiB", f"{np.median(rates):,.0f} MB/s")
    table.add_row("resident set after each epoch", ", ".join(f"{size:,.0f}" for size in memory) + " MB")
    if importlib.util.find_spec("xbatcher"):
        peer = xbatcher_rate(dataset, event, folder)
        table.add_row("xbatcher, same events, in order", f"{peer:,.0f} MB/s")
        table.add_row("sciflow / xbatcher", f"{np.median(rates) / peer:.1f}")
    return table


def xbatcher_rate(dataset: xr.Dataset, event: dict[str, int], folder: Path, seconds: float = 8.0) -> float:
    """Megabytes a second of ``xbatcher.BatchGenerator``, over a store that is chunked for small reads."""
    import xbatcher

    patch = {str(dim): event.get(str(dim), 1) for dim in dataset["t"].dims}
    # A chunk is an event, though no smaller than 16 x 16 cells.
    chunks = (patch["time"], max(16, patch["lat"]), max(16, patch["lon"]))
    steps = 16 * patch["time"]
    part = dataset.isel(time=slice(0, 4 * steps))
    encoding = {"t": {"chunks": chunks, "shards": (steps, HEIGHT, WIDTH)}}
    path = folder / f"peer-{patch['time']}.zarr"
    part.to_zarr(path, zarr_format=3, consolidated=False, encoding=encoding)
    # Without dask, which takes twice as long on small boxes.
    source = xr.open_zarr(path, consolidated=False, chunks=None)["t"]
    # It lists all its patches beforehand: a row of cells is enough of them.
    source = source.isel(lat=slice(0, patch["lat"]))
    done, began = 0, time.perf_counter()
    for event_read in xbatcher.BatchGenerator(source, input_dims=patch):
        done += np.asarray(event_read.values).nbytes
        if time.perf_counter() - began > seconds:
            break
    return done / MEGA / (time.perf_counter() - began)


def _each(ranges: list[tuple[int, int]], read: Callable[[int, int], object]) -> None:
    for start, stop in ranges:
        read(start, stop)


def _read_with(store: Store, ranges: list[tuple[int, int]], pipeline: str) -> None:
    with zarr.config.set({"codec_pipeline.path": pipeline}):
        array = zarr.open_array(store.path, path="train/events", mode="r")
    for start, stop in ranges:
        array[start:stop]


def _read_with_tensorstore(store: Store, ranges: list[tuple[int, int]]) -> None:
    import tensorstore

    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(Path(store.path).absolute() / "train/events")}}
    array = tensorstore.open(spec).result()
    for start, stop in ranges:
        array[start:stop].read().result()


def _table(title: str, readers: dict[str, Callable[[], object]], num_bytes: int, rounds: int = 3) -> Table:
    seconds: dict[str, list[float]] = {name: [] for name in readers}
    # In turn, so that a slow moment of the machine falls on all.
    for round_ in range(rounds + 1):
        for name, read in readers.items():
            began = time.perf_counter()
            read()
            # The first round warms the disk's cache.
            if round_ > 0:
                seconds[name].append(time.perf_counter() - began)
    table = Table("reader", "MB/s", "of a memory-map copy", title=title, title_justify="left")
    base = np.array(seconds["memory-map copy"])
    for name, spent in seconds.items():
        table.add_row(name, f"{num_bytes / MEGA / np.median(spent):,.0f}", f"{np.median(base / np.array(spent)):.2f}")
    return table


def _resident() -> float:
    status = Path("/proc/self/status")
    if status.exists():
        # Without pages of mapped files, which belong to the system's cache.
        line = next(line for line in status.read_text().splitlines() if line.startswith("RssAnon"))
        return int(line.split()[1]) / 1000
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000


if __name__ == "__main__":
    main()
