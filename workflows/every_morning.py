"""Three mornings of ``sciflow detect``: two ordinary days, and a third one with a heat island that nobody announced.

Half a year of simulated hourly temperatures is sharded, split by blocks of days, and trained on. Then a day comes in
each morning; the run of the third morning is killed half-way, and called again. In the end one page says what was
found. Everything lies in ``runs/every-morning``; run this again, and it begins anew::

    python workflows/every_morning.py
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import xarray as xr
import yaml

import sciflow as sf

sys.path.insert(0, str(Path(__file__).parents[1] / "datasets"))
from simulate import field_block

ROOT = Path("runs") / "every-morning"
FIRST, DAYS, HEIGHT, WIDTH = pd.Timestamp("2001-01-01"), 181, 8, 12
ODD_HOURS, ODD_CELLS, ODD_KELVIN = slice(10, 17), (slice(3, 5), slice(6, 9)), 6.0


def main() -> None:
    shutil.rmtree(ROOT, ignore_errors=True)
    workflow = write_workflow()
    layout = {"event": {"time": 24}, "sample": ["lat", "lon"], "split_by": "time", "split_block": 3}
    sf.shard(weather(0, DAYS), ROOT / "t2m.zarr", split=(0.6, 0.1, 0.3), **layout)
    print(sf.train(workflow, runs=ROOT, local=True).fit())
    for morning in range(3):
        day = weather(DAYS + morning, 1)
        if morning == 2:
            day.t2m[(ODD_HOURS, *ODD_CELLS)] += ODD_KELVIN
        store = ROOT / "incoming" / f"{pd.Timestamp(day.time.values[0]):%Y-%m-%d}.zarr"
        sf.shard(day, store, like=ROOT / "t2m.zarr", shard_rows=8)
        print(f"\n{store.name} has come in")
        if morning == 2:
            kill_half_way(workflow)
        done = subprocess.run(command(workflow), check=False)
        print(f"exit code {done.returncode}")
    out = ROOT / "t2m" / "detections"
    print(f"\n{pd.read_csv(out / 'events.csv')[['id', 'cells', 'peak', 'p_value', 'features']].to_string()}")
    print(f"\nput in: {ODD_KELVIN:g} K on 2001-07-03, from 10 to 17 h, in 2 x 3 cells from 53 N, 11 E on")
    print(f"the page: {out / 'report.html'}")


def weather(day: int, num_days: int) -> xr.Dataset:
    """Hourly temperatures of some days."""
    values = field_block(24 * day, 24 * (day + num_days), HEIGHT, WIDTH)
    times = FIRST + pd.to_timedelta(np.arange(24 * day, 24 * (day + num_days)), "h")
    coordinates = {"time": times, "lat": 50.0 + np.arange(HEIGHT), "lon": 5.0 + np.arange(WIDTH)}
    return xr.Dataset({"t2m": (("time", "lat", "lon"), values.astype("float32"), {"units": "K"})}, coordinates)


def write_workflow() -> Path:
    """The workflow file, as a user writes it."""
    content = {
        "name": "t2m",
        "data": {"store": str(ROOT / "t2m.zarr")},
        "model": {"name": "nsf", "num_transforms": 3, "hidden_features": [64, 64]},
        "training": {"max_steps": 1500},
        "detection": {"stores": str(ROOT / "incoming" / "*.zarr"), "score": "nll", "fdr": 0.05},
    }
    ROOT.mkdir(parents=True)
    file = ROOT / "workflow.yaml"
    file.write_text(yaml.safe_dump(content, sort_keys=False))
    return file


def command(workflow: Path) -> list[str]:
    """What a scheduler calls."""
    sciflow = [sys.executable, "-m", "sciflow.cli"]
    return [*sciflow, "detect", str(workflow), "--runs", str(ROOT), "--local", "--quiet"]


def kill_half_way(workflow: Path) -> None:
    """Call it, and kill it when some shards are scored."""
    parts = ROOT / "t2m" / "detections" / "work" / "parts"
    run = subprocess.Popen(command(workflow))
    while run.poll() is None and len(list(parts.glob("*.safetensors"))) < 3:
        time.sleep(0.002)
    run.kill()
    run.wait()
    print(f"killed, when {len(list(parts.glob('*.safetensors')))} shards were scored")


if __name__ == "__main__":
    main()
