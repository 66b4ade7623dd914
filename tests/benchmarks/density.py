"""How good the densities are that ``sf.fit`` gives unattended: known densities, wine, and conditional UCI sets.

    python tests/benchmarks/density.py
    python tests/benchmarks/density.py --conditional --sets concrete,energy --seeds 3
    python tests/benchmarks/density.py --toys --out pictures

Every model is ``sf.fit(sf.flows.NSF(...), rows)`` with nothing set but the seed and, in the plane, 16 bins; test rows
are looked at once, for the table. One thread. In the plane there are many rows, for a goal of 0.01 nats: what is
learned from 100,000 is off by as much, through chance alone.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from beside import beside, tell
from rich.console import Console
from rich.table import Table
from scipy.special import log_ndtr

import sciflow as sf

TOY_ROWS, TOY_TEST_ROWS = 400_000, 100_000
TOY_BINS, TOY_GOAL = 16, 0.01
WINE_FOLDS = 10
# Quoted: Uria et al., arXiv:1306.0186, and the deep ensemble of Uria et al., arXiv:1310.1757.
WINE_PUBLISHED = {
    "Gaussian": -13.18,
    "mixture of factor analysers": -10.19,
    "RNADE": -9.36,
    "deep NADE ensemble": -8.76,
}
# Dropout network, Gal and Ghahramani, arXiv:1506.02142.
CONDITIONAL_GOALS = {
    "concrete": -2.93,
    "energy": -1.21,
    "kin8nm": 1.14,
    "power-plant": -2.80,
    "wine-quality-red": -0.93,
}
# Whole numbers, on which a density can grow without limit.
COUNTED = ("wine-quality-red",)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--toys", action="store_true", help="densities in the plane that are known")
    parser.add_argument("--wine", action="store_true", help="density of the wines, in ten folds")
    parser.add_argument("--conditional", action="store_true", help="density of a target given features, five splits")
    parser.add_argument("--sets", help="toys or conditional sets to keep, with commas between them")
    parser.add_argument("--seeds", type=int, default=1, help="repeat with seeds 0, 1, ... (%(default)s)")
    parser.add_argument("--out", type=Path, help="folder for pictures of the toys, truth beside model")
    options = parser.parse_args()
    torch.set_num_threads(1)
    everything = not (options.toys or options.wine or options.conditional)
    kept = options.sets.split(",") if options.sets else None
    if options.toys or everything:
        toys(
            [name for name in beside("datasets/toys").TOYS if kept is None or name in kept], options.seeds, options.out
        )
    if options.wine or everything:
        wine(options.seeds)
    if options.conditional or everything:
        conditional([name for name in CONDITIONAL_GOALS if kept is None or name in kept], options.seeds)


def toys(names: list[str], seeds: int, out: Path | None) -> None:
    """KL divergence from the truth: the mean over fresh draws of log p (truth) - log p (model)."""
    title = f"In the plane, {TOY_ROWS:,} rows, {TOY_BINS} bins"
    table = Table("density", "seed", "KL [nats]", "goal", "steps", "seconds", title=title)
    for name in names:
        truth = beside("datasets/toys").TOYS[name]
        new = truth.sample(TOY_TEST_ROWS, seed=1_000_000)
        for seed in range(seeds):
            flow = sf.flows.NSF((2,), num_bins=TOY_BINS, seed=seed)
            fit = sf.fit(flow, truth.sample(TOY_ROWS, seed=seed), seed=seed)
            difference = truth.log_prob(new) - log_prob(fit.density, new)
            table.add_row(
                truth.name, str(seed), _mean(difference, 4), f"<= {TOY_GOAL}", f"{fit.steps:,}", f"{fit.seconds:.0f}"
            )
            tell(f"{truth.name}, seed {seed}: KL {_mean(difference, 4)}")
            if out is not None:
                print(draw(truth, fit.density, out / f"{name}_{seed}.png"))
    Console(width=120).print(table)


def wine(seeds: int) -> None:
    """Mean test log p over ten folds, in standard deviations of the eleven columns.

    The protocol is that of arXiv:1306.0186: the discrete column (the quality) is dropped, and one of each pair of
    columns whose correlation is above 0.98, of which there is none; every column is standardised.
    """
    rows = beside("datasets/uci").load("wine-quality-red").features
    assert np.abs(np.corrcoef(rows.T) - np.eye(rows.shape[1])).max() < 0.98
    rows = (rows - rows.mean(0)) / rows.std(0)
    began = time.perf_counter()
    results: dict[str, list[float]] = {}
    for seed in range(seeds):
        order = np.random.default_rng(seed).permutation(len(rows))
        for fold, test in enumerate(np.array_split(order, WINE_FOLDS)):
            train = np.setdiff1d(order, test)
            fit = sf.fit(sf.flows.NSF(rows.shape[1:], seed=seed), rows[train], seed=seed)
            ours = log_prob(fit.density, rows[test])
            results.setdefault("sciflow NSF, unattended", []).append(ours.mean())
            results.setdefault("full-covariance Gaussian", []).append(gaussian(rows[train], rows[test]).mean())
            tell(f"wine, seed {seed}, fold {fold}: {ours.mean():.3f}")
    title = f"Wine red, {WINE_FOLDS} folds of {len(rows):,} rows x {rows.shape[1]}, {time.perf_counter() - began:.0f} s"
    table = Table("model", "test log p [nats]", title=title)
    for name, means in results.items():
        table.add_row(name, _mean(np.array(means), 2))
    for name, value in WINE_PUBLISHED.items():
        table.add_row(f"{name}, published", f"{value:.2f}")
    Console(width=120).print(table)


def conditional(names: list[str], seeds: int) -> None:
    """Mean test log p of the target given the features, in the target's unit, over the fixed splits.

    A target that counts is on a grid, where a density can grow without limit. It is dequantised, and what is comparable
    to a Gaussian of the raw values is the log-probability of its cell: never above zero, and in sum one. The density
    without dequantisation is in the table as a warning.
    """
    title = "Target given features, splits 0-4, against a dropout network"
    table = Table("set", "log p [nats]", "published", "of", "seconds a fit", title=title)
    for name in names:
        data = beside("datasets/uci").load(name)
        kinds = ["cell", "raw density"] if name in COUNTED else ["density"]
        for kind in kinds:
            means, seconds = [], []
            for split, (train, test) in enumerate(data.splits):
                for seed in range(seeds):
                    flow = sf.flows.NSF(
                        (1,),
                        data.features.shape[1:],
                        preprocess=["dequantize", "standardize"] if kind == "cell" else "standardize",
                        seed=seed,
                    )
                    fit = sf.fit(flow, data.target[train], context=data.features[train], seed=seed)
                    measure = log_cell if kind == "cell" else log_prob
                    means.append(measure(fit.density, data.target[test], data.features[test]).mean())
                    seconds.append(fit.seconds)
                    tell(f"{name} ({kind}), split {split}, seed {seed}: {means[-1]:.3f}")
            table.add_row(
                name, _mean(np.array(means), 3), f"{CONDITIONAL_GOALS[name]:.2f}", kind, f"{np.mean(seconds):.0f}"
            )
    Console(width=120).print(table)


def log_prob(density: sf.Density, rows: np.ndarray, context: np.ndarray | None = None) -> np.ndarray:
    """log p of rows, ``[n]``, float64."""
    return density.log_prob(rows, context).double().numpy()


def log_cell(density: sf.Density, rows: np.ndarray, context: np.ndarray) -> np.ndarray:
    r"""Log-probability of the unit cell of a whole number, ``[n]``, exact: the flow is monotone in one dimension.

    .. math:: \log P = \log\big(\Phi(z(b)) - \Phi(z(a))\big)

    In eval mode ``encode`` looks at the centre of the cell, so the ends :math:`a, b` are half a step to either side.
    """
    ends = torch.stack([density.encode(rows + half, context).double()[:, 0] for half in (-0.5, 0.5)])
    low, high = ends.sort(dim=0).values.numpy()
    # On the side where the normal's tail is, for the digits.
    low, high = np.where(low > 0, -high, low), np.where(low > 0, -low, high)
    return log_ndtr(high) + np.log1p(-np.exp(np.minimum(log_ndtr(low) - log_ndtr(high), -1e-12)))


def gaussian(train: np.ndarray, test: np.ndarray) -> np.ndarray:
    """log p of rows under a Gaussian with full covariance, by moments."""
    mean, covariance = (torch.from_numpy(moment) for moment in (train.mean(0), np.cov(train.T)))
    return torch.distributions.MultivariateNormal(mean, covariance).log_prob(torch.from_numpy(test)).numpy()


def draw(truth: object, density: sf.Density, path: Path, cells: int = 200) -> Path:
    """Draw the true density beside the model's, on one scale of colours."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    edges = np.linspace(-truth.extent, truth.extent, cells + 1)
    centres = (edges[:-1] + edges[1:]) / 2
    grid = np.stack(np.meshgrid(centres, centres), axis=-1).reshape(-1, 2)
    known, found = (np.exp(values).reshape(cells, cells) for values in (truth.log_prob(grid), log_prob(density, grid)))
    figure, axes = pyplot.subplots(1, 2, figsize=(8, 4), layout="constrained")
    for ax, values, title in zip(axes, (known, found), (truth.name, "sciflow NSF, unattended"), strict=True):
        ax.pcolormesh(edges, edges, values, vmin=0, vmax=known.max(), rasterized=True)
        ax.set(title=title, aspect="equal", xticks=[], yticks=[])
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)
    pyplot.close(figure)
    return path


def _mean(values: np.ndarray, digits: int) -> str:
    error = f" +- {values.std(ddof=1) / np.sqrt(len(values)):.{digits}f}" if len(values) > 1 else ""
    return f"{values.mean():.{digits}f}{error}"


if __name__ == "__main__":
    main()
