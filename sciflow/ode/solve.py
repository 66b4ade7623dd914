"""Initial value problems of many rows at once, each in steps of its own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from sciflow.likelihood import Status
from sciflow.ode.pairs import Pair
from sciflow.ode.path import Path

__all__ = ["Dynamics", "Steps", "combined", "norms", "solve"]

# Steps between two looks at which rows have ended: each look makes a GPU wait.
_LOOKS = {"cpu": 1, "cuda": 8}
_SAFETY, _MOST_GROWTH, _MOST_SHRINKAGE = 0.9, 5.0, 0.2
# Of the errors of this step and of the last one: Hairer and Wanner, Solving Ordinary Differential Equations II, IV.2.
_PROPORTIONAL, _INTEGRAL = 0.4, 0.7
# Of the first step, the longest and the shortest, as shares of the way; the first at a tolerance of a hundredth, and
# shorter at tighter ones: nothing has told yet how much happens at the beginning.
_FIRST, _LONGEST, _SHORTEST = 1 / 24, 1 / 9, 1e-9


class Dynamics(Protocol):
    """The right-hand side, and which mistakes in the state matter."""

    def velocity(self, u: Tensor, z: Tensor, rows: Tensor) -> Tensor:
        """Return dz/du, ``[n, d]``.

        Args:
            u: ``[n]``, times, float64.
            z: ``[n, d]``, states.
            rows: ``[n]``, which rows of the problem these are.
        """

    def score(self, u: Tensor, z: Tensor, velocity: Tensor) -> Tensor:
        """Return the gradient of log p, or what is known of it, ``[n, d]``: how much a mistake in the state matters.

        Args:
            u: ``[n]``, times.
            z: ``[n, d]``, states.
            velocity: ``[n, d]``, dz/du there.
        """


@dataclass(frozen=True)
class Steps:
    """How steps are taken.

    Attributes:
        pair: The two solutions of a step.
        tolerance: Most that one step may be off, in nats.
        most: Of them, those refused included.
        fixed: That many of the same length, whatever they are off; None for steps that go by the tolerance.
        kept: Whether what lies along the path is kept.
    """

    pair: Pair
    tolerance: float
    most: int = 1000
    fixed: int | None = None
    kept: bool = False


def solve(dynamics: Dynamics, z: Tensor, start: float, end: float, steps: Steps) -> Path:
    r"""Follow every row from ``start`` to ``end``.

    A step that takes the state from :math:`z` to :math:`z + \Delta` is in error by about :math:`e`, the difference of
    the two solutions of its pair. To first order that changes log p by :math:`g \cdot e`, with :math:`g` the score;
    the step is accepted where :math:`g \cdot e` and :math:`|g| |e| / \sqrt d`, which it would be for errors of any
    direction, are within the tolerance. Where :math:`|z|^2 / d` is large log p is, too, and the tolerance in
    proportion.

    Rows that have ended leave the batch; one that cannot go on gets its status, and never holds up the others.

    Args:
        dynamics: What is solved.
        z: ``[n, d]``, where rows begin.
        start: When.
        end: Until when; may be before ``start``.
        steps: How.

    Returns:
        The path.
    """
    return _Solver(dynamics, z, start, end, steps).path()


def combined(weights: Sequence[float], stages: Sequence[Tensor]) -> Tensor:
    """Return the sum of the stages, each times its weight."""
    total = torch.zeros_like(stages[0])
    for weight, stage in zip(weights, stages, strict=False):
        if weight:
            total = torch.add(total, stage, alpha=weight)
    return total


def norms(vectors: Tensor) -> Tensor:
    """Return the lengths of vectors ``[n, d]``, ``[n]``, float64."""
    return torch.linalg.vector_norm(vectors, dim=1, dtype=torch.float64)


class _Solver:
    """The state of a solution: rows that are still on their way, and what is known of all."""

    def __init__(self, dynamics: Dynamics, z: Tensor, start: float, end: float, steps: Steps) -> None:
        self.dynamics, self.steps, self.pair = dynamics, steps, steps.pair
        n, self.d = z.shape
        self.length = abs(end - start)
        self.sign = math.copysign(1.0, end - start)
        self.end_of_all = end
        # Of all rows.
        self.end = z.clone()
        self.nfe = torch.zeros(n, dtype=torch.int32, device=z.device)
        self.status = torch.zeros_like(self.nfe)
        self.kept: list[tuple[Tensor, ...]] = []
        # Of those on their way.
        self.rows = torch.arange(n, device=z.device)
        self.z = z
        one = torch.ones(n, dtype=torch.float64, device=z.device)
        self.u = start * one
        self.left = self.length * one
        first = _FIRST * min(1.0, (100 * steps.tolerance) ** (1 / steps.pair.order))
        self.h = self.left * (1 / steps.fixed if steps.fixed else first)
        self.slope = torch.zeros_like(z)
        self.last_excess = one
        self.weight = math.sqrt(self.d) * one
        self.going = torch.ones(n, dtype=torch.bool, device=z.device)

    def path(self) -> Path:
        look = _LOOKS.get(self.z.device.type, 8)
        if len(self.rows):
            self.slope = self.dynamics.velocity(self.u, self.z, self.rows)
            self.nfe += 1
            self.going = torch.isfinite(self.slope).all(1)
            self.status = torch.where(self.going, self.status, int(Status.NON_FINITE)).to(self.status.dtype)
        for attempt in range(self.steps.fixed or self.steps.most):
            if attempt % look == 0 and not self._look():
                break
            self._attempt()
        self._look(over=True)
        return self._path()

    def _attempt(self) -> None:
        """Try one step of every row."""
        h = torch.minimum(self.h, self.left)
        last = h > self.left * 0.999
        h = torch.where(self.going, torch.where(last, self.left, h), 0)
        signed = (self.sign * h).to(self.z.dtype)[:, None]
        stages = [self.slope]
        state, at = self.z, self.u
        for place in range(1, self.pair.num_stages):
            state = self.z + signed * combined(self.pair.matrix[place], stages)
            at = self.u + self.sign * self.pair.nodes[place] * h
            if self.pair.nodes[place] == 1:
                at = torch.where(last, self.end_of_all, at)
            stages.append(self.dynamics.velocity(at, state, self.rows))
        difference = signed * self._difference(stages)
        score = self.dynamics.score(at, state, stages[-1])
        # The largest so far: where it falls to 0 on the way, the error made before goes on.
        weight = torch.maximum(norms(score), self.weight)
        along = (score * difference).sum(1, dtype=torch.float64).abs()
        across = weight * norms(difference) / math.sqrt(self.d)
        scale = self.steps.tolerance * state.square().mean(1, dtype=torch.float64).clamp_min(1)
        excess = torch.maximum(along, across) / scale
        finite = torch.isfinite(excess)
        accepted = self.going & finite & ((excess <= 1) | bool(self.steps.fixed))
        self.nfe[self.rows] += (self.going * (self.pair.num_stages - 1)).to(self.nfe.dtype)
        self._keep(accepted, h, stages)
        moved = accepted[:, None]
        self.z = torch.where(moved, state, self.z)
        self.slope = torch.where(moved, stages[-1], self.slope)
        self.u = torch.where(accepted, torch.where(last, self.end_of_all, self.u + self.sign * h), self.u)
        self.left = torch.where(accepted, torch.where(last, 0, self.left - h), self.left)
        self.weight = torch.where(accepted, weight, self.weight)
        if not self.steps.fixed:
            self.h = torch.where(self.going, h * self._growth(excess, finite, accepted), self.h)
            self.h = self.h.clamp_max(_LONGEST * self.length)
        self.last_excess = torch.where(accepted, excess.clamp_min(1e-4), self.last_excess)
        stuck = self.going & ~accepted & ((self.h < _SHORTEST * self.length) | bool(self.steps.fixed))
        cause = torch.where(finite, int(Status.UNDERFLOW), int(Status.NON_FINITE)).to(self.status.dtype)
        self.status[self.rows] = torch.where(stuck, cause, self.status[self.rows])
        self.going = self.going & ~stuck & (self.left > 0)

    def _growth(self, excess: Tensor, finite: Tensor, accepted: Tensor) -> Tensor:
        """By what the next step is longer than this one: a controller of proportional and integral parts."""
        power = 1 / self.pair.order
        after = _SAFETY * excess.clamp_min(1e-12) ** (-_INTEGRAL * power) * self.last_excess ** (_PROPORTIONAL * power)
        again = (_SAFETY * excess ** (-power)).clamp(_MOST_SHRINKAGE, 0.9)
        growth = torch.where(accepted, after.clamp(_MOST_SHRINKAGE, _MOST_GROWTH), again)
        return torch.where(finite, growth, _MOST_SHRINKAGE)

    def _difference(self, stages: list[Tensor]) -> Tensor:
        """Difference of the solutions of a step, by its length."""
        first, *others = (combined(weights, stages) for weights in self.pair.errors)
        if not others:
            return first
        # Of order 8 there are two: Hairer, Norsett and Wanner, Solving Ordinary Differential Equations I, II.10.
        size, other = (norms(each)[:, None] for each in (first, others[0]))
        root = torch.hypot(size, 0.1 * other)
        return first * (size / torch.where(root > 0, root, 1)).to(first.dtype)

    def _keep(self, accepted: Tensor, h: Tensor, stages: list[Tensor]) -> None:
        """Note the states inside the steps that are accepted."""
        if not self.steps.kept:
            return
        rows, u, z, kept = self.rows, self.u, self.z, accepted
        if self.z.device.type == "cpu" and not bool(accepted.all()):  # elsewhere a look would cost more than the work
            rows, u, z, h, kept = (each[accepted] for each in (rows, u, z, h, kept))
            stages = [stage[accepted] for stage in stages]
        signed = (self.sign * h).to(z.dtype)[:, None]
        for place in range(self.pair.num_stages, len(self.pair.nodes)):  # of the solution inside alone
            state = z + signed * combined(self.pair.matrix[place], stages)
            stages = [*stages, self.dynamics.velocity(u + self.sign * self.pair.nodes[place] * h, state, rows)]
            self.nfe[rows] += kept.to(self.nfe.dtype)
        self.kept.append((torch.where(kept, rows, -1), u, self.sign * h, z, torch.stack(stages, 1)))

    def _look(self, over: bool = False) -> bool:
        """Let rows that have ended leave the batch; whether any is left."""
        going = self.going & (not over)
        if bool(going.all()):
            return len(going) > 0
        ended = ~going
        rows = self.rows[ended]
        self.end[rows] = self.z[ended]
        if over:
            late = torch.where(self.going[ended], int(Status.MAX_STEPS), self.status[rows])
            self.status[rows] = late.to(self.status.dtype)
        for name in ("rows", "z", "u", "left", "h", "slope", "last_excess", "weight", "going"):
            setattr(self, name, getattr(self, name)[going])
        return len(self.rows) > 0

    def _path(self) -> Path:
        if self.kept:
            parts = [torch.cat(part) for part in zip(*self.kept, strict=True)]
            there = parts[0] >= 0
            if not bool(there.all()):
                parts = [part[there] for part in parts]
            order = torch.argsort(parts[0], stable=True)
            parts = [part[order] for part in parts]
        else:
            stages = self.z.new_zeros(0, len(self.pair.nodes), self.d)
            parts = [self.rows[:0], self.u[:0], self.h[:0], self.z[:0], stages]
        return Path(self.end, self.nfe, self.status, self.pair, *parts)
