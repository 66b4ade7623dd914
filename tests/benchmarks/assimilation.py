"""Temperature fields from a few stations: do posterior draws cover what was hidden?

    python tests/benchmarks/assimilation.py ERA5.nc      # two minutes

A diffusion model learns hourly 2 m temperature in patches of 16 x 16 cells over four days of each week. Of patches of
another day, with a day between, a few stations are seen, with noise, and the rest is drawn. Beside it, optimal
interpolation: the exact posterior of the Gaussian with the mean and covariance of the same training patches. Hidden
cells are held against the draws: how far their mean is off, how often intervals hold the truth, and the CRPS, which
punishes both.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
import xarray as xr
from rich.console import Console
from rich.table import Table
from torch import Tensor

import sciflow as sf

SIZE, STRIDE = 16, 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("path", type=Path, help="NetCDF file of hourly fields, time x latitude x longitude")
    parser.add_argument("--network", default="mlp", choices=["mlp", "unet"])
    parser.add_argument("--steps", type=int, default=6000, help="of training")
    parser.add_argument("--stations", type=int, default=8)
    parser.add_argument("--noise", type=float, default=0.3, help="of the stations, K")
    parser.add_argument("--patches", type=int, default=48, help="to draw")
    parser.add_argument("--draws", type=int, default=32, help="of each patch")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    generator = torch.Generator().manual_seed(0)

    train, validation, test = patches(arguments.path)
    truth = test[torch.randperm(len(test), generator=generator)[: arguments.patches]]
    places = torch.randperm(SIZE * SIZE, generator=generator)[: arguments.stations]
    hidden = torch.ones(SIZE * SIZE, dtype=torch.bool).index_fill(0, places, False)

    def stations(x: Tensor) -> Tensor:
        return x.flatten(1)[:, places]

    seen = stations(truth)
    seen = seen + arguments.noise * torch.randn(seen.shape, generator=generator)

    network = {"mlp": {"mlp": {"hidden_features": (256, 256, 256)}}, "unet": {"unet": {"channels": 8}}}
    model = sf.diffusion.Diffusion(train.shape[1:], network=network[arguments.network], seed=0)
    some = torch.randperm(len(validation), generator=generator)[:256]
    fit = sf.fit(model, train, validation=validation[some], seed=0, max_steps=arguments.steps, batch_size=64)
    console = Console(width=110)
    console.print(f"{fit}; {len(train):,} training patches, anomalies of {train.std():.2f} K")
    table = Table(title=f"{arguments.stations} stations, noise {arguments.noise:g} K; {hidden.sum()} hidden cells")
    for name in ("", "RMSE of mean, K", "spread, K", "50 % holds", "90 % holds", "CRPS, K", "seconds"):
        table.add_column(name, justify="right" if name else "left")
    shape = (arguments.draws, len(truth))
    for iterations in (1, 3, 5, 10):
        observation = sf.diffusion.Observation(stations, seen, arguments.noise, iterations=iterations)
        start = time.perf_counter()
        drawn = model.sample(shape, seed=0, guidance=observation)
        seconds = time.perf_counter() - start
        table.add_row(f"diffusion, iterations={iterations}", *scores(drawn, truth, hidden), f"{seconds:.1f}")
    table.add_row("optimal interpolation", *scores(interpolated(train, seen, places, arguments), truth, hidden), "")
    start = time.perf_counter()
    drawn = model.sample(shape, seed=0)
    seconds = time.perf_counter() - start
    table.add_row("diffusion, nothing seen", *scores(drawn, truth, hidden), f"{seconds:.1f}")
    console.print(table)


def patches(path: Path) -> tuple[Tensor, Tensor, Tensor]:
    """Training, validation and test patches ``[n, 1, size, size]``: anomalies from the mean of training hours, in K."""
    with xr.open_dataset(path) as dataset:
        fields = torch.from_numpy(next(iter(dataset.data_vars.values())).values.astype(np.float32))
    weekday = torch.arange(len(fields)) // 24 % 7
    fields = fields - fields[weekday < 4].mean(0)
    windows = fields.unfold(1, SIZE, STRIDE).unfold(2, SIZE, STRIDE)
    train, validation, test = (
        windows[days].reshape(-1, 1, SIZE, SIZE) for days in (weekday < 4, weekday == 4, weekday == 5)
    )
    return train, validation, test


def interpolated(train: Tensor, seen: Tensor, places: Tensor, arguments: argparse.Namespace) -> Tensor:
    """Draws from the Gaussian posterior ``[draws, patches, 1, size, size]``."""
    rows = train.flatten(1).double()
    mean, covariance = rows.mean(0), rows.T.cov()
    noise = arguments.noise**2 * torch.eye(len(places)).double()
    gain = torch.linalg.solve(covariance[places][:, places] + noise, covariance[places]).T
    posterior = covariance - gain @ covariance[places]
    factor = torch.linalg.cholesky(posterior + 1e-6 * torch.eye(len(mean)))
    z = torch.randn(arguments.draws, len(seen), len(mean), generator=torch.Generator().manual_seed(1)).double()
    draws = mean + (seen.double() - mean[places]) @ gain.T + z @ factor.T
    return draws.float().reshape(*z.shape[:2], 1, SIZE, SIZE)


def scores(drawn: Tensor, truth: Tensor, hidden: Tensor) -> list[str]:
    """Root mean square error, spread, coverage and CRPS of draws ``[draws, patches, 1, size, size]``."""
    drawn, truth = drawn.flatten(2)[..., hidden], truth.flatten(1)[..., hidden]
    num_draws = len(drawn)
    rmse = (drawn.mean(0) - truth).square().mean().sqrt()
    ranks = (drawn < truth).sum(0)  # uniform on 0..num_draws, where all is well
    holds = [share_within(ranks, num_draws, level) for level in (0.5, 0.9)]
    ordered = drawn.sort(0).values
    weights = (2 * torch.arange(1, num_draws + 1) - num_draws - 1).reshape(-1, 1, 1)
    between = 2 * (weights * ordered).sum(0) / (num_draws * (num_draws - 1))
    crps = (drawn - truth).abs().mean(0) - between / 2
    return [f"{rmse:.2f}", f"{drawn.std(0).square().mean().sqrt():.2f}", *holds, f"{crps.mean():.3f}"]


def share_within(ranks: Tensor, num_draws: int, level: float) -> str:
    """How often the truth lies in the central interval, held against how often ranks at random do."""
    edge = (num_draws + 1) * (1 - level) / 2
    inside = ((ranks >= edge) & (ranks <= num_draws - edge)).float().mean()
    expected = sum(edge <= rank <= num_draws - edge for rank in range(num_draws + 1)) / (num_draws + 1)
    return f"{100 * inside:.0f} (of {100 * expected:.0f}) %"


if __name__ == "__main__":
    main()
