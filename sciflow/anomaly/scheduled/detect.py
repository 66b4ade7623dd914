"""``sciflow.detect``: what a scheduler calls."""

from __future__ import annotations

import os
import re
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from sciflow.anomaly.scheduled.folder import Folder
from sciflow.anomaly.scheduled.gap import require_time
from sciflow.anomaly.scheduled.job import Each, Job
from sciflow.anomaly.scheduled.ledger import Ledger
from sciflow.anomaly.scheduled.notify import deliver, wanted
from sciflow.anomaly.scheduled.plan import Plan, make_plan
from sciflow.anomaly.scheduled.prometheus import write_metrics
from sciflow.anomaly.scheduled.record import DetectionRun
from sciflow.anomaly.scheduled.results import Results
from sciflow.anomaly.scheduled.span import Span
from sciflow.anomaly.scheduled.watch import watched
from sciflow.anomaly.scheduled.work import carry_out
from sciflow.config import Workflow, load_workflow
from sciflow.errors import RunError, SciflowError

__all__ = ["detect", "plan_of"]

# As NumPy spells the times of our calendar.
TIME = re.compile(r"-?\d{4,}-\d\d-\d\dT[\d:.]+$")


def detect(
    workflow: str | Path | Mapping[str, Any] | Workflow,
    overrides: Sequence[str] = (),
    *,
    start: Any = None,
    stop: Any = None,
    address: str | None = None,
    local: bool = False,
    wait: float = 0.0,
    use_gpu: bool = False,
    runs: str | Path = "runs",
    progress: bool = True,
) -> DetectionRun:
    """Judge what is new in the stores that a workflow watches, once, and put it beside what was there.

    What was done lies with the results: the call may come from any machine, at any time, as often as one likes. Killed
    at any moment, the next call goes on, and ends with the same bytes. Of two at a time, one waits or leaves.

    Args:
        workflow: A workflow file, or what it would hold; ``sciflow train`` has trained it.
        overrides: ``key=value`` with dots, such as ``detection.fdr=0.05``.
        start: With ``stop``, a range along the first dimension that is counted, judged anew as a whole: dates, numbers,
            or the beginnings of dates such as ``2026-01``.
        stop: The last one in the range.
        address: Of a running Ray cluster; None starts one on this machine for the time of the run.
        local: Work in this process, without Ray. A single shard is no work for a cluster, unless one is named.
        wait: Seconds to wait for another run that is at work on the same results.
        use_gpu: One GPU a task. Scores are those of a processor but for the last digits: stay with one or the other.
        runs: Folder of the runs; all nodes must see it, the stores and the results.
        progress: Show progress bars on a terminal.

    Returns:
        What was done; its ``exit_code`` is that of the command.

    Raises:
        ConfigError: The workflow is wrong, the range is none, or there is no GPU.
        RunError: There is no trained run, or another run is at work and does not end.
        StoreError: The results were written by another version, or something else is in their place.
    """
    job = Job.of(load_workflow(workflow, overrides), runs, "cuda" if use_gpu else "cpu")
    if use_gpu:
        from sciflow.scoring.distributed import require_gpu

        require_gpu(address, here=local)
    span, folder, began = Span.of(start, stop), job.folder, time.time()
    with folder.locked(wait):
        try:
            with _workers(address, local, use_gpu, progress) as each:
                run = _run(job, folder, span, each)
        except BaseException as error:
            with suppress(OSError):
                write_metrics(folder.path / "metrics.prom", job.settings.name, None, began, None)
            if isinstance(error, SciflowError) or not isinstance(error, OSError):
                raise
            raise RunError(
                f"{error.filename or folder.path}: cannot be written: {error.strerror or error}; results are as they "
                "were before: make room or mend it, and run the same command again"
            ) from None
        figures = folder.path / "metrics.prom"
        try:
            write_metrics(figures, job.settings.name, run, began, _latest(folder.ledger))
        except OSError as error:
            # The results are in place, and whoever is to hear of them has: that is no failure of the run.
            warnings.warn(
                f"{figures}: cannot be written, figures are as before: {error.strerror or error}", stacklevel=2
            )
    return run


def plan_of(
    workflow: str | Path | Mapping[str, Any] | Workflow,
    overrides: Sequence[str] = (),
    *,
    start: Any = None,
    stop: Any = None,
    runs: str | Path = "runs",
) -> Plan:
    """Say what :func:`detect` would do, and write nothing. Arguments and errors are its own."""
    job = Job.of(load_workflow(workflow, overrides), runs)
    job.folder.require_whole()
    return _unfinished(job, job.folder) or _plan(job, job.folder, Span.of(start, stop))


def _run(job: Job, folder: Folder, span: Span | None, each: Each) -> DetectionRun:
    done = []
    folder.require_whole()
    theirs = folder.ledger.workflow
    if theirs not in ("", job.settings.name):
        raise RunError(f"{folder.path}: holds what was found by the workflow {theirs}: choose another detection.out")
    plan = _unfinished(job, folder)
    if plan is not None:
        done.append(carry_out(job, folder, plan, each))
    if plan is None or span is None or plan.span != span:
        plan = _plan(job, folder, span)
        if plan.parts:
            plan.write(folder.work / "plan.json")
            done.append(carry_out(job, folder, plan, each))
        else:
            notes = [f"no store matches {pattern}" for pattern in job.patterns if not watched([pattern])]
            if span is not None:
                notes.append(f"no store holds anything {span}")
            done.append({"unreadable": [*plan.unreadable.values()], "notes": notes})
    folder.tidy()
    return _tell(job, folder, _summed(folder, done))


def _plan(job: Job, folder: Folder, span: Span | None) -> Plan:
    current = folder.current
    old = None if current is None else Results(current / "results.zarr")
    grid, axis = (None, None) if old is None else (old.grid, old.axis)
    return _checked(job, make_plan(folder.ledger, watched(job.patterns), job.key, job.layout, grid, axis, span))


def _unfinished(job: Job, folder: Folder) -> Plan | None:
    """What a run that was killed had to do, unless it is done, or can no longer be done as it was meant."""
    plan = Plan.read(folder.work / "plan.json")
    return _checked(job, plan) if plan is not None and plan.still_holds(folder.ledger.number + 1, job.key) else None


def _checked(job: Job, plan: Plan) -> Plan:
    """A plan, whose events can be merged as is asked for: once all is scored, it is late to say that they cannot."""
    for name in [*plan.parts][:1]:  # The others go together with it.
        opened = plan.opened(name)
        require_time(job.settings.detection.events.gap, opened.grid, opened.along)
    return plan


def _summed(folder: Folder, done: Sequence[dict[str, Any]]) -> DetectionRun:
    ledger = folder.ledger
    drift = [run for run in done if run.get("drift") is not None][-1:]
    last = ledger.runs[-1] if ledger.runs else {}
    return DetectionRun(
        folder.path,
        number=ledger.number,
        stores=tuple(sorted({name for run in done for name in run.get("stores", ())})),
        shards=sum(run.get("shards", 0) for run in done),
        rows=sum(run.get("rows", 0) for run in done),
        events=last.get("events", 0),
        unreadable=tuple(done[-1]["unreadable"]) if done else (),
        drift=drift[0]["drift"] if drift else None,
        has_moved=bool(drift and drift[0]["has_moved"]),
        notes=tuple(note for run in done for note in run.get("notes", ())),
    )


def _tell(job: Job, folder: Folder, run: DetectionRun) -> DetectionRun:
    """Deliver what has not been, and count what nobody has been told of: a run may have been killed in between."""
    ledger, settings = folder.ledger, job.settings.detection.notify
    flagged = sum(message["flagged"] for message in ledger.outbox if not message["told"])
    waiting = []
    for number, message in enumerate(ledger.outbox):
        told = {name: value for name, value in message.items() if name != "told"}
        problem = deliver(settings, {**told, "results": str(folder.path)}) if wanted(settings) else None
        if problem is not None:
            warnings.warn(f"not delivered, and tried again by the next run: {problem}", stacklevel=2)
            waiting.append({**message, "told": True})
        folder.rewrite(replace(ledger, outbox=[*waiting, *ledger.outbox[number + 1 :]]))
    return replace(run, flagged=flagged, undelivered=len(waiting))


def _latest(ledger: Ledger) -> float | None:
    """The last time in the results, in seconds since 1970; None where they have no times."""
    words = ledger.watermark or ""
    return float(np.datetime64(words, "s").astype(np.int64)) if TIME.match(words) else None


@contextmanager
def _workers(address: str | None, local: bool, use_gpu: bool, progress: bool) -> Iterator[Each]:
    """Who works on shards: this process, or a cluster that is started when there is work for it."""
    from sciflow.scoring.distributed import each_here, each_on_ray
    from sciflow.training.distributed import connected

    elsewhere = bool(address or os.environ.get("RAY_ADDRESS"))
    with ExitStack() as stack:
        is_connected = False

        def each(work: Callable[[Any], object], items: Sequence[Any], what: str) -> None:
            nonlocal is_connected
            if local or not (is_connected or elsewhere or len(items) > 1):
                each_here(work, items, what, progress)
            elif items:
                if not is_connected:
                    stack.enter_context(connected(address, os.cpu_count() or 1))
                    is_connected = True
                each_on_ray(work, items, what, address, use_gpu, progress)

        yield each
