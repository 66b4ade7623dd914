"""Series with known failures: does the detector see them, and how often is it wrong?

One rule for all: hourly means, and days that begin at any hour for events. Of the first half of the series, without the
labelled windows, one week is learned and the next one calibrates, in blocks of a day. The second half is judged. Where
calibration has n days, no p-value is below 1 / (n + 1), and of two thousand tests none could be flagged at an FDR of
0.1: so what is flagged is what no day of calibration has been like, at the false-alarm rate that this makes.
"""

from __future__ import annotations

import argparse
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from anomaly import Kept
from beside import tell
from rich.console import Console
from rich.table import Table
from sklearn.metrics import roc_auc_score

import sciflow as sf
from sciflow.anomaly import merge_events, write_detection_page
from sciflow.errors import SciflowError

SERIES = ("nyc_taxi", "ambient_temperature_system_failure", "machine_temperature_system_failure")
HOURS = 24
# Name of a way: settings of the detector, and what becomes of the series before it is cut into days.
WAYS: dict[str, tuple[dict[str, Any], Callable[[pd.Series], pd.Series]]] = {
    "default": ({}, lambda values: values),
    "weekday or not": ({"group": "is_weekend"}, lambda values: values),
    "tail": ({"tail": True}, lambda values: values),
    "nll": ({"score": "nll"}, lambda values: values),
    "denoising_error": ({"score": "denoising_error"}, lambda values: values),
    "to the day before": ({}, lambda values: values - values.shift(HOURS)),
    "to the week before": ({}, lambda values: values - values.shift(7 * HOURS)),
}


def series(arguments: argparse.Namespace) -> None:
    """Every series in every way that is asked for; pages of the first way."""
    kept = Kept(arguments.out / "series.jsonl")
    ways = list(WAYS) if arguments.ways == "all" else arguments.ways.split(",")
    for way in ways:
        for name in SERIES:
            if not kept.has({"way": way, "series": name}):
                page = arguments.out / f"{name}.html" if way == "default" else None
                try:
                    found = one_series(arguments.data / "nab", name, way, page)
                except SciflowError as error:
                    found = {"refused": str(error)}
                kept.add({"way": way, "series": name}, found)
                tell(f"{way}, {name}: {found}")
    head = ("way", "series", "calibration", "AUROC", "windows", "false alarms a week", "at FDR 0.1", "drift", "order")
    table = Table(*head, title="second halves of three series; flagged: odder than all of calibration")
    for way in ways:
        for name in SERIES:
            found = kept.of({"way": way, "series": name})
            if "refused" in found:
                table.add_row(way, name.split("_")[0], *[""] * 6, found["refused"])
                continue
            table.add_row(
                way,
                name.split("_")[0],
                f"{found['days']} days",
                f"{found['auroc']:.3f}",
                f"{found['detected']} of {found['windows']}",
                f"{found['false_a_week']:.2f}",
                f"{found['at_fdr']} rows",
                f"{found['drift']}",
                found["order"],
            )
        table.add_section()
    Console(width=150).print(table)


def one_series(folder: Path, name: str, way: str, page: Path | None) -> dict[str, Any]:
    """Learn, calibrate and judge one series, and count what was found."""
    settings, prepare = WAYS[way]
    values, windows = read(folder, name)
    days, which = days_of(prepare(values), windows)
    half = values.index[0] + (values.index[-1] - values.index[0]) / 2
    early = days.isel(time=(days.begin < half).values & (which < 0))
    late, which = days.isel(time=(days.begin >= half).values), which[(days.begin >= half).values]
    early = whole_weeks(early, values.index[0])
    odd_week = ((early.begin - np.datetime64(values.index[0])) // np.timedelta64(7, "D")).values % 2 == 1
    training = {"training": {"max_steps": 600}} if "score" in settings else {}
    detector = sf.Detector(block=HOURS, **settings, **training)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        detector.fit(early.isel(time=~odd_week), progress=False).calibrate(early.isel(time=odd_week))
    # As seldom as calibration can tell; with a tail, one hour a month.
    rate = 1 / 720 if detector.tail else detector.calibration.resolution()
    found = detector.predict(late, false_alarm_rate=min(0.5, rate))
    flag, is_odd = found.decision.flag, which >= 0
    false = late.time.values[flag & ~is_odd]
    num_false = 0 if not len(false) else 1 + int((np.diff(false) > np.timedelta64(HOURS, "h")).sum())
    moved = detector.drift(found)
    if page is not None:
        draw(page, name, detector, found, moved, windows)
    return {
        "days": len(early.time[odd_week]) // HOURS,
        "auroc": float(roc_auc_score(is_odd, found.scores)),
        "windows": len(set(which[is_odd].tolist())),
        "detected": len(set(which[is_odd & flag].tolist())),
        "false_a_week": num_false / ((~is_odd).sum() / (7 * HOURS)),
        "rate": rate,
        "at_fdr": int(detector.predict(late, fdr=0.1).decision.flag.sum()),
        "drift": moved.words.partition(":")[0] + f" (p = {moved.p_value:.1g})",
        "order": detector.calibration.exchangeability.verdict.partition(",")[0].partition(":")[0],
    }


def read(folder: Path, name: str) -> tuple[pd.Series, list[tuple[pd.Timestamp, pd.Timestamp]]]:
    """Hourly means, NaN where there are none, and the windows that people have labelled."""
    table = pd.read_csv(folder / "realKnownCause" / f"{name}.csv", parse_dates=["timestamp"])
    labels = json.loads((folder / "labels/combined_windows.json").read_text())[f"realKnownCause/{name}.csv"]
    values = table.drop_duplicates("timestamp").set_index("timestamp").value.sort_index().resample("1h").mean()
    return values, [(pd.Timestamp(start), pd.Timestamp(stop)) for start, stop in labels]


def days_of(values: pd.Series, windows: list[tuple[pd.Timestamp, pd.Timestamp]]) -> tuple[xr.DataArray, np.ndarray]:
    """Days that begin at any hour, by the time of their end, and the labelled window that each touches, or -1."""
    rows = np.lib.stride_tricks.sliding_window_view(values.to_numpy(np.float32), HOURS)
    is_whole = np.isfinite(rows).all(1)
    begin, end = values.index[: len(rows)][is_whole], values.index[HOURS - 1 :][is_whole]
    which = np.full(len(begin), -1)
    for number, (start, stop) in enumerate(windows):
        which[(end >= start) & (begin <= stop)] = number
    coordinates = {
        "time": end.to_numpy(),
        "hour_of_window": np.arange(HOURS),
        "begin": ("time", begin.to_numpy()),
        "is_weekend": ("time", np.where(end.dayofweek >= 5, "weekend", "weekday")),
    }
    return xr.DataArray(rows[is_whole], coordinates, ("time", "hour_of_window"), "value"), which


def whole_weeks(days: xr.DataArray, first: pd.Timestamp) -> xr.DataArray:
    """Days that lie within one week, so that none is learned in part and calibrates in part; 24 of each date."""
    since = (days.begin - np.datetime64(first)) / np.timedelta64(1, "h")
    date, ends_in_it = (since // HOURS).values, (since % (7 * HOURS) <= 6 * HOURS - 1).values
    dates, counts = np.unique(date[ends_in_it], return_counts=True)
    return days.isel(time=ends_in_it & np.isin(date, dates[counts == HOURS]))


def draw(page: Path, name: str, detector: sf.Detector, found: Any, moved: Any, windows: list) -> None:
    results = found.to_dataset().drop_vars(["begin", "is_weekend"])
    labelled = {f"labelled {number}": f"{start} to {stop}" for number, (start, stop) in enumerate(windows, 1)}
    write_detection_page(
        page,
        results,
        merge_events(results, gap=HOURS),
        calibration_scores=detector.calibration.scores,
        drift=moved,
        title=name.replace("_", " "),
        facts={**labelled, "order of calibration": detector.calibration.exchangeability.verdict},
    )
