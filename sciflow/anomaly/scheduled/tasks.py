"""What is done with one shard, in a task of its own or in this process: its part is there whole, or not at all."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import fsspec
import numpy as np

from sciflow.anomaly.scheduled.job import Job, hashed
from sciflow.anomaly.scheduled.plan import Unit
from sciflow.anomaly.scheduled.watch import open_watched
from sciflow.data.inside import inside
from sciflow.data.manifest import hash_rows
from sciflow.errors import LayoutError, RunError, StoreError
from sciflow.scoring.part_file import read_part, write_part
from sciflow.scoring.process import one_thread, within_memory
from sciflow.training.files import write_whole

__all__ = ["Shard", "Task"]

FILES = fsspec.filesystem("file")
TOO_MANY = "a shard does not fit into memory: shard with fewer events in each (--shard-rows)"


class Shard:
    """A shard's events, held against the hash that they are to have.

    Args:
        path: Of the store.
        manifest: Hash of its manifest.
        unit: The shard.

    Raises:
        StoreError: It is missing, damaged, or another.
    """

    def __init__(self, path: str, manifest: str, unit: Unit) -> None:
        opened = open_watched(unit.store, path, manifest)
        store = opened.store
        self.inside = inside(store.layout.event_axes, opened.grid.fixed)
        split = getattr(store, unit.split)
        start, stop = split.shard_range(unit.number)
        self.index = split.grid_index(start, stop)
        self.events = split[start:stop].numpy()
        self.context = None if store.context_shape is None else split.context[start:stop].numpy()
        if hash_rows(self.events, self.index, self.context) != unit.sha256:
            raise StoreError(f"{path}: shard {unit.key} is not the one that was written: restore it, or shard again")


class Task:
    """Work on shards for one job; sent to where it is done.

    Args:
        job: What scores.
        places: Path and manifest of each store, by name.
        folder: Where parts go.
    """

    def __init__(self, job: Job, places: dict[str, tuple[str, str]], folder: Path) -> None:
        self._job, self._places, self._folder = job, places, folder

    def score(self, unit: Unit) -> None:
        """Score a shard; where it cannot be read, its part says why."""
        path, manifest = self._places[unit.store]
        try:
            shard = Shard(path, manifest, unit)
            self._job.open().require_inside(shard.inside, path)
        except (StoreError, LayoutError) as error:
            write_whole(self._failure(unit), str(error))
            return
        with one_thread(), within_memory(TOO_MANY):
            scores = self._job.open().score_events(shard.events, shard.context)
        arrays = {"index": shard.index, "score": np.asarray(scores, np.float64)}
        write_part(FILES, str(self._part(unit)), arrays)

    def explain(self, flagged: tuple[Unit, np.ndarray]) -> None:
        """Say of a shard's flagged rows why they are; the part has no rows where the shard cannot be read any more."""
        unit, rows = flagged
        try:
            shard = Shard(*self._places[unit.store], unit)
        except StoreError:
            write_part(FILES, str(self._reasons(unit, rows)), {"attribution": np.empty((0,), np.float32)})
            return
        context = None if shard.context is None else shard.context[rows]
        with one_thread(), within_memory(TOO_MANY):
            found = self._job.open().explain(shard.events[rows], context)
        write_part(FILES, str(self._reasons(unit, rows)), {"attribution": np.asarray(found, np.float32)})

    def is_scored(self, unit: Unit) -> bool:
        """Whether its part is there, or says why not."""
        return self._part(unit).exists() or self._failure(unit).exists()

    def failure(self, unit: Unit) -> str | None:
        """Why a shard could not be scored; None where it was."""
        return None if self._part(unit).exists() else self._failure(unit).read_text()

    def is_explained(self, unit: Unit, rows: np.ndarray) -> bool:
        """Whether the part of its flagged rows is there."""
        return self._reasons(unit, rows).exists()

    def scores(self, unit: Unit) -> tuple[np.ndarray, np.ndarray]:
        """Places in the grid of a shard's rows, and their scores."""
        return _read_scores(str(self._part(unit)))

    def attribution(self, unit: Unit, rows: np.ndarray) -> np.ndarray:
        """Of a shard's flagged rows, ``[n, *event_shape]``; none where they could not be read."""
        return _read(str(self._reasons(unit, rows)))["attribution"]

    def _part(self, unit: Unit) -> Path:
        # By all that it depends on: whoever finds it may use it.
        name = hashed(self._job.key, unit.store, unit.split, unit.number, unit.sha256)
        return self._folder / f"{name[:32]}.safetensors"

    def _failure(self, unit: Unit) -> Path:
        return self._part(unit).with_suffix(".failed")

    def _reasons(self, unit: Unit, rows: np.ndarray) -> Path:
        return self._part(unit).with_suffix(f".{hashed(rows)[:16]}.safetensors")


@lru_cache(maxsize=8)
def _read_scores(path: str) -> tuple[np.ndarray, np.ndarray]:
    part = _read(path)
    return part["index"], part["score"]


def _read(path: str) -> dict[str, np.ndarray]:
    """Read a part; one that is damaged is removed, so that it is in nobody's way."""
    try:
        return read_part(FILES, path)
    except RunError:
        FILES.rm_file(path)
        raise RunError(
            f"{path}: was damaged, and is removed: run the same command again, and it is made anew"
        ) from None
