"""How each kind of family is fitted to a density."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from sciflow.density import Density
from sciflow.errors import ConfigError, nearest
from sciflow.flows import Flow, MixtureOfFlows, Reparametrised, VariationalFlow
from sciflow.inference.variational.approach import Approach
from sciflow.inference.variational.diffusion_sampler import DiffusionSampler
from sciflow.inference.variational.families import family_for, family_named
from sciflow.inference.variational.gaussians import FullGaussian, covariance, root
from sciflow.inference.variational.log_density import LogDensity
from sciflow.inference.variational.objectives import Objective
from sciflow.inference.variational.sample_average import is_small, lower_sample_average
from sciflow.inference.variational.sampler_training import fit_diffusion_sampler
from sciflow.inference.variational.training import Progress, Update, judged, train_on_particles, train_variational

__all__ = ["fit_family", "require_possible"]

_MOST_PARTICLE_STEPS = 600
_KEEP = 0.2  # weight of log q at particles, beside a divergence that may let modes go
_MOST_UPDATES = 1000  # of a diffusion, each of which follows whole paths
_OF_DIFFUSION = ("num_steps", "max_updates", "batch_size", "hidden")
_BASE_WIDENED = 1.3  # standard deviations of where its paths start, over those of the particles


def require_possible(family: Any, objective: Objective, initial: str) -> None:
    """Refuse what does not go together.

    Raises:
        ConfigError: A diffusion by another objective than its own, or with options that it has not; particles without
            annealing.
    """
    name, options = family_named(family)
    for key in options if name == "diffusion" else ():
        if key not in _OF_DIFFUSION:
            raise ConfigError(f"family: diffusion: unknown option {key!r:.80}; {nearest(str(key), _OF_DIFFUSION)}")
    if name == "diffusion" and objective.alpha != 1:
        raise ConfigError(
            f"objective={objective.name!r}: a diffusion is trained by its own bound, which is a reverse KL of paths; "
            "leave objective out, or take a flow"
        )
    by_particles = name == "continuous" or (objective.alpha is None and objective.by == "annealing")
    if by_particles and initial != "annealed":
        what = "a continuous flow" if name == "continuous" else f"objective={objective.name!r}"
        raise ConfigError(f"initial={initial!r}: {what} needs particles of the density; leave it at 'annealed'")


def fit_family(
    family: Any,
    target: LogDensity,
    near: Approach,
    objective: Objective,
    generator: torch.Generator,
    max_steps: int,
    update: Update,
) -> tuple[Density | DiffusionSampler, Progress]:
    """Build a family for what the approach found, and fit it.

    A flow is judged as it was set up, raised at the particles, and lowers its objective; one of few weights lowers the
    reverse KL by sample averages. A continuous flow matches the particles. A diffusion is trained by its bound.

    Args:
        family: Name, or name and options.
        target: What is approximated.
        near: Rows, and particles, near it.
        objective: What a flow lowers.
        generator: Of everything that is drawn.
        max_steps: Of the objective, at the most.
        update: Told of every step.

    Returns:
        The fit, and how it went.
    """
    name, options = family_named(family)
    if name == "diffusion":
        return _diffusion(options, target, near, generator, max_steps, update)
    density = family_for(family, near.rows, generator)
    if not isinstance(density, Reparametrised):
        return density, _on_particles(density, near, generator, max_steps, update)
    history = _as_set_up(density, target, generator)
    if history.ended:
        return density, history
    if (
        objective.name == "reverse_kl"
        and max_steps
        and not target.is_random
        and isinstance(density, Flow)
        and is_small(density)
    ):
        return density, _by_sample_average(density, target, generator)
    if near.initial == "annealed":
        history = _on_particles(density, near, generator, max_steps, update)
    if objective.alpha is not None or objective.by == "importance":
        particles = near.particles if near.initial == "annealed" else None
        history = train_variational(density, target, objective, particles, generator, max_steps, _KEEP, update)
    return density, history


def _as_set_up(density: Reparametrised, target: LogDensity, generator: torch.Generator) -> Progress:
    """What a flow is like before it is trained; where that is enough, it says so."""
    history = Progress()
    if isinstance(density, VariationalFlow | MixtureOfFlows):
        history.add(0, *judged(density, target, generator))
        if history.is_enough():
            history.ended = f"{history.ess[-1]:.0%} of draws in effect as it was set up"
    return history


def _on_particles(
    density: Density, near: Approach, generator: torch.Generator, max_steps: int, update: Update
) -> Progress:
    steps = min(_MOST_PARTICLE_STEPS, max_steps)
    train_on_particles(density, near.particles.batches(256, generator), steps, update)
    return Progress(ended="fitted to particles alone")


def _by_sample_average(density: Flow, target: LogDensity, generator: torch.Generator) -> Progress:
    evaluations, count = lower_sample_average(density, target, generator)
    history = Progress(ended=f"converged: L-BFGS on {count:,} common draws")
    history.add(evaluations, *judged(density, target, generator))
    return history


def _diffusion(
    options: Mapping[str, Any],
    target: LogDensity,
    near: Approach,
    generator: torch.Generator,
    max_steps: int,
    update: Update,
) -> tuple[DiffusionSampler, Progress]:
    base = FullGaussian(near.rows.mean(0), root(covariance(near.rows))).widened(_BASE_WIDENED)
    chosen = {"max_updates": min(max_steps, _MOST_UPDATES), **options}
    sampler = fit_diffusion_sampler(target, base, generator, **chosen, progress=update)
    return sampler, Progress([sampler.num_updates], [sampler.elbo], [sampler.elbo_error], ended=sampler.ended)
