"""Unnormalised densities whose log Z is known, on which variational inference is measured.

They are functions of rows ``[n, dimension]`` that return ``[n]``, in the dtype of the rows; log Z is that of the
density exactly as it stands here. ``targets(folder)`` gives all of them by name.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"


@dataclass(frozen=True)
class Target:
    """A density whose log Z is known."""

    name: str
    dimension: int
    log_density: Callable[[Tensor], Tensor]  # [n, dimension] -> [n], nats
    log_z: float
    log_z_error: float = 0.0  # standard error of log_z, where it comes from sampling
    sample: Callable[[int, int], Tensor] | None = None  # (rows, seed) -> [rows, dimension], float64, of the density


def targets(folder: Path = SHARED) -> dict[str, Target]:
    """All targets by name; those that need data are left out where there is no folder of them."""
    known = [funnel(), many_well(6), many_well(32), gmm40()]
    if (folder / "vi_targets").is_dir():
        known += [brownian(folder), sonar(folder), german_credit(folder)]
    return {target.name: target for target in known}


def normal(x: Tensor, scale: float | Tensor = 1.0) -> Tensor:
    """Log density of N(0, scale^2), elementwise."""
    scale = torch.as_tensor(scale, dtype=x.dtype, device=x.device)
    return -0.5 * (x / scale) ** 2 - scale.log() - 0.5 * math.log(2 * math.pi)


def funnel() -> Target:
    """Neal's funnel: x0 ~ N(0, sd 3), x1 to x9 ~ N(0, variance exp(x0)). Normalised."""

    def log_density(x: Tensor) -> Tensor:
        neck = x[:, :1]
        rest = -0.5 * (x[:, 1:] * torch.exp(-0.5 * neck)) ** 2 - 0.5 * neck - 0.5 * math.log(2 * math.pi)
        return normal(x[:, 0], 3.0) + rest.sum(-1)

    def sample(n: int, seed: int) -> Tensor:
        x = torch.randn(n, 10, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        neck = 3 * x[:, :1]
        return torch.cat([neck, x[:, 1:] * torch.exp(0.5 * neck)], 1)

    return Target("funnel-10", 10, log_density, 0.0, sample=sample)


def many_well(dimension: int = 32) -> Target:
    """Copies of exp(-(x^4 - 6 x^2 - x/2)) exp(-v^2 / 2), x and v in turn: 2^(dimension / 2) wells."""
    copies = dimension // 2

    def wells(x: Tensor) -> Tensor:
        return -(x**4) + 6 * x**2 + 0.5 * x

    def log_density(x: Tensor) -> Tensor:
        return (wells(x[:, 0::2]) - 0.5 * x[:, 1::2] ** 2).sum(-1)

    # The trapezoidal rule is exact to rounding for a smooth density that has vanished at both ends.
    points = torch.linspace(-6, 6, 200_001, dtype=torch.float64)
    weights = wells(points).exp()
    one = math.log(weights.sum() * (points[1] - points[0])) + 0.5 * math.log(2 * math.pi)

    def sample(n: int, seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        share = torch.rand(n, copies, generator=generator, dtype=torch.float64)
        cumulative = weights.cumsum(0) / weights.sum()
        place = torch.searchsorted(cumulative, share).clamp_max(len(points) - 1)
        v = torch.randn(n, copies, generator=generator, dtype=torch.float64)
        return torch.stack([points[place], v], -1).flatten(1)

    return Target(f"many-well-{dimension}", dimension, log_density, copies * one, sample=sample)


def gmm40() -> Target:
    """The 40 Gaussians in two dimensions of the FAB and DDS papers, of equal weight. Normalised.

    The means are uniform in [-40, 40]^2, drawn in float32 by torch's generator from seed 0; every standard deviation
    is softplus(1) = log(1 + e).
    """
    means = ((torch.rand(40, 2, generator=torch.Generator().manual_seed(0)) - 0.5) * 80).double()
    scale = math.log1p(math.e)

    def log_density(x: Tensor) -> Tensor:
        distances = x[:, None] - means.to(x)
        return normal(distances, scale).sum(-1).logsumexp(-1) - math.log(40)

    def sample(n: int, seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        which = torch.randint(40, (n,), generator=generator)
        return means[which] + scale * torch.randn(n, 2, generator=generator, dtype=torch.float64)

    return Target("gmm-40", 2, log_density, 0.0, sample=sample)


def brownian(folder: Path = SHARED) -> Target:
    """Brownian motion whose middle is not observed, of the Inference Gym.

    The row is (log s, log r, x1 .. x30): s, r ~ LogNormal(0, 2), x1 ~ N(0, s), x(t+1) ~ N(x(t), s), and y(t) ~
    N(x(t), r) of the 20 steps that are observed; s and r are standard deviations.
    """
    observed = torch.from_numpy(np.genfromtxt(folder / "vi_targets" / "brownian_observed.csv", delimiter=",")[1:, 1])
    seen = observed.isfinite()

    def log_density(x: Tensor) -> Tensor:
        log_scales, path = x[:, :2], x[:, 2:]
        # 18 standard deviations of the prior: beyond, squares would leave what float32 holds. The same in both places,
        # or scales that vanish would be rewarded.
        held = log_scales.clamp(-36, 36)
        inverse = torch.exp(-held)
        steps = torch.diff(path, dim=1, prepend=torch.zeros_like(path[:, :1]))
        errors = path[:, seen] - observed[seen].to(x)
        of_steps = normal(steps * inverse[:, :1]).sum(-1) - steps.shape[1] * held[:, 0]
        of_errors = normal(errors * inverse[:, 1:]).sum(-1) - errors.shape[1] * held[:, 1]
        return normal(log_scales, 2.0).sum(-1) + of_steps + of_errors

    return Target("brownian-32", 32, log_density, *reference(folder, "brownian_32d"))


def sonar(folder: Path = SHARED) -> Target:
    """Logistic regression of metal or rock on 60 energies, standardised, and a constant."""
    with np.load(folder / "vi_targets" / "sonar.npz") as archive:
        x, y = archive["X"], archive["y"]
    return logistic("sonar-61", x, y == y.max(), *reference(folder, "sonar_61d"))


def german_credit(folder: Path = SHARED) -> Target:
    """Logistic regression of good or bad credit on 24 attributes, standardised, and a constant."""
    table = np.loadtxt(folder / "vi_targets" / "german.data-numeric")
    log_z = reference(folder, "german_credit_25d_std_N0_1")
    return logistic("german-credit-25", table[:, :-1], table[:, -1] == 2, *log_z)


def logistic(name: str, x: np.ndarray, y: np.ndarray, log_z: float, error: float) -> Target:
    """Bernoulli-logit likelihood, N(0, 1) on every weight; the first is that of the constant."""
    x = np.column_stack([np.ones(len(x)), (x - x.mean(0)) / x.std(0)])
    # The row times its sign: log sigma(s x.w) is the log probability of the label that occurred.
    signed = torch.from_numpy(x * np.where(y, 1.0, -1.0)[:, None])

    def log_density(weights: Tensor) -> Tensor:
        return F.logsigmoid(weights @ signed.to(weights).T).sum(-1) + normal(weights).sum(-1)

    return Target(name, x.shape[1], log_density, log_z, error)


@cache
def references(folder: Path) -> dict:
    return json.loads((folder / "vi_targets" / "reference_logZ.json").read_text())


def reference(folder: Path, name: str) -> tuple[float, float]:
    """Log Z and its standard error."""
    found = references(folder)[name]
    return found["logZ"], found.get("se", 0.0)
