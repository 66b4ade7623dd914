"""Temperature fields from one cell in twenty: do posterior draws of a diffusion prior hold what was hidden?

    python tests/benchmarks/inference.py era5 DATA --runs FOLDER       # trains once, a quarter of an hour in all
    python tests/benchmarks/inference.py era5 DATA --runs FOLDER --figures FOLDER

Hourly 2 m temperature over Britain in March 2019, less the diurnal cycle. Six days are held out, with a day before and
after them that nothing sees. Of some of their hours a few cells are observed, with noise, and the rest is drawn by
``Diffusion.sample(guidance=Observation(...))``. Beside it, the exact posterior of Gaussian priors: with mean and
covariance of the same training hours as they are (kriging), and with covariances that fade with distance. The diffusion
model whose denoiser is the latter's, without anything learned, says what the sampler is off.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from inference_era5_prior import STARTS, Fields, blended, clock, covariance_of, prior, times_of
from torch import Tensor

import sciflow as sf

LEVELS = (0.5, 0.8, 0.95)
SETTINGS = {"batch_size": 64, "learning_rate": 5e-4, "patience": 1000}
NUM_BLENDED = 12_000


@dataclass(frozen=True)
class Case:
    """An hour of which some cells were observed.

    Attributes:
        hour: Of the day.
        truth: ``[d]``, K.
        places: ``[m]``, which cells.
        value: ``[m]``, what was observed of them.
    """

    hour: int
    truth: Tensor
    places: Tensor
    value: Tensor

    @property
    def hidden(self) -> Tensor:
        """Which cells were not observed, ``[d]``."""
        return torch.ones(len(self.truth), dtype=torch.bool).index_fill(0, self.places, False)


Method = Callable[[Case], Tensor]  # draws of the field, [n, d]


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("--runs", type=Path, help="folder to keep the trained prior in")
    parser.add_argument("--figures", type=Path, help="folder to draw into")
    parser.add_argument("--prior", default="gaussian", choices=STARTS, help="what the learned one starts from")
    parser.add_argument("--as-is", type=float, default=0.5, help="share of training fields that are not blended")
    parser.add_argument("--steps", type=int, default=5000, help="of training")
    parser.add_argument("--part", default="test", choices=["test", "validation"], help="of the days")
    parser.add_argument("--times", type=int, default=12, help="hours of them")
    parser.add_argument("--masks", type=int, default=2, help="choices of cells, of each hour")
    parser.add_argument("--share", type=float, default=0.05, help="of the cells, that are observed")
    parser.add_argument("--noise", type=float, default=0.3, help="of the observations, K")
    parser.add_argument("--draws", type=int, default=39, help="one less than a multiple of 40 has all levels exactly")
    parser.add_argument("--sampler", default="unipc3")
    parser.add_argument("--num-steps", type=int, default=20)
    parser.add_argument("--iterations", type=int, default=10)
    given = parser.parse_args()
    torch.set_num_threads(1)
    fields = Fields.read(given.data / "climate" / "era5-2mt-2019-03-uk.nc")
    train = fields.rows("train")
    learned = trained(fields, given)
    plain = prior(train, fields.places, None)
    plain.fit_preprocessing(train)
    plain.eval()
    size, network = train.std(0).flatten().double(), plain.denoiser.network.network
    methods: dict[str, Method] = {
        "kriging": kriging(train, covariance_of(train, fields.places, None), given),
        "kriging, tapered": kriging(train, size[:, None] * network.covariance() * size, given),
        "diffusion, nothing learned": diffusion(plain, False, given),
        "diffusion": diffusion(learned, True, given),
    }
    cases = observed(fields, given)
    print(
        f"{len(cases)} cases of {len(cases[0].places)} of {len(cases[0].truth):,} cells, noise {given.noise:g} K, "
        f"{given.draws} draws each"
    )
    wide = "".join(f"{f'{100 * level:.0f} %':>14}" for level in LEVELS)
    print(f"{'':28}{'RMSE, K':>14}{'sd, K':>8}{wide}{'CRPS, K':>16}{'s a case':>10}")
    shown = {}
    for name, method in methods.items():
        began = time.perf_counter()
        drawn = [method(case) for case in cases]
        seconds = (time.perf_counter() - began) / len(cases)
        print(f"{name:28}{table_row(drawn, cases, given.masks)}{seconds:10.1f}", flush=True)
        shown[name] = drawn
    if given.figures:
        draw(fields, cases, shown, given.figures)


def trained(fields: Fields, given: argparse.Namespace) -> sf.diffusion.Diffusion:
    """The prior, from the folder of runs where it is there already."""
    rows, hours = fields.rows("train"), times_of(len(fields.anomaly), "train") % 24
    model = prior(rows, fields.places, given.prior)
    path = given.runs and given.runs / f"era5_{given.prior}_{given.as_is:g}_{given.steps}.pt"
    if path and path.exists():
        model.load_state_dict(torch.load(path, weights_only=True))
        return model.eval()
    generator = torch.Generator().manual_seed(0)
    began, worked = time.perf_counter(), time.process_time()
    made, made_hours = blended(rows, hours, fields.places, NUM_BLENDED, generator)
    as_is = torch.randint(len(rows), (round(given.as_is * NUM_BLENDED),), generator=generator)
    made[: len(as_is)], made_hours[: len(as_is)] = rows[as_is], hours[as_is]
    fit = sf.fit(
        model,
        made,
        validation=fields.rows("validation"),
        context=moment(made_hours),
        validation_context=moment(times_of(len(fields.anomaly), "validation") % 24),
        seed=0,
        max_steps=given.steps,
        progress=False,
        **SETTINGS,
    )
    print(
        f"{fit}, best of step {fit.best_step:,}; {NUM_BLENDED:,} fields made of {len(rows)}; "
        f"{time.perf_counter() - began:.0f} s, of a core {time.process_time() - worked:.0f} s",
        flush=True,
    )
    if path:
        given.runs.mkdir(parents=True, exist_ok=True)
        torch.save(model.state_dict(), path)
    return model.eval()


def moment(hour: Tensor) -> Tensor:
    """What the prior is told of the hour of the day, ``[n, 4]``."""
    return clock(hour)[:, 1:].float()


def observed(fields: Fields, given: argparse.Namespace) -> list[Case]:
    """Hours of the held-out days, evenly spread, each with several choices of cells."""
    times = times_of(len(fields.anomaly), given.part)
    # An odd distance, so that all hours of the day come by.
    times = times[torch.linspace(3, len(times) - 4, given.times).round().long()]
    generator = torch.Generator().manual_seed(0)
    cases = []
    for at in times.tolist():
        truth = fields.anomaly[at].flatten()
        for _ in range(given.masks):
            places = torch.randperm(len(truth), generator=generator)[: round(given.share * len(truth))]
            noise = given.noise * torch.randn(len(places), generator=generator)
            cases.append(Case(at % 24, truth, places, truth[places] + noise))
    return cases


def kriging(fields: Tensor, covariance: Tensor, given: argparse.Namespace) -> Method:
    """Draws of the exact posterior of a Gaussian with the mean of ``fields`` and a covariance ``[d, d]``."""
    mean = fields.flatten(1).double().mean(0)

    def drawn(case: Case) -> Tensor:
        centre, left = conditional(mean, covariance, case.places, case.value.double(), given.noise)
        generator = torch.Generator().manual_seed(int(case.places[0]))
        z = torch.randn(given.draws, len(mean), generator=generator, dtype=torch.float64)
        factor = torch.linalg.cholesky(left + 1e-6 * torch.eye(len(mean), dtype=torch.float64))
        return (centre + z @ factor.T).float()

    return drawn


def conditional(mean: Tensor, covariance: Tensor, places: Tensor, value: Tensor, noise: float) -> tuple[Tensor, Tensor]:
    """Mean ``[d]`` and covariance ``[d, d]`` of a Gaussian some numbers of which were observed with noise."""
    inner = covariance[places][:, places] + noise**2 * torch.eye(len(places)).to(covariance)
    gain = torch.linalg.solve(inner, covariance[places]).T
    return mean + gain @ (value - mean[places]), covariance - gain @ covariance[places]


def diffusion(model: sf.diffusion.Diffusion, timed: bool, given: argparse.Namespace) -> Method:
    """Draws of the posterior with a diffusion model as the prior."""

    def drawn(case: Case) -> Tensor:
        observation = sf.diffusion.Observation(
            lambda x: x.flatten(1)[:, case.places], case.value, given.noise, iterations=given.iterations
        )
        return model.sample(
            given.draws,
            context=moment(torch.tensor([case.hour]))[0] if timed else None,
            seed=int(case.places[0]),
            guidance=observation,
            sampler=given.sampler,
            num_steps=given.num_steps,
            progress=False,
        ).flatten(1)

    return drawn


def table_row(drawn: list[Tensor], cases: list[Case], num_masks: int) -> str:
    """Scores over hidden cells, with errors from the spread between hours."""
    rows = torch.tensor([scores(x, case) for x, case in zip(drawn, cases, strict=True)], dtype=torch.float64)
    hours = rows.reshape(-1, num_masks, rows.shape[1]).mean(1)
    mean, error = hours.mean(0), hours.std(0) / len(hours) ** 0.5
    rmse, spread = mean[:2].sqrt().tolist()
    held = "".join(
        f"{100 * share:7.1f} +- {100 * wrong:3.1f}" for share, wrong in zip(mean[2:-1], error[2:-1], strict=True)
    )
    return f"{rmse:6.3f} +- {error[0] / (2 * rmse):.3f}{spread:8.3f}{held}{mean[-1]:8.3f} +- {error[-1]:.3f}"


def scores(drawn: Tensor, case: Case) -> list[float]:
    """Over hidden cells: square error of the mean, variance, share within central intervals, and CRPS."""
    drawn, truth = drawn[:, case.hidden].double(), case.truth[case.hidden].double()
    shares = [within(drawn, truth, level) for level in LEVELS]
    error, variance = (drawn.mean(0) - truth).square().mean(), drawn.var(0).mean()
    return [error.item(), variance.item(), *shares, crps(drawn, truth).mean().item()]


def within(drawn: Tensor, truth: Tensor, level: float) -> float:
    """Share of numbers ``[d]`` in the central interval of draws ``[n, d]``, by rank: exact where n + 1 allows it."""
    rank = (drawn < truth).sum(0)
    edge = round((len(drawn) + 1) * (1 - level) / 2)
    return ((rank >= edge) & (rank <= len(drawn) - edge)).double().mean().item()


def crps(drawn: Tensor, truth: Tensor) -> Tensor:
    """Continuous ranked probability score of draws ``[n, d]``, unbiased by their number, ``[d]``."""
    n = len(drawn)
    weights = (2 * torch.arange(1, n + 1) - n - 1).to(drawn)[:, None]
    return (drawn - truth).abs().mean(0) - (weights * drawn.sort(0).values).sum(0) / (n * (n - 1))


def draw(fields: Fields, cases: list[Case], drawn: dict[str, list[Tensor]], folder: Path) -> None:
    """Truth, observed cells, posterior mean, deviation and two draws of some cases; and how often intervals hold."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    folder.mkdir(parents=True, exist_ok=True)
    shape = fields.anomaly.shape[1:]
    for place in range(0, len(cases), max(1, len(cases) // 3)):
        case = cases[place]
        figure, axes = pyplot.subplots(len(drawn), 6, figsize=(17, 2.3 * len(drawn)), layout="constrained")
        low, high = case.truth.min(), case.truth.max()
        seen = torch.full_like(case.truth, torch.nan).index_copy(0, case.places, case.value)
        for row, (name, all_draws) in zip(axes, drawn.items(), strict=True):
            x = all_draws[place]
            pictures = {"truth": case.truth, "observed": seen, "mean": x.mean(0), "sd": x.std(0)}
            pictures |= {"a draw": x[0], "another": x[1]}
            for ax, (what, picture) in zip(row, pictures.items(), strict=True):
                of_size = (
                    {"vmin": 0, "cmap": "viridis"} if what == "sd" else {"vmin": low, "vmax": high, "cmap": "RdBu_r"}
                )
                image = ax.imshow(picture.reshape(shape), **of_size)
                ax.set(xticks=[], yticks=[], title=f"{what}, K" if what == "sd" else what)
                if what in ("observed", "sd"):
                    figure.colorbar(image, ax=ax)
            row[0].set_ylabel(name)
        figure.savefig(folder / f"era5_case_{place}.png", dpi=90)
    figure, (held, ranks) = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for name, all_draws in drawn.items():
        pairs = list(zip(all_draws, cases, strict=True))
        count = len(all_draws[0])
        levels = [1 - 2 * edge / (count + 1) for edge in range(1, (count + 1) // 2)]
        shares = [
            np.mean([within(x[:, case.hidden], case.truth[case.hidden], level) for x, case in pairs])
            for level in levels
        ]
        held.plot(levels, shares, label=name)
        rank = torch.cat([(x < case.truth).sum(0)[case.hidden] for x, case in pairs])
        ranks.stairs(torch.bincount(rank, minlength=count + 1) / len(rank) * (count + 1), label=name)
    held.plot([0, 1], [0, 1], color="black", lw=0.8, ls="--")
    held.set(xlabel="credibility of central intervals", ylabel="share of hidden cells that they hold")
    ranks.axhline(1, color="black", lw=0.8, ls="--")
    ranks.set(xlabel="rank of the truth among draws", ylabel="density")
    held.legend(fontsize=8)
    figure.savefig(folder / "era5_coverage.png", dpi=100)
    pyplot.close("all")


if __name__ == "__main__":
    main()
