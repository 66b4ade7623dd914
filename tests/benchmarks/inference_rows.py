"""A posterior given many rows, beside NumPyro's by batches: ``python tests/benchmarks/inference.py rows``.

Logistic regression on rows made here, of which there are as many as ``--sizes`` says. The truth is a fit that sees all
rows at every step (Newton's mode and curvature, importance-weighted by all rows: with so many rows next to exact).
Columns: seconds, largest error of a mean in standard deviations of the posterior, largest error of a standard
deviation, and what each says of itself.
"""

from __future__ import annotations

import argparse
import math
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import xarray as xr
from torch import Tensor

import sciflow as sf

FEATURES, STEPS, BATCH = 8, 4000, 512


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=float, nargs="*", default=[1e4, 1e5, 1e6])
    parser.add_argument("--family", default="gaussian", help="ours; NumPyro's is AutoMultivariateNormal")
    given = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{'rows':>9}  {'':24}{'s':>7}{'mean':>8}{'sd %':>7}")
    for size in given.sizes:
        compare(int(size), given.family)


def compare(size: int, family: str) -> None:
    """Print one line for each of the two."""
    rows = made(size)
    mean, std = truth(rows)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.zarr"
        data = xr.Dataset({"v": (("row", "column"), rows.float().numpy())})
        sf.shard(data, path, event=["column"], sample=["row"], progress=False)
        began = time.perf_counter()
        fit = sf.inference.fit_posterior(
            log_prior,
            parameters={"beta": {"real": FEATURES}},
            rows=path,
            log_likelihood=log_likelihood,
            family=family,
            progress=False,
        )
        seconds = time.perf_counter() - began
    show(size, "sciflow, from a store", seconds, fit.resample(20_000)["beta"], mean, std, repr(fit))
    began = time.perf_counter()
    draws, elbo = by_numpyro(rows)
    seconds = time.perf_counter() - began
    show(size, "NumPyro, in memory", seconds, draws, mean, std, f"ELBO {elbo:.1f} by its batches")


def made(size: int) -> Tensor:
    """Features and labels, ``[size, FEATURES + 1]``."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(size, FEATURES, generator=generator, dtype=torch.float64)
    logits = x @ torch.linspace(-1, 1, FEATURES, dtype=torch.float64)
    label = torch.rand(size, generator=generator, dtype=torch.float64) < torch.sigmoid(logits)
    # As they are stored.
    return torch.cat([x, label[:, None]], 1).float().double()


def log_prior(beta: Tensor) -> Tensor:
    """Of unit variance, unnormalised."""
    return -0.5 * beta.square().sum(-1)


def log_likelihood(rows: Tensor, beta: Tensor) -> Tensor:
    """Of the label, given the features, ``[m]``."""
    logits = rows[:, :-1] @ beta
    return rows[:, -1] * logits - torch.nn.functional.softplus(logits)


def truth(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of every coefficient, by importance from the Gaussian at the mode."""
    beta = torch.zeros(FEATURES, dtype=torch.float64)
    x, label = rows[:, :-1], rows[:, -1]
    for _ in range(30):
        chance = torch.sigmoid(x @ beta)
        slope = x.T @ (label - chance) - beta
        precision = (x * (chance * (1 - chance))[:, None]).T @ x + torch.eye(FEATURES).double()
        beta = beta + torch.linalg.solve(precision, slope)
    root = torch.linalg.cholesky(torch.linalg.inv(precision))
    noise = torch.randn(4000, FEATURES, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    noise = torch.cat([noise, -noise])
    draws = beta + noise @ root.T
    parts = (torch.func.vmap(lambda b, part=part: log_likelihood(part, b).sum())(draws) for part in rows.split(4096))
    weights = torch.softmax(sum(parts) + log_prior(draws) + 0.5 * noise.square().sum(-1), 0)  # type: ignore[arg-type]
    mean = weights @ draws
    return mean, (weights @ (draws - mean).square()).sqrt()


def by_numpyro(rows: Tensor) -> tuple[Tensor, float]:
    """Draws of a Gaussian of full rank, fitted by batches, and its evidence bound."""
    import jax
    import numpyro
    from numpyro import distributions, infer

    jax.config.update("jax_enable_x64", True)
    x, label = jax.numpy.asarray(rows[:, :-1].numpy()), jax.numpy.asarray(rows[:, -1].numpy())

    def model() -> None:
        beta = numpyro.sample("beta", distributions.Normal(0.0, 1.0).expand([FEATURES]).to_event(1))
        with numpyro.plate("rows", len(x), subsample_size=BATCH) as chosen:
            numpyro.sample("label", distributions.Bernoulli(logits=x[chosen] @ beta), obs=label[chosen])

    guide = infer.autoguide.AutoMultivariateNormal(model, init_scale=1 / math.sqrt(len(x)))
    optimizer = numpyro.optim.Adam(lambda step: 1e-2 * 0.5 * (1 + jax.numpy.cos(math.pi * step / STEPS)))
    result = infer.SVI(model, guide, optimizer, infer.Trace_ELBO()).run(
        jax.random.PRNGKey(0), STEPS, progress_bar=False
    )
    draws = guide.sample_posterior(jax.random.PRNGKey(1), result.params, sample_shape=(20_000,))["beta"]
    return torch.from_numpy(np.array(draws)), -float(np.mean(np.array(result.losses[-200:])))


def show(size: int, who: str, seconds: float, draws: Tensor, mean: Tensor, std: Tensor, said: str) -> None:
    """Print a line."""
    off = ((draws.double().mean(0) - mean) / std).abs().max()
    wide = (draws.double().std(0) / std - 1).abs().max()
    print(f"{size:9,}  {who:24}{seconds:7.1f}{float(off):8.3f}{100 * float(wide):7.1f}  {said}", flush=True)


if __name__ == "__main__":
    main()
