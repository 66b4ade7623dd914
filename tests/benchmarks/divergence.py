"""How far estimates of the divergence are off, at equal numbers of products with the Jacobian.

    python tests/benchmarks/divergence.py

Hutchinson's estimate with signs, which is ours, beside two that take the largest directions off first: Hutch++ (Meyer
et al., arXiv:2010.09649) and XTrace (Epperly et al., arXiv:2301.07825). The Jacobians are those of the probability flow
of densities that are known: mixtures, and a smooth Gaussian field of 16 x 16 cells.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from beside import beside
from rich.console import Console
from rich.table import Table
from torch import Tensor

from sciflow.diffusion import Diffusion, schedule

analytic = beside("tests/truth/analytic")

PRODUCTS, DRAWS, ROWS = 18, 200, 4
NOISE = (0.1, 0.3, 1.0, 3.0)


def main() -> None:
    table = Table("density", "noise", "trace", *ESTIMATES, title=f"off by, in {PRODUCTS} products: root mean square")
    for name, truth in densities().items():
        for noise in NOISE:
            found = {estimate: [] for estimate in ESTIMATES}
            traces = []
            for row, jacobian in enumerate(jacobians(truth, noise)):
                trace = jacobian.trace()
                traces.append(abs(float(trace)))
                generator = torch.Generator().manual_seed(row)
                for estimate, of in ESTIMATES.items():
                    draws = torch.stack([of(jacobian, PRODUCTS, generator) for _ in range(DRAWS)])
                    found[estimate].append(float((draws - trace).square().mean()))
            errors = [f"{math.sqrt(sum(squares) / len(squares)):.3f}" for squares in found.values()]
            table.add_row(name, f"{noise:g}", f"{sum(traces) / len(traces):.1f}", *errors)
    Console().print(table)


def densities() -> dict[str, analytic.GaussianMixture]:
    cells = torch.cartesian_prod(torch.arange(16.0), torch.arange(16.0)).double()
    smooth = torch.exp(-torch.cdist(cells, cells).square() / (2 * 3.0**2)) + 1e-4 * torch.eye(256)
    return {
        "mixture, 43": analytic.GaussianMixture.random(43, 3).normalised(),
        "mixture, 256": analytic.GaussianMixture.random(256, 3).normalised(),
        "field, 16 x 16": analytic.Gaussian(torch.zeros(256), smooth),
    }


def jacobians(truth: analytic.GaussianMixture, noise: float) -> list[Tensor]:
    """Of what the probability flow is solved for, at noisy draws."""
    chosen = schedule("vp")
    d = truth.means.shape[1]
    model = Diffusion.from_denoiser(lambda x, t: truth.denoise(x, t, chosen), (d,), chosen).double()
    generator = torch.Generator().manual_seed(0)
    clean = truth.sample(ROWS, generator)
    z = (clean + noise * torch.randn(clean.shape, generator=generator, dtype=torch.float64)) / math.hypot(1, noise)
    time = chosen.time(torch.tensor([noise], dtype=torch.float64))
    return [torch.func.jacrev(lambda one: model.denoiser.residual(one[None], time)[0])(row) for row in z]


def hutchinson(jacobian: Tensor, products: int, generator: torch.Generator) -> Tensor:
    probes = signs(jacobian, products, generator)
    return (probes * (jacobian @ probes)).sum(0).mean()


def hutch_plus_plus(jacobian: Tensor, products: int, generator: torch.Generator) -> Tensor:
    each = products // 3
    largest, _ = torch.linalg.qr(jacobian @ signs(jacobian, each, generator))
    probes = signs(jacobian, products - 2 * each, generator)
    probes = probes - largest @ (largest.mT @ probes)
    return (largest.mT @ jacobian @ largest).trace() + (probes * (jacobian @ probes)).sum() / probes.shape[1]


def xtrace(jacobian: Tensor, products: int, generator: torch.Generator) -> Tensor:
    d, count = len(jacobian), products // 2
    probes = torch.randn(d, count, generator=generator, dtype=torch.float64)
    images = jacobian @ probes
    estimates = []
    for place in range(count):
        others = torch.arange(count) != place
        largest, _ = torch.linalg.qr(images[:, others])
        rest = probes[:, place] - largest @ (largest.mT @ probes[:, place])
        rest = rest * math.sqrt(d - count + 1) / rest.norm()
        estimates.append((largest.mT @ jacobian @ largest).trace() + rest @ jacobian @ rest)
    return torch.stack(estimates).mean()


def signs(jacobian: Tensor, count: int, generator: torch.Generator) -> Tensor:
    return 2 * torch.randint(2, (len(jacobian), count), generator=generator).to(jacobian) - 1


ESTIMATES: dict[str, Callable[[Tensor, int, torch.Generator], Tensor]] = {
    "Hutchinson": hutchinson,
    "Hutch++": hutch_plus_plus,
    "XTrace": xtrace,
}


if __name__ == "__main__":
    main()
