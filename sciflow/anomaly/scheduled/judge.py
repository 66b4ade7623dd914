"""From scores to flags: p-values, and decisions store by store, in the order of what they hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from sciflow.anomaly.scheduled.plan import Plan, Unit
from sciflow.anomaly.scheduled.sample import sampled
from sciflow.anomaly.scheduled.tasks import Task
from sciflow.anomaly.scheduled.watch import Opened
from sciflow.sections import Detection

if TYPE_CHECKING:
    from sciflow.anomaly.decision import Decision
    from sciflow.anomaly.detector import Detector
    from sciflow.anomaly.drift import Drift

__all__ = ["Judged", "Rows", "judge"]


@dataclass(frozen=True)
class Rows:
    """What is known of a shard's rows that are judged; ten bytes a row are all that a run holds in memory.

    Attributes:
        inside: Their places in the shard; None for all of it.
        p_value: Of each.
        extrapolated: Of each, whether the p-value is.
        flag: Of each.
    """

    inside: np.ndarray | None
    p_value: np.ndarray
    extrapolated: np.ndarray
    flag: np.ndarray

    def __len__(self) -> int:
        return len(self.p_value)

    @property
    def flagged(self) -> np.ndarray:
        """Places in the shard of those that are flagged."""
        places = np.flatnonzero(self.flag)
        return places if self.inside is None else self.inside[places]

    def of(self, values: np.ndarray) -> np.ndarray:
        """Of values of all rows of the shard, theirs."""
        return values if self.inside is None else values[self.inside]


@dataclass
class Judged:
    """What a run has found.

    Attributes:
        rows: By shard.
        notes: What decisions say about themselves.
        threshold: The largest p-value that is flagged, or None.
        online: State of the control of false discoveries, where it goes on.
        drift: Whether the world has moved; None where no row is new.
        unknown: Rows of groups that the calibration has not seen.
    """

    rows: dict[Unit, Rows] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    threshold: float | None = None
    online: dict[str, Any] | None = None
    drift: Drift | None = None
    unknown: dict[str, int] = field(default_factory=dict)

    @property
    def num_rows(self) -> int:
        """Rows that were judged."""
        return sum(map(len, self.rows.values()))


def judge(
    plan: Plan,
    task: Task,
    detector: Detector,
    settings: Detection,
    stores: Sequence[str],
    online: Mapping[str, Any] | None,
    drift: Mapping[str, Any] | None,
) -> Judged:
    """Judge the rows of a plan, all of which are scored.

    A decision is about the rows of one store: so it is the same whether stores came one a run, or many in one. Online
    control goes from store to store and from run to run; rows that are judged again are new tests to it.

    Args:
        plan: What was to be scored.
        task: Knows the scores.
        detector: Calibrated.
        settings: How to decide.
        stores: Stores of the plan that are judged, in the order of what they hold.
        online: State of online control.
        drift: State of the test for drift.
    """
    found = Judged(online=None if online is None else dict(online))
    for name in stores:
        units = [unit for unit in plan.parts[name].units if task.failure(unit) is None]
        rows = [_p_values(plan, task, detector, unit, found) for unit in units]
        order = _order([row.of(task.scores(unit)[0]) for unit, row in zip(units, rows, strict=True)])
        p_value = np.concatenate([np.empty(0), *(row.p_value for row in rows)])
        decision = _decide(found, p_value[order], detector.calibration.resolution(), settings)
        flag = np.empty(len(p_value), bool)
        flag[order] = decision.flag
        start = 0
        for unit, row in zip(units, rows, strict=True):
            row.flag[:] = flag[start : start + len(row)]
            found.rows[unit] = row
            start += len(row)
    _look_for_drift(found, plan, task, detector, stores, drift)
    return found


def _p_values(plan: Plan, task: Task, detector: Detector, unit: Unit, found: Judged) -> Rows:
    index, score = task.scores(unit)
    opened = plan.opened(unit.store)
    inside = None
    if plan.span is not None and not unit.is_new:
        dim = opened.grid.dims[0]
        covered = plan.span.covers(dim, opened.along[dim].values)
        inside = np.flatnonzero(covered[index // opened.grid.inner_size])
        index, score = index[inside], score[inside]
    p = detector.calibration.p_values(score, groups=_groups(plan, detector, unit.store, index))
    for group, count in p.unknown.items():
        found.unknown[str(group)] = found.unknown.get(str(group), 0) + count
    return Rows(inside, p.p_value, p.extrapolated, np.zeros(len(index), bool))


def _groups(plan: Plan, detector: Detector, store: str, index: np.ndarray) -> np.ndarray | None:
    if detector.group is None:
        return None
    return _labels(plan.opened(store), detector.group)[index]


@lru_cache(maxsize=1)
def _labels(opened: Opened, group: str) -> np.ndarray:
    """Groups of all rows of a store, kept from one shard to the next."""
    from sciflow.anomaly.groups import group_labels

    return group_labels(group, opened.store.coordinates, opened.grid.dims, opened.store.layout.grid_shape)


def _order(places: Sequence[np.ndarray]) -> np.ndarray | slice:
    """In which rows of several shards stand in the grid; mostly as they are."""
    if all(len(place) < 2 or (place[1:] > place[:-1]).all() for place in places):
        ends = np.array([end for place in places if len(place) for end in (place[0], place[-1])])
        if (ends[1:] >= ends[:-1]).all():
            return slice(None)
    return np.argsort(np.concatenate([np.empty(0, np.int64), *places]), kind="stable")


def _decide(found: Judged, p_value: np.ndarray, resolution: float, settings: Detection) -> Decision:
    from sciflow.anomaly.decision import decide
    from sciflow.anomaly.online import LORD, SAFFRON

    stream = {"lord": LORD, "saffron": SAFFRON}.get(settings.method)
    if settings.false_alarm_rate is not None:
        decision = decide(p_value, false_alarm_rate=settings.false_alarm_rate, resolution=resolution)
    elif stream is None:
        method: Any = settings.method
        decision = decide(p_value, fdr=settings.fdr, method=method, resolution=resolution)
    else:
        begun = found.online
        goes_on = begun is not None and (begun["method"], begun["level"]) == (settings.method, settings.fdr)
        tests: Any = stream.from_state(begun) if begun is not None and goes_on else stream(settings.fdr)
        decision = tests.decide(p_value, resolution=resolution)
        found.online = tests.state()
    if decision.note is not None and decision.note not in found.notes:
        found.notes.append(decision.note)
    if decision.flag.any():
        found.threshold = max(found.threshold or 0.0, decision.threshold)
    return decision


def _look_for_drift(
    found: Judged, plan: Plan, task: Task, detector: Detector, stores: Sequence[str], state: Mapping[str, Any] | None
) -> None:
    from sciflow.anomaly.drift import drift

    scores, groups, num_flagged = [np.empty(0)], [], 0
    for name in stores:
        units = [unit for unit in found.rows if unit.store == name and unit.is_new]
        places, some = sampled(task, units, plan.opened(name).grid.inner_size)
        scores.append(some)
        groups.append(_groups(plan, detector, name, places))
        num_flagged += sum(int(found.rows[unit].flag.sum()) for unit in units)
    column = np.concatenate(scores)
    if np.isfinite(column).any():
        found.drift = drift(
            detector.calibration,
            column,
            num_flagged=num_flagged,
            groups=None if detector.group is None else np.concatenate([of for of in groups if of is not None]),
            state=None if state is None else dict(state),
        )
