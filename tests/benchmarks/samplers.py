"""Work against precision: how far samples are from a density that is known, by evaluations of its exact denoiser.

    python tests/benchmarks/samplers.py --out pictures
    python tests/benchmarks/samplers.py --rows 5000 --repeats 2 --schedules edm      # a look, in a minute or two

Distances are sliced Wasserstein's of order 2, to the exact quantiles of the density along each direction. Draws of the
density itself have one, too, by chance: no sampler can come below it.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from beside import beside
from rich.console import Console
from rich.table import Table
from torch import Tensor

from sciflow.diffusion.samplers import SPACINGS, Process, sampler, times, trajectory
from sciflow.diffusion.schedules import schedule
from sciflow.report.drawing import FAINT, INK, PALETTE, new_figure, style

DIRECTIONS, KNOTS = 24, 20_001
EVALUATIONS = (5, 7, 10, 15, 20, 30, 50, 100)
FEW, MANY = 10, 1000
SAMPLERS: dict[str, Any] = {
    "ddpm": "ddpm",
    "ddim": "ddim",
    "euler-maruyama": "euler-maruyama",
    "predictor-corrector": "predictor-corrector",
    "euler": "euler",
    "heun": "heun",
    "edm": "edm",
    "dpm++ (2M, published)": {"dpm++": {"variable": "log"}},
    "unipc (B2, published)": {"unipc": {"variable": "log"}},
    "dpm++": "dpm++",
    "dpm++3": "dpm++3",
    "unipc": "unipc",
    "unipc3": "unipc3",
}
DRAWN = ("ddpm", "ddim", "edm", "dpm++ (2M, published)", "unipc (B2, published)", "dpm++", "unipc", "unipc3")


analytic = beside("tests/truth/analytic")


@dataclass(frozen=True)
class Target:
    """A density, with the exact quantiles of ``rows`` draws in a few directions."""

    name: str
    mixture: Any
    rows: int

    @property
    def num_features(self) -> int:
        return self.mixture.means.shape[1]

    @cached_property
    def directions(self) -> Tensor:
        """``[directions, d]``: evenly spaced in the plane, else by chance."""
        if self.num_features == 2:
            angle = torch.arange(DIRECTIONS).double() * (math.pi / DIRECTIONS)
            return torch.stack([angle.cos(), angle.sin()], -1)
        generator = torch.Generator().manual_seed(7)
        drawn = torch.randn(DIRECTIONS, self.num_features, generator=generator, dtype=torch.float64)
        return drawn / drawn.norm(dim=1, keepdim=True)

    @cached_property
    def quantiles(self) -> Tensor:
        """``[directions, rows]``."""
        share = (torch.arange(self.rows).double() + 0.5) / self.rows
        found = []
        for direction in self.directions:
            along = self.mixture.projected(direction)
            centre, deviation = float(along.mean), float(along.covariance.sqrt())
            knots = torch.linspace(centre - 8 * deviation, centre + 8 * deviation, KNOTS, dtype=torch.float64)
            below = along.cdf(knots)
            right = torch.searchsorted(below, share).clamp(1, KNOTS - 1)
            within = (share - below[right - 1]) / (below[right] - below[right - 1]).clamp_min(1e-300)
            found.append(knots[right - 1] + (knots[right] - knots[right - 1]) * within.clamp(0, 1))
        return torch.stack(found)

    def distance(self, x: Tensor) -> float:
        """Sliced Wasserstein distance of draws ``[rows, d]``."""
        projected = (x.double() @ self.directions.mT).mT.sort(dim=1).values
        return float((projected - self.quantiles).square().mean().sqrt())

    def drawn(self, given: Any, of: str, evaluations: int, seed: int, spacing: str, least_noise: float) -> float:
        """Distance of what a sampler draws with so many evaluations."""
        chosen, its = sampler(given), schedule(of)
        num_steps = 1 + (evaluations - 1) // chosen.evaluations
        along = times(its, num_steps, spacing, least_noise)  # type: ignore[arg-type]
        generator = torch.Generator().manual_seed(seed)
        process = Process(lambda x, t: self.mixture.denoise(x, t[0], its), its, generator)
        z = torch.randn(self.rows, self.num_features, generator=generator)
        return self.distance(trajectory(process, chosen, math.hypot(*process.levels(float(along[0]))) * z, along))


def targets(rows: int) -> list[Target]:
    """In the plane, in ten dimensions, and a field whose neighbours are alike; all of variance 1."""
    place = torch.arange(32).double()
    alike = 0.8 * torch.exp(-(((place[:, None] - place) / 8) ** 2)) + 0.02 * torch.eye(32)
    waves = torch.stack([torch.sin(place / 5), -torch.sin(place / 5)])
    field = analytic.GaussianMixture(torch.tensor([1.0, 2.0]), waves, torch.stack([alike, alike]))
    return [
        Target("ring of 8, D = 2", analytic.GaussianMixture.ring(8).normalised(), rows),
        Target("6 components, D = 10", analytic.GaussianMixture.random(10, 6, 0.5).normalised(), rows),
        Target("correlated, D = 32", field.normalised(), rows),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--repeats", type=int, default=4)
    parser.add_argument("--schedules", nargs="+", default=["vp", "cosine", "ve", "edm"])
    parser.add_argument("--out", type=Path, help="folder for the picture")
    options = parser.parse_args()
    torch.set_num_threads(1)
    console = Console(width=160)
    curves = {}
    for target in targets(options.rows):
        chance = repeated(lambda seed, of=target: of.distance(of.mixture.sample(of.rows, generator(seed))), 12)
        curves[target.name] = found = work_precision(target, options, chance, console)
        claim(target, options, chance, found, console)
        console.print(spacings(target, options))
        console.print(least_noises(target, options))
    if options.out is not None:
        console.print(f"written: {draw(curves, options.out)}")


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(10_000 + seed)


def repeated(measure: Callable[[int], float], repeats: int) -> list[float]:
    return [measure(seed) for seed in range(repeats)]


def work_precision(
    target: Target, options: argparse.Namespace, chance: list[float], console: Console
) -> dict[str, dict[int, float]]:
    """Distance by evaluations, of every sampler on its default grid, on the first of the schedules."""
    of = options.schedules[-1]
    title = f"{target.name}: distance by evaluations ({of}, {options.rows:,} rows; by chance {shown(chance)})"
    table = Table("sampler", *map(str, EVALUATIONS), title=title)
    found: dict[str, dict[int, float]] = {"by chance": {0: statistics.mean(chance)}}
    for name, given in SAMPLERS.items():
        found[name] = {
            evaluations: statistics.mean(
                target.drawn(given, of, evaluations, seed, "sigmoid", 2e-3)
                for seed in range(max(1, options.repeats // 2))
            )
            for evaluations in EVALUATIONS
        }
        table.add_row(name, *(f"{distance:.4f}" for distance in found[name].values()))
    console.print(table)
    return found


def claim(
    target: Target,
    options: argparse.Namespace,
    chance: list[float],
    found: dict[str, dict[int, float]],
    console: Console,
) -> None:
    """Are ten evaluations worth a thousand of DDPM's?"""
    of = options.schedules[-1]
    many = repeated(lambda seed: target.drawn("ddpm", of, MANY, seed, "sigmoid", 2e-3), options.repeats)
    found["ddpm"][MANY] = statistics.mean(many)
    spread = statistics.stdev(chance)
    console.print(f"  ddpm at {MANY} evaluations: {shown(many)}; one set of draws varies by {spread:.4f} by chance")
    for name in ("dpm++", "dpm++3", "unipc", "unipc3", "unipc (B2, published)"):
        few = repeated(
            lambda seed, name=name: target.drawn(SAMPLERS[name], of, FEW, seed, "sigmoid", 2e-3), options.repeats
        )
        off = (statistics.mean(few) - statistics.mean(many)) / spread
        console.print(f"  {name} at {FEW}: {shown(few)}, {off:+.1f} of that above")


def spacings(target: Target, options: argparse.Namespace) -> Table:
    """At ten evaluations, the mean over the schedules, and the worst of them."""
    title = f"{target.name}: at {FEW} evaluations by spacing, mean over {', '.join(options.schedules)} (worst)"
    table = Table("sampler", *SPACINGS, title=title)
    for name, given in SAMPLERS.items():
        cells = []
        for spacing in SPACINGS:
            each = [target.drawn(given, of, FEW, 0, spacing, 2e-3) for of in options.schedules]
            cells.append(f"{statistics.mean(each):.3f} ({max(each):.3f})")
        table.add_row(name, *cells)
    return table


def least_noises(target: Target, options: argparse.Namespace) -> Table:
    """Where the last step begins, at few and at more evaluations."""
    levels = (0.05, 0.02, 0.01, 0.005, 0.002, 0.001)
    table = Table("sampler", "evaluations", *map(str, levels), title=f"{target.name}: by least_noise")
    for name in ("ddpm", "dpm++", "unipc", "unipc3", "unipc (B2, published)"):
        for evaluations in (FEW, 30):
            row = [
                target.drawn(SAMPLERS[name], options.schedules[-1], evaluations, 0, "sigmoid", level)
                for level in levels
            ]
            table.add_row(name, str(evaluations), *(f"{distance:.4f}" for distance in row))
    return table


def shown(values: list[float]) -> str:
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return f"{statistics.mean(values):.4f} +- {error:.4f}"


def draw(curves: dict[str, dict[str, dict[int, float]]], out: Path) -> Path:
    """One panel a density: distance against evaluations."""
    figure, panels = new_figure(5.2 * len(curves), 4.4, 1, len(curves))
    for panel, (title, found) in zip(panels, curves.items(), strict=True):
        for (name, points), (colour, line) in zip(kept(found), looks(), strict=False):
            panel.plot(list(points), list(points.values()), line, color=colour, marker="o", markersize=3, label=name)
        panel.axhline(found["by chance"][0], color=FAINT, linewidth=4, zorder=0, label="draws of the density")
        panel.set(xscale="log", yscale="log", ylim=(found["by chance"][0] / 2, 2))
        style(panel, "evaluations of the denoiser", "sliced Wasserstein distance")
        panel.set_title(title, color=INK, fontsize=11)
    panels[0].legend(frameon=False, fontsize=8, labelcolor=INK)
    out.mkdir(parents=True, exist_ok=True)
    path = out / "samplers.png"
    figure.savefig(path, dpi=150)
    return path


def kept(found: dict[str, dict[int, float]]) -> Iterator[tuple[str, dict[int, float]]]:
    return ((name, found[name]) for name in DRAWN)


def looks() -> Iterator[tuple[str, str]]:
    return ((colour, line) for line in ("-", "--") for colour in PALETTE)


if __name__ == "__main__":
    main()
