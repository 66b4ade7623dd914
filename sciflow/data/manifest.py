"""The manifest: every shard of a store with its rows and hash, held against what is on disk."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass

import numpy as np

__all__ = ["Manifest", "ShardRecord", "hash_rows"]


@dataclass(frozen=True, order=True)
class ShardRecord:
    """One shard: the unit of writing and of the cluster's work.

    Attributes:
        split: ``train``, ``validation`` or ``test``.
        number: Place of the shard in its split.
        rows: Events in it.
        sha256: Hash of its rows, events then context, as they are read.
    """

    split: str
    number: int
    rows: int
    sha256: str

    @property
    def name(self) -> str:
        """How messages call it, ``train/3``."""
        return f"{self.split}/{self.number}"


@dataclass(frozen=True)
class Manifest:
    """All shards of a store, in order."""

    shards: tuple[ShardRecord, ...]

    @classmethod
    def of(cls, records: Iterable[ShardRecord]) -> Manifest:
        """Sort the records of writers that finished in any order."""
        order = {"train": 0, "validation": 1, "test": 2}
        return cls(tuple(sorted(records, key=lambda record: (order[record.split], record.number))))

    @property
    def fingerprint(self) -> str:
        """Hash of everything in the store: equal for equal events in equal order, whatever the compressor."""
        return hashlib.sha256(json.dumps(self.to_json()).encode()).hexdigest()

    def of_split(self, split: str) -> list[ShardRecord]:
        """Shards of one split, in order."""
        return [record for record in self.shards if record.split == split]

    def to_json(self) -> list[list]:
        """Return plain lists."""
        return [list(astuple(record)) for record in self.shards]

    @classmethod
    def from_json(cls, rows: Sequence[Sequence]) -> Manifest:
        """Undo :meth:`to_json`."""
        return cls(tuple(ShardRecord(*row) for row in rows))


def hash_rows(events: np.ndarray, context: np.ndarray | None) -> str:
    """Hash the rows of a shard.

    Example:
        >>> hash_rows(np.zeros((2, 3), "float32"), None)[:8]
        '9d908ecf'
    """
    digest = hashlib.sha256(memoryview(np.ascontiguousarray(events)).cast("B"))
    if context is not None:
        digest.update(memoryview(np.ascontiguousarray(context)).cast("B"))
    return digest.hexdigest()
