"""What a detector scores by where nothing is said."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from sciflow.anomaly.scores import (
    DiffusionTime,
    Ensemble,
    LocalOutlierFactor,
    MeanDistance,
    NegativeLogProb,
    Score,
    SubspaceDistance,
)
from sciflow.density import Density
from sciflow.flows import NSF

__all__ = ["FEW_ROWS", "NOISE", "default_score", "smoothed"]

# Of a standard deviation. Data on a grid, and copies, have no density that could be learned; with noise they do.
NOISE = 0.05
FEW_ROWS = 100
_MANY_NUMBERS, _VERY_MANY_NUMBERS = 128, 512


def default_score(n: int, event_shape: tuple[int, ...], seed: int, train: Callable[[Density], Density]) -> Score:
    """Return the score that suits rows: of many, the mean surprise of three or four that look at different things.

    Distances in pairs and in halves of the numbers, which see a row that is odd in few numbers or in many; the density
    next to a row beside that next to its neighbours; and log p by a flow, which alone sees fine structure. Each is
    turned into how unusual it is among normal rows. Which they are was chosen on 20 tables, on which they are right
    more often together than any of them alone (``tests/benchmarks/anomaly.py``).

    Of more than 128 numbers, pairs see next to nothing: distances in all of them take their place. The flow is left out
    of more than 512 numbers.

    Fewer than 100 rows do not say how unusual anything is that lies beyond them, and many rows would be equally odd to
    all of the above. There the distance from the nearest row is better (on 17 to 80 rows of the same tables by 5 to 1
    points of AUROC); and of fields, that from their mean.

    Args:
        n: Rows.
        event_shape: Shape of one.
        seed: Of weights and subsets.
        train: Trains a density on the rows, with some noise on them.
    """
    d = int(np.prod(event_shape))
    if n < FEW_ROWS:
        return MeanDistance() if len(event_shape) > 1 else DiffusionTime(1)
    members: list[Score] = [LocalOutlierFactor()]
    members.append(SubspaceDistance(2, num_subspaces=60, seed=seed) if d <= _MANY_NUMBERS else DiffusionTime())
    if d // 2 > 2:
        members.append(SubspaceDistance(0.5, num_subspaces=20, seed=seed))
    if d <= _VERY_MANY_NUMBERS:
        flow = NSF(event_shape, num_transforms=2, hidden_features=(64, 64), autoregressive=True, seed=seed)
        members.append(NegativeLogProb(train(flow)))
    return Ensemble(members)


def smoothed(rows: np.ndarray, least: int, seed: int) -> np.ndarray:
    """Return rows with noise of a twentieth of a standard deviation, each as often as makes ``least`` of them.

    Args:
        rows: ``[n, *event_shape]``.
        least: Rows that there shall be.
        seed: Of the noise.
    """
    rows = np.repeat(rows, max(1, -(-least // len(rows))), 0)
    return rows + NOISE * rows.std(0) * np.random.default_rng([seed, len(rows)]).standard_normal(rows.shape)
