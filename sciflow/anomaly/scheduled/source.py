"""A shard's rows on their way into the results."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from sciflow.anomaly.scheduled.axis import Axis
from sciflow.anomaly.scheduled.evidence import Evidence
from sciflow.anomaly.scheduled.judge import Rows
from sciflow.anomaly.scheduled.plan import Unit
from sciflow.data.split import SPLITS
from sciflow.likelihood import Status

__all__ = ["Source"]


@dataclass(frozen=True)
class Source:
    """Rows of a shard, and where they go. What it knows of them is read when it is asked for.

    Attributes:
        unit: The shard.
        evidence: What has been found of it.
        rows: Those that are judged; None where results of all of them are there, and stay.
        kept: ``[m]``, places in the store's grid of those that stay.
        axis: Of the results.
        code: Number of the store in them.
        inner_size: Rows at one position.
        detector: Number of what has judged them.
    """

    unit: Unit
    evidence: Evidence
    rows: Rows | None
    kept: np.ndarray | None
    axis: Axis
    code: int
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
            own = self.rows.of(self.evidence.task.scores(self.unit)[0])
        position, inside = np.divmod(own, self.inner_size)
        return self.axis.find(self.code, position) * self.inner_size + inside

    def fields(self, some: np.ndarray) -> Mapping[str, np.ndarray]:
        """Values of every field of the results, of some ``[k]`` of its rows that are judged."""
        assert self.rows is not None
        rows = self._in_shard(some)
        score = self.evidence.task.scores(self.unit)[1][rows]
        p = self.evidence.p_values(self.unit, rows)
        return {
            "score": score,
            "p_value": p.p_value,
            "flag": np.isin(rows, self.rows.flagged),
            "extrapolated": p.extrapolated,
            "status": np.where(np.isnan(score), int(Status.NON_FINITE), int(Status.OK)).astype(np.int8),
            "split": np.full(len(rows), SPLITS.index(self.unit.split), np.int8),
            "detector": np.full(len(rows), self.detector, np.int16),
        }

    def attribution(self, some: np.ndarray) -> np.ndarray:
        """Of some ``[k]`` of its rows, all flagged; none where they could not be read any more."""
        assert self.rows is not None
        found = self.evidence.task.attribution(self.unit, self.rows.flagged)
        return found[np.searchsorted(self.rows.flagged, self._in_shard(some))] if len(found) else found

    def _in_shard(self, some: np.ndarray) -> np.ndarray:
        """Places in the shard of some of its rows."""
        assert self.rows is not None
        return some if self.rows.inside is None else self.rows.inside[some]
