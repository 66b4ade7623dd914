"""Training on Ray: workers are started, watched and replaced by Ray Train; what they do is the one loop of all."""

from __future__ import annotations

import json
import logging
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import torch

from sciflow import errors
from sciflow.config import Workflow
from sciflow.errors import ConfigError, SciflowError, TrainingError
from sciflow.progress import progress_bar
from sciflow.training.budget import Budget
from sciflow.training.metrics import read_metrics
from sciflow.training.process import Process
from sciflow.training.run import Run, train_in_this_process, write_whole

__all__ = ["connected", "train_on_ray"]

POLL_SECONDS = 0.3


def train_on_ray(run: Run, workflow: Workflow, num_rows: int, address: str | None = None, progress: bool = True) -> None:
    """Train a run on Ray workers; a lost worker is replaced, and training goes on from the last checkpoint.

    Checkpoints are our own, in the run's folder: Ray Train commits its own only at its next poll, and takes a damaged
    one for fatal.

    Args:
        run: The run; its folder is seen by all nodes.
        workflow: Its workflow.
        num_rows: Training rows, for the length of the progress bar.
        address: Of a running cluster; None starts one on this machine for the time of the run.
        progress: Show a progress bar on a terminal.

    Raises:
        ConfigError: The cluster cannot be reached, or has not the resources asked for.
        TrainingError: A worker failed for good.
        SciflowError: What went wrong in a worker, as it was raised there.
    """
    # Ray Train looks after its workers at this interval: a second by default, which is most of a short run.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
    os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
    failures = run.folder / "failures"
    for old in failures.glob("*.json"):
        old.unlink()
    cluster = workflow.cluster
    with connected(address, num_cpus=cluster.num_workers * cluster.cpus_per_worker):
        import ray.train
        from ray.train import FailureConfig, RunConfig, ScalingConfig
        from ray.train.torch import TorchConfig, TorchTrainer

        _require_resources(workflow)
        trainer = TorchTrainer(
            _worker,
            train_loop_config={"folder": str(run.folder), "workflow": workflow.model_dump(mode="json")},
            scaling_config=ScalingConfig(
                num_workers=cluster.num_workers,
                use_gpu=cluster.use_gpu,
                resources_per_worker={"CPU": cluster.cpus_per_worker, **({"GPU": 1} if cluster.use_gpu else {})},
            ),
            # A name of its own for every start: what a run goes on from is ours, not Ray's.
            run_config=RunConfig(
                name=f"{workflow.name}-{datetime.now():%Y%m%d-%H%M%S-%f}",
                storage_path=str(run.folder / "ray"),
                failure_config=FailureConfig(max_failures=cluster.max_failures),
            ),
            torch_config=TorchConfig(backend="nccl" if cluster.use_gpu else "gloo"),
        )
        budget = Budget.of(workflow.training, num_rows)
        with progress_bar("training", budget.max_steps, progress) as update, _watched(run, update):
            try:
                trainer.fit()
            except ray.train.TrainingFailedError as error:
                _raise_failure(failures)
                raise TrainingError(
                    f"training failed after {cluster.max_failures} restarts: {_last_line(error)}; "
                    f"the same command goes on from {run.folder / 'checkpoints'}"
                ) from None
        _raise_failure(failures)
        if run.outcome is None and not run.stop_requested():
            raise TrainingError(f"the workers left without a result; the same command goes on from {run.folder}")


@contextmanager
def connected(address: str | None, num_cpus: int) -> Iterator[None]:
    """Connect to a Ray cluster, or start one on this machine that ends with the block.

    Raises:
        ConfigError: The cluster cannot be reached.
    """
    import ray

    if ray.is_initialized():
        yield
        return
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    try:
        if address is None and "RAY_ADDRESS" not in os.environ:
            ray.init(num_cpus=max(num_cpus, os.cpu_count() or 1), include_dashboard=False, **options)
        else:
            ray.init(address=address or "auto", **options)
    except (ConnectionError, ValueError, RuntimeError, TimeoutError) as error:
        raise ConfigError(f"no Ray cluster at {address}: {str(error).splitlines()[0]}") from None
    try:
        yield
    finally:
        ray.shutdown()


def _worker(config: dict[str, Any]) -> None:
    """What every Ray worker does."""
    from ray.train.torch import get_device

    run = Run(Path(config["folder"]))
    workflow = Workflow.model_validate(config["workflow"])
    torch.set_num_threads(workflow.cluster.cpus_per_worker)
    process = Process(get_device())
    failure = run.folder / "failures" / f"{process.rank}.json"
    if failure.parent.exists() and any(failure.parent.glob("*.json")):
        return  # What failed once for a reason of its own fails again: nothing is gained by another try.
    try:
        train_in_this_process(run, workflow, process)
    except SciflowError as error:
        failure.parent.mkdir(exist_ok=True)
        write_whole(failure, json.dumps({"kind": type(error).__name__, "message": str(error)}))
        if not isinstance(error, TrainingError):
            raise  # The other workers may be waiting for this one; a TrainingError is known to all.


@contextmanager
def _watched(run: Run, update: Any) -> Iterator[None]:
    """Show the progress that the first worker writes down, and pass SIGTERM on to the workers as a request to stop."""
    run.forget_stop()
    ended = threading.Event()

    def follow() -> None:
        while not ended.wait(POLL_SECONDS):
            records = read_metrics(run.folder / "metrics.jsonl")[-50:]
            if records:
                losses = [f"loss {r['loss']:.3f}" for r in records if "loss" in r][-1:]
                found = [f"validation {r['validation_log_prob']:.3f}" for r in records if "validation_log_prob" in r]
                update(records[-1]["step"], ", ".join(losses + found[-1:]))

    previous: Any = None
    on_main_thread = threading.current_thread() is threading.main_thread()
    if on_main_thread:
        previous = signal.signal(signal.SIGTERM, lambda number, frame: run.request_stop())
    follower = threading.Thread(target=follow, daemon=True)
    follower.start()
    try:
        yield
    finally:
        ended.set()
        follower.join()
        if on_main_thread:
            signal.signal(signal.SIGTERM, previous)


def _require_resources(workflow: Workflow) -> None:
    import ray

    have = ray.cluster_resources()
    cluster = workflow.cluster
    for name, need in (
        ("CPU", cluster.num_workers * cluster.cpus_per_worker),
        ("GPU", cluster.num_workers * cluster.use_gpu),
    ):
        if need > have.get(name, 0):
            raise ConfigError(
                f"cluster: {cluster.num_workers} workers need {need} {name}s, the Ray cluster has {have.get(name, 0):g}: "
                "lower cluster.num_workers, or start more nodes"
            )


def _raise_failure(folder: Path) -> None:
    """Raise what a worker wrote down, as the same kind of error."""
    for path in sorted(folder.glob("*.json")):
        record = json.loads(path.read_text())
        raise getattr(errors, record["kind"], TrainingError)(record["message"])


def _last_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
