"""The manifest: every shard and every other file of a store with its hash, held against what is on disk."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import astuple, dataclass
from typing import Any

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
    """What a store is made of.

    Attributes:
        shards: All shards, in order.
        files: SHA-256 of every other file, by its key: metadata, coordinates, statistics.
    """

    shards: tuple[ShardRecord, ...]
    files: dict[str, str]

    @classmethod
    def of(cls, records: Iterable[ShardRecord], files: dict[str, str]) -> Manifest:
        """Sort the records of writers that finished in any order."""
        order = {"train": 0, "validation": 1, "test": 2}
        return cls(tuple(sorted(records, key=lambda record: (order[record.split], record.number))), files)

    @property
    def fingerprint(self) -> str:
        """Hash of all events: equal for equal events at equal places, whatever the compressor."""
        return _sha256(json.dumps([astuple(record) for record in self.shards]))

    def of_split(self, split: str) -> list[ShardRecord]:
        """Shards of one split, in order."""
        return [record for record in self.shards if record.split == split]

    def to_json(self) -> dict[str, str]:
        """Return text with a hash of its own."""
        text = json.dumps({"shards": [astuple(record) for record in self.shards], "files": self.files})
        return {"manifest": text, "sha256": _sha256(text)}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Manifest:
        """Undo :meth:`to_json`.

        Raises:
            KeyError, ValueError: It is damaged.
        """
        text = record["manifest"]
        if _sha256(text) != record["sha256"]:
            raise ValueError("the manifest's checksum does not fit it")
        content = json.loads(text)
        return cls(tuple(ShardRecord(*row) for row in content["shards"]), content["files"])


def hash_rows(events: np.ndarray, index: np.ndarray, context: np.ndarray | None) -> str:
    """Hash the rows of a shard: the events, their places in the grid, and their context.

    Example:
        >>> hash_rows(np.zeros((2, 3), "float32"), np.arange(2), None)[:8]
        '19ea44be'
    """
    digest = hashlib.sha256()
    for array in (events, index, *(() if context is None else (context,))):
        digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
