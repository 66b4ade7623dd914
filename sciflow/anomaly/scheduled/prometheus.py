"""Figures for monitoring, in Prometheus' text format: for its node exporter's folder of text files."""

from __future__ import annotations

import re
import time
from pathlib import Path

from sciflow.anomaly.scheduled.record import DetectionRun
from sciflow.training.files import write_whole

__all__ = ["write_metrics"]

PREFIX = "sciflow_detect_"
# Kind and meaning of each; counters go on from the file that is there.
METRICS = {
    "runs_total": ("counter", "Runs that ended, those included that found nothing new."),
    "failures_total": ("counter", "Runs that ended with an error."),
    "rows_total": ("counter", "Rows judged."),
    "flagged_total": ("counter", "Rows flagged that were not flagged before."),
    "last_run_timestamp_seconds": ("gauge", "When the last run ended."),
    "last_success_timestamp_seconds": ("gauge", "When the last run ended that was no failure."),
    "last_run_seconds": ("gauge", "How long the last run took."),
    "lag_seconds": ("gauge", "From the last time in the results to the end of the last run."),
    "last_rows": ("gauge", "Rows judged by the last run."),
    "last_flagged": ("gauge", "Rows newly flagged by the last run."),
    "unreadable": ("gauge", "Stores and shards that the last run could not read."),
    "undelivered": ("gauge", "Messages that wait to be delivered."),
    "events": ("gauge", "Events in the results."),
    "drift": ("gauge", "1 where the last rows say that the world has moved, 0 where not."),
}
SAMPLE = re.compile(rf"^{PREFIX}(\w+)\{{[^}}]*\}} (\S+)$", re.MULTILINE)


def write_metrics(
    file: Path, workflow: str, run: DetectionRun | None, began: float, latest: float | None, now: float | None = None
) -> None:
    """Write what a run did, whole.

    Args:
        file: Its place.
        workflow: Name of the workflow: every figure's label.
        run: What was done; None of a run that failed.
        began: When the run did, in seconds since 1970.
        latest: The last time in the results, in the same; None where there is none.
        now: The time; by default, that of this machine.
    """
    now = time.time() if now is None else now
    values = _read(file)
    values["runs_total"] = values.get("runs_total", 0) + 1
    values["failures_total"] = values.get("failures_total", 0) + (run is None)
    values["last_run_timestamp_seconds"] = now
    values["last_run_seconds"] = max(0.0, now - began)
    if run is not None:
        for name, value in (("rows", run.rows), ("flagged", run.flagged)):
            values[f"{name}_total"] = values.get(f"{name}_total", 0) + value
            values[f"last_{name}"] = value
        values["last_success_timestamp_seconds"] = now
        values |= {"unreadable": len(run.unreadable), "undelivered": run.undelivered, "events": run.events}
        if run.drift is not None:
            values["drift"] = run.has_moved
        if latest is not None:
            values["lag_seconds"] = now - latest
    lines = []
    for name, (kind, meaning) in METRICS.items():
        if name in values:
            lines += [
                f"# HELP {PREFIX}{name} {meaning}",
                f"# TYPE {PREFIX}{name} {kind}",
                f'{PREFIX}{name}{{workflow="{workflow}"}} {float(values[name]):.15g}',
            ]
    write_whole(file, "\n".join(lines) + "\n")


def _read(file: Path) -> dict[str, float]:
    """The figures of the run before; none where there was none, or the file is not ours."""
    try:
        return {name: float(value) for name, value in SAMPLE.findall(file.read_text()) if name in METRICS}
    except (OSError, ValueError):
        return {}
