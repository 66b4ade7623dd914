"""log p of a diffusion model by its probability-flow ODE, and its events as noise and back."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from sciflow.diffusion.denoiser import Denoiser
from sciflow.diffusion.probability_flow import ProbabilityFlow
from sciflow.likelihood import Likelihood, Status, concatenated, error_of_mean
from sciflow.ode.divergence import Divergence, Exact, Probed
from sciflow.ode.log_det import Change
from sciflow.ode.options import Options, likelihood_options, steps_for
from sciflow.ode.path import Path
from sciflow.ode.replay import differentiable
from sciflow.ode.solve import Steps
from sciflow.row_noise import RowNoise

__all__ = ["ode_likelihood", "to_events", "to_noise"]

# Steps, their nodes and slopes: what is kept of a row until its traces are known.
_VALUES_OF_ROW, _VALUES_AT_A_TIME = 1024, {"cpu": 1 << 26, "cuda": 1 << 29}
# Events and noise are wanted closer than the tolerance.
_OF_STATES = 0.1
# So many times the memory of a row does its graph take.
_OF_GRAPH = 32


def ode_likelihood(denoiser: Denoiser, y: Tensor, context: Tensor | None, options: Mapping[str, Any]) -> Likelihood:
    r"""Compute log p of normalised events by the probability-flow ODE.

    .. math:: \log p(y) = \log N(z_1; 0, 1) + \int_0^1 \operatorname{tr} \frac{\partial f}{\partial z} \, du
              - d \log s

    Source: Chen et al., arXiv:1806.07366; Song et al., arXiv:2011.13456; see
    :class:`sciflow.diffusion.probability_flow.ProbabilityFlow` for the variables, and
    :func:`sciflow.ode.log_det.change_along` for the error.

    Args:
        denoiser: Of the density.
        y: ``[n, *event_shape]``, normalised.
        context: ``[n, *context_shape]``, normalised, or None.
        options: See :func:`sciflow.ode.options.likelihood_options`.

    Returns:
        Entries ``[n]``, nats in normalised units.
    """
    chosen = likelihood_options(options, math.prod(y.shape[1:]), y.dtype)
    return concatenated([_of_part(denoiser, rows, c, chosen) for rows, c in _parts(y, context)])


def to_noise(denoiser: Denoiser, y: Tensor, context: Tensor | None, tolerance: float) -> Tensor:
    """Take normalised events along the probability-flow ODE to standard normal noise.

    Args:
        denoiser: Of the density.
        y: ``[n, *event_shape]``, normalised.
        context: ``[n, *context_shape]``, normalised, or None.
        tolerance: How much of log p noise may be off, in nats.

    Returns:
        ``[n, *event_shape]``; NaN where there is no way.
    """
    y = y / denoiser.data_std.to(y.dtype)
    return _carried(denoiser, y, context, tolerance, ProbabilityFlow.path_to_noise, ProbabilityFlow.noise_of)


def to_events(denoiser: Denoiser, z: Tensor, context: Tensor | None, tolerance: float) -> Tensor:
    """Undo :func:`to_noise`."""
    y = _carried(denoiser, z, context, tolerance, ProbabilityFlow.path_to_events, ProbabilityFlow.events_of)
    return denoiser.data_std.to(z.dtype) * y


def _of_part(denoiser: Denoiser, y: Tensor, context: Tensor | None, options: Options) -> Likelihood:
    divergence = _divergence(y.detach().flatten(1), options)
    kept: list[Path] = []

    def log_probs(y: Tensor, context: Tensor | None, path: Path | None, divergence: Divergence) -> tuple[Change, Path]:
        flow = ProbabilityFlow(denoiser, context, y.shape[1:])
        z = (y / denoiser.data_std.to(y.dtype)).flatten(1)
        path = flow.path_to_noise(z, options.steps) if path is None else path
        return flow.log_prob(z, path, divergence, options.tolerance, cut=options.steps.fixed is None), path

    def in_normalised_units(found: Change) -> Tensor:
        return found.log_det.mean(1) - math.prod(y.shape[1:]) * denoiser.data_std.double().log()

    def compute(y: Tensor, context: Tensor | None) -> tuple[Tensor, ...]:
        found, path = log_probs(y, context, None, divergence)
        kept.append(path)
        error = found.error
        if options.probes is not None:
            of_probes = error_of_mean(found.log_det, 1) if options.probes >= 4 else torch.inf
            error = torch.hypot(error, torch.as_tensor(of_probes).to(error))
        failed = path.status != int(Status.OK)
        log_prob = in_normalised_units(found)
        values = (each.masked_fill(failed, torch.nan).to(y.dtype) for each in (log_prob, error))
        return *values, found.nfe, path.status

    def again(rows: Tensor, y: Tensor, context: Tensor | None) -> Tensor:
        of_rows = None if context is None else context[rows]
        found, _ = log_probs(y[rows], of_rows, kept[0].of(rows), divergence.of(rows))
        return in_normalised_units(found).to(y.dtype)

    log_prob, error, nfe, status = differentiable(compute, again, (y, context), denoiser, _rows_with_graph(y))
    return Likelihood(log_prob, error, nfe, status, kind="few-step" if options.steps.fixed else "ode")


def _carried(
    denoiser: Denoiser,
    given: Tensor,
    context: Tensor | None,
    tolerance: float,
    solve: Callable[[ProbabilityFlow, Tensor, Steps], Path],
    reach: Callable[[ProbabilityFlow, Tensor, Path], Tensor],
) -> Tensor:
    """Take rows of normalised events to noise, or back."""
    # What lies along the path is kept for the gradient alone.
    steps = replace(steps_for(_OF_STATES * tolerance), kept=torch.is_grad_enabled())

    def of_part(part: Tensor, of_part: Tensor | None) -> Tensor:
        kept: list[Path] = []

        def compute(z: Tensor, c: Tensor | None) -> tuple[Tensor, ...]:
            flow, z = ProbabilityFlow(denoiser, c, z.shape[1:]), z.flatten(1)
            kept.append(solve(flow, z, steps))
            failed = kept[0].status != int(Status.OK)
            return (reach(flow, z, kept[0]).masked_fill(failed[:, None], torch.nan),)

        def again(rows: Tensor, z: Tensor, c: Tensor | None) -> Tensor:
            flow = ProbabilityFlow(denoiser, None if c is None else c[rows], z.shape[1:])
            return reach(flow, z[rows].flatten(1), kept[0].of(rows))

        return differentiable(compute, again, (part, of_part), denoiser, _rows_with_graph(part))[0]

    return torch.cat([of_part(rows, c) for rows, c in _parts(given, context)]).reshape(given.shape)


def _divergence(z: Tensor, options: Options) -> Divergence:
    """How the trace is found; the probes of a row follow from the row, or from a generator."""
    if options.probes is None:
        return Exact()
    if isinstance(options.seed, int):
        noise = RowNoise(z, options.seed)
        return Probed(torch.stack([noise.signs(draw) for draw in range(options.probes)], 1))
    shape = (len(z), options.probes, z.shape[1])
    signs = torch.randint(2, shape, generator=options.seed, device=z.device)
    return Probed(2 * signs.to(z.dtype) - 1)


def _parts(y: Tensor, context: Tensor | None) -> list[tuple[Tensor, Tensor | None]]:
    """Rows and their contexts, in parts that memory holds; one at the least."""
    rows = y.split(_rows_at_a_time(y))
    contexts = [None] * len(rows) if context is None else context.split(max(1, len(rows[0])))
    return list(zip(rows, contexts, strict=True))


def _rows_at_a_time(y: Tensor) -> int:
    most = _VALUES_AT_A_TIME.get(y.device.type, _VALUES_AT_A_TIME["cpu"])
    return max(1, most // (_VALUES_OF_ROW * math.prod(y.shape[1:])))


def _rows_with_graph(y: Tensor) -> int:
    return max(1, _rows_at_a_time(y) // _OF_GRAPH)
