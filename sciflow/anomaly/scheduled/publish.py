"""What is made of the results for readers: the table of events, and the page."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sciflow.anomaly.scheduled.results import Chunks, Results, told_of_damage

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

    from sciflow.anomaly.detector import Detector

__all__ = ["publish"]

# The last ones are drawn.
ROWS_ON_PAGE = 1 << 20


def publish(
    folder: Path, detector: Detector, gap: int, title: str, drift: Any, facts: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Write ``events.parquet``, ``events.csv`` and ``report.html`` beside the results.

    Args:
        folder: The version, with its results.
        detector: What has judged them.
        gap: Positions without a flag that an event may have.
        title: Of the page.
        drift: What the test for drift found, or None.
        facts: What else stands on the page.

    Returns:
        All events, the highest peak first: what each is called, its peak and its p-value.

    Raises:
        StoreError: Results that are shared with the version before are damaged.
    """
    import xarray as xr

    from sciflow.anomaly.events import merge_events, write_events
    from sciflow.anomaly.page import write_detection_page

    found = xr.open_zarr(str(folder / "results.zarr"), chunks=None)
    with told_of_damage(folder / "results.zarr"):
        flagged, neighbours = _flagged(found, folder)
        events = merge_events(flagged, gap=gap, neighbours=neighbours)
    write_events(events, folder)
    write_detection_page(
        folder / "report.html",
        _last(found),
        events,
        calibration_scores=detector.calibration.scores,
        drift=drift,
        title=title,
        facts=facts,
    )
    return _named(events)


def _flagged(found: xr.Dataset, folder: Path) -> tuple[xr.Dataset, tuple[str, ...] | None]:
    """The part of the results that has flags, and its dimensions with neighbours, if not those that have an order.

    Chunks without a flag are not even there to be read. Rows of a table are nobody's neighbours: the flagged ones do.
    """
    flag = found["flag"]
    dim, size = str(flag.dims[0]), flag.shape[0]
    length = Chunks.of(Results(folder / "results.zarr").grid).length
    place = folder / "results.zarr" / "flag" / "c"
    chunks = sorted(int(entry.name) for entry in place.iterdir()) if place.exists() else []
    parts = [np.arange(number * length, min((number + 1) * length, size)) for number in chunks]
    if dim in found.coords:
        positions = np.concatenate([np.empty(0, np.int64), *parts])
        return (found if len(positions) == size else found.isel({dim: positions})), None
    if flag.ndim > 1:
        return found, None
    rows = [part[flag.isel({dim: slice(part[0], part[-1] + 1)}).values] for part in parts]
    positions = np.concatenate([np.empty(0, np.int64), *rows])
    return found.isel({dim: positions}).assign_coords({dim: positions}), ()


def _last(found: xr.Dataset) -> xr.Dataset:
    """As much of the end as is drawn."""
    flag = found["flag"]
    dim, size = str(flag.dims[0]), flag.shape[0]
    most = max(1, ROWS_ON_PAGE // max(1, flag[0].size if size else 1))
    if size <= most:
        return found
    last = found.isel({dim: slice(size - most, None)})
    return last if dim in last.coords else last.assign_coords({dim: np.arange(size - most, size)})


def _named(events: pd.DataFrame) -> list[dict[str, Any]]:
    columns = [events[name].tolist() for name in ("id", "peak", "p_value", "cells")]
    return [
        # JSON has no infinity.
        {"id": name, "peak": peak if math.isfinite(peak) else None, "p_value": p_value, "rows": rows}
        for name, peak, p_value, rows in zip(*columns, strict=True)
    ]
