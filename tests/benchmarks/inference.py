"""Inference against truth, one command each; DATA is a folder of real data (see ``--help``).

    python tests/benchmarks/inference.py log_z DATA           # six densities whose normalising constant is known
    python tests/benchmarks/inference.py posteriors DATA      # twelve posteriors of posteriordb; --peer for NumPyro
    python tests/benchmarks/inference.py sampler DATA         # the same densities as log_z, by a diffusion sampler
    python tests/benchmarks/inference.py c2st DATA            # amortised posteriors of five simulators
    python tests/benchmarks/inference.py calibration          # which diagnostic catches which wrong posterior
    python tests/benchmarks/inference.py temperatures DATA    # daily temperatures: the posterior, and forecasts
    python tests/benchmarks/inference.py era5 DATA            # fields of temperature from a few of their cells
    python tests/benchmarks/inference.py rows                 # given 10^4 to 10^6 rows of a store, beside NumPyro

What stands behind the data is handed to the command's own file, where there is one.
"""

from __future__ import annotations

import argparse
import runpy
import sys
import time
from pathlib import Path

import torch
from inference_posteriors import Posterior, posteriors, reference_draws
from inference_targets import SHARED, targets

import sciflow as sf
from sciflow.inference.psis import pareto_smoothed

LOG_Z = ["funnel-10", "many-well-32", "gmm-40", "brownian-32", "sonar-61", "german-credit-25"]
ELSEWHERE = {
    "sampler": "inference_sampler.py",
    "c2st": "inference_c2st.py",
    "calibration": "inference_calibration.py",
    "rows": "inference_rows.py",
    "temperatures": "inference_temperatures.py",
    "era5": "inference_era5.py",
}


def main() -> None:
    """Read the command line."""
    if len(sys.argv) > 1 and sys.argv[1] in ELSEWHERE:
        file = Path(__file__).with_name(ELSEWHERE[sys.argv[1]])
        sys.argv = [str(file), *sys.argv[2:]]
        runpy.run_path(str(file), run_name="__main__")
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["log_z", "posteriors", *ELSEWHERE])
    parser.add_argument("data", type=Path, nargs="?", default=SHARED)
    parser.add_argument("--only", nargs="*", help="names of densities")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--family", default="flow")
    parser.add_argument("--peer", action="store_true", help="NumPyro's AutoBNAFNormal beside")
    given = parser.parse_args()
    torch.set_num_threads(1)
    (log_z if given.command == "log_z" else against_draws)(given)


def log_z(given: argparse.Namespace) -> None:
    """Error of log Z, its stated standard error, and the share of draws in effect."""
    known = targets(given.data)
    print(
        f"{'density':18}{'error':>9}{'stated':>9}{'way':>12}{'ELBO gap':>10}{'ESS':>7}{'k-hat':>7}{'steps':>7}{'s':>6}"
    )
    for name in given.only or [name for name in LOG_Z if name in known]:
        target = known[name]
        for seed in range(given.seeds):
            began = time.perf_counter()
            fit = sf.inference.fit_posterior(
                target.log_density, event_shape=(target.dimension,), family=given.family, seed=seed, progress=False
            )
            seconds = time.perf_counter() - began
            steps = fit.history["steps"][-1] if fit.history["steps"] else 0
            print(
                f"{name:18}{float(fit.log_z) - target.log_z:+9.4f}{fit.log_z.standard_error:9.4f}{fit.log_z.method:>12}"
                f"{fit.elbo - target.log_z:+10.3f}{fit.ess:7.2f}{fit.k_hat:7.2f}{steps:7d}{seconds:6.0f}",
                flush=True,
            )


def against_draws(given: argparse.Namespace) -> None:
    """Largest errors of means and standard deviations, in those of the reference, before and after weighting."""
    print(
        f"{'posterior':44}{'d':>3}{'k-hat':>7}{'ESS':>6}{'mean':>7}{'sd %':>6}{'mean*':>7}{'sd* %':>6}"
        f"{'steps':>6}{'s':>5}   (* importance-resampled)"
    )
    for name, posterior in posteriors(given.data).items():
        if given.only and name not in given.only:
            continue
        truth = _joined({key: value.flatten(0, 1) for key, value in reference_draws(given.data, name).items()})
        for seed in range(given.seeds):
            began = time.perf_counter()
            fit = sf.inference.fit_posterior(
                posterior.log_density, parameters=posterior.parameters, family=given.family, seed=seed, progress=False
            )
            seconds = time.perf_counter() - began
            own = _errors(posterior.derived(fit.sample(20_000, seed=1)), truth)
            weighted = _errors(posterior.derived(fit.resample(20_000, seed=1)), truth)
            steps = fit.history["steps"][-1] if fit.history["steps"] else 0
            print(
                f"{name:44}{fit.parameters.num_free:3d}{fit.k_hat:7.2f}{fit.ess:6.2f}"
                f"{own[0]:7.3f}{100 * own[1]:6.1f}{weighted[0]:7.3f}{100 * weighted[1]:6.1f}{steps:6d}{seconds:5.0f}",
                flush=True,
            )
        if given.peer:
            _peer(name, posterior, truth, given.data)


def _peer(name: str, posterior: Posterior, truth: torch.Tensor, folder: Path) -> None:
    from inference_numpyro import numpyro_fit

    found = numpyro_fit(name, folder=folder, k_hat=lambda w: pareto_smoothed(torch.tensor(w))[1])
    draws = {key: torch.tensor(found.draws[key]) for key in posterior.parameters}
    mean, std = _errors(posterior.derived(draws), truth)
    print(
        f"{'  NumPyro AutoBNAFNormal':47}{found.k_hat:7.2f}{'':6}{mean:7.3f}{100 * std:6.1f}{'':19}"
        f"{found.seconds_to_compile + found.seconds:5.0f} (of which {found.seconds_to_compile:.0f} compiling)",
        flush=True,
    )


def _joined(draws: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat([draws[key].double().reshape(len(draws[key]), -1) for key in sorted(draws)], 1)


def _errors(draws: dict[str, torch.Tensor], truth: torch.Tensor) -> tuple[float, float]:
    ours = _joined(draws)
    std = truth.std(0)
    return float(((ours.mean(0) - truth.mean(0)) / std).abs().max()), float((ours.std(0) / std - 1).abs().max())


if __name__ == "__main__":
    main()
