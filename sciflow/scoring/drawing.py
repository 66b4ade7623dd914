"""Draws of a density, block by block: each has a seed of its own, and is one shard of every array of the output."""

from __future__ import annotations

import hashlib
import json
import math
import operator
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sciflow.data.codec import codecs, decode_index, encode_shard, index_bytes
from sciflow.data.files import read_bytes, write_file
from sciflow.density import Density
from sciflow.errors import ConfigError, RunError, ShapeError
from sciflow.kernels import VARIABLE, repeated
from sciflow.model_file import weights_hash
from sciflow.scoring.fingerprint import fingerprint
from sciflow.scoring.labels import labelled_draws
from sciflow.scoring.options import require_blocks, require_events, sampled
from sciflow.scoring.output import Output, checked_place, reported
from sciflow.scoring.process import one_thread, within_memory
from sciflow.version import __version__

__all__ = ["Drawing"]

# A network takes up to a hundred times the memory of the events that it draws.
BLOCK_ROWS, BLOCK_BYTES = 1 << 16, 8 << 20
CHUNK_BYTES = 1 << 20
MOST_BLOCKS = 1 << 20  # a file each, of every variable


@dataclass(frozen=True)
class Drawing:
    """How many events are drawn, how, and where they go; :meth:`of` makes one.

    Draws are cut into blocks by a rule that knows their number and size alone. Block ``k`` is a function of the
    density, the seed and ``k``, and whoever draws it writes it, as one shard. So the output is the same whoever draws
    which block, and one that was interrupted goes on with the blocks that are missing.

    Attributes:
        out: Zarr store to be written: a path, or a URL that fsspec knows.
        n: Number of draws.
        block_rows: Draws of a block; the last block has those that are left.
        chunk_rows: Draws of a chunk, of which a block has a whole number.
        seed: Of all draws.
        context: One context for all of them as it is packed, ``[*context_shape]``, or None.
        options: Of the density's sampler.
        device: Kind of device that draws, ``cpu`` or ``cuda``: their random numbers differ.
        weights: Hash of the density's numbers.
        token: Hash of all that the output depends on; blocks of another drawing are not mixed in.
        unknown: What the hash does not tell, in words.
    """

    out: str
    n: int
    block_rows: int
    chunk_rows: int
    seed: int
    context: Tensor | None
    options: Mapping[str, Any]
    device: str
    weights: str
    token: str
    unknown: str

    @classmethod
    def of(
        cls,
        density: Density,
        n: int,
        out: str | Path,
        *,
        block_rows: int | None = None,
        seed: int = 0,
        context: Any = None,
        options: Mapping[str, Any] | None = None,
        device: str | None = None,
    ) -> Drawing:
        """Check all that can be checked before anything is drawn.

        Args:
            density: What is drawn from.
            n: Number of draws.
            out: Where they go.
            block_rows: Most draws of a block; None for 65,536, or 8 MiB of them.
            seed: Of all draws.
            context: One context, for a conditional density.
            options: Of the density's sampler.
            device: Kind of device that will draw; None for the density's own.

        Raises:
            ConfigError: A number is out of range, the sampler has no such option, or ``out`` is no place.
            ShapeError: The context is missing, or not one of this density's; or the options are for another number of
                draws.
        """
        out = checked_place(out)
        n, seed = _whole("n", n, 1), _whole("seed", seed, 0)
        most_rows = None if block_rows is None else _whole("block_rows", block_rows, 1)
        options = dict(options or {})
        context = _one_context(density, context)
        require_events(density, context, options)
        none = _no_draws(density)
        rows = min(n, most_rows or _default_rows(none))
        largest = max(_row_bytes(array.values) for array in labelled_draws(density, none).values())
        chunks = min(rows, 1 << (max(1, rows * largest // CHUNK_BYTES) - 1).bit_length())
        # Chunks of one size: a block has no more draws than was said, or is the only one and ends within its shard.
        chunk_rows = -(-rows // chunks) if rows == n else rows // chunks
        block_rows = chunk_rows * chunks
        blocks = -(-n // block_rows)
        if blocks > MOST_BLOCKS:
            raise ConfigError(
                f"n {n:,}: {blocks:,} blocks of {block_rows:,} draws, at most {MOST_BLOCKS:,} are written: draw fewer, "
                "or more at a time (block_rows)"
            )
        require_blocks(density, context, options, {block_rows, n - (blocks - 1) * block_rows})
        kind = device or density.device.type
        weights = weights_hash(density)
        made_of = [type(density).__module__, type(density).__qualname__, str(density.dtype), density.arguments]
        parts = {"the density": fingerprint(made_of)} | {name: fingerprint(options[name]) for name in sorted(options)}
        what = [weights, list(parts.items()), density.layout, _written_by()]
        given = None if context is None else context.tolist()
        how = [n, block_rows, chunk_rows, seed, given, kind, os.environ.get(VARIABLE)]
        token = hashlib.sha256(json.dumps([what, how], sort_keys=True).encode()).hexdigest()
        own = ", ".join(name for name, part in parts.items() if part is None)
        unknown = f"{own} holds a function or an object of your own" if own else ""
        return cls(out, n, block_rows, chunk_rows, seed, context, options, kind, weights, token, unknown)

    def __len__(self) -> int:
        """Number of blocks."""
        return -(-self.n // self.block_rows)

    def begin(self, density: Density, overwrite: bool) -> list[int] | None:
        """Lay the output out, and return the blocks that are still to be drawn; None where it is there already.

        Raises:
            StoreError: Another output is there, or something else.
            RunError: The output cannot be written.
        """
        with reported(self.out):
            if self._output.is_done(overwrite):
                return None
            if self._output.is_begun():
                return self._missing()
            self._lay_out(density)
            return list(range(len(self)))

    def draw(self, density: Density, number: int, progress: bool = False) -> None:
        """Draw one block, and write it.

        Args:
            density: The one that :meth:`of` was given, or its like on another machine.
            number: Of the block.
            progress: Show the sampler's own progress bar, where it has one.

        Raises:
            RunError: It does not fit into memory, or cannot be written.
        """
        start = number * self.block_rows
        rows = min(self.block_rows, self.n - start)
        # A seed of its own for every block: draws do not depend on who makes which, nor when.
        seed = int(np.random.SeedSequence([self.seed, number]).generate_state(1)[0])
        too_many = (
            f"{rows:,} draws at a time do not fit into memory: lower block_rows (--block-rows); the drawing then "
            "begins anew"
        )
        # What is compiled, and with it the last digits, must not depend on which blocks are left.
        with one_thread(), within_memory(too_many), repeated(len(self)):
            draws = sampled(density, rows, self.context, seed, self.options, progress).to("cpu", density.dtype)
        with reported(self.out):
            group = self._output.opened()
            for name, array in labelled_draws(density, draws.numpy(), start).items():
                shard = encode_shard(array.values, self.chunk_rows, self.block_rows)
                write_file(group, _key(name, number, array.values.ndim), shard)

    def finish(self) -> None:
        """Give the output its name; all blocks are there.

        Raises:
            RunError: A block is not whole, or the output cannot be written; what is drawn is kept.
        """
        with reported(self.out):
            missing = self._missing()
            if missing:
                raise RunError(f"{self.out}: block {missing[0]} is not whole: the same command draws it again")
            self._output.finish()

    @property
    def _output(self) -> Output:
        return Output(self.out, self.token, unknown=self.unknown)

    def _lay_out(self, density: Density) -> None:
        """Make the arrays, so that every block has its place."""
        with self._output.laid_out() as group:
            for name, (dims, values, attributes) in labelled_draws(density, _no_draws(density)).items():
                group.create_array(
                    name,
                    shape=(self.n, *values.shape[1:]),
                    dtype=values.dtype,
                    chunks=(self.chunk_rows, *values.shape[1:]),
                    shards=(self.block_rows, *values.shape[1:]),
                    compressors=codecs(values.dtype),
                    fill_value=float("nan") if values.dtype.kind == "f" else 0,
                    dimension_names=dims,
                    attributes=attributes,
                )
            # Texts and numbers alone: NetCDF holds no more.
            group.attrs.update(
                {
                    "model": self.weights,
                    "n": self.n,
                    "seed": self.seed,
                    "context": _shown(density, self.context),
                    "options": json.dumps(self.options, default=repr),
                    "block_rows": self.block_rows,
                    "device": self.device,
                    "written_by": _written_by(),
                }
            )

    def _missing(self) -> list[int]:
        """Blocks that are not whole: a shard is not there, or lacks its end, which is written last."""
        group = self._output.opened()
        arrays = {name: array.ndim for name, array in group.arrays()}
        index = -index_bytes(self.block_rows // self.chunk_rows)

        def is_whole(number: int) -> bool:
            try:
                for name, ndim in arrays.items():
                    decode_index(read_bytes(group, _key(name, number, ndim), index))
            except (FileNotFoundError, ValueError):
                return False
            return True

        return [number for number in range(len(self)) if not is_whole(number)]


def _whole(name: str, value: Any, least: int) -> int:
    try:
        number = operator.index(value)
    except TypeError:
        number = least - 1
    if number < least:
        raise ConfigError(f"{name} {value!r}: a whole number expected, {least} or more")
    return number


def _one_context(density: Density, context: Any) -> Tensor | None:
    """A context as the density packs it, ``[*context_shape]``."""
    if context is None and density.context_shape is None:
        return None
    packed = density.pack_context(context)
    assert density.context_shape is not None
    if packed.numel() != density.context_shape.numel():
        raise ShapeError(f"context: give one, for all draws; got {packed.numel() // density.context_shape.numel()}")
    return packed.reshape(density.context_shape)


def _no_draws(density: Density) -> np.ndarray:
    """Draws ``[0, *event_shape]``, as all are but for their number."""
    return torch.empty(0, *density.event_shape, dtype=density.dtype).numpy()


def _row_bytes(rows: np.ndarray) -> int:
    return rows.itemsize * math.prod(rows.shape[1:])


def _default_rows(events: np.ndarray) -> int:
    """A power of two, so that chunks divide it."""
    rows = min(BLOCK_ROWS, max(1, BLOCK_BYTES // _row_bytes(events)))
    return 1 << (rows.bit_length() - 1)


def _key(name: str, number: int, ndim: int) -> str:
    """Where a block lies of one array."""
    return "/".join([name, "c", str(number), *["0"] * (ndim - 1)])


def _shown(density: Density, context: Tensor | None) -> str:
    """A context as JSON: by name, where it has one."""
    if context is None or density.contexts is None:
        return "null"
    parts = {name: part[0].tolist() for name, part in density.contexts.unpack(context.reshape(1, -1)).items()}
    return json.dumps(parts if list(parts) != ["context"] else parts["context"])


def _written_by() -> str:
    return f"sciflow {__version__}, torch {torch.__version__}"
