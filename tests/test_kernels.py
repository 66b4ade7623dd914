"""Compiled kernels: the same numbers, when it pays, and no failure where no compiler is found."""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest
import torch
from torch import Tensor

from sciflow import kernels
from sciflow.bijections import rational_quadratic_spline, rational_quadratic_spline_inverse
from sciflow.errors import ConfigError
from sciflow.flows import NSF
from sciflow.kernels import Kernel, compiling, repeated, worthwhile

SPLINES = {"forward": rational_quadratic_spline, "inverse": rational_quadratic_spline_inverse}
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="there is no C++ compiler here")


@pytest.fixture(autouse=True)
def _automatic(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SCIFLOW_COMPILE", raising=False)


@pytest.fixture
def uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernels' own formulas, run operation by operation."""
    monkeypatch.setattr(Kernel, "broken", True)


def inputs(num_parameters: int, n: int, dtype: torch.dtype, scale: float = 1.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = 2 * torch.randn(n, generator=generator, dtype=dtype)
    parameters = scale * torch.randn(num_parameters, n, generator=generator, dtype=dtype)
    return x.requires_grad_(), parameters.requires_grad_()


def outputs_and_gradients(way: str, setting: str, x: Tensor, parameters: Tensor) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    weights = [torch.randn(x.shape, generator=generator, dtype=x.dtype) for _ in range(2)]
    with compiling(setting):
        y, log_slope = SPLINES[way](x, parameters, 3.0)
        gradients = torch.autograd.grad((y, log_slope), (x, parameters), weights)
    return [y, log_slope, *gradients]


@pytest.mark.parametrize("way", SPLINES)
class TestTheKernelsFormulas:
    @pytest.mark.usefixtures("uncompiled")
    @pytest.mark.parametrize("num_parameters", [5, 6, 14, 23, 24])
    def test_are_those_of_the_spline(self, way: str, num_parameters: int) -> None:
        x, parameters = inputs(num_parameters, 2_000, torch.float64)
        expected = outputs_and_gradients(way, "never", x, parameters)
        for ours, theirs in zip(outputs_and_gradients(way, "always", x, parameters), expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-9)

    @pytest.mark.usefixtures("uncompiled")
    def test_survive_200k_wild_splines(self, way: str) -> None:
        x, parameters = inputs(23, 200_000, torch.float32, scale=100.0)
        for values in outputs_and_gradients(way, "always", x, parameters):
            assert values.isfinite().all()

    @pytest.mark.usefixtures("uncompiled")
    def test_leave_infinite_rows_to_themselves(self, way: str) -> None:
        x = torch.tensor([torch.inf, -torch.inf, 3e38, 0.5], requires_grad=True)
        parameters = torch.randn(23, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
        y, log_slope, _, gradient = outputs_and_gradients(way, "always", x, parameters)
        assert torch.equal(y[:3], x[:3])
        assert not log_slope[:3].any()
        assert gradient.isfinite().all()

    @pytest.mark.usefixtures("uncompiled")
    @pytest.mark.parametrize("num_parameters", [8, 9])
    def test_are_differentiable_twice(self, way: str, num_parameters: int) -> None:
        x, parameters = inputs(num_parameters, 3, torch.float64)
        with compiling("always"):
            assert torch.autograd.gradgradcheck(lambda x, p: SPLINES[way](x, p, 6.0), (x, parameters))

    @pytest.mark.usefixtures("uncompiled")
    def test_are_left_alone_by_transforms(self, way: str) -> None:
        x, parameters = inputs(23, 5, torch.float64)
        with compiling("always"):
            jacobian = torch.func.jacrev(lambda x: SPLINES[way](x, parameters, 3.0)[0])(x)
            tangent = torch.func.jvp(lambda x: SPLINES[way](x, parameters, 3.0)[0], (x,), (torch.ones_like(x),))[1]
            log_slope = SPLINES[way](x, parameters, 3.0)[1]
        torch.testing.assert_close(jacobian.diagonal(), log_slope.exp())
        torch.testing.assert_close(tangent, log_slope.exp())

    @needs_compiler
    def test_give_the_same_numbers_compiled(self, way: str) -> None:
        x, parameters = inputs(23, 5_000, torch.float32)
        exact = outputs_and_gradients(way, "never", *(t.detach().double().requires_grad_() for t in (x, parameters)))
        plain = outputs_and_gradients(way, "never", x, parameters)
        fused = outputs_and_gradients(way, "always", x, parameters)
        assert not Kernel.broken
        # Either is as far from the truth as float32 has it; where splines are steep, neither is near.
        for ours, theirs, truth in zip(fused, plain, exact, strict=True):
            assert (ours - truth).abs().mean() <= 2 * (theirs - truth).abs().mean() + 1e-7


@needs_compiler
class TestCompiling:
    def test_another_batch_size_compiles_nothing_anew(self) -> None:
        flow = NSF((3,), num_transforms=2, hidden_features=(8,), seed=0)
        with compiling("always"):
            flow.log_prob(torch.randn(64, 3)).mean().backward()
            compiled = torch._dynamo.utils.counters["stats"]["unique_graphs"]
            for n in (1, 3, 65, 1_000):
                flow.log_prob(torch.randn(n, 3)).mean().backward()
            assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == compiled

    def test_a_flow_gives_the_same_log_prob_gradient_and_draws(self) -> None:
        flow = NSF((3,), autoregressive=True, num_transforms=2, hidden_features=(8,), seed=0)
        with torch.no_grad():
            for parameter in flow.parameters():
                parameter += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0))
        found = []
        for setting in ("never", "always"):
            with compiling(setting):
                flow.zero_grad()
                log_prob = flow.log_prob(torch.linspace(-2, 2, 300).reshape(100, 3))
                log_prob.mean().backward()
                gradient = torch.cat([p.grad.reshape(-1) for p in flow.parameters() if p.grad is not None])
                found.append((log_prob, gradient, flow.sample(50, seed=0)))
        for plain, fused in zip(*found, strict=True):
            torch.testing.assert_close(plain, fused, rtol=1e-4, atol=1e-5)


class TestWhenItPays:
    def test_by_the_work_ahead_and_nothing_else(self) -> None:
        x = torch.zeros(10_000)
        assert not worthwhile(x)
        with repeated(1_000):
            assert not worthwhile(x)
            with repeated(2):
                assert worthwhile(x)
        assert not worthwhile(x)

    def test_small_calls_count_for_what_it_takes_to_start_them(self) -> None:
        with repeated(10_000):
            assert worthwhile(torch.zeros(2))
            assert not worthwhile(torch.zeros(1))

    @pytest.mark.parametrize(("setting", "expected"), [("always", True), ("never", False), ("NEVER", False)])
    def test_the_environment_has_the_last_word(
        self, monkeypatch: pytest.MonkeyPatch, setting: str, expected: bool
    ) -> None:
        monkeypatch.setenv("SCIFLOW_COMPILE", setting)
        with compiling("never" if expected else "always"):
            assert worthwhile(torch.zeros(100)) is expected

    def test_an_empty_setting_is_none(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("SCIFLOW_COMPILE", "")
        assert not worthwhile(torch.zeros(100))
        with compiling("always"):
            assert worthwhile(torch.zeros(100))

    def test_an_unknown_setting_is_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("SCIFLOW_COMPILE", "alway")
        with pytest.raises(ConfigError, match="SCIFLOW_COMPILE: got 'alway'; did you mean always"):
            worthwhile(torch.zeros(100))

    def test_within_someone_elses_compiling_never(self) -> None:
        torch._dynamo.reset()
        with compiling("always"):
            seen = torch.compile(lambda x: x + int(worthwhile(x)), backend="eager", fullgraph=True)(torch.zeros(4))
        assert not seen.any()


def test_without_a_compiler_the_same_numbers_come_out_and_it_is_said_once(tmp_path) -> None:
    script = (
        "import warnings, torch, sciflow as sf\n"
        "from sciflow.kernels import compiling\n"
        "flow, x = sf.flows.NSF((3,), num_transforms=2, seed=0), torch.randn(50, 3)\n"
        "with warnings.catch_warnings(record=True) as said, compiling('always'):\n"
        "    warnings.simplefilter('always')\n"
        "    log_prob = [flow.log_prob(x) for _ in range(3)]\n"
        "    log_prob[0].mean().backward()\n"
        "with compiling('never'):\n"
        "    torch.testing.assert_close(log_prob[0], flow.log_prob(x))\n"
        "ours = [str(w.message) for w in said if 'torch.compile does not work here' in str(w.message)]\n"
        "print(len(ours), ours[0])\n"
    )
    environment = {"PATH": str(tmp_path), "CXX": "no-such-compiler", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("1 torch.compile does not work here")
    assert "SCIFLOW_COMPILE=never" in done.stdout


def test_settings_are_those_of_the_workflow_file() -> None:
    from sciflow.config import Training

    assert Training(compile="never").compile == "never"
    assert set(kernels.SETTINGS) == {"auto", "always", "never"}
