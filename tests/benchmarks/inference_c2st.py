"""How well draws of amortised posteriors pass for reference draws: C2ST on five simulators, beside published figures.

    python tests/benchmarks/inference_c2st.py DATA                        # all tasks, npe, 10,000 simulations
    python tests/benchmarks/inference_c2st.py DATA --tasks slcp,sir --methods npe,fmpe,npse,nle --observations 3
    python tests/benchmarks/inference_c2st.py DATA --methods npe,sbi      # the peer's own NPE beside

DATA holds a folder for each task, and ``published_c2st.csv``. The protocol is that of Lueckmann et al.,
arXiv:2101.04653: 10,000 draws for each observation, told from 10,000 reference draws by a network of scikit-learn over
five folds; the mean over ten observations. One recipe for all tasks: what the method does unasked, but for what
``--settings`` says. What is done is added to ``--out``, a line each, and left out when the same command is run again;
posteriors are kept in a folder beside it, and used again.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from beside import tell
from rich.console import Console
from rich.table import Table
from sbibm import TASKS, Observation, Task, c2st, observations, published
from torch import Tensor

from sciflow.config import from_yaml
from sciflow.inference import ConditionalPosterior, fit_conditional, load_conditional

BUDGETS = {"1k": 1000, "10k": 10_000, "100k": 100_000}
SEQUENTIAL = ("SNPE", "SNLE", "SNRE", "SMC-ABC")
DRAWS = 10_000
Draw = Callable[[Tensor, int], Tensor]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="folder of the tasks")
    parser.add_argument("--tasks", default=",".join(TASKS))
    parser.add_argument("--budget", choices=BUDGETS, default="10k")
    parser.add_argument("--methods", default="npe", help="npe, fmpe, npse, nle, sbi; with commas between")
    parser.add_argument("--observations", type=int, default=10, help="the first so many of ten")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--settings", default="{}", help="of fit_conditional, as YAML: '{members: 1}'")
    parser.add_argument("--out", type=Path, default=Path("runs/c2st.jsonl"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    done = read(options.out)
    for name in options.tasks.split(","):
        seen = observations(options.data, name)[: options.observations]
        for method in options.methods.split(","):
            key = [name, options.budget, method, options.seed, options.settings]
            waiting = [n for n in range(len(seen)) if json.dumps([*key, n]) not in done]
            if not waiting:
                continue
            kept = options.out.with_suffix("") / "-".join(map(str, key))
            draw, seconds = fitted(TASKS[name], method, BUDGETS[options.budget], options.seed, options.settings, kept)
            for n in waiting:
                found = judged(draw, seen[n], n)
                tell(f"{name}, {method}, observation {n + 1}: {found:.4f} (fit {seconds:.0f} s)")
                record = {"key": [*key, n], "c2st": found, "seconds": seconds}
                options.out.parent.mkdir(parents=True, exist_ok=True)
                with options.out.open("a") as file:
                    print(json.dumps(record), file=file)
    show(options)


def fitted(task: Task, method: str, budget: int, seed: int, settings: str, kept: Path) -> tuple[Draw, float]:
    """What draws posteriors, and the seconds that it took to learn them, simulations left out."""
    seconds = kept / "seconds.txt"
    if seconds.exists():
        return drawn_by(load_conditional(kept, task.prior)), float(seconds.read_text())
    torch.manual_seed(seed)
    theta = task.prior.sample((budget,))
    x = task.simulate(theta)
    began = time.perf_counter()
    if method == "sbi":
        draw = peer(task, theta, x, seed)
    else:
        given: dict[str, Any] = from_yaml(settings)
        found = fit_conditional((theta, x), prior=task.prior, method=method, seed=seed, **given)
        draw = drawn_by(found)
    took = time.perf_counter() - began
    if method != "sbi":
        found.save(kept)
        seconds.write_text(str(took))
    return draw, took


def drawn_by(found: ConditionalPosterior) -> Draw:
    def draw(observation: Tensor, number: int) -> Tensor:
        return found.posterior(observation).sample(DRAWS, seed=number)

    return draw


def peer(task: Task, theta: Tensor, x: Tensor, seed: int) -> Draw:
    """NPE of the package sbi, as it comes."""
    from sbi.inference import NPE

    torch.manual_seed(seed)
    inference = NPE(prior=task.prior, show_progress_bars=False)
    inference.append_simulations(theta, x).train()
    posterior = inference.build_posterior()

    def draw(observation: Tensor, number: int) -> Tensor:
        torch.manual_seed(number)
        return posterior.sample((DRAWS,), x=observation, show_progress_bars=False)

    return draw


def judged(draw: Draw, seen: Observation, number: int) -> float:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return c2st(seen.reference, draw(seen.x, number))


def read(out: Path) -> dict[str, dict[str, Any]]:
    """What is done, by its key."""
    if not out.exists():
        return {}
    records = [json.loads(line) for line in out.read_text().splitlines()]
    return {json.dumps(record["key"]): record for record in records}


def show(options: argparse.Namespace) -> None:
    """Means over observations, and the best published method that is not sequential."""
    methods = options.methods.split(",")
    title = f"C2ST, {options.budget} simulations, mean of {options.observations} observations (0.5 is perfect)"
    table = Table("task", *methods, "published NPE", "best published", "of", title=title)
    done = read(options.out)
    for name in options.tasks.split(","):
        row = []
        for method in methods:
            key = [name, options.budget, method, options.seed, options.settings]
            records = [done[json.dumps([*key, n])] for n in range(options.observations)]
            values = np.array([record["c2st"] for record in records])
            row.append(f"{values.mean():.3f} ({records[0]['seconds']:.0f} s)")
        theirs = published(options.data, name, options.budget)
        best = min((method for method in theirs if method not in SEQUENTIAL), key=theirs.__getitem__)
        table.add_row(name, *row, f"{theirs['NPE']:.3f}", f"{theirs[best]:.3f}", best)
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
