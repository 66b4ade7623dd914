"""What sharding costs: ``sciflow.shard`` beside ``xarray`` and its ``to_zarr``, with the same codecs, in the same run.

    python tests/benchmarks/shard.py --gigabytes 1

Every figure is of a fresh process, the best of ``--repeats``. Memory is the peak of anonymous pages above what the
process held before it began: the source itself, where it is in memory, is not counted, nor are pages of mapped files.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

LATITUDES, LONGITUDES, HOURS = 128, 256, 24
SHARD_BYTES = 64 << 20
DIMS = ("time", "latitude", "longitude")
SOURCES = ("memory", "npy", "netcdf")
LAYOUTS: dict[str, dict[str, Any]] = {
    "fields": {"sample": ["time"]},
    "days": {"event": {"time": HOURS}, "sample": ["latitude", "longitude"]},
}


def make_field(gigabytes: float) -> np.ndarray:
    """Return a temperature-like field ``[time, latitude, longitude]``: smooth, with noise in the low bits."""
    days = max(1, round(gigabytes * 1e9 / (4 * LATITUDES * LONGITUDES * HOURS)))
    rng = np.random.default_rng(0)
    field = np.empty((days * HOURS, LATITUDES, LONGITUDES), np.float32)
    height = np.linspace(0, 3, LATITUDES)[:, None] + np.linspace(0, 5, LONGITUDES)
    for hour, step in enumerate(field):
        step[:] = 280 + 10 * np.sin(height + hour * 2 * np.pi / HOURS)
        step += rng.standard_normal(step.shape, np.float32) / 16
    return field


def write_sources(folder: Path, gigabytes: float) -> None:
    """Write the field as npy and as NetCDF."""
    field = make_field(gigabytes)
    np.save(folder / "field.npy", field)
    dataset(field).to_netcdf(folder / "field.nc", engine="h5netcdf")


def dataset(field: np.ndarray) -> xr.Dataset:
    """Label a field as a dataset of one variable."""
    times = np.datetime64("2019-01-01", "ns") + np.arange(len(field)) * np.timedelta64(1, "h")
    return xr.Dataset({"t2m": (DIMS, field)}, {"time": times})


def open_source(folder: Path, source: str) -> xr.Dataset:
    """Open the field as a lazy dataset, or in memory."""
    if source == "netcdf":
        return xr.open_dataset(folder / "field.nc", engine="h5netcdf")
    return dataset(np.load(folder / "field.npy", mmap_mode="r" if source == "npy" else None))


def shard(data: xr.Dataset, out: Path, layout: str) -> None:
    """Write a store of events."""
    import sciflow as sf

    sf.shard(data, out, **LAYOUTS[layout], progress=False)


def to_zarr(data: xr.Dataset, out: Path, layout: str) -> None:
    """Write the field as it is, with the codecs, chunks and shards of our stores."""
    from zarr.codecs import BloscCodec, Crc32cCodec

    step_bytes = 4 * LATITUDES * LONGITUDES
    chunk = max(1, (1 << 20) // step_bytes)
    codecs = (BloscCodec(typesize=4, cname="lz4", clevel=5, shuffle="bitshuffle"), Crc32cCodec())
    encoding = {
        "chunks": (chunk, LATITUDES, LONGITUDES),
        "shards": (SHARD_BYTES // step_bytes // chunk * chunk, LATITUDES, LONGITUDES),
        "compressors": codecs,
    }
    data.drop_encoding().to_zarr(out, zarr_format=3, consolidated=False, encoding={"t2m": encoding})


WRITERS: dict[str, Callable[[xr.Dataset, Path, str], None]] = {"sciflow": shard, "to_zarr": to_zarr}


def measure(folder: Path, writer: str, source: str, layout: str) -> dict[str, float]:
    """Run one writer in this process: seconds, and MiB at the peak."""
    import sciflow.data.shard  # noqa: F401

    data = open_source(folder, source)
    with tempfile.TemporaryDirectory(dir=folder) as out, _Peak() as peak:
        started = time.perf_counter()
        WRITERS[writer](data, Path(out, "out.zarr"), layout)
        seconds = time.perf_counter() - started
    return {"seconds": seconds, "mebibytes": peak.mebibytes}


def compare(folder: Path, repeats: int) -> None:
    """Print one line for every source and layout."""
    print(f"{'source':<8} {'events':<7} {'sciflow s':>10} {'to_zarr s':>10} {'ratio':>6} {'peak MiB':>9} {'shards':>7}")
    for source in SOURCES:
        for layout in LAYOUTS:
            best: dict[str, dict[str, float]] = {}
            # In turn, so that what else the machine does falls on both.
            for _ in range(repeats):
                for writer in WRITERS:
                    found = _in_fresh_process(folder, writer, source, layout)
                    best[writer] = min(best.get(writer, found), found, key=lambda record: record["seconds"])
            ours, theirs = best["sciflow"], best["to_zarr"]
            shards = ours["mebibytes"] * (1 << 20) / SHARD_BYTES
            print(
                f"{source:<8} {layout:<7} {ours['seconds']:>10.2f} {theirs['seconds']:>10.2f} "
                f"{ours['seconds'] / theirs['seconds']:>6.2f} {ours['mebibytes']:>9.0f} {shards:>7.1f}",
                flush=True,
            )


def main() -> None:
    """Read the options, and compare; or measure one case, for the process that compares."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=1.0, help="size of the field")
    parser.add_argument("--repeats", type=int, default=2, help="runs of each case, of which the best counts")
    parser.add_argument("--case", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        print(json.dumps(measure(Path(options.case[0]), *options.case[1:])))
        return
    with tempfile.TemporaryDirectory() as folder:
        write_sources(Path(folder), options.gigabytes)
        compare(Path(folder), options.repeats)


class _Peak:
    """Watches the anonymous memory of this process while a block runs."""

    def __enter__(self) -> _Peak:
        self._first = self._highest = _anonymous_kib()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    @property
    def mebibytes(self) -> float:
        return (self._highest - self._first) / 1024

    def _watch(self) -> None:
        while not self._done.wait(0.005):
            self._highest = max(self._highest, _anonymous_kib())


def _anonymous_kib() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))


def _in_fresh_process(folder: Path, *case: str) -> dict[str, float]:
    command = [sys.executable, __file__, "--case", str(folder), *case]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


if __name__ == "__main__":
    main()
