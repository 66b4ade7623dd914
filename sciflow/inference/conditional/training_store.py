"""From stores of simulations to a store that training streams from, without those that failed."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Literal

import numpy as np
import xarray as xr

from sciflow.data.layout import EventDim, Layout, SampleDim
from sciflow.data.lock import writing
from sciflow.data.missing import Missing
from sciflow.data.place import put_in_place
from sciflow.data.split import SPLITS, SplitRule, assign
from sciflow.data.store import Store, open_store
from sciflow.data.writer import StoreWriter
from sciflow.errors import StoreError
from sciflow.inference.conditional.simulations import Simulations

__all__ = ["write_training_store"]

_CHUNK_BYTES, _SHARD_BYTES = 1 << 20, 64 << 20
_FRACTIONS = (0.9, 0.1, 0.0)


def write_training_store(
    simulations: Simulations, path: Path, event: Literal["theta", "x"], seed: int, dtype: str
) -> Store:
    """Write simulations so that one of parameters and observations is the event, and the other its context.

    One pass, a shard in memory at a time; what stood at ``path`` is replaced.

    Args:
        simulations: Of any number of rounds.
        path: A folder.
        event: Which of both is the event.
        seed: Of the share of a tenth that training is judged by.
        dtype: Of the numbers.

    Raises:
        StoreError: It cannot be written.
    """
    layout = _layout(simulations, event, dtype)
    row_bytes = layout.event_bytes + layout.context_size * np.dtype(dtype).itemsize
    chunk = max(1, min(_CHUNK_BYTES // row_bytes, len(simulations)))
    rows = max(1, min(_SHARD_BYTES // row_bytes, len(simulations)) // chunk) * chunk
    codes = assign(SplitRule(_FRACTIONS, seed=seed), layout)
    counts = {name: int(np.count_nonzero(codes == place)) for place, name in enumerate(SPLITS)}
    shard_rows = dict.fromkeys(SPLITS, rows)
    target = Path(f"{path}.partial")
    try:
        with writing(path):
            shutil.rmtree(target, ignore_errors=True)
            request = {"layout": layout.to_json(), "shard_rows": shard_rows, "chunk_rows": chunk}
            writer = StoreWriter(target, layout, request, counts, shard_rows, chunk)
            shards = [_Shards(writer, name, counts[name], rows) for name in SPLITS]
            start = 0
            for theta, x in simulations.blocks():
                events, context = (theta, x) if event == "theta" else (x, theta)
                context = context.reshape(len(context), layout.context_size)
                of_block = codes[start : start + len(events)]
                for place, split in enumerate(shards):
                    chosen = np.flatnonzero(of_block == place)
                    split.put(events[chosen], start + chosen, context[chosen])
                start += len(events)
            writer.finish(xr.Dataset(), Missing("error"))
            put_in_place(target, path)
    except OSError as error:
        if isinstance(error, StoreError):
            raise
        raise StoreError(f"{path}: cannot be written: {error.strerror or error}") from None
    return open_store(path)


class _Shards:
    """Rows of one split; every shard that is full is written."""

    def __init__(self, writer: StoreWriter, name: str, num_rows: int, shard_rows: int) -> None:
        self._writer, self._name, self._left, self._rows = writer, name, num_rows, shard_rows
        self._number = self._filled = 0
        self._buffers = writer.buffers(min(num_rows, shard_rows))

    def put(self, events: np.ndarray, index: np.ndarray, context: np.ndarray) -> None:
        while len(events):
            size = len(self._buffers[0])
            take = min(len(events), size - self._filled)
            for buffer, values in zip(self._buffers, (events, index, context), strict=True):
                assert buffer is not None
                buffer[self._filled : self._filled + take] = values[:take]
            events, index, context = events[take:], index[take:], context[take:]
            self._filled += take
            if self._filled == size:
                self._writer.write(self._name, self._number, *self._buffers)
                self._writer.account(self._name, self._number, *self._buffers)
                self._number, self._filled, self._left = self._number + 1, 0, self._left - size
                self._buffers = self._writer.buffers(min(self._left, self._rows))


def _layout(simulations: Simulations, event: Literal["theta", "x"], dtype: str) -> Layout:
    count = SampleDim("simulation", "simulation", len(simulations))
    size = int(np.prod(simulations.x_shape))
    names = tuple(f"theta_{place}" for place in range(simulations.num_parameters))
    if event == "theta":
        return Layout(names, ("",) * len(names), (count,), (), ("x",), size, dtype)
    dims = tuple(EventDim(f"x_dim_{place}", length) for place, length in enumerate(simulations.x_shape))
    return Layout(("x",), ("",), (count,), dims, ("theta",), len(names), dtype)
