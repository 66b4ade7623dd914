"""Detection every morning, by Airflow 3: a file for its folder of DAGs. What is judged is in the workflow file.

A run that was killed, retried or called late does what is left to be done, and nothing twice. To judge a range anew,
trigger the DAG with ``{"start": "2026-01", "stop": "2026-02"}``.
"""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from airflow.sdk import dag, task

# The folder that holds workflows/ and runs/, which all workers see.
ROOT = Path(os.environ.get("SCIFLOW_ROOT", "/srv/climate"))


@dag(
    schedule="17 6 * * *",
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    catchup=False,  # what came in since the last run is found by what it holds, not by the date of the run
    max_active_runs=1,
    default_args={"retries": 2, "retry_delay": timedelta(minutes=10)},
    params={"start": None, "stop": None},
)
def era5_detection() -> None:
    """Judge what is new, and fail where an input could not be read."""

    @task
    def detect(params: dict[str, Any] | None = None) -> dict[str, Any]:
        import sciflow as sf

        given = params or {}
        run = sf.detect(
            ROOT / "workflows" / "era5_daily_cycle.yaml",
            start=given.get("start"),
            stop=given.get("stop"),
            runs=ROOT / "runs",
            wait=3600,
            progress=False,
        )
        if run.unreadable:
            raise RuntimeError("; ".join(run.unreadable))
        return {"rows": run.rows, "flagged": run.flagged, "drift": run.drift, "report": str(run.out / "report.html")}

    detect()


era5_detection()
