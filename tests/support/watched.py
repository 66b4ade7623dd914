"""A small world that is watched: half a year of a region's days, a trained run, and days that come in."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

import sciflow as sf
from sciflow.anomaly.scheduled.detect import detect, plan_of
from sciflow.anomaly.scheduled.record import DetectionRun

__all__ = ["FIRST_DAY", "World", "killed", "make_world", "weather"]

FIRST_DAY = pd.Timestamp("2001-06-30")
HOURS = 6


def weather(first: Any, num_days: int, seed: int, odd: int | None = None, units: str = "K") -> xr.Dataset:
    """Days of six hours at 3 x 4 cells; on the day ``odd`` two cells are far too warm for a while."""
    rng = np.random.default_rng(seed)
    times = pd.date_range(first, periods=num_days * HOURS, freq="4h")
    cycle = 5 * np.sin(2 * np.pi * times.hour.to_numpy() / 24)
    values = 280 + cycle[:, None, None] + rng.normal(size=(len(times), 3, 4))
    if odd is not None:
        values[odd * HOURS + 2 : odd * HOURS + 4, 1, 1:3] += 15
    coordinates = {"time": times, "lat": np.arange(50.0, 53.0), "lon": np.arange(5.0, 9.0)}
    return xr.Dataset({"t2m": (("time", "lat", "lon"), values.astype("float32"), {"units": units})}, coordinates)


@dataclass
class World:
    """A folder with a store, a trained run, and stores that come in.

    Attributes:
        root: The folder.
        shelf: Stores that were sharded before: the same days are the same bytes in every world.
        detection: The workflow's section.
    """

    root: Path
    shelf: Path
    detection: dict[str, Any] = field(default_factory=dict)

    @property
    def out(self) -> Path:
        return self.root / "runs" / "demo" / "detections"

    @property
    def current(self) -> Path:
        return (self.out / "current").resolve()

    @property
    def results(self) -> xr.Dataset:
        return xr.open_zarr(str(self.out / "results.zarr")).load()

    @property
    def workflow(self) -> dict[str, Any]:
        watched = {"stores": str(self.root / "incoming" / "*.zarr"), "score": "nll"}
        return {
            "name": "demo",
            "data": {"store": str(self.root / "t2m.zarr")},
            "model": {"name": "nsf", "num_transforms": 1, "hidden_features": [16]},
            "training": {"max_steps": 60, "batch_size": 256},
            "detection": {**watched, **self.detection},
        }

    def come_in(self, day: int, odd: bool = False, name: str | None = None, **options: Any) -> Path:
        """Let a day's store come in, as those who deliver it do.

        Args:
            day: Since the first one.
            odd: Whether it is too warm somewhere.
            name: Of the store.
            **options: Of :func:`weather`, and of :func:`sciflow.shard`.
        """
        there = self.shelf / f"{day}-{odd}-{'-'.join(f'{key}={value}' for key, value in sorted(options.items()))}.zarr"
        if not there.exists():
            made = {"num_days": 1, "seed": 100 + day, "odd": 0 if odd else None}
            made |= {key: options.pop(key) for key in ("num_days", "seed", "units") if key in options}
            data = weather(FIRST_DAY + pd.Timedelta(days=day), **made)
            sf.shard(data, there, like=self.root / "t2m.zarr", progress=False, **options)
        place = self.root / "incoming" / (name or f"day{day:03d}.zarr")
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(there, place)
        return place

    def detect(self, **options: Any) -> DetectionRun:
        return detect(self.workflow, local=True, runs=self.root / "runs", progress=False, **options)

    def plan(self, **options: Any) -> Any:
        return plan_of(self.workflow, runs=self.root / "runs", **options)

    def copy(self, root: Path) -> World:
        """The same world elsewhere, with all that has been done in it."""
        shutil.copytree(self.root, root, symlinks=True)
        return World(root, self.shelf, dict(self.detection))


def make_world(root: Path) -> World:
    """Shard half a year, and train on it."""
    world = World(root, root.parent / "shelf")
    layout = {"event": {"time": HOURS}, "sample": ["lat", "lon"], "split_by": "time", "split_block": 3}
    first = FIRST_DAY - pd.Timedelta(days=180)
    sf.shard(weather(first, 180, seed=0), root / "t2m.zarr", split=(0.6, 0.1, 0.3), progress=False, **layout)
    (root / "incoming").mkdir()
    sf.train(world.workflow, local=True, runs=root / "runs", progress=False)
    return world


def killed(work: Any) -> int:
    """Do something in a process of its own, which may end itself at any point; returns its exit status."""
    child = os.fork()
    if child == 0:
        code = 70
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
