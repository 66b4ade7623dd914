"""What is wrong with the detection section is said before anything starts."""

from __future__ import annotations

import math

import numpy as np
import torch

from sciflow.anomaly.decision import fits
from sciflow.anomaly.groups import block_numbers, group_labels
from sciflow.anomaly.scheduled.gap import require_time
from sciflow.anomaly.scheduled.grid import Grid, along
from sciflow.anomaly.scores import Score, build
from sciflow.config import Workflow
from sciflow.data.store import Store, open_store
from sciflow.errors import ConfigError, DataError, LayoutError
from sciflow.sections import Calibration, Detection
from sciflow.training.run import new_density

__all__ = ["check"]


def check(workflow: Workflow, where: str = "") -> str:
    """Check the detection of a workflow against its store: its score, its groups, and its events.

    Args:
        workflow: What to check; all else in it has been.
        where: Its file, for messages.

    Returns:
        What it will be calibrated on, and what that is enough for.

    Raises:
        ConfigError: There is no such score, option or group, no time for a gap, or too little to calibrate on.
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
        words = _calibrated_on(detection, store)
    except DataError as error:
        raise ConfigError(f"{prefix}detection.calibration: {error}") from None
    if detection.events.gap:
        try:
            grid = Grid.of(store.layout, store.coordinates)
            require_time(detection.events.gap, grid, along(grid.dims[0], store.coordinates))
        except (ConfigError, LayoutError) as error:
            raise ConfigError(f"{prefix}{error}") from None
    return words


def _calibrated_on(detection: Detection, store: Store) -> str:
    """How many test events, or blocks of them, calibrate, and among how many new ones they tell an odd one."""
    if not len(store.test):
        raise DataError(
            f"{store.path} has no test events to calibrate on: shard it with some, such as --split 0.7,0.1,0.2"
        )
    sizes, unit = _sizes(detection.calibration, store), "test events"
    if detection.calibration.block is not None:
        unit = "blocks of test events"
    words = f"{sizes.sum():,} {unit} calibrate"
    if len(sizes) > 1:
        words += f", in {len(sizes):,} groups of {sizes.min():,} to {sizes.max():,}"
    if detection.calibration.tail:
        return words
    smallest = 1 / (sizes.max() + 1)
    if detection.false_alarm_rate is not None:
        enough = fits(smallest, detection.false_alarm_rate)
        what = "enough for" if enough else f"{math.ceil(1 / detection.false_alarm_rate) - 1:,} are needed for"
        return f"{words}: {what} a false-alarm rate of {detection.false_alarm_rate:g}"
    if detection.method != "bh":
        return words
    most = int(detection.fdr / smallest * (1 + 1e-9))
    return f"{words}: at FDR {detection.fdr:g} an odd event alone is flagged among {most:,} new ones at the most"


def _sizes(calibration: Calibration, store: Store) -> np.ndarray:
    """How many test events, or blocks of them, every group has."""
    if calibration.group is None and calibration.block is None:
        return np.array([len(store.test)])
    places, shape = store.test.grid_index(0, len(store.test)), store.layout.grid_shape
    rows = np.stack([np.zeros(len(places), np.int64), np.arange(len(places))])
    if calibration.group is not None:
        dims = tuple(dim.name for dim in store.layout.sample_dims)
        labels = group_labels(calibration.group, store.coordinates, dims, shape)[places]
        rows[0] = np.unique(labels, return_inverse=True)[1]
    if calibration.block is not None:
        rows[1] = block_numbers(places, shape, calibration.block)
    return np.bincount(np.unique(rows, axis=1)[0])


def _try(score: Score) -> None:
    """Score no rows: options of a method are looked at when it is used, and networks have nothing to do."""
    for member in score.members:
        _try(member)
    if score.is_fitted and score.densities:
        density = score.densities[0]
        context = None if density.context_shape is None else torch.zeros(0, *density.context_shape)
        score(torch.zeros(0, *density.event_shape), context)
