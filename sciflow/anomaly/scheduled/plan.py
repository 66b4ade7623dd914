"""What a run has to do: decided once, written down whole, and then done, however often it is interrupted."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from sciflow.anomaly.scheduled.axis import Axis
from sciflow.anomaly.scheduled.grid import Grid
from sciflow.anomaly.scheduled.ledger import Ledger, Seen
from sciflow.anomaly.scheduled.record import counted
from sciflow.anomaly.scheduled.span import Span
from sciflow.anomaly.scheduled.watch import Opened, manifest_hash, open_watched
from sciflow.errors import LayoutError, SciflowError, StoreError
from sciflow.training.files import write_whole

__all__ = ["Part", "Plan", "Unit", "make_plan"]

MOST_SHOWN = 8


@dataclass(frozen=True)
class Unit:
    """One shard of a store: the unit of work.

    Attributes:
        store: Name of the store.
        split: Of the shard.
        number: Of the shard in its split.
        sha256: Hash of its events.
        is_new: Whether its events have not been judged as they are; otherwise only its rows in the range are.
    """

    store: str
    split: str
    number: int
    sha256: str
    is_new: bool

    @property
    def key(self) -> str:
        """How the ledger calls it within its store, and messages: ``test/3``."""
        return f"{self.split}/{self.number}"


@dataclass(frozen=True)
class Part:
    """What is to be done with one store.

    Attributes:
        path: Where it is.
        manifest: Hash of its manifest.
        places: Hash of its layout and coordinates.
        num_units: Shards that it has.
        code: Its number in the results.
        is_fresh: Whether results of other events that it held, or none, are there.
        moved: Whether its positions are others than before, or new.
        units: Shards to be scored.
        kept: Shards of which results are there and stay, with the hashes of their events.
    """

    path: str
    manifest: str
    places: str
    num_units: int
    code: int
    is_fresh: bool
    moved: bool
    units: list[Unit]
    kept: dict[str, str]


@dataclass(frozen=True)
class Plan:
    """What a run has to do.

    Attributes:
        number: Of the run.
        detector: Fingerprint of what scores and judges; a plan of another is made anew.
        start: From here,
        stop: to there; None without a range.
        parts: By name of the store.
        unreadable: What is left for the next run, and why.
        gone: Stores of which results are there, and that are not watched any more; their results stay.
    """

    number: int
    detector: str
    start: str | None
    stop: str | None
    parts: dict[str, Part]
    unreadable: dict[str, str] = field(default_factory=dict)
    gone: list[str] = field(default_factory=list)

    @property
    def units(self) -> list[Unit]:
        """All shards to be scored."""
        return [unit for part in self.parts.values() for unit in part.units]

    @property
    def span(self) -> Span | None:
        """The range, where there is one."""
        return Span.of(self.start, self.stop)

    def opened(self, name: str) -> Opened:
        """The store of a part.

        Raises:
            StoreError: It is no longer what it was.
        """
        return open_watched(name, self.parts[name].path, self.parts[name].manifest)

    def __str__(self) -> str:
        what = "" if self.span is None else f", {self.span}"
        work = f"{counted(len(self.units), 'shard')} of {counted(len(self.parts), 'store')} to be judged"
        lines = [f"run {self.number}{what}: {work}"]
        for name, part in self.parts.items():
            kind = "new" if part.moved and not part.kept else "changed" if part.is_fresh else "again"
            shown = ", ".join(unit.key for unit in part.units[:MOST_SHOWN])
            more = f" and {len(part.units) - MOST_SHOWN:,} more" if len(part.units) > MOST_SHOWN else ""
            lines.append(f"  {name} ({kind}): {shown}{more}")
        lines += [f"  left for the next run: {words}" for words in self.unreadable.values()]
        lines += [f"  {name}: not watched any more; its results stay" for name in self.gone]
        return "\n".join(lines)

    def write(self, file: Path) -> None:
        """Write it down; what is done from now on is this."""
        file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(file, json.dumps(asdict(self), indent=1, sort_keys=True))

    @classmethod
    def read(cls, file: Path) -> Plan | None:
        """Undo :meth:`write`; None where there is none, or none that this sciflow understands."""
        try:
            content = json.loads(file.read_text())
            parts = {
                name: Part(**{**part, "units": [Unit(**unit) for unit in part["units"]]})
                for name, part in content.pop("parts").items()
            }
            return cls(parts=parts, **content)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None

    def still_holds(self, number: int, detector: str) -> bool:
        """Whether it is of this run and detector, and its stores are what they were."""
        if (self.number, self.detector) != (number, detector):
            return False
        try:
            return all(manifest_hash(part.path) == part.manifest for part in self.parts.values())
        except SciflowError:
            return False


def make_plan(
    ledger: Ledger,
    stores: Mapping[str, str],
    detector: str,
    layout: Mapping[str, Any],
    grid: Grid | None,
    axis: Axis | None,
    span: Span | None = None,
) -> Plan:
    """Find out what is new, changed or gone.

    Args:
        ledger: What has been done.
        stores: Paths of the stores that are watched, by name.
        detector: Fingerprint of what scores and judges.
        layout: Of the events that it was trained on.
        grid: Of the results that are there, or None.
        axis: Their positions, or None.
        span: The range that is to be done anew, new or not; None for what is new alone.
    """
    parts: dict[str, Part] = {}
    unreadable: dict[str, str] = {}
    names, taken = ledger.names, axis
    for name, path in stores.items():
        seen = ledger.stores.get(name)
        try:
            manifest = manifest_hash(path)
            if span is None and seen is not None and seen.manifest == manifest and seen.is_done:
                continue
            opened = open_watched(name, path, manifest)
            opened.store.layout.require_fits(layout, None, path, "the model")
            code = seen.code if seen is not None else max(names, default=-1) + 1
            try:
                if grid is not None:
                    grid.require(opened.grid)
                if taken is not None:
                    taken.require_apart(opened.stretch(code), names)
            except LayoutError as error:
                raise LayoutError(f"{path}: {error}") from None
            part = _part(opened, path, code, seen, span)
        except (StoreError, LayoutError) as error:
            unreadable[name] = str(error)
            continue
        if not part.units and (span is not None or seen is None or not part.is_fresh):
            continue
        parts[name], names[code], grid = part, name, grid or opened.grid
        if part.moved:
            taken, _ = (taken or Axis.empty(grid.dims[0])).replaced([opened.stretch(code)], names)
    bounds = (None, None) if span is None else (span.start, span.stop)
    gone = [name for name in ledger.stores if name not in stores]
    return Plan(ledger.number + 1, detector, *bounds, parts, unreadable, gone)


def _part(opened: Opened, path: str, code: int, seen: Seen | None, span: Span | None) -> Part:
    moved = seen is None or seen.places != opened.places
    done = {} if seen is None or moved else seen.units
    records = opened.store.manifest.shards
    kept = {record.name: record.sha256 for record in records if done.get(record.name) == record.sha256}
    is_fresh = seen is None or seen.manifest != opened.manifest
    again = set() if span is None else set(_within(opened, span))
    # A store that has been written anew is done as a whole: half of it would be of other events.
    whole = span is None or (is_fresh and again)
    units = [
        Unit(opened.name, record.split, record.number, record.sha256, record.name not in kept)
        for record in records
        if record.name in again or (whole and record.name not in kept)
    ]
    return Part(path, opened.manifest, opened.places, len(records), code, is_fresh, moved, units, kept)


def _within(opened: Opened, span: Span) -> Iterator[str]:
    """Shards with rows in a range."""
    dim, size = opened.grid.dims[0], opened.grid.inner_size
    coordinate = opened.along.get(dim)
    inside = span.covers(dim, None if coordinate is None else coordinate.values)
    for record in opened.store.manifest.shards:
        split = getattr(opened.store, record.split)
        start, stop = split.shard_range(record.number)
        try:
            first, last = (int(split.grid_index(row, row + 1)[0]) for row in (start, stop - 1))
        except StoreError:
            first, last = 0, len(inside) * size - 1  # Whoever scores it says what is wrong with it.
        if inside[first // size : last // size + 1].any():
            yield record.name
