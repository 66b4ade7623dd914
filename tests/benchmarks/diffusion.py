"""How good the draws of diffusion models are, and what the machinery around the network costs.

    python tests/benchmarks/diffusion.py --tables
    python tests/benchmarks/diffusion.py --tables --sets checkerboard,htru2 --seeds 2
    python tests/benchmarks/diffusion.py --fields --out pictures
    python tests/benchmarks/diffusion.py --speed

Tables: a classifier learns to tell draws from held-out rows; 0.5 means that it cannot. Every model is fitted by
``sf.fit`` with nothing set but the seed (in the plane, flows have 16 bins); azula, the peer, is trained on the same
rows for as many steps, in batches of the same size. Fields: real climate, in spectra and marginals, with land where
there is land. Speed: one training step and one sampling step, by the time of the bare network.

Other measurements of diffusion: ``samplers.py`` (work and precision on known densities), ``distillation.py``
(students), ``assimilation.py`` (observations).
"""

from __future__ import annotations

import argparse
import math
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from beside import beside, tell
from diffusion_fields import fields
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import sciflow as sf
from sciflow import families

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
TOYS = ("moons", "rings", "checkerboard", "pinwheel", "gaussians")
TABLES = ("htru2", "power-plant", "concrete", "kin8nm")
TOY_ROWS, MOST_TEST_ROWS = 50_000, 4_000
GOAL = 0.55
SAMPLING_STEPS = 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tables", action="store_true", help="classifier two-sample tests in the plane and on tables")
    parser.add_argument("--fields", action="store_true", help="spectra and marginals of real fields")
    parser.add_argument("--speed", action="store_true", help="time beside the bare network")
    parser.add_argument("--sets", help="sets to keep, with commas between them")
    parser.add_argument("--seeds", type=int, default=1, help="repeat with seeds 0, 1, ... (%(default)s)")
    parser.add_argument("--out", type=Path, default=Path("pictures"), help="folder for pictures (%(default)s)")
    parser.add_argument("--device", default="cpu", help="for --speed (%(default)s)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", UserWarning)
    everything = not (options.tables or options.fields or options.speed)
    kept = options.sets.split(",") if options.sets else None
    if options.tables or everything:
        tables([name for name in (*TOYS, *TABLES) if kept is None or name in kept], options.seeds)
    if options.fields or everything:
        fields(SHARED / "climate", options.out, kept)
    if options.speed or everything:
        speed(options.device)


# Draws of tables. ----------------------------------------------------------------------------------------------------


def tables(names: list[str], seeds: int) -> None:
    """Accuracy of a classifier that tells draws from held-out rows."""
    title = f"Classifier two-sample test, draws against held-out rows (goal <= {GOAL}, and not above the flow's)"
    table = Table("set", "seed", "model", "accuracy: perceptron", "trees", "steps", "fit [s]", "draw [s]", title=title)
    for name in names:
        for seed in range(seeds):
            rows = _rows(name, seed)
            if rows is None:
                tell(f"{name}: not at hand, left out")
                continue
            train, test = rows
            for kind, draws, steps, fitted, drawn in drawn_by(train, len(test), seed):
                accuracies = [f"{two_sample(test, draws, seed, trees):.3f}" for trees in (False, True)]
                table.add_row(name, str(seed), kind, *accuracies, f"{steps:,}", f"{fitted:.0f}", f"{drawn:.1f}")
                tell(f"{name}, seed {seed}, {kind}: {accuracies} after {steps:,} steps")
    Console(width=120).print(table)


def drawn_by(train: np.ndarray, num_draws: int, seed: int) -> Iterator[tuple[str, np.ndarray, int, float, float]]:
    """Who, its draws, its steps of training, and the seconds that these and the draws took."""
    yield "other rows of the data", train[:num_draws], 0, 0.0, 0.0
    steps = {}
    for family, sizes in {"Diffusion": {}, "NSF": {"num_bins": 16} if train.shape[1] == 2 else {}}.items():
        model = families.build({"name": family.lower(), "seed": seed, **sizes}, train.shape[1:])
        fit = sf.fit(model, train, seed=seed)
        steps[family] = fit.steps
        began = time.perf_counter()
        draws = model.sample(num_draws, seed=seed).double().numpy()
        yield family, draws, fit.steps, fit.seconds, time.perf_counter() - began
    yield "azula, as many steps", *azula(train, num_draws, steps["Diffusion"], seed)


def two_sample(ours: np.ndarray, theirs: np.ndarray, seed: int, trees: bool = False) -> float:
    """Five-fold accuracy of a classifier that tells two sets of rows apart, each put in units of the first one's.

    A perceptron with two hidden layers of ten times as many units as columns (at least 32), as in Lueckmann et al.,
    arXiv:2101.04653; or boosted trees, which see steps and edges that it overlooks.
    """
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.model_selection import KFold, cross_val_score
    from sklearn.neural_network import MLPClassifier

    ours, theirs = ours[:MOST_TEST_ROWS], theirs[:MOST_TEST_ROWS]
    mean, std = ours.mean(0), ours.std(0) + 1e-12
    rows = (np.concatenate([ours, theirs]) - mean) / std
    labels = np.repeat([0, 1], [len(ours), len(theirs)])
    units = max(32, 10 * ours.shape[1])
    classifier = (
        HistGradientBoostingClassifier(random_state=seed)
        if trees
        else MLPClassifier((units, units), max_iter=1000, early_stopping=True, n_iter_no_change=25, random_state=seed)
    )
    folds = KFold(5, shuffle=True, random_state=seed)
    return float(cross_val_score(classifier, rows, labels, cv=folds).mean())


def azula(train: np.ndarray, num_draws: int, num_steps: int, seed: int) -> tuple[np.ndarray, int, float, float]:
    """The peer as its documentation trains it: Karras's preconditioning, a perceptron that is told the time, Adam."""
    from azula.denoise import KarrasDenoiser
    from azula.noise import VPSchedule
    from azula.sample import DDIMSampler

    torch.manual_seed(seed)
    rows = torch.from_numpy(train).float()
    mean, std = rows.mean(0), rows.std(0)
    rows = (rows - mean) / std
    denoiser = KarrasDenoiser(_Perceptron(rows.shape[1]), VPSchedule())
    optimizer = torch.optim.Adam(denoiser.parameters(), 1e-3)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, num_steps)
    batch_size = _batch_size(len(rows))
    began = time.perf_counter()
    for _ in range(num_steps):
        x = rows[torch.randint(len(rows), (batch_size,))]
        loss = denoiser.loss(x, torch.rand(batch_size))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        decay.step()
    fitted = time.perf_counter() - began
    began = time.perf_counter()
    sampler = DDIMSampler(denoiser.eval(), steps=100, silent=True)
    with torch.no_grad():
        draws = sampler(sampler.init((num_draws, rows.shape[1]))) * std + mean
    return draws.double().numpy(), num_steps, fitted, time.perf_counter() - began


class _Perceptron(nn.Module):
    """Four hidden layers of 256, like ours."""

    def __init__(self, num_features: int, width: int = 256) -> None:
        super().__init__()
        self.time = nn.Sequential(nn.Linear(64, width), nn.SiLU(), nn.Linear(width, width))
        self.first = nn.Linear(num_features, width)
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(4))
        self.last = nn.Linear(width, num_features)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        angles = t.reshape(-1, 1) * torch.exp(torch.linspace(math.log(0.25), math.log(16), 32))
        embedded = self.time(torch.cat((angles.sin(), angles.cos()), -1))
        h = self.first(x)
        for layer in self.layers:
            h = h + nn.functional.silu(layer(h + embedded))
        return self.last(h)


def _batch_size(num_rows: int) -> int:
    from sciflow.config import Training
    from sciflow.training.budget import Budget

    return Budget.of(Training(), int(0.9 * num_rows)).batch_size


def _rows(name: str, seed: int) -> tuple[np.ndarray, np.ndarray] | None:
    """Rows to learn from, and rows to be held against draws."""
    if name in TOYS:
        toy = beside("datasets/toys").TOYS[name]
        return toy.sample(TOY_ROWS, seed=seed), toy.sample(MOST_TEST_ROWS, seed=1_000_000 + seed)
    if name == "htru2":
        path = SHARED / "htru2" / "HTRU_2.csv"
        if not path.exists():
            return None
        rows = np.loadtxt(path, delimiter=",", skiprows=1, usecols=range(8))
    else:
        data = beside("datasets/uci").load(name)
        rows = np.concatenate([data.features, data.target], axis=1)
    rows = rows[np.random.default_rng(seed).permutation(len(rows))]
    num_test = min(MOST_TEST_ROWS, len(rows) // 4)
    return rows[num_test:], rows[:num_test]


# Speed. --------------------------------------------------------------------------------------------------------------


def speed(device: str, batch_size: int = 256, rounds: int = 21) -> None:
    """Time of a step by that of the bare network: the least of rounds in turn, which others disturb the least."""
    title = f"Machinery around the network, batch {batch_size}, {device}"
    table = Table("network", "training step [ms]", "x network", "sampling step [ms]", "x network", title=title)
    shapes = {"perceptron, 8 columns": (8,), "U-Net, [1, 8, 8], 32 channels": (1, 8, 8)}
    for name, shape in shapes.items():
        sizes = {} if len(shape) == 1 else {"network": {"unet": {"channels": 32}}}
        model = sf.diffusion.Diffusion(shape, seed=0, **sizes).to(device)
        x = torch.randn(batch_size, *shape, device=device)
        level = torch.randn(batch_size, device=device)
        network = model.denoiser.network
        parameters = list(model.parameters())

        def backward(loss: Tensor, parameters: list[Tensor] = parameters) -> None:
            torch.autograd.grad(loss, parameters)

        def training(model: sf.Density = model, x: Tensor = x) -> None:
            backward(model.train().loss(x).mean())

        def bare(network: nn.Module = network, x: Tensor = x, level: Tensor = level) -> None:
            backward(network(x, level).square().mean())

        def sampling(model: sf.Density = model, x: Tensor = x) -> None:
            model.eval().sample(len(x), num_steps=SAMPLING_STEPS, seed=0, progress=False)

        def passes(network: nn.Module = network, x: Tensor = x, level: Tensor = level) -> None:
            with torch.no_grad():
                for _ in range(SAMPLING_STEPS):
                    network(x, level[:1])

        times = {run: [] for run in (training, bare, sampling, passes)}
        for _ in range(rounds):
            for run, seconds in times.items():
                run()  # as in a loop, where memory that a step needs is still at hand from the step before it
                seconds.append(_seconds(run, device))
        step, network_step, draw, network_draw = (1000 * min(seconds) for seconds in times.values())
        table.add_row(
            name,
            f"{step:.1f}",
            f"{step / network_step:.2f}",
            f"{draw / SAMPLING_STEPS:.2f}",
            f"{draw / network_draw:.2f}",
        )
    Console(width=120).print(table)


def _seconds(run: object, device: str) -> float:
    assert callable(run)
    if device != "cpu":
        torch.cuda.synchronize()
    began = time.perf_counter()
    run()
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
