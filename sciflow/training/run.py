"""A run: one workflow, one folder, and what goes on in each process that trains it."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from pydantic import TypeAdapter, ValidationError

from sciflow.config import Workflow, from_yaml, validate
from sciflow.data.lock import locked
from sciflow.data.store import Store, open_store
from sciflow.density import Density
from sciflow.errors import ConfigError, RunError
from sciflow.families import build, load
from sciflow.training.files import write_whole
from sciflow.training.fit import Fit
from sciflow.training.loop import Outcome, train
from sciflow.training.method import kind_of_likelihood
from sciflow.training.metrics import Metrics, read_metrics
from sciflow.training.process import Process
from sciflow.training.rows import prepare, training_data

__all__ = ["DRIVER_LOCK", "Run", "new_density", "require_ended", "train_in_this_process"]

# What makes a run what it is; the cluster it runs on, and what is done with it afterwards, may change.
IDENTITY = ("name", "data", "model", "training")
LOCK_SECONDS = 30.0
FOUND = "detections"  # Where sciflow detect puts its results, if nothing else is said.
DRIVER_LOCK = "driver.lock"
_OUTCOME = TypeAdapter(Outcome)


@dataclass(frozen=True)
class Run:
    """The folder of a run.

    ``workflow.yaml`` is the workflow as resolved, ``checkpoints/`` what training goes on from, ``metrics.jsonl`` and
    ``tensorboard/`` its figures, ``model/`` the result, ``outcome.json`` how it ended. Every process that trains must
    see the folder.

    Attributes:
        folder: Where it is.
    """

    folder: Path

    @classmethod
    def of(cls, workflow: Workflow, runs: str | Path = "runs", overwrite: bool = False) -> Run:
        """Open the run of a workflow, or begin it.

        Raises:
            RunError: The folder belongs to another configuration, is no run, is in use, or cannot be written.
        """
        run = cls(Path(runs).absolute() / workflow.name)
        mine = workflow.model_dump(mode="json")
        try:
            found = [path.name for path in run.folder.iterdir()] if run.folder.exists() else []
            if run.workflow_file.name not in found and not all(name.startswith(".") or name == FOUND for name in found):
                raise RunError(f"{run.folder} is there and is no run: it has no workflow.yaml. Choose another name")
            if overwrite and found:
                with run.locked(seconds=0), run.locked(seconds=0, name=DRIVER_LOCK):
                    # Out of the way at once: what is half removed is no run.
                    old = run.folder.rename(run.folder.with_name(f".{workflow.name}.{os.getpid()}.old"))
                    if (old / FOUND).exists():
                        # What was found of data that came in goes on with the new model: no training makes it again.
                        run.folder.mkdir()
                        (old / FOUND).rename(run.folder / FOUND)
                    shutil.rmtree(old)
        except OSError as error:
            raise RunError(f"{run.folder}: cannot be written: {error.strerror or error}") from None
        if run.workflow_file.exists():
            theirs = run.workflow.model_dump(mode="json")
            changed = _changes({k: theirs[k] for k in IDENTITY}, {k: mine[k] for k in IDENTITY})
            if changed:
                raise RunError(
                    f"{run.folder} is a run of another configuration: {'; '.join(changed)}. "
                    "Choose another name, or begin anew with --overwrite"
                )
        try:
            run.folder.mkdir(parents=True, exist_ok=True)
            write_whole(run.workflow_file, yaml.safe_dump(mine, sort_keys=False))
        except OSError as error:
            raise RunError(f"{run.folder}: cannot be written: {error.strerror or error}") from None
        return run

    @property
    def workflow_file(self) -> Path:
        """The workflow as resolved."""
        return self.folder / "workflow.yaml"

    @property
    def workflow(self) -> Workflow:
        """The workflow as resolved.

        Raises:
            RunError: There is no run here, or its workflow is damaged.
        """
        try:
            workflow: Workflow = validate(
                Workflow, from_yaml(self.workflow_file.read_text(encoding="utf-8")), "damaged"
            )
        except FileNotFoundError:
            raise RunError(f"{self.folder}: no run here: it has no workflow.yaml") from None
        except ConfigError as error:
            raise RunError(f"{self.workflow_file}: {error}") from None
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise RunError(f"{self.workflow_file}: damaged: {' '.join(str(error).split())}") from None
        return workflow

    @property
    def outcome(self) -> dict[str, Any] | None:
        """How training ended; None while it has not, or where its result is no longer there.

        Raises:
            RunError: The record of it is damaged.
        """
        file = self.folder / "outcome.json"
        if not file.exists():
            return None
        try:
            outcome = _OUTCOME.validate_json(file.read_bytes(), strict=True)
        except ValidationError as error:
            problem = error.errors()[0]
            reason = ": ".join(map(str, (*problem["loc"], problem["msg"])))
            raise RunError(f"{file}: damaged ({reason}): remove it, and run sciflow train again") from None
        except OSError as error:
            raise RunError(f"{file}: cannot be read: {error.strerror or error}") from None
        if outcome.validation is None:
            raise RunError(f"{file}: damaged (no validation): remove it, and run sciflow train again")
        # The checkpoints are there to make the model again.
        return dict(vars(outcome)) if _has_model(self.folder) else None

    @property
    def density(self) -> Density:
        """The trained density."""
        return load(self.folder)

    def fit(self) -> Fit:
        """The result, as :func:`sciflow.fit` gives it.

        Raises:
            RunError: Training has not ended.
        """
        outcome = self.outcome
        if outcome is None:
            raise RunError(f"{self.folder}: training has not ended: run sciflow train again")
        return Fit(self.density, history=read_metrics(self.folder / "metrics.jsonl"), **outcome)

    def request_stop(self) -> None:
        """Ask all processes to save and leave at their next step."""
        (self.folder / "stop").touch()

    def stop_requested(self) -> bool:
        """Whether :meth:`request_stop` was called."""
        return (self.folder / "stop").exists()

    def forget_stop(self) -> None:
        """Undo :meth:`request_stop`."""
        (self.folder / "stop").unlink(missing_ok=True)

    def locked(self, seconds: float = LOCK_SECONDS, name: str = "lock") -> AbstractContextManager[None]:
        """Hold the run for the process that writes its files; waits a while for one that is about to end.

        Args:
            seconds: How long to wait; by default as long as Ray takes to end what a killed driver leaves.
            name: ``"lock"`` for the process that trains, :data:`DRIVER_LOCK` for the one that has Ray start it.

        Raises:
            RunError: Another process holds it, or the folder cannot be written.
        """
        busy = RunError(f"{self.folder}: another process is training this run: wait for it, or end it")
        return locked(self.folder, self.folder / name, busy, seconds)


def train_in_this_process(
    run: Run,
    workflow: Workflow,
    process: Process,
    update: Callable[[int, str], None] = lambda step, note: None,
    stop_requested: Callable[[], bool] = lambda: False,
) -> Outcome:
    """Train the run's density as one of the processes that do; the first of them writes the files.

    Args:
        run: The run.
        workflow: Its workflow.
        process: This process.
        update: Called by the first process at every step, with the step and a few words.
        stop_requested: Asked at every step; True saves and leaves. The run's own stop file counts too.

    Returns:
        How training ended.
    """
    if not process.is_first:
        return _train(run, workflow, process, Metrics(), stop_requested)
    with run.locked():
        metrics = Metrics(run.folder, update=update)
        try:
            outcome = _train(run, workflow, process, metrics, lambda: stop_requested() or run.stop_requested())
        except BaseException:
            with suppress(RunError):
                metrics.close()
            raise
        metrics.close()
    return outcome


def require_ended(folder: Path) -> None:
    """Refuse the folder of a run that has no model yet; any other folder passes.

    Raises:
        RunError: Training has not ended.
    """
    if (folder / "workflow.yaml").exists() and not _has_model(folder):
        raise RunError(f"{folder}: training has not ended, so there is no model: run sciflow train again")


def new_density(workflow: Workflow, store: Store) -> Density:
    """Build the workflow's density for a store; its weights are a function of the seed.

    Raises:
        ConfigError: The model section is wrong, or the density cannot be scored as the scoring section says.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(workflow.training.seed)
        density = build(workflow.model, store.event_shape, store.context_shape)
    density = density.double() if store.layout.dtype == "float64" else density
    scoring = workflow.scoring
    if scoring.method is not None or scoring.options:
        try:
            kind_of_likelihood(density, store.context_shape, scoring.method, scoring.options)
        except ConfigError as error:
            raise ConfigError(f"scoring: {error}") from None
    return density


def _train(
    run: Run, workflow: Workflow, process: Process, metrics: Metrics, stop_requested: Callable[[], bool]
) -> Outcome:
    store = open_store(workflow.data.store)
    if store.fingerprint != workflow.data.fingerprint:
        raise RunError(f"{store.path} has changed since the run began: its events are others")
    density = new_density(workflow, store)
    data, layout, fingerprint = training_data(density, store, None, None, None, workflow.training.seed)
    # Whoever started the run has heard of constants and the like: warnings of workers would be seen by nobody.
    prepare(density, data, None, layout)
    outcome = train(density, data, workflow.training, process, metrics, run.folder / "checkpoints", stop_requested)
    if process.is_first and outcome.ended != "stopped":
        assert layout is not None
        assert outcome.validation is not None
        density.layout = layout.to_json()
        density.provenance = {
            "run": workflow.name,
            "data": fingerprint,
            "steps": outcome.steps,
            "validation": outcome.validation.to_json(),
        }
        density.save(run.folder / "model")
        try:
            write_whole(run.folder / "outcome.json", json.dumps(asdict(outcome), indent=2))
        except OSError as error:
            raise RunError(
                f"{run.folder}: the outcome cannot be written: {error.strerror or error}; checkpoints are whole: "
                "make room or mend it, and run the same command again"
            ) from None
    return outcome


def _has_model(folder: Path) -> bool:
    return all((folder / "model" / name).exists() for name in ("model.json", "model.safetensors"))


def _changes(theirs: Mapping[str, Any], mine: Mapping[str, Any], prefix: str = "") -> list[str]:
    found = []
    for key in sorted({*theirs, *mine}):
        a, b = theirs.get(key), mine.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            found += _changes(a, b, f"{prefix}{key}.")
        elif a != b:
            found.append(f"{prefix}{key} is {a!r} there, {b!r} here")
    return found
