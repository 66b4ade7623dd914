"""What scores and judges, where its results go, and what a task needs to know of it."""

from __future__ import annotations

import hashlib
import json
import shutil
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sciflow.anomaly.scheduled.folder import Folder
from sciflow.anomaly.scheduled.watch import watched
from sciflow.config import Workflow
from sciflow.data.place import require_apart
from sciflow.data.store import is_url, open_store
from sciflow.errors import ConfigError, ModelFileError, RunError
from sciflow.training.run import FOUND, Run, require_ended

if TYPE_CHECKING:
    from sciflow.anomaly.detector import Detector

__all__ = ["Each", "Job", "hashed"]

# Of a run, what its model says of itself.
MODEL = Path("model", "model.json")
# Do something with every item, here or on Ray.
Each = Callable[[Callable[[Any], object], Sequence[Any], str], None]


@dataclass(frozen=True)
class Job:
    """A workflow's detection.

    Attributes:
        workflow: The workflow, as JSON: tasks are sent it.
        run: Folder of the run whose model scores.
        out: Folder of the results.
        key: Hash of all that scores and calibration depend on.
        model: Hash of the model's weights.
        device: Where tasks score; no matter of what is found, but for the last digits.
    """

    workflow: str
    run: str
    out: str
    key: str
    model: str
    device: str

    @classmethod
    def of(cls, workflow: Workflow, runs: str | Path, device: str = "cpu") -> Job:
        """Check all that can be checked before anything is read.

        Args:
            workflow: Its section ``detection`` counts, and its name; the rest is the run's.
            runs: Folder of the runs.
            device: Where tasks score.

        Raises:
            ConfigError: The output is no folder of a file system.
            ModelFileError: Its model is damaged.
            RunError: There is no run, or its training has not ended.
            StoreError: The output would lie in a store.
        """
        run = Path(runs).absolute() / workflow.name
        if not Run(run).workflow_file.exists():
            raise RunError(f"{run}: no such run: train first, sciflow train")
        require_ended(run)
        trained, detection = Run(run).workflow, workflow.detection
        out = detection.out or str(run / FOUND)
        if is_url(out):
            raise ConfigError(f"detection.out: {out}: a folder of a file system that all nodes see, not a URL")
        model = _description(run / MODEL)
        settings = [detection.score, detection.calibration.model_dump(), trained.training.seed]
        key = hashed(model, trained.data.fingerprint, settings)
        # Where the store is may have changed since.
        mine = {"name": workflow.name, "data": workflow.data, "detection": detection}
        used = trained.model_copy(update=mine)
        weights, place = model["weights"]["sha256"], str(Path(out).absolute())
        job = cls(used.model_dump_json(), str(run), place, key[:16], weights, device)
        for source in (workflow.data.store, *job.patterns, *watched(job.patterns).values()):
            require_apart(job.out, source)
        return job

    @property
    def settings(self) -> Workflow:
        """The run's workflow, with the detection that is asked for."""
        return _settings(self.workflow)

    @property
    def patterns(self) -> list[str]:
        """Stores that are watched, or patterns of them."""
        return self.settings.detection.stores or [self.settings.data.store]

    @property
    def folder(self) -> Folder:
        """Where the results are."""
        return Folder(Path(self.out))

    @property
    def layout(self) -> dict[str, Any]:
        """Of the events that the model was trained on."""
        layout: dict[str, Any] = _description(Path(self.run, MODEL))["layout"]
        return layout

    def prepare(self, each: Each) -> Detector:
        """Return the detector; where it is not there yet, it is made of the model, and calibrated on what was held out.

        Args:
            each: Does work here or on Ray.

        Raises:
            ConfigError: There is no such score or group.
            ModelFileError: The detector that is there is damaged, or of another model.
            StoreError: The store that the model was trained on cannot be read.
        """
        if not (self._place / "detector.json").exists():
            store = open_store(self.settings.data.store)
            model = _description(Path(self.run, MODEL))
            if model.get("provenance", {}).get("data") != store.fingerprint:
                warnings.warn(
                    f"{store.path}: has been written anew since the model was trained: events to calibrate on may be "
                    "among those that it was trained on, and p-values too small; train again",
                    stacklevel=2,
                )
            each(_make, [self], "calibrating")
            for other in self._place.parent.iterdir():
                if other != self._place:
                    shutil.rmtree(other)
        made = self._place / "density-0" / "model.json"
        if made.exists() and _description(made)["weights"]["sha256"] != self.model:
            raise ModelFileError(
                f"{self._place}: stands on another model than that of {self.run}: remove it, and it is made anew"
            )
        return _opened(str(self._place), "cpu")

    def open(self) -> Detector:
        """The detector that is there, where it is to score, kept from one shard to the next."""
        return _opened(str(self._place), self.device)

    @property
    def _place(self) -> Path:
        return Path(self.out, "detector", self.key)


def _make(job: Job) -> None:
    """Make the detector of the model, calibrate it on what was held out, and write it down."""
    from sciflow.anomaly.detector import Detector
    from sciflow.families import load
    from sciflow.scoring.process import one_thread

    detection = job.settings.detection
    detector = Detector(
        detection.score,
        density=load(job.run, job.device),
        group=detection.calibration.group,
        block=detection.calibration.block,
        tail=detection.calibration.tail,
        seed=job.settings.training.seed,
    )
    shutil.rmtree(job._place, ignore_errors=True)  # what is left of one, if anything is
    with one_thread():
        detector.fit(open_store(job.settings.data.store), progress=False).save(job._place)


def _description(file: Path) -> dict[str, Any]:
    """What a model says of itself."""
    try:
        description: dict[str, Any] = json.loads(file.read_text())
        _ = description["layout"], description["weights"]["sha256"]
        return description
    except (OSError, ValueError, KeyError, TypeError):
        raise ModelFileError(f"{file}: damaged: restore it, or train again") from None


@lru_cache(maxsize=4)
def _settings(text: str) -> Workflow:
    return Workflow.model_validate_json(text)


@lru_cache(maxsize=1)
def _opened(place: str, device: str) -> Detector:
    from sciflow.anomaly.detector import Detector

    try:
        return Detector.load(place, device)
    except ModelFileError as error:
        raise ModelFileError(f"{error}; or remove {place}, and the next run makes it anew") from None


def hashed(*content: Any) -> str:
    """One hash of texts, numbers and arrays, as JSON and bytes tell them apart.

    Example:
        >>> hashed("a", 1) == hashed("a1")
        False
    """
    digest = hashlib.sha256()
    for part in content:
        if isinstance(part, np.ndarray):
            digest.update(f"{part.dtype}{part.shape}".encode() + np.ascontiguousarray(part).tobytes())
        else:
            digest.update(json.dumps(part, sort_keys=True).encode() + b"\0")
    return digest.hexdigest()
