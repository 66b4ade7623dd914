"""How much of what a diffusion model gains over a flow a flow keeps that is taught by it, with log p in one pass.

    python tests/benchmarks/distill_to_flow.py
    python tests/benchmarks/distill_to_flow.py --sets rings --methods likelihood --quick
    python tests/benchmarks/distill_to_flow.py --teachers kept --events 20000

Held-out log p, in nats, of a flow trained on the data (``sf.fit``, nothing set), of a diffusion model trained on the
same rows, and of flows like the first that learn from the second alone. "kept" is (taught - direct) / (teacher -
direct), with its standard error by bootstrap over the held-out rows. The teacher is known by its variational bound, and
by its probability-flow ODE on the first rows, where the model has that; of the toys the truth is known, too. A set
"NAME|x" is the density of a table's target given its features; tables that cannot be had are skipped. One thread.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from beside import beside, tell
from rich.console import Console
from rich.table import Table

import sciflow as sf
from sciflow.errors import ConfigError
from sciflow.training.distill_to_flow import METHODS

SETS = ("rings", "kin8nm", "concrete|x")
TOY_ROWS, TOY_HELD_OUT, ODE_ROWS = 2_000, 10_000, 500
DRAWS = 64  # of noise levels for the bound of a row
QUICK = {"max_steps": 200}


@dataclass(frozen=True)
class Rows:
    """Events and their contexts, to train on and held out; and the truth about these, where it is known."""

    train: np.ndarray
    held_out: np.ndarray
    context: np.ndarray | None = None
    held_out_context: np.ndarray | None = None
    truth: np.ndarray | None = None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sets", default=",".join(SETS), help="with commas between them (%(default)s)")
    parser.add_argument("--methods", default=",".join(METHODS), help="the same (%(default)s)")
    parser.add_argument("--events", type=int, help="draws of the teacher; by default as many as come unattended")
    parser.add_argument("--steps", type=int, help="of the flows that are taught; by default as many as sf.fit takes")
    parser.add_argument("--split", type=int, default=0, help="of the tables (%(default)s)")
    parser.add_argument("--teachers", type=Path, help="folder where teachers and direct flows are kept, and found")
    parser.add_argument("--quick", action="store_true", help="a few steps of everything, to see that it runs")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name in options.sets.split(","):
        try:
            rows = rows_of(name, options.split)
        except beside("datasets/uci").DownloadError as error:
            print(f"{name}: skipped: {error}", file=sys.stderr)
            continue
        compare(name, rows, options)


def rows_of(name: str, split: int) -> Rows:
    """Rows of a toy, of a table, or of a table's target given its features."""
    toys = beside("datasets/toys").TOYS
    if name in toys:
        held_out = toys[name].sample(TOY_HELD_OUT, seed=1_000_000)
        return Rows(toys[name].sample(TOY_ROWS, seed=split), held_out, truth=toys[name].log_prob(held_out))
    table = beside("datasets/uci").load(name.removesuffix("|x"))
    train, test = table.splits[split]
    if name.endswith("|x"):
        return Rows(table.target[train], table.target[test], table.features[train], table.features[test])
    rows = np.hstack((table.features, table.target))
    return Rows(rows[train], rows[test])


def compare(name: str, rows: Rows, options: argparse.Namespace) -> None:
    """Print the table of one set."""
    title = f"{name}: {len(rows.train):,} rows to train on, {len(rows.held_out):,} held out"
    table = Table("model", "held-out log p [nats]", "kept", "us a row", "trained in", title=title)
    brief = QUICK if options.quick else {}
    direct, direct_seconds = fitted(f"{name}-{options.split}.flow", flow_for(rows), rows, options.teachers, brief)
    at = f"{name}-{options.split}.teacher"
    teacher, teacher_seconds = fitted(at, teacher_for(rows), rows, options.teachers, brief)

    def add(model: str, log_prob: np.ndarray, cost: float | None, trained: str, kept: str = "") -> None:
        row = (model, mean(log_prob), kept, "" if cost is None else f"{1e6 * cost / len(log_prob):.0f}", trained)
        table.add_row(*row)
        tell(f"{name}: {' | '.join(row)}")

    if rows.truth is not None:
        add("truth", rows.truth, None, "")
    ours, cost = scored(direct, rows)
    add("flow, trained on the data", ours, cost, direct_seconds)
    bound, cost = scored(teacher, rows, num_draws=DRAWS)
    add("teacher, bound", bound, cost, teacher_seconds)
    teachers = {"bound": bound}
    try:
        teachers["ode"], cost = scored(teacher, rows, ODE_ROWS, method="ode")
        add(f"teacher, ode, {len(teachers['ode']):,} rows", teachers["ode"], cost, "")
    except ConfigError as error:
        tell(f"{name}: no ode: {error}")
    for method in options.methods.split(","):
        began = time.perf_counter()
        steps = brief or ({} if options.steps is None else {"max_steps": options.steps})
        num_events = 200 if options.quick else options.events
        flow = sf.distill_to_flow(
            teacher, flow_for(rows), rows.context, method=method, num_events=num_events, progress=False, **steps
        )
        trained = f"{time.perf_counter() - began:.0f} s"
        taught, cost = scored(flow, rows)
        kept = ", ".join(f"{share(taught, ours, known)} ({how})" for how, known in teachers.items())
        add(f"flow, taught by {method}", taught, cost, trained, kept)
    Console(width=140).print(table)


def flow_for(rows: Rows) -> sf.flows.NSF:
    """The flow as it comes."""
    return sf.flows.NSF(rows.train.shape[1:], None if rows.context is None else rows.context.shape[1:], seed=0)


def teacher_for(rows: Rows) -> sf.diffusion.Diffusion:
    """The diffusion model as it comes."""
    context_shape = None if rows.context is None else rows.context.shape[1:]
    return sf.diffusion.Diffusion(rows.train.shape[1:], context_shape, seed=0)


def fitted(
    name: str, density: sf.Density, rows: Rows, kept: Path | None, settings: dict[str, int]
) -> tuple[sf.Density, str]:
    """A density trained on the rows, or the one that is kept; and how long that took."""
    if kept is not None and (kept / name).exists():
        return sf.load(kept / name), "kept"
    found = sf.fit(density, rows.train, context=rows.context, progress=False, **settings)
    if kept is not None:
        density.save(kept / name)
    return density, f"{found.seconds:.0f} s"


def scored(density: sf.Density, rows: Rows, most: int | None = None, **how: object) -> tuple[np.ndarray, float]:
    """Log p of held-out rows, and the seconds that it took."""
    context = None if rows.held_out_context is None else rows.held_out_context[:most]
    began = time.perf_counter()
    found = density.likelihood(rows.held_out[:most], context, **how)
    return found.log_prob.double().numpy(), time.perf_counter() - began


def share(taught: np.ndarray, direct: np.ndarray, teacher: np.ndarray) -> str:
    """Share of the teacher's gain that is kept, with its standard error; a dash where there is no clear gain."""
    n = len(teacher)
    columns = np.stack([taught[:n] - direct[:n], teacher - direct[:n]])
    if columns[1].mean() < 2 * columns[1].std(ddof=1) / n**0.5:
        return "-"
    picks = np.random.default_rng(0).integers(n, size=(200, n))
    again = np.array([np.divide(*columns[:, pick].mean(1)) for pick in picks])
    return f"{np.divide(*columns.mean(1)):.2f} +- {again.std():.2f}"


def mean(log_prob: np.ndarray) -> str:
    """With its standard error."""
    return f"{log_prob.mean():.3f} +- {log_prob.std(ddof=1) / len(log_prob) ** 0.5:.3f}"


if __name__ == "__main__":
    main()
