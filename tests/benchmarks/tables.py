"""Held-out log p of a table in its own units: our flow unattended, beside a Gaussian and zuko trained as long.

    python tests/benchmarks/tables.py rows.csv --variables a,b,c
    python tests/benchmarks/tables.py rows.npz --variables X --where y=0

Every model sees the same rows; zuko gets the same standardised data, batches of the same size, and as many steps under
the same learning rate and cosine, and keeps the weights of its best validation, too.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

import sciflow as sf
from sciflow.config import Training
from sciflow.data.sources import open_source
from sciflow.training.budget import Budget


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("path", type=Path)
    parser.add_argument("--variables", help="columns, with commas between them; all by default")
    parser.add_argument("--where", help="rows of an npz to keep: NAME=VALUE")
    parser.add_argument("--seeds", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = read(arguments.path, arguments.variables, arguments.where)
    table = Table(
        "model", "seed", "held-out log p [nats]", "steps", "seconds", title=f"{arguments.path.name}, {rows.shape}"
    )
    for seed in range(arguments.seeds):
        order = np.random.default_rng(seed).permutation(len(rows))
        train, validation, test = np.split(rows[order], [int(0.8 * len(rows)), int(0.9 * len(rows))])
        results = {
            "full-covariance Gaussian": gaussian(train, test),
            "sciflow NSF, sf.fit unattended": ours(train, validation, test, seed),
            "zuko NSF, as it comes (3 transforms, 64 x 2)": zuko(train, validation, test, seed),
            "zuko NSF of our size (8 transforms, 128 x 2)": zuko(train, validation, test, seed, 8, (128, 128)),
        }
        for name, (log_prob, steps, seconds) in results.items():
            error = log_prob.std(ddof=1) / math.sqrt(len(log_prob))
            table.add_row(name, str(seed), f"{log_prob.mean():.3f} +- {error:.3f}", f"{steps:,}", f"{seconds:.0f}")
    Console(width=120).print(table)


Result = tuple[np.ndarray, int, float]


def read(path: Path, variables: str | None, where: str | None) -> np.ndarray:
    """All events as rows."""
    if where is not None:
        name, _, value = where.partition("=")
        with np.load(path) as archive:
            return np.asarray(archive[variables or "X"])[archive[name] == float(value)]
    source = open_source(str(path), variables=variables.split(",") if variables else None, dtype="float64")
    return np.concatenate([block.events for block in source.blocks(1 << 26)])


def gaussian(train: np.ndarray, test: np.ndarray) -> Result:
    """A Gaussian with full covariance, by moments."""
    began = time.perf_counter()
    mean, scale = train.mean(0), train.std(0)
    standard = torch.from_numpy((test - mean) / scale)
    covariance = torch.from_numpy(np.atleast_2d(np.cov(((train - mean) / scale).T)))
    normal = torch.distributions.MultivariateNormal(torch.zeros(len(mean), dtype=torch.float64), covariance)
    return normal.log_prob(standard).numpy() - np.log(scale).sum(), 0, time.perf_counter() - began


def ours(train: np.ndarray, validation: np.ndarray, test: np.ndarray, seed: int) -> Result:
    """``sf.fit`` with nothing set."""
    fit = sf.fit(sf.flows.NSF(train.shape[1:], seed=seed), train, validation, seed=seed)
    return sf.score(fit.density, test, progress=False).log_prob.values, fit.steps, fit.seconds


def zuko(
    train: np.ndarray,
    validation: np.ndarray,
    test: np.ndarray,
    seed: int,
    transforms: int = 3,
    hidden_features: tuple[int, ...] = (64, 64),
) -> Result:
    """The peer, standardised and trained by the same budget."""
    import zuko as peer

    torch.manual_seed(seed)
    mean, scale = train.mean(0), train.std(0)
    x, held, new = (torch.from_numpy((rows - mean) / scale).float() for rows in (train, validation, test))
    flow = peer.flows.NSF(train.shape[1], transforms=transforms, hidden_features=hidden_features)
    settings = Training()
    budget = Budget.of(settings, len(x))
    optimizer = torch.optim.Adam(flow.parameters(), lr=budget.learning_rate)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, budget.max_steps)
    best, weights, stale, step, began = -math.inf, flow.state_dict(), 0, 0, time.perf_counter()
    while step < budget.max_steps and stale < settings.patience:
        for batch in torch.randperm(len(x)).split(budget.batch_size):
            loss = -flow().log_prob(x[batch]).mean()
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(flow.parameters(), settings.gradient_clip)
            optimizer.step()
            cosine.step()
            step += 1
            if step % budget.validate_every == 0:
                with torch.no_grad():
                    found = float(flow().log_prob(held).mean())
                stale = 0 if found > best else stale + 1
                if found > best:
                    best, weights = found, {name: value.clone() for name, value in flow.state_dict().items()}
            if step == budget.max_steps or stale >= settings.patience:
                break
    seconds = time.perf_counter() - began
    flow.load_state_dict(weights)
    with torch.no_grad():
        log_prob = flow().log_prob(new).numpy() - np.log(scale).sum()
    return log_prob, step, seconds


if __name__ == "__main__":
    main()
