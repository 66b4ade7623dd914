"""Speed of our flows beside zuko, nflows and normflows: the same layers, ratios in one run.

    python tests/benchmarks/flows.py                     # one thread, batch 1,024
    python tests/benchmarks/flows.py --device cuda --batch 65536

Spline flows of five transforms, width 128 x 2, 8 bins, by coupling and autoregressive. Every round times every model
once, in turn; figures are medians over rounds, ratios medians of the ratios of one round. "Conditioners" are the
networks of our own flow alone, on inputs of the same size: what log p would cost if splines and mixing were free.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import nflows.distributions
import nflows.flows
import nflows.nn.nets
import nflows.transforms
import normflows
import torch
import zuko
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import sciflow as sf
from sciflow.bijections import Autoregressive, Coupling, inverse_by
from sciflow.kernels import compiling

NUM_TRANSFORMS, WIDTH, NUM_BINS, TAIL_BOUND = 5, 128, 8, 3.0
OURS, UNFUSED, CONDITIONERS = "sciflow", "sciflow, not compiled", "its conditioners alone"


@dataclass(frozen=True)
class Contestant:
    """What one library does with a batch; None where it cannot."""

    log_prob: Callable[[], Tensor] | None
    train: Callable[[], None] | None
    sample: Callable[[], Tensor] | None = None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--features", type=int, nargs="+", default=[6, 21, 43])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(arguments.threads)
    console = Console(width=132)
    for autoregressive in (False, True):
        for num_features in arguments.features:
            torch.manual_seed(0)
            x = torch.randn(arguments.batch, num_features, device=arguments.device)
            contestants = {
                **ours(num_features, autoregressive, x),
                **peers(num_features, autoregressive, x),
            }
            show(console, num_features, autoregressive, contestants, arguments)
    console.print(compile_cost(arguments.device))


def ours(num_features: int, autoregressive: bool, x: Tensor) -> dict[str, Contestant]:
    """Our spline flow with and without compiled kernels, its networks alone, and the parallel inverse."""
    flow = sf.flows.NSF(
        (num_features,), autoregressive=autoregressive, num_transforms=NUM_TRANSFORMS, num_bins=NUM_BINS, seed=0
    )
    flow = off_neutral(flow.to(x.device))
    found = {OURS: contestant(flow, flow.log_prob, x, lambda: flow.sample(len(x)))}
    fused = {name: under(found[OURS], name, setting) for name, setting in ((OURS, "always"), (UNFUSED, "never"))}
    fused[CONDITIONERS] = conditioners(flow, x)
    if autoregressive:

        def parallel() -> Tensor:
            with compiling("always"), inverse_by("parallel"):
                return flow.sample(len(x))

        fused["sciflow, parallel inverse"] = Contestant(None, None, parallel)
        with torch.no_grad(), compiling("always"):
            one = flow.decode(x)
            with inverse_by("parallel"):
                difference = float((one - flow.decode(x)).abs().max())
        assert difference <= 1e-5, difference
    return fused


def under(plain: Contestant, name: str, setting: str) -> Contestant:
    """The same with kernels compiled always or never."""

    def wrapped(call: Callable[[], object] | None) -> Callable[[], object] | None:
        def run() -> object:
            with compiling(setting):
                return call()

        return None if call is None else run

    return Contestant(wrapped(plain.log_prob), wrapped(plain.train), wrapped(plain.sample))


def conditioners(flow: sf.flows.NSF, x: Tensor) -> Contestant:
    """The networks of a flow, one after the other, forward, and forward and backward."""
    calls: list[Callable[[], Tensor]] = []
    for bijection in flow.transform.bijections:
        if isinstance(bijection, Coupling):
            kept = x[:, : bijection.num_kept].contiguous()
            calls.append(lambda net=bijection.network, inputs=kept: net(inputs))
        elif isinstance(bijection, Autoregressive):
            calls.append(lambda net=bijection.network: net(x))
    grads = [torch.randn_like(call()) for call in calls]

    def train() -> None:
        flow.zero_grad()
        for call, grad in zip(calls, grads, strict=True):
            call().backward(grad)

    return Contestant(lambda: [call() for call in calls][-1], train)


def peers(num_features: int, autoregressive: bool, x: Tensor) -> dict[str, Contestant]:
    """The same layers by the other libraries."""
    hidden = (WIDTH, WIDTH)
    passes = None if autoregressive else 2
    theirs = zuko.flows.NSF(
        num_features, transforms=NUM_TRANSFORMS, hidden_features=hidden, bins=NUM_BINS, passes=passes
    )
    theirs = off_neutral(theirs.to(x.device))
    rows = (len(x),)
    found = {"zuko": contestant(theirs, lambda rows: theirs().log_prob(rows), x, lambda: theirs().sample(rows))}
    chain = nflows_chain(num_features, autoregressive)
    flow = nflows.flows.Flow(
        nflows.transforms.CompositeTransform(chain), nflows.distributions.StandardNormal([num_features])
    )
    flow = off_neutral(flow.to(x.device))
    found["nflows"] = contestant(flow, flow.log_prob, x, lambda: flow.sample(len(x)))
    normal = normflows.distributions.DiagGaussian(num_features, trainable=False)
    other = normflows.NormalizingFlow(normal, normflows_chain(num_features, autoregressive))
    other = off_neutral(other.to(x.device))
    found["normflows"] = contestant(other, other.log_prob, x, lambda: other.sample(len(x))[0])
    return found


def nflows_chain(num_features: int, autoregressive: bool) -> list[nn.Module]:
    chain: list[nn.Module] = []
    for i in range(NUM_TRANSFORMS):
        chain.append(nflows.transforms.LULinear(num_features))
        if autoregressive:
            chain.append(
                nflows.transforms.MaskedPiecewiseRationalQuadraticAutoregressiveTransform(
                    num_features, WIDTH, num_blocks=1, num_bins=NUM_BINS, tails="linear", tail_bound=TAIL_BOUND
                )
            )
        else:
            mask = torch.zeros(num_features)
            mask[i % 2 :: 2] = 1
            chain.append(
                nflows.transforms.PiecewiseRationalQuadraticCouplingTransform(
                    mask=mask,
                    transform_net_create_fn=lambda inputs, outputs: nflows.nn.nets.ResidualNet(
                        inputs, outputs, hidden_features=WIDTH, num_blocks=1
                    ),
                    num_bins=NUM_BINS,
                    tails="linear",
                    tail_bound=TAIL_BOUND,
                )
            )
    return chain


def normflows_chain(num_features: int, autoregressive: bool) -> list[nn.Module]:
    spline = (
        normflows.flows.AutoregressiveRationalQuadraticSpline
        if autoregressive
        else normflows.flows.CoupledRationalQuadraticSpline
    )
    chain: list[nn.Module] = []
    for _ in range(NUM_TRANSFORMS):
        chain.append(spline(num_features, 1, WIDTH, num_bins=NUM_BINS, tail_bound=TAIL_BOUND))
        chain.append(normflows.flows.LULinearPermute(num_features))
    return chain


def contestant(
    module: nn.Module, log_prob: Callable[[Tensor], Tensor], x: Tensor, sample: Callable[[], Tensor]
) -> Contestant:
    def train() -> None:
        module.zero_grad()
        log_prob(x).mean().neg().backward()

    return Contestant(lambda: log_prob(x), train, sample)


def off_neutral(module: nn.Module) -> nn.Module:
    """Weights as after some training: at a neutral start some bins are never visited."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    return module


def show(
    console: Console, num_features: int, autoregressive: bool, contestants: dict[str, Contestant], arguments: object
) -> None:
    """Time everything in turn, and print a table."""
    kind = "autoregressive" if autoregressive else "coupling"
    device, batch = arguments.device, arguments.batch  # type: ignore[attr-defined]
    table = Table(title=f"{kind} spline flow, D = {num_features}, batch {batch:,}, {device}")
    for heading in ("", "log p [ms]", "/ ours", "forward + backward [ms]", "/ ours", "sample [ms]", "/ ours"):
        table.add_column(heading, justify="left" if not heading else "right")
    columns = {}
    for name, rounds in (("log_prob", arguments.rounds), ("train", arguments.rounds), ("sample", 3)):  # type: ignore[attr-defined]
        calls = {who: getattr(c, name) for who, c in contestants.items() if getattr(c, name) is not None}
        columns[name] = timed(calls, rounds, device, with_gradient=name == "train")
    for who in contestants:
        cells = []
        for seconds in columns.values():
            if who not in seconds:
                cells += ["", ""]
                continue
            ratio = statistics.median(t / o for t, o in zip(seconds[who], seconds[OURS], strict=True))
            cells += [f"{1e3 * statistics.median(seconds[who]):.1f}", f"{ratio:.2f}"]
        table.add_row(who, *cells)
    console.print(table)
    sample, log_prob = columns["sample"][OURS], columns["log_prob"][OURS]
    for name in ("log_prob", "train"):
        seconds = columns[name]
        fastest = min((w for w in seconds if not w.startswith(("sciflow", "its"))), key=lambda w: min(seconds[w]))
        over = statistics.median(t / o for t, o in zip(seconds[fastest], seconds[OURS], strict=True))
        alone = statistics.median(o / c for o, c in zip(seconds[OURS], seconds[CONDITIONERS], strict=True))
        what = "log p" if name == "log_prob" else "forward + backward"
        console.print(f"  {what}: {over:.2f} times as fast as {fastest}; {alone:.2f} times our conditioners alone")
    console.print(f"  sample: {statistics.median(sample) / statistics.median(log_prob):.1f} times our log p")


def timed(
    calls: dict[str, Callable[[], object]], rounds: int, device: str, with_gradient: bool
) -> dict[str, list[float]]:
    """Seconds of every call in every round; the first round, which compiles and warms up, does not count."""
    seconds: dict[str, list[float]] = {who: [] for who in calls}
    with torch.set_grad_enabled(with_gradient):
        for number in range(-2, rounds):
            for who, call in calls.items():
                synchronise(device)
                began = time.perf_counter()
                call()
                synchronise(device)
                if number >= 0:
                    seconds[who].append(time.perf_counter() - began)
    return seconds


def synchronise(device: str) -> None:
    if device != "cpu":
        torch.accelerator.synchronize()


def compile_cost(device: str) -> Table:
    """Seconds until the first compiled gradient, in a fresh process, with nothing and with everything on disk."""
    script = (
        "import time; began = time.perf_counter()\n"
        "import torch, sciflow as sf; from sciflow.kernels import compiling\n"
        "imported = time.perf_counter()\n"
        f"flow = sf.flows.NSF((6,), seed=0).to('{device}')\n"
        f"with compiling('always'): flow.log_prob(torch.randn(1024, 6, device='{device}')).mean().backward()\n"
        "print(time.perf_counter() - imported)\n"
    )
    table = Table("", "seconds", title="until the first compiled log p and gradient")
    with tempfile.TemporaryDirectory() as cache:
        for name in ("nothing on disk", "compiled before"):
            environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": cache}
            done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
            table.add_row(name, f"{float(done.stdout):.1f}" if done.returncode == 0 else done.stderr[-300:])
    return table


if __name__ == "__main__":
    main()
