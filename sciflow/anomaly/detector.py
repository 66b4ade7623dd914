"""The detector: it scores, calibrates and decides, each by itself."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch

from sciflow.anomaly import columns
from sciflow.anomaly.attribution import attribution, nearest_typical
from sciflow.anomaly.calibration import Calibration
from sciflow.anomaly.decision import decide
from sciflow.anomaly.detection import Detection
from sciflow.anomaly.drift import Drift, drift
from sciflow.anomaly.fitting import Fitted, LeftOut, density_of, fitted
from sciflow.anomaly.given import Given, Part, given
from sciflow.anomaly.groups import block_numbers, group_labels
from sciflow.anomaly.overlap import row_hashes
from sciflow.anomaly.saving import read, write
from sciflow.anomaly.scores import Score, require_known
from sciflow.arguments import Arguments
from sciflow.data.inside import require_inside
from sciflow.data.layout import Layout
from sciflow.data.store import Store
from sciflow.errors import ConfigError, DataError, ModelFileError, first_line

__all__ = ["Detector"]

# Of a score in single precision. How many rows are scored at a time changes as much, and must not tell apart rows that
# are copies of each other, as data on a grid have them.
_ROUNDING = 1e-5


class Detector:
    r"""Finds rows that are not like those it was fitted on, with a p-value for each, and a bound on false alarms.

    It works in three steps, each of which can be taken by itself:

    - **score**: how odd a row is, a function of the row alone, see :mod:`sciflow.anomaly.scores`;
    - **calibrate**: p-values by held-out normal rows, :math:`p = (1 + \#\{s_i \ge s\}) / (n + 1)`: of a normal row they
      are uniform, whatever the score is, as long as it could have been one of the held-out rows;
    - **decide**: which p-values are small enough, so that the expected share of false alarms among the rows that are
      flagged (the false-discovery rate) stays below a level.

    ``Detector()`` alone is meant to be good unattended: it holds out its own calibration rows, and trains what its rule
    says for as many rows of as many numbers.

    Args:
        score: A name such as ``"nll"``, with options as ``{"denoising_error": {"num_draws": 8}}``; a score over a
            density of yours; a trained density, whose minus log p it is; a list of them; or None for the rule's.
        density: What names stand on, in place of what they train by themselves: a density, which is trained where it
            is not yet, or ``{"name": "nsf", "num_transforms": 3}``.
        group: What is calibrated apart: ``"season"``, ``"month"``, ``"hour"`` of the rows' time, or a coordinate such
            as a station's; see :func:`sciflow.anomaly.groups.group_labels`.
        block: Steps along the first dimension that is counted which belong together, where neighbours resemble each
            other: they are held out together, and p-values count blocks.
        tail: Let p-values below the resolution of the calibration come from a fitted tail; they are marked as
            extrapolated, and no guarantee covers them.
        seed: Of all that is drawn.
        training: Settings of :func:`sciflow.fit`, such as ``{"max_steps": 500}``.

    Raises:
        ConfigError: An argument is out of range, or there is no such score.

    Example:
        >>> import sciflow as sf
        >>> random = np.random.default_rng(0)
        >>> normal, new = random.normal(size=(3000, 3)), random.normal(size=(50, 3))
        >>> detector = sf.Detector(score="nll", training={"max_steps": 100}).fit(normal, progress=False)
        >>> found = detector.predict(np.vstack([new, [[9.0, 9.0, 9.0]]]), fdr=0.1)
        >>> found
        1 of 51 events flagged at FDR 0.1 (p <= 0.0017); calibration 600 rows
        >>> found.flag.nonzero()[0]
        array([50])
    """

    def __init__(
        self,
        score: Any = None,
        *,
        density: Any = None,
        group: str | None = None,
        block: int | None = None,
        tail: bool = False,
        seed: int = 0,
        training: Mapping[str, Any] | None = None,
    ) -> None:
        checked = Arguments("Detector")
        self.seed = checked.seed(seed) or 0
        self.tail = checked.flag("tail", tail)
        self.block = None if block is None else checked.whole("block", block, 1, 1 << 40)
        if group is not None and not isinstance(group, str):
            raise ConfigError(f"Detector: group: the name of a coordinate, or season, month, hour; got {group!r:.80}")
        self.group = group
        if score is not None:
            require_known(score)
        self.wanted, self.density, self.training = score, density, dict(training or {})
        self._fitted: Fitted | None = None
        self._calibration: Calibration | None = None

    # The three steps. ------------------------------------------------------------------------------------------

    def fit(self, x: Any, context: Any = None, *, groups: Any = None, progress: bool = True) -> Self:
        """Train what the score stands on, and calibrate on rows that were held out.

        Args:
            x: Normal rows: ``[n, *event_shape]`` as NumPy or torch, a table, labelled data, or a store. Of a store, the
                training and validation splits are trained on, and the test split calibrates.
            context: ``[n, *context_shape]`` for what is normal given something else, where ``x`` is an array; or as the
                density that was given takes it.
            groups: One label a row, in place of ``group``, where ``x`` is an array.
            progress: Show progress bars on a terminal.

        Raises:
            DataError: There are too few rows, or some have missing values.
        """
        rows = given(x)
        if context is not None:
            density = density_of(self.wanted, self.density)
            rows = rows.with_new_context(context) if density is None else rows.with_context(context, density)
        labels = self._groups(rows, groups)
        self._fitted, held_out = fitted(rows, self.wanted, self.density, self.training, self.block, self.seed, progress)
        self._calibrate(rows, *self._scores_of(held_out), labels)
        return self

    def score(self, x: Any, context: Any = None) -> Any:
        """Return the score of every row, higher is more anomalous, as the data came: array, tensor or labelled."""
        rows = self._given(x, context)
        return rows.labelled(self._all_scores(rows), "score", {"long_name": f"score ({self.fitted_score.name})"})

    def decision_function(self, x: Any, context: Any = None) -> np.ndarray:
        """Return the scores as a plain array ``[n]``, by the name that PyOD has for it."""
        return self._all_scores(self._given(x, context))

    def calibrate(self, x: Any, context: Any = None, *, groups: Any = None, weights: Any = None) -> Self:
        """Calibrate on normal rows of yours, in place of those that fitting has held out.

        Args:
            x: Normal rows that nothing was trained on, in order of time where ``block`` is set. Of a store, its test
                split counts.
            context: As :meth:`fit` takes it.
            groups: One label a row, in place of ``group``, where ``x`` is an array.
            weights: ``[n]``, where rows to come are drawn from elsewhere than these: how many times as likely they are
                there, known up to a factor; :meth:`predict` must then be given those of its rows.

        Raises:
            DataError: There is no row, or a group has too few.
        """
        rows = self._given(x, context)
        self._fitted_or_refuse().warn_of_overlap(part.events for part in rows.parts(("test",)))
        self._calibrate(rows, *self._scores_of(rows.parts(("test",))), self._groups(rows, groups), weights)
        return self

    def predict(
        self,
        x: Any,
        context: Any = None,
        *,
        fdr: float | None = None,
        false_alarm_rate: float | None = None,
        method: Literal["bh", "by"] = "bh",
        groups: Any = None,
        weights: Any = None,
    ) -> Detection:
        """Score rows, turn the scores into p-values, and decide which are flagged.

        Args:
            x: Rows; arrays, labelled data, or a store.
            context: As :meth:`fit` takes it.
            fdr: Expected share of false alarms among the flagged rows, at most; 0.1 where nothing is said.
            false_alarm_rate: In its place, the share of normal rows that are flagged.
            method: ``"bh"`` (Benjamini and Hochberg), or ``"by"`` (Benjamini and Yekutieli) where nothing is known of
                how rows depend on each other.
            groups: One label a row, in place of ``group``, where ``x`` is an array.
            weights: ``[n]``, where it was calibrated by weights.

        Returns:
            Scores, p-values, flags and attributions.

        Raises:
            ConfigError: A level is out of range, or nothing is fitted yet.
        """
        rows = self._given(x, context)
        hashes: list[np.ndarray] = []
        scores = self._all_scores(rows, hashes)
        labels = self._groups(rows, groups)
        weights = None if weights is None else columns.numbers(weights, "weights")
        p_values = self.calibration.p_values(scores, groups=labels, weights=weights)
        if fdr is None and false_alarm_rate is None:
            fdr = 0.1
        if false_alarm_rate is not None and method != "bh":
            raise ConfigError(
                f"method {method!r} is one of fdr=, and false_alarm_rate= is given: leave one of them out"
            )
        decision = decide(
            p_values.p_value,
            fdr=fdr,
            false_alarm_rate=false_alarm_rate,
            method=method,
            resolution=self.calibration.smallest_p_value,
        )
        known = self._fitted_or_refuse().share_trained_on(hashes)
        return Detection(scores, p_values, decision, rows, labels, weights, self.calibration, self.explain, known)

    # What one asks next. ---------------------------------------------------------------------------------------

    def explain(self, x: Any, context: Any = None) -> Any:
        """Return what every element of rows adds to their scores, ``[n, *event_shape]``; see
        :func:`sciflow.anomaly.attribution.attribution`.

        Args:
            x: Rows, flagged or not.
            context: As :meth:`fit` takes it.

        Returns:
            With labels where the rows have them, and as an array otherwise; NaN of rows without a score.
        """
        return self._of_elements(x, context, self._explained, "attribution")

    def nearest_typical(self, x: Any, context: Any = None) -> Any:
        """Return the nearest rows that would score as a normal one does, ``[n, *event_shape]``, data units: what would
        have to be otherwise. See :func:`sciflow.anomaly.attribution.nearest_typical`.

        Args:
            x: Rows, flagged or not.
            context: As :meth:`fit` takes it.

        Returns:
            With labels where the rows have them, and as an array otherwise; NaN where none was found, which a warning
            says.
        """
        return self._of_elements(x, context, self._edited, "nearest_typical")

    def drift(self, found: Detection, state: dict[str, Any] | None = None) -> Drift:
        """Say whether rows as a whole have moved away from those of the calibration, or only a few are odd.

        Args:
            found: What :meth:`predict` has said of rows, in order of time.
            state: Of the rows before, ``drift.state``, from which the evidence goes on; None to begin.

        Raises:
            ConfigError: These are rows, and not what :meth:`predict` has said of them.
        """
        if not isinstance(found, Detection):
            raise ConfigError(f"drift is of what predict(rows) returns; got {type(found).__name__}")
        seen = drift(
            self.calibration,
            found.scores,
            num_flagged=int(found.decision.flag.sum()),
            groups=found.groups,
            weights=found.weights,
            state=state,
        )
        if seen.verdict != "moved" or not found.trained_on:
            return seen
        why = f"but {found.trained_on:.0%} of the rows were trained on, and score low for it: leave them out"
        return replace(seen, words=f"{seen.words}; {why}")

    @property
    def fitted_score(self) -> Score:
        """The score, fitted."""
        return self._fitted_or_refuse().score

    @property
    def calibration(self) -> Calibration:
        """What p-values come from."""
        if self._calibration is None:
            raise ConfigError("this detector is not calibrated yet: call fit(rows), or calibrate(rows)")
        return self._calibration

    @property
    def layout(self) -> Layout | None:
        """What is counted and what an event is, where it was fitted on labelled data."""
        return self._fitted_or_refuse().layout

    def save(self, path: str | Path) -> Path:
        """Write the detector into the folder ``path``: JSON, safetensors and its densities, never a pickle.

        Raises:
            ConfigError: The score is one of yours, which no file can hold.
            ModelFileError: It cannot be written, or something else is there.
        """
        settings = {"group": self.group, "block": self.block, "tail": self.tail, "seed": self.seed}
        return write(path, settings, self._fitted_or_refuse(), self._calibration)

    @classmethod
    def load(cls, path: str | Path, device: str | torch.device = "cpu") -> Self:
        """Read a detector back.

        Args:
            path: Where it was saved.
            device: Where it is to score.

        Raises:
            ConfigError: There is no such device.
            ModelFileError: A file is missing, damaged, or of another version.
        """
        settings, fitted, calibration = read(path, device)
        try:
            detector = cls(fitted.score, **settings)
        except (TypeError, ConfigError) as error:
            raise ModelFileError(
                f"{path}: its settings are damaged: {first_line(error)}; save the detector anew"
            ) from None
        detector._fitted, detector._calibration = fitted, calibration
        return detector

    # Details. --------------------------------------------------------------------------------------------------

    def _calibrate(self, rows: Given, scores: np.ndarray, places: np.ndarray, groups: Any, weights: Any = None) -> None:
        weights = None if weights is None else columns.numbers(weights, "weights", len(rows))[places]
        blocks = None if self.block is None else block_numbers(places, rows.shape, self.block)
        groups = None if groups is None else groups[places]
        self._calibration = Calibration.of(
            scores, groups=groups, blocks=blocks, weights=weights, tail=self.tail, rounding=_ROUNDING
        )

    def require_inside(self, coordinates: Mapping[str, Sequence[Any]], where: str) -> None:
        """Refuse events whose numbers stand elsewhere than in those that it was fitted on.

        Args:
            coordinates: Of an event's axes, see :func:`sciflow.data.inside.inside`.
            where: What has the events, for the message.

        Raises:
            LayoutError: They do.
        """
        require_inside(coordinates, self._fitted_or_refuse().inside, where)

    def _given(self, x: Any, context: Any) -> Given:
        fitted = self._fitted_or_refuse()
        densities = fitted.score.all_densities()
        rows = given(x, fitted.layout, fitted.score.event_shape)
        self.require_inside(rows.inside, "data")
        return rows.with_context(context, densities[0] if densities else None)

    def _all_scores(self, rows: Given, hashes: list[np.ndarray] | None = None) -> np.ndarray:
        """Scores of all rows, which are read once; their hashes are put into a list that is given."""

        def parts() -> Iterable[Part]:
            for part in rows.parts():
                if hashes is not None:
                    hashes.append(row_hashes(part.events))
                yield part

        out = np.full(len(rows), np.nan)
        scores, places = self._scores_of(parts())
        out[places] = scores
        return out

    def _scores_of(self, parts: Iterable[Part] | LeftOut) -> tuple[np.ndarray, np.ndarray]:
        """Scores of rows, and their places, in order of the places."""
        if isinstance(parts, LeftOut):
            return parts.scores, np.arange(len(parts.scores))
        found = [(self.score_events(part.events, part.context), part.places) for part in parts]
        scores = np.concatenate([np.empty(0), *(scores for scores, _ in found)])
        places = np.concatenate([np.empty(0, np.int64), *(places for _, places in found)])
        order = np.argsort(places, kind="stable")
        return scores[order], places[order]

    def score_events(self, events: Any, context: Any = None) -> np.ndarray:
        """Return the scores of events ``[n, *event_shape]`` that lie in memory, ``[n]``, float64."""
        return self._fitted_or_refuse().score(events, context).cpu().numpy()

    def _of_elements(self, x: Any, context: Any, of_events: Callable[[Any, Any], np.ndarray], name: str) -> Any:
        """Something of every element of rows: of labelled ones with their labels, whatever order they came in."""
        if not (isinstance(x, str | Path | Store) or hasattr(x, "dims") or hasattr(x, "columns")):
            return of_events(x, context)
        rows = self._given(x, context)
        found = np.full((len(rows), *rows.event_shape), np.nan)
        for part in rows.parts():
            found[part.places] = of_events(part.events, part.context)
        return rows.labelled(found, name)

    def _explained(self, events: Any, context: Any) -> np.ndarray:
        fitted = self._fitted_or_refuse()
        rows, c = fitted.score._rows(events, context)
        why = attribution(fitted.score, rows, c, fitted.typical.to(rows.device), fitted.usual)
        why[fitted.score(rows, c).isnan()] = torch.nan
        return why.cpu().numpy()

    def _edited(self, events: Any, context: Any) -> np.ndarray:
        fitted = self._fitted_or_refuse()
        rows, c = fitted.score._rows(events, context)
        found = nearest_typical(fitted.score, rows, c, fitted.typical, fitted.usual)
        without = int((found.isnan() & rows.isfinite()).flatten(1).any(1).sum())
        if without:
            warnings.warn(
                f"{without:,} of {len(rows):,} rows have no nearest typical row: even what lies in the middle of the "
                "density, in their contexts, scores above the median of normal rows",
                stacklevel=4,
            )
        return found.cpu().numpy()

    def _groups(self, rows: Given, groups: Any) -> np.ndarray | None:
        if groups is not None:
            labels = np.asarray(groups).reshape(-1)
            if len(labels) != len(rows):
                raise DataError(f"groups: {len(labels):,} labels of {len(rows):,} rows: give one for each")
            return labels
        if self.group is None:
            return None
        return group_labels(self.group, rows.coordinates, rows.dims, rows.shape)

    def _fitted_or_refuse(self) -> Fitted:
        if self._fitted is None:
            raise ConfigError("this detector has seen no normal rows yet: call fit(rows) first")
        return self._fitted

    def __repr__(self) -> str:
        if self._fitted is None:
            return "Detector(not fitted)"
        calibrated = "not calibrated" if self._calibration is None else repr(self._calibration)
        return f"Detector({self._fitted.score!r}, {calibrated})"
