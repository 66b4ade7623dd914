"""The way of every row through an initial value problem: where it ended, and what lies along it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sciflow.ode.pairs import Pair

__all__ = ["Path"]


@dataclass(frozen=True)
class Path:
    """Solutions of an initial value problem, a row each, and the steps that they took.

    Attributes:
        end: ``[n, d]``, the states at the end; of rows whose status is not ok, the last that were reached.
        nfe: ``[n]``, evaluations of the velocity.
        status: ``[n]``, see :class:`sciflow.likelihood.Status`.
        pair: By which steps were taken.
        rows: ``[steps]``, whose steps these are; those of one row are together, in the order of time.
        start: ``[steps]``, when each began, float64.
        width: ``[steps]``, its length, float64; negative where time runs backwards.
        begin: ``[steps, d]``, the states where each began.
        stages: ``[steps, stages, d]``, velocities from which follow the states inside.
    """

    end: Tensor
    nfe: Tensor
    status: Tensor
    pair: Pair
    rows: Tensor
    start: Tensor
    width: Tensor
    begin: Tensor
    stages: Tensor

    def of(self, rows: Tensor) -> Path:
        """Return the paths of some rows, ``[m]``, in rising order, which are numbered anew."""
        numbers = torch.full((len(self.end),), -1, device=rows.device)
        numbers[rows] = torch.arange(len(rows), device=rows.device)
        steps = numbers[self.rows] >= 0
        return Path(
            self.end[rows],
            self.nfe[rows],
            self.status[rows],
            self.pair,
            numbers[self.rows[steps]],
            self.start[steps],
            self.width[steps],
            self.begin[steps],
            self.stages[steps],
        )

    def inside(self, steps: Tensor, share: Tensor) -> tuple[Tensor, Tensor]:
        """Return states inside steps, and their rates of change there.

        The latter are the velocity, but for the error of the solution inside the step.

        Args:
            steps: ``[p]``, numbers of steps.
            share: ``[p, m]``, of the step that has passed, float64.

        Returns:
            Two tensors ``[p, m, d]``.
        """
        stages, dtype = self.stages[steps], self.begin.dtype
        values, slopes = (weights.to(dtype) @ stages for weights in self.pair.weights(share))
        width = self.width[steps].to(dtype)
        return self.begin[steps][:, None] + width[:, None, None] * values, slopes
