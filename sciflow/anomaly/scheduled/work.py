"""A plan, carried out: scored, judged, explained, and put in place as a whole."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from sciflow.anomaly.scheduled.axis import Axis
from sciflow.anomaly.scheduled.evidence import Evidence
from sciflow.anomaly.scheduled.folder import Folder
from sciflow.anomaly.scheduled.job import Each, Job, hashed
from sciflow.anomaly.scheduled.judge import Judged, Rows, judge
from sciflow.anomaly.scheduled.ledger import Ledger, Seen
from sciflow.anomaly.scheduled.plan import Part, Plan, Unit
from sciflow.anomaly.scheduled.publish import publish
from sciflow.anomaly.scheduled.results import Results
from sciflow.anomaly.scheduled.runs import Runs
from sciflow.anomaly.scheduled.source import Source
from sciflow.anomaly.scheduled.tasks import Task
from sciflow.anomaly.scheduled.version import write_results
from sciflow.errors import StoreError

if TYPE_CHECKING:
    from sciflow.anomaly.calibration import Calibration
    from sciflow.anomaly.detector import Detector

__all__ = ["carry_out"]

MOST_EVENTS_TOLD = 10
HASH = re.compile(r"[0-9a-f]{16,}")


def carry_out(job: Job, folder: Folder, plan: Plan, each: Each) -> dict[str, Any]:
    """Do what a plan says, however far it has come already; readers see all of it, or nothing.

    Args:
        job: What scores and judges.
        folder: Where the results are.
        plan: What is to be done, written down.
        each: Does the work on shards.

    Returns:
        What was done, as the ledger keeps it.
    """
    ledger, detector = folder.ledger, job.prepare(each)
    places = {name: (part.path, part.manifest) for name, part in plan.parts.items()}
    parts = folder.work / "parts"
    parts.mkdir(parents=True, exist_ok=True)
    task = Task(job, places, parts)
    each(task.score, [unit for unit in plan.units if not task.is_scored(unit)], "scoring shards")
    stage = _Stage.of(plan, task, ledger, folder)
    if not stage.parts:
        return {"unreadable": stage.unreadable}
    settings = job.settings.detection
    evidence = Evidence(plan, task, detector)
    judged = judge(evidence, settings, stage.in_order, ledger.online, ledger.drift)
    flagged = [(unit, rows.flagged) for unit, rows in judged.rows.items() if len(rows.flagged)]
    each(task.explain, [item for item in flagged if not task.is_explained(*item)], "explaining flagged rows")

    detectors = [*ledger.detectors]
    mine = _described(job, detector)
    if mine not in detectors:
        detectors.append(mine)
    new = folder.begin()
    attributes = _attributes(job, detector, judged, stage.names, detectors)
    sources = stage.sources(evidence, judged, detectors.index(mine))
    news = write_results(
        new / "results.zarr", stage.old, stage.grid, stage.axis, stage.was, stage.fresh, sources, attributes
    )
    drift = judged.drift
    notes = _notes(judged, ledger, mine, detector.calibration)
    run = {
        "number": plan.number,
        "stores": sorted(stage.parts),
        "shards": len(judged.rows),
        "rows": judged.num_rows,
        "flagged": news,
        "threshold": judged.threshold,
        "range": None if plan.span is None else [plan.start, plan.stop],
        "unreadable": stage.unreadable,
        "drift": None if drift is None else drift.words,
        "has_moved": drift is not None and drift.verdict == "moved",
        "notes": notes,
    }
    facts = {"runs": plan.number, "last run": f"{judged.num_rows:,} rows, {news:,} newly flagged"}
    facts |= {f"note {number}": note for number, note in enumerate(notes, 1)}
    facts |= {f"not read {number}": words for number, words in enumerate(stage.unreadable, 1)}
    events = publish(new, detector, settings.events.gap, f"Anomalies: {job.settings.name}", drift, facts)
    run["events"] = len(events)
    message = _message(job, plan, run, events)
    after = ledger.after(
        run,
        workflow=job.settings.name,
        rows=ledger.rows + judged.num_rows,
        flagged=ledger.flagged + news,
        watermark=_watermark(stage.axis),
        stores={**ledger.stores, **stage.seen(ledger)},
        detectors=detectors,
        online=judged.online,
        drift=ledger.drift if drift is None else drift.state,
        outbox=[*ledger.outbox, *([message] if news or run["has_moved"] else [])],
    )
    (new / "state.json").write_text(after.to_text())
    folder.commit(new)
    return run


@dataclass(frozen=True)
class _Stage:
    """What of a plan can be done: where its rows go.

    Attributes:
        plan: It.
        parts: Stores of which there is something to be put into the results.
        scored: Their shards that are scored.
        kept: Places of the rows of shards that stay, of stores that were written anew.
        unreadable: What is left for the next run, in words.
        old: The results before.
        axis: Positions along the first dimension.
        was: Where each of them was.
        names: Of all stores, by number.
    """

    plan: Plan
    parts: dict[str, Part]
    scored: list[Unit]
    kept: dict[Unit, np.ndarray]
    unreadable: list[str]
    old: Results | None
    axis: Axis
    was: Runs
    names: dict[int, str]

    @classmethod
    def of(cls, plan: Plan, task: Task, ledger: Ledger, folder: Folder) -> _Stage:
        unreadable = [*plan.unreadable.values()]
        scored: list[Unit] = []
        kept: dict[Unit, np.ndarray] = {}
        parts: dict[str, Part] = {}
        for name, part in plan.parts.items():
            staying = dict(part.kept)
            if part.is_fresh:
                for key, sha256 in part.kept.items():
                    split, _, number = key.partition("/")
                    unit = Unit(name, split, int(number), sha256, False)
                    try:
                        rows = getattr(plan.opened(name).store, split)
                        kept[unit] = rows.grid_index(*rows.shard_range(int(number)))
                    except StoreError as error:
                        unreadable.append(str(error))
                        del staying[key]
            problems = {unit: task.failure(unit) for unit in part.units}
            unreadable += [words for words in problems.values() if words is not None]
            done = [unit for unit, words in problems.items() if words is None]
            if done or staying:
                parts[name] = replace(part, kept=staying)
                scored += done
        current = folder.current
        old = None if current is None else Results(current / "results.zarr")
        names = {**ledger.names, **{part.code: name for name, part in parts.items()}}
        moved = [plan.opened(name).stretch(part.code) for name, part in parts.items() if part.moved]
        if old is not None:
            axis, was = old.axis.replaced(moved, names)
        elif parts:
            axis, was = Axis.empty(plan.opened(next(iter(parts))).grid.dims[0]).replaced(moved, names)
        else:
            axis, was = Axis.empty(""), Runs([], [])
        return cls(plan, parts, scored, kept, unreadable, old, axis, was, names)

    @property
    def grid(self) -> Any:
        return self.old.grid if self.old is not None else self.plan.opened(next(iter(self.parts))).grid

    @property
    def in_order(self) -> list[str]:
        """Stores with shards that are scored, in the order of their first positions."""
        names = {unit.store for unit in self.scored}
        return sorted(names, key=lambda name: self.axis.first(self.parts[name].code))

    @property
    def fresh(self) -> list[int]:
        """Numbers of stores that were written anew: what was there is no longer so."""
        return [part.code for part in self.parts.values() if part.is_fresh]

    def sources(self, evidence: Evidence, judged: Judged, detector: int) -> list[Source]:
        rows: list[tuple[Unit, Rows | None, np.ndarray | None]] = [
            (unit, None, index) for unit, index in self.kept.items() if unit.store in self.parts
        ]
        rows += [(unit, of_unit, None) for unit, of_unit in judged.rows.items()]
        return [
            Source(
                unit, evidence, of_unit, kept, self.axis, self.parts[unit.store].code, self.grid.inner_size, detector
            )
            for unit, of_unit, kept in rows
        ]

    def seen(self, ledger: Ledger) -> dict[str, Seen]:
        done: dict[str, dict[str, str]] = {name: dict(part.kept) for name, part in self.parts.items()}
        for unit in self.scored:
            done[unit.store][unit.key] = unit.sha256
        return {
            name: Seen(part.code, part.manifest, part.places, part.num_units, done[name])
            for name, part in self.parts.items()
        }


def _described(job: Job, detector: Detector) -> dict[str, str]:
    model = [density.provenance.get("run", "") for density in detector.fitted_score.all_densities()]
    return {
        "key": job.key,
        "run": ", ".join(map(str, model)),
        "score": detector.fitted_score.name,
        "model": job.model,
        "calibration": detector.calibration.fingerprint,
    }


def _attributes(
    job: Job, detector: Detector, judged: Judged, names: dict[int, str], detectors: list[dict[str, str]]
) -> dict[str, Any]:
    return {
        "score": detector.fitted_score.name,
        **job.settings.detection.control,
        "calibration_rows": detector.calibration.rows,
        "model": job.model,
        "calibration": detector.calibration.fingerprint,
        **({} if judged.threshold is None else {"threshold": judged.threshold}),
        **({"note": " ".join(judged.notes)} if judged.notes else {}),
        "stores": [names.get(code, "") for code in range(max(names) + 1)],
        "detectors": [" ".join(f"{name}={_short(value)}" for name, value in sorted(one.items())) for one in detectors],
    }


def _short(text: str) -> str:
    """A hash, as much of it as tells it from others."""
    return text[:12] if HASH.fullmatch(text) else text


def _notes(judged: Judged, ledger: Ledger, mine: dict[str, str], calibration: Calibration) -> list[str]:
    notes = list(judged.notes)
    if not calibration.exchangeability.holds:
        notes.append(f"calibration: {calibration.exchangeability.verdict}")
    if judged.unknown:
        groups = ", ".join(f"{group} ({count:,} rows)" for group, count in sorted(judged.unknown.items()))
        notes.append(f"groups that the calibration has not seen, whose rows are never flagged: {groups}")
    if ledger.detectors and mine not in ledger.detectors:
        notes.append(
            "another model, score or calibration than before: earlier rows are as they were judged then; --from has "
            "them judged anew"
        )
    return notes


def _message(job: Job, plan: Plan, run: dict[str, Any], events: list[dict[str, Any]]) -> dict[str, Any]:
    """What is to be told. Its key is that of the work, not of the moment: who hears of it twice can tell."""
    work = [[unit.store, unit.key, unit.sha256] for unit in plan.units]
    return {
        "key": hashed(job.settings.name, job.key, plan.number, work)[:32],
        "workflow": job.settings.name,
        **{name: run[name] for name in ("number", "stores", "rows", "flagged", "drift", "has_moved", "unreadable")},
        "num_events": len(events),
        "events": events[:MOST_EVENTS_TOLD],
        "told": False,
    }


def _watermark(axis: Axis) -> str | None:
    values = axis.coordinates.get(axis.dim)
    return None if values is None or not len(axis) else str(values.values[-1])
