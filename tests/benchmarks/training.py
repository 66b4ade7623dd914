"""What training costs beside the model itself: overhead of the loop, scaling over workers, time to the first step.

    python tests/benchmarks/training.py --rows 1000000

Every speed is a ratio in one run; one thread a process.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import nn

import sciflow as sf
from sciflow.config import Training
from sciflow.data.loader import Loader
from sciflow.data.plan import Plan
from sciflow.data.store import Store
from sciflow.flows import NSF
from sciflow.training.loop import train
from sciflow.training.metrics import Metrics, read_metrics
from sciflow.training.process import Process
from sciflow.training.rows import prepare, training_data

COLUMNS = 32
# What the rule chooses for 800,000 training rows.
BATCH_SIZE = 2048


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--steps", type=int, default=150, help="steps that are timed, several times over")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    # Workers and commands inherit it.
    os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory() as folder:
        rows = np.random.default_rng(0).normal(size=(arguments.rows, COLUMNS)).astype(np.float32)
        rows[:, 1:] += 0.5 * rows[:, :-1]
        store = sf.shard(rows, Path(folder) / "rows.zarr", shard_rows=50_000, progress=False)
        table = Table("what", "figure", "goal", title=f"{arguments.rows:,} rows x {COLUMNS}, batch {BATCH_SIZE}")
        outside = overhead(store, arguments.steps)
        table.add_row("time outside forward, backward and step", f"{100 * outside:.1f} %", "<= 10 %")
        one, two = (rows_per_second(store.path, Path(folder), workers, arguments.steps) for workers in (1, 2))
        table.add_row("rows a second, 1 Ray worker", f"{one:,.0f}", "")
        table.add_row("rows a second, 2 Ray workers", f"{two:,.0f}", "")
        table.add_row("2 workers / 1 worker", f"{two / one:.2f}", ">= 1.8")
        table.add_row(
            "sciflow train to the first step, Ray's start included",
            f"{first_step(store.path, Path(folder)):.1f} s",
            "<= 12 s",
        )
        table.add_row("sf.fit to the first step, after imports", f"{first_step_of_fit(store):.2f} s", "<= 1 s")
        table.add_row("import sciflow, over import torch", f"{import_time():.2f} s", "<= 0.2 s")
        Console(width=110).print(table)


def overhead(store: Store, steps: int, rounds: int = 3) -> float:
    """Share of the loop's time that is not the model's own; the bare steps run over the same batches, in memory."""
    shares = []
    for _ in range(rounds):
        began = time.perf_counter()
        _train(store, steps)
        whole = time.perf_counter() - began
        began = time.perf_counter()
        _train(store, 1)
        # What happens once: preparing, and the two validations.
        once = time.perf_counter() - began
        bare = _bare_seconds(store, steps)
        shares.append(1 - bare / (whole - once) * (steps - 1) / steps)
    return float(np.median(shares))


def _train(store: Store, steps: int) -> None:
    settings = Training(batch_size=BATCH_SIZE, max_steps=steps, validate_every=steps)
    density = NSF(store.event_shape, seed=0)
    data, _, _ = training_data(density, store, None, None, None, 0)
    prepare(density, data, "error", None)
    train(density, data, settings, Process(), Metrics())


def _bare_seconds(store: Store, steps: int) -> float:
    density = NSF(store.event_shape, seed=0)
    density.fit_preprocessing(store.train[:10_000])
    optimizer = torch.optim.AdamW(density.parameters(), lr=1e-3)
    plan = Plan(len(store.train), store.train.shard_rows, BATCH_SIZE, 1 << 20)
    batches = [batch.events for batch, _ in zip(Loader(store.train, plan).epoch(0), range(steps), strict=False)]
    began = time.perf_counter()
    for batch in batches:
        optimizer.zero_grad(set_to_none=True)
        density.loss(batch).mean().backward()
        nn.utils.clip_grad_norm_(density.parameters(), 5.0)
        optimizer.step()
    return time.perf_counter() - began


def rows_per_second(store: str, folder: Path, workers: int, steps: int) -> float:
    """Throughput of a run on Ray: the median of its records, without those of the start."""
    name = f"workers-{workers}"
    _train_command(store, folder, name, [f"training.max_steps={steps}", f"cluster.num_workers={workers}"])
    records = read_metrics(folder / "runs" / name / "metrics.jsonl")
    return float(np.median([record["rows_per_second"] for record in records if "rows_per_second" in record][2:]))


def first_step(store: str, folder: Path) -> float:
    """From the command to the first record, with one step, and a validation of it, before it."""
    metrics = folder / "runs" / "first" / "metrics.jsonl"
    began = time.perf_counter()
    process = _train_command(store, folder, "first", ["training.max_steps=1"], wait=False)
    while process.poll() is None and not (metrics.exists() and metrics.stat().st_size):
        time.sleep(0.02)
    spent = time.perf_counter() - began
    process.wait()
    return spent


def _train_command(
    store: str, folder: Path, name: str, settings: list[str], wait: bool = True
) -> subprocess.Popen[bytes]:
    workflow = {
        "name": name,
        "data": {"store": store},
        "training": {"batch_size": BATCH_SIZE, "validate_every": 10_000},
    }
    (folder / f"{name}.yaml").write_text(json.dumps(workflow))
    command = [sys.executable, "-m", "sciflow.cli", "train", str(folder / f"{name}.yaml"), *settings]
    process = subprocess.Popen([*command, "--runs", str(folder / "runs"), "--overwrite"], stdout=subprocess.DEVNULL)
    if wait and process.wait() != 0:
        raise SystemExit(f"{' '.join(command)} failed")
    return process


def first_step_of_fit(store: Store) -> float:
    """``sf.fit`` with one step, its two validations taken off."""
    density = NSF(store.event_shape, seed=0)
    held = store.validation[:100]
    began = time.perf_counter()
    sf.fit(density, store.train[:100_000], held, max_steps=1, progress=False)
    return time.perf_counter() - began


def import_time(rounds: int = 5) -> float:
    """Seconds that ``import sciflow`` takes where torch is imported already."""
    program = "import torch, time; t = time.perf_counter(); import sciflow; print(time.perf_counter() - t)"
    spent = [float(subprocess.check_output([sys.executable, "-c", program])) for _ in range(rounds)]
    return float(np.median(spent))


if __name__ == "__main__":
    main()
