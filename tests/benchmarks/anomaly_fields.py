"""Fields with a known history: winters of the Pacific by how odd they are, and climate runs that drift away."""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from rich.console import Console
from rich.table import Table

import sciflow as sf
from sciflow.anomaly import merge_events, write_detection_page

EL_NINO, LA_NINA = (1983, 1998), (1989, 1999, 2000, 2008, 2011)
MOST_SHOWN = 16
# Learned and calibrated on what lies before; the 30 years after it are early, too.
LEARNED = 1920
DECADES = range(1920, 2100, 10)


def fields(arguments: argparse.Namespace) -> None:
    """Both of them, each with its page."""
    folder = arguments.data / "climate"
    winters(folder / "sst_ndjfm_anom.nc", arguments.out)
    table = Table("from", "", *("verdict", "KS p", "log10 odds") * 2, title="tests for drift by decade, A1B and E1")
    both = [drifts(folder / f"{name}_north_america.nc", arguments.out) for name in ("A1B", "E1")]
    for decade, *found in zip(DECADES, *both, strict=True):
        cells = [cell for of in found for cell in (of.verdict, f"{of.p_value:.1e}", f"{np.log10(of.martingale):.1f}")]
        table.add_row(str(decade), "held out" if decade < 1950 else "", *cells)
    Console(width=110).print(table)


def winters(file: Path, out: Path) -> None:
    """``Detector()`` on the fields of 17 winters: which later ones are odd? Of so few, nothing is drawn."""
    sst = xr.open_dataset(file).sst
    # Land is where no winter has a value; of anomalies, the usual one is 0.
    sst = sst.fillna(0.0).astype(np.float32)
    year = sst.time.dt.year.values
    early, late = sst.isel(time=year < 1980), sst.isel(time=year >= 1980)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of land, which never varies
        detector = sf.Detector().fit(early, progress=False)
    found = detector.predict(late, false_alarm_rate=detector.calibration.resolution())
    order, known = np.argsort(-found.scores), {**dict.fromkeys(EL_NINO, "El Nino"), **dict.fromkeys(LA_NINA, "La Nina")}
    table = Table("rank", "winter", "", "score", "p-value", title=f"odd winters, fitted on {len(early)}; Detector()")
    for rank, row in enumerate(order[:MOST_SHOWN], 1):
        winter = int(year[year >= 1980][row])
        table.add_row(
            str(rank), str(winter), known.get(winter, ""), f"{found.scores[row]:.1f}", f"{found.p_value[row]:.3f}"
        )
    Console(width=110).print(table)
    draw(out / "winters.html", "Winters of the Pacific", detector, found, None)


def drifts(file: Path, out: Path) -> list[Any]:
    """Years as rows, cells as the numbers of a row: the test for drift, decade by decade, one state through all."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data = xr.open_dataset(file, decode_times=xr.coders.CFDatetimeCoder(use_cftime=True)).air_temperature
    year = np.array([time.year for time in data.time.values])
    times = pd.to_datetime([f"{each}-06-01" for each in year]).to_numpy()
    # Patches of 7 x 7 cells, each with its own mean, as events: enough rows to learn and to calibrate on.
    height, width = (size // 7 * 7 for size in data.shape[1:])
    values = data.values[:, :height, :width].reshape(len(year), height // 7, 7, width // 7, 7)
    rows = values.transpose(0, 1, 3, 2, 4).mean((3, 4)).reshape(len(year), -1).astype(np.float32)
    table = xr.DataArray(rows, {"time": times, "patch": np.arange(rows.shape[1])}, ("time", "patch"), "t2m", data.attrs)
    learned = year < LEARNED
    # Every other year calibrates, so that both parts have seen the same decades.
    is_calibration = learned & (year % 2 == 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        detector = sf.Detector().fit(table.isel(time=learned & ~is_calibration), progress=False)
        detector.calibrate(table.isel(time=is_calibration))
    found, state = [], None
    for decade in DECADES:
        of_decade = detector.predict(table.isel(time=(year >= decade) & (year < decade + 10)), fdr=0.1)
        found.append(detector.drift(of_decade, state))
        state = found[-1].state
    everything = detector.predict(table.isel(time=~learned), fdr=0.1)
    draw(out / f"{file.stem}.html", file.stem.replace("_", " "), detector, everything, detector.drift(everything))
    return found


def draw(page: Path, title: str, detector: sf.Detector, found: Any, moved: Any) -> None:
    results = found.to_dataset()
    write_detection_page(
        page,
        results,
        merge_events(results, neighbours=() if moved is None else None),
        calibration_scores=detector.calibration.scores,
        drift=moved,
        title=title,
    )
