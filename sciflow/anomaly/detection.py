"""What a detector says of rows: scores, p-values, flags, and why."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from sciflow.anomaly.calibration import Calibration, PValues
from sciflow.anomaly.decision import Decision
from sciflow.anomaly.given import Given

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["Detection"]

_LONG_NAMES = {
    "score": "score, higher is more anomalous",
    "p_value": "share of normal rows that score as high",
    "flag": "whether it is an anomaly",
    "extrapolated": "whether the p-value is beyond what calibration resolves",
    "attribution": "what the element alone adds to the score",
}


@dataclass(frozen=True)
class Detection:
    """Rows that were looked at, and those that were flagged.

    ``score``, ``p_value``, ``flag``, ``extrapolated`` and ``attribution`` come as the data came, with their labels.

    Attributes:
        scores: ``[n]``; NaN of rows without one.
        p_values: Share of normal rows that score as high, and whether it is extrapolated.
        decision: Which rows are flagged, and by which rule.
        given: The rows.
        groups: ``[n]``, in which they were calibrated; None where there are none.
        weights: ``[n]``, where calibrated by weights.
        calibration: What the p-values come from.
        explain: Gives attributions of events and contexts.
        trained_on: Share of the rows that the detector was trained on; such rows score low, whatever they are.
    """

    scores: np.ndarray
    p_values: PValues
    decision: Decision
    given: Given
    groups: np.ndarray | None
    weights: np.ndarray | None
    calibration: Calibration
    explain: Callable[[Any, Any], np.ndarray]
    trained_on: float = 0.0

    @property
    def score(self) -> Any:
        """Score of every row, higher is more anomalous; NaN where it has none."""
        return self._labelled("score", self.scores)

    @property
    def p_value(self) -> Any:
        """Share of normal rows that score as high."""
        return self._labelled("p_value", self.p_values.p_value)

    @property
    def flag(self) -> Any:
        """Whether the row is flagged."""
        return self._labelled("flag", self.decision.flag)

    @property
    def extrapolated(self) -> Any:
        """Whether the p-value comes from a fitted tail."""
        return self._labelled("extrapolated", self.p_values.extrapolated)

    @cached_property
    def attribution(self) -> Any:
        """What every element of flagged rows adds to the score, ``[n, *event_shape]``; NaN of other rows."""
        return self._labelled("attribution", self._attribution)

    def to_dataset(self) -> xr.Dataset:
        """Return all of it as an ``xarray.Dataset`` over the dimensions that are counted."""
        import xarray as xr

        given, layout = self.given, self.given.layout
        axes = range(len(given.event_shape))
        inside = tuple(f"axis_{k}" for k in axes) if layout is None else layout.event_axes
        arrays: dict[str, Any] = {
            name: (given.dims, values.reshape(given.shape), {"long_name": _LONG_NAMES[name]})
            for name, values in (
                ("score", self.scores),
                ("p_value", self.p_values.p_value),
                ("flag", self.decision.flag),
                ("extrapolated", self.p_values.extrapolated),
            )
        }
        shape = (*given.shape, *given.event_shape)
        attributes = {"long_name": _LONG_NAMES["attribution"]}
        arrays["attribution"] = ((*given.dims, *inside), self._attribution.reshape(shape), attributes)
        known = given.coordinates
        known_of_all = {
            "rule": self.rule,
            "threshold": self.decision.threshold,
            "calibration_rows": self.calibration.rows,
            "calibration": self.calibration.fingerprint,
        }
        return xr.Dataset(arrays, {} if known is None else dict(known.coords), known_of_all)

    @property
    def rule(self) -> str:
        """By which it was decided, in words."""
        if self.decision.method == "fixed":
            return f"a false-alarm rate of {self.decision.level:g}"
        by = "" if self.decision.method == "bh" else f" ({self.decision.method.upper()})"
        return f"FDR {self.decision.level:g}{by}"

    def __len__(self) -> int:
        return len(self.scores)

    def __repr__(self) -> str:
        num_flagged = int(self.decision.flag.sum())
        threshold = f" (p <= {self.decision.threshold:.2g})" if num_flagged else ""
        said = f"{num_flagged:,} of {len(self):,} events flagged at {self.rule}{threshold}"
        unknown = int(np.isnan(self.p_values.p_value).sum())
        if unknown:
            groups = ", ".join(f"{name} ({rows:,})" for name, rows in self.p_values.unknown.items())
            why = [f"groups that the calibration has not seen, {groups}"] if groups else []
            missing = int(np.isnan(self.scores).sum())
            why += [f"missing or infinite values ({missing:,})"] if missing else []
            said += f", {unknown:,} without a p-value: {'; '.join(why)}" if why else f", {unknown:,} without a p-value"
        beyond = int((self.p_values.extrapolated & self.decision.flag).sum())
        said += f", {beyond:,} of them by a fitted tail" if beyond else ""
        note = f"; {self.decision.note}" if self.decision.note else ""
        known = f"; {self.trained_on:.0%} of the rows were trained on, and score low for it" if self.trained_on else ""
        return f"{said}; calibration {self.calibration.rows:,} rows{known}{note}"

    @cached_property
    def _attribution(self) -> np.ndarray:
        out = np.full((len(self), *self.given.event_shape), np.nan, np.float32)
        for part in self.given.parts():
            flagged = np.flatnonzero(self.decision.flag[part.places])
            if len(flagged):
                context = None if part.context is None else part.context[flagged]
                out[part.places[flagged]] = self.explain(part.events[flagged], context)
        return out

    def _labelled(self, name: str, values: np.ndarray) -> Any:
        return self.given.labelled(values, name, {"long_name": _LONG_NAMES[name]})
