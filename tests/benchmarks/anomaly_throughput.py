"""What `sciflow detect` costs beside its model: time over that of the bare log p, and memory by the number of rows."""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
import zarr
from beside import tell
from rich.console import Console
from rich.table import Table

import sciflow as sf

COLUMNS, SHARD_ROWS, ODD = 32, 65_536, 0.001
TRAIN_ROWS, STEPS = 100_000, 300
SCIFLOW = [sys.executable, "-m", "sciflow.cli"]
# As many rows at a time as a score takes: the fastest for the bare model, too.
BATCH = (1 << 17) // COLUMNS


def throughput(arguments: argparse.Namespace) -> None:
    """Detect in rows that are new, and score the same rows by the model alone, in turns; then in four times as many."""
    # Commands inherit it.
    os.environ["OMP_NUM_THREADS"] = "1"
    root = arguments.out / "throughput"
    root.mkdir(exist_ok=True)
    workflow = apart(trained, root)
    sizes = (arguments.rows, 4 * arguments.rows)
    times, memory = [], {size: [] for size in sizes}
    store = apart(new_rows, root, sizes[0], 1)
    # Others use the machine: what counts is the processor's time, and every run stands between two of the bare model.
    bare = [bare_seconds(root, store)]
    for _ in range(arguments.rounds):
        *seconds, most = detected(root, workflow, store)
        bare.append(bare_seconds(root, store))
        times.append(seconds)
        memory[sizes[0]].append(most)
        tell(f"detect {seconds} s, log p alone {bare[-2]} s and {bare[-1]} s; {most:.0f} MB")
    alone = np.array(bare)
    ratios = np.array(times) / ((alone[:-1] + alone[1:]) / 2)
    *more, most = detected(root, workflow, apart(new_rows, root, sizes[1], 2))
    memory[sizes[1]].append(most)
    table = Table("what", "figure", "goal", title=f"sciflow detect --local, {sizes[0]:,} rows x {COLUMNS}, one thread")
    for column, kind in enumerate(("processor", "wall")):
        each = ", ".join(f"{ratio:.2f}" for ratio in ratios[:, column])
        table.add_row(f"log p of the bare model, {kind} time, seconds", f"{np.median(alone[:, column]):.1f}", "")
        table.add_row("the command, from its start to its end", f"{np.median(times, 0)[column]:.1f}", "")
        table.add_row("the one over the other, in turns", f"{np.median(ratios[:, column]):.2f} ({each})", "<= 1.3")
        by_four = more[column] / np.median(alone[:, column]) / 4
        table.add_row(f"of {sizes[1]:,} rows, by four times the bare time", f"{by_four:.2f}", "<= 1.3")
    for size, most in memory.items():
        table.add_row(f"most memory, {size:,} rows, MB", f"{np.median(most):.0f}", "does not grow")
    events = zarr.open_group(str(found(root)), mode="r")["flag"][:]  # of the larger one
    odd = odd_rows(sizes[1], 2)
    table.add_row("of the rows put in, found", f"{events[odd].mean():.2f}", "")
    table.add_row("share of false alarms", f"{1 - events[odd].sum() / max(1, events.sum()):.3f}", "<= 0.1")
    Console(width=110).print(table)


def apart(work: Callable[..., Path], *arguments: Any) -> Path:
    """Do work in a process of its own: of one that is started, the system counts the memory of who starts it, too."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(work, *arguments).result()


def trained(root: Path) -> Path:
    """The default model of a workflow, briefly trained, and the workflow that finds what is new."""
    file = root / "workflow.yaml"
    if not file.exists():
        sf.shard(rows_of(TRAIN_ROWS, 0), root / "rows.zarr", split=(0.7, 0.1, 0.2), progress=False, overwrite=True)
        content = {
            "name": "rows",
            "data": {"store": str(root / "rows.zarr")},
            "model": {"name": "nsf"},
            "training": {"max_steps": STEPS},
            "detection": {"stores": str(root / "new" / "*.zarr")},
        }
        beside = root / "wanted.yaml"
        beside.write_text(yaml.safe_dump(content, sort_keys=False))
        subprocess.run([*SCIFLOW, "train", beside, "--runs", root, "--local", "--quiet"], check=True)
        beside.rename(file)
    return file


def rows_of(size: int, seed: int) -> np.ndarray:
    rows = np.random.default_rng(seed).standard_normal((size, COLUMNS), np.float32)
    rows[:, 1:] += 0.5 * rows[:, :-1]
    return rows


def odd_rows(size: int, seed: int) -> np.ndarray:
    return np.random.default_rng([seed, size]).choice(size, round(ODD * size), replace=False)


def new_rows(root: Path, size: int, seed: int) -> Path:
    """The only store that is watched: rows of which few are odd in three of their numbers."""
    store = root / "new" / f"{size}.zarr"
    shutil.rmtree(store.parent, ignore_errors=True)
    store.parent.mkdir()
    rows, odd = rows_of(size, seed), odd_rows(size, seed)
    rows[odd[:, None], np.random.default_rng(seed).integers(0, COLUMNS, (len(odd), 3))] += 6
    sf.shard(rows, store, like=root / "rows.zarr", shard_rows=SHARD_ROWS, progress=False)
    return store


def detected(root: Path, workflow: Path, store: Path) -> tuple[float, float, float]:
    """Seconds, the processor's and by the clock, that the command takes from nothing on; and its most memory [MB]."""
    shutil.rmtree(root / "rows" / "detections", ignore_errors=True)
    began = time.perf_counter()
    command = [*SCIFLOW, "detect", str(workflow), "--runs", str(root), "--local", "--quiet"]
    run = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(run.pid, 0)
    run.returncode = os.waitstatus_to_exitcode(status)
    if run.returncode not in (0, 10):
        raise RuntimeError(f"sciflow detect of {store} has ended with {run.returncode}")
    return used.ru_utime + used.ru_stime, time.perf_counter() - began, used.ru_maxrss / 1024


def bare_seconds(root: Path, store: Path) -> tuple[float, float]:
    """The same of log p of the rows, which lie in memory, in a process of its own that does nothing else."""
    command = [sys.executable, __file__, str(root / "rows" / "model"), str(store)]
    processor, wall = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return processor, wall


def found(root: Path) -> Path:
    return next((root / "rows" / "detections").glob("**/results.zarr"))


def bare(model: str, store: str) -> None:
    torch.set_num_threads(1)
    density, rows = sf.load(model), sf.open_store(store).test
    seconds = np.zeros(2)
    for record in rows.shards:
        events = rows[slice(*rows.shard_range(record.number))]
        began = np.array([time.process_time(), time.perf_counter()])
        with torch.no_grad():
            for batch in events.split(BATCH):
                density.log_prob(batch)
        seconds += np.array([time.process_time(), time.perf_counter()]) - began
    print(seconds.tolist())


if __name__ == "__main__":
    bare(*sys.argv[1:])
