"""Anomaly detection on labelled data, beside published figures: how well scores rank, and whether p-values hold.

    python tests/benchmarks/anomaly.py tables DATA         # one-class AUROC and calibration on DATA/adbench/*.npz
    python tests/benchmarks/anomaly.py series DATA         # DATA/nab: windows of series, false alarms a week
    python tests/benchmarks/anomaly.py fields DATA         # DATA/climate: El Nino winters, drift of climate runs
    python tests/benchmarks/anomaly.py throughput          # a million rows of 32 numbers through `sciflow detect`

What is done is kept in ``--out`` (a folder), and left out when the same command is run again. ``tables`` follows the
protocol of Livernoche et al., arXiv:2305.18593: fewer than 1,000 rows are drawn with replacement to 1,000, of more than
50,000 so many are taken; the first half of the normal rows is trained on, the others and all anomalies are told apart.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from beside import tell
from rich.console import Console
from rich.table import Table
from sklearn.metrics import roc_auc_score

import sciflow as sf

SCORES = (
    "default",
    "nll",
    "typicality",
    "latent_norm",
    "local_dimension",
    "denoising_error",
    "score_norms",
    "elbo",
    "diffusion_time",
)
RESAMPLINGS = 200


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["tables", "series", "fields", "throughput"])
    parser.add_argument("data", type=Path, nargs="?", help="folder that holds adbench/, nab/ and climate/")
    parser.add_argument("--out", type=Path, default=Path("runs/anomaly-benchmark"), help="what is done is kept here")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--scores", default="default", help=f"with commas between: {', '.join(SCORES)}; or all")
    parser.add_argument("--sets", help="some of the tables, with commas between; all by default")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    arguments.out.mkdir(parents=True, exist_ok=True)
    {"tables": tables}[arguments.what](arguments)


def tables(arguments: argparse.Namespace) -> None:
    """AUROC of every score on every table, and how well p-values and false-discovery rates hold."""
    kept = Kept(arguments.out / "tables.jsonl")
    scores = SCORES if arguments.scores == "all" else arguments.scores.split(",")
    files = sorted((arguments.data / "adbench").glob("*.npz"))
    wanted = None if arguments.sets is None else arguments.sets.split(",")
    names = [name for name in map(set_name, files) if wanted is None or name in wanted]
    for seed in range(arguments.seeds):
        for file in files:
            for score in scores:
                key = {"set": set_name(file), "seed": seed, "score": score}
                if key["set"] in names and not kept.has(key):
                    kept.add(key, one_table(file, seed, score))
                    tell(f"{key} {kept.of(key)}")
    published = {
        row["dataset"]: row for row in csv.DictReader((arguments.data / "adbench/published_one_class_auroc.csv").open())
    }
    show(kept, scores, names, published, arguments.seeds)


def one_table(file: Path, seed: int, score: str) -> dict[str, float]:
    """Fit on normal rows, score the others, and judge ranks, p-values and flags."""
    train, test, label = protocol(file, seed)
    began = time.perf_counter()
    wanted = {"default": None, "elbo": {"nll": {}}}.get(score, score)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of grids and copies, which these tables are full of
        detector = sf.Detector(wanted, density={"name": "diffusion"} if score == "elbo" else None, seed=seed)
        detector.fit(train, progress=False)
    fitted = time.perf_counter()
    values = detector.decision_function(test)
    seconds = {"seconds_to_fit": fitted - began, "seconds_to_score": time.perf_counter() - fitted}
    auroc = 100 * roc_auc_score(label, values)
    return {"auroc": auroc, **seconds, **calibrated(detector.calibration, values, label, seed)}


def calibrated(calibration: object, values: np.ndarray, label: np.ndarray, seed: int) -> dict[str, float]:
    """Whether p-values of normal rows are uniform, and what share of the rows flagged at FDR 0.1 is normal."""
    from scipy.stats import ks_2samp

    from sciflow.anomaly.decision import decide

    p_values = calibration.p_values(values).p_value
    normal, odd = p_values[label == 0], p_values[label == 1]
    random = np.random.default_rng(seed)
    uniform = ks_2samp(calibration.scores, values[label == 0]).pvalue
    shares = []
    for _ in range(RESAMPLINGS):
        # Nine normal rows to one odd row: with as many odd rows as the tables have there would be little to control.
        some = random.choice(normal, min(len(normal), 900), replace=False)
        found = random.choice(odd, max(1, len(some) // 9))
        flag = decide(np.concatenate([some, found]), fdr=0.1).flag
        shares.append(flag[: len(some)].sum() / max(1, flag.sum()))
    return {
        "uniform": float(uniform),
        "fdr": float(np.mean(shares)),
        "fdr_error": float(np.std(shares) / math.sqrt(RESAMPLINGS)),
    }


def protocol(file: Path, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Normal rows to train on, rows to be told apart, and which of these are anomalies."""
    with np.load(file) as archive:
        x, y = archive["X"].astype(np.float64), archive["y"].astype(int)
    random = np.random.default_rng(seed)
    if len(x) < 1000:
        some = random.choice(len(x), 1000, replace=True)
    elif len(x) > 50_000:
        some = random.choice(len(x), 50_000, replace=False)
    else:
        some = np.arange(len(x))
    x, y = x[some], y[some]
    normal, odd = np.flatnonzero(y == 0), np.flatnonzero(y == 1)
    half = round(len(normal) / 2)
    train, test = normal[:half], np.concatenate([normal[half:], odd])
    mean, std = x[train].mean(0), x[train].std(0)
    standard = (x - mean) / np.where(std > 0, std, 1)
    return standard[train], standard[test], y[test]


def show(kept: Kept, scores: list[str], names: list[str], published: dict[str, dict], seeds: int) -> None:
    best = ("DTE-NP", "KNN", "ICL")
    table = Table("set", *scores, *best, "best of 26", title=f"one-class AUROC in percent, mean of {seeds} seeds")
    columns: dict[str, list[float]] = {}
    for name in names:
        row = {score: kept.mean("auroc", set=name, score=score) for score in scores}
        of_paper = published[name]
        row |= {method: float(of_paper[method]) for method in best}
        row["best of 26"] = max(float(value) for method, value in of_paper.items() if method != "dataset")
        for method, value in row.items():
            columns.setdefault(method, []).append(value)
        table.add_row(name, *(f"{value:.2f}" for value in row.values()))
    table.add_section()
    table.add_row("mean", *(f"{np.mean(values):.2f}" for values in columns.values()))
    Console(width=40 + 12 * len(columns)).print(table)
    held = Table(
        "set",
        "p-values uniform: KS p, by seed",
        "FDR at 0.1",
        "seconds to fit",
        "to score",
        title=f"score: {scores[0]}",
    )
    for name in names:
        rows = list(kept.rows(set=name, score=scores[0]))
        shares = np.array([row["fdr"] for row in rows])
        held.add_row(
            name,
            " ".join(f"{row['uniform']:.3f}" for row in rows),
            f"{shares.mean():.3f} +- {shares.std() / math.sqrt(len(shares)):.3f}",
            f"{np.mean([row['seconds_to_fit'] for row in rows]):.1f}",
            f"{np.mean([row['seconds_to_score'] for row in rows]):.2f}",
        )
    Console(width=120).print(held)


def set_name(file: Path) -> str:
    return file.stem.partition("_")[2].lower()


class Kept:
    """Results in a file of JSON lines, each written as soon as it is there."""

    def __init__(self, file: Path) -> None:
        self.file = file
        lines = file.read_text().splitlines() if file.exists() else []
        self.found = [json.loads(line) for line in lines]

    def has(self, key: dict) -> bool:
        return any(True for _ in self.rows(**key))

    def of(self, key: dict) -> dict:
        return next(self.rows(**key))

    def add(self, key: dict, result: dict) -> None:
        self.found.append(key | result)
        with self.file.open("a") as stream:
            stream.write(json.dumps(self.found[-1]) + "\n")

    def rows(self, **key: object) -> Iterator[dict]:
        return (row for row in self.found if all(row[name] == value for name, value in key.items()))

    def mean(self, what: str, **key: object) -> float:
        return float(np.mean([row[what] for row in self.rows(**key)]))


if __name__ == "__main__":
    main()
