"""The page of a run: what was trained on what, how it went, and draws against data."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sciflow.data.layout import Layout
from sciflow.data.store import open_store
from sciflow.errors import SciflowError
from sciflow.report import Section, Table, corner, write_page
from sciflow.training.run import Run

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["write_report"]

NUM_DRAWS = 2000


def write_report(run: Run) -> Path:
    """Write ``report.html`` into the folder of a run that has ended, and return its path."""
    workflow, fit = run.workflow, run.fit()
    judged = "log p" if fit.validation.unit == "nats" else "score"
    figures: dict[str, Any] = {
        f"held-out {judged}": f"{fit.validation} over {fit.validation.count:,} events",
        "steps": f"{fit.steps:,}, the weights of step {fit.best_step:,} are kept",
        "ended by": {"steps": "the last step", "patience": "early stopping", "stopped": "request"}[fit.ended],
        "time": f"{fit.seconds:.0f} s",
        "model": repr(fit.density),
        "data": workflow.data.store,
    }
    sections = [
        Section("Result", table=Table(("", "value"), list(figures.items()))),
        Section(
            "Training",
            f"{judged[0].upper()}{judged[1:]} of held-out events decides which weights are kept.",
            figures=(fit.plot(),),
        ),
    ]
    draws = _draws(run, fit.density)
    if draws is not None:
        sections.append(Section("Draws against held-out data", "In data units.", figures=(draws,)))
    return write_page(run.folder / "report.html", workflow.name, sections)


def _draws(run: Run, density: Any) -> Figure | None:
    """A corner plot; None where the store is no longer there, or the density needs a context."""
    if density.context_shape is not None:
        return None
    try:
        store = open_store(run.workflow.data.store)
    except SciflowError:
        return None
    held = store.validation[:NUM_DRAWS].reshape(-1, density.event_shape.numel()).numpy()
    drawn = density.sample(NUM_DRAWS, seed=0).reshape(NUM_DRAWS, -1).numpy()
    return corner(np.asarray(held), np.asarray(drawn), _element_names(store.layout))


def _element_names(layout: Layout) -> list[str]:
    """What each element of an event is: variable, place along the event's dimensions, and unit.

    Example:
        >>> from sciflow.data.layout import EventDim, SampleDim
        >>> _element_names(Layout(("t2m",), ("K",), (SampleDim("day", "time", 31),), (EventDim("time", 2, 2),)))
        ['t2m time+0 [K]', 't2m time+1 [K]']
    """
    sizes = [range(dim.size) for dim in layout.event_dims]
    places = ["".join(f" {d.name}+{i}" for d, i in zip(layout.event_dims, at, strict=True)) for at in product(*sizes)]
    units = ["" if unit in ("", "1") else f" [{unit}]" for unit in layout.units]
    return [f"{name}{place}{unit}" for name, unit in zip(layout.variables, units, strict=True) for place in places]
