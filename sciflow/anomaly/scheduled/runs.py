"""Whole numbers that mostly count up, kept by where they do not."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

__all__ = ["Runs"]


class Runs:
    """Whole numbers ``[n]`` as runs, in each of which every number is one more than the one before.

    However many rows a table has, its rows in their order are one run.

    Args:
        first: ``[r]``, with which each run begins.
        length: ``[r]``, how many numbers it has; runs that go on from one to the next are put together.

    Example:
        >>> runs = Runs([10, 11, 0], [1, 2, 2])
        >>> len(runs), runs.first, runs[1:4]
        (5, array([10,  0]), array([11, 12,  0]))
        >>> runs.find(np.array([1, 12]))
        array([4, 2])
    """

    def __init__(self, first: Iterable[int], length: Iterable[int]) -> None:
        first, length = np.array(first, np.int64), np.array(length, np.int64)
        first, length = first[length > 0], length[length > 0]
        is_new = np.ones(len(first), bool)
        is_new[1:] = first[1:] != first[:-1] + length[:-1]
        ends = np.cumsum(length)
        self.first = first[is_new]
        #: Place of each run's first number, and how many numbers there are in all.
        self.begin = np.append((ends - length)[is_new], ends[-1:] if len(ends) else 0)

    @classmethod
    def of(cls, numbers: np.ndarray) -> Runs:
        """Find the runs of numbers."""
        begin = np.flatnonzero(np.diff(numbers, prepend=numbers[:1] - 2) != 1)
        return cls(numbers[begin], np.diff(begin, append=len(numbers)))

    @classmethod
    def joined(cls, parts: Iterable[Runs]) -> Runs:
        """Put runs one after the other."""
        parts = [cls([], []), *parts]
        return cls(np.concatenate([part.first for part in parts]), np.concatenate([part.length for part in parts]))

    @property
    def length(self) -> np.ndarray:
        """Numbers in each run."""
        return np.diff(self.begin)

    def __len__(self) -> int:
        return int(self.begin[-1])

    def __getitem__(self, places: slice | np.ndarray) -> np.ndarray:
        index = np.arange(*places.indices(len(self))) if isinstance(places, slice) else places
        run = np.searchsorted(self.begin, index, side="right") - 1
        return self.first[run] + index - self.begin[run]

    def find(self, numbers: np.ndarray) -> np.ndarray:
        """Return the places of numbers, all of which are there, and once."""
        order = np.argsort(self.first)
        run = order[np.searchsorted(self.first[order], numbers, side="right") - 1]
        return self.begin[run] + numbers - self.first[run]
