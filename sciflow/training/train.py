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
from sciflow.errors import ConfigError
from sciflow.progress import progress_bar
from sciflow.training.budget import Budget
from sciflow.training.process import Process
from sciflow.training.run import Run, new_density, train_in_this_process

__all__ = ["check", "train"]


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
    chosen = load_workflow(workflow, overrides)
    if not is_url(chosen.data.store):
        # Workers have a working directory of their own.
        store = str(Path(chosen.data.store).absolute())
        chosen = chosen.model_copy(update={"data": chosen.data.model_copy(update={"store": store})})
    num_rows = check(chosen)
    torchrun = "TORCHELASTIC_RUN_ID" in os.environ
    if torchrun and int(os.environ["RANK"]) > 0:
        run = Run(Path(runs).absolute() / chosen.name)
    else:
        run = Run.of(chosen, runs, overwrite)
    if run.outcome is not None:
        return run
    if not (local or torchrun):
        from sciflow.training.distributed import train_on_ray

        train_on_ray(run, chosen, num_rows, address, progress)
        return run
    run.forget_stop()
    budget = Budget.of(chosen.training, num_rows)
    with _joined(chosen, torchrun) as process, _sigterm() as stopping:
        with progress_bar("training", budget.max_steps, progress and process.is_first) as update:
            train_in_this_process(run, chosen, process, update, stopping.is_set)
    return run


def check(workflow: Workflow) -> int:
    """Check a workflow against its store: that it is there, and that the model fits it.

    Returns:
        The number of training rows.

    Raises:
        ConfigError: The model section is wrong.
        StoreError: The store is missing, damaged, or of another version.
        DataError: A variable is constant.
    """
    store = open_store(workflow.data.store)
    new_density(workflow, store)
    return len(store.train)


@contextmanager
def _joined(workflow: Workflow, torchrun: bool) -> Iterator[Process]:
    use_gpu = workflow.cluster.use_gpu
    if use_gpu and not torch.cuda.is_available():
        raise ConfigError("cluster.use_gpu: there is no CUDA device on this machine: leave it out, or run where there is one")
    if not torchrun:
        yield Process("cuda" if use_gpu else "cpu")
        return
    torch.distributed.init_process_group("nccl" if use_gpu else "gloo")
    try:
        yield Process(f"cuda:{os.environ['LOCAL_RANK']}" if use_gpu else "cpu")
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
