"""Training of a diffusion sampler on the density itself, by its bound on log Z."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from sciflow.arguments import Arguments
from sciflow.errors import DataError
from sciflow.inference.variational.diffusion_sampler import DiffusionSampler
from sciflow.inference.variational.gaussians import FullGaussian
from sciflow.inference.variational.log_density import LogDensity

__all__ = ["bound", "fit_diffusion_sampler", "set_up"]

_LEARNING_RATE = 5e-3
_WARM_UP = 20
_WINDOW = 50  # updates after which the bound is looked at
_PATIENCE = 2  # windows without a better bound, before steps of the optimiser get shorter
_SHORTER, _SHORTEST = 0.3, 5e-4
_NUM_JUDGED = 2048
_LENGTHS, _POWERS = (0.02, 0.05, 0.1, 0.2, 0.4), (1.0, 2.0)
_UNUSUAL = 10.0  # median absolute deviations, beyond which a log weight does not count
_LEAST_STEP = 1e-8


def fit_diffusion_sampler(
    density: LogDensity,
    base: FullGaussian,
    generator: torch.Generator,
    *,
    num_steps: int = 16,
    max_updates: int = 1000,
    batch_size: int = 128,
    hidden: int = 64,
    progress: Callable[[int, str], None] | None = None,
) -> DiffusionSampler:
    r"""Train a sampler until its bound on log Z rises no more.

    .. math:: \mathcal{L} = -\operatorname{E}[\log w]
              = \operatorname{KL}(\text{paths forth} \,\|\, \text{paths back}) - \log Z

    Gradients follow the paths, through the scores too. Where the density has no second derivatives, paths are held
    where they went, and the variance of log w is made small instead; that needs only first ones, and is noisier. A log
    weight far from the others does not count: its gradient would drown theirs. Batches that reach beyond an edge of the
    support go by the variance as well, with the lowest of usual weights for what is outside.

    First the steps and temperatures are set by short trials: each step goes by the curvature that particles meet at
    that time. Then the bound is looked at every 50 updates; where it has not become better by more than its standard
    error for a while, the optimiser takes shorter steps from the best sampler met, and at last it ends.

    Args:
        density: Target.
        base: Gaussian at least as wide as the target, in whose whitened coordinates it is worked.
        generator: Of everything that is drawn, first weights of the network too.
        num_steps: Steps of a path.
        max_updates: At the most; 0 sets up only.
        batch_size: Paths an update.
        hidden: Width of the network's two hidden layers.
        progress: Called with the number of updates done and a few words.

    Raises:
        ConfigError: A number is out of range.
        ShapeError: The base has another dimension than the density.
        DataError: Hardly any path ends in the support.

    Source:
        Vargas et al., arXiv:2307.01050; log-variance loss, Richter and Berner, arXiv:2307.01198.

    Example:
        >>> density = LogDensity(lambda x: -0.5 * ((x - 1) ** 2).sum(-1), event_shape=2)
        >>> base = FullGaussian(torch.zeros(2).double(), 1.5 * torch.eye(2).double())
        >>> generator = torch.Generator().manual_seed(0)
        >>> sampler = fit_diffusion_sampler(density, base, generator, num_steps=4, max_updates=40)
        >>> abs(sampler.elbo - 1.8379) < 0.2  # log 2 pi
        True
    """
    arguments = Arguments("fit_diffusion_sampler")
    max_updates = arguments.whole("max_updates", max_updates, 0, 1 << 30)
    batch_size = arguments.whole("batch_size", batch_size, 8, 1 << 20)
    with torch.random.fork_rng([]):
        # Networks draw their first weights from torch's own generator, which is the caller's.
        torch.default_generator.manual_seed(int(torch.randint(1 << 62, (1,), generator=generator)))
        sampler = DiffusionSampler(density, base, num_steps, hidden)
    set_up(sampler, generator, batch_size)
    loss = _minus_bound if _twice_differentiable(sampler, generator) else _spread
    best, highest = _state(sampler), bound(sampler, generator, _NUM_JUDGED)[0]
    if highest == -math.inf:
        raise DataError(
            f"log_density is finite at hardly any end of {_NUM_JUDGED} paths ({density.counts}): give a base that lies "
            "in the support, or constraints that keep parameters there"
        )
    sampler.ended = f"not settled after {max_updates} updates" if max_updates else "set up only"
    optimiser = torch.optim.Adam(sampler.parameters(), lr=_LEARNING_RATE)
    rate, standing = _LEARNING_RATE, 0
    for number in range(1, max_updates + 1):
        optimiser.param_groups[0]["lr"] = rate * min(1.0, number / _WARM_UP)
        _update(sampler, optimiser, loss(sampler, batch_size, generator))
        sampler.num_updates = number
        if number % _WINDOW and number < max_updates:
            continue
        elbo, error = bound(sampler, generator, 4 * batch_size)
        standing = 0 if elbo > highest + error else standing + 1
        if elbo > highest:
            best, highest = _state(sampler), elbo
        if progress is not None:
            progress(number, f"bound {elbo:.3f} +- {error:.3f}")
        if standing >= _PATIENCE:
            # From the best that was met: a step too long may have led to where weights tell nothing.
            sampler.load_state_dict(best)
            optimiser = torch.optim.Adam(sampler.parameters())
            rate, standing = rate * _SHORTER, 0
            if rate < _SHORTEST:
                sampler.ended = f"the bound rose no more, after {number} updates"
                break
    sampler.load_state_dict(best)
    # Chosen as the highest of many, the bound of a few draws flatters: the last word has draws of its own.
    sampler.elbo, sampler.elbo_error = bound(sampler, generator, _NUM_JUDGED)
    return sampler


def bound(sampler: DiffusionSampler, generator: torch.Generator, num_draws: int) -> tuple[float, float]:
    r"""Lower bound on log Z of the sampler whose paths that end outside the support are thrown away.

    .. math:: \operatorname{E}[\log w \mid w > 0] + \log P(w > 0) \le \log Z

    Returns:
        The bound and its standard error, nats.
        -inf, and an error without end, where fewer than two paths end in the support.
    """
    _, log_weights = sampler.draw(num_draws, generator)
    inside = log_weights[torch.isfinite(log_weights)]
    if len(inside) < 2:
        return -math.inf, math.inf
    share = len(inside) / num_draws
    error = math.sqrt(float(inside.var()) / len(inside) + (1 - share) / len(inside))
    return float(inside.mean()) + math.log(share), error


@torch.no_grad()
def set_up(sampler: DiffusionSampler, generator: torch.Generator, num_rows: int) -> None:
    """Set steps and temperatures by trials: lengths relative to the curvature, and powers by which beta rises.

    The mean square of a score is the mean curvature where rows have settled. Its 70 % quantile stands for it: a few
    rows in a steep place would make steps too short for all.
    """
    kernels = sampler.kernels
    best, settings = -math.inf, _state(sampler)
    for power in _POWERS:
        betas = torch.linspace(0, 1, sampler.num_steps + 1, dtype=torch.float64) ** power
        kernels.log_share.copy_(betas.diff().log())
        for length in _LENGTHS:
            y = sampler.trail_start(num_rows, generator)
            for k in range(sampler.num_steps):
                _, score = sampler.target(y)
                annealed = float(betas[k]) * score - float(1 - betas[k]) * y
                curvature = annealed.square().quantile(0.7, 0).clamp_min(1.0)
                kernels.log_step[k] = (length / curvature).clamp_min(_LEAST_STEP).log()
                y = sampler.step(k, y, score, generator)
            log_weights = sampler.log_weights(sampler.trail(num_rows, generator))
            found = float(_held(log_weights).mean())
            if found > best:
                best, settings = found, _state(sampler)
    sampler.load_state_dict(settings)


def _minus_bound(sampler: DiffusionSampler, num_paths: int, generator: torch.Generator) -> Tensor:
    log_weights = sampler.log_weights(sampler.trail(num_paths, generator, through=True))
    found = log_weights.detach()
    if not torch.isfinite(found).all():
        # No path's own gradient tells of an edge; the weights of those beyond it do.
        return _spread(sampler, num_paths, generator)
    usual = found == _held(found)
    return -torch.where(usual, log_weights, 0.0).sum() / usual.sum().clamp_min(1)


def _spread(sampler: DiffusionSampler, num_paths: int, generator: torch.Generator) -> Tensor:
    """Of the gradient of the variance of log weights, with paths held where they went."""
    with torch.no_grad():
        trail = sampler.trail(num_paths, generator)
    ratio = sampler.log_ratio(trail)
    held = _held(trail.log_p + ratio.detach())
    return 2 * ((held - held.mean()) * torch.where(torch.isfinite(ratio), ratio, 0.0)).mean()


def _twice_differentiable(sampler: DiffusionSampler, generator: torch.Generator) -> bool:
    try:
        sampler.trail(2, generator, through=True).scores.sum().backward()
    except (RuntimeError, NotImplementedError):
        return False
    finally:
        sampler.zero_grad()
    return True


def _update(sampler: DiffusionSampler, optimiser: torch.optim.Optimizer, loss: Tensor) -> None:
    optimiser.zero_grad()
    loss.backward()
    # The norm is NaN where any gradient is not finite; that update is left out.
    if torch.isfinite(nn.utils.clip_grad_norm_(sampler.parameters(), 1.0)):
        optimiser.step()


def _held(log_weights: Tensor) -> Tensor:
    """Log weights within what is usual; those that are not finite count as the lowest. Zeros where none is finite."""
    inside = log_weights[torch.isfinite(log_weights)]
    if not len(inside):
        return torch.zeros_like(log_weights)
    middle = inside.median()
    reach = _UNUSUAL * (inside - middle).abs().median() + 1
    return log_weights.nan_to_num(-math.inf).clamp(middle - reach, middle + reach)


def _state(sampler: DiffusionSampler) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in sampler.state_dict().items()}
