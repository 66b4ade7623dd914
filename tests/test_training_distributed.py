"""Several processes: the same rows and averages as one; killed, stopped and replaced, they come to the same end."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import torch.multiprocessing as mp
import yaml
from processes import alive, offspring, processes, wait_until

import sciflow as sf
from sciflow.config import Training
from sciflow.errors import ConfigError, TrainingError
from sciflow.training import checkpoint as checkpoints
from sciflow.training.loop import train as train_loop
from sciflow.training.metrics import Metrics, read_metrics
from sciflow.training.process import Process
from sciflow.training.rows import prepare, training_data

COMMAND = [sys.executable, "-m", "sciflow.cli", "train"]
TORCHRUN = [
    sys.executable,
    "-m",
    "torch.distributed.run",
    "--standalone",
    "--nproc-per-node",
    "2",
    "-m",
    "sciflow.cli",
    "train",
]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
STEPS = 400


def draws() -> pd.DataFrame:
    rows = np.random.default_rng(0).normal(size=(700, 2)) @ [[1, 0.5], [0, 1]]
    return pd.DataFrame(rows, columns=["u", "v"])


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> sf.Store:
    return sf.shard(draws(), tmp_path_factory.mktemp("several") / "rows.zarr", shard_rows=64, progress=False)


@pytest.fixture
def workflow(store, tmp_path) -> Path:
    """A workflow file whose run takes a few seconds."""
    content = {
        "name": "demo",
        "data": {"store": store.path},
        "model": {"name": "nsf", "num_transforms": 1, "hidden_features": [16]},
        "training": {"batch_size": 51, "max_steps": STEPS, "validate_every": 20, "patience": 1000},
    }
    file = tmp_path / "flow.yaml"
    file.write_text(yaml.safe_dump(content))
    return file


def start(*arguments: str | Path, launcher: list[str] = COMMAND) -> subprocess.Popen:
    command = [*launcher, *map(str, arguments), "--quiet"]
    return subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def ended(child: subprocess.Popen, code: int = 0, seconds: float = 120) -> str:
    """Wait for a command; return what it said on standard error."""
    _, said = child.communicate(timeout=seconds)
    assert child.returncode == code, said
    return said


def saved(folder: Path) -> list[Path]:
    return sorted((folder / "checkpoints").glob("step-*"))


def digest(folder: Path) -> str:
    return hashlib.sha256((folder / "model" / "model.safetensors").read_bytes()).hexdigest()


def unbroken(workflow: Path, runs: Path, *overrides: str) -> Path:
    return sf.train(workflow, overrides, runs=runs, local=True).folder


# A process among several, by hand: rows, weights and messages are looked at. ---------------------------------------


class Spy(sf.flows.NSF):
    """Writes down the rows of every step, and which loss it had of them."""

    def loss(self, x, context=None):
        losses = super().loss(x, context)
        if self.training:
            self.seen.append(x.detach().clone())
        return torch.where(torch.as_tensor(x)[:, 0] > self.limit, torch.nan, losses)


def spied(limit: float) -> Spy:
    density = Spy((2,), num_transforms=1, hidden_features=(16,), seed=0)
    density.seen, density.limit = [], limit
    return density


def one_of(rank: int, world_size: int, out: str, batch_size: int, limit: float) -> None:
    torch.set_num_threads(1)
    if world_size > 1:
        torch.distributed.init_process_group("gloo", init_method=f"file://{out}/meet", rank=rank, world_size=world_size)
    density = spied(limit)
    rows = draws().to_numpy()
    data, _, _ = training_data(density, rows, None, None, None, 0)
    prepare(density, data, "error")
    settings = Training(batch_size=batch_size, max_steps=6, validate_every=3, learning_rate=1e-2)
    metrics = Metrics(every=1)
    try:
        outcome = train_loop(density, data, settings, Process(), metrics)
    except TrainingError as error:
        torch.save(str(error), f"{out}/{rank}.pt")
        return
    finally:
        if world_size > 1:
            torch.distributed.destroy_process_group()
    result = {"state": density.state_dict(), "seen": density.seen, "validation": outcome.validation.mean}
    torch.save(result | {"losses": [r["loss"] for r in metrics.records if "loss" in r]}, f"{out}/{rank}.pt")


def one_of_several(*given) -> None:
    one_of(*given)
    os._exit(0)  # gloo's own threads now and then abort a process that ends in the usual way


def several(out: Path, world_size: int, batch_size: int = 51, limit: float = 1e9) -> list:
    out.mkdir()
    if world_size == 1:
        one_of(0, 1, str(out), batch_size, limit)
    else:
        mp.spawn(one_of_several, (world_size, str(out), batch_size, limit), nprocs=world_size)
    return [torch.load(out / f"{rank}.pt", weights_only=True) for rank in range(world_size)]


@pytest.fixture(scope="module", params=[51, 1], ids=["shares that differ by a row", "one without rows"])
def trained(request, tmp_path_factory) -> tuple[dict, dict, dict]:
    """What one process did, and what each of two did."""
    out = tmp_path_factory.mktemp("trained")
    return *several(out / "1", 1, request.param), *several(out / "2", 2, request.param)


class TestTwoProcesses:
    def test_do_what_one_does(self, trained):
        alone, first, second = trained
        for name, tensor in alone["state"].items():
            assert torch.equal(first["state"][name], second["state"][name]), name
            torch.testing.assert_close(first["state"][name], tensor, rtol=1e-4, atol=1e-5)
        assert first["losses"] == pytest.approx(alone["losses"], rel=1e-5)
        assert first["validation"] == pytest.approx(alone["validation"], abs=1e-4)

    def test_see_together_the_rows_that_one_sees_in_every_step(self, trained):
        def as_set(*parts):
            return {row for part in parts for row in map(tuple, part.tolist())}

        alone, first, second = trained
        assert len(first["seen"]) == len(second["seen"]) == len(alone["seen"]) == 6
        for mine, theirs, all_of_them in zip(first["seen"], second["seen"], alone["seen"], strict=True):
            # A process without rows of its own computes a spare one, with no weight.
            spare = as_set(mine, theirs) - as_set(all_of_them) if len(all_of_them) == 1 else set()
            assert as_set(mine, theirs) - spare == as_set(all_of_them)
            assert len(mine) + len(theirs) == max(2, len(all_of_them))
        if len(alone["seen"][0]) > 1:
            assert any(len(x) != len(y) for x, y in zip(first["seen"], second["seen"], strict=True))

    def test_both_name_the_rows_that_spoilt_the_step(self, tmp_path):
        rows = draws().to_numpy()
        limit = float(np.sort(rows[:, 0])[-4])
        (alone,) = several(tmp_path / "1", 1, 700, limit)
        first, second = several(tmp_path / "2", 2, 700, limit)
        assert first == second == alone
        assert alone.startswith("step 0: the loss of rows ")


class TestTorchrun:
    def test_stopped_it_goes_on_with_one_process_and_then_with_two(self, workflow, tmp_path):
        plain = sf.Run(unbroken(workflow, tmp_path / "plain"))
        runs = tmp_path / "runs"
        folder = runs / "demo"
        for launcher, extra, done in ((TORCHRUN, [], 3), (COMMAND, ["--local"], 6)):
            child = start(workflow, "--runs", runs, *extra, launcher=launcher)
            wait_until(lambda done=done: saved(folder) and int(saved(folder)[-1].name[5:]) >= 20 * done, child)
            for pid in [child.pid, *offspring(child.pid)] if launcher is COMMAND else offspring(child.pid):
                os.kill(pid, signal.SIGTERM)
            child.communicate(timeout=60)
            assert child.returncode != 0
            assert not (folder / "outcome.json").exists()
        ended(start(workflow, "--runs", runs, launcher=TORCHRUN))
        fit = sf.Run(folder).fit()
        assert fit.steps == STEPS
        # The rows of every step are the same; only rounding differs, in sums over other shares.
        mine, theirs = ({r["step"]: r["loss"] for r in f.history if "loss" in r} for f in (fit, plain.fit()))
        assert mine.keys() == theirs.keys()
        assert [mine[20], mine[200]] == pytest.approx([theirs[20], theirs[200]], rel=1e-3)
        assert fit.validation.mean == pytest.approx(plain.fit().validation.mean, abs=fit.validation.error / 3)

    def test_an_error_is_one_line_of_the_first_process(self, workflow, tmp_path):
        unbroken(workflow, tmp_path, "training.max_steps=20")
        said = ended(start(workflow, "--runs", tmp_path, launcher=TORCHRUN), code=1)
        assert said.count("is a run of another configuration") == 1


@pytest.mark.ray
class TestRay:
    def test_a_killed_worker_is_replaced_and_the_end_is_the_same(self, workflow, tmp_path):
        pair = start(workflow, "--runs", tmp_path / "plain", launcher=TORCHRUN)
        ended(pair)
        child = start(workflow, "--runs", tmp_path / "killed", "cluster.num_workers=2")
        folder = tmp_path / "killed" / "demo"
        wait_until(lambda: len(saved(folder)) >= 2, child)
        # Its title tells a worker apart; only this command's are looked at.
        workers = [pid for pid in offspring(child.pid) if pid in processes("RayTrainWorker")]
        assert len(workers) == 2
        os.kill(workers[1], signal.SIGKILL)
        ended(child)
        assert digest(folder) == digest(tmp_path / "plain" / "demo")
        steps = [r["step"] for r in read_metrics(folder / "metrics.jsonl") if "loss" in r]
        assert steps == [1, *range(10, STEPS + 1, 10)]
        assert not (folder / "ray").exists()

    def test_after_a_killed_driver_nothing_is_left_and_the_same_command_goes_on(self, workflow, tmp_path):
        plain = unbroken(workflow, tmp_path / "plain")
        folder = tmp_path / "killed" / "demo"
        child = start(workflow, "--runs", tmp_path / "killed")
        wait_until(lambda: len(saved(folder)) >= 2, child)
        # Two agents of Ray's, which neither train nor write, take a minute to see that they are alone.
        family = [pid for pid in offspring(child.pid) if pid not in processes("Agent")]
        child.kill()
        child.wait()
        # At once: whatever is still alive of the old run must not write beside the new one.
        again = start(workflow, "--runs", tmp_path / "killed")
        wait_until(lambda: not any(map(alive, family)), seconds=30)
        ended(again)
        assert digest(folder) == digest(plain)
        steps = [r["step"] for r in read_metrics(folder / "metrics.jsonl") if "loss" in r]
        assert steps == [1, *range(10, STEPS + 1, 10)]

    def test_a_killed_controller_of_rays_is_told_in_one_line_and_the_same_command_goes_on(self, workflow, tmp_path):
        plain = unbroken(workflow, tmp_path / "plain")
        folder = tmp_path / "killed" / "demo"
        child = start(workflow, "--runs", tmp_path / "killed")
        wait_until(lambda: len(saved(folder)) >= 2, child)
        (controller,) = [pid for pid in offspring(child.pid) if pid in processes("TrainController")]
        os.kill(controller, signal.SIGKILL)
        said = ended(child, code=1)
        assert len(said.splitlines()) == 1, said
        assert said.startswith("error: Ray's controller was lost: ")
        ended(start(workflow, "--runs", tmp_path / "killed"))
        assert digest(folder) == digest(plain)

    def test_signals_save_and_end_ray(self, workflow, tmp_path):
        plain = unbroken(workflow, tmp_path / "plain")
        folder = tmp_path / "runs" / "demo"
        for number, code, words, more in (
            (signal.SIGTERM, 143, "stopped on request; the same command goes on", 1),
            (signal.SIGINT, 130, "interrupted: the same command goes on from here", 8),
        ):
            child = start(workflow, "--runs", tmp_path / "runs")
            wait_until(lambda more=more: saved(folder) and int(saved(folder)[-1].name[5:]) >= 20 * more, child)
            family = offspring(child.pid)
            child.send_signal(number)
            said = ended(child, code)
            assert len(said.splitlines()) == 1
            assert words in said
            wait_until(lambda family=family: not any(map(alive, family)), seconds=20)
            assert checkpoints.verify(folder / "checkpoints") is not None
        # What two workers on Ray began, one process here ends.
        assert digest(unbroken(workflow, tmp_path / "runs")) == digest(plain)

    def test_a_diverging_run_is_told_in_one_line_without_another_try(self, workflow, tmp_path):
        child = start(workflow, "--runs", tmp_path, "training.learning_rate=1e25", "training.warmup=0")
        said = ended(child, code=1)
        assert len(said.splitlines()) == 1, said
        assert said.startswith("error: step ")
        assert "lower training.learning_rate" in said
        assert not (tmp_path / "demo" / "outcome.json").exists()

    def test_a_cluster_that_is_not_there(self, workflow, tmp_path):
        with pytest.raises(ConfigError, match=r"no Ray cluster at 127.0.0.1:1"):
            sf.train(workflow, runs=tmp_path, address="127.0.0.1:1")
