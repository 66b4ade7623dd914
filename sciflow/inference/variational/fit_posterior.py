"""Variational inference in one call: ``sciflow.inference.fit_posterior``."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from sciflow.arguments import Arguments
from sciflow.arrays import numbers
from sciflow.density import MOST_SEED, Density
from sciflow.errors import ConfigError
from sciflow.inference.posterior import Posterior
from sciflow.inference.variational.approach import INITIALS, Approach
from sciflow.inference.variational.diffusion_sampler import DiffusionSampler
from sciflow.inference.variational.fitting import fit_family, require_possible
from sciflow.inference.variational.gaussians import root
from sciflow.inference.variational.log_density import EVENT, LogDensity
from sciflow.inference.variational.objectives import objective_of
from sciflow.inference.variational.row_posterior import RowPosterior
from sciflow.inference.variational.several_fits import several_fits
from sciflow.inference.variational.training import Progress
from sciflow.inference.variational.weighing import Weighed, weighed
from sciflow.progress import progress_bar

__all__ = ["fit_posterior", "notes_on_ascents", "notes_on_particles"]

_MISSING, _CERTAIN = 0.2, 5.0  # nats, and standard errors, by which a log Z is too low
_SHARE, _ABSENT = math.log(0.02), 5.0  # of Z that a mode has; nats by which a fit is too low there
_DRAWS = 200
_TELLING = 0.2  # effective share below which weights tell that a fit is wrong
_FEW = 1e-4  # of all evaluations: far starts alone may be as many


def fit_posterior(
    log_density: Callable[..., Any],
    event_shape: int | Sequence[int] | None = None,
    *,
    parameters: Mapping[str, Any] | None = None,
    family: Any = "flow",
    objective: Any = "reverse_kl",
    initial: str = "annealed",
    start: Any = None,
    num_particles: int = 2048,
    max_steps: int = 3000,
    num_draws: int | None = None,
    rows: Any = None,
    log_likelihood: Callable[..., Any] | None = None,
    batch_size: int | None = None,
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
    rising; a Gaussian by L-BFGS on common random numbers. Draws of the flow, weighted, give log Z and the verdict.

    Args:
        log_density: Unnormalised log p in torch, nats: of one event, or of a batch of them ``[n, *event_shape]``; which
            of the two is found out. With ``parameters`` it is called by keyword, or with one mapping.
        event_shape: Shape of the event, where it is one tensor.
        parameters: Otherwise, constraints by name: ``real``, ``positive``, ``interval``, ``simplex``, ``ordered``; the
            Jacobians of what maps them to unconstrained numbers count.
        family: ``"flow"``, ``"gaussian"`` (of full rank), ``"mixture"`` (of flows, one a mode), ``"realnvp"``,
            ``"nsf"``, ``"iaf"``, ``"continuous"``, ``"diffusion"``; with options ``{"flow": {"num_transforms": 8}}``,
            ``{"mixture": {"num_components": 3}}``. A continuous flow matches the particles. A diffusion
            (:class:`~sciflow.inference.variational.diffusion_sampler.DiffusionSampler`) draws with the density's help:
            its log Z is that of its paths, and :meth:`~sciflow.inference.Posterior.load` needs ``log_density`` again.
        objective: ``"reverse_kl"``, ``"iw_elbo"``, ``"alpha"``, ``"forward_kl"``; see
            :class:`~sciflow.inference.variational.objectives.Objective`.
        initial: What the family is set up on: ``"annealed"`` particles, which are in every mode; or draws of the
            Gaussian that ``"pathfinder"`` or ``"laplace"`` finds, for which log_density is asked some ten times less
            often: for a density of one mode, about normal, that is costly.
        start: Where to look first, too: values by name, or an event; one, or a batch.
        num_particles: That are annealed, or draws of the Gaussian.
        max_steps: Of the divergence, at the most; and, up to 600, on particles before.
        num_draws: That are weighted in the end, at the least; more where log Z is not known to 0.005 nats. None for
            16,384, or fewer where there are so many ``rows`` that each draw takes long.
        rows: Data that may be larger than memory, of whose rows the log likelihoods are added to ``log_density``, which
            then is the prior: a store or its path, a split such as ``store.train``, or an array. They are read in
            batches, and once more for the weights, which count every row; see
            :class:`~sciflow.inference.variational.row_posterior.RowPosterior`.
        log_likelihood: ``(rows, **parameters)`` of one draw: log p ``[m]`` of ``rows`` ``[m, ...]``; of an event,
            ``(rows, x)``.
        batch_size: Of rows; None for 512.
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
        ConfigError: An argument is out of range or does not go with another, or a start does not fit its constraint.
        ShapeError: The function does not return one number an event.
        DerivativeError: What it returns has no gradient.
        DataError: The function fails, is finite nowhere, or is improper; what was observed is no numbers.

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
    if num_draws is not None:
        num_draws = arguments.whole("num_draws", num_draws, 100, 1 << 24)
    initial = arguments.choice("initial", initial, INITIALS)
    chosen = objective_of(objective)
    require_possible(family, chosen, initial)
    generator = torch.Generator().manual_seed(arguments.whole("seed", seed, 0, MOST_SEED))
    if (rows is None) != (log_likelihood is None):
        raise ConfigError(
            "fit_posterior: rows= and log_likelihood= go together: the likelihood of rows is added to log_density, "
            "which then is the prior"
        )
    if batch_size is not None:
        arguments.require("batch_size", batch_size, rows is not None, "left out: there are no rows")
        batch_size = arguments.whole("batch_size", batch_size, 1, 1 << 24)
    target = (
        LogDensity(log_density, event_shape, parameters, dtype, device)
        if log_likelihood is None
        else RowPosterior(log_density, log_likelihood, rows, event_shape, parameters, dtype, device, batch_size, seed)
    )
    first = None if start is None else _start(target, start)
    arguments.require("observed", observed, observed is None or isinstance(observed, Mapping), "a mapping by name")
    seen = {name: numbers(value, f"observed {name!r}") for name, value in (observed or {}).items()}
    if num_fits != 1 or num_workers is not None or address is not None:
        return several_fits(fit_posterior, target, given | {"observed": seen})
    # Networks draw their first weights from torch's own generator, which is the caller's.
    with torch.random.fork_rng([]), progress_bar("fitting", max_steps, progress) as update:
        torch.manual_seed(seed % (1 << 63))
        near = Approach(target, generator, initial, num_particles, first)
        density, history = fit_family(family, target, near, chosen, generator, max_steps, update)
        found = weighed(density, target, generator, num_draws, lambda: near.particles)
        notes = [*_notes(target, history, found), *notes_on_particles(near, found)]
        # The bounds of ascents are of the rows that are held, where there are many.
        if not isinstance(density, DiffusionSampler) and not target.is_random:
            notes += notes_on_ascents(density, target, near, found)
    told = {name: getattr(history, name) for name in ("steps", "elbo", "elbo_error", "ess", "ended")}
    posterior = found.posterior(density, target, notes, told)
    posterior.observed = seen
    return posterior


def _start(target: LogDensity, start: Any) -> Tensor:
    values = start if target.by_name else {EVENT: start}
    free = target.parameters.pack(values, dtype=target.dtype).to(target.device)
    return free.reshape(-1, target.num_features)


def _notes(target: LogDensity, history: Progress, found: Weighed) -> list[str]:
    notes = list(target.notes)
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


def notes_on_particles(near: Approach, found: Weighed) -> list[str]:
    """Weights of a fit that lacks a mode are good, and their log Z too low; that of particles tells."""
    if near.initial != "annealed" or found.log_z.method == "annealed":
        return []
    annealed = near.particles.evidence
    error = math.hypot(annealed.standard_error, found.log_z.standard_error)
    if float(annealed) - float(found.log_z) < max(_MISSING, _CERTAIN * error):
        return []
    return [f"Particles annealed to the density give log Z {annealed}, which is more: the fit may lack a mode."]


@torch.no_grad()
def notes_on_ascents(density: Density, target: LogDensity, near: Approach, found: Weighed) -> list[str]:
    """An ascent that ended where the fit hardly is, and whose Gaussian alone has a share of Z, has found a mode."""
    if found.ess < _TELLING:
        return []  # The weights tell it themselves.
    paths, log_z = near.paths, float(found.log_z)
    large = torch.nonzero(paths.elbo > log_z + _SHARE)[:, 0]
    if not len(large):
        return []
    gaussians = torch.distributions.MultivariateNormal(paths.means[large], scale_tril=root(paths.covariances[large]))
    # Bounds by the few draws of an ascent are chosen for being high: they are asked for again. Each is at most the
    # logarithm of the mass that its Gaussian stands for.
    draws = gaussians.rsample((_DRAWS,))
    log_p = target(draws.flatten(0, 1)).reshape(draws.shape[:-1])
    share = (log_p - gaussians.log_prob(draws)).mean(0) - log_z
    short = share + gaussians.log_prob(gaussians.mean) - density.log_prob(gaussians.mean)
    if not ((share > _SHARE) & (short > _ABSENT)).any():
        return []
    remedy = "family='mixture'" if near.initial == "annealed" else "initial='annealed'"
    return [f"Ascents have ended in what looks like a mode that the fit lacks: log Z may be too low; try {remedy}."]
