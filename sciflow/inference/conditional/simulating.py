"""Simulations by the block: each has a seed of its own, and is one shard of a store, whoever makes it."""

from __future__ import annotations

import hashlib
import json
import types
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import zarr
from torch import Tensor

from sciflow.data.codec import codecs, decode_index, encode_shard, index_bytes
from sciflow.data.files import read_bytes, write_file
from sciflow.errors import RunError, StoreError
from sciflow.inference.conditional.randomness import child_seed
from sciflow.inference.conditional.simulations import Part
from sciflow.inference.conditional.simulator import Block, Simulator
from sciflow.scoring.output import Output, reported
from sciflow.version import __version__

__all__ = ["FORMAT", "Proposal", "Simulating", "block_rows_of", "open_simulations"]

FORMAT = "sciflow-simulations"
_LETTERS = 120  # of a reason that is kept
_LEAST_ROWS, _MOST_ROWS, _BLOCKS = 16, 4096, 64


class Proposal(Protocol):
    """Where parameters come from: the prior, or what later rounds make of it."""

    def sample(self, n: int, seed: int) -> Tensor:
        """Draw parameters ``[n, d]``."""
        ...


def block_rows_of(n: int) -> int:
    """Rows of a block: it depends on nothing but the number of simulations, and so do the bytes.

    Example:
        >>> block_rows_of(100), block_rows_of(10_000), block_rows_of(10**6)
        (16, 157, 4096)
    """
    return min(_MOST_ROWS, max(_LEAST_ROWS, -(-n // _BLOCKS)))


@dataclass(frozen=True)
class Simulating:
    """How many simulations are made, how, and where they go.

    Block ``k`` is a function of proposal, simulator, seed and ``k``. So the store is the same whoever makes which
    block, and one that was interrupted goes on with the blocks that are missing.

    Attributes:
        proposal: Draws the parameters.
        simulator: Makes observations of them.
        n: Number of simulations.
        seed: Of all.
        num_parameters: Of the proposal.
        witness: An observation that the simulator makes again by the same seed, which tells it from another.
        place: Where they go: a path or a URL; empty for nowhere.
    """

    proposal: Proposal
    simulator: Simulator
    n: int
    seed: int
    num_parameters: int
    witness: np.ndarray | None = None
    place: str = ""

    def __len__(self) -> int:
        """Number of blocks."""
        return -(-self.n // self.rows)

    @property
    def rows(self) -> int:
        """Simulations of a block; the last has those that are left."""
        return block_rows_of(self.n)

    def block(self, number: int) -> Block:
        """Make one block."""
        rows = min(self.rows, self.n - number * self.rows)
        theta = self.proposal.sample(rows, child_seed(self.seed, number, 0))
        return self.simulator.run(theta, child_seed(self.seed, number, 1))

    def in_memory(self, each: Callable[[Callable[[int], None], list[int]], None]) -> Part:
        """Make all blocks, and keep them.

        Args:
            each: Does something with every number.
        """
        blocks: dict[int, Block] = {}
        each(lambda number: blocks.__setitem__(number, self.block(number)), list(range(len(self))))
        found = [blocks[number] for number in range(len(self))]
        reasons = [reason for block in found for reason in block.reasons]
        return Part(
            np.concatenate([block.theta for block in found]),
            np.concatenate([block.x for block in found]),
            {row: reason for row, reason in enumerate(reasons) if reason},
        )

    # As a store. -----------------------------------------------------------------------------------------------

    def begin(self, overwrite: bool) -> list[int] | None:
        """Lay the store out, and return the blocks that are still to be made; None where all are there already.

        Raises:
            StoreError: Other simulations are there, or something else.
            RunError: It cannot be written.
        """
        with reported(self.place):
            if self._output.is_done(overwrite):
                return None
            if self._output.is_begun():
                return self._missing()
            self._lay_out()
            return list(range(len(self)))

    def write(self, number: int) -> None:
        """Make one block, and write it as one shard of every array; ``x``, which makes it whole, comes last.

        Raises:
            RunError: It cannot be written.
        """
        block = self.block(number)
        with reported(self.place):
            group = self._output.opened()
            for name, values in (("reason", _letters(block.reasons)), ("theta", block.theta), ("x", block.x)):
                write_file(group, _key(name, number, values.ndim), encode_shard(values, self.rows, self.rows))

    def finish(self) -> None:
        """Give the store its name; all blocks are there.

        Raises:
            RunError: A block is not whole, or it cannot be written; what is made is kept.
        """
        with reported(self.place):
            missing = self._missing()
            if missing:
                raise RunError(f"{self.place}: block {missing[0]} is not whole: the same call makes it again")
            self._output.finish()

    @cached_property
    def token(self) -> str:
        """Hash of all that the bytes depend on, as far as functions can be told from each other."""
        witness = None if self.witness is None else self.witness.tobytes().hex()
        # Without a witness, of the code alone.
        code = _code(self.simulator.function) if witness is None else None
        first = self.proposal.sample(2, self.seed).numpy().tobytes().hex()
        what = [FORMAT, self.n, self.rows, self.seed, list(self.simulator.x_shape), self.simulator.dtype]
        return hashlib.sha256(json.dumps([*what, self.simulator.batched, first, witness, code]).encode()).hexdigest()

    @property
    def _output(self) -> Output:
        return Output(self.place, self.token)

    def _lay_out(self) -> None:
        dtype = np.dtype(self.simulator.dtype)
        axes = [f"x_dim_{place}" for place in range(len(self.simulator.x_shape))]
        arrays: list[tuple[str, np.dtype, tuple[int, ...], list[str], Any]] = [
            ("theta", dtype, (self.num_parameters,), ["parameter"], float("nan")),
            ("x", dtype, self.simulator.x_shape, axes, float("nan")),
            ("reason", np.dtype("uint8"), (_LETTERS,), ["letter"], 0),
        ]
        with self._output.laid_out() as group:
            for name, kind, shape, dims, fill in arrays:
                group.create_array(
                    name,
                    shape=(self.n, *shape),
                    dtype=kind,
                    chunks=(self.rows, *shape),
                    shards=(self.rows, *shape),
                    compressors=codecs(kind),
                    fill_value=fill,
                    dimension_names=("simulation", *dims),
                )
            written_by = f"sciflow {__version__}"
            group.attrs.update({"format": FORMAT, "n": self.n, "seed": self.seed, "written_by": written_by})

    def _missing(self) -> list[int]:
        group = self._output.opened()
        arrays = {name: array.ndim for name, array in group.arrays()}

        def is_whole(number: int) -> bool:
            try:
                for name, ndim in arrays.items():
                    decode_index(read_bytes(group, _key(name, number, ndim), -index_bytes(1)))
            except (FileNotFoundError, ValueError):
                return False
            return True

        return [number for number in range(len(self)) if not is_whole(number)]


def open_simulations(place: str | Path) -> Part | None:
    """Open a store of simulations; None where it is a store of another kind.

    Raises:
        StoreError: There is none, or it is not whole.
    """
    if not str(place).count("://") and not Path(place).exists():
        partial = Path(f"{place}.partial")
        hint = f"; {partial} is half-written: the same call goes on with it" if partial.exists() else ""
        raise StoreError(f"{place}: no such store of simulations{hint}")
    try:
        group = zarr.open_group(str(place), mode="r")
    except Exception:
        raise StoreError(f"{place}: not a Zarr group, or damaged") from None
    if group.attrs.get("format") != FORMAT:
        return None
    if "unfinished" in group.attrs:
        raise StoreError(f"{place}: half-written: the call that wrote it goes on with it")
    try:
        theta, x, letters = group["theta"], group["x"], group["reason"]
        assert isinstance(letters, zarr.Array)
        reasons: dict[int, str] = {}
        step = max(1, letters.chunks[0])
        for start in range(0, letters.shape[0], step):
            rows = np.asarray(letters[start : start + step])
            reasons |= {start + int(row): _text(rows[row]) for row in np.flatnonzero(rows[:, 0])}
    except (KeyError, OSError, ValueError, RuntimeError) as error:
        raise StoreError(f"{place}: damaged ({error}): make the simulations again, with overwrite=True") from None
    return Part(theta, x, reasons)


def _letters(reasons: list[str]) -> np.ndarray:
    out = np.zeros((len(reasons), _LETTERS), np.uint8)
    for row, reason in enumerate(reasons):
        letters = np.frombuffer(reason.encode("ascii", "replace")[:_LETTERS], np.uint8)
        out[row, : len(letters)] = letters
    return out


def _text(letters: np.ndarray) -> str:
    return bytes(letters[letters > 0]).decode("ascii")


def _key(name: str, number: int, ndim: int) -> str:
    return "/".join([name, "c", str(number), *["0"] * (ndim - 1)])


def _code(function: Any) -> str | None:
    """What a function does, as far as its own code tells."""
    code = getattr(function, "__code__", None)
    if not isinstance(code, types.CodeType):
        return f"{type(function).__module__}.{type(function).__qualname__}"
    constants = [repr(part) for part in code.co_consts if not isinstance(part, types.CodeType)]
    return hashlib.sha256(json.dumps([code.co_code.hex(), *constants, *code.co_names]).encode()).hexdigest()
