"""What is wrong with the detection section is said before anything starts."""

from __future__ import annotations

import torch

from sciflow.anomaly.groups import group_labels
from sciflow.anomaly.scheduled.gap import require_time
from sciflow.anomaly.scheduled.grid import Grid, along
from sciflow.anomaly.scores import Score, build
from sciflow.config import Workflow
from sciflow.data.store import open_store
from sciflow.errors import ConfigError, DataError, LayoutError
from sciflow.training.run import new_density

__all__ = ["check"]


def check(workflow: Workflow, where: str = "") -> None:
    """Check the detection of a workflow against its store: its score, its groups, and its events.

    Args:
        workflow: What to check; all else in it has been.
        where: Its file, for messages.

    Raises:
        ConfigError: There is no such score, option or group, or no time for a gap.
    """
    prefix, detection = f"{where}: " if where else "", workflow.detection
    store = open_store(workflow.data.store)
    density = new_density(workflow, store)
    try:
        if detection.score is not None:
            _try(build(detection.score, lambda family: density))
    except ConfigError as error:
        raise ConfigError(f"{prefix}detection.score: {error}") from None
    try:
        if detection.calibration.group is not None:
            dims = tuple(dim.name for dim in store.layout.sample_dims)
            group_labels(detection.calibration.group, store.coordinates, dims, store.layout.grid_shape)
    except DataError as error:
        raise ConfigError(f"{prefix}detection.calibration.group: {error}") from None
    if detection.events.gap:
        try:
            grid = Grid.of(store.layout, store.coordinates)
            require_time(detection.events.gap, grid, along(grid.dims[0], store.coordinates))
        except (ConfigError, LayoutError) as error:
            raise ConfigError(f"{prefix}{error}") from None


def _try(score: Score) -> None:
    """Score no rows: options of a method are looked at when it is used, and networks have nothing to do."""
    for member in score.members:
        _try(member)
    if score.is_fitted and score.densities:
        density = score.densities[0]
        context = None if density.context_shape is None else torch.zeros(0, *density.context_shape)
        score(torch.zeros(0, *density.event_shape), context)
