"""The twelve posteriors in NumPyro, fitted by its own flow guides: the peer that inference is measured against.

    fit = numpyro_fit("eight_schools-eight_schools_noncentered", guide="AutoBNAFNormal", steps=5_000)

NumPyro runs in float64, which the Gaussian process needs; steps whose loss is not finite are left out, as its
``stable_update`` does. Only the data on file are shared with our own side.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from inference_posteriors import SHARED, data
from jax import lax
from numpyro.distributions import constraints
from numpyro.infer import SVI, Trace_ELBO, autoguide
from numpyro.infer.util import constrain_fn, potential_energy

numpyro.enable_x64()

GUIDES = ("AutoBNAFNormal", "AutoIAFNormal")
Model = Callable[[], None]


@dataclass(frozen=True)
class PeerFit:
    """What NumPyro found, and what it took."""

    draws: dict[str, np.ndarray]  # constrained, [n, *shape], by the names of the model's sites
    log_weights: np.ndarray  # [n]: log p - log q of the draws, on the unconstrained scale
    elbo: float  # their mean, nats
    elbo_error: float  # its standard error
    seconds_to_compile: float
    seconds: float  # of the steps alone
    losses: np.ndarray  # [steps]
    k_hat: float | None


def numpyro_fit(
    name: str,
    guide: str = "AutoBNAFNormal",
    steps: int = 5_000,
    *,
    seed: int = 0,
    learning_rate: float = 1e-2,
    num_particles: int = 1,
    num_draws: int = 10_000,
    k_hat: Callable[[np.ndarray], float] | None = None,
    folder: Path = SHARED,
    **options: Any,
) -> PeerFit:
    """Fit one posterior by Adam with cosine decay.

    Args:
        name: One of ``MODELS``.
        guide: One of ``GUIDES``.
        steps: Of the optimiser.
        seed: Of everything.
        learning_rate: The first one.
        num_particles: Draws of the guide a step.
        num_draws: From the fitted guide.
        k_hat: Takes the log weights and returns PSIS k-hat.
        folder: Of the data.
        options: For the guide, such as ``num_flows``.
    """
    model = MODELS[name](data(folder, name))
    fitted = getattr(autoguide, guide)(model, **options)

    def rate(step: Any) -> Any:
        return learning_rate * 0.5 * (1 + jnp.cos(jnp.pi * jnp.minimum(step / steps, 1.0)))

    svi = SVI(model, fitted, numpyro.optim.Adam(rate), Trace_ELBO(num_particles))
    began = time.perf_counter()
    state = svi.init(jax.random.PRNGKey(seed))
    run = jax.jit(lambda state: lax.scan(lambda s, _: svi.stable_update(s), state, None, length=steps))
    compiled = run.lower(state).compile()
    seconds_to_compile = time.perf_counter() - began
    began = time.perf_counter()
    state, losses = jax.block_until_ready(compiled(state))
    seconds = time.perf_counter() - began
    free, log_q = draw(fitted, svi.get_params(state), jax.random.PRNGKey(seed + 1), num_draws)
    parts = jax.vmap(fitted._unpack_latent)(free)
    log_p = jax.jit(jax.vmap(lambda u: -potential_energy(model, (), {}, u)))(parts)
    values = jax.jit(jax.vmap(lambda u: constrain_fn(model, (), {}, u, return_deterministic=True)))(parts)
    log_weights = np.asarray(log_p - log_q)
    return PeerFit(
        draws={key: np.asarray(value) for key, value in values.items()},
        log_weights=log_weights,
        elbo=float(log_weights.mean()),
        elbo_error=float(log_weights.std() / math.sqrt(num_draws)),
        seconds_to_compile=seconds_to_compile,
        seconds=seconds,
        losses=np.asarray(losses),
        k_hat=None if k_hat is None else float(k_hat(log_weights)),
    )


def draw(guide: Any, parameters: dict, key: Any, n: int) -> tuple[Any, Any]:
    """Unconstrained draws of a guide and their log q, which need no inverse of its flow."""
    posterior = guide.get_posterior(parameters)
    free = posterior.base_dist.sample(key, (n,))
    log_q = posterior.base_dist.log_prob(free)
    for transform in posterior.transforms:
        image, intermediates = transform.call_with_intermediates(free)
        log_q = log_q - transform.log_abs_det_jacobian(free, image, intermediates)
        free = image
    return free, log_q


def flat(name: str, size: int) -> Any:
    return numpyro.sample(name, dist.ImproperUniform(constraints.real_vector, (), (size,)))


def flat_positive(name: str) -> Any:
    return numpyro.sample(name, dist.ImproperUniform(constraints.positive, (), ()))


def regression(columns: list[np.ndarray], y: np.ndarray, sigma: dist.Distribution | None = None) -> Model:
    design = np.column_stack(columns)

    def model() -> None:
        beta = flat("beta", design.shape[1])
        scale = flat_positive("sigma") if sigma is None else numpyro.sample("sigma", sigma)
        numpyro.sample("y", dist.Normal(design @ beta, scale), obs=y)

    return model


def autoregression(given: dict) -> Model:
    order, y = given["K"], given["y"]
    past = np.column_stack([y[order - lag : len(y) - lag] for lag in range(1, order + 1)])

    def model() -> None:
        alpha = numpyro.sample("alpha", dist.Normal(0, 10))
        beta = numpyro.sample("beta", dist.Normal(0, 10).expand([order]).to_event(1))
        sigma = numpyro.sample("sigma", dist.HalfCauchy(2.5))
        numpyro.sample("y", dist.Normal(alpha + past @ beta, sigma), obs=y[order:])

    return model


def moving_average(given: dict) -> Model:
    y = jnp.asarray(given["y"])

    def model() -> None:
        mu = numpyro.sample("mu", dist.Normal(0, 10))
        phi = numpyro.sample("phi", dist.Normal(0, 2))
        theta = numpyro.sample("theta", dist.Normal(0, 2))
        sigma = numpyro.sample("sigma", dist.HalfCauchy(2.5))

        def step(error: Any, pair: Any) -> tuple[Any, Any]:
            error = pair[1] - (mu + phi * pair[0] + theta * error)
            return error, error

        first = y[0] - (mu + phi * mu)
        _, rest = lax.scan(step, first, (y[:-1], y[1:]))
        numpyro.sample("errors", dist.Normal(0, sigma), obs=jnp.concatenate([first[None], rest]))

    return model


def garch(given: dict) -> Model:
    y = jnp.asarray(given["y"])

    def model() -> None:
        mu = numpyro.sample("mu", dist.ImproperUniform(constraints.real, (), ()))
        alpha0 = flat_positive("alpha0")
        weights = numpyro.sample("weights", dist.ImproperUniform(constraints.simplex, (), (3,)))
        numpyro.deterministic("alpha1", weights[0])
        numpyro.deterministic("beta1", weights[1])

        def step(variance: Any, before: Any) -> tuple[Any, Any]:
            variance = alpha0 + weights[0] * (before - mu) ** 2 + weights[1] * variance
            return variance, variance

        first = jnp.asarray(given["sigma1"] ** 2)
        _, rest = lax.scan(step, first, y[:-1])
        numpyro.sample("y", dist.Normal(mu, jnp.sqrt(jnp.concatenate([first[None], rest]))), obs=y)

    return model


def eight_schools(given: dict) -> Model:
    def model() -> None:
        mu = numpyro.sample("mu", dist.Normal(0, 5))
        tau = numpyro.sample("tau", dist.HalfCauchy(5))
        theta_trans = numpyro.sample("theta_trans", dist.Normal(0, 1).expand([given["J"]]).to_event(1))
        theta = numpyro.deterministic("theta", mu + tau * theta_trans)
        numpyro.sample("y", dist.Normal(theta, given["sigma"]), obs=given["y"])

    return model


def gaussian_process(given: dict) -> Model:
    x, counts = given["x"], given["k"].astype(int)
    squares = (x[:, None] - x) ** 2

    def model() -> None:
        rho = numpyro.sample("rho", dist.Gamma(25, 4))
        alpha = numpyro.sample("alpha", dist.HalfNormal(2))
        f_tilde = numpyro.sample("f_tilde", dist.Normal(0, 1).expand([len(x)]).to_event(1))
        covariance = alpha**2 * jnp.exp(-0.5 * squares / rho**2) + 1e-10 * jnp.eye(len(x))
        f = numpyro.deterministic("f", jnp.linalg.cholesky(covariance) @ f_tilde)
        numpyro.sample("k", dist.Poisson(jnp.exp(f)), obs=counts)

    return model


def mixture(given: dict) -> Model:
    def model() -> None:
        mu = numpyro.sample("mu", dist.ImproperUniform(constraints.ordered_vector, (), (2,)))
        numpyro.factor("prior", dist.Normal(0, 2).log_prob(mu).sum())
        sigma = numpyro.sample("sigma", dist.HalfNormal(2).expand([2]).to_event(1))
        theta = numpyro.sample("theta", dist.Beta(5, 5))
        parts = dist.Normal(mu, sigma).log_prob(given["y"][:, None]) + jnp.log(jnp.stack([theta, 1 - theta]))
        numpyro.factor("likelihood", jax.nn.logsumexp(parts, -1).sum())

    return model


def kidscore(given: dict) -> Model:
    return regression([np.ones(given["N"]), given["mom_iq"]], given["kid_score"], dist.HalfCauchy(2.5))


def kilpisjarvi(given: dict) -> Model:
    def model() -> None:
        alpha = numpyro.sample("alpha", dist.Normal(given["pmualpha"], given["psalpha"]))
        beta = numpyro.sample("beta", dist.Normal(given["pmubeta"], given["psbeta"]))
        sigma = flat_positive("sigma")
        numpyro.sample("y", dist.Normal(alpha + beta * given["x"], sigma), obs=given["y"])

    return model


def mesquite(given: dict) -> Model:
    sizes = [np.log(given[key]) for key in ("diam1", "diam2", "canopy_height", "total_height", "density")]
    return regression([np.ones(given["N"]), *sizes, given["group"]], np.log(given["weight"]))


def earnings(given: dict) -> Model:
    height, male = given["height"], given["male"]
    return regression([np.ones(given["N"]), height, male, height * male], np.log(given["earn"]))


def election(given: dict) -> Model:
    ages = [given["age_discrete"] == group for group in (2, 3, 4)]
    others = [given[key] for key in ("educ1", "gender", "income")]
    columns = [np.ones(given["N"]), given["real_ideo"], given["race_adj"], *ages, *others]
    return regression(columns, given["partyid7"])


def bayesian_regression(given: dict) -> Model:
    def model() -> None:
        beta = numpyro.sample("beta", dist.Normal(0, 10).expand([given["D"]]).to_event(1))
        sigma = numpyro.sample("sigma", dist.HalfNormal(10))
        numpyro.sample("y", dist.Normal(given["X"] @ beta, sigma), obs=given["y"])

    return model


MODELS: dict[str, Callable[[dict], Model]] = {
    "arK-arK": autoregression,
    "arma-arma11": moving_average,
    "earnings-logearn_interaction": earnings,
    "eight_schools-eight_schools_noncentered": eight_schools,
    "garch-garch11": garch,
    "gp_pois_regr-gp_pois_regr": gaussian_process,
    "kidiq-kidscore_momiq": kidscore,
    "kilpisjarvi_mod-kilpisjarvi": kilpisjarvi,
    "low_dim_gauss_mix-low_dim_gauss_mix": mixture,
    "mesquite-logmesquite": mesquite,
    "nes1972-nes": election,
    "sblri-blr": bayesian_regression,
}
