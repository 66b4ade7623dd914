"""Twelve posteriors of posteriordb as densities of named, constrained parameters, and their reference draws.

    posterior = posteriors(folder)["eight_schools-eight_schools_noncentered"]
    posterior.log_density(mu=..., tau=..., theta_trans=...)     # [*batch, *shape] each -> [*batch]

A density is the joint one of data and parameters on the constrained scale, no constant left out, with the priors of the
README beside the data; a prior that is "flat" is 1, and ordered numbers have that of numbers in any order.
"""

from __future__ import annotations

import itertools
import json
import math
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sciflow.inference import Parameters, interval, ordered, positive, real, simplex

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
Values = Mapping[str, Tensor]


def _same(values: Values) -> dict[str, Tensor]:
    return dict(values)


@dataclass(frozen=True)
class Posterior:
    """A density of named parameters whose true draws are on file."""

    parameters: Parameters
    log_density: Callable[..., Tensor]  # values by name, [*batch, *shape] each -> [*batch], nats
    derived: Callable[[Values], dict[str, Tensor]] = _same  # from parameters to what the reference draws are of
    underlying: Callable[[Values], dict[str, Tensor]] = _same  # and back


def posteriors(folder: Path = SHARED) -> dict[str, Posterior]:
    """All twelve by name."""
    return {name: make(data(folder, name)) for name, make in MODELS.items()}


@cache
def data(folder: Path, name: str) -> dict:
    """What was observed: numbers and float64 arrays by name."""
    descriptor = json.loads((folder / "posteriordb" / "posteriors" / f"{name}.json").read_text())
    found = _zipped(folder / "posteriordb" / "data" / f"{descriptor['data_name']}.json.zip")
    return {key: np.array(value, np.float64) if isinstance(value, list) else value for key, value in found.items()}


@cache
def reference_draws(folder: Path, name: str) -> dict[str, Tensor]:
    """True draws by name, ``[chains, draws, *shape]`` in float64; a chain's draws are all but independent."""
    chains = _zipped(folder / "posteriordb" / "reference_draws" / f"{name}.json.zip")
    columns = {label: np.array([chain[label] for chain in chains]) for label in chains[0]}
    names = list(dict.fromkeys(label.partition("[")[0] for label in columns))
    return {
        name: torch.from_numpy(
            columns[name]
            if name in columns
            else np.stack([column for label, column in columns.items() if label.startswith(f"{name}[")], -1)
        )
        for name in names
    }


def _zipped(path: Path) -> dict:
    with zipfile.ZipFile(path) as archive:
        return json.loads(archive.read(archive.namelist()[0]))


def normal(x: Tensor, mean: Tensor | float, scale: Tensor | float) -> Tensor:
    """Log density of N(mean, scale^2), elementwise."""
    log_scale = scale.log() if isinstance(scale, Tensor) else math.log(scale)
    return -0.5 * ((x - mean) / scale) ** 2 - log_scale - 0.5 * math.log(2 * math.pi)


def half_normal(x: Tensor, scale: float) -> Tensor:
    """Log density of a normal's positive half, elementwise."""
    return normal(x, 0.0, scale) + math.log(2)


def half_cauchy(x: Tensor, scale: float) -> Tensor:
    """Log density of a Cauchy's positive half, elementwise."""
    return math.log(2 / (math.pi * scale)) - torch.log1p((x / scale) ** 2)


def regression(
    columns: list[np.ndarray], y: np.ndarray, prior: Callable[[Tensor, Tensor], Tensor] | None = None
) -> Posterior:
    """Linear regression y ~ N(X beta, sigma); ``prior`` is of beta and sigma, flat where there is none."""
    design, response = torch.from_numpy(np.column_stack(columns)), torch.from_numpy(y)

    def log_density(*, beta: Tensor, sigma: Tensor) -> Tensor:
        likelihood = normal(response.to(beta), beta @ design.to(beta).T, sigma[..., None]).sum(-1)
        return likelihood if prior is None else likelihood + prior(beta, sigma)

    return Posterior(Parameters({"beta": real(design.shape[1]), "sigma": positive}), log_density)


def autoregression(given: dict) -> Posterior:
    """AR(5): alpha, beta ~ N(0, 10), sigma ~ HalfCauchy(2.5)."""
    order, y = given["K"], torch.from_numpy(given["y"])
    past = torch.stack([y[order - lag : len(y) - lag] for lag in range(1, order + 1)])

    def log_density(*, alpha: Tensor, beta: Tensor, sigma: Tensor) -> Tensor:
        mean = alpha[..., None] + beta @ past.to(beta)
        likelihood = normal(y[order:].to(beta), mean, sigma[..., None]).sum(-1)
        return likelihood + normal(alpha, 0.0, 10.0) + normal(beta, 0.0, 10.0).sum(-1) + half_cauchy(sigma, 2.5)

    return Posterior(Parameters({"alpha": real, "beta": real(order), "sigma": positive}), log_density)


def moving_average(given: dict) -> Posterior:
    """ARMA(1, 1): mu ~ N(0, 10), phi, theta ~ N(0, 2), sigma ~ HalfCauchy(2.5)."""
    y = given["y"].tolist()

    def log_density(*, mu: Tensor, phi: Tensor, theta: Tensor, sigma: Tensor) -> Tensor:
        errors = [y[0] - (mu + phi * mu)]
        for before, now in itertools.pairwise(y):
            errors.append(now - (mu + phi * before + theta * errors[-1]))
        likelihood = normal(torch.stack(errors, -1), 0.0, sigma[..., None]).sum(-1)
        priors = normal(mu, 0.0, 10.0) + normal(phi, 0.0, 2.0) + normal(theta, 0.0, 2.0)
        return likelihood + priors + half_cauchy(sigma, 2.5)

    return Posterior(Parameters({"mu": real, "phi": real, "theta": real, "sigma": positive}), log_density)


def garch(given: dict) -> Posterior:
    """GARCH(1, 1), flat: alpha1 in (0, 1) and beta1 in (0, 1 - alpha1) are the first two of a simplex of three."""
    y, first = given["y"].tolist(), given["sigma1"] ** 2

    def log_density(*, mu: Tensor, alpha0: Tensor, weights: Tensor) -> Tensor:
        variances = [torch.full_like(mu, first)]
        for before in y[:-1]:
            variances.append(alpha0 + weights[..., 0] * (before - mu) ** 2 + weights[..., 1] * variances[-1])
        observed = torch.tensor(y, dtype=mu.dtype, device=mu.device)
        return normal(observed, mu[..., None], torch.stack(variances, -1).sqrt()).sum(-1)

    def derived(values: Values) -> dict[str, Tensor]:
        alpha1, beta1, _ = values["weights"].unbind(-1)
        return {"mu": values["mu"], "alpha0": values["alpha0"], "alpha1": alpha1, "beta1": beta1}

    def underlying(values: Values) -> dict[str, Tensor]:
        alpha1, beta1 = values["alpha1"], values["beta1"]
        weights = torch.stack([alpha1, beta1, 1 - alpha1 - beta1], -1)
        return {"mu": values["mu"], "alpha0": values["alpha0"], "weights": weights}

    parameters = Parameters({"mu": real, "alpha0": positive, "weights": simplex(3)})
    return Posterior(parameters, log_density, derived, underlying)


def eight_schools(given: dict) -> Posterior:
    """mu ~ N(0, 5), tau ~ HalfCauchy(5), theta = mu + tau theta_trans, theta_trans ~ N(0, 1), y ~ N(theta, sigma)."""
    y, sigma = torch.from_numpy(given["y"]), torch.from_numpy(given["sigma"])

    def log_density(*, mu: Tensor, tau: Tensor, theta_trans: Tensor) -> Tensor:
        theta = mu[..., None] + tau[..., None] * theta_trans
        likelihood = normal(y.to(theta), theta, sigma.to(theta)).sum(-1)
        return likelihood + normal(theta_trans, 0.0, 1.0).sum(-1) + normal(mu, 0.0, 5.0) + half_cauchy(tau, 5.0)

    def derived(values: Values) -> dict[str, Tensor]:
        mu, tau = values["mu"], values["tau"]
        return {"theta": mu[..., None] + tau[..., None] * values["theta_trans"], "mu": mu, "tau": tau}

    def underlying(values: Values) -> dict[str, Tensor]:
        mu, tau = values["mu"], values["tau"]
        return {"mu": mu, "tau": tau, "theta_trans": (values["theta"] - mu[..., None]) / tau[..., None]}

    parameters = Parameters({"mu": real, "tau": positive, "theta_trans": real(len(y))})
    return Posterior(parameters, log_density, derived, underlying)


def gaussian_process(given: dict) -> Posterior:
    """rho ~ Gamma(25, 4), alpha ~ HalfNormal(2), f = L f_tilde, f_tilde ~ N(0, 1), k ~ Poisson(exp f)."""
    x, counts = torch.from_numpy(given["x"]), torch.from_numpy(given["k"])
    squares = (x[:, None] - x) ** 2

    def factor(rho: Tensor, alpha: Tensor) -> Tensor:
        """L of alpha^2 exp(-(x - x')^2 / 2 rho^2) + 1e-10, in float64, which alone can hold it."""
        rho, alpha = rho.double()[..., None, None], alpha.double()[..., None, None]
        # Below 0.01 the matrix is diagonal anyway; above 30, the 1e-10 would be lost in the rounding errors.
        correlation = torch.exp(-0.5 * squares / rho.clamp_min(0.01) ** 2)
        jitter = 1e-10 / alpha.clamp(1e-5, 30.0) ** 2
        return alpha * torch.linalg.cholesky(correlation + jitter * torch.eye(len(x), dtype=torch.float64))

    def latent(values: Values) -> Tensor:
        f_tilde = values["f_tilde"]
        return (factor(values["rho"], values["alpha"]) @ f_tilde.double()[..., None])[..., 0].to(f_tilde)

    def log_density(*, rho: Tensor, alpha: Tensor, f_tilde: Tensor) -> Tensor:
        f = latent({"rho": rho, "alpha": alpha, "f_tilde": f_tilde})
        likelihood = (counts.to(f) * f - f.exp() - (counts.to(f) + 1).lgamma()).sum(-1)
        of_rho = 25 * math.log(4) - math.lgamma(25) + 24 * rho.log() - 4 * rho
        return likelihood + of_rho + half_normal(alpha, 2.0) + normal(f_tilde, 0.0, 1.0).sum(-1)

    def derived(values: Values) -> dict[str, Tensor]:
        return {"rho": values["rho"], "alpha": values["alpha"], "f": latent(values)}

    def underlying(values: Values) -> dict[str, Tensor]:
        f = values["f"].double()[..., None]
        f_tilde = torch.linalg.solve_triangular(factor(values["rho"], values["alpha"]), f, upper=False)[..., 0]
        return {"rho": values["rho"], "alpha": values["alpha"], "f_tilde": f_tilde.to(values["f"])}

    parameters = Parameters({"rho": positive, "alpha": positive, "f_tilde": real(len(x))})
    return Posterior(parameters, log_density, derived, underlying)


def mixture(given: dict) -> Posterior:
    """Two Gaussians: mu ~ N(0, 2) in order, sigma ~ HalfNormal(2), theta ~ Beta(5, 5)."""
    y = torch.from_numpy(given["y"])

    def log_density(*, mu: Tensor, sigma: Tensor, theta: Tensor) -> Tensor:
        shares = torch.stack([theta, 1 - theta], -1).log()
        parts = shares[..., None] + normal(y.to(mu), mu[..., None], sigma[..., None])
        priors = normal(mu, 0.0, 2.0).sum(-1) + half_normal(sigma, 2.0).sum(-1)
        of_theta = 4 * shares.sum(-1) + math.lgamma(10) - 2 * math.lgamma(5)
        return parts.logsumexp(-2).sum(-1) + priors + of_theta

    parameters = Parameters({"mu": ordered(2), "sigma": positive(2), "theta": interval(0, 1)})
    return Posterior(parameters, log_density)


def kidscore(given: dict) -> Posterior:
    """Flat beta, sigma ~ HalfCauchy(2.5)."""
    columns = [np.ones(given["N"]), given["mom_iq"]]
    return regression(columns, given["kid_score"], lambda beta, sigma: half_cauchy(sigma, 2.5))


def kilpisjarvi(given: dict) -> Posterior:
    """A line through temperatures, normal priors of the data's own, sigma flat."""
    x, y = torch.from_numpy(given["x"]), torch.from_numpy(given["y"])

    def log_density(*, alpha: Tensor, beta: Tensor, sigma: Tensor) -> Tensor:
        mean = alpha[..., None] + beta[..., None] * x.to(beta)
        priors = normal(alpha, given["pmualpha"], given["psalpha"]) + normal(beta, given["pmubeta"], given["psbeta"])
        return normal(y.to(beta), mean, sigma[..., None]).sum(-1) + priors

    return Posterior(Parameters({"alpha": real, "beta": real, "sigma": positive}), log_density)


def mesquite(given: dict) -> Posterior:
    """Logarithms of weights by those of five sizes, flat."""
    sizes = [np.log(given[key]) for key in ("diam1", "diam2", "canopy_height", "total_height", "density")]
    return regression([np.ones(given["N"]), *sizes, given["group"]], np.log(given["weight"]))


def earnings(given: dict) -> Posterior:
    """Logarithms of earnings by height, sex and both, flat."""
    height, male = given["height"], given["male"]
    return regression([np.ones(given["N"]), height, male, height * male], np.log(given["earn"]))


def election(given: dict) -> Posterior:
    """Party identification by ideology, race, age, education, gender and income, flat."""
    ages = [given["age_discrete"] == group for group in (2, 3, 4)]
    others = [given[key] for key in ("educ1", "gender", "income")]
    return regression([np.ones(given["N"]), given["real_ideo"], given["race_adj"], *ages, *others], given["partyid7"])


def bayesian_regression(given: dict) -> Posterior:
    """beta ~ N(0, 10), sigma ~ HalfNormal(10)."""
    columns = list(given["X"].T)
    return regression(columns, given["y"], lambda b, s: normal(b, 0.0, 10.0).sum(-1) + half_normal(s, 10.0))


MODELS: dict[str, Callable[[dict], Posterior]] = {
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
