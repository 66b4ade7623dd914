"""The same model of daily temperatures in NumPyro, day by day, and long chains of its NUTS: the reference."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import torch
from inference_temperatures_model import LEVEL, NUM_HARMONICS, NUM_SEASONS, PRIOR_STD, SKIPPED, YEAR, Model, Series
from numpyro.infer import MCMC, NUTS
from torch import Tensor

numpyro.enable_x64()


def chains(
    model: Model, series: Series, num_draws: int, num_chains: int, seed: int
) -> tuple[dict[str, Tensor], float, tuple[float, float]]:
    """Draws by name, ``[chains * draws, *shape]``; the largest R-hat; least effective draws, for means and deviations.

    Draws that go to and fro know means better than as many independent ones would, and deviations worse.
    """
    value, design = jnp.asarray(series.value), jnp.asarray(series.design)
    angle = 2 * np.pi * (5 * np.arange(NUM_SEASONS) + 2.5) / YEAR
    waves = np.stack([f(k * angle) for k in range(1, NUM_HARMONICS + 1) for f in (np.cos, np.sin)], 1)
    waves = jnp.asarray(waves[series.season])

    def days() -> None:
        centre = jnp.array([LEVEL, 0, 0, 0, 0, 0])
        beta = numpyro.sample("beta", dist.Normal(centre, jnp.array(PRIOR_STD)).to_event(1))
        partial = numpyro.sample("phi", dist.Uniform(-1, 1).expand([model.order]).to_event(1))
        log_std = jnp.log(numpyro.sample("sigma", dist.HalfNormal(5.0)))
        if model.seasonal:
            shape = dist.Normal(0, 0.3).expand([2 * NUM_HARMONICS]).to_event(1)
            log_std = log_std + waves @ numpyro.sample("season", shape)
        lags = []
        for last in partial:
            lags = [own - last * other for own, other in zip(lags, reversed(lags), strict=True)] + [last]
        rest = value - design @ beta
        mean = sum(lag * rest[SKIPPED - k : len(rest) - k] for k, lag in enumerate(lags, 1))
        std = jnp.broadcast_to(jnp.exp(log_std), rest.shape)
        numpyro.sample("rest", dist.Normal(mean, std[SKIPPED:]).to_event(1), obs=rest[SKIPPED:])

    # Where least squares would begin: from random places, the first hundred steps would all be of the deepest trees.
    start = {"beta": jnp.asarray(np.linalg.lstsq(series.design, series.value, rcond=None)[0])}
    kernel = NUTS(days, init_strategy=numpyro.infer.init_to_value(values=start), dense_mass=True)
    sampler = MCMC(
        kernel,
        num_warmup=500,
        num_samples=num_draws,
        num_chains=num_chains,
        chain_method="sequential",
        progress_bar=False,
    )
    sampler.run(jax.random.PRNGKey(seed))
    by_chain = {name: np.array(values) for name, values in sampler.get_samples(group_by_chain=True).items()}
    squares = {name: (values - values.mean((0, 1))) ** 2 for name, values in by_chain.items()}
    measured = numpyro.diagnostics.effective_sample_size
    worst = max(float(np.max(numpyro.diagnostics.split_gelman_rubin(values))) for values in by_chain.values())
    of_means, of_squares = (min(float(np.min(measured(v))) for v in of.values()) for of in (by_chain, squares))
    draws = {name: torch.from_numpy(np.array(values)) for name, values in sampler.get_samples().items()}
    if model.order == 1:
        draws["phi"] = draws["phi"][:, 0]
    return draws, worst, (of_means, of_squares)
