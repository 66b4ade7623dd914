"""log p of rows by an ODE, with an error on every row; and events as noise and back."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from sciflow.likelihood import Likelihood, Status, concatenated, error_of_mean
from sciflow.ode.divergence import Divergence, Exact, Probed
from sciflow.ode.log_det import Change
from sciflow.ode.options import MOST_PROBES, Options, least_tolerance, steps_for
from sciflow.ode.path import Path
from sciflow.ode.replay import differentiable
from sciflow.ode.solve import Steps
from sciflow.row_noise import RowNoise

__all__ = ["Flowing", "likelihood_of", "to_events", "to_noise"]

# Steps and their stages: what is kept of a row until its traces are known.
_VALUES_OF_ROW, _VALUES_AT_A_TIME = 1024, {"cpu": 1 << 26, "cuda": 1 << 29}
# So many times the memory of a row does its graph take.
_OF_GRAPH = 32
# Events and noise are wanted closer than the tolerance.
_OF_STATES = 0.03
# Where an error is too large: so many times tighter, or so many times the probes.
_TIGHTER, _MORE_PROBES = 10.0, 4


class Flowing(Protocol):
    """A flow between events and noise, ``[n, d]``, whose paths are solutions of an ODE."""

    def path_to_noise(self, z: Tensor, steps: Steps) -> Path:
        """Solve from events."""

    def path_to_events(self, z: Tensor, steps: Steps) -> Path:
        """Solve from noise."""

    def noise_of(self, z: Tensor, path: Path) -> Tensor:
        """Return the noise that events become, ``[n, d]``; with a graph where gradients are tracked."""

    def events_of(self, z: Tensor, path: Path) -> Tensor:
        """Return the events that noise becomes, likewise."""

    def log_prob(
        self, z: Tensor, divergence: Divergence, tolerance: float, steps: Steps, path: Path | None = None
    ) -> tuple[Change, Path]:
        """Return log p of events, one for every estimate of the divergence, and their path: a new one, or the same."""


Given = Callable[[Tensor | None], Flowing]


def likelihood_of(given: Given, z: Tensor, context: Tensor | None, options: Options, module: nn.Module) -> Likelihood:
    """Compute log p of rows.

    Rows whose error is above a target are computed again, by a tighter tolerance or with more probes, whichever their
    error comes from, until it is below or the budget is spent.

    Args:
        given: Makes the flow of a context.
        z: ``[n, d]``, events.
        context: ``[n, ...]`` or None.
        options: How.
        module: Whose weights the flow uses.

    Returns:
        Entries ``[n]``.
    """
    # Traces are found by automatic derivatives, which torch.inference_mode forbids.
    with torch.inference_mode(False), torch.set_grad_enabled(torch.is_grad_enabled()):
        parts = [_of_part(given, rows, c, options, module) for rows, c in _parts(z, context, options.probes or 0)]
        return concatenated(parts)


def to_noise(given: Given, z: Tensor, context: Tensor | None, tolerance: float, module: nn.Module) -> Tensor:
    """Take events ``[n, d]`` to noise; NaN where there is no way. Arguments are those of :func:`likelihood_of`."""
    return _carried(given, z, context, tolerance, module, back=False)


def to_events(given: Given, z: Tensor, context: Tensor | None, tolerance: float, module: nn.Module) -> Tensor:
    """Undo :func:`to_noise`."""
    return _carried(given, z, context, tolerance, module, back=True)


class _Round(NamedTuple):
    """One computation of some rows, ``[m]``."""

    rows: Tensor
    path: Path
    divergence: Divergence
    options: Options


def _of_part(given: Given, z: Tensor, context: Tensor | None, options: Options, module: nn.Module) -> Likelihood:
    """log p of rows that are computed together."""
    rounds: list[_Round] = []
    final = torch.zeros(len(z), dtype=torch.int64, device=z.device)

    def looked_at(z: Tensor, context: Tensor | None, rows: Tensor, options: Options) -> _Known:
        flow, part = given(None if context is None else context[rows]), z[rows]
        divergence = _divergence(part, options)
        found, path = flow.log_prob(part, divergence, options.tolerance, options.steps)
        final[rows] = len(rounds)
        rounds.append(_Round(rows, path, divergence, options))
        return _Known.of(found, path.status, options)

    def compute(z: Tensor, context: Tensor | None) -> tuple[Tensor, ...]:
        known = looked_at(z, context, torch.arange(len(z), device=z.device), options)
        if options.target_error is not None:
            known = _improved(known, lambda rows, o: looked_at(z, context, rows, o), options, z)
        failed = (known.status != int(Status.OK)) & (known.status != int(Status.TARGET_MISSED))
        values = (each.masked_fill(failed, torch.nan).to(z.dtype) for each in (known.log_prob, known.error))
        return *values, known.nfe, known.status

    def again(rows: Tensor, z: Tensor, context: Tensor | None) -> Tensor:
        result = torch.zeros(len(rows), dtype=z.dtype, device=z.device)
        for number, one in enumerate(rounds):
            place = torch.full_like(final, -1)
            place[one.rows] = torch.arange(len(one.rows), device=z.device)
            which = torch.nonzero(final[rows] == number).squeeze(1)
            if len(which):
                chosen, of_round = rows[which], place[rows[which]]
                flow = given(None if context is None else context[chosen])
                divergence, path = one.divergence.of(of_round), one.path.of(of_round)
                found, _ = flow.log_prob(z[chosen], divergence, one.options.tolerance, one.options.steps, path)
                result = result.index_copy(0, which, found.log_det.mean(1).to(z.dtype))
        return result

    log_prob, error, nfe, status = differentiable(
        compute, again, (z, context), module, _rows_with_graph(z, options.probes or 0)
    )
    return Likelihood(log_prob, error, nfe, status, kind="few-step" if options.steps.fixed else "ode")


class _Known(NamedTuple):
    """What is known of rows, ``[n]``; ``of_path`` and ``of_probes`` make up the error; ``spent`` counts products."""

    log_prob: Tensor
    of_path: Tensor
    of_probes: Tensor
    nfe: Tensor
    spent: Tensor
    status: Tensor

    @property
    def error(self) -> Tensor:
        return torch.hypot(self.of_path, self.of_probes)

    @classmethod
    def of(cls, found: Change, status: Tensor, options: Options) -> _Known:
        of_probes = torch.zeros_like(found.error)
        if options.probes is not None:
            of_probes = error_of_mean(found.log_det, 1) if options.probes >= 4 else of_probes + torch.inf
        spent = found.nfe.double() * (1 if options.probes is None else max(1, options.probes // 2))
        return cls(found.log_det.mean(1), found.error, of_probes, found.nfe, spent, status)


def _improved(known: _Known, looked_at: Callable[[Tensor, Options], _Known], options: Options, z: Tensor) -> _Known:
    """Compute rows again whose error is above the target, as long as there is budget for it."""
    target, floor = options.target_error, least_tolerance(z.dtype)
    assert target is not None
    levels = torch.zeros(2, len(z), dtype=torch.int64, device=z.device)  # how much tighter, and how many more probes
    open_ = torch.ones(len(z), dtype=torch.bool, device=z.device)
    while True:
        above = (known.status == int(Status.OK)) & (known.error > target)
        of_probes = known.of_probes > known.of_path
        open_ = open_ & (known.spent + _next_cost(known, of_probes) <= options.budget)
        if options.probes is not None:
            open_ = open_ & (~of_probes | (options.probes * _MORE_PROBES ** (levels[1] + 1.0) <= MOST_PROBES))
        open_ = open_ & (of_probes | (options.tolerance / _TIGHTER ** (levels[0] + 1.0) >= floor))
        chosen = above & open_
        if not bool(chosen.any()):
            missed = int(Status.TARGET_MISSED)
            return known._replace(status=torch.where(above, missed, known.status).to(known.status.dtype))
        levels[0] += chosen & ~of_probes
        levels[1] += chosen & of_probes
        for tighter, more in {tuple(pair) for pair in levels[:, chosen].T.tolist()}:
            rows = torch.nonzero(chosen & (levels[0] == tighter) & (levels[1] == more)).squeeze(1)
            closer = _TIGHTER**-tighter
            probes = None if options.probes is None else options.probes * _MORE_PROBES**more
            steps = replace(options.steps, tolerance=closer * options.steps.tolerance)
            new = looked_at(rows, replace(options, tolerance=closer * options.tolerance, steps=steps, probes=probes))
            new = new._replace(nfe=new.nfe + known.nfe[rows], spent=new.spent + known.spent[rows])
            known = _Known(*(old.index_copy(0, rows, each) for old, each in zip(known, new, strict=True)))


def _next_cost(known: _Known, of_probes: Tensor) -> Tensor:
    """What it would take to compute rows once more."""
    return known.spent * torch.where(of_probes, float(_MORE_PROBES), 2.0)


def _carried(
    given: Given, z: Tensor, context: Tensor | None, tolerance: float, module: nn.Module, back: bool
) -> Tensor:
    # What lies along the path is kept for the gradient alone.
    steps = replace(steps_for(_OF_STATES * tolerance), kept=torch.is_grad_enabled())

    def carried(rows: Tensor, context: Tensor | None) -> Tensor:
        kept: list[Path] = []

        def reached(flow: Flowing, z: Tensor, path: Path) -> Tensor:
            return flow.events_of(z, path) if back else flow.noise_of(z, path)

        def compute(z: Tensor, c: Tensor | None) -> tuple[Tensor, ...]:
            flow = given(c)
            kept.append(flow.path_to_events(z, steps) if back else flow.path_to_noise(z, steps))
            failed = kept[0].status != int(Status.OK)
            return (reached(flow, z, kept[0]).masked_fill(failed[:, None], torch.nan),)

        def again(rows: Tensor, z: Tensor, c: Tensor | None) -> Tensor:
            return reached(given(None if c is None else c[rows]), z[rows], kept[0].of(rows))

        return differentiable(compute, again, (rows, context), module, _rows_with_graph(rows))[0]

    return torch.cat([carried(rows, c) for rows, c in _parts(z, context)])


def _divergence(z: Tensor, options: Options) -> Divergence:
    """How the trace is found; the probes of a row follow from the row, or from a generator."""
    if options.probes is None:
        return Exact()
    if isinstance(options.seed, int):
        noise = RowNoise(z.detach(), options.seed)
        return Probed(torch.stack([noise.signs(draw) for draw in range(options.probes)], 1))
    signs = torch.randint(2, (len(z), options.probes, z.shape[1]), generator=options.seed, device=z.device)
    return Probed(2 * signs.to(z.dtype) - 1)


def _parts(z: Tensor, context: Tensor | None, probes: int = 0) -> list[tuple[Tensor, Tensor | None]]:
    """Rows and their contexts, in parts that memory holds; one at the least."""
    rows = [part.clone() if part.is_inference() else part for part in z.split(_rows_at_a_time(z, probes))]
    contexts = [None] * len(rows) if context is None else context.split(max(1, len(rows[0])))
    return list(zip(rows, contexts, strict=True))


def _rows_at_a_time(z: Tensor, probes: int = 0) -> int:
    most = _VALUES_AT_A_TIME.get(z.device.type, _VALUES_AT_A_TIME["cpu"])
    return max(1, most // (_VALUES_OF_ROW * (math.prod(z.shape[1:]) + probes)))


def _rows_with_graph(z: Tensor, probes: int = 0) -> int:
    return max(1, _rows_at_a_time(z, probes) // _OF_GRAPH)
