"""The fit of a family to a density: on particles first, then by its objective, until it gains no more."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from sciflow.density import Density
from sciflow.flows import Reparametrised
from sciflow.inference.evidence import effective_share, importance
from sciflow.inference.psis import GOOD, pareto_smoothed
from sciflow.inference.variational.annealing import Annealed
from sciflow.inference.variational.log_density import LogDensity
from sciflow.inference.variational.objectives import Objective
from sciflow.kernels import repeated
from sciflow.training.average import WeightAverage

__all__ = ["Progress", "judged", "train_on_particles", "train_variational"]

Update = Callable[[int, str], None]

_BATCH = 256
_CHECK = 4096
_BLOCK = 100
_RATE, _WARMUP, _CLIP = 1e-3, 50, 5.0
_DECAY = 0.99  # of the average of weights
_SLOWER, _MOST_SLOWINGS, _PATIENCE = 0.3, 2, 2
_ENOUGH = 0.9  # of the draws in effect, with weights of no heavy tail: they make up for the rest
_EXCESS = 0.015  # nats, of the bound below log Z, over what normal log weights of that share would leave
_KEPT_EVERY = 4  # steps: particles cost as much as the divergence


@dataclass
class Progress:
    """How a fit went, one entry a check.

    Attributes:
        steps: Steps done.
        elbo: Evidence bound.
        elbo_error: Its standard error.
        ess: Effective share of the draws.
        k_hat: Shape of the tail of their weights.
        gap: By how much the bound is below log Z, as weights estimate it.
        ended: Why it ended, in words.
    """

    steps: list[int] = field(default_factory=list)
    elbo: list[float] = field(default_factory=list)
    elbo_error: list[float] = field(default_factory=list)
    ess: list[float] = field(default_factory=list)
    k_hat: list[float] = field(default_factory=list)
    gap: list[float] = field(default_factory=list)
    ended: str = ""

    def is_enough(self) -> bool:
        """Whether weights make up for what is left, of too narrow tails; and the bound tells of no too wide ones.

        Log weights of variance :math:`s^2`, were they normal, have an effective share of :math:`e^{-s^2}` and a bound
        :math:`s^2 / 2` below log Z. Tails of the fit that are too wide cost no share, for next to nothing is drawn
        there; but they add to what the bound is below, and a parameter's standard deviation may be all theirs.
        """
        if self.ess[-1] < _ENOUGH or self.k_hat[-1] > GOOD:
            return False
        return self.gap[-1] <= _EXCESS - 0.5 * math.log(self.ess[-1])

    def add(self, step: int, elbo: float, error: float, ess: float, k_hat: float, gap: float) -> None:
        """Note a check."""
        self.steps.append(step)
        self.elbo.append(elbo)
        self.elbo_error.append(error)
        self.ess.append(ess)
        self.k_hat.append(k_hat)
        self.gap.append(gap)


def train_on_particles(
    density: Density, batches: Iterator[Tensor], num_steps: int, update: Update = lambda *_: None
) -> None:
    """Raise log q of particles, or lower what else the family is trained by; the particles move on meanwhile.

    Args:
        density: Trained in place.
        batches: ``[size, d]`` each, without end.
        num_steps: Steps of Adam, at a rate that falls along a cosine.
        update: Told of every step.
    """
    if not num_steps:
        return
    optimizer = torch.optim.Adam(density.parameters(), _RATE)
    shape = lambda step: min(1.0, (step + 1) / _WARMUP) * 0.5 * (1 + math.cos(math.pi * step / num_steps))  # noqa: E731
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, shape)
    density.train()
    for step in range(num_steps):
        with repeated(num_steps):
            loss = density.loss(next(batches)).mean()
        _step(density, optimizer, loss)
        schedule.step()
        update(step + 1, "")
    density.eval()


def train_variational(
    flow: Reparametrised,
    target: LogDensity,
    objective: Objective,
    particles: Annealed | None,
    generator: torch.Generator,
    max_steps: int,
    keep: float = 0.0,
    update: Update = lambda *_: None,
) -> Progress:
    r"""Lower a divergence until the evidence bound has stopped rising; the best weights are kept.

    The bound is looked at every 100 steps. Where it has not risen beyond its standard error for two checks, the rate
    falls to three tenths; the third time, the fit has converged. The weights that are judged, and kept, are averages.

    Args:
        flow: Trained in place.
        target: What is approximated.
        objective: What is lowered.
        particles: Of the target, on which log q is kept up meanwhile; None for none.
        generator: Of all draws.
        max_steps: At the most.
        keep: Weight of the particles beside the objective: modes that they are in cannot be lost.
        update: Told of every step.
    """
    optimizer = torch.optim.Adam(flow.parameters(), _RATE)
    average = WeightAverage(flow, _DECAY)
    batches = None if particles is None else particles.batches(_BATCH, generator)
    progress, best, slowings, stale, step = Progress(), -math.inf, 0, 0, 0
    weights = {name: tensor.clone() for name, tensor in flow.state_dict().items()}

    def particle_batch() -> Tensor:
        assert batches is not None
        return next(batches)

    def check() -> float:
        with average.applied():
            progress.add(step, *judged(flow, target, generator))
        return progress.elbo[-1]

    best = check()
    if progress.is_enough():
        progress.ended = f"{progress.ess[-1]:.0%} of draws in effect from the start"
        return progress
    flow.train()
    while step < max_steps:
        with repeated(max_steps):
            loss = objective.loss(flow, target, _BATCH, generator, particle_batch)
            if keep and batches is not None and step % _KEPT_EVERY == 0:
                loss = loss - _KEPT_EVERY * keep * flow.log_prob(next(batches)).mean()
        for group in optimizer.param_groups:
            group["lr"] = _RATE * _SLOWER**slowings * min(1.0, (step + 1) / _WARMUP)
        _step(flow, optimizer, loss)
        step += 1
        average.update(step)
        update(step, f"ELBO {progress.elbo[-1]:.3f}" if progress.elbo else "")
        if step % _BLOCK:
            continue
        elbo = check()
        if elbo > best + progress.elbo_error[-1]:
            stale = 0
        else:
            stale += 1
        if elbo > best or not math.isfinite(best):
            best = elbo
            with average.applied():
                weights = {name: tensor.clone() for name, tensor in flow.state_dict().items()}
        if progress.is_enough():
            progress.ended = f"{progress.ess[-1]:.0%} of draws in effect"
            break
        if stale >= _PATIENCE:
            slowings, stale = slowings + 1, 0
            if slowings > _MOST_SLOWINGS:
                progress.ended = "converged: the ELBO has stopped rising"
                break
    else:
        progress.ended = f"max_steps={max_steps} reached, before it converged"
    flow.load_state_dict(weights)
    flow.eval()
    return progress


def _step(density: Density, optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    """One step; a gradient that is not finite is left out, for the next draws may do better."""
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(density.parameters(), _CLIP)
    if torch.isfinite(norm):
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)


@torch.no_grad()
def judged(
    flow: Reparametrised, target: LogDensity, generator: torch.Generator
) -> tuple[float, float, float, float, float]:
    """Evidence bound, its standard error, the effective share of draws, k-hat, and how far the bound is below log Z."""
    was_training = flow.training
    flow.eval()
    drawn = flow.draw(_CHECK, generator)
    log_w = target(drawn.x) - drawn.log_q
    usable = torch.isfinite(log_w)
    flow.train(was_training)
    if not usable.any():
        return -math.inf, math.inf, 0.0, math.inf, math.inf
    inside = log_w[usable]
    elbo, error = float(inside.mean()), float(inside.std() / math.sqrt(len(inside)))
    return elbo, error, effective_share(log_w), pareto_smoothed(log_w)[1], importance(log_w).value - elbo
