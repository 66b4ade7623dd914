"""Whether what was changed in a row gets the attribution: the truth is known, since we change it.

Rows that a detector was not fitted on are changed: of tables, one to three columns become those of another row; windows
of series get a bump of 4 to 8 hours, and fields a patch of 2 to 4 by 2 to 4 cells, flat or round, of 1.5 to 3.5
standard deviations. Those that score above nine tenths of normal rows are explained, by as small an edit as explains
the row, and by each element by itself at its usual values.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from anomaly import Kept
from anomaly_series import SERIES, read
from beside import tell
from rich.console import Console
from rich.table import Table
from sklearn.metrics import roc_auc_score

import sciflow as sf
from sciflow.anomaly.attribution import _by_replacement, attribution

# Tables of 100 rows and more, and of 5 to 40 columns: what the default detector scores by an ensemble.
TABLES = (
    "2_annthyroid",
    "4_breastw",
    "6_cardio",
    "19_landsat",
    "22_magic.gamma",
    "29_Pima",
    "30_satellite",
    "40_vowels",
    "43_WDBC",
)
MOST_FITTED, MOST_CHANGED, MOST_EXPLAINED = 5000, 1500, 100


def attributions(arguments: argparse.Namespace) -> None:
    """Both rules on all data."""
    kept = Kept(arguments.out / "attributions.jsonl")
    for name, normal, others in _data(arguments.data):
        if not kept.has({"data": name}):
            kept.add({"data": name}, _one(normal, others, is_table=name in TABLES))
            tell(name)
    head = ("data", "rows", "elements", "share inside", "AUROC", "scores a row", "share, one by one", "AUROC", "scores")
    table = Table(*head, title="attribution of what was changed: as little as explains it, and one by one")
    for found in kept.rows():
        cells = (*found["edits"], *found["one by one"])
        shown = [f"{cell:.2f}" if k % 3 < 2 else f"{cell:.0f}" for k, cell in enumerate(cells)]
        table.add_row(found["data"], str(found["rows"]), str(found["elements"]), *shown)
    Console(width=130).print(table)


def _data(folder: Path) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Name, normal rows to fit on, and others."""
    random = np.random.default_rng(0)
    for name in TABLES:
        content = np.load(folder / "adbench" / f"{name}.npz")
        rows = random.permutation(content["X"][content["y"].ravel() == 0])
        yield name, rows[: int(0.7 * len(rows))], rows[int(0.7 * len(rows)) :]
    for name in SERIES:
        values, windows = read(folder / "nab", name)
        for start, stop in windows:
            values[start:stop] = np.nan
        rows = np.lib.stride_tricks.sliding_window_view(values.to_numpy(), 24)
        rows = rows[np.isfinite(rows).all(1)]
        cut = int(0.7 * len(rows))
        yield name, rows[: cut - 24], rows[cut:]
    for name, variable, shape in (
        ("ostia_monthly", "surface_temperature", (6, 8)),
        ("era5-2mt-2019-03-uk", "t2m", (8, 8)),
    ):
        with xr.open_dataset(folder / "climate" / f"{name}.nc") as dataset:
            values = dataset[variable].values.astype(float)
        early, late = values[: int(0.7 * len(values))], values[int(0.75 * len(values)) :]
        yield name, _patches(early, shape, random), _patches(late, shape, random)


def _patches(values: np.ndarray, shape: tuple[int, int], random: np.random.Generator) -> np.ndarray:
    found = np.lib.stride_tricks.sliding_window_view(values, shape, axis=(1, 2)).reshape(-1, *shape)
    found = found[np.isfinite(found).all((1, 2))]
    return found[random.permutation(len(found))[:MOST_FITTED]]


def _one(normal: np.ndarray, others: np.ndarray, is_table: bool) -> dict[str, Any]:
    """Rows, elements of one, and of each rule the share inside, the AUROC of elements, and how many scores it took."""
    random = np.random.default_rng(1)
    normal = normal[random.permutation(len(normal))[:MOST_FITTED]]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        detector = sf.Detector().fit(normal, progress=False)
    before = others[random.integers(0, len(others), MOST_CHANGED)]
    changed, inside = (_with_values_of_others if is_table else _with_bumps)(before, random)
    usual = np.quantile(detector.decision_function(others), [0.8, 0.9])
    taken = (detector.decision_function(changed) > usual[1]) & (detector.decision_function(before) < usual[0])
    taken = np.flatnonzero(taken & inside.any(tuple(range(1, inside.ndim))))[:MOST_EXPLAINED]
    fitted = detector._fitted
    rows, inside = torch.as_tensor(changed[taken], dtype=fitted.typical.dtype), inside[taken]
    asked = _Counted(fitted.score)
    ways = {
        "edits": lambda: attribution(asked, rows, None, fitted.typical, fitted.usual),
        "one by one": lambda: _by_replacement(asked, rows, None, fitted.typical),
    }
    found: dict[str, Any] = {"rows": len(rows), "elements": rows[0].numel()}
    for way, explain in ways.items():
        asked.number = 0
        why = explain().clamp_min(0).flatten(1).numpy()
        cells = list(zip(inside.reshape(len(rows), -1), why, strict=True))
        shares = [row[which].sum() / row.sum() if row.any() else which.mean() for which, row in cells]
        areas = [roc_auc_score(which, row) for which, row in cells if not which.all()]
        found[way] = [float(np.mean(shares)), float(np.mean(areas)), asked.number / len(rows)]
    return found


class _Counted:
    """A score that counts the rows that it is asked for."""

    def __init__(self, score: Any) -> None:
        self._score, self.number = score, 0

    def __call__(self, x: Any, context: Any = None) -> Any:
        self.number += len(x)
        return self._score(x, context)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._score, name)


def _with_values_of_others(rows: np.ndarray, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    changed = rows.copy()
    for row in changed:
        columns = random.choice(rows.shape[1], random.integers(1, 4), replace=False)
        row[columns] = rows[random.integers(len(rows)), columns]
    return changed, changed != rows


def _with_bumps(rows: np.ndarray, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    bumps = np.zeros(rows.shape)
    for bump in bumps:
        lengths = random.integers(4, 9, 1) if bump.ndim == 1 else random.integers(2, 5, 2)
        starts = [int(random.integers(0, size - length + 1)) for size, length in zip(bump.shape, lengths, strict=True)]
        sides = [
            np.ones(n) if random.random() < 0.5 else np.sin(np.pi * np.arange(1, n + 1) / (n + 1)) for n in lengths
        ]
        place = tuple(slice(start, start + length) for start, length in zip(starts, lengths, strict=True))
        height = random.uniform(1.5, 3.5) * random.choice([-1, 1])
        bump[place] = height * (sides[0] if bump.ndim == 1 else np.multiply.outer(*sides))
    # Of a field what varies inside it counts, and not its level.
    spread = rows.std(0).mean() if rows.ndim == 2 else (rows - rows.mean((1, 2), keepdims=True)).std()
    return rows + spread * bumps, bumps != 0
