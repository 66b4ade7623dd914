"""A range along the dimension that grows: ``--from`` and ``--to``."""

from __future__ import annotations

import datetime
import re
from dataclasses import dataclass
from typing import Any

import numpy as np

from sciflow.errors import ConfigError

__all__ = ["Span"]

DATE, CLOCK = r"\d{4}(-(0[1-9]|1[0-2])(-(0[1-9]|[12]\d|3[01])", r"(T([01]\d|2[0-3])(:[0-5]\d(:[0-5]\d(\.\d+)?)?)?)?"
TIME = re.compile(rf"{DATE}{CLOCK})?)?")


@dataclass(frozen=True)
class Span:
    """From here to there, both included; times by as much of them as is given, so that 2026-01 is all of January.

    Attributes:
        start: As the user gave it, as text; None from the beginning.
        stop: None to the end.

    Example:
        >>> days = np.array(["2026-01-31T12", "2026-02-01T00"], "datetime64[ns]")
        >>> Span.of("2026-01", "2026-01").covers("day", days)
        array([ True, False])
        >>> Span.of(3, None).covers("row", np.array([2, 3]))
        array([False,  True])
    """

    start: str | None
    stop: str | None

    @classmethod
    def of(cls, start: Any, stop: Any) -> Span | None:
        """Return the range of what a user gave: text, numbers, dates; None where it is nothing."""
        return None if start is None and stop is None else cls(_text(start), _text(stop))

    def __str__(self) -> str:
        return f"from {self.start or 'the beginning'} to {self.stop or 'the end'}"

    def covers(self, dim: str, values: np.ndarray | None) -> np.ndarray:
        """Which positions are in the range.

        Args:
            dim: Name of the dimension.
            values: Its coordinate, or None where it has none.

        Raises:
            ConfigError: There is no coordinate, or the range is none of its kind, or ends before it begins.
        """
        if values is None:
            raise ConfigError(f"--from, --to: '{dim}' has no coordinate by which a range could be meant")
        inside = np.ones(len(values), bool)
        if self.start is not None and self.stop is not None:
            self._require_order(dim, values)
        if self.start is not None:
            mine, its = self._comparable(dim, values, self.start)
            inside &= mine >= its
        if self.stop is not None:
            mine, its = self._comparable(dim, values, self.stop)
            inside &= mine <= its
        return inside

    def _require_order(self, dim: str, values: np.ndarray) -> None:
        assert self.start is not None
        assert self.stop is not None
        first, last = (self._comparable(dim, values, bound)[1] for bound in (self.start, self.stop))
        if isinstance(first, str) and values.dtype.kind in "MO":
            # 2026-01 begins before 2026-01-31 ends, and the other way round.
            length = min(len(first), len(last))
            first, last = first[:length], last[:length]
        if first > last:
            raise ConfigError(f"--from {self.start} is after --to {self.stop}")

    @staticmethod
    def _comparable(dim: str, values: np.ndarray, bound: str) -> tuple[np.ndarray, Any]:
        if values.dtype.kind == "M" or (values.dtype == object and hasattr(values[:1].item(), "calendar")):
            bound = bound.replace(" ", "T")
            if not TIME.fullmatch(bound) or (values.dtype.kind == "M" and not _is_in_calendar(bound)):
                raise ConfigError(f"--from, --to: {bound!r} is no time, such as 2026-01-31 or 2026-01-31T06")
            # Text of one form is in the order of time, and as short as the bound it stands for all that begins so.
            if values.dtype.kind == "M":
                texts = np.datetime_as_string(values, unit="ns")
            else:
                texts = np.array([value.isoformat() for value in values])
            return texts.astype(f"U{len(bound)}"), bound
        if values.dtype.kind not in "biuf":
            return values.astype(str), bound
        try:
            return values, float(bound)
        except ValueError:
            raise ConfigError(f"--from, --to: {bound!r} is no number, and '{dim}' is counted by numbers") from None


def _is_in_calendar(time: str) -> bool:
    try:
        np.datetime64(time)
    except ValueError:
        return False
    return True


def _text(value: Any) -> str | None:
    if isinstance(value, datetime.date):
        return value.isoformat()
    return None if value is None else str(value)
