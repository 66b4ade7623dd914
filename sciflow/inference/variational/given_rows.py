"""The rows that a posterior is given: of a store, or in memory, read in order, shuffled, or a few of them at random."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sciflow.arrays import numbers
from sciflow.data.loader import ArrayRows, Loader, Rows, sequential
from sciflow.data.plan import Plan
from sciflow.data.store import Split, Store, open_store
from sciflow.errors import DataError, LayoutError, ShapeError

__all__ = ["GivenRows"]

_BLOCK_BYTES, _LEAST_BLOCK, _MOST_BLOCK = 4 << 20, 64, 1 << 15
_WINDOW_BYTES = 32 << 20
_NAMED = 5  # rows, in a message


class GivenRows:
    """Rows of a store, of one of its splits, or of an array, as one sequence that is read by range.

    Args:
        given: A store or its path, of which all rows count, training, validation and test; a split of one, such as
            ``store.train``; or numbers ``[n, *event_shape]`` in memory.

    Attributes:
        dtype: NumPy dtype of the rows.
        shard_rows: Rows that are shuffled together, at the least.
        notes: What is to be known of them, in sentences.

    Raises:
        StoreError: There is no store, or it is damaged.
        LayoutError: It has a context.
        DataError: There are no rows, or they are no numbers.

    Example:
        >>> rows = GivenRows(np.arange(10.0).reshape(5, 2))
        >>> len(rows), rows.event_shape, [block.shape for block, _ in rows.in_order()]
        (5, (2,), [torch.Size([5, 2])])
        >>> sorted(int(position) for position in next(rows.shuffled(5, seed=0))[1])
        [0, 1, 2, 3, 4]
    """

    def __init__(self, given: Any) -> None:
        self.notes: list[str] = []
        self._parts: list[tuple[str, Rows]]
        if isinstance(given, str | Path):
            given = open_store(given)
        if isinstance(given, Store):
            if given.context_shape is not None:
                raise LayoutError(_no_context(given.path))
            self._parts = [(split.name, split) for split in given.splits if len(split)]
            self._name = given.path
            self.notes += _filled(given)
        elif isinstance(given, Split):
            if _has_context(given):
                raise LayoutError(_no_context(f"the split {given.name}"))
            self._parts, self._name = [(given.name, given)], f"the split {given.name}"
        else:
            array = numbers(given, "rows")
            if array.ndim == 0:
                raise ShapeError("rows: an array [n, *event_shape] expected; got a number")
            self._parts, self._name = [("", ArrayRows(np.ascontiguousarray(array)))], "rows"
        if not sum(len(part) for _, part in self._parts):
            raise DataError(f"{self._name}: there are no rows: a posterior needs one at the least")
        first = self._parts[0][1]
        self.event_shape = tuple(first.event_shape)
        self.dtype = str(array.dtype) if isinstance(first, ArrayRows) else str(first[:0].numpy().dtype)  # type: ignore[index]
        self._starts = [0, *itertools.accumulate(len(part) for _, part in self._parts)]
        self.shard_rows = min(first.shard_rows, self._fitting(_WINDOW_BYTES, 1, 1 << 62))

    def __len__(self) -> int:
        return self._starts[-1]

    def read(self, start: int, stop: int, events: np.ndarray, context: np.ndarray | None = None) -> None:
        """Read rows ``start:stop`` into ``events``, ``[stop - start, *event_shape]``; there is no context."""
        for (_, part), first in zip(self._parts, self._starts, strict=False):
            low, high = max(start, first), min(stop, first + len(part))
            if low < high:
                part.read(low - first, high - first, events[low - start : high - start])

    def in_order(self) -> Iterator[tuple[Tensor, np.ndarray]]:
        """All rows, a block at a time: ``[m, *event_shape]``, and their numbers ``[m]``."""
        for batch in sequential(self, self._fitting(_BLOCK_BYTES, _LEAST_BLOCK, _MOST_BLOCK), dtype=self.dtype):
            yield batch.events, batch.rows

    def shuffled(self, batch_size: int, seed: int) -> Iterator[tuple[Tensor, np.ndarray, int]]:
        """Batches without end, epoch after epoch: rows, their numbers, and how many batches an epoch has.

        So many times a sum over one batch is the sum over all rows, on the mean of an epoch.
        """
        plan = Plan(len(self), self.shard_rows, batch_size, self._fitting(_WINDOW_BYTES, 1, 1 << 62), seed)
        loader = Loader(self, plan, dtype=self.dtype)
        for epoch in itertools.count():
            for batch in loader.epoch(epoch):
                yield batch.events, batch.rows, plan.batches_per_epoch

    def drawn(self, count: int, seed: int) -> tuple[Tensor, np.ndarray]:
        """Rows drawn at random without replacement, and their numbers; all rows are read, and must be finite.

        Raises:
            DataError: Some are missing or infinite; names them.
        """
        rng = np.random.default_rng([seed, len(self)])
        chosen = np.sort(rng.choice(len(self), min(count, len(self)), replace=False))
        kept: list[Tensor] = []
        bad: list[int] = []
        num_bad = 0
        for block, places in self.in_order():
            if not math.isfinite(float(block.double().sum())):
                found = places[~torch.isfinite(block).reshape(len(block), -1).all(1).numpy()]
                num_bad += len(found)
                bad += found[: max(0, _NAMED - len(bad))].tolist()
            low, high = np.searchsorted(chosen, [places[0], places[-1] + 1])
            kept.append(block[torch.from_numpy(chosen[low:high] - places[0])])
        if num_bad:
            raise DataError(
                f"{self._name}: {num_bad:,} rows of {len(self):,} have missing or infinite values: {self.named(bad)}"
                f"{', ...' if num_bad > len(bad) else ''}. Drop or fill them first (--missing drop | fill)"
            )
        order = rng.permutation(len(chosen))
        return torch.cat(kept)[torch.from_numpy(order)], chosen[order]

    def named(self, rows: Sequence[int]) -> str:
        """Rows by their numbers, as messages call them.

        Example:
            >>> GivenRows(np.zeros(5)).named([3, 4])
            'row 3, row 4'
        """
        names = []
        for row in rows:
            place = int(np.searchsorted(self._starts, row, side="right")) - 1
            names.append(f"{self._parts[place][0]} row {row - self._starts[place]}".strip())
        return ", ".join(names)

    def _fitting(self, size: int, least: int, most: int) -> int:
        """How many rows there are in so many bytes."""
        row_bytes = max(1, math.prod(self.event_shape)) * np.dtype(self.dtype).itemsize
        return min(max(least, size // row_bytes), most)


def _has_context(split: Split) -> bool:
    try:
        split.context[:0]
    except ShapeError:
        return False
    return True


def _no_context(name: str) -> str:
    return (
        f"{name}: events with a context; log_likelihood is called with rows alone: shard what it conditions on as "
        "variables of the event, without context"
    )


def _filled(store: Store) -> list[str]:
    """A sentence where the store has values that were never observed."""
    if store.filled_with is None:
        return []
    counts = {name: count for name, count in store.missing.items() if count}
    if not counts:
        return []
    said = ", ".join(f"{count:,} of {name}" for name, count in counts.items())
    return [f"Missing values that were filled count as if observed: {said}; shard with missing='drop' to leave them."]
