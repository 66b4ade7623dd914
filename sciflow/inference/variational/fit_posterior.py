"""Variational inference in one call: ``sciflow.inference.fit_posterior``."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sciflow.arguments import Arguments
from sciflow.density import MOST_SEED, Density
from sciflow.flows import MixtureOfFlows, Reparametrised, VariationalFlow
from sciflow.inference.evidence import Evidence, bridge, effective_share, importance
from sciflow.inference.posterior import Posterior
from sciflow.inference.psis import USABLE, pareto_smoothed
from sciflow.inference.variational.annealing import Annealed, anneal
from sciflow.inference.variational.families import family_for
from sciflow.inference.variational.log_density import LogDensity
from sciflow.inference.variational.objectives import objective_of
from sciflow.inference.variational.pathfinder import pathfinder
from sciflow.inference.variational.propriety import require_proper
from sciflow.inference.variational.several_fits import several_fits
from sciflow.inference.variational.training import Progress, judged, train_on_particles, train_variational
from sciflow.progress import progress_bar

__all__ = ["fit_posterior"]

_MOST_PARTICLE_STEPS = 600
_KEEP = 0.2  # weight of log q at particles, beside a divergence that may let modes go
_WIDE = 0.1  # share of heavy-tailed draws among those that are weighted
_WIDENED = 2.0  # standard deviations of the Gaussian that particles start from, over those that were found
_PART = 1 << 14
_FINE_ENOUGH = 0.005  # nats, of log Z
_MOST_DRAWS = 1 << 17
_FEW = 1e-4  # of all evaluations: far starts alone may be as many


def fit_posterior(
    log_density: Callable[..., Any],
    event_shape: int | Sequence[int] | None = None,
    *,
    parameters: Mapping[str, Any] | None = None,
    family: Any = "flow",
    objective: Any = "reverse_kl",
    start: Any = None,
    num_particles: int = 2048,
    max_steps: int = 3000,
    num_draws: int = 1 << 14,
    seed: int = 0,
    dtype: torch.dtype | None = None,
    device: str | torch.device = "cpu",
    observed: Mapping[str, Any] | None = None,
    num_fits: int = 1,
    keep: str = "mixture",
    num_workers: int | None = None,
    address: str | None = None,
    progress: bool = True,
) -> Posterior:
    r"""Fit a density to another that is known up to a constant, and say how good the fit is.

    .. math:: q = \arg\min_q \mathrm{KL}(q \,\|\, p), \qquad p = \tilde p / Z

    Unattended it goes in four steps. Many ascents find where the density is
    (:func:`~sciflow.inference.variational.pathfinder.pathfinder`). Particles are annealed to it from a Gaussian over
    all that was found, so that they are in every mode (:func:`~sciflow.inference.variational.annealing.anneal`). A
    flow is set up on the particles and lowers the divergence by path gradients, until the evidence bound has stopped
    rising. Draws of the flow, weighted, give log Z and the verdict.

    Args:
        log_density: Unnormalised log p in torch, nats: of one event, or of a batch of them ``[n, *event_shape]``; which
            of the two is found out. With ``parameters`` it is called by keyword, or with one mapping.
        event_shape: Shape of the event, where it is one tensor.
        parameters: Otherwise, constraints by name: ``real``, ``positive``, ``interval``, ``simplex``, ``ordered``; the
            Jacobians of what maps them to unconstrained numbers count.
        family: ``"flow"``, ``"gaussian"`` (of full rank), ``"mixture"`` (of flows, one a mode), ``"realnvp"``,
            ``"nsf"``, ``"iaf"``, ``"continuous"``; with options ``{"flow": {"num_transforms": 8}}``,
            ``{"mixture": {"num_components": 3}}``.
        objective: ``"reverse_kl"``, ``"iw_elbo"``, ``"alpha"``, ``"forward_kl"``; see
            :class:`~sciflow.inference.variational.objectives.Objective`.
        start: Where to look first, too: values by name, or an event; one, or a batch.
        num_particles: That are annealed.
        max_steps: Of the divergence, at the most; and, up to 600, on particles before.
        num_draws: That are weighted in the end, at the least; more where log Z is not known to 0.005 nats.
        seed: Of everything.
        dtype: Of the rows; None for float64, or float32 where the function does not take float64.
        device: Where the fit runs.
        observed: What was observed, by name: kept for :meth:`~sciflow.inference.Posterior.to_arviz`.
        num_fits: Fits from seeds of their own; see :func:`~sciflow.inference.variational.several_fits.several_fits`.
        keep: Of several fits, ``"mixture"``: all of them, weighed; or ``"best"``: that of the highest ELBO among those
            whose k-hat is usable.
        num_workers: Fits at a time on Ray; None for all cores where there is an address, and otherwise fits in this
            process.
        address: Of a running Ray cluster; None with ``num_workers`` starts one on this machine for the time being.
        progress: Show a progress bar on a terminal.

    Returns:
        The fitted posterior, with its verdict.

    Raises:
        ConfigError: An argument is out of range, or a start does not fit its constraint.
        ShapeError: The function does not return one number an event.
        DerivativeError: What it returns has no gradient.
        DataError: The function fails, is finite nowhere, or is improper.

    Source:
        Rezende and Mohamed, arXiv:1505.05770; path gradients, Roeder et al., arXiv:1703.09194; annealed particles,
        Arbel et al., arXiv:2102.07501.

    Example:
        >>> posterior = fit_posterior(lambda x: -0.5 * ((x - 3.0) ** 2).sum(), event_shape=(2,), seed=0, progress=False)
        >>> posterior.verdict.startswith("The fit is close to the posterior")
        True
        >>> abs(float(posterior.log_z) - 1.838) < 0.02  # log 2 pi
        True
    """
    given = dict(locals())
    arguments = Arguments("fit_posterior")
    num_particles = arguments.whole("num_particles", num_particles, 64, 1 << 20)
    max_steps = arguments.whole("max_steps", max_steps, 0, 1 << 30)
    num_draws = arguments.whole("num_draws", num_draws, 100, 1 << 24)
    chosen = objective_of(objective)
    generator = torch.Generator().manual_seed(arguments.whole("seed", seed, 0, MOST_SEED))
    target = LogDensity(log_density, event_shape, parameters, dtype, device)
    first = None if start is None else _start(target, start)
    if num_fits != 1 or num_workers is not None or address is not None:
        return several_fits(fit_posterior, _weighed, target, given)
    on_particles = min(_MOST_PARTICLE_STEPS, max_steps)
    # Networks draw their first weights from torch's own generator, which is the caller's.
    with (
        torch.random.fork_rng([]),
        progress_bar("fitting", on_particles + max_steps, progress) as update,
    ):
        torch.manual_seed(seed % (1 << 63))
        paths = pathfinder(target, generator, start=first)
        particles = anneal(target, paths.pooled().widened(_WIDENED), generator, num_particles)
        require_proper(target, particles.x, generator)
        density = family_for(family, particles.x, generator)
        history = _as_set_up(density, target, generator)
        if not history.ended:
            train_on_particles(density, particles.batches(256, generator), on_particles, update)
            history = Progress(ended="fitted to particles alone")
        if (
            isinstance(density, Reparametrised)
            and not history.steps
            and (chosen.alpha is not None or chosen.by == "importance")
        ):
            history = train_variational(
                density,
                target,
                chosen,
                particles,
                generator,
                max_steps,
                _KEEP,
                lambda step, note: update(on_particles + step, note),
            )
        found = _weighed(density, target, particles, generator, num_draws)
    return Posterior(
        density,
        target.parameters,
        target.by_name,
        found.elbo,
        found.elbo_error,
        found.log_z,
        found.ess,
        found.k_hat,
        found.pool,
        found.log_weights,
        [*_notes(target, history, found)],
        {
            "steps": history.steps,
            "elbo": history.elbo,
            "elbo_error": history.elbo_error,
            "ess": history.ess,
            "ended": history.ended,
        },
        dict(observed or {}),
    )


def _as_set_up(density: Density, target: LogDensity, generator: torch.Generator) -> Progress:
    """What a flow is like before it is trained; where that is enough, it says so."""
    progress = Progress()
    if isinstance(density, VariationalFlow | MixtureOfFlows):
        progress.add(0, *judged(density, target, generator))
        if progress.is_enough():
            progress.ended = f"{progress.ess[-1]:.0%} of draws in effect as it was set up"
    return progress


@dataclass(frozen=True)
class _Weighed:
    """What weighted draws say of a fit."""

    pool: Tensor
    log_weights: Tensor
    k_hat: float
    ess: float
    elbo: float
    elbo_error: float
    log_z: Evidence
    outside: float


@torch.no_grad()
def _weighed(
    density: Density, target: LogDensity, particles: Annealed | None, generator: torch.Generator, num_draws: int
) -> _Weighed:
    rows: list[Tensor] = []
    ratios: list[Tensor] = []
    drawn = 0
    while drawn < num_draws or (drawn < _MOST_DRAWS and importance(torch.cat(ratios)).standard_error > _FINE_ENOUGH):
        x, log_q = _drawn(density, min(_PART, max(num_draws, _PART)), generator)
        log_p = target(x)
        rows.append(x)
        ratios.append(torch.where(torch.isfinite(log_q), log_p - log_q, -math.inf))
        drawn += len(x)
    x, log_w = torch.cat(rows), torch.cat(ratios)
    smoothed, k_hat = pareto_smoothed(log_w)
    log_z = importance(log_w, k_hat=k_hat)
    plain, plain_q = _drawn(density, 4096, generator, wide=0.0)
    inside = target(plain) - plain_q
    usable = inside[torch.isfinite(inside)]
    if k_hat > USABLE and particles is not None:
        particles.move(10)
        log_z = bridge(inside, particles.walkers.log_p - density.log_prob(particles.x))
    return _Weighed(
        x,
        smoothed,
        k_hat,
        effective_share(log_w),
        float(usable.mean()),
        float(usable.std() / math.sqrt(max(1, len(usable)))),
        log_z,
        1 - len(usable) / len(inside),
    )


def _drawn(density: Density, n: int, generator: torch.Generator, wide: float = _WIDE) -> tuple[Tensor, Tensor]:
    if isinstance(density, Reparametrised):
        found = density.draw(n, generator, wide)
        return found.x, found.log_q
    x = density.sample(n, seed=generator)
    return x, density.log_prob(x)


def _start(target: LogDensity, start: Any) -> Tensor:
    values = start if target.by_name else {"x": start}
    free = target.parameters.pack(values, dtype=target.dtype).to(target.device)
    return free.reshape(-1, target.num_features)


def _notes(target: LogDensity, history: Progress, found: _Weighed) -> list[str]:
    notes = []
    counts = target.counts
    if counts.not_finite > _FEW * counts.asked:
        notes.append(
            f"log_density was NaN or +inf at {counts.not_finite:,} of {counts.asked:,} rows, taken for outside its "
            "support."
        )
    if counts.no_gradient > _FEW * counts.asked:
        notes.append(f"Its gradient was not finite at {counts.no_gradient:,} rows, taken for zero there.")
    if found.outside > 0.01:
        notes.append(
            f"{found.outside:.0%} of the fit's draws lie where log_density is -inf: constraints would keep them inside."
        )
    if history.ended.startswith("max_steps"):
        notes.append(f"Not converged: {history.ended}.")
    return notes
