"""Which new rows the test for drift looks at: few enough, and as far apart as makes them independent."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np

from sciflow.anomaly.scheduled.plan import Unit
from sciflow.anomaly.scheduled.tasks import Task

__all__ = ["sampled"]

MOST_ROWS = 1 << 16


def sampled(task: Task, units: Sequence[Unit], inner_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Choose rows of one store's shards.

    Rows at one position of the first dimension, as the cells of a day, resemble each other: a day on which all of them
    are a little warm is no moved world. So of each position one row counts, which changes from one to the next.

    Args:
        task: Knows places and scores.
        units: Shards, all rows of which are new.
        inner_size: Rows at one position.

    Returns:
        Places in the store's grid, in order, and scores.
    """
    found = [(np.empty(0, np.int64), np.empty(0))]
    for unit in units:
        index, score = task.scores(unit)
        rows = np.arange(len(index))
        if inner_size > 1:
            position, inside = np.divmod(index, inner_size)
            # By the name of the store, too: a store may well hold one day.
            chosen = (zlib.crc32(unit.store.encode()) + position * 2654435761) % inner_size
            rows = np.flatnonzero(inside == chosen)
        rows = rows[:: max(1, -(-len(rows) * len(units) // MOST_ROWS))]
        found.append((index[rows], score[rows]))
    places, scores = (np.concatenate(column) for column in zip(*found, strict=True))
    order = np.argsort(places, kind="stable")
    return places[order], scores[order]
