"""What a run did, for whoever has called it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

__all__ = ["ANOMALIES", "BOTH", "UNREADABLE", "DetectionRun", "counted"]

# Exit codes beside 0, nothing, and 1, a failure.
UNREADABLE, ANOMALIES, BOTH = 3, 10, 13


@dataclass(frozen=True)
class DetectionRun:
    """What a call of :func:`sciflow.detect` did.

    Attributes:
        out: Folder of the results.
        number: Runs so far that had something to do.
        stores: Names of the stores of which rows were judged.
        shards: Shards that were judged.
        rows: Rows that were judged.
        flagged: Rows that are flagged now, and were not before.
        events: Events of all results.
        unreadable: What was left for the next run, and why, by name of the store, with the shard where it is one.
        drift: Whether the world has moved, in words; None where no row is new.
        has_moved: Whether it has.
        notes: What there is to know beside.
        undelivered: Messages that could not be delivered, and are tried again by the next run.
    """

    out: Path
    number: int = 0
    stores: tuple[str, ...] = ()
    shards: int = 0
    rows: int = 0
    flagged: int = 0
    events: int = 0
    unreadable: tuple[str, ...] = ()
    drift: str | None = None
    has_moved: bool = False
    notes: tuple[str, ...] = ()
    undelivered: int = 0

    @property
    def exit_code(self) -> int:
        """What the command returns: 0 nothing, 10 anomalies, 3 an input that could not be read, 13 both."""
        return {
            (False, False): 0,
            (True, False): ANOMALIES,
            (False, True): UNREADABLE,
            (True, True): BOTH,
        }[self.flagged > 0, bool(self.unreadable)]

    def __str__(self) -> str:
        if not self.rows:
            if self.flagged:
                return f"{counted(self.flagged, 'row')} flagged by a run that had no time to say so: {self.out}"
            return f"nothing new: {self.out} is up to date"
        return (
            f"{counted(self.flagged, 'row')} newly flagged of {self.rows:,} in {counted(self.shards, 'shard')}; "
            f"{counted(self.events, 'event')} in all: {self.out / 'report.html'}"
        )


def counted(number: int, what: str) -> str:
    """So many of something, in words.

    Example:
        >>> counted(1, "row"), counted(2000, "row")
        ('1 row', '2,000 rows')
    """
    return f"{number:,} {what}" if number == 1 else f"{number:,} {what}s"
