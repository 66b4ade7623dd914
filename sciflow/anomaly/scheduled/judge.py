"""From scores to flags: p-values, and decisions store by store, in the order of what they hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from sciflow.anomaly.scheduled.evidence import Evidence
from sciflow.anomaly.scheduled.plan import Unit
from sciflow.anomaly.scheduled.sample import sampled
from sciflow.sections import Detection

if TYPE_CHECKING:
    from sciflow.anomaly.decision import Decision
    from sciflow.anomaly.drift import Drift

__all__ = ["Judged", "Rows", "judge"]


@dataclass(frozen=True)
class Rows:
    """Which rows of a shard are judged, and which of them are flagged.

    Attributes:
        inside: Their places in the shard; None for all of it.
        size: How many they are.
        flagged: Places in the shard of those that are flagged, in order.
    """

    inside: np.ndarray | None
    size: int
    flagged: np.ndarray

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
        return sum(rows.size for rows in self.rows.values())


def judge(
    evidence: Evidence,
    settings: Detection,
    stores: Sequence[str],
    online: Mapping[str, Any] | None,
    drift: Mapping[str, Any] | None,
) -> Judged:
    """Judge the rows of a plan, all of which are scored.

    A decision is about the rows of one store: so it is the same whether stores came one a run, or many in one. Online
    control goes from store to store and from run to run; rows that are judged again are new tests to it.

    Args:
        evidence: What is known of the rows.
        settings: How to decide.
        stores: Stores of the plan that are judged, in the order of what they hold.
        online: State of online control.
        drift: State of the test for drift.
    """
    found = Judged(online=None if online is None else dict(online))
    for name in stores:
        units = [unit for unit in evidence.plan.parts[name].units if evidence.task.failure(unit) is None]
        is_stream = settings.control.get("method") in ("lord", "saffron")
        decide_on = _one_after_the_other if is_stream else _all_at_once
        decide_on(found, evidence, units, settings)
    _look_for_drift(found, evidence, stores, drift)
    return found


def _all_at_once(found: Judged, evidence: Evidence, units: Sequence[Unit], settings: Detection) -> None:
    """Decide on all rows of a store, of which only those are kept that could be flagged."""
    from sciflow.anomaly.decision import decide, fits

    level = settings.false_alarm_rate or settings.fdr
    insides, sizes, places, small, num_tests = [], [], [], [np.empty(0)], 0
    for unit in units:
        inside, p_value = _looked_up(found, evidence, unit)
        could_be = np.flatnonzero(fits(p_value, level))
        insides.append(inside)
        sizes.append(len(p_value))
        places.append(could_be)
        small.append(p_value[could_be])
        num_tests += int(np.count_nonzero(~np.isnan(p_value)))
    resolution = evidence.detector.calibration.smallest_p_value
    decision = decide(np.concatenate(small), **settings.control, resolution=resolution, num_tests=num_tests)
    _note(found, decision)
    flags = np.split(decision.flag, np.cumsum([len(some) for some in places])[:-1])
    for unit, inside, size, some, flag in zip(units, insides, sizes, places, flags, strict=False):
        found.rows[unit] = Rows(inside, size, _in_shard(inside, some[flag]))


def _one_after_the_other(found: Judged, evidence: Evidence, units: Sequence[Unit], settings: Detection) -> None:
    """Decide on the rows of a store in their order, each by what was found before it."""
    from sciflow.anomaly.online import LORD, SAFFRON

    stream = {"lord": LORD, "saffron": SAFFRON}[settings.method]
    rows = [_looked_up(found, evidence, unit) for unit in units]
    p_value = np.concatenate([np.empty(0), *(of_unit for _, of_unit in rows)])
    places = [evidence.task.scores(unit)[0] for unit in units]
    places = [place if inside is None else place[inside] for place, (inside, _) in zip(places, rows, strict=True)]
    order = np.argsort(np.concatenate([np.empty(0, np.int64), *places]), kind="stable")
    begun = found.online
    goes_on = begun is not None and (begun["method"], begun["level"]) == (settings.method, settings.fdr)
    if begun is not None and not goes_on:
        found.notes.append(
            f"control begins anew: it went on by {begun['method']} at {begun['level']:g}, of which nothing is left"
        )
    tests: Any = stream.from_state(begun) if begun is not None and goes_on else stream(settings.fdr)
    decision = tests.decide(p_value[order], resolution=evidence.detector.calibration.smallest_p_value)
    found.online = tests.state()
    _note(found, decision)
    flag = np.empty(len(p_value), bool)
    flag[order] = decision.flag
    start = 0
    for unit, (inside, of_unit) in zip(units, rows, strict=True):
        flagged = np.flatnonzero(flag[start : start + len(of_unit)])
        found.rows[unit] = Rows(inside, len(of_unit), _in_shard(inside, flagged))
        start += len(of_unit)


def _looked_up(found: Judged, evidence: Evidence, unit: Unit) -> tuple[np.ndarray | None, np.ndarray]:
    """Which rows of a shard are judged, and their p-values."""
    inside = evidence.inside(unit)
    p = evidence.p_values(unit, inside)
    for group, count in p.unknown.items():
        found.unknown[str(group)] = found.unknown.get(str(group), 0) + count
    return inside, p.p_value


def _in_shard(inside: np.ndarray | None, rows: np.ndarray) -> np.ndarray:
    return rows if inside is None else inside[rows]


def _note(found: Judged, decision: Decision) -> None:
    if decision.note is not None and decision.note not in found.notes:
        found.notes.append(decision.note)
    if decision.flag.any():
        found.threshold = max(found.threshold or 0.0, decision.threshold)


def _look_for_drift(found: Judged, evidence: Evidence, stores: Sequence[str], state: Mapping[str, Any] | None) -> None:
    from sciflow.anomaly.drift import drift

    scores, groups, num_flagged = [np.empty(0)], [], 0
    for name in stores:
        units = [unit for unit in found.rows if unit.store == name and unit.is_new]
        places, some = sampled(evidence.task, units, evidence.plan.opened(name).grid.inner_size)
        scores.append(some)
        groups.append(evidence.groups(name, places))
        num_flagged += sum(len(found.rows[unit].flagged) for unit in units)
    column = np.concatenate(scores)
    if np.isfinite(column).any():
        found.drift = drift(
            evidence.detector.calibration,
            column,
            num_flagged=num_flagged,
            groups=np.concatenate(known) if (known := [of for of in groups if of is not None]) else None,
            state=None if state is None else dict(state),
        )
