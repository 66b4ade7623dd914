"""A shard's rows on their way into the results."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from sciflow.anomaly.scheduled.judge import Rows
from sciflow.anomaly.scheduled.plan import Unit
from sciflow.anomaly.scheduled.tasks import Task
from sciflow.data.split import SPLITS
from sciflow.likelihood import Status

__all__ = ["Source"]


@dataclass(frozen=True)
class Source:
    """Rows of a shard, and where they go. What it knows of them is read when it is asked for.

    Attributes:
        unit: The shard.
        task: Knows what has been found of it.
        rows: Those that are judged; None where results of all of them are there, and stay.
        kept: ``[m]``, places in the store's grid of those that stay.
        along: Positions in the results of the store's own positions along the first dimension.
        inner_size: Rows at one position.
        detector: Number of what has judged them.
    """

    unit: Unit
    task: Task
    rows: Rows | None
    kept: np.ndarray | None
    along: np.ndarray
    inner_size: int
    detector: int

    @property
    def is_judged(self) -> bool:
        """Whether there is something new to say of them."""
        return self.rows is not None

    @cached_property
    def bounds(self) -> tuple[int, int]:
        """First and last position along the first dimension; the last comes first where there are no rows."""
        places = self.index() // self.inner_size
        return (int(places.min()), int(places.max())) if len(places) else (0, -1)

    def index(self) -> np.ndarray:
        """Places in the results, ``[m]``: position along the first dimension times rows at one, and so on."""
        if self.rows is None:
            assert self.kept is not None
            own = self.kept
        else:
            own = self.rows.of(self.task.scores(self.unit)[0])
        position, inside = np.divmod(own, self.inner_size)
        return self.along[position] * self.inner_size + inside

    def fields(self) -> Mapping[str, np.ndarray]:
        """Values of every field of the results, ``[m]``."""
        assert self.rows is not None
        score = self.rows.of(self.task.scores(self.unit)[1])
        size = len(score)
        return {
            "score": score,
            "p_value": self.rows.p_value,
            "flag": self.rows.flag,
            "extrapolated": self.rows.extrapolated,
            "status": np.where(np.isnan(score), int(Status.NON_FINITE), int(Status.OK)).astype(np.int8),
            "split": np.full(size, SPLITS.index(self.unit.split), np.int8),
            "detector": np.full(size, self.detector, np.int16),
        }

    def attribution(self) -> np.ndarray:
        """Of those that are flagged, in their order; none where they could not be read any more."""
        assert self.rows is not None
        return self.task.attribution(self.unit, self.rows.flagged)
