"""How far a diffusion sampler's log Z is from the truth, on densities whose log Z is known.

    python tests/benchmarks/inference_sampler.py --data ../shared/data --targets sonar-61 funnel-10 --steps 16

The base is the Gaussian of annealed particles, widened; the log Z is that of path weights alone, and owes nothing to
the particles'. A line a target: error of log Z with its standard error, share of draws in effect, bound less the truth,
seconds.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path

import torch
from inference_targets import SHARED, Target, targets
from torch import Tensor

from sciflow.inference import fit_diffusion_sampler
from sciflow.inference.variational.annealing import anneal
from sciflow.inference.variational.gaussians import FullGaussian, covariance, root
from sciflow.inference.variational.log_density import LogDensity
from sciflow.inference.variational.pathfinder import pathfinder

# Published estimates less the truth, means of 30 seeds: DDS, Vargas et al., arXiv:2302.13834.
PUBLISHED = {"brownian-32": -0.32, "sonar-61": -0.54, "funnel-10": -0.18}


def base_of(target: Target, density: LogDensity, generator: torch.Generator, widened: float) -> FullGaussian:
    """Gaussian of annealed particles."""
    if target.name.startswith("brownian"):
        # Its scales are cut at e^36 and e^-36; beyond, it has a mode that the true density has not, which ascents find.
        unit = torch.eye(target.dimension, dtype=density.dtype)
        start = FullGaussian(torch.zeros_like(unit[0]), 2 * unit)
    else:
        start = pathfinder(density, generator, num_paths=32).pooled().widened(1.5)
    x = anneal(density, start, generator, 1024).x
    return FullGaussian(x.mean(0), root(covariance(x))).widened(widened)


def weighed(log_weights: Tensor) -> tuple[float, float, float]:
    """Log Z, its standard error, and the share of draws in effect."""
    log_z = float(log_weights.logsumexp(0)) - math.log(len(log_weights))
    weights = (log_weights - log_z).exp()
    return log_z, float(weights.std()) / math.sqrt(len(weights)), float(1 / weights.square().mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=SHARED)
    parser.add_argument("--targets", nargs="*", help="all, where none is named")
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--updates", type=int, default=1000)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--draws", type=int, default=4000)
    parser.add_argument("--widened", type=float, default=1.2)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    torch.set_num_threads(1)
    every = targets(given.data)
    print(
        f"{'target':18} {'log Z error':>17} {'published':>9} {'ESS':>6} {'bound':>8} {'seconds':>7}  ended", flush=True
    )
    for name in given.targets or every:
        target, generator = every[name], torch.Generator().manual_seed(given.seed)
        density = LogDensity(target.log_density, event_shape=target.dimension)
        began = time.perf_counter()
        sampler = fit_diffusion_sampler(
            density,
            base_of(target, density, generator, given.widened),
            generator,
            num_steps=given.steps,
            max_updates=given.updates,
            batch_size=given.batch,
        )
        log_z, error, ess = weighed(sampler.draw(given.draws, generator)[1])
        published = f"{PUBLISHED[name]:+9.2f}" if name in PUBLISHED else " " * 9
        measured = (
            f"{log_z - target.log_z:+8.3f} +- {error:5.3f} {published} {ess:6.1%} {sampler.elbo - target.log_z:+8.3f}"
        )
        print(f"{name:18} {measured} {time.perf_counter() - began:7.0f}  {sampler.ended}", flush=True)


if __name__ == "__main__":
    main()
