"""Five simulators whose posteriors are known by ten thousand draws each, and what tells draws from them.

The tasks are those of Lueckmann et al., arXiv:2101.04653; a folder of their observations and reference draws is read,
not made. Simulators take and give tensors, many rows at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy.integrate import solve_ivp
from torch import Tensor
from torch.distributions import Binomial, Distribution, Independent, LogNormal, Normal, Uniform

__all__ = ["TASKS", "Observation", "Task", "c2st", "observations", "published"]

POPULATION, DAYS, EVERY, COUNTED = 1_000_000.0, 160, 17, 1000


@dataclass(frozen=True)
class Task:
    """A prior, and a simulator of what is observed.

    Attributes:
        name: As files call it.
        prior: Of the parameters.
        simulate: From parameters ``[n, d]`` to observations ``[n, e]``, with torch's own generator.
    """

    name: str
    prior: Distribution
    simulate: Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Observation:
    """One observation of a task.

    Attributes:
        x: What was observed, ``[e]``.
        theta: The parameters that made it, ``[d]``.
        reference: Draws of its posterior, ``[10000, d]``.
    """

    x: Tensor
    theta: Tensor
    reference: Tensor


def box(low: float, high: float, size: int) -> Distribution:
    """A uniform prior."""
    return Independent(Uniform(torch.full((size,), float(low)), torch.full((size,), float(high))), 1)


def two_moons(theta: Tensor) -> Tensor:
    """A crescent, whose place tells a sum of parameters but for its sign."""
    n = len(theta)
    angle = math.pi * (torch.rand(n) - 0.5)
    radius = 0.1 + 0.01 * torch.randn(n)
    crescent = torch.stack((radius * angle.cos() + 0.25, radius * angle.sin()), -1)
    sides = torch.stack((-(theta[:, 0] + theta[:, 1]).abs(), theta[:, 1] - theta[:, 0]), -1)
    return crescent + sides / math.sqrt(2)


def slcp(theta: Tensor) -> Tensor:
    """Four draws of a Gaussian in the plane: a simple likelihood, a complex posterior."""
    first, second = theta[:, 2].square(), theta[:, 3].square()
    correlation = theta[:, 4].tanh()
    z = torch.randn(len(theta), 4, 2)
    across = correlation[:, None] * z[..., 0] + (1 - correlation.square()).sqrt()[:, None] * z[..., 1]
    draws = torch.stack((first[:, None] * z[..., 0], second[:, None] * across), -1)
    return (theta[:, None, :2] + draws).flatten(1)


def gaussian_linear(theta: Tensor) -> Tensor:
    """The parameters with noise of variance 0.1."""
    return theta + math.sqrt(0.1) * torch.randn_like(theta)


def gaussian_mixture(theta: Tensor) -> Tensor:
    """The parameters with noise, half of the time a tenth of it."""
    scale = torch.where(torch.rand(len(theta), 1) < 0.5, 1.0, 0.1)
    return theta + scale * torch.randn_like(theta)


def sir(theta: Tensor) -> Tensor:
    """Among a thousand people, how many are infected, every 17th day of an epidemic."""
    beta, gamma = theta.double().unbind(-1)
    infected = np.stack([infections(float(b), float(g)) for b, g in zip(beta, gamma, strict=True)])
    share = torch.from_numpy(infected / POPULATION).clamp(0, 1)
    return Binomial(COUNTED, share).sample().float()


def infections(contact_rate: float, recovery_rate: float) -> np.ndarray:
    """Infected people at every 17th day, by the differential equations of susceptible, infected, recovered."""

    def change(_: float, state: np.ndarray) -> tuple[float, float]:
        susceptible, infected = state
        new = contact_rate * susceptible * infected / POPULATION
        return -new, new - recovery_rate * infected

    days = np.arange(0, DAYS + 1, EVERY, dtype=float)
    return solve_ivp(change, (0, DAYS), (POPULATION - 1, 1.0), t_eval=days, method="LSODA", rtol=1e-6, atol=1e-3).y[1]


TASKS = {
    task.name: task
    for task in (
        Task("two_moons", box(-1, 1, 2), two_moons),
        Task("slcp", box(-3, 3, 5), slcp),
        Task(
            "gaussian_linear", Independent(Normal(torch.zeros(10), math.sqrt(0.1) * torch.ones(10)), 1), gaussian_linear
        ),
        Task("gaussian_mixture", box(-10, 10, 2), gaussian_mixture),
        Task("sir", Independent(LogNormal(torch.tensor([0.4, 0.125]).log(), torch.tensor([0.5, 0.2])), 1), sir),
    )
}


def observations(data: Path, task: str) -> list[Observation]:
    """All observations of a task, in order."""
    found = []
    for number in range(1, 11):
        folder = data / task / f"num_observation_{number}"
        read = [
            torch.from_numpy(pd.read_csv(folder / name).to_numpy("float32"))
            for name in ("observation.csv", "true_parameters.csv", "reference_posterior_samples.csv.bz2")
        ]
        found.append(Observation(read[0][0], read[1][0], read[2]))
    return found


def published(data: Path, task: str, budget: str) -> dict[str, float]:
    """Published figures by method."""
    table = pd.read_csv(data / "published_c2st.csv")
    rows = table[table["task"] == task]
    return dict(zip(rows["algorithm"], rows[budget].astype(float), strict=True))


def c2st(reference: Tensor, draws: Tensor, seed: int = 1) -> float:
    """Accuracy with which a network tells draws from the reference, over five folds: 0.5 where it cannot.

    Both are brought to mean 0 and deviation 1 of the reference. The network has two hidden layers of ten units for each
    parameter.
    """
    from sklearn.model_selection import KFold, cross_val_score
    from sklearn.neural_network import MLPClassifier

    mean, std = reference.mean(0), reference.std(0)
    rows = torch.cat([(reference - mean) / std, (draws - mean) / std]).double().numpy()
    labels = np.repeat([0, 1], [len(reference), len(draws)])
    width = 10 * reference.shape[1]
    network = MLPClassifier(
        activation="relu", hidden_layer_sizes=(width, width), max_iter=10_000, solver="adam", random_state=seed
    )
    folds = KFold(n_splits=5, shuffle=True, random_state=seed)
    return float(np.mean(cross_val_score(network, rows, labels, cv=folds, scoring="accuracy")))
