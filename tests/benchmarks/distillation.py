"""How close students come to held-out data in 1, 2 and 4 evaluations, beside their teachers, and how fast they draw.

    python tests/benchmarks/distillation.py
    python tests/benchmarks/distillation.py --sets checkerboard,rings --methods shortcut --teachers kept

Two toys in the plane and a table of measurements (skipped where it cannot be had). Distances are between draws and as
many held-out rows, in deviations of the data: accuracy is that of a perceptron that is to tell them apart on rows it
was not trained on (0.5: it cannot), and the energy distance is 2 E|X - Y| - E|X - X'| - E|Y - Y'|, which may fall below
0 by chance. "floor" are training rows in place of draws. One thread. "faster" is the time of a draw against the
teacher's default (20 steps of UniPC, as many evaluations), and against 50 steps of Heun's method (99).
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from beside import beside
from rich.console import Console
from rich.table import Table
from sklearn.exceptions import ConvergenceWarning
from sklearn.neural_network import MLPClassifier

import sciflow as sf

TOYS, TABLE = ("checkerboard", "rings"), "power-plant"
METHODS = ("progressive", "consistency", "consistency-training", "shortcut")
ROWS, HELD_OUT = 100_000, 8_000
NETWORK = {"mlp": {"hidden_features": (128, 128, 128)}}
TEACHER = {"max_steps": 4000, "batch_size": 1024, "validate_every": 400}
STUDENT = {"batch_size": 512, "patience": 1000}
EVALUATIONS = (1, 2, 4)
TIMED = 2_000
DEFAULT = {"sampler": "unipc3", "num_steps": 20, "progress": False}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sets", default=",".join((*TOYS, TABLE)), help="with commas between them (%(default)s)")
    parser.add_argument("--methods", default=",".join(METHODS), help="the same (%(default)s)")
    parser.add_argument("--steps", type=int, default=1500, help="of training, over all stages (%(default)s)")
    parser.add_argument("--teachers", type=Path, help="folder where teachers are kept, and found")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name in options.sets.split(","):
        try:
            train, held_out = rows_of(name)
        except Exception as error:
            if name in TOYS:
                raise
            print(f"{name}: skipped: {error}", file=sys.stderr)
            continue
        compare(name, train, held_out, options.methods.split(","), options.steps, options.teachers)


def rows_of(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Rows to train on, and rows held out."""
    if name in TOYS:
        toy = beside("datasets/toys").TOYS[name]
        return toy.sample(ROWS, seed=0), toy.sample(HELD_OUT, seed=1_000_000)
    table = beside("datasets/uci").load(name)
    rows = np.random.default_rng(0).permutation(np.hstack((table.features, table.target)))
    half = len(rows) // 2
    return rows[:half], rows[half:]


def compare(
    name: str, train: np.ndarray, held_out: np.ndarray, methods: list[str], steps: int, kept: Path | None
) -> None:
    """Print the table of one set."""
    table = Table(
        "model", "evaluations", "accuracy", "energy distance", "faster", "than Heun", "trained in", title=name
    )
    n = len(held_out)
    began = time.perf_counter()
    teacher, found = teacher_of(name, train, kept)
    seconds = "kept" if found else f"{time.perf_counter() - began:.0f} s"
    heun = {"sampler": "edm", "num_steps": 50, "progress": False}

    def add(model: str, evaluations: str, trained: str, draw: Callable[[int], torch.Tensor]) -> None:
        draws = draw(n).numpy()
        accuracy, distance = told_apart(draws, held_out), energy_distance(draws, held_out)
        mine, default, slow = seconds_of(
            lambda: draw(TIMED),
            lambda: teacher.sample(TIMED, seed=0, **DEFAULT),
            lambda: teacher.sample(TIMED, seed=0, **heun),
        )
        row = (
            model,
            evaluations,
            f"{accuracy:.3f}",
            f"{distance:.5f}",
            f"{default / mine:.1f} x",
            f"{slow / mine:.1f} x",
        )
        table.add_row(*row, trained)
        print(f"{name}:", *row, file=sys.stderr, flush=True)

    again = np.random.default_rng(1).choice(train, n, replace=n > len(train))
    table.add_row("floor", "", f"{told_apart(again, held_out):.3f}", f"{energy_distance(again, held_out):.5f}")
    add("teacher", "20", seconds, lambda count: teacher.sample(count, seed=1, **DEFAULT))
    add("teacher, Heun", "99", "", lambda count: teacher.sample(count, seed=1, **heun))
    for method in methods:
        asked = EVALUATIONS if method == "progressive" else (2,)
        for num_steps in asked:
            began = time.perf_counter()
            settings = {**STUDENT, "max_steps": steps, "validate_every": steps}
            if method == "progressive":
                stages = len(sf.diffusion.distillation.progressive.Progressive.stages(num_steps))
                settings |= {"max_steps": steps // stages, "validate_every": steps // stages}
            student = sf.diffusion.distill(teacher, train, method, num_steps, progress=False, **settings)
            trained = f"{time.perf_counter() - began:.0f} s"
            for evaluations in (num_steps,) if method == "progressive" else EVALUATIONS:
                draw = partial(student.sample, seed=1, num_steps=evaluations)
                add(method, str(evaluations), trained, draw)
    Console(width=120).print(table)


def teacher_of(name: str, train: np.ndarray, kept: Path | None) -> tuple[sf.diffusion.Diffusion, bool]:
    """The teacher of a set, and whether it was there already."""
    if kept is not None and (kept / name).exists():
        return sf.load(kept / name), True
    teacher = sf.diffusion.Diffusion(train.shape[1:], network=NETWORK, seed=0)
    sf.fit(teacher, train, progress=False, **TEACHER)
    if kept is not None:
        teacher.save(kept / name)
    return teacher, False


def told_apart(draws: np.ndarray, held_out: np.ndarray) -> float:
    """Accuracy of a perceptron on rows that it was not trained on, half of all."""
    scale = held_out.std(0)
    both = np.concatenate((draws, held_out)) / scale - held_out.mean(0) / scale
    label = np.repeat([0, 1], [len(draws), len(held_out)])
    order = np.random.default_rng(0).permutation(len(both))
    train, test = np.array_split(order, 2)
    classifier = MLPClassifier((64, 64), max_iter=60, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        classifier.fit(both[train], label[train])
    return float(classifier.score(both[test], label[test]))


def energy_distance(draws: np.ndarray, held_out: np.ndarray) -> float:
    """Unbiased estimate of the energy distance, in deviations of the held-out rows."""
    x, y = (torch.from_numpy(rows / held_out.std(0)).double() for rows in (draws, held_out))
    within = [float(torch.cdist(rows, rows).sum()) / (len(rows) * (len(rows) - 1)) for rows in (x, y)]
    return 2 * float(torch.cdist(x, y).mean()) - sum(within)


def seconds_of(*draws: Callable[[], object]) -> list[float]:
    """The least of three times of each, in turn: what else the machine does then slows all of them."""
    times = np.zeros((3, len(draws)))
    for row in times:
        for place, draw in enumerate(draws):
            began = time.perf_counter()
            draw()
            row[place] = time.perf_counter() - began
    return times.min(0).tolist()


if __name__ == "__main__":
    main()
