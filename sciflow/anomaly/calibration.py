"""Held-out scores turn a score into a p-value: how rarely a normal row scores as high."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from typing import Any, Literal

import numpy as np

from sciflow.anomaly import columns
from sciflow.anomaly.columns import Label
from sciflow.anomaly.exchangeability import Exchangeability, exchangeability
from sciflow.anomaly.reference import Intervals, PValues, Reference
from sciflow.errors import ConfigError, DataError

__all__ = ["Calibration", "PValues"]

# With fewer, no row of a group could have a p-value of 5 %.
MIN_IN_GROUP = 19


class Calibration:
    r"""Split-conformal p-values: of a row that is as calibration rows are, :math:`P(p \le \alpha) \le \alpha`.

    That holds for any score and any distribution, of finitely many rows, on average over calibrations. With
    one calibration of n rows, the share of false alarms at :math:`\alpha = k / (n + 1)` is random itself,
    Beta(k, n + 1 - k) without ties (Vovk, 2012, arXiv:1209.2673): 99 rows at 5 % give anything from 2 % to 10 %.

    What has to be exchangeable with the new row is what the calibration is made of:

    - *rows*: each with each. Right for independent rows.
    - *groups*: rows within their group. Every group has its own calibration, and its own guarantee (Vovk et al., 2005).
    - *blocks*: stretches of rows, as weeks of a series, whose rows may depend on each other at will. It holds of a
      row picked at random from a new block, and so of the share of all rows in new blocks.
    - *weights*: rows from elsewhere, weighted by how much likelier each is where the new rows come from: the density
      ratio, up to one factor for calibration and new rows alike. As good as the ratio is.

    Build one by :meth:`of`. The formula, and its sources, are in :class:`~sciflow.anomaly.reference.Reference`.

    Attributes:
        kind: ``"rows"``, ``"blocks"`` or ``"weights"``.
        tail: Whether a tail was asked for.
        rows: Scores that it holds.
        missing: Scores that were NaN, and are left out.
        exchangeability: What the order of the scores tells of that.
        rounding: Share of a score that may be rounding.

    Example:
        >>> calibration = Calibration.of(np.arange(99.0))
        >>> calibration.p_values([90.0, 1000.0, float("nan")]).p_value
        array([0.1 , 0.01,  nan])
        >>> calibration.resolution()
        0.01
    """

    def __init__(
        self,
        references: dict[Label | None, Reference],
        kind: Literal["rows", "blocks", "weights"],
        tail: bool,
        missing: int,
        exchangeability: Exchangeability,
        rounding: float = 0.0,
    ) -> None:
        self._references = references
        self.kind = kind
        self.tail = tail
        self.missing = missing
        self.exchangeability = exchangeability
        self.rounding = rounding
        self.rows = sum(len(reference.scores) for reference in references.values())

    @classmethod
    def of(
        cls,
        scores: Any,
        *,
        groups: Any = None,
        blocks: Any = None,
        weights: Any = None,
        tail: bool = False,
        rounding: float = 0.0,
    ) -> Calibration:
        """Calibrate on scores of held-out rows that are normal.

        Args:
            scores: ``[n]``, in the order of time if there is one; NaN is left out.
            groups: ``[n]``, text or whole numbers: season, station.
            blocks: ``[n]``, text or whole numbers, for data that are autocorrelated. A block that crosses several
                groups is one in each.
            weights: ``[n]``, above 0, where new rows are distributed otherwise than these.
            tail: Fit a generalised Pareto tail for what is beyond the largest score, see :class:`~.tail.Tail`. It takes
                500 rows; :attr:`without_tail` names groups that have fewer.
            rounding: Share of a score that may be rounding, as 1e-5 of networks in single precision: scores that differ
                by no more count as equal, in favour of the row.

        Raises:
            ConfigError: Both blocks and weights.
            DataError: No scores, nothing but NaN, columns of different lengths, weights that are not above 0, or a
                group with fewer than 19 rows or blocks.
        """
        if blocks is not None and weights is not None:
            raise ConfigError("calibrate by blocks or by weights: of both together no guarantee is known")
        scores = columns.numbers(scores, "calibration scores")
        kept = ~np.isnan(scores)
        if not kept.any():
            raise DataError(f"{len(scores):,} calibration scores, none of them a number: nothing to calibrate on")
        n = len(scores)
        groups = None if groups is None else columns.labels(groups, "groups", n)[kept]
        blocks = None if blocks is None else columns.labels(blocks, "blocks", n)[kept]
        weights = None if weights is None else columns.weights(weights, n)[kept]
        scores = scores[kept]

        parts: list[tuple[Label | None, Any]] = [(None, slice(None))] if groups is None else list(columns.parts(groups))
        of_group = [
            (scores[rows], None if blocks is None else blocks[rows], None if weights is None else weights[rows])
            for _, rows in parts
        ]
        unit: Literal["rows", "blocks"] = "rows" if blocks is None else "blocks"
        sizes = [len(column if block is None else np.unique(block)) for column, block, _ in of_group]
        small = {name: size for (name, _), size in zip(parts, sizes, strict=True) if size < MIN_IN_GROUP}
        if groups is not None and small:
            smaller = ", take smaller blocks" if unit == "blocks" else ""
            raise DataError(
                f"groups with fewer than {MIN_IN_GROUP} {unit} to calibrate on: {columns.named(small)}; give more rows"
                f"{smaller}, put them together with others, or leave their rows out"
            )
        tested = exchangeability(
            [column for column, _, _ in of_group],
            None if blocks is None else [blocks[rows] for _, rows in parts],
            ["" if name is None else str(name) for name, _ in parts],
        )
        references = {
            name: Reference.of(*given, tail, rounding) for (name, _), given in zip(parts, of_group, strict=True)
        }
        return cls(references, unit if weights is None else "weights", tail, int((~kept).sum()), tested, rounding)

    def p_values(self, scores: Any, *, groups: Any = None, weights: Any = None) -> PValues:
        """Return the p-value of every score.

        Args:
            scores: ``[m]``; the higher, the more anomalous, infinity included.
            groups: ``[m]``, where calibrated by groups.
            weights: ``[m]``, where calibrated by weights, in the same units.

        Raises:
            ConfigError: Groups or weights are missing, or not what the calibration has.
            DataError: Columns of different lengths, or weights that are not above 0.
        """
        scores, by_group, unknown = self._matched(scores, groups, weights)
        p_value, extrapolated = np.full(len(scores), np.nan), np.zeros(len(scores), dtype=bool)
        for reference, rows, own in by_group:
            p_value[rows], extrapolated[rows] = reference.p_values(scores[rows], own)
        return PValues(p_value, extrapolated, unknown)

    def intervals(self, scores: Any, *, groups: Any = None, weights: Any = None) -> Intervals:
        """Return what :meth:`p_values` leaves open where scores are equal, and never a tail; arguments as there."""
        scores, by_group, _ = self._matched(scores, groups, weights)
        low, high = np.full((2, len(scores)), np.nan)
        group = np.full(len(scores), -1)
        places = {id(reference): place for place, reference in enumerate(self._references.values())}
        for reference, rows, own in by_group:
            low[rows], high[rows] = reference.intervals(scores[rows], own)
            group[rows] = places[id(reference)]
        return Intervals(low, high, group)

    def resolution(self, group: Label | None = None) -> float:
        """Return the smallest p-value without a tail: of a group, or of the group where it is smallest."""
        if group is None:
            return min(reference.resolution for reference in self._references.values())
        if group not in self._references:
            sizes = {name: len(reference.scores) for name, reference in self._references.items()}
            raise DataError(f"the calibration has no group {group!r}; it has {columns.named(sizes)}")
        return self._references[group].resolution

    @property
    def smallest_p_value(self) -> float:
        """What no p-value is below: the resolution, or 0 where a tail is fitted beyond."""
        return min(0.0 if each.tail is not None else each.resolution for each in self._references.values())

    @property
    def scores(self) -> np.ndarray:
        """``[rows]``, the scores that it holds, sorted within every group."""
        return np.concatenate([reference.scores for reference in self._references.values()])

    @property
    def groups(self) -> list[Label]:
        """Groups that it was calibrated by, in order; empty where by none."""
        return [name for name in self._references if name is not None]

    @property
    def effective_rows(self) -> np.ndarray:
        """``[num_groups]``, how many independent rows say as much as those of each group."""
        return np.array([reference.effective_rows for reference in self._references.values()])

    @property
    def spacing(self) -> float:
        """How many rows in time say as much as an independent one: 1 unless calibrated by blocks."""
        return self.rows / float(self.effective_rows.sum()) if self.kind == "blocks" else 1.0

    @property
    def without_tail(self) -> list[Label | None]:
        """Groups, or None for all rows, where a tail was asked for and there were too few rows to fit one."""
        return [name for name, reference in self._references.items() if self.tail and reference.tail is None]

    @property
    def fingerprint(self) -> str:
        """SHA-256, in hexadecimal, of everything that it holds."""
        arrays, description = self.state()
        digest = hashlib.sha256(json.dumps(description, sort_keys=True).encode())
        for name in sorted(arrays):
            digest.update(arrays[name].tobytes())
        return digest.hexdigest()

    def state(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Return all that it is, as arrays and as what JSON can hold; :meth:`from_state` reads it."""
        references = list(self._references.values())
        arrays = {
            "scores": self.scores,
            "mass": np.concatenate([reference.mass for reference in references]),
            "rows": np.array([len(reference.scores) for reference in references], dtype=np.int64),
            "effective_rows": self.effective_rows,
        }
        description = {
            "kind": self.kind,
            "groups": self.groups or None,
            "tail": self.tail,
            "missing": self.missing,
            "exchangeability": asdict(self.exchangeability),
            "rounding": self.rounding,
        }
        return arrays, description

    @classmethod
    def from_state(cls, arrays: dict[str, np.ndarray], description: dict[str, Any]) -> Calibration:
        """Return the calibration whose :meth:`state` this is.

        Raises:
            DataError: It is not one.
        """
        try:
            ends = np.cumsum(arrays["rows"])[:-1]
            each = zip(
                description["groups"] or [None],
                np.split(arrays["scores"], ends),
                np.split(arrays["mass"], ends),
                arrays["effective_rows"].tolist(),
                strict=True,
            )
            kind, tail = description["kind"], description["tail"]
            rounding = description.get("rounding", 0.0)  # which earlier versions did not know
            references = {
                name: Reference(scores, mass, effective, kind == "weights", tail, rounding)
                for name, scores, mass, effective in each
            }
            tested = Exchangeability(**description["exchangeability"])
            return cls(references, kind, tail, description["missing"], tested, rounding)
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise DataError(f"this is not the state of a calibration ({error}): calibrate again") from error

    def __repr__(self) -> str:
        by = "" if self.kind == "rows" else f" by {self.kind}"
        of = f" in {len(self.groups):,} groups" if self.groups else ""
        return f"Calibration({self.rows:,} rows{by}{of}, p >= {self.resolution():.2g}, {self.exchangeability.verdict})"

    def _matched(
        self, scores: Any, groups: Any, weights: Any
    ) -> tuple[np.ndarray, list[tuple[Reference, Any, Any]], dict[Label, int]]:
        """Scores; the reference, rows and own mass of every group among them; rows of groups without a reference."""
        for name, given, asked in (("groups", groups, self.groups), ("weights", weights, self.kind == "weights")):
            if given is None and asked:
                raise ConfigError(f"the calibration is by {name}: give those of the new rows, {name}=")
            if given is not None and not asked:
                raise ConfigError(f"the calibration has no {name}: leave them out here, or calibrate with {name}=")
        scores = columns.numbers(scores, "scores")
        own: Any = 1.0 if weights is None else columns.weights(weights, len(scores))
        if groups is None:
            return scores, [(self._references[None], slice(None), own)], {}
        groups = columns.labels(groups, "groups", len(scores))
        if len(groups) and type(groups[0].item()) is not type(self.groups[0]):
            known = "text" if isinstance(self.groups[0], str) else "whole numbers"
            raise DataError(
                f"groups of the calibration are {known}, as {self.groups[0]!r}; these are as {groups[0].item()!r}"
            )
        matched: list[tuple[Reference, Any, Any]] = []
        unknown: dict[Label, int] = {}
        for group, rows in columns.parts(groups):
            if reference := self._references.get(group):
                matched.append((reference, rows, own if weights is None else own[rows]))
            else:
                unknown[group] = len(rows)
        return scores, matched, unknown
