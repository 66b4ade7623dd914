"""The page of what was found: how many events, where, why, and whether the p-values can be trusted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from sciflow.anomaly.axes import Axis, as_results, axes_of, require_results, text_of, time_axis, titled
from sciflow.anomaly.figures.calibration import p_value_histogram, score_distributions
from sciflow.anomaly.figures.choice import where_figures
from sciflow.anomaly.figures.marks import marks_of
from sciflow.anomaly.figures.reasons import attribution_panels
from sciflow.errors import DataError
from sciflow.report import Section, Table, write_page

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr
    from matplotlib.figure import Figure

    from sciflow.anomaly.detection import Detection

__all__ = ["Drift", "write_detection_page"]

IN_TABLE, WITH_REASONS = 10, 6
LEVELS = {"fdr": "FDR", "false_alarm_rate": "false-alarm rate"}


class Drift(Protocol):
    """What a test of drift found."""

    @property
    def words(self) -> str:
        """The verdict, in words."""


def write_detection_page(
    path: str | Path,
    found: Detection | xr.Dataset,
    events: pd.DataFrame,
    *,
    calibration_scores: Any = None,
    drift: Drift | None = None,
    title: str = "Anomalies",
    facts: Mapping[str, Any] | None = None,
) -> Path:
    """Write what was found as one self-contained page; the same results make the same bytes.

    Args:
        path: Where the page goes; the folder must exist.
        found: What a detector's ``predict`` returns; or such results as a dataset: ``score``, ``p_value`` and ``flag``
            over their sample dimensions, with ``extrapolated`` and ``attribution`` where there are. Its attributes are
            among the facts.
        events: The events of these results, as :func:`~sciflow.anomaly.events.merge_events` returns them: numbered on
            the page in the order of the table. One whose peak is not among the results stands in the table alone.
        calibration_scores: Scores of calibration, to draw those of the results against.
        drift: What a test of drift found.
        title: Of the page.
        facts: What else there is to know: model, fingerprints, rows. They stand after the results' own attributes.

    Returns:
        ``path``.

    Raises:
        DataError: A variable of the results or a column of the events is missing.
        SciflowError: The file cannot be written.
    """
    found = as_results(found)
    axes = axes_of(found)
    _require(found, events, axes)
    score, p_value, flag = (
        found[name].transpose(*(axis.name for axis in axes)).values for name in ("score", "p_value", "flag")
    )
    score_title = titled(str(found.attrs.get("score", "score")), found["score"].attrs.get("units"))
    scored = int(np.count_nonzero(~np.isnan(score)))
    sections = [
        Section(
            _headline(found, len(events), int(flag.sum()), scored, axes),
            _summary(found, events, axes, score, p_value),
            figures=where_figures(score, flag, events.iloc[:IN_TABLE], axes, score_title) if scored else (),
        )
    ]
    if len(events):
        shown, more = events.iloc[:IN_TABLE], len(events) - IN_TABLE
        text = f"The {IN_TABLE} with the highest scores; {more:,} more are not shown here." if more > 0 else ""
        text += " An asterisk marks p-values that are extrapolated." if shown["extrapolated"].any() else ""
        sections.append(Section("Events", text, _event_table(shown, axes)))
    reasons = _reasons_figure(found, events, axes)
    if reasons is not None:
        text = "What the score of an event is made of, where it peaks."
        sections.append(Section("Why", text, figures=(reasons,)))
    if scored:
        rows = found.attrs.get("calibration_rows")
        text = "Rows like those of calibration have p-values that are uniform; anomalies add to the lowest."
        sections.append(Section("P-values", text, figures=(p_value_histogram(p_value, rows),)))
    if drift is not None or calibration_scores is not None:
        figures = []
        if calibration_scores is not None and scored:
            figures = [score_distributions(np.ravel(calibration_scores), score.ravel(), score_title)]
        sections.append(Section("Drift", "" if drift is None else drift.words, figures=figures))
    # The note stands above.
    attrs = {
        str(name).replace("_", " "): _fact(value)
        for name, value in found.attrs.items()
        if str(value) != "nan" and name != "note"
    }
    known = attrs | dict(facts or {})
    if known:
        sections.append(Section("Facts", table=known))
    return write_page(path, title, sections)


def _require(found: xr.Dataset, events: pd.DataFrame, axes: Sequence[Axis]) -> None:
    require_results(found, axes)
    wanted = ["peak", "p_value", "extrapolated", "cells", "features"]
    for name in (*wanted, *(f"{axis.name}_{what}" for axis in axes for what in ("start", "stop", "peak"))):
        if name not in events:
            raise DataError(f"events: no column '{name}'; give what merge_events returns of these results")


def _headline(found: xr.Dataset, num_events: int, num_flagged: int, scored: int, axes: Sequence[Axis]) -> str:
    level = next(
        (f" at {words} {found.attrs[key]:g}" for key, words in LEVELS.items() if found.attrs.get(key) is not None), ""
    )
    what = _counted(axes)
    if not found["flag"].size:
        return f"Nothing new: there are no {what}"
    if not scored:
        return f"No score: all {found['flag'].size:,} {what} are missing"
    if not num_flagged:
        return f"No event: none of {scored:,} {what} flagged{level}"
    events = "1 event" if num_events == 1 else f"{num_events:,} events"
    return f"{events}, {num_flagged:,} of {scored:,} {what} flagged{level}"


def _fact(value: Any) -> Any:
    """A list, as attributes of files may be, in words."""
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else value


def _counted(axes: Sequence[Axis]) -> str:
    if len(axes) > 1:
        return "cells"
    return "times" if time_axis(axes) is not None else "rows"


def _counted_out(number: int, axes: Sequence[Axis], one: str, several: str) -> str:
    """Such as "1 time has no score", "7 times have no score"."""
    what = _counted(axes)
    return f"1 {one.format(what.removesuffix('s'))}" if number == 1 else f"{number:,} {several.format(what)}"


def _summary(
    found: xr.Dataset, events: pd.DataFrame, axes: Sequence[Axis], score: NDArray[Any], p_value: NDArray[Any]
) -> str:
    words = []
    if len(events):
        first = events.iloc[0]
        where = ", ".join(f"{axis.name} {text_of(first[f'{axis.name}_peak'])}" for axis in axes)
        words.append(f"The highest score is {first['peak']:.4g}, at {where} (p = {first['p_value']:.2g}).")
        if "threshold" in found.attrs:
            words.append(f"Flagged are p-values up to {found.attrs['threshold']:.2g}.")
    rows = found.attrs.get("calibration_rows")
    if "extrapolated" in found and (beyond := int(found["extrapolated"].sum())):
        of = "" if rows is None else f" {rows:,} rows of"
        words.append(f"{beyond:,} p-values are extrapolated: they lie beyond what{of} calibration can tell apart.")
    missing, without = int(np.isnan(score).sum()), int(np.count_nonzero(np.isnan(p_value) & ~np.isnan(score)))
    if missing and missing < score.size:
        words.append(_counted_out(missing, axes, "{} has no score.", "{} have no score."))
    if without:
        why = "no p-value, as calibration has none like"
        words.append(_counted_out(without, axes, f"scored {{}} has {why} it.", f"scored {{}} have {why} them."))
    if found.attrs.get("note"):
        words.append(str(found.attrs["note"]))
    return " ".join(words)


def _event_table(events: pd.DataFrame, axes: Sequence[Axis]) -> Table:
    """The events as a reader compares them: number, when, where, how much, why."""
    time = time_axis(axes)
    columns: dict[str, list[Any]] = {"": list(range(1, len(events) + 1))}
    for axis in axes:
        if axis is time:
            for head, what in ((f"from {axis.name}", "start"), ("to", "stop")):
                columns[head] = [text_of(label) for label in events[f"{axis.name}_{what}"]]
        else:
            columns[f"{axis.title} of the peak" if len(axes) > 1 else axis.title] = [
                text_of(label) for label in events[f"{axis.name}_peak"]
            ]
    if (events["cells"] > 1).any():
        columns[_counted(axes)] = events["cells"].tolist()
    columns["score"] = [float(f"{peak:.4g}") for peak in events["peak"]]
    columns["p-value"] = [
        f"{p:.2g}" + "*" * bool(e) for p, e in zip(events["p_value"], events["extrapolated"], strict=True)
    ]
    if (events["features"] != "").any():
        columns["attribution"] = events["features"].tolist()
    return Table(list(columns), list(zip(*columns.values(), strict=True)))


def _reasons_figure(found: xr.Dataset, events: pd.DataFrame, axes: Sequence[Axis]) -> Figure | None:
    marks = marks_of(events, axes, WITH_REASONS)
    if "attribution" not in found or not marks:
        return None
    attribution = found["attribution"]
    peaks = [attribution.isel({axis.name: at for axis, at in zip(axes, mark.peak, strict=True)}) for mark in marks]
    titles = [f"event {mark.number}" for mark in marks]
    return attribution_panels([peak.load() for peak in peaks], titles, attribution.attrs.get("units"))
