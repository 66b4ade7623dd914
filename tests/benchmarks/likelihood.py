"""Work against precision of log p by the probability-flow ODE: torchdiffeq, torchode and ours, and our error bars.

    python tests/benchmarks/likelihood.py --out pictures
    python tests/benchmarks/likelihood.py --rows 128 --problems 2 8       # a look, in a minute

One thread. Of the rows three quarters are in the bulk of the density, and every fourth is off it by half a standard
deviation (--off) in every direction, as rows are for which an anomaly is asked. Peers solve the equation in time for
the event together with log p, by Dormand and Prince's pair, with the exact divergence computed as ours is: a loop over
features, as code around them has it, takes as many times as long as is printed first. They are spared the ends: their
error is the difference to the exact log p of the noise that they begin and end with. Ours is that to the density
itself. Of the trained network all are held against torchdiffeq at a tolerance of 1e-9.
"""

from __future__ import annotations

import argparse
import math
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
from beside import beside, tell
from rich.console import Console
from rich.table import Table
from torch import Tensor

import sciflow as sf
from sciflow.diffusion import Diffusion, schedule
from sciflow.ode.divergence import Exact
from sciflow.report.drawing import PALETTE, new_figure, style

analytic = beside("tests/truth/analytic")

TOLERANCES = (1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-7)
NETWORK = "network"


@dataclass(frozen=True)
class Problem:
    """Rows whose log p is asked for, and what is known of it.

    Attributes:
        name: Number of features, or "network".
        model: The density.
        x: ``[n, d]``, rows.
        truth: ``[n]``, their log p.
        begun: ``[n]``, log p of the same rows with the noise that peers begin with.
        ended: log p of noise where peers end.
    """

    name: str
    model: Diffusion
    x: Tensor
    truth: Tensor
    begun: Tensor
    ended: Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Measured:
    """One solution of all rows."""

    solver: str
    tolerance: float
    errors: Tensor
    evaluations: float
    seconds: float
    bars: Tensor | None = None

    @property
    def error(self) -> float:
        return float(self.errors.quantile(0.9))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=512)
    parser.add_argument("--problems", nargs="+", default=["2", "8", "43", NETWORK], help="features, or network")
    parser.add_argument("--off", type=float, default=0.5, help="of every fourth row, in standard deviations")
    parser.add_argument("--out", type=Path, help="folder for the picture")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", module="torchode")
    found = {}
    for name in arguments.problems:
        problem = trained(arguments.rows) if name == NETWORK else mixture(int(name), arguments.rows, arguments.off)
        tell(f"{name}: a loop over features takes {loop_by_ours(problem):.1f} times as long as our divergence")
        found[name] = measured(problem)
        report(name, found[name])
    if arguments.out is not None:
        arguments.out.mkdir(parents=True, exist_ok=True)
        draw(found, arguments.out / "likelihood.png")


def mixture(num_features: int, num_rows: int, off: float) -> Problem:
    """A mixture of Gaussians, of which every fourth row is off the bulk."""
    truth, chosen = analytic.few_modes(num_features), schedule("vp")
    x = analytic.events(truth, num_rows, off)
    model = Diffusion.from_denoiser(lambda x, t: truth.denoise(x, t, chosen), (num_features,), chosen).double()
    begun = truth.marginal(chosen.t_min, chosen).log_prob(float(chosen(torch.tensor(chosen.t_min).double())[0]) * x)
    return Problem(str(num_features), model, x, truth.log_prob(x), begun, truth.marginal(1.0, chosen).log_prob)


def trained(num_rows: int) -> Problem:
    """A network that has learned the ring, in single precision as networks are used."""
    truth = analytic.few_modes(2)
    tell("training a network")
    model = Diffusion((2,), schedule="vp", preprocess="none", seed=0)
    rows = truth.sample(20_000, torch.Generator().manual_seed(0)).float()
    sf.fit(model, rows, seed=0, max_steps=2000, progress=False)
    model.requires_grad_(False).double()
    x = truth.sample(num_rows, torch.Generator().manual_seed(1))
    std, one = float(model.denoiser.data_std), torch.tensor(1.0, dtype=torch.float64)
    alpha, sigma = (float(part) for part in model.schedule(one))
    spread = math.hypot(alpha * std, sigma)

    def ended(z: Tensor) -> Tensor:
        return -0.5 * (z / spread).square().sum(1) - z.shape[1] * math.log(spread * math.sqrt(math.tau))

    problem = Problem(NETWORK, model, x, torch.zeros(num_rows), torch.zeros(num_rows), ended)
    tell("its log p by torchdiffeq, at 1e-9, and by ours")
    theirs, _, _ = by_torchdiffeq(problem, 1e-9)
    ours = model.likelihood(x, method="ode", tolerance=1e-9).log_prob
    return Problem(NETWORK, model, x, ours, theirs, ended)


def measured(problem: Problem) -> list[Measured]:
    results = []
    for tolerance in TOLERANCES:
        tell(f"{problem.name}, {tolerance:g}")
        begin = time.perf_counter()
        ours = problem.model.likelihood(problem.x, method="ode", tolerance=tolerance)
        seconds = time.perf_counter() - begin
        errors = (ours.log_prob - problem.truth).abs()
        results.append(Measured("sciflow", tolerance, errors, float(ours.nfe.double().mean()), seconds, ours.error))
        for name, solve in (("torchdiffeq", by_torchdiffeq), ("torchode", by_torchode)):
            begin = time.perf_counter()
            log_prob, evaluations, _ = solve(problem, tolerance)
            seconds = time.perf_counter() - begin
            results.append(Measured(name, tolerance, (log_prob - problem.begun).abs(), evaluations, seconds))
    return results


def by_torchdiffeq(problem: Problem, tolerance: float) -> tuple[Tensor, float, Tensor]:
    """log p of rows, evaluations of the whole batch, and the noise."""
    from torchdiffeq import odeint

    flow = _Augmented(problem.model)
    times = torch.tensor([problem.model.schedule.t_min, 1.0], dtype=torch.float64)
    alpha = problem.model.schedule(times)[0][0]
    begin = torch.cat([alpha * problem.x, torch.zeros(len(problem.x), 1, dtype=torch.float64)], 1)
    with torch.no_grad():
        end = odeint(lambda t, y: flow(t.expand(len(y)), y), begin, times, rtol=tolerance, atol=tolerance)[-1]
    return problem.ended(end[:, :-1]) + end[:, -1], flow.evaluations, end


def by_torchode(problem: Problem, tolerance: float) -> tuple[Tensor, float, Tensor]:
    """The same, each row in steps of its own, and all of them until the last has ended."""
    import torchode

    flow = _Augmented(problem.model)
    t_min = problem.model.schedule.t_min
    alpha = problem.model.schedule(torch.tensor(t_min, dtype=torch.float64))[0]
    begin = torch.cat([alpha * problem.x, torch.zeros(len(problem.x), 1, dtype=torch.float64)], 1)
    times = torch.tensor([t_min, 1.0], dtype=torch.float64).expand(len(begin), 2)
    term = torchode.ODETerm(flow)
    controller = torchode.IntegralController(atol=tolerance, rtol=tolerance, term=term)
    solver = torchode.AutoDiffAdjoint(torchode.Dopri5(term=term), controller)
    with torch.no_grad():
        solution = solver.solve(torchode.InitialValueProblem(y0=begin, t_eval=times))
    end = solution.ys[:, -1]
    return problem.ended(end[:, :-1]) + end[:, -1], flow.evaluations, end


def loop_by_ours(problem: Problem) -> float:
    """How many times as long as ours a divergence takes that asks for the derivatives of one feature after another."""
    flow, rows = _Augmented(problem.model), torch.arange(len(problem.x))
    t = torch.full((len(problem.x),), 0.5, dtype=torch.float64)

    def by_loop() -> None:
        x = problem.x.detach().requires_grad_()
        answer = flow.field(t, x)
        for feature in range(x.shape[1]):
            torch.autograd.grad(answer[:, feature].sum(), x, retain_graph=True)

    def by_ours() -> None:
        with torch.no_grad():
            Exact()(lambda x, part: flow.field(t[part], x), problem.x, rows)

    least = []
    for run in (by_loop, by_ours):
        seconds = []
        for _ in range(5):
            begin = time.perf_counter()
            run()
            seconds.append(time.perf_counter() - begin)
        least.append(min(seconds))
    return least[0] / least[1]


class _Augmented:
    """The probability-flow ODE in time, and the divergence of its field beside the event."""

    def __init__(self, model: Diffusion) -> None:
        self.model, self.evaluations = model, 0.0

    def __call__(self, t: Tensor, y: Tensor) -> Tensor:
        self.evaluations += 1
        local = Exact()(lambda x, part: self.field(t[part], x), y[:, :-1], torch.arange(len(y)))
        return torch.cat([local.velocity, local.trace], 1)

    def field(self, t: Tensor, x: Tensor) -> Tensor:
        denoiser = self.model.denoiser
        alpha, sigma = (level[:, None] for level in denoiser.schedule(t))
        alpha_rate, sigma_rate = (rate[:, None] for rate in denoiser.schedule.derivatives(t))
        mean = denoiser(x, t)
        return alpha_rate * mean + sigma_rate * (x - alpha * mean) / sigma


def report(name: str, results: list[Measured]) -> None:
    console = Console()
    title = "a trained network" if name == NETWORK else f"{name} features"
    table = Table("solver", "tolerance", "error: median", "90 %", "most", "evaluations", "seconds", title=title)
    for result in sorted(results, key=lambda each: (each.solver, -each.tolerance)):
        spread = (float(result.errors.median()), result.error, float(result.errors.max()))
        numbers = [f"{value:.1e}" for value in spread]
        row = (result.solver, f"{result.tolerance:g}", *numbers, f"{result.evaluations:.0f}", f"{result.seconds:.2f}")
        table.add_row(*row)
    console.print(table)
    table = Table(
        "at our tolerance", "torchdiffeq", "torchode", title=f"{title}: their time for an error of ours, by ours"
    )
    for result in (each for each in results if each.solver == "sciflow"):
        ratios = [seconds_for(result.error, peer, results) / result.seconds for peer in ("torchdiffeq", "torchode")]
        table.add_row(f"{result.tolerance:g}", *(f"{ratio:.1f}" for ratio in ratios))
    console.print(table)
    table = Table("tolerance", "truth within two", "error by bar: median", "95 %", title=f"{title}: our bars")
    for result in (each for each in results if each.bars is not None):
        shares = result.errors / result.bars
        within = float((shares <= 2).double().mean())
        table.add_row(
            f"{result.tolerance:g}", f"{within:.1%}", f"{shares.median():.2f}", f"{shares.quantile(0.95):.2f}"
        )
    console.print(table)


def seconds_for(error: float, solver: str, results: list[Measured]) -> float:
    """Time that a solver takes for an error, between those of its tolerances; the nearest where it has none."""
    curve = sorted((each.error, each.seconds) for each in results if each.solver == solver)
    if error <= curve[0][0]:
        return curve[0][1]
    for (low, longer), (high, shorter) in pairwise(curve):
        if error <= high:
            share = math.log(error / low) / math.log(high / low) if high > low else 0.0
            return math.exp((1 - share) * math.log(longer) + share * math.log(shorter))
    return curve[-1][1]


def draw(found: dict[str, list[Measured]], path: Path) -> None:
    figure, panels = new_figure(4.4 * len(found), 4.0, 1, len(found))
    for panel, (name, results) in zip(panels, found.items(), strict=True):
        for color, solver in zip(PALETTE, ("sciflow", "torchdiffeq", "torchode"), strict=False):
            curve = sorted((each.error, each.seconds) for each in results if each.solver == solver)
            panel.loglog(*zip(*curve, strict=True), marker="o", color=color, label=solver)
        panel.set_title("a trained network" if name == NETWORK else f"{name} features")
        style(panel, "error of log p, nats (90 % of rows)", "seconds" if panel is panels[0] else "")
    panels[0].legend(frameon=False)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
