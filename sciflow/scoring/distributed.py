"""Scoring on Ray: one task a shard."""

from __future__ import annotations

import os
from contextlib import nullcontext
from pathlib import Path

import torch

from sciflow.data.lock import writing
from sciflow.data.store import is_url
from sciflow.errors import ConfigError, RunError, SciflowError
from sciflow.progress import progress_bar
from sciflow.scoring.parts import Scoring
from sciflow.scoring.score import BATCH_SIZE
from sciflow.training.distributed import connected, last_line
from sciflow.training.run import Run

__all__ = ["score_on_ray"]


def score_on_ray(
    model: str | Path,
    store: str | Path | None = None,
    out: str | Path | None = None,
    *,
    address: str | None = None,
    batch_size: int | None = None,
    use_gpu: bool = False,
    overwrite: bool = False,
    progress: bool = True,
) -> str:
    """Score a store that may be larger than memory; every event once, whatever happens on the way.

    A scoring that was interrupted goes on with the same call, and ends with the same bytes as an unbroken one; one that
    is done is left as it is.

    Args:
        model: Folder of a model, or of its run.
        store: The store; all nodes must see it and ``out``. None for the one that the run was trained on.
        out: Zarr store to be written, labelled with the store's coordinates; a path, or a URL that fsspec knows. None
            for ``scoring.out`` of the run's workflow.
        address: Of a running Ray cluster; None starts one on this machine for the time being.
        batch_size: Events at a time; None for ``scoring.batch_size`` of the run's workflow.
        use_gpu: One GPU a task.
        overwrite: Replace scores that are already there.
        progress: Show a progress bar on a terminal.

    Returns:
        Where the scores are.

    Raises:
        ConfigError: Store or output are left out, and there is no workflow that names them.
        StoreError: A shard is missing or damaged; or the output is already there, of another model or store, or is
            being written by another process.
        LayoutError: Model and store do not fit.
        RunError: Workers failed for good.
    """
    job = _job(Path(model), store, out, batch_size)
    # Elsewhere there are no locks: two that score the same at the same time write the same.
    with nullcontext() if is_url(job.out) else writing(Path(job.out)):
        waiting = job.begin(overwrite)
        if waiting:
            _score_shards(job, waiting, address, use_gpu, progress)
        if waiting is not None:
            job.finish()
    return job.out


def _job(model: Path, store: str | Path | None, out: str | Path | None, batch_size: int | None) -> Scoring:
    run = Run(model)
    workflow = run.workflow if run.workflow_file.exists() else None
    if workflow is not None:
        store = store or workflow.data.store
        out = out or workflow.scoring.out
        batch_size = batch_size or workflow.scoring.batch_size
    if store is None:
        raise ConfigError(f"{model}: not a run, which would know its store: say which store is to be scored")
    if out is None:
        raise ConfigError(f"{model}: where are the scores to go? Give --out, or scoring.out in the workflow")
    return Scoring(_absolute(model), _absolute(store), _absolute(out), batch_size or BATCH_SIZE)


def _absolute(path: str | Path) -> str:
    """Workers have a working directory of their own."""
    path = str(path).removeprefix("file://")
    return path if is_url(path) else str(Path(path).absolute())


def _score_shards(
    job: Scoring, waiting: list[tuple[str, int]], address: str | None, use_gpu: bool, progress: bool
) -> None:
    with connected(address, num_cpus=os.cpu_count() or 1):
        import ray

        @ray.remote(num_cpus=1, num_gpus=1 if use_gpu else 0, max_retries=3)
        def score_shard(split: str, number: int) -> int:
            # One thread a task: as many tasks as cores, and figures that do not depend on how many there are.
            torch.set_num_threads(1)
            return job.score_shard(split, number, "cuda" if use_gpu else "cpu")

        at_once = 2 * max(1, int(ray.cluster_resources().get("GPU" if use_gpu else "CPU", 1)))
        queue = iter(waiting)
        running = [score_shard.remote(*shard) for _, shard in zip(range(at_once), queue, strict=False)]
        done = 0
        with progress_bar("scoring shards", len(waiting), progress) as update:
            while running:
                finished, running = ray.wait(running, num_returns=1)
                try:
                    ray.get(finished)
                except ray.exceptions.RayError as error:
                    for task in running:
                        ray.cancel(task)
                    cause = getattr(error, "cause", None)
                    if isinstance(cause, SciflowError):
                        raise cause from None
                    raise RunError(f"scoring failed: {last_line(cause or error)}; the same command goes on") from None
                done += 1
                update(done, "")
                running += [score_shard.remote(*shard) for _, shard in zip(range(1), queue, strict=False)]
