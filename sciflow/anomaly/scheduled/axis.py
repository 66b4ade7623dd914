"""The dimension that grows: positions of all stores, in the order of their coordinate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from sciflow.errors import LayoutError

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["Axis", "Stretch"]


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

    Attributes:
        dim: Name of the dimension.
        store: ``[n]``, the number of the store that a position belongs to.
        position: ``[n]``, its place in that store.
        coordinates: Along the dimension; by the one of its own name it is sorted, without that by store.
    """

    dim: str
    store: np.ndarray
    position: np.ndarray
    coordinates: Mapping[str, xr.Variable]

    def __len__(self) -> int:
        return len(self.store)

    @classmethod
    def empty(cls, dim: str) -> Axis:
        """No positions at all."""
        return cls(dim, np.empty(0, np.int32), np.empty(0, np.int32), {})

    def replaced(self, stretches: Sequence[Stretch], rank: Mapping[int, str]) -> tuple[Axis, np.ndarray]:
        """Put stores in place of what was there of them, and in between the others.

        Args:
            stretches: Of the stores.
            rank: Names of all stores by number, which order them where there is no coordinate.

        Returns:
            The new axis, and ``[n]``: where each of its positions was, -1 where it is new.
        """
        kept = np.flatnonzero(~np.isin(self.store, [stretch.code for stretch in stretches]))
        store = np.concatenate(
            [self.store[kept], *(np.full(stretch.size, stretch.code, np.int32) for stretch in stretches)]
        )
        position = np.concatenate(
            [self.position[kept], *(np.arange(stretch.size, dtype=np.int32) for stretch in stretches)]
        )
        was = np.concatenate([kept, np.full(len(store) - len(kept), -1)])
        order = np.lexsort((position, _places_of(rank)[store]))
        parts = [{name: variable[kept] for name, variable in self.coordinates.items()}] if len(kept) else []
        parts += [dict(stretch.coordinates) for stretch in stretches]
        first = parts[0] if parts else {}
        values = {name: np.concatenate([part[name].values for part in parts]) for name in first}
        if self.dim in values:
            order = order[np.argsort(values[self.dim][order], kind="stable")]
        coordinates = {
            name: type(variable)((self.dim,), values[name][order], variable.attrs) for name, variable in first.items()
        }
        return Axis(self.dim, store[order], position[order], coordinates), was[order]

    def rows_of(self, code: int) -> np.ndarray:
        """Where the positions of a store are, in the order that they have there."""
        mine = np.flatnonzero(self.store == code)
        rows = np.empty_like(mine)
        rows[self.position[mine]] = mine
        return rows

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
        others = np.flatnonzero(self.store != stretch.code)
        both = others[np.isin(mine[others], its)]
        if len(both):
            raise LayoutError(
                f"{self.dim}={mine[both[0]]} is in {names[int(self.store[both[0]])]} already: a place has one store"
            )


def _places_of(rank: Mapping[int, str]) -> np.ndarray:
    """The place of every store, by number, in the order of their names."""
    places = np.zeros(max(rank, default=-1) + 1, np.int64)
    for place, code in enumerate(sorted(rank, key=lambda code: rank[code])):
        places[code] = place
    return places
