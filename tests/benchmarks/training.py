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
# The rule chooses the first for 800,000 training rows; in the second, what a step costs beside its rows weighs less.
BATCH_SIZES = (2048, 8192)
RAY = [sys.executable, "-m", "sciflow.cli"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "sciflow.cli"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--rows-a-run", type=int, default=250_000, help="rows that every timed run is trained on")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    # Workers and commands inherit it.
    os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory() as folder:
        rows = np.random.default_rng(0).normal(size=(arguments.rows, COLUMNS)).astype(np.float32)
        rows[:, 1:] += 0.5 * rows[:, :-1]
        store = sf.shard(rows, Path(folder) / "rows.zarr", shard_rows=50_000, progress=False)
        table = Table("what", "figure", "goal", title=f"{arguments.rows:,} rows x {COLUMNS}, one thread a process")
        for batch_size in BATCH_SIZES:
            steps = max(48, arguments.rows_a_run // batch_size)
            outside = np.median([overhead(store, batch_size, steps) for _ in range(arguments.rounds)])
            table.add_row(
                f"batch {batch_size:,}: time outside forward, backward and step", f"{100 * outside:.1f} %", "<= 10 %"
            )
            # In turns, so that a machine that slows down slows all. Under torchrun nothing but workers is on the cores.
            found = np.array(
                [
                    [
                        rows_per_second(store.path, Path(folder), batch_size, steps, command, workers)
                        for command, workers in ((RAY, 1), (RAY, 2), (TORCHRUN, 2))
                    ]
                    for _ in range(arguments.rounds)
                ]
            )
            table.add_row(f"batch {batch_size:,}: rows a second, 1 Ray worker", f"{np.median(found[:, 0]):,.0f}", "")
            for place, name in ((1, "2 Ray workers"), (2, "2 torchrun processes")):
                ratios = found[:, place] / found[:, 0]
                each = ", ".join(f"{ratio:.2f}" for ratio in ratios)
                table.add_row(f"batch {batch_size:,}: {name} / 1", f"{np.median(ratios):.2f} ({each})", ">= 1.8")
        firsts = [first_step(store.path, Path(folder), number) for number in range(arguments.rounds)]
        table.add_row(
            "sciflow train to the first step, Ray's start included",
            f"{np.median(firsts):.1f} s ({', '.join(f'{first:.1f}' for first in firsts)})",
            "<= 12 s",
        )
        table.add_row("sf.fit to the first step, after imports", f"{first_step_of_fit(store.path):.2f} s", "<= 1 s")
        table.add_row("import sciflow, over import torch", f"{import_time():.2f} s", "<= 0.2 s")
        Console(width=110).print(table)


def overhead(store: Store, batch_size: int, steps: int) -> float:
    """Share of the loop's time, from its first step to its last, in which the model's own work was not done.

    The bare steps run over the same batches, in memory, with the same optimiser.
    """
    settings = Training(batch_size=batch_size, max_steps=steps, validate_every=steps)
    density = NSF(store.event_shape, seed=0)
    data, _, _ = training_data(density, store, None, None, None, 0)
    prepare(density, data, "error", None)
    ends: list[float] = []
    # A validation also brings the bar up to date: of each step, the first call counts.
    update = lambda step, note: ends.append(time.perf_counter()) if len(ends) < step else None  # noqa: E731
    train(density, data, settings, Process(), Metrics(update=update))
    in_loop = (ends[steps - 1] - ends[0]) / (steps - 1)
    return 1 - _bare_seconds(store, batch_size, steps) / in_loop


def _bare_seconds(store: Store, batch_size: int, steps: int) -> float:
    """Seconds a step of the model alone takes; the first is not counted."""
    density = NSF(store.event_shape, seed=0)
    density.fit_preprocessing(store.train[:10_000])
    optimizer = torch.optim.AdamW(density.parameters(), lr=1e-3, fused=True)
    plan = Plan(len(store.train), store.train.shard_rows, batch_size, 1 << 20)
    batches = [batch.events for batch, _ in zip(Loader(store.train, plan).epoch(0), range(steps), strict=False)]
    ends = []
    for batch in batches:
        optimizer.zero_grad(set_to_none=True)
        density.loss(batch).mean().backward()
        nn.utils.clip_grad_norm_(density.parameters(), 5.0)
        optimizer.step()
        ends.append(time.perf_counter())
    return (ends[-1] - ends[0]) / (len(ends) - 1)


def rows_per_second(store: str, folder: Path, batch_size: int, steps: int, command: list[str], workers: int) -> float:
    """Throughput of a run: the median of its records, without those of the start."""
    settings = [f"training.batch_size={batch_size}", f"training.max_steps={steps}", f"cluster.num_workers={workers}"]
    if _train(command, store, folder, "rate", settings).wait() != 0:
        raise SystemExit(f"{' '.join(command)} train failed")
    records = read_metrics(folder / "runs" / "rate" / "metrics.jsonl")
    return float(np.median([record["rows_per_second"] for record in records if "rows_per_second" in record][2:]))


def first_step(store: str, folder: Path, number: int) -> float:
    """From the command to the record of its first step."""
    metrics = folder / "runs" / f"first-{number}" / "metrics.jsonl"
    began = time.perf_counter()
    process = _train(RAY, store, folder, f"first-{number}", ["training.max_steps=1"])
    while process.poll() is None and not (metrics.exists() and metrics.stat().st_size):
        time.sleep(0.02)
    spent = time.perf_counter() - began
    process.wait()
    return spent


def _train(command: list[str], store: str, folder: Path, name: str, settings: list[str]) -> subprocess.Popen[bytes]:
    workflow = {"name": name, "data": {"store": store}, "training": {"validate_every": 10_000}}
    (folder / f"{name}.yaml").write_text(json.dumps(workflow))
    command = [*command, "train", str(folder / f"{name}.yaml"), *settings, "--runs", str(folder / "runs")]
    return subprocess.Popen([*command, "--overwrite"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def first_step_of_fit(store: str) -> float:
    """``sf.fit`` with one step and two validations of 100 rows, in a process of its own.

    torch imports its compiler when the first optimiser is made; that is counted among the imports.
    """
    program = f"""
import time, torch._dynamo, sciflow as sf
store = sf.open_store({store!r})
density, events, held = sf.flows.NSF(store.event_shape, seed=0), store.train[:100_000], store.validation[:100]
fit = sf.fit
began = time.perf_counter()
fit(density, events, held, max_steps=1, progress=False)
print(time.perf_counter() - began)
"""
    return float(subprocess.check_output([sys.executable, "-c", program]))


def import_time(rounds: int = 5) -> float:
    """Seconds that ``import sciflow`` takes where torch is imported already."""
    program = "import torch, time; t = time.perf_counter(); import sciflow; print(time.perf_counter() - t)"
    spent = [float(subprocess.check_output([sys.executable, "-c", program])) for _ in range(rounds)]
    return float(np.median(spent))


if __name__ == "__main__":
    main()
