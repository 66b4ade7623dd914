"""Who draws: a single block this process, more of them Ray; and what happens when they are killed."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from processes import offspring, title, wait_until
from stored import contents

import sciflow as sf
from sciflow.errors import ConfigError, RunError, SciflowError
from sciflow.scoring.distributed import sample_on_ray
from sciflow.scoring.drawing import Drawing
from sciflow.scoring.samples import write_samples

COMMAND = [sys.executable, "-m", "sciflow.cli", "sample"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


class TestWhoDraws:
    """A single block is drawn in this process; more of them on Ray."""

    @pytest.fixture
    def on_ray(self, monkeypatch) -> list[int]:
        """How many blocks were given to Ray, each time."""
        given = []

        def each_on_ray(work: Callable, items: list, *_) -> None:
            given.append(len(items))
            for item in items:
                work(item)

        monkeypatch.setattr("sciflow.scoring.distributed.each_on_ray", each_on_ray)
        monkeypatch.delenv("RAY_ADDRESS", raising=False)
        return given

    def test_depends_on_what_is_left_to_draw(self, on_ray, model, density, tmp_path):
        sample_on_ray(model, 10, tmp_path / "one.zarr")
        assert on_ray == []
        sample_on_ray(model, 10, tmp_path / "three.zarr", block_rows=4)
        assert on_ray == [3]
        sample_on_ray(model, 10, tmp_path / "local.zarr", block_rows=4, local=True)
        assert on_ray == [3]
        sample_on_ray(model, 10, tmp_path / "cluster.zarr", address="auto")
        assert on_ray == [3, 1]
        job = Drawing.of(density, 10, str(tmp_path / "left.zarr"), block_rows=4)
        for number in job.begin(density, overwrite=False)[:2]:
            job.draw(density, number)
        sample_on_ray(model, 10, tmp_path / "left.zarr", block_rows=4)
        assert on_ray == [3, 1]
        assert (
            contents(tmp_path / "three.zarr") == contents(tmp_path / "local.zarr") == contents(tmp_path / "left.zarr")
        )

    def test_another_model_in_the_place_of_the_first_is_told(self, on_ray, model, tmp_path, monkeypatch):
        shutil.copytree(model, tmp_path / "model")
        begin = Drawing.begin

        def trained_anew(self, *arguments):
            other = sf.load(tmp_path / "model")
            with torch.no_grad():
                next(other.parameters()).add_(1)
            other.save(tmp_path / "model")
            return begin(self, *arguments)

        monkeypatch.setattr(Drawing, "begin", trained_anew)
        with pytest.raises(RunError, match="another model has taken its place meanwhile"):
            sample_on_ray(tmp_path / "model", 10, tmp_path / "out.zarr", block_rows=4)


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
class TestOnRay:
    def test_the_bytes_are_those_of_this_process(self, model, density, tmp_path):
        out = sample_on_ray(model, 50, tmp_path / "out.zarr", block_rows=3, seed=5)
        assert contents(Path(out)) == contents(write_samples(density, 50, tmp_path / "here.zarr", block_rows=3, seed=5))
        assert sorted(path.name for path in tmp_path.iterdir()) == ["here.zarr", "out.zarr"]

    def test_an_error_of_a_task_is_the_same_error_here(self, model, tmp_path, monkeypatch):
        out = tmp_path / "out.zarr"

        def begin(self, *arguments):
            waiting = original(self, *arguments)
            shutil.rmtree(f"{out}.partial")
            return waiting

        original = Drawing.begin
        monkeypatch.setattr(Drawing, "begin", begin)
        with pytest.raises(SciflowError, match="cannot be written: "):
            sample_on_ray(model, 50, out, block_rows=3)

    def test_a_cluster_without_a_gpu_is_told(self, model, tmp_path):
        with pytest.raises(ConfigError, match="the Ray cluster has no GPU"):
            sample_on_ray(model, 50, tmp_path / "out.zarr", block_rows=3, use_gpu=True)
        assert not list(tmp_path.iterdir())


@pytest.mark.ray
class TestKilled:
    def test_worker_and_driver_the_same_command_ends_with_the_same_bytes(self, model, density, tmp_path):
        n, out = 1200, tmp_path / "out.zarr"
        blocks = Path(f"{out}.partial", "u_v", "c")  # of the variable that is written last: these blocks are whole
        # One draw a block, to be slow enough to be killed.
        command = [*COMMAND, str(model), "--n", str(n), "--out", str(out), "--block-rows", "1", "--quiet"]

        def drawn() -> int:
            return len(list(blocks.glob("[0-9]*")))

        child = subprocess.Popen(command, env=ENVIRONMENT)
        wait_until(lambda: drawn() >= 5, child, seconds=120)
        # Between two tasks a worker has another title.
        while not (workers := [pid for pid in offspring(child.pid) if title(pid).startswith("ray::task")]):
            assert child.poll() is None
        os.kill(workers[0], signal.SIGKILL)
        wait_until(lambda: drawn() >= 60, child, seconds=120)
        child.kill()
        child.wait()
        assert not out.exists()
        time.sleep(1)  # Ray's workers see that their driver is gone.
        before = {path.name: path.stat().st_mtime_ns for path in blocks.iterdir() if path.name.isdigit()}
        assert 60 <= len(before) < n
        assert subprocess.run(command, env=ENVIRONMENT, timeout=120).returncode == 0
        # Nothing is drawn twice.
        after = {name: (out / "u_v" / "c" / name).stat().st_mtime_ns for name in before}
        assert after == before
        assert contents(out) == contents(write_samples(density, n, tmp_path / "unbroken.zarr", block_rows=1))
        assert sorted(path.name for path in tmp_path.iterdir()) == ["out.zarr", "unbroken.zarr"]
