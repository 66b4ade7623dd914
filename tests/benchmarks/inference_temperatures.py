"""Daily temperatures of Germany: is the posterior right, and do forecasts from it hold what comes?

    python tests/benchmarks/inference.py temperatures DATA                    # three models, two minutes each
    python tests/benchmarks/inference.py temperatures DATA --figures FOLDER

Mean, trend, two harmonics of the year and an autoregression of the days around them are fitted to all but the last two
years by ``fit_posterior``, and held against long chains of NumPyro's NUTS for the same density, written anew. The two
years are forecast some days ahead from the posterior: intervals should hold as many days as they claim, and ranks be
uniform. A posterior predictive check says what the first model lacks, and log Z what mending it is worth. What is left
is the shape of the noise: its tails are a little heavier than a normal's, and more so below.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import xarray as xr
from inference_temperatures_model import Model, Series
from torch import Tensor

import sciflow as sf
from sciflow.inference import Posterior
from sciflow.inference.diagnostics.coverage import expected_coverage
from sciflow.inference.diagnostics.predictive import PosteriorPredictive, posterior_predictive
from sciflow.inference.diagnostics.uniformity import uniform_p_value

MODELS = {
    "AR(1)": Model(1, seasonal=False),
    "AR(1), noise of the season": Model(1, seasonal=True),
    "AR(3), noise of the season": Model(3, seasonal=True),
}
HELD_OUT = 731  # days
AHEAD = (1, 2, 3, 7)
LEVELS = (0.5, 0.8, 0.95)
MONTH = 30  # days, of which coverage is taken to be independent


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("--only", nargs="*", help="names of models")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--reference", type=int, default=4000, help="draws of each of two chains of NUTS; 0: none")
    parser.add_argument("--figures", type=Path, help="folder to draw into")
    given = parser.parse_args()
    torch.set_num_threads(1)
    series = read(given.data / "climate" / "Observations_Germany.nc")
    seen = series.until(len(series.value) - HELD_OUT)
    print(f"{len(seen.value):,} days fitted, {HELD_OUT} held out")
    evidence: dict[str, float] = {}
    for name, model in MODELS.items():
        if given.only and name not in given.only:
            continue
        began, worked = time.perf_counter(), time.process_time()
        fit = sf.inference.fit_posterior(
            model.log_density(seen), parameters=model.parameters, seed=given.seed, progress=False
        )
        seconds, core = time.perf_counter() - began, time.process_time() - worked
        print(f"\n{name}: {fit}, {seconds:.0f} s, of a core {core:.0f} s")
        first = next(iter(evidence.items()), None)
        evidence[name] = float(fit.log_z)
        if first:
            print(f"log Z above that of {first[0]}: {evidence[name] - first[1]:+.1f}")
        print(fit.summary().round(4).to_string())
        if given.reference:
            against_chains(model, seen, fit, given)
        check = predicted(model, seen, fit)
        print(told(check))
        ranks = forecast(model, series, fit)
        if given.figures:
            draw(name, model, series, fit, check, ranks, given.figures)


def read(path: Path) -> Series:
    """All days of the file."""
    with xr.open_dataset(path) as dataset:
        value, times = dataset.t2m.values.astype(np.float64), dataset.time.values
    days = (times - times[0]).astype("timedelta64[D]").astype(int)
    assert (np.diff(days) == 1).all()
    return Series(value, days)


def against_chains(model: Model, seen: Series, fit: Posterior, given: argparse.Namespace) -> None:
    """Print how far means and deviations are from those of long chains, in deviations of theirs."""
    try:
        from inference_temperatures_numpyro import chains
    except ImportError:
        print("NumPyro is not installed: no reference")
        return
    began = time.perf_counter()
    truth, r_hat, fewest = chains(model, seen, given.reference, 2, given.seed)
    seconds = time.perf_counter() - began
    true = fit.parameters.flatten(truth)
    for kind, values in (("as drawn", fit.sample(40_000, seed=1)), ("weighted", fit.resample(40_000, seed=1))):
        ours = fit.parameters.flatten(values).double()
        mean = ((ours.mean(0) - true.mean(0)) / true.std(0)).abs().max()
        std = (ours.std(0) / true.std(0) - 1).abs().max()
        print(f"against NUTS, {kind}: means off by up to {mean:.3f} sd, sd by up to {100 * std:.1f} %")
    own = fewest[0] ** -0.5, 100 * (2 * fewest[1]) ** -0.5
    print(
        f"NUTS: {len(true):,} draws, R-hat up to {r_hat:.4f}, {seconds:.0f} s; they themselves know means to "
        f"{own[0]:.3f} sd, sd to {own[1]:.1f} % (one standard error)"
    )


def statistics(series: Series) -> dict[str, Callable[[Tensor], Tensor]]:
    """What days are asked: each a function of ``[n, days]``, of what least squares leave of the season."""
    design, solve = torch.from_numpy(series.design), torch.from_numpy(np.linalg.pinv(series.design))
    winter = torch.from_numpy(np.isin(series.season // 6, (0, 1, 11, 12)))
    summer = torch.from_numpy(np.isin(series.season // 6, (5, 6, 7)))

    def rest(x: Tensor) -> Tensor:
        return x - (x @ solve.T) @ design.T

    def correlation(x: Tensor, lag: int) -> Tensor:
        x = rest(x)
        return (x[:, lag:] * x[:, :-lag]).mean(1) / x.square().mean(1)

    def surprise(x: Tensor) -> Tensor:
        """What the day before leaves of a day."""
        x = rest(x)
        slope = (x[:, 1:] * x[:, :-1]).mean(1) / x[:, :-1].square().mean(1)
        return x[:, 1:] - slope[:, None] * x[:, :-1]

    def moment(x: Tensor, power: int) -> Tensor:
        x = surprise(x)
        return x.pow(power).mean(1) / x.square().mean(1) ** (power / 2)

    def winter_over_summer(x: Tensor) -> Tensor:
        x = surprise(x)
        return x[:, winter[1:]].std(1) / x[:, summer[1:]].std(1)

    return {
        "deviation": lambda x: rest(x).std(1),
        "correlation, 1 day": lambda x: correlation(x, 1),
        "correlation, 2 days": lambda x: correlation(x, 2),
        "correlation, 7 days": lambda x: correlation(x, 7),
        "noise, winter / summer": winter_over_summer,
        "skewness of noise": lambda x: moment(x, 3),
        "kurtosis of noise": lambda x: moment(x, 4),
    }


def predicted(model: Model, seen: Series, fit: Posterior) -> PosteriorPredictive:
    """Simulate the days anew from the posterior, and compare."""

    def simulator(theta: Tensor, generator: torch.Generator) -> Tensor:
        return model.simulate(fit.parameters.unflatten(theta), seen, generator)

    return posterior_predictive(
        fit.parameters.flatten(fit.resample(1000, seed=2)), simulator, seen.value, statistics=statistics(seen), seed=0
    )


def told(check: PosteriorPredictive) -> str:
    """The check in words, and each statistic."""
    lines = [f"posterior predictive: {check.verdict}"]
    for place, name in enumerate(check.names):
        low, high = np.quantile(check.replicated[:, place], [0.025, 0.975])
        seen, p_value = check.observed[place], check.p_values[place]
        lines.append(f"  {name:24}{seen:8.3f}  predicted {low:.3f} to {high:.3f}, p = {p_value:.2g}")
    return "\n".join(lines)


def forecast(model: Model, series: Series, fit: Posterior) -> dict[int, np.ndarray]:
    """Print how held-out days fare among their forecasts, and return their ranks, ``[days]`` each, by days ahead."""
    draws = fit.resample(500, seed=3)
    first = len(series.value) - HELD_OUT
    truth = torch.from_numpy(series.value[first:])
    ranks = {}
    print("days ahead  RMSE, K    sd, K" + "".join(f"{100 * level:9.0f} %    " for level in LEVELS) + "  uniform, p")
    for ahead in AHEAD:
        mean, std = model.forecasts(draws, series, first, ahead)
        rank = torch.special.ndtr((truth - mean) / std).mean(0).numpy()  # of a mixture of normals
        ranks[ahead] = rank
        spread = (std.square().mean(0) + mean.var(0)).sqrt().mean()
        error = (truth - mean.mean(0)).square().mean().sqrt()
        shares = "".join(
            f"{100 * share:8.1f} +- {100 * wrong:3.1f}" for share, wrong in (covered(rank, at) for at in LEVELS)
        )
        # Ranks of forecasts several days ahead depend on each other: every so many of them are tested.
        p_value = uniform_p_value(rank[::ahead])
        print(f"{ahead:10d}{error:9.2f}{spread:9.2f}{shares}{p_value:12.2g}")
    return ranks


def covered(rank: np.ndarray, level: float) -> tuple[float, float]:
    """Share of ranks in the central interval, and its standard error, from months."""
    inside = np.abs(2 * rank - 1) <= level
    months = inside[: len(inside) // MONTH * MONTH].reshape(-1, MONTH).mean(1)
    return float(inside.mean()), float(months.std(ddof=1) / np.sqrt(len(months)))


def draw(
    name: str,
    model: Model,
    series: Series,
    fit: Posterior,
    check: PosteriorPredictive,
    ranks: dict[int, np.ndarray],
    folder: Path,
) -> None:
    """Figures of one model: the posterior, the check, coverage, and forecasts of the last quarter."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    folder.mkdir(parents=True, exist_ok=True)
    slug = "_".join("".join(letter if letter.isalnum() else " " for letter in name).split())

    def save(figure: object, what: str) -> None:
        figure.savefig(folder / f"temperatures_{slug}_{what}.png", dpi=110)
        pyplot.close("all")

    shown = ["beta[1]", "beta[2]", "phi" if model.order == 1 else "phi[1]", "sigma"]
    save(fit.plot([label for label in fit.parameters.labels if label in shown]), "posterior")
    save(check.plot(), "check")
    first = len(series.value) - HELD_OUT
    draws, generator = fit.resample(400, seed=4), torch.Generator().manual_seed(0)
    forecasts = [model.forecasts(draws, series, first, ahead) for ahead in AHEAD]
    drawn = np.stack([(m + s * torch.randn(m.shape, generator=generator)).numpy() for m, s in forecasts], -1)
    truth = np.repeat(series.value[first:, None], len(AHEAD), 1)
    names = [f"{ahead} day{'s' * (ahead > 1)} ahead" for ahead in AHEAD]
    # Further ahead, one case depends on the next, and the test that goes with the figure takes them for independent.
    save(expected_coverage(drawn[..., :2], truth[:, :2], names=names[:2]).plot(), "coverage")
    figure, axes = pyplot.subplots(2, 1, figsize=(9, 5.5), layout="constrained", sharex=True)
    days = slice(-120, None)
    for ax, place in zip(axes, (0, len(AHEAD) - 1), strict=True):
        for level in LEVELS[::-1]:
            low, high = np.quantile(drawn[:, days, place], [(1 - level) / 2, (1 + level) / 2], axis=0)
            ax.fill_between(
                np.arange(len(low)), low, high, color="tab:blue", alpha=0.2, lw=0, label=f"{100 * level:.0f} %"
            )
        ax.plot(series.value[days], color="black", lw=1, label="held out")
        ax.set(ylabel=f"K, {names[place]}")
    axes[0].legend(ncols=4, fontsize=8)
    axes[1].set(xlabel="last days of the two years")
    save(figure, "forecasts")
    figure, axes = pyplot.subplots(1, len(AHEAD), figsize=(10, 2.6), layout="constrained", sharey=True)
    for ax, (ahead, rank) in zip(axes, ranks.items(), strict=True):
        ax.hist(rank, bins=20, range=(0, 1), color="tab:blue", alpha=0.6)
        ax.axhline(len(rank) / 20, color="black", ls="--", lw=0.8)
        ax.set(xlabel=f"rank, days ahead: {ahead}")
    save(figure, "ranks")


if __name__ == "__main__":
    main()
