"""Scores that stand on normal rows themselves, not on a density that was trained on them."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor

from sciflow.anomaly.scores.base import Score
from sciflow.errors import DataError

__all__ = ["RowScore"]

_MOST_ROWS = 20_000


class RowScore(Score):
    """A score that compares with normal rows, of which it keeps 20,000 at the most.

    Rows are compared in units of their spread: a number of a vector in units of its own standard deviation, and those
    of a field or series, which are of one kind, in that of all of them. Numbers that never vary are left out.

    Nothing is trained, and so all rows that there are may be compared with; what normal rows score is found by leaving
    each of them out.
    """

    needs = None

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)

    def normal_values(self, x: Tensor, context: Tensor | None) -> Tensor:
        return self.found["normal"]

    def _fit(self, x: Tensor, context: Tensor | None, reference: Tensor, reference_context: Tensor | None) -> None:
        rows = x if reference is x else torch.cat([x, reference])
        if len(rows) > _MOST_ROWS:
            generator = torch.Generator().manual_seed(0)
            rows = rows[torch.randperm(len(rows), generator=generator)[:_MOST_ROWS].to(rows.device)]
        flat = rows.flatten(1).double()
        centre, scale = flat.mean(0), flat.std(0, correction=0)
        varies = scale > 1e-12 * flat.abs().amax(0)
        if not varies.any():
            raise DataError(f"{self.name}: every number is the same in all {len(rows):,} rows: nothing to compare by")
        if rows.ndim > 2:
            scale = torch.full_like(scale, float(scale[varies].square().mean().sqrt()))
        self.found = {"centre": centre.reshape(rows.shape[1:]), "scale": scale, "varies": varies.nonzero().flatten()}
        self._look_at(self._compared(rows))

    def _scores(self, x: Tensor, context: Tensor | None) -> Tensor:
        return self._compare(self._compared(x))

    def _compared(self, x: Tensor) -> Tensor:
        """Rows as they are compared, ``[n, num_varying]``, float32."""
        kept = self.found["varies"]
        flat = (x.flatten(1).double() - self.found["centre"].flatten())[:, kept]
        return (flat / self.found["scale"][kept]).float()

    @property
    def event_shape(self) -> torch.Size:
        return self.found["centre"].shape

    @abstractmethod
    def _look_at(self, rows: Tensor) -> None:
        """Put what is needed of normal rows ``[n, d]``, and their own scores, sorted, as "normal", into ``found``."""

    @abstractmethod
    def _compare(self, x: Tensor) -> Tensor:
        """Scores ``[n]`` of rows ``[n, d]``."""
