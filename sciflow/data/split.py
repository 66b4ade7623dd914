"""Which events are for training, validation and testing: a pure function of the seed and the place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sciflow.data.layout import Layout, full_name
from sciflow.errors import ConfigError, LayoutError

__all__ = ["ONLY_TEST", "SPLITS", "SplitRule", "assign"]

SPLITS = ("train", "validation", "test")
# New data, which a model is to be held against, and none is trained on.
ONLY_TEST = (0.0, 0.0, 1.0)
DROPPED = np.uint8(255)
# Random splits are exact within every run of this many events, so that no stretch of the data goes untested.
STRATUM = 1000


@dataclass(frozen=True)
class SplitRule:
    """How events are shared out.

    Attributes:
        fractions: Shares of training, validation and test; they sum to 1.
        by: Dimension whose positions stay together; None shares out single events at random.
        block: Number of consecutive positions along ``by`` that stay together, drawn at random;
            None cuts the dimension in three, in order: the earliest for training, the latest for the test.
        seed: Seed of the draw.
    """

    fractions: tuple[float, float, float] = (0.8, 0.1, 0.1)
    by: str | None = None
    block: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        # What holds is asked, not what fails: NaN holds nowhere.
        sums_to_1 = abs(sum(self.fractions) - 1) <= 1e-6
        if len(self.fractions) != 3 or not sums_to_1 or min(self.fractions) < 0:
            raise ConfigError(f"split {list(self.fractions)}: give three shares of 0 or more that sum to 1")
        if self.fractions[0] == 0 and self.fractions != ONLY_TEST:
            raise ConfigError(
                f"split {list(self.fractions)}: nothing is left to train on; events that are only to be scored: 0,0,1"
            )
        if self.seed < 0:
            raise ConfigError(f"seed {self.seed}: 0 or more")
        if self.block is not None and self.block < 1:
            raise ConfigError(f"split block {self.block}: 1 or more positions stay together")

    def resolved(self, layout: Layout) -> SplitRule:
        """Return the rule for a layout, its dimension checked.

        Overlapping windows are cut in order along their dimension unless the user chose otherwise: shared out at
        random, a test window would share its values with training windows.
        """
        by = self.by
        if by is None and layout.overlapping:
            by = layout.overlapping[0].name
        if by is None:
            return self
        # Windows answer to the name of their dimension, and to their own.
        dims = {dim.source: dim.name for dim in layout.sample_dims}
        dims |= {} if any(name.startswith(by) for name in dims) else {dim.name: dim.name for dim in layout.sample_dims}
        try:
            return SplitRule(self.fractions, dims[full_name(by, dims)], self.block, self.seed)
        except LayoutError as error:
            raise LayoutError(f"split by '{by}': only what is counted can be split: {error}") from None


def assign(rule: SplitRule, layout: Layout, keep: np.ndarray | None = None) -> np.ndarray:
    """Return the split of every event of the grid.

    Args:
        rule: A rule resolved for the layout.
        layout: The store's layout.
        keep: ``[num_grid_events]``, False where an event is dropped; None keeps all.

    Returns:
        ``[num_grid_events]`` of uint8: 0 training, 1 validation, 2 test, 255 dropped. Of overlapping windows those are
        dropped that share values with one of a later split.

    Example:
        >>> from sciflow.data.layout import SampleDim
        >>> layout = Layout(("x",), ("",), (SampleDim("row", "row", 10),), ())
        >>> np.bincount(assign(SplitRule(), layout))
        array([8, 1, 1])
    """
    if rule.by is None:
        num_kept = layout.num_grid_events if keep is None else int(np.count_nonzero(keep))
        codes = _stratified(num_kept, rule.fractions, rule.seed)
        if keep is None:
            return codes
        assigned = np.full(layout.num_grid_events, DROPPED)
        assigned[keep] = codes
        return assigned
    axis = [dim.name for dim in layout.sample_dims].index(rule.by)
    along = _along(layout.grid_shape[axis], rule)
    for window in layout.overlapping:
        if window.name == layout.sample_dims[axis].source and window.stride is not None:
            along = _apart(along, (window.size - 1) // window.stride)
    shape = [1] * len(layout.grid_shape)
    shape[axis] = -1
    assigned = np.broadcast_to(along.reshape(shape), layout.grid_shape).reshape(-1).copy()
    if keep is not None:
        assigned[~keep] = DROPPED
    return assigned


def _stratified(n: int, fractions: Sequence[float], seed: int) -> np.ndarray:
    codes = np.empty(n, np.uint8)
    for start in range(0, n, STRATUM):
        size = min(STRATUM, n - start)
        block = _in_order(size, fractions)
        codes[start : start + size] = np.random.default_rng([seed, start]).permutation(block)
    return codes


def _along(n: int, rule: SplitRule) -> np.ndarray:
    if rule.block is None:
        return _in_order(n, rule.fractions)
    num_blocks = -(-n // rule.block)
    blocks = np.random.default_rng([rule.seed, n]).permutation(_in_order(num_blocks, rule.fractions))
    return np.repeat(blocks, rule.block)[:n]


def _apart(along: np.ndarray, reach: int) -> np.ndarray:
    """Drop the training windows within reach of a held-out one, and those for validation within reach of a test one."""
    kept = along.copy()
    for code in (0, 1):
        later = along > code
        near = np.zeros(len(along), bool)
        for shift in range(1, min(reach, len(along) - 1) + 1):
            near[shift:] |= later[:-shift]
            near[:-shift] |= later[shift:]
        kept[(along == code) & near] = DROPPED
    return kept


def _in_order(n: int, fractions: Sequence[float]) -> np.ndarray:
    """``n`` codes in the shares asked for, each share that is not zero at least once where ``n`` allows."""
    codes = np.zeros(n, np.uint8)
    sizes = [0, *(round(n * share) for share in fractions[1:])]
    for split in (1, 2):
        if fractions[split] > 0 and sizes[split] == 0 and n >= 3:
            sizes[split] = 1
    num_train = n - sizes[1] - sizes[2]
    codes[num_train : num_train + sizes[1]] = 1
    codes[num_train + sizes[1] :] = 2
    return codes
