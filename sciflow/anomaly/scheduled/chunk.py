"""A chunk of the results: what was there and stays, and what is new."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from sciflow.anomaly.scheduled.grid import Grid
from sciflow.anomaly.scheduled.results import FIELDS, Results
from sciflow.anomaly.scheduled.source import Source

__all__ = ["Chunk"]


class Chunk:
    """Consecutive positions along the first dimension, and all their rows.

    Args:
        grid: Where results lie.
        old: The version before.
        start: The first position.
        was: ``[m]``, where each of them was in the version before; below 0 where it is new.
        blank: ``[m]``, whether what was there is no longer so, but for what the sources keep.
        sources: Whose rows are in it.

    Attributes:
        fields: Values of every field, ``[m * inner_size]``.
        news: How many rows are flagged that were not flagged before.
    """

    def __init__(
        self,
        grid: Grid,
        old: Results | None,
        start: int,
        was: np.ndarray,
        blank: np.ndarray,
        sources: Sequence[Source],
    ) -> None:
        self._grid, self._old, self._was = grid, old, was
        stays = np.repeat(~blank, grid.inner_size)
        # Of each source that is judged: which of its rows are here, and where.
        self._own: list[tuple[Source, np.ndarray, np.ndarray]] = []
        for source in sources:
            places = source.index() - start * grid.inner_size
            here = np.flatnonzero((places >= 0) & (places < len(stays)))
            if source.is_judged:
                self._own.append((source, here, places[here]))
            else:
                stays[places[here]] = True
        self.fields = {name: self._before(name) for name in FIELDS}
        was_flagged = self.fields["flag"].copy()
        for name, values in self.fields.items():
            values[~stays] = FIELDS[name][1]
        self._is_old = np.ones(len(stays), bool)
        self.news = 0
        for source, rows, places in self._own:
            for name, values in source.fields(rows).items():
                self.fields[name][places] = values
            self.news += int(np.count_nonzero(self.fields["flag"][places] & ~was_flagged[places]))
            self._is_old[places] = False

    def attributions(self, step: int) -> Iterator[tuple[int, np.ndarray]]:
        """Yield what scores of flagged rows are made of, for every ``step`` positions among which one is flagged.

        Yields:
            The first of the positions, counted from the chunk's own, and ``[step, *inner, *event_shape]``.
        """
        grid, inner, flag = self._grid, self._grid.inner_size, self.fields["flag"]
        found = list(self._attributions_of_sources())
        for low in range(0, len(self._was), step):
            high = min(low + step, len(self._was))
            rows = slice(low * inner, high * inner)
            if not flag[rows].any():
                continue
            slab = np.full(((high - low) * inner, *grid.event_shape), np.nan, np.float32)
            there = np.flatnonzero((flag & self._is_old)[rows])
            if self._old is not None and len(there):
                positions = np.unique(there // inner)
                read = self._old.read("attribution", self._was[low + positions])
                read = read.reshape(len(positions), inner, *grid.event_shape)
                slab[there] = read[np.searchsorted(positions, there // inner), there % inner]
            for places, values in found:
                inside = np.flatnonzero((places >= rows.start) & (places < rows.stop))
                slab[places[inside] - rows.start] = values[inside]
            yield low, slab.reshape(high - low, *grid.inner, *grid.event_shape)

    def _before(self, name: str) -> np.ndarray:
        """Values of a field as they were."""
        dtype, empty, _ = FIELDS[name]
        values = np.full((len(self._was), self._grid.inner_size), empty, dtype)
        before = np.flatnonzero(self._was >= 0)
        if self._old is not None and len(before):
            values[before] = self._old.read(name, self._was[before]).reshape(len(before), -1)
        return values.reshape(-1)

    def _attributions_of_sources(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Places of flagged rows of each source, and what their scores are made of."""
        for source, rows, places in self._own:
            flagged = self.fields["flag"][places]
            values = source.attribution(rows[flagged]) if flagged.any() else ()
            if len(values):
                yield places[flagged], np.asarray(values)
