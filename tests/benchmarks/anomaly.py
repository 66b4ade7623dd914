"""Anomaly detection on labelled data, beside published figures: how well scores rank, and whether p-values hold.

    python tests/benchmarks/anomaly.py tables DATA         # one-class AUROC and calibration on DATA/adbench/*.npz
    python tests/benchmarks/anomaly.py series DATA         # DATA/nab: windows of series, false alarms a week
    python tests/benchmarks/anomaly.py fields DATA         # DATA/climate: El Nino winters, drift of climate runs
    python tests/benchmarks/anomaly.py attributions DATA   # all of these, changed: does what was changed get it
    python tests/benchmarks/anomaly.py throughput          # a million rows of 32 numbers through `sciflow detect`

What is done is kept in ``--out`` (a folder), and left out when the same command is run again. ``tables`` follows the
protocol of Livernoche et al., arXiv:2305.18593: fewer than 1,000 rows are drawn with replacement to 1,000, of more than
50,000 so many are taken; the first half of the normal rows is trained on, the others and all anomalies are told apart.
``--scores all`` judges single scores beside the default: those of a family by one density, trained once a table.
"""

from __future__ import annotations

import argparse
import csv
import importlib
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
from scipy.stats import ks_2samp
from sklearn.metrics import roc_auc_score

import sciflow as sf
from sciflow.anomaly import Calibration, decide
from sciflow.density import Density

# What single scores stand on: a density of a family, or the rows.
FAMILIES = {
    "nsf": ("nll", "typicality", "latent_norm", "local_dimension"),
    "diffusion": ("elbo", "denoising_error", "score_norms"),
    "rows": ("diffusion_time", "local_outlier_factor", "subspace_distance", "mean_distance"),
}
FAMILY_OF = {score: family for family, scores in FAMILIES.items() for score in scores}
SCORES = ("default", *FAMILY_OF)
RESAMPLINGS = 200


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["tables", "series", "fields", "attributions", "throughput"])
    parser.add_argument("data", type=Path, nargs="?", help="folder that holds adbench/, nab/ and climate/")
    parser.add_argument("--out", type=Path, default=Path("runs/anomaly-benchmark"), help="what is done is kept here")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--scores", default="default", help=f"with commas between: {', '.join(SCORES)}; or all")
    parser.add_argument("--sets", help="some of the tables, with commas between; all by default")
    parser.add_argument("--ways", default="default", help="of series, with commas between; or all")
    parser.add_argument("--rows", type=int, default=1_000_000, help="of throughput")
    parser.add_argument("--rounds", type=int, default=3, help="of throughput")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    arguments.out.mkdir(parents=True, exist_ok=True)
    if arguments.what == "tables":
        tables(arguments)
    else:
        module = importlib.import_module(f"anomaly_{arguments.what}")
        getattr(module, arguments.what)(arguments)


def tables(arguments: argparse.Namespace) -> None:
    """AUROC of every score on every table, and how well p-values and false-discovery rates hold."""
    kept = Kept(arguments.out / "tables.jsonl")
    scores = SCORES if arguments.scores == "all" else arguments.scores.split(",")
    files = sorted((arguments.data / "adbench").glob("*.npz"))
    wanted = None if arguments.sets is None else arguments.sets.split(",")
    names = [name for name in map(set_name, files) if wanted is None or name in wanted]
    for seed in range(arguments.seeds):
        for file in files:
            trained: dict[str, Density] = {}
            for score in scores:
                key = {"set": set_name(file), "seed": seed, "score": score}
                if key["set"] in names and not kept.has(key):
                    kept.add(key, one_table(file, seed, score, trained))
                    tell(f"{key} {kept.of(key)}")
    published = {
        row["dataset"]: row for row in csv.DictReader((arguments.data / "adbench/published_one_class_auroc.csv").open())
    }
    show(kept, scores, names, published, arguments.seeds)


def one_table(file: Path, seed: int, score: str, trained: dict[str, Density]) -> dict[str, float]:
    """Fit on normal rows, score the others, and judge the order; of the default also how p-values hold.

    Args:
        file: The table.
        seed: Of the protocol, and of the detector.
        score: One of ``SCORES``.
        trained: Densities by family, trained on this table with this seed; what is trained here is added.
    """
    train, test, label = protocol(file, seed)
    began = time.perf_counter()
    detector = fitted(train, score, seed, trained)
    between = time.perf_counter()
    values = detector.decision_function(test)
    found = {"auroc": auroc(label, values)}
    found |= {"seconds_to_fit": between - began, "seconds_to_score": time.perf_counter() - between}
    if score != "default":
        return found
    moved = detector.drift(detector.predict(test[label == 0])).verdict == "moved"
    # In the order of the file the second half of the normal rows is often unlike the first: of that no p-value can
    # know. Whether p-values hold is looked at with the halves put together at random.
    random = np.random.default_rng(seed)
    normal = random.permutation(np.concatenate([train, test[label == 0]]))
    detector = fitted(normal[: len(train)], score, seed, {})
    held = calibrated(detector, normal[len(train) :], test[label == 1], random)
    return found | {"moved": float(moved), **held}


def fitted(rows: np.ndarray, score: str, seed: int, trained: dict[str, Density]) -> sf.Detector:
    wanted = {"default": None, "elbo": "nll"}.get(score, score)
    family = FAMILY_OF.get(score, "rows")
    density = None if family == "rows" else trained.get(family, family)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of grids and copies, which these tables are full of
        detector = sf.Detector(wanted, density=density, seed=seed).fit(rows, progress=False)
    if family != "rows":
        (trained[family],) = detector.fitted_score.densities
    return detector


def auroc(label: np.ndarray, values: np.ndarray) -> float:
    """In percent; of rows so far out that their score is infinite, all count as equally odd."""
    return 100 * float(roc_auc_score(label, np.nan_to_num(values, posinf=np.finfo(np.float64).max)))


def calibrated(detector: sf.Detector, normal: np.ndarray, odd: np.ndarray, random: np.random.Generator) -> dict:
    """Whether p-values of new normal rows are uniform, and what share of the rows flagged at FDR 0.1 is normal."""
    held, new = detector.calibration.scores, detector.decision_function(normal)
    found, both = detector.decision_function(odd), np.concatenate([held, new])
    false, power = [], []
    for _ in range(RESAMPLINGS):
        # Rows that calibrate and new ones are one kind: any of them may be which. Nine of these to one that is odd.
        order = random.permutation(both)
        calibration, some = Calibration.of(order[: len(held)]), order[len(held) :][:900]
        alarms = random.choice(found, max(1, len(some) // 9))
        flag = decide(calibration.p_values(np.concatenate([some, alarms])).p_value, fdr=0.1).flag
        false.append(flag[: len(some)].sum() / max(1, flag.sum()))
        power.append(flag[len(some) :].mean())
    error = float(np.std(false) / math.sqrt(RESAMPLINGS))
    uniform = float(ks_2samp(held, new).pvalue)
    return {"uniform": uniform, "fdr": float(np.mean(false)), "fdr_error": error, "power": float(np.mean(power))}


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
    if "default" not in scores:
        return
    columns = ("set", "KS p, by seed", "FDR at 0.1", "share found", "file moved", "fit, score [s]")
    held = Table(*columns, title="p-values of normal rows at random; score: default")
    for name in names:
        rows = list(kept.rows(set=name, score="default"))
        of = {key: np.array([row[key] for row in rows]) for key in rows[0] if key not in ("set", "score")}
        held.add_row(
            name,
            " ".join(f"{p:.2f}" for p in of["uniform"]),
            f"{of['fdr'].mean():.3f} +- {np.sqrt((of['fdr_error'] ** 2).sum()) / len(rows):.3f}",
            f"{of['power'].mean():.2f}",
            f"{of['moved'].mean():.1f}",
            f"{of['seconds_to_fit'].mean():.1f}, {of['seconds_to_score'].mean():.2f}",
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
