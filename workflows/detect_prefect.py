"""Detection every morning, by Prefect 3: run this file, and it waits. What is judged is in the workflow file.

A run that was killed, retried or called late does what is left to be done, and nothing twice. To judge a range anew,
run the flow with the parameters ``start`` and ``stop``.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from prefect import flow, task

# The folder that holds workflows/ and runs/.
ROOT = Path(os.environ.get("SCIFLOW_ROOT", "/srv/climate"))


@task(retries=2, retry_delay_seconds=600)
def detect(start: str | None, stop: str | None) -> dict[str, Any]:
    """Judge what is new, or a range; an input that could not be read is a failure, and all others are done."""
    import sciflow as sf

    workflow = ROOT / "workflows" / "era5_daily_cycle.yaml"
    run = sf.detect(workflow, start=start, stop=stop, runs=ROOT / "runs", wait=3600, progress=False)
    if run.unreadable:
        raise RuntimeError("; ".join(run.unreadable))
    return {"rows": run.rows, "flagged": run.flagged, "drift": run.drift, "report": str(run.out / "report.html")}


@flow(name="era5-detection")
def era5_detection(start: str | None = None, stop: str | None = None) -> dict[str, Any]:
    """One run of detection."""
    return detect(start, stop)


if __name__ == "__main__":
    era5_detection.serve(name="every-morning", cron="17 6 * * *", limit=1)
