"""Training on Ray: workers are started, watched and replaced by Ray Train; what they do is the one loop of all."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import torch

from sciflow import errors
from sciflow.config import Workflow
from sciflow.errors import ConfigError, SciflowError, TrainingError
from sciflow.families import family_of
from sciflow.progress import progress_bar
from sciflow.training import checkpoint as checkpoints
from sciflow.training.budget import Budget
from sciflow.training.files import write_whole
from sciflow.training.metrics import read_metrics
from sciflow.training.process import Process
from sciflow.training.run import DRIVER_LOCK, Run, train_in_this_process

__all__ = ["connected", "last_line", "train_on_ray"]

POLL_SECONDS = 0.3
TAIL_BYTES = 1 << 14


def train_on_ray(
    run: Run, workflow: Workflow, num_rows: int, address: str | None = None, progress: bool = True
) -> None:
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
        RunError: Another process is training the run.
        TrainingError: A worker failed for good.
        SciflowError: What went wrong in a worker, as it was raised there.
        KeyboardInterrupt: The user interrupted; the workers have saved and left.
    """
    # Ray Train looks after its workers at this interval: two seconds by default, which is most of a short run.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
    os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
    with run.locked(seconds=0, name=DRIVER_LOCK):
        _drive(run, workflow, num_rows, address, progress)


def _drive(run: Run, workflow: Workflow, num_rows: int, address: str | None, progress: bool) -> None:
    # Damaged checkpoints are told of here, where the user sees it, and before Ray starts.
    checkpoints.verify(run.folder / "checkpoints")
    failures = run.folder / "failures"
    shutil.rmtree(failures, ignore_errors=True)
    # Of a driver that was killed.
    shutil.rmtree(run.folder / "ray", ignore_errors=True)
    budget = Budget.of(workflow.training, num_rows, family_of(workflow.model).relative_steps)
    cluster = workflow.cluster
    with (
        connected(address, cluster.num_workers * cluster.cpus_per_worker, f"{cluster.num_workers} workers"),
        progress_bar("training", budget.max_steps, progress) as update,
        _signals(run) as interrupted,
    ):
        _fit(run, workflow, failures, update)
    if run.outcome is not None:
        return
    if interrupted.is_set():
        raise KeyboardInterrupt
    if not run.stop_requested():
        raise TrainingError(f"the workers left without a result; the same command goes on from {run.folder}")


def _fit(run: Run, workflow: Workflow, failures: Path, update: Callable[[int, str], None]) -> None:
    import ray.train
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    cluster = workflow.cluster
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
    with _following(run, update):
        try:
            _in_thread(trainer.fit)
        except (ray.train.TrainingFailedError, ray.exceptions.RayError) as error:
            _raise_failure(failures)
            reason = _first_failure(error)
            if isinstance(reason, SciflowError):
                raise reason from None
            # Ray's own error: the process that looks after the workers is lost, and nobody restarts that.
            lost = isinstance(error, ray.exceptions.RayError)
            after = "Ray's controller was lost" if lost else f"training failed after {cluster.max_failures} restarts"
            raise TrainingError(
                f"{after}: {last_line(reason)}; the same command goes on from {run.folder / 'checkpoints'}"
            ) from None
        finally:
            # Nothing in it is ever read again: checkpoints are ours.
            shutil.rmtree(run.folder / "ray", ignore_errors=True)
    _raise_failure(failures)


@contextmanager
def connected(address: str | None, num_cpus: int, what: str = "tasks") -> Iterator[None]:
    """Connect to a Ray cluster, or start one on this machine that ends with the block.

    Args:
        address: Of a running cluster; None starts one.
        num_cpus: Cores that are needed.
        what: What needs them.

    Raises:
        ConfigError: The cluster cannot be reached, or this machine has too few cores for one.
    """
    import ray

    place = address or os.environ.get("RAY_ADDRESS")
    _require_reachable(place)
    if ray.is_initialized():
        yield
        return
    cores = os.cpu_count() or 1
    # Two workers may share a core: on a small machine that is how a workflow is tried out.
    if place is None and num_cpus > max(2, cores):
        raise ConfigError(
            f"cluster: {what} need {num_cpus} cores, this machine has {cores}: lower cluster.num_workers, or name a "
            "cluster with --address"
        )
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    # Ray puts a handler of its own in its place.
    on_sigterm = signal.getsignal(signal.SIGTERM)
    try:
        if place is None:
            # No word of a run leaves the machine for the sake of Ray's statistics.
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
            # "local": not one that somebody else has started on this machine.
            ray.init("local", num_cpus=max(num_cpus, cores), include_dashboard=False, **options)
        else:
            ray.init(place, **options)
    except (ConnectionError, ValueError, RuntimeError, TimeoutError) as error:
        raise ConfigError(f"no Ray cluster at {place or 'this machine'}: {last_line(error)}") from None
    try:
        yield
    finally:
        ray.shutdown()
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, on_sigterm or signal.SIG_DFL)


def _require_reachable(address: str | None) -> None:
    """Try the address's door: Ray itself would go on knocking for minutes."""
    host, colon, port = (address or "").rpartition("://")[2].rpartition(":")
    if not (colon and port.isdigit()):
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
    except (OSError, OverflowError) as error:
        raise ConfigError(f"no Ray cluster at {address}: {error}") from None


def _worker(config: dict[str, Any]) -> None:
    """What every Ray worker does."""
    from ray.train.torch import get_device

    run = Run(Path(config["folder"]))
    workflow = Workflow.model_validate(config["workflow"])
    torch.set_num_threads(workflow.cluster.cpus_per_worker)
    process = Process(get_device())
    failure = run.folder / "failures" / f"{process.rank}.json"
    if any(failure.parent.glob("*.json")):
        return  # What failed once for a reason of its own fails again: nothing is gained by another try.
    try:
        train_in_this_process(run, workflow, process)
    except SciflowError as error:
        try:
            failure.parent.mkdir(exist_ok=True)
            write_whole(failure, json.dumps({"kind": type(error).__name__, "message": str(error)}))
        except OSError:
            raise error from None  # The disk is full: Ray tells of it, after it has tried again.
        if process.world_size > 1 and not isinstance(error, TrainingError):
            raise  # The other workers may be waiting for this one; a TrainingError is known to all.


def _in_thread(call: Callable[[], Any]) -> None:
    """Run a call in a thread and wait for it, so that signals stay this process's own.

    On the main thread Ray Train puts its own handler of SIGINT in place of Python's, and leaves it there.
    """
    failed: list[BaseException] = []

    def run() -> None:
        try:
            call()
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(POLL_SECONDS)
    if failed:
        raise failed[0]


@contextmanager
def _signals(run: Run) -> Iterator[threading.Event]:
    """Pass SIGTERM and SIGINT on to the workers as a request to save and leave; the second SIGINT interrupts at once.

    Yields:
        An event that is set by SIGINT.
    """
    run.forget_stop()
    interrupted = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield interrupted
        return

    def stop(number: int, frame: Any) -> None:
        if interrupted.is_set():
            raise KeyboardInterrupt
        if number == signal.SIGINT:
            interrupted.set()
        run.request_stop()

    previous = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield interrupted
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler or signal.SIG_DFL)


@contextmanager
def _following(run: Run, update: Callable[[int, str], None]) -> Iterator[None]:
    """Show the progress that the first worker writes down."""
    ended = threading.Event()

    def follow() -> None:
        while not ended.wait(POLL_SECONDS):
            records = read_metrics(run.folder / "metrics.jsonl", TAIL_BYTES)
            if records:
                losses = [f"{n} {r[n]:.3f}" for r in records for n in ("loss", "objective") if n in r][-1:]
                judged = ("validation_log_prob", "validation_score")
                found = [f"validation {r[name]:.3f}" for r in records for name in judged if name in r]
                update(records[-1]["step"], ", ".join(losses + found[-1:]))

    follower = threading.Thread(target=follow, daemon=True)
    follower.start()
    try:
        yield
    finally:
        ended.set()
        follower.join()


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
                f"cluster: {cluster.num_workers} workers need {need} {name}s, the Ray cluster has "
                f"{have.get(name, 0):g}: lower cluster.num_workers, or start more nodes"
            )


def _raise_failure(folder: Path) -> None:
    """Raise what a worker wrote down, as the same kind of error."""
    for path in sorted(folder.glob("*.json")):
        record = json.loads(path.read_text())
        raise getattr(errors, record["kind"], TrainingError)(record["message"])


def _first_failure(error: Exception) -> BaseException:
    """What a worker raised, where Ray Train knows."""
    for _, failure in sorted(getattr(error, "worker_failures", {}).items()):
        return getattr(failure, "cause", None) or failure
    return error


def last_line(error: BaseException) -> str:
    """What an error says, in one line: of a traceback in words, the last."""
    import ray.exceptions

    if isinstance(error, ray.exceptions.OutOfMemoryError):
        # In place of a page of advice; that of a GPU is torch's, and short.
        return "a node ran out of memory (lower training.batch_size or training.shuffle_megabytes, or give it more)"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
