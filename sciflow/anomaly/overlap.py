"""Whether rows are among those that something was trained on, known by their hashes."""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["row_hashes", "share_known"]

_WORDS = 1 << 16


def row_hashes(events: Any) -> np.ndarray:
    """Return a hash of every row, ``[n]`` of uint64; equal rows of float32 have equal ones.

    Args:
        events: ``[n, *event_shape]``.

    Example:
        >>> one, other, again = row_hashes(np.array([[1.0, 2.0], [2.0, 1.0], [1.0, 2.0]]))
        >>> bool(one == again), bool(one == other)
        (True, False)
    """
    rows = np.ascontiguousarray(np.asarray(events, np.float32).reshape(len(events), -1)) + np.float32(0)  # -0 is 0
    words = rows.view(np.uint32)
    factors = np.random.default_rng(0).integers(0, 2**64, words.shape[1] + 1, np.uint64) | np.uint64(1)
    hashes = np.zeros(len(rows), np.uint64)
    with np.errstate(over="ignore"):
        step = max(1, _WORDS // max(1, words.shape[1]))
        for start in range(0, len(rows), step):
            mixed = (words[start : start + step].astype(np.uint64) + factors[1:]) * factors[:-1]
            mixed ^= mixed >> np.uint64(29)
            hashes[start : start + step] = (mixed * factors[1:]).sum(1, dtype=np.uint64)
    return hashes


def share_known(hashes: np.ndarray, known: np.ndarray) -> float:
    """Return the share of rows that are among others, ``known``, by their hashes, sorted; 0 of no rows."""
    if not len(hashes) or not len(known):
        return 0.0
    places = np.searchsorted(known, hashes).clip(max=len(known) - 1)
    return float((known[places] == hashes).mean())
