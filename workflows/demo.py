"""The main job in two minutes: shard a table, train a flow on Ray, score every row, and look at what came out.

The data come with scikit-learn: 569 breast biopsies of 30 measurements each. The flow is trained on benign ones alone;
malignant ones are the anomalies, which it has never seen. Run by ``make demo``.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import xarray as xr
from rich.console import Console
from rich.table import Table as TerminalTable
from sklearn.datasets import load_breast_cancer
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import NearestNeighbors

import sciflow as sf
from sciflow.report import Section, Table, corner, log_prob_histogram, loss_curve, write_page
from sciflow.scoring.distributed import score_on_ray
from sciflow.training.distributed import connected

RUNS = Path("runs")
FOLDER = RUNS / "demo"
STORE = RUNS / "demo-benign.zarr"
SEED = 0
NUM_WORKERS = 2
TRAIN, VALIDATION, TEST = 0, 1, 2

WORKFLOW = {
    "name": "demo",
    "data": {"store": str(STORE)},
    "model": {"name": "nsf"},
    "training": {"seed": SEED},
    "cluster": {"num_workers": NUM_WORKERS},
}


def main() -> None:
    torch.set_num_threads(1)
    console = Console()
    seconds: dict[str, float] = {}
    benign, malignant = biopsies()
    console.print(
        f"{len(benign)} benign biopsies to learn from, {len(malignant)} malignant ones to find; seed {SEED}\n"
    )

    with stage("shard", seconds, console):
        store = sf.shard(benign, STORE, split=(0.7, 0.1, 0.2), shard_rows=64, seed=SEED, overwrite=True)
    with stage("start Ray", seconds, console):
        cluster = connected(None, num_cpus=NUM_WORKERS)
        cluster.__enter__()
    try:
        with stage("train", seconds, console):
            run = sf.train(WORKFLOW, runs=RUNS, overwrite=True)
        with stage("score", seconds, console):
            score_on_ray(FOLDER, store.path, FOLDER / "scores.zarr", overwrite=True)
    finally:
        cluster.__exit__(None, None, None)
    scores = xr.open_zarr(FOLDER / "scores.zarr", consolidated=False).load()
    held_out = scores.log_prob.values[scores.split.values == TEST]
    anomalous = sf.score(run.density, malignant, progress=False).log_prob.values

    rows = benign.to_numpy()
    split = scores.split.values
    learnt, test = rows[split == TRAIN], rows[split == TEST]
    results = {
        "neural spline flow": (held_out, auroc(-held_out, -anomalous)),
        "full-covariance Gaussian": gaussian(learnt, test, malignant.to_numpy()),
        "5 nearest neighbours": (None, nearest_neighbours(learnt, test, malignant.to_numpy())),
    }
    table = Table(
        ("method", "held-out log p [nats]", "AUROC, malignant against benign"),
        [
            (name, "-" if log_prob is None else mean_and_error(log_prob), f"{area:.3f}")
            for name, (log_prob, area) in results.items()
        ],
    )
    show(console, table, "results")
    show(console, Table(("stage", "seconds"), [(name, f"{spent:.1f}") for name, spent in seconds.items()]), "time")
    page = report(run, table, seconds, held_out, anomalous, test, list(benign.columns))
    console.print(f"\nreport: {page}")
    console.print(
        "\nTo try next, after source .venv/bin/activate:\n"
        f"  sciflow inspect {FOLDER}\n"
        f"  sciflow sample {FOLDER} --n 1000 --out samples.zarr\n"
        "  sciflow shard YOUR.csv yours.zarr\n"
        f"  sciflow train {FOLDER}/workflow.yaml name=mine data.store=yours.zarr",
        highlight=False,
        soft_wrap=True,
    )


def biopsies() -> tuple[pd.DataFrame, pd.DataFrame]:
    """Benign and malignant rows."""
    data = load_breast_cancer(as_frame=True)
    is_benign = data.target == 1
    return data.data[is_benign].reset_index(drop=True), data.data[~is_benign].reset_index(drop=True)


def gaussian(learnt: np.ndarray, test: np.ndarray, anomalies: np.ndarray) -> tuple[np.ndarray, float]:
    """Log p of held-out rows under a Gaussian with full covariance, and how well it finds the anomalies."""
    mean, scale = learnt.mean(0), learnt.std(0)
    factor = np.linalg.cholesky(np.cov(((learnt - mean) / scale).T) + 1e-9 * np.eye(learnt.shape[1]))

    def log_prob(rows: np.ndarray) -> np.ndarray:
        whitened = np.linalg.solve(factor, ((rows - mean) / scale).T)
        log_det = np.log(np.diag(factor)).sum() + np.log(scale).sum()
        return np.asarray(-0.5 * (whitened**2).sum(0) - log_det - 0.5 * len(mean) * math.log(2 * math.pi))

    held_out = log_prob(test)
    return held_out, auroc(-held_out, -log_prob(anomalies))


def nearest_neighbours(learnt: np.ndarray, test: np.ndarray, anomalies: np.ndarray, k: int = 5) -> float:
    """How well the distance to the k-th neighbour finds the anomalies."""
    mean, scale = learnt.mean(0), learnt.std(0)
    index = NearestNeighbors(n_neighbors=k).fit((learnt - mean) / scale)
    distance = [index.kneighbors((rows - mean) / scale)[0][:, -1] for rows in (test, anomalies)]
    return auroc(*distance)


def auroc(normal: np.ndarray, anomalous: np.ndarray) -> float:
    """Chance that an anomaly scores higher than a normal row."""
    labels = np.r_[np.zeros(len(normal)), np.ones(len(anomalous))]
    return float(roc_auc_score(labels, np.r_[normal, anomalous]))


def mean_and_error(log_prob: np.ndarray) -> str:
    """Mean with its standard error."""
    return f"{log_prob.mean():.2f} +- {log_prob.std(ddof=1) / math.sqrt(len(log_prob)):.2f}"


def report(
    run: sf.Run,
    table: Table,
    seconds: dict[str, float],
    held_out: np.ndarray,
    anomalous: np.ndarray,
    test: np.ndarray,
    names: list[str],
) -> Path:
    """Write the page with the pictures."""
    fit = run.fit()
    samples = fit.density.sample(1000, seed=SEED).numpy()
    sections = [
        Section("Result", "Trained on benign biopsies alone; malignant ones are the anomalies.", table),
        Section(
            "Training", f"{fit!r}; the weights of step {fit.best_step} are kept.", figures=(loss_curve(fit.history),)
        ),
        Section(
            "Log p",
            "Of benign biopsies that were held out, and of malignant ones.",
            figures=(log_prob_histogram({"benign, held out": held_out, "malignant": anomalous}),),
        ),
        Section("Draws against held-out data", "In the data's own units.", figures=(corner(test, samples, names),)),
        Section("Time", table={name: f"{spent:.1f} s" for name, spent in seconds.items()}),
    ]
    return write_page(run.folder / "report.html", "sciflow demo: finding malignant biopsies", sections)


def show(console: Console, table: Table, title: str) -> None:
    """Print a table to the terminal."""
    printed = TerminalTable(title=title, title_justify="left")
    for place, column in enumerate(table.columns):
        printed.add_column(column, justify="right" if place else "left")
    for row in table.rows:
        printed.add_row(*map(str, row))
    console.print(printed)


@contextmanager
def stage(name: str, seconds: dict[str, float], console: Console) -> Iterator[None]:
    """Time a stage, and say that it goes on."""
    began = time.monotonic()
    with console.status(f"{name} ..."):
        yield
    seconds[name] = time.monotonic() - began


if __name__ == "__main__":
    main()
