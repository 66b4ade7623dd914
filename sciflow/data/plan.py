"""The order of the rows: a pure function of (seed, epoch, step), whatever the number of workers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

__all__ = ["Plan", "Window"]

# Cuts of a window: the finest deal of its rows to workers.
UNITS_PER_WINDOW = 64


@dataclass(frozen=True)
class Window:
    """A stretch of an epoch whose rows are shuffled together: what the buffers of all workers hold at one time.

    Attributes:
        number: Place in the epoch.
        offset: Rows of the epoch before it.
        units: Ranges of rows, each inside one shard; a worker reads some of them.
        shards: The shard of each unit.
    """

    number: int
    offset: int
    units: tuple[tuple[int, int], ...]
    shards: tuple[int, ...]

    @property
    def num_rows(self) -> int:
        """Rows of all its units."""
        return sum(stop - start for start, stop in self.units)

    def units_of(self, rank: int, world_size: int) -> list[int]:
        """Units that worker ``rank`` of ``world_size`` reads: whole shards where they can be dealt out evenly."""
        distinct = list(dict.fromkeys(self.shards))
        if len(distinct) % world_size == 0:
            place = {shard: number for number, shard in enumerate(distinct)}
            return [unit for unit, shard in enumerate(self.shards) if place[shard] % world_size == rank]
        return list(range(rank, len(self.units), world_size))


@dataclass(frozen=True)
class Plan:
    """Which rows make up the global batch of every step.

    Shards are shuffled, and taken a window at a time. The rows of a window are cut into units; each unit is shuffled,
    and the units are interleaved evenly, so that every batch draws on all of them, and a worker that reads its
    own units finds about its share of every batch there. The batch of a step is the same set of rows for any number of
    workers; only who computes which of them differs.

    Attributes:
        num_rows: Rows in all.
        shard_rows: Rows of every shard but the last.
        batch_size: Rows of a global batch, at most; the batches of an epoch are of equal size, to one row.
        window_rows: Rows shuffled together, at most (one shard at least).
        seed: Of the order.

    Example:
        >>> plan = Plan(num_rows=10, shard_rows=4, batch_size=4, window_rows=8, seed=0)
        >>> plan.batches_per_epoch, plan.bounds().tolist()
        (3, [0, 3, 6, 10])
    """

    num_rows: int
    shard_rows: int
    batch_size: int
    window_rows: int
    seed: int = 0

    @property
    def batches_per_epoch(self) -> int:
        """Steps in which every row is used once."""
        return -(-self.num_rows // self.batch_size)

    def bounds(self) -> np.ndarray:
        """Position in the epoch at which each batch begins, and the end: ``[batches_per_epoch + 1]``."""
        return np.arange(self.batches_per_epoch + 1) * self.num_rows // self.batches_per_epoch

    def windows(self, epoch: int) -> Iterator[Window]:
        """The windows of an epoch, in order."""
        num_shards = -(-self.num_rows // self.shard_rows)
        shards = self._rng(epoch).permutation(num_shards)
        per_window = max(1, self.window_rows // self.shard_rows)
        offset = 0
        for number, first in enumerate(range(0, num_shards, per_window)):
            group = [int(shard) for shard in shards[first : first + per_window]]
            pieces = max(1, UNITS_PER_WINDOW // len(group))
            units, owners = [], []
            for shard in group:
                start = shard * self.shard_rows
                stop = min(start + self.shard_rows, self.num_rows)
                cuts = start + np.arange(pieces + 1) * (stop - start) // pieces
                cut_units = [(int(a), int(b)) for a, b in pairwise(cuts) if b > a]
                units += cut_units
                owners += [shard] * len(cut_units)
            window = Window(number, offset, tuple(units), tuple(owners))
            offset += window.num_rows
            yield window

    def order(self, epoch: int, window: Window) -> tuple[np.ndarray, np.ndarray]:
        """Shuffle a window.

        Returns:
            Row of the split and unit of the window, for every place in the window's order; each ``[window.num_rows]``.
        """
        rng = self._rng(epoch, window.number + 1)
        rows, units, keys = [], [], []
        for unit, (start, stop) in enumerate(window.units):
            size = stop - start
            rows.append(start + rng.permutation(size))
            units.append(np.full(size, unit, np.int32))
            # Evenly spread over the window, from an offset of its own.
            keys.append((np.arange(size) + rng.random()) / size)
        order = np.argsort(np.concatenate(keys), kind="stable")
        return np.concatenate(rows)[order], np.concatenate(units)[order]

    def _rng(self, *key: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, *key])
