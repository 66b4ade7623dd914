"""``sciflow.train``: a workflow trained on Ray, under torchrun, or in this process."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from sciflow.config import Workflow, load_workflow
from sciflow.data.store import is_url, open_store
from sciflow.errors import ConfigError, RunError, StoreError
from sciflow.families import family_of, located
from sciflow.progress import progress_bar
from sciflow.training.budget import Budget
from sciflow.training.process import Process
from sciflow.training.rows import examine, training_data
from sciflow.training.run import Run, new_density, train_in_this_process

__all__ = ["check", "train", "under_torchrun"]


def train(
    workflow: str | Path | Mapping[str, Any] | Workflow,
    overrides: Sequence[str] = (),
    *,
    address: str | None = None,
    runs: str | Path = "runs",
    overwrite: bool = False,
    local: bool = False,
    progress: bool = True,
) -> Run:
    """Train the workflow's density; a run that stopped goes on, and one that has ended is returned as it is.

    Args:
        workflow: A workflow file, or what it would hold.
        overrides: ``key=value`` with dots, such as ``training.max_steps=500``.
        address: Of a running Ray cluster; None starts one on this machine for the time of the run.
        runs: Folder of the runs; all nodes must see it.
        overwrite: Begin the run anew.
        local: Train in this process, without Ray. Under torchrun this is what happens in any case.
        progress: Show a progress bar on a terminal.

    Returns:
        The run; ``run.fit()`` is its result, ``run.density`` the trained density.

    Raises:
        ConfigError: The workflow is wrong, or the cluster cannot serve it.
        StoreError: The store is missing or damaged.
        RunError: The run's folder belongs to another configuration.
        TrainingError: Training cannot go on.
    """
    where = str(workflow) if isinstance(workflow, (str, Path)) else ""
    chosen, num_rows = check(load_workflow(workflow, overrides), where)
    if not (local or under_torchrun()):
        run = Run.of(chosen, runs, overwrite)
        if run.outcome is None:
            from sciflow.training.distributed import train_on_ray

            train_on_ray(run, chosen, num_rows, address, progress)
        return run
    budget = Budget.of(chosen.training, num_rows, family_of(chosen.model).relative_steps)
    with _joined(chosen) as process, _sigterm() as stopping:
        run = _opened_by_first(chosen, process, runs, overwrite)
        if process.from_first(run.outcome is not None):
            return run
        run.forget_stop()
        with progress_bar("training", budget.max_steps, progress and process.is_first) as update:
            train_in_this_process(run, chosen, process, update, stopping.is_set)
        # No one leaves before the first process has written the result.
        process.from_first(None)
    return run


def check(workflow: Workflow, where: str = "") -> tuple[Workflow, int]:
    """Check a workflow against its store: that it is there, that the model fits it, and that a density can fit it.

    Args:
        workflow: What to check.
        where: Its file, for messages.

    Returns:
        The workflow with the absolute path of its store and its fingerprint, and the number of training rows.

    Raises:
        ConfigError: The model section is wrong.
        StoreError: The store is missing, damaged, of another version, or not the one whose fingerprint is given.
        DataError: There are too few events; or a variable is constant, another's copy or discrete, and that is to be
            an error.
    """
    # Workers have a working directory of their own.
    path = workflow.data.store if is_url(workflow.data.store) else str(Path(workflow.data.store).absolute())
    store = open_store(path)
    if workflow.data.fingerprint not in (None, store.fingerprint):
        raise StoreError(f"{path}: its events are not those of data.fingerprint {workflow.data.fingerprint:.16}")
    try:
        density = new_density(workflow, store)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}" if where else str(error)) from None
    rows, layout, fingerprint = training_data(density, store, None, None, None, workflow.training.seed)
    if workflow.training.degenerate == "error" or not under_torchrun() or os.environ["RANK"] == "0":
        examine(density, rows, workflow.training.degenerate, layout)
    data = workflow.data.model_copy(update={"store": path, "fingerprint": fingerprint})
    return workflow.model_copy(update={"data": data, "model": located(workflow.model)}), len(rows.train)


def under_torchrun() -> bool:
    """Whether torchrun has started this process as one of several."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def _opened_by_first(workflow: Workflow, process: Process, runs: str | Path, overwrite: bool) -> Run:
    """Open the run in the first process, and let all of them know how that went."""
    problem: RunError | None = None
    if process.is_first:
        try:
            Run.of(workflow, runs, overwrite)
        except RunError as error:
            problem = error
    problem = process.from_first(problem)
    if problem is not None:
        raise problem
    return Run(Path(runs).absolute() / workflow.name)


@contextmanager
def _joined(workflow: Workflow) -> Iterator[Process]:
    use_gpu = workflow.cluster.use_gpu
    if use_gpu and not torch.cuda.is_available():
        raise ConfigError("cluster.use_gpu: no CUDA device on this machine: leave it out, or run where there is one")
    if not under_torchrun():
        yield Process("cuda" if use_gpu else "cpu", alone=True)
        return
    device = f"cuda:{os.environ['LOCAL_RANK']}" if use_gpu else "cpu"
    if use_gpu:
        torch.cuda.set_device(device)
    torch.distributed.init_process_group("nccl" if use_gpu else "gloo")
    try:
        yield Process(device)
    finally:
        torch.distributed.destroy_process_group()


@contextmanager
def _sigterm() -> Iterator[threading.Event]:
    """Turn SIGTERM into a request to save and leave, where this thread may."""
    stopping = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stopping
        return
    previous = signal.signal(signal.SIGTERM, lambda number, frame: stopping.set())
    try:
        yield stopping
    finally:
        signal.signal(signal.SIGTERM, previous)
