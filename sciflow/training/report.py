"""The page of a run: what was trained on what, how it went, and draws against data."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

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
    figures: dict[str, Any] = {
        "held-out log p": f"{fit.validation} over {fit.validation.count:,} events",
        "steps": f"{fit.steps:,}, the weights of step {fit.best_step:,} are kept",
        "ended by": {"steps": "the last step", "patience": "early stopping", "stopped": "request"}[fit.ended],
        "time": f"{fit.seconds:.0f} s",
        "model": repr(fit.density),
        "data": workflow.data.store,
    }
    sections = [
        Section("Result", table=Table(("", "value"), list(figures.items()))),
        Section("Training", "Log p of held-out events decides which weights are kept.", figures=(fit.plot(),)),
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
    names = list(store.layout.variables) if store.layout.event_shape == (len(store.layout.variables),) else None
    return corner(np.asarray(held), np.asarray(drawn), names)
