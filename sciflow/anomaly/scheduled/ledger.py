"""What has been done: the state that lies with the output, and not with the machine."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from sciflow.errors import StoreError

__all__ = ["FORMAT", "VERSION", "Ledger", "Seen"]

FORMAT, VERSION = "sciflow-detections", 1
# Older ones are in the results.
MOST_RUNS = 1000


@dataclass(frozen=True)
class Seen:
    """A store of which results are there.

    Attributes:
        code: Its number, which stands in the results.
        manifest: Hash of its manifest, as it was.
        places: Hash of its layout and coordinates, as they were.
        num_units: Shards that it has.
        units: Hash of the events of each shard that is done.
    """

    code: int
    manifest: str
    places: str
    num_units: int
    units: dict[str, str]

    @property
    def is_done(self) -> bool:
        """Whether nothing of it is left to be done."""
        return len(self.units) == self.num_units


@dataclass(frozen=True)
class Ledger:
    """All that a run has to know of those before it. No time of a clock is in it: the same data give the same file.

    Attributes:
        workflow: Name of the workflow whose results they are; empty before the first run.
        number: Runs so far that had something to do.
        rows: Rows that they judged, each as often as it was judged.
        flagged: Rows that they flagged, and that were not flagged before.
        watermark: The furthest position along the dimension that grows, in words.
        stores: Those of which results are there, by name.
        detectors: Model, score and calibration that the variable ``detector`` counts.
        online: State of the control of false discoveries, where it goes on.
        drift: State of the test for drift.
        runs: What every run did, the last ones.
        outbox: Messages that have not been delivered, oldest first.
    """

    workflow: str = ""
    number: int = 0
    rows: int = 0
    flagged: int = 0
    watermark: str | None = None
    stores: dict[str, Seen] = field(default_factory=dict)
    detectors: list[dict[str, str]] = field(default_factory=list)
    online: dict[str, Any] | None = None
    drift: dict[str, Any] | None = None
    runs: list[dict[str, Any]] = field(default_factory=list)
    outbox: list[dict[str, Any]] = field(default_factory=list)

    @property
    def names(self) -> dict[int, str]:
        """Names of the stores, by number."""
        return {seen.code: name for name, seen in self.stores.items()}

    def after(self, run: dict[str, Any], **changes: Any) -> Ledger:
        """The ledger once a run is done.

        Args:
            run: What it did.
            **changes: Of the attributes.
        """
        return replace(self, number=self.number + 1, runs=[*self.runs, run][-MOST_RUNS:], **changes)

    def to_text(self) -> str:
        """Return JSON."""
        return json.dumps({"format": FORMAT, "version": VERSION, **asdict(self)}, indent=1, sort_keys=True) + "\n"

    @classmethod
    def read(cls, file: Path) -> Ledger:
        """Undo :meth:`to_text`.

        Raises:
            StoreError: Another version wrote it, or it is damaged.
        """
        try:
            content = json.loads(file.read_text())
            found = content.pop("format"), content.pop("version")
            if found != (FORMAT, VERSION):
                raise StoreError(
                    f"{file}: written as {found[0]} version {found[1]}, this sciflow goes on with {FORMAT} version "
                    f"{VERSION}: choose another detection.out, or use the sciflow that wrote it"
                )
            stores = {name: Seen(**seen) for name, seen in content.pop("stores").items()}
            ledger = cls(stores=stores, **content)
            if ledger.online is not None:
                _ = ledger.online["method"], ledger.online["level"]
            return ledger
        except StoreError:
            raise
        except OSError as error:
            raise StoreError(f"{file}: cannot be read: {error.strerror or error}") from None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise StoreError(
                f"{file}: damaged ({type(error).__name__}: {error}): restore it, or choose another detection.out"
            ) from None
