"""Reads the rows of a plan: a worker's own units, a window ahead, in bounded memory."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from sciflow.data.plan import Plan, Window

__all__ = ["ArrayRows", "Batch", "Loader", "Rows", "sequential"]


class Rows(Protocol):
    """Rows that can be read by range: a split of a store, or arrays in memory."""

    shard_rows: int

    def __len__(self) -> int: ...

    @property
    def event_shape(self) -> tuple[int, ...]: ...

    def read(self, start: int, stop: int, events: np.ndarray, context: np.ndarray | None = None) -> None: ...


class ArrayRows:
    """Rows of arrays in memory.

    Args:
        events: ``[n, *event_shape]``.
        context: ``[n, *context_shape]``, or None.
    """

    def __init__(self, events: np.ndarray, context: np.ndarray | None = None) -> None:
        self._events, self._context = events, context
        self.shard_rows = max(1, len(events))

    def __len__(self) -> int:
        return len(self._events)

    @property
    def event_shape(self) -> tuple[int, ...]:
        """Shape of one event."""
        return self._events.shape[1:]

    def read(self, start: int, stop: int, events: np.ndarray, context: np.ndarray | None = None) -> None:
        """Copy rows ``start:stop`` into the caller's arrays."""
        events[:] = self._events[start:stop]
        if context is not None and self._context is not None:
            context[:] = self._context[start:stop]


@dataclass(frozen=True)
class Batch:
    """One worker's share of a global batch.

    Attributes:
        events: ``[n, *event_shape]``; ``n`` may be 0 where a batch is smaller than the number of workers.
        context: ``[n, *context_shape]``, or None.
        rows: ``[n]``, the rows' numbers in their split.
        total: Rows of the global batch.
    """

    events: Tensor
    context: Tensor | None
    rows: np.ndarray
    total: int


class Loader:
    """Yields a worker's share of the batches of an epoch.

    The next window is read by a thread while this one is used; both live in two buffers that are kept for good, so that
    memory is flat over epochs: twice the worker's share of a window.

    Args:
        rows: Where the rows are read.
        plan: Which rows make up which batch.
        context_shape: Shape of the context, None without one.
        dtype: NumPy dtype of the rows.
        rank: This worker.
        world_size: Number of workers.
    """

    def __init__(
        self,
        rows: Rows,
        plan: Plan,
        context_shape: tuple[int, ...] | None = None,
        dtype: str = "float32",
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self._rows, self.plan = rows, plan
        self._context_shape, self._dtype = context_shape, dtype
        self._rank, self._world_size = rank, world_size
        self._buffers: list[_Buffer] = [_Buffer(), _Buffer()]

    def epoch(self, epoch: int, first_batch: int = 0) -> Iterator[Batch]:
        """Yield the batches of an epoch, from ``first_batch`` on."""
        bounds = self.plan.bounds()
        position = bounds[first_batch]
        windows = [w for w in self.plan.windows(epoch) if w.offset + w.num_rows > position]
        batch = first_batch
        carried: list[_Share] = []
        with ThreadPoolExecutor(1) as pool:
            loading: Future[_Loaded] = pool.submit(self._load, epoch, windows[0], 0)
            for number, window in enumerate(windows):
                loaded = loading.result()
                if number + 1 < len(windows):
                    loading = pool.submit(self._load, epoch, windows[number + 1], (number + 1) % 2)
                end = window.offset + window.num_rows
                while batch < self.plan.batches_per_epoch and bounds[batch] < end:
                    low, high = max(bounds[batch], window.offset), min(bounds[batch + 1], end)
                    carried.append(loaded.take(low, high))
                    if bounds[batch + 1] > end:
                        break
                    yield _join(carried, int(bounds[batch + 1] - bounds[batch]))
                    carried = []
                    batch += 1

    def _load(self, epoch: int, window: Window, buffer: int) -> _Loaded:
        with ThreadPoolExecutor(1) as shuffling:
            # Shuffling takes as long as reading where events are small.
            order = shuffling.submit(self.plan.order, epoch, window)
            events, context, shift, owned = self._read(window, buffer)
            rows, units = order.result()
        places = np.flatnonzero(owned[units])
        return _Loaded(
            torch.from_numpy(events),
            None if context is None else torch.from_numpy(context),
            positions=window.offset + places,
            rows=rows[places],
            index=torch.from_numpy(rows[places] + shift[units[places]]),
        )

    def _read(self, window: Window, buffer: int) -> tuple[np.ndarray, np.ndarray | None, np.ndarray, np.ndarray]:
        """Read this worker's units; where each of them lies in the buffer, and whether it does."""
        mine = window.units_of(self._rank, self._world_size)
        sizes = [window.units[unit][1] - window.units[unit][0] for unit in mine]
        events, context = self._buffers[buffer].of(sum(sizes), self._rows.event_shape, self._context_shape, self._dtype)
        shift = np.zeros(len(window.units), np.int64)
        owned = np.zeros(len(window.units), bool)
        spans: list[tuple[int, int, int]] = []
        filled = 0
        for unit, size in zip(mine, sizes, strict=True):
            start, stop = window.units[unit]
            shard = window.shards[unit]
            shift[unit], owned[unit] = filled - start, True
            filled += size
            # Units of a shard that follow each other are read together.
            if spans and spans[-1][1:] == (start, shard):
                spans[-1] = (spans[-1][0], stop, shard)
            else:
                spans.append((start, stop, shard))
        filled = 0
        for start, stop, _ in spans:
            into = slice(filled, filled + stop - start)
            self._rows.read(start, stop, events[into], None if context is None else context[into])
            filled += stop - start
        return events, context, shift, owned


def sequential(
    rows: Rows,
    batch_size: int,
    context_shape: tuple[int, ...] | None = None,
    dtype: str = "float32",
    rank: int = 0,
    world_size: int = 1,
    every: int = 1,
) -> Iterator[Batch]:
    """Yield the rows in order, every ``every``-th batch of them, the batches dealt to the workers in turn."""
    starts = range(0, len(rows), batch_size * every)
    for start in starts[rank::world_size]:
        stop = min(start + batch_size, len(rows))
        events = np.empty((stop - start, *rows.event_shape), dtype)
        context = None if context_shape is None else np.empty((stop - start, *context_shape), dtype)
        rows.read(start, stop, events, context)
        yield Batch(
            torch.from_numpy(events),
            None if context is None else torch.from_numpy(context),
            np.arange(start, stop),
            stop - start,
        )


_Share = tuple[Tensor, Tensor | None, np.ndarray]


@dataclass(frozen=True)
class _Loaded:
    """A worker's share of one window, shuffled: ``index`` leads from its order into the buffers."""

    events: Tensor
    context: Tensor | None
    positions: np.ndarray
    rows: np.ndarray
    index: Tensor

    def take(self, low: int, high: int) -> _Share:
        a, b = np.searchsorted(self.positions, (low, high))
        index = self.index[a:b]
        context = None if self.context is None else self.context.index_select(0, index)
        return self.events.index_select(0, index), context, self.rows[a:b]


class _Buffer:
    """Memory for a window, kept from one to the next."""

    def __init__(self) -> None:
        self._events: np.ndarray | None = None
        self._context: np.ndarray | None = None

    def of(
        self, n: int, event_shape: tuple[int, ...], context_shape: tuple[int, ...] | None, dtype: str
    ) -> tuple[np.ndarray, np.ndarray | None]:
        if self._events is None or len(self._events) < n:
            self._events = np.empty((n, *event_shape), dtype)
            if context_shape is not None:
                self._context = np.empty((n, *context_shape), dtype)
        return self._events[:n], None if self._context is None else self._context[:n]


def _join(shares: list[_Share], total: int) -> Batch:
    if len(shares) == 1:
        return Batch(*shares[0], total)
    contexts = [context for _, context, _ in shares if context is not None]
    return Batch(
        torch.cat([events for events, _, _ in shares]),
        torch.cat(contexts) if contexts else None,
        np.concatenate([rows for _, _, rows in shares]),
        total,
    )
