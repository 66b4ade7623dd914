"""Scores that stand on normal rows themselves, not on a density that was trained on them."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor

from sciflow.anomaly.scores.base import Score
from sciflow.errors import DataError

__all__ = ["RowScore"]

_MOST_ROWS = 20_000


class RowScore(Score):
    r"""A score that compares with normal rows, of which it keeps 20,000 at the most.

    Rows are compared in units of their spread: a number of a vector in units of its own standard deviation, and those
    of a field or series, which are of one kind, in that of all of them. Where some numbers never vary, they become one
    number more, for all of them,

    .. math:: \sqrt{n k(x)}, \qquad k(x) = \#\{j : |x_j - c_j| > \epsilon |c_j|\}

    with :math:`n` normal rows, all of which have :math:`x_j = c_j`, and :math:`\epsilon` the rounding of single
    precision: 0 of normal rows. Had one row of :math:`n` departed by :math:`\delta`, the standard deviation would be
    :math:`\delta / \sqrt n`, and the departure :math:`\sqrt n` of these, whatever :math:`\delta` is. So far is the
    first row that departs.

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
        if not varies.all():
            self.found["constant"] = (~varies).nonzero().flatten()
            self.found["departure"] = torch.tensor(math.sqrt(len(rows)), dtype=torch.float64, device=rows.device)
        self._look_at(self._compared(rows))

    def _scores(self, x: Tensor, context: Tensor | None) -> Tensor:
        return self._compare(self._compared(x))

    def _compared(self, x: Tensor) -> Tensor:
        """Rows as they are compared, ``[n, num_varying]`` or one number more, float32."""
        kept = self.found["varies"]
        flat = (x.flatten(1).double() - self.found["centre"].flatten())[:, kept]
        rows = (flat / self.found["scale"][kept]).float()
        if "constant" not in self.found:
            return rows
        count = self._departs(x).sum(1, keepdim=True)
        return torch.cat([rows, (self.found["departure"] * count.sqrt()).float()], 1)

    def _departs(self, x: Tensor) -> Tensor:
        """Which of the numbers that never vary are others than they always are, ``[n, num_constant]``."""
        constant = self.found["constant"]
        usual = self.found["centre"].flatten()[constant]
        # By more than single precision leaves open; beside 0 that is anything.
        return (x.flatten(1)[:, constant].double() - usual).abs() > torch.finfo(torch.float32).eps * usual.abs()

    def _of_elements(self, shares: Tensor, x: Tensor) -> Tensor:
        """What numbers as they are compared have, ``[n, d]``, as that of the elements of rows ``[n, *event_shape]``."""
        flat = torch.zeros(x.flatten(1).shape, dtype=torch.float64, device=x.device)
        kept = self.found["varies"]
        flat[:, kept] = shares[:, : len(kept)]
        if "constant" in self.found:
            departs = self._departs(x)
            count = departs.sum(1, keepdim=True).clamp_min(1)
            flat[:, self.found["constant"]] = departs * shares[:, len(kept) :] / count
        return flat.reshape(x.shape)

    @property
    def event_shape(self) -> torch.Size:
        return self.found["centre"].shape

    @abstractmethod
    def _look_at(self, rows: Tensor) -> None:
        """Put what is needed of normal rows ``[n, d]``, and their own scores, sorted, as "normal", into ``found``."""

    @abstractmethod
    def _compare(self, x: Tensor) -> Tensor:
        """Scores ``[n]`` of rows ``[n, d]``."""
