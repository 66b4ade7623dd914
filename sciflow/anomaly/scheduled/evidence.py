"""What speaks for a row's being odd: its p-value, computed when it is asked for."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from sciflow.anomaly.scheduled.plan import Plan, Unit
from sciflow.anomaly.scheduled.tasks import Task
from sciflow.anomaly.scheduled.watch import Opened

if TYPE_CHECKING:
    from sciflow.anomaly.detector import Detector
    from sciflow.anomaly.reference import PValues

__all__ = ["Evidence"]


@dataclass(frozen=True)
class Evidence:
    """Scores and p-values of a plan's rows. None of them is kept, so that memory does not grow with the rows.

    Attributes:
        plan: What was to be scored.
        task: Knows the scores.
        detector: Calibrated.
    """

    plan: Plan
    task: Task
    detector: Detector

    def inside(self, unit: Unit) -> np.ndarray | None:
        """Places in a shard of the rows that are judged; None where all of them are."""
        if self.plan.span is None or unit.is_new:
            return None
        opened = self.plan.opened(unit.store)
        dim = opened.grid.dims[0]
        covered = self.plan.span.covers(dim, opened.along[dim].values)
        return np.flatnonzero(covered[self.task.scores(unit)[0] // opened.grid.inner_size])

    def p_values(self, unit: Unit, rows: np.ndarray | None) -> PValues:
        """Of some rows of a shard; None for all of it."""
        index, score = self.task.scores(unit)
        if rows is not None:
            index, score = index[rows], score[rows]
        return self.detector.calibration.p_values(score, groups=self.groups(unit.store, index))

    def groups(self, store: str, places: np.ndarray) -> np.ndarray | None:
        """Labels of rows, by their places in a store's grid; None where nothing is calibrated apart."""
        if self.detector.group is None:
            return None
        return _labels(self.plan.opened(store), self.detector.group)[places]


@lru_cache(maxsize=1)
def _labels(opened: Opened, group: str) -> np.ndarray:
    """Groups of all rows of a store, kept from one shard to the next."""
    from sciflow.anomaly.groups import group_labels

    return group_labels(group, opened.store.coordinates, opened.grid.dims, opened.store.layout.grid_shape)
