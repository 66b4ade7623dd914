"""What is wrong with the detection section is said before anything starts."""

from __future__ import annotations

from sciflow.anomaly.groups import group_labels
from sciflow.anomaly.scores import build
from sciflow.config import Workflow
from sciflow.data.store import open_store
from sciflow.errors import ConfigError, DataError
from sciflow.training.run import new_density

__all__ = ["check"]


def check(workflow: Workflow, where: str = "") -> None:
    """Check the detection of a workflow against its store: its score, and its groups.

    Args:
        workflow: What to check; all else in it has been.
        where: Its file, for messages.

    Raises:
        ConfigError: There is no such score, option or group.
    """
    prefix, detection = f"{where}: " if where else "", workflow.detection
    store = open_store(workflow.data.store)
    density = new_density(workflow, store)
    try:
        if detection.score is not None:
            build(detection.score, lambda family: density)
    except ConfigError as error:
        raise ConfigError(f"{prefix}detection.score: {error}") from None
    try:
        if detection.calibration.group is not None:
            dims = tuple(dim.name for dim in store.layout.sample_dims)
            group_labels(detection.calibration.group, store.coordinates, dims, store.layout.grid_shape)
    except DataError as error:
        raise ConfigError(f"{prefix}detection.calibration.group: {error}") from None
