"""Draws of real fields beside the data: power spectra, marginals and pictures; ``diffusion.py --fields`` runs it."""

from __future__ import annotations

import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from rich.console import Console
from rich.table import Table
from scipy.stats import ks_2samp

import sciflow as sf

NUM_DRAWS = 200
SHOWN = 5


@dataclass(frozen=True)
class Case:
    """A set of fields.

    Attributes:
        file: Its file.
        variable: What the fields are of.
        event: What one event is.
        sample: What is counted.
        network: Sizes of the U-Net.
        settings: Of ``sf.fit``.
        unit: Of the variable.
    """

    file: str
    variable: str
    event: dict[str, int | None]
    sample: list[str]
    network: dict[str, Any]
    settings: dict[str, Any]
    unit: str = "K"


CASES = {
    # Fifty winters, a sixth of the cells land: too few to learn more than the large scales of.
    "sst": Case(
        "sst_ndjfm_anom.nc",
        "sst",
        {"latitude": None, "longitude": None},
        ["time"],
        {"channels": 32, "dropout": 0.2, "grid_dims": 2},
        {"max_steps": 1200, "patience": 30},
    ),
    "era5": Case(
        "era5-2mt-2019-03-uk.nc",
        "t2m",
        {"latitude": 16, "longitude": 16},
        ["time"],
        {"channels": 32, "grid_dims": 2},
        {"max_steps": 2000, "patience": 30, "batch_size": 64},
    ),
}


def fields(folder: Path, out: Path, kept: list[str] | None = None) -> None:
    """Print how far the draws of every set are from held-out data, and the training data, too; and draw them."""
    table = Table(
        "set", "fields", "deviation / data's", "KS of values", "log spectrum off", "steps", "fit [s]", title="Fields"
    )
    for name, case in CASES.items():
        if kept is not None and name not in kept:
            continue
        path = folder / case.file
        if not path.exists():
            print(f"{path}: not at hand, left out", file=sys.stderr)
            continue
        with tempfile.TemporaryDirectory() as scratch, xr.open_dataset(path) as dataset:
            store, sea = _store(dataset, case, Path(scratch) / "store.zarr")
            model = sf.diffusion.Diffusion(store.event_shape, network={"unet": case.network}, seed=0)
            fit = sf.fit(model, store, seed=0, **case.settings)
            train, test = (rows[:].numpy() for rows in (store.train, store.test))
        draws = model.sample(NUM_DRAWS, seed=0).numpy()
        for kind, values in {"training data": train, "draws": draws}.items():
            spread, distance, off = compare(values, test, sea)
            told = (f"{fit.steps:,}", f"{fit.seconds:.0f}") if kind == "draws" else ("", "")
            table.add_row(name, kind, f"{spread:.2f}", f"{distance:.3f}", f"{off:.2f}", *told)
        print(draw(train, draws, sea, case.unit, out / f"fields_{name}.png"), file=sys.stderr)
    Console(width=120).print(table)


def _store(dataset: xr.Dataset, case: Case, path: Path) -> tuple[sf.Store, np.ndarray]:
    """The fields as a store, and which cells of an event have values; land is filled with the value 0."""
    missing = bool(dataset[case.variable].isnull().any())
    filling = {"missing": "fill", "fill_value": 0.0} if missing else {}
    store = sf.shard(
        dataset,
        path,
        variables=[case.variable],
        event=case.event,
        sample=case.sample,
        split_by="time",
        split_block=1 if len(dataset.time) < 100 else 24,
        progress=False,
        **filling,
    )
    if not missing:
        return store, np.ones(store.event_shape, bool)
    return store, dataset[case.variable].notnull().all("time").values


def compare(values: np.ndarray, data: np.ndarray, sea: np.ndarray) -> tuple[float, float, float]:
    """Ratio of deviations, Kolmogorov-Smirnov distance of all values, mean difference of logarithms of the spectra."""
    ours, theirs = values[:, sea], data[:, sea]
    off = np.abs(np.log(spectrum(values, sea) / spectrum(data, sea))).mean()
    spread = ours.std(0).mean() / theirs.std(0).mean()
    return float(spread), float(ks_2samp(ours.ravel(), theirs.ravel()).statistic), float(off)


def spectrum(values: np.ndarray, sea: np.ndarray) -> np.ndarray:
    """Mean power along longitude by wave number, ``[width // 2]``, of departures from the mean; land counts as none."""
    departures = np.where(sea, values - values.mean(0), 0.0)
    departures = departures - departures.mean(-1, keepdims=True)
    power = np.abs(np.fft.rfft(departures * np.hanning(departures.shape[-1]), axis=-1)) ** 2
    return power.mean((0, 1))[1:]


def draw(data: np.ndarray, draws: np.ndarray, sea: np.ndarray, unit: str, path: Path) -> Path:
    """Fields of the data above, draws below; their values and spectra beside them."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, SHOWN + 1, figsize=(3 * (SHOWN + 1), 5), layout="constrained")
    low, high = np.quantile(data[:, sea], [0.01, 0.99])
    spread = np.random.default_rng(0).permutation(len(data))[:SHOWN]
    for row, (kind, shown) in zip(axes, {"data": data[spread], "draws": draws[:SHOWN]}.items(), strict=True):
        for ax, field in zip(row, shown, strict=False):
            image = ax.imshow(np.where(sea, field, np.nan), vmin=low, vmax=high, cmap="RdBu_r")
            ax.set(xticks=[], yticks=[])
        row[0].set_ylabel(kind)
        figure.colorbar(image, ax=row[SHOWN - 1], label=unit)
    histogram, powers = axes[:, SHOWN]
    for kind, values in {"data": data, "draws": draws}.items():
        histogram.hist(values[:, sea].ravel(), bins=60, density=True, histtype="step", label=kind)
        powers.loglog(np.arange(1, len(spectrum(values, sea)) + 1), spectrum(values, sea), label=kind)
    histogram.set(xlabel=f"value [{unit}]", yticks=[])
    powers.set(xlabel="wave number along longitude", ylabel="power")
    powers.set_xticks([1, 2, 4, 8], labels=["1", "2", "4", "8"], minor=False)
    powers.tick_params(axis="x", which="minor", labelbottom=False)
    histogram.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=80)
    pyplot.close(figure)
    return path
