"""The dimension that grows: positions of all stores, in the order of their coordinate."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from sciflow.anomaly.scheduled.runs import Runs
from sciflow.errors import LayoutError

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["Axis", "Stretch"]

# A position of a store as one number: that of the store times this, and its place there.
_PLACES = 1 << 40


@dataclass(frozen=True)
class Stretch:
    """Positions of one store.

    Attributes:
        code: Number of the store.
        size: How many positions.
        coordinates: Along them.
    """

    code: int
    size: int
    coordinates: Mapping[str, xr.Variable]


@dataclass(frozen=True)
class Axis:
    """Positions of all stores along the dimension that grows; late ones come in at their place.

    Where stores come one after the other, all that is kept by position are coordinates: of a table, nothing.

    Attributes:
        dim: Name of the dimension.
        places: ``[n]``, the store that a position belongs to, and its place there, as one number.
        coordinates: Along the dimension; by the one of its own name it is sorted, without that by store.
    """

    dim: str
    places: Runs
    coordinates: Mapping[str, xr.Variable]

    def __len__(self) -> int:
        return len(self.places)

    @classmethod
    def of(
        cls, dim: str, parts: Iterable[tuple[np.ndarray, np.ndarray]], coordinates: Mapping[str, xr.Variable]
    ) -> Axis:
        """Undo :meth:`stores` and :meth:`positions`, part by part."""
        runs = [Runs.of(store.astype(np.int64) * _PLACES + position) for store, position in parts]
        return cls(dim, Runs.joined(runs), coordinates)

    @classmethod
    def empty(cls, dim: str) -> Axis:
        """No positions at all."""
        return cls(dim, Runs([], []), {})

    def replaced(self, stretches: Sequence[Stretch], rank: Mapping[int, str]) -> tuple[Axis, Runs]:
        """Put stores in place of what was there of them, and in between the others.

        Args:
            stretches: Of the stores.
            rank: Names of all stores by number, which order them where there is no coordinate.

        Returns:
            The new axis, and ``[n]``: where each of its positions was, below 0 where it is new.
        """
        kept = np.flatnonzero(~np.isin(self.places.first // _PLACES, [stretch.code for stretch in stretches]))
        begin, length = self.places.begin[kept], self.places.length[kept]
        parts: list[Mapping[str, xr.Variable]] = [
            {name: variable[start : start + size] for name, variable in self.coordinates.items()}
            for start, size in zip(begin, length, strict=True)
        ]
        parts += [stretch.coordinates for stretch in stretches]
        sizes = np.array([stretch.size for stretch in stretches], np.int64)
        codes = np.array([stretch.code for stretch in stretches], np.int64)
        # What is new counts up to below 0.
        runs = np.stack(
            [np.append(self.places.first[kept], codes * _PLACES), np.append(begin, -sizes), np.append(length, sizes)]
        )
        order = np.lexsort((runs[0], _places_of(rank)[runs[0] // _PLACES]))
        first, was, length = runs[:, order]
        places, were = Runs(first, length), Runs(was, length)
        example = parts[0] if parts else {}
        values = {name: np.concatenate([parts[i][name].values for i in order]) for name in example}
        if self.dim in values and not (values[self.dim][1:] >= values[self.dim][:-1]).all():
            by_value = np.argsort(values[self.dim], kind="stable")
            places, were = Runs.of(places[:][by_value]), Runs.of(were[:][by_value])
            values = {name: column[by_value] for name, column in values.items()}
        coordinates = {
            name: type(variable)((self.dim,), values[name], variable.attrs) for name, variable in example.items()
        }
        return Axis(self.dim, places, coordinates), were

    def stores(self, index: slice | np.ndarray) -> np.ndarray:
        """Numbers of the stores that positions belong to."""
        return self.places[index] // _PLACES

    def positions(self, index: slice | np.ndarray) -> np.ndarray:
        """Places that positions have in their stores."""
        return self.places[index] % _PLACES

    def first(self, code: int) -> int:
        """Where the first position of a store is, of those that are there."""
        return int(self.places.begin[:-1][self.places.first // _PLACES == code].min())

    def find(self, code: int, positions: np.ndarray) -> np.ndarray:
        """Where positions of a store are."""
        return self.places.find(code * _PLACES + positions)

    def require_apart(self, stretch: Stretch, names: Mapping[int, str]) -> None:
        """Refuse positions that another store has already.

        Raises:
            LayoutError: Names the first of them, and that store.
        """
        if self.dim not in self.coordinates or self.dim not in stretch.coordinates:
            return
        mine, its = self.coordinates[self.dim].values, stretch.coordinates[self.dim].values
        if mine.dtype.kind != its.dtype.kind:
            raise LayoutError(f"coordinate '{self.dim}' is of another kind ({its.dtype}) than before ({mine.dtype})")
        both = np.flatnonzero(np.isin(mine, its))
        codes = self.stores(both)
        others = np.flatnonzero(codes != stretch.code)
        if len(others):
            place, code = both[others[0]], int(codes[others[0]])
            raise LayoutError(f"{self.dim}={mine[place]} is in {names[code]} already: a place has one store")


def _places_of(rank: Mapping[int, str]) -> np.ndarray:
    """The place of every store, by number, in the order of their names."""
    places = np.zeros(max(rank, default=-1) + 1, np.int64)
    for place, code in enumerate(sorted(rank, key=lambda code: rank[code])):
        places[code] = place
    return places
