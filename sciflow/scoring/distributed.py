"""Scoring and sampling on Ray: one task a shard, one task a block of draws."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from sciflow.config import Workflow
from sciflow.data.lock import writing
from sciflow.data.place import require_apart
from sciflow.data.store import is_url
from sciflow.density import Density
from sciflow.errors import ConfigError, RunError, SciflowError, first_line
from sciflow.families import load as load_density
from sciflow.model_file import weights_hash
from sciflow.progress import progress_bar
from sciflow.scoring.drawing import Drawing
from sciflow.scoring.output import checked_place
from sciflow.scoring.parts import Scoring
from sciflow.scoring.samples import draw_here
from sciflow.scoring.score import BATCH_SIZE
from sciflow.training.distributed import connected, last_line
from sciflow.training.run import Run, require_ended

__all__ = ["each_here", "each_on_ray", "require_gpu", "require_sendable", "sample_on_ray", "score_on_ray"]


def score_on_ray(
    model: str | Path,
    store: str | Path | None = None,
    out: str | Path | None = None,
    *,
    method: str | None = None,
    options: Mapping[str, Any] | None = None,
    batch_size: int | None = None,
    address: str | None = None,
    local: bool = False,
    use_gpu: bool = False,
    overwrite: bool = False,
    progress: bool = True,
) -> str:
    """Score a store that may be larger than memory; every event once, whatever happens on the way.

    A scoring that was interrupted goes on with the same call, and ends with the same bytes as an unbroken one; one that
    is done is left as it is. Any number of workers writes the same bytes, and so does this process.

    Args:
        model: Folder of a model, or of its run.
        store: The store; all nodes must see it and ``out``. None for the one that the run was trained on.
        out: Zarr store to be written, labelled with the store's coordinates; a path, or a URL that fsspec knows. None
            for ``scoring.out`` of the run's workflow.
        method: ``"exact"``, ``"ode"`` or ``"elbo"``, where the family has it; None for ``scoring.method`` of the run's
            workflow, or the family's own.
        options: Of the method; they stand in front of ``scoring.options`` of the run's workflow, which count where the
            method is the workflow's.
        batch_size: Events at a time; None for ``scoring.batch_size`` of the run's workflow.
        address: Of a running Ray cluster; None starts one on this machine for the time being.
        local: Score in this process, without Ray.
        use_gpu: One GPU a task.
        overwrite: Replace scores that are already there.
        progress: Show a progress bar on a terminal.

    Returns:
        Where the scores are.

    Raises:
        ConfigError: Store or output are left out, and there is no workflow that names them; or the density has no such
            method, or the method no such option.
        StoreError: A shard is missing or damaged; or the output is already there, of another model, store or method, or
            is being written by another process.
        LayoutError: Model and store do not fit.
        RunError: Workers failed for good.
    """
    job = _job(Path(model), store, out, method, options, batch_size)
    if use_gpu:
        require_gpu(address, here=local)

    def work(shard: tuple[str, int]) -> None:
        job.score_shard(*shard, "cuda" if use_gpu else "cpu")

    with _held(job.out):
        waiting = job.begin(overwrite)
        if waiting is None:
            return job.out
        if local:
            each_here(work, waiting, "scoring shards", progress)
        elif waiting:
            each_on_ray(work, waiting, "scoring shards", address, use_gpu, progress)
        job.finish()
    return job.out


def sample_on_ray(
    model: str | Path,
    n: int,
    out: str | Path,
    *,
    context: Any = None,
    options: Mapping[str, Any] | None = None,
    seed: int = 0,
    block_rows: int | None = None,
    address: str | None = None,
    local: bool = False,
    use_gpu: bool = False,
    overwrite: bool = False,
    progress: bool = True,
) -> str:
    """Draw events, more than memory holds if need be, and write them as a Zarr store; one task a block of draws.

    The same seed gives the same bytes on any number of workers, and in this process. A drawing that was interrupted
    goes on with the same call, and ends with the same bytes as an unbroken one; one that is done is left as it is.

    A single block is drawn in this process, unless a cluster is named: that takes less time than starting Ray.

    Args:
        model: Folder of a model, or of its run; all nodes must see it and ``out``.
        n: Number of draws.
        out: Zarr store to be written; a path, or a URL that fsspec knows.
        context: One context, for a conditional density.
        options: Of the density's sampler.
        seed: Of all draws; a GPU makes others of it than a CPU.
        block_rows: Most draws at a time, which bounds the memory of a task; None for 65,536, or 8 MiB of them. Draws
            depend on it.
        address: Of a running Ray cluster; None starts one on this machine for the time being.
        local: Draw in this process, without Ray.
        use_gpu: One GPU a task.
        overwrite: Replace what is there.
        progress: Show a progress bar on a terminal.

    Returns:
        Where the draws are.

    Raises:
        ConfigError: A number is out of range, or the sampler has no such option.
        ModelFileError: The model cannot be read.
        ShapeError: The context is missing, or not one of this density's.
        StoreError: Another output is already there, or is being written by another process.
        RunError: The model's training has not ended; the output cannot be written; or workers failed for good.
    """
    folder, place, device = _absolute(model), _absolute(checked_place(out)), "cuda" if use_gpu else "cpu"
    require_ended(Path(folder))
    density = load_density(folder)
    # Beside the model, in the folder of its run, is a good place.
    own, run = Path(folder, "model"), Run(Path(folder))
    require_apart(place, own if own.is_dir() else folder)
    if run.workflow_file.exists():
        require_apart(place, run.workflow.data.store)
    job = Drawing.of(
        density, n, place, block_rows=block_rows, seed=seed, context=context, options=options, device=device
    )
    elsewhere = bool(address or os.environ.get("RAY_ADDRESS"))
    if use_gpu:
        require_gpu(address, here=local or (len(job) < 2 and not elsewhere))
    with _held(place):
        waiting = job.begin(density, overwrite)
        if waiting is None:
            return place
        if local or (len(waiting) < 2 and not elsewhere):
            draw_here(job, load_density(folder, device) if use_gpu else density, waiting, progress)
        else:

            def work(number: int) -> None:
                job.draw(_opened(folder, device, job.weights), number)

            each_on_ray(work, waiting, "drawing blocks", address, use_gpu, progress)
        job.finish()
    return place


def _job(
    model: Path,
    store: str | Path | None,
    out: str | Path | None,
    method: str | None,
    options: Mapping[str, Any] | None,
    batch_size: int | None,
) -> Scoring:
    """What is to be scored, and how; the run's workflow says what is left out."""
    run = Run(model)
    if run.workflow_file.exists():
        workflow = run.workflow
        store = store or workflow.data.store
        out = out or workflow.scoring.out
        method, options = _known_by(workflow, method, options)
        batch_size = workflow.scoring.batch_size if batch_size is None else batch_size
    if store is None:
        raise ConfigError(f"{model}: not a run, which would know its store: say which store is to be scored")
    if out is None:
        raise ConfigError(f"{model}: where are the scores to go? Give --out, or scoring.out in the workflow")
    return Scoring.of(
        _absolute(model),
        _absolute(store),
        _absolute(checked_place(out)),
        batch_size=BATCH_SIZE if batch_size is None else batch_size,
        method=method,
        options=options,
    )


def _known_by(
    workflow: Workflow, method: str | None, options: Mapping[str, Any] | None
) -> tuple[str | None, Mapping[str, Any]]:
    """Method and options, of which the workflow says what is left out; its options are none of another method."""
    theirs = workflow.scoring
    if method is None or method == theirs.method:
        return theirs.method, {**theirs.options, **(options or {})}
    return method, options or {}


def _absolute(path: str | Path) -> str:
    """Workers have a working directory of their own."""
    path = str(path).removeprefix("file://")
    return path if is_url(path) else str(Path(path).absolute())


def _held(out: str) -> AbstractContextManager[None]:
    """Keep other processes from writing the same; elsewhere than on a file system, two that do write the same bytes."""
    return nullcontext() if is_url(out) else writing(Path(out))


@lru_cache(maxsize=1)
def _opened(model: str, device: str, weights: str) -> Density:
    """A worker's density, kept from one block to the next."""
    density = load_density(model, device)
    if weights_hash(density) != weights:
        raise RunError(f"{model}: another model has taken its place meanwhile: run the same command again")
    return density


def require_gpu(address: str | None, here: bool = False) -> None:
    """Refuse to work on a GPU where there is none, before anything is written.

    Raises:
        ConfigError: There is no such cluster, or no GPU.
    """
    import ray

    # Where no cluster is named, one of this machine is started: there is no need of that to look for its GPU.
    if here or not (address or os.environ.get("RAY_ADDRESS") or ray.is_initialized()):
        if not torch.cuda.is_available():
            raise ConfigError(
                "--gpu (use_gpu=True): this machine has no GPU: leave it out, or name a cluster by --address"
            )
        return
    with connected(address, num_cpus=1):
        _num_slots(use_gpu=True)


def _num_slots(use_gpu: bool) -> int:
    """How many tasks the cluster can run at a time."""
    import ray

    slots = int(ray.cluster_resources().get("GPU" if use_gpu else "CPU", 0))
    if use_gpu and not slots:
        raise ConfigError(
            "--gpu (use_gpu=True): the Ray cluster has no GPU: leave it out, or start a node that has one"
        )
    return slots


def require_sendable(function: Callable[..., Any], what: str) -> None:
    """Refuse a function that workers cannot be given.

    Args:
        function: It goes by cloudpickle, which takes nested functions and lambdas, too.
        what: It is, in the message.

    Raises:
        ConfigError: What it holds cannot be pickled.
    """
    from ray import cloudpickle

    try:
        cloudpickle.dumps(function)
    except Exception as error:
        raise ConfigError(
            f"{what}: cannot be sent to Ray's workers: {first_line(error)}. Open files, locks and connections within "
            "the function, or fit in this process: leave num_workers and address out"
        ) from None


def each_here(work: Callable[[Any], object], items: Sequence[Any], what: str, progress: bool) -> None:
    """Do something with every item, one after the other."""
    with progress_bar(what, len(items), progress) as update:
        for done, item in enumerate(items, 1):
            work(item)
            update(done, "")


def each_on_ray(
    work: Callable[[Any], object],
    items: Sequence[Any],
    what: str,
    address: str | None,
    use_gpu: bool,
    progress: bool,
    num_workers: int | None = None,
    receive: Callable[[Any, Any], None] | None = None,
) -> None:
    """Do something with every item, one Ray task each; a bounded number of them is under way.

    Args:
        work: What is done with an item.
        items: All of them.
        what: What is done, in messages.
        address: Of a running cluster; None starts one on this machine for the time being.
        use_gpu: One GPU a task.
        progress: Show a progress bar on a terminal.
        num_workers: Tasks at a time; None for as many as the cluster has cores.
        receive: Told, in this process, of each item and what ``work`` returned; or of the error, where its task failed
            for good, and the others go on. None for nobody: the first failure ends all.

    Raises:
        ConfigError: There is no such cluster, or it has no GPU.
        SciflowError: What went wrong in a task, as it was raised there.
        RunError: Something else did, again and again.
    """
    with connected(address, num_cpus=num_workers or os.cpu_count() or 1):
        import ray

        have = _num_slots(use_gpu)
        # One more for each that runs, so that none waits for this process.
        most = num_workers or 2 * max(1, have)

        @ray.remote(num_cpus=1, num_gpus=1 if use_gpu else 0, max_retries=3)
        def task(item: Any) -> Any:
            return work(item)

        def start(number: int) -> list[Any]:
            started = {task.remote(item): item for _, item in zip(range(number), queue, strict=False)}
            item_of.update(started)
            return [*started]

        queue = iter(items)
        item_of: dict[Any, Any] = {}
        running = start(most)
        done = 0
        with progress_bar(what, len(items), progress) as update:
            while running:
                finished, running = ray.wait(running, num_returns=1)
                item = item_of.pop(finished[0])
                try:
                    result = ray.get(finished[0])
                except ray.exceptions.RayError as error:
                    cause = getattr(error, "cause", None)
                    result = cause if isinstance(cause, SciflowError) else None
                    if receive is None:
                        for other in running:
                            ray.cancel(other)
                        if result is not None:
                            raise result from None
                        said = last_line(cause or error)
                        raise RunError(f"{what} failed: {said}; the same command goes on") from None
                    result = result or RunError(f"its worker failed: {last_line(cause or error)}")
                if receive is not None:
                    receive(item, result)
                done += 1
                update(done, "")
                running += start(1)
