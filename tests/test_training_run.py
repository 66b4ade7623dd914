"""A run: what stopped goes on as if it never had; what is damaged, changed or full is said, and nothing is lost."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml

import sciflow as sf
from sciflow import files
from sciflow.errors import CheckpointError, ConfigError, DataError, ModelFileError, RunError, StoreError, TrainingError
from sciflow.inspection import describe
from sciflow.scoring.samples import samples_as_dataset
from sciflow.training import checkpoint as checkpoints
from sciflow.training import metrics
from sciflow.training.metrics import Metrics, read_metrics
from sciflow.training.report import write_report
from sciflow.training.run import DRIVER_LOCK, Run

# The rows are rounded, for the sake of NOISY.
pytestmark = pytest.mark.filterwarnings("ignore:variable 'u' and variable 'v'. the same values")

COMMAND = [sys.executable, "-m", "sciflow.cli"]
PLAIN = {"name": "nsf", "num_transforms": 1, "hidden_features": [16]}
NOISY = {**PLAIN, "dropout": 0.2, "preprocess": [{"dequantize": {"step": 0.1}}, "standardize"]}


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> sf.Store:
    rows = np.round(np.random.default_rng(0).normal(size=(500, 2)) @ [[1, 0.5], [0, 1]], 1)
    path = tmp_path_factory.mktemp("run") / "rows.zarr"
    return sf.shard(pd.DataFrame(rows, columns=["u", "v"]), path, shard_rows=64, progress=False)


@pytest.fixture
def workflow(store) -> dict:
    training = {"batch_size": 50, "max_steps": 60, "validate_every": 10, "patience": 100}
    return {"name": "demo", "data": {"store": store.path}, "model": dict(PLAIN), "training": training}


def train(workflow: dict, runs: Path, **options) -> Run:
    return sf.train(workflow, runs=runs, local=True, **options)


def digest(run: Run | Path) -> str:
    """What the trained numbers are."""
    folder = run.folder if isinstance(run, Run) else run
    return hashlib.sha256((folder / "model" / "model.safetensors").read_bytes()).hexdigest()


def flip(path: Path, place: int = -20) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def at_step(monkeypatch, number: int, act) -> None:
    """Do something at a step, once."""
    original, done = Metrics.step, []

    def step(self, step, *rest):
        original(self, step, *rest)
        if step == number and not done:
            done.append(True)
            act()

    monkeypatch.setattr(Metrics, "step", step)


def stopped_at(monkeypatch, number: int, workflow: dict, runs: Path) -> Run:
    at_step(monkeypatch, number, lambda: os.kill(os.getpid(), signal.SIGTERM))
    run = train(workflow, runs)
    assert run.outcome is None
    return run


class TestARun:
    def test_leaves_all_that_a_user_needs(self, workflow, tmp_path):
        run = train(workflow, tmp_path)
        assert {path.name for path in run.folder.iterdir()} == {
            "workflow.yaml",
            "checkpoints",
            "metrics.jsonl",
            "tensorboard",
            "model",
            "outcome.json",
        }
        assert list((run.folder / "tensorboard").glob("events.out.tfevents.*"))
        assert run.fit().steps == 60
        assert run.fit().validation == run.outcome["validation"]
        assert run.density.provenance["run"] == "demo"
        assert run.workflow.training.max_steps == 60

    def test_that_has_ended_is_not_trained_again(self, workflow, tmp_path):
        run = train(workflow, tmp_path)
        before = (run.folder / "model" / "model.json").stat().st_mtime_ns
        train(workflow, tmp_path)
        assert (run.folder / "model" / "model.json").stat().st_mtime_ns == before

    def test_twice_is_the_same_twice(self, workflow, tmp_path):
        assert digest(train(workflow, tmp_path / "a")) == digest(train(workflow, tmp_path / "b"))

    def test_does_not_touch_the_callers_random_numbers_and_signals(self, workflow, tmp_path):
        state, handlers = torch.get_rng_state(), [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)]
        train(workflow, tmp_path)
        assert torch.equal(torch.get_rng_state(), state)
        assert [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)] == handlers

    def test_keeps_the_newest_few_checkpoints(self, workflow, tmp_path):
        run = train(workflow, tmp_path)
        assert sorted(path.name for path in (run.folder / "checkpoints").iterdir()) == [
            "step-000000040",
            "step-000000050",
            "step-000000060",
        ]


class TestStoppedOnRequest:
    @pytest.mark.parametrize("model", [PLAIN, NOISY], ids=["plain", "dropout and dequantisation"])
    @pytest.mark.parametrize("step", [1, 37, 40, 59])
    def test_goes_on_as_if_it_never_had(self, model, step, workflow, tmp_path, monkeypatch):
        workflow["model"] = model
        unbroken = train(workflow, tmp_path / "unbroken")
        run = stopped_at(monkeypatch, step, workflow, tmp_path / "broken")
        assert checkpoints.newest(run.folder / "checkpoints").step in (step, step + 1)
        assert digest(train(workflow, tmp_path / "broken")) == digest(unbroken)
        assert run.outcome["validation"] == unbroken.outcome["validation"]
        assert run.outcome["best_step"] == unbroken.outcome["best_step"]

    def test_the_metrics_have_every_step_once(self, workflow, tmp_path, monkeypatch):
        run = stopped_at(monkeypatch, 37, workflow, tmp_path)
        train(workflow, tmp_path)
        records = read_metrics(run.folder / "metrics.jsonl")
        assert [r["step"] for r in records if "loss" in r] == [1, 10, 20, 30, 40, 50, 60]
        assert [r["step"] for r in records if "validation_log_prob" in r] == [10, 20, 30, 40, 50, 60]

    def test_after_the_last_checkpoint_only_the_result_is_made(self, workflow, tmp_path):
        run = train(workflow, tmp_path)
        before, steps = digest(run), len(read_metrics(run.folder / "metrics.jsonl"))
        shutil.rmtree(run.folder / "model")
        (run.folder / "outcome.json").unlink()
        assert digest(train(workflow, tmp_path)) == before
        assert len(read_metrics(run.folder / "metrics.jsonl")) == steps

    def test_after_patience_ran_out_no_step_is_added(self, workflow, tmp_path):
        workflow["training"] |= {"max_steps": 3000, "patience": 2, "learning_rate": 0.03, "validate_every": 5}
        run = train(workflow, tmp_path)
        before, outcome = digest(run), run.outcome
        assert outcome["ended"] == "patience"
        (run.folder / "outcome.json").unlink()
        assert digest(train(workflow, tmp_path)) == before
        assert run.outcome["steps"] == outcome["steps"]
        assert run.outcome["ended"] == "patience"


class TestKilled:
    def test_the_same_command_ends_with_the_same_weights(self, workflow, tmp_path):
        workflow["training"] |= {"max_steps": 300, "patience": 1000}
        file = tmp_path / "flow.yaml"
        file.write_text(yaml.safe_dump(workflow))
        unbroken = train(workflow, tmp_path / "unbroken")
        command = [*COMMAND, "train", str(file), "--local", "--runs", str(tmp_path / "killed")]
        folder = tmp_path / "killed" / "demo"
        child = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"})
        while len(list((folder / "checkpoints").glob("step-*"))) < 3:
            assert child.poll() is None
            time.sleep(0.01)
        child.kill()
        child.wait()
        assert not (folder / "outcome.json").exists()
        subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL)
        assert digest(folder) == digest(unbroken)
        steps = [r["step"] for r in read_metrics(folder / "metrics.jsonl") if "loss" in r]
        assert steps == [1, *range(10, 301, 10)]


class TestAnotherConfiguration:
    def test_is_refused_under_the_same_name_and_the_keys_are_named(self, workflow, tmp_path):
        train(workflow, tmp_path)
        with pytest.raises(RunError, match=r"training.learning_rate is None there, 0.5 here") as caught:
            train(workflow, tmp_path, overrides=["training.learning_rate=0.5", "model.num_transforms=2"])
        assert "model.num_transforms is 1 there, 2 here" in str(caught.value)
        assert "--overwrite" in str(caught.value)

    def test_may_differ_in_what_it_runs_on(self, workflow, tmp_path, monkeypatch):
        stopped_at(monkeypatch, 20, workflow, tmp_path)
        run = train(workflow, tmp_path, overrides=["cluster.num_workers=7", "scoring.batch_size=9"])
        assert run.outcome is not None

    def test_replaces_the_run_when_told_to(self, workflow, tmp_path):
        train(workflow, tmp_path)
        run = train(workflow, tmp_path, overrides=["training.max_steps=20"], overwrite=True)
        assert run.outcome["steps"] == 20
        assert [path.name for path in tmp_path.iterdir()] == ["demo"]

    def test_keeps_what_was_found_by_the_run_that_it_replaces(self, workflow, tmp_path):
        run = train(workflow, tmp_path)
        (run.folder / "detections").mkdir()
        (run.folder / "detections" / "state.json").write_text("years")
        for _ in range(2):
            run = train(workflow, tmp_path, overrides=["training.max_steps=20"], overwrite=True)
            assert run.outcome["steps"] == 20
            assert (run.folder / "detections" / "state.json").read_text() == "years"
            # As one leaves it who is killed in between.
            for path in run.folder.iterdir():
                if path.name != "detections":
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
        assert [path.name for path in tmp_path.iterdir()] == ["demo"]

    def test_is_also_a_store_with_other_events(self, workflow, tmp_path):
        path = tmp_path / "rows.zarr"
        rows = np.random.default_rng(5).normal(size=(100, 2))
        sf.shard(rows, path, progress=False)
        workflow["data"]["store"] = str(path)
        train(workflow, tmp_path / "runs")
        sf.shard(rows + 1, path, overwrite=True, progress=False)
        with pytest.raises(RunError, match=r"data.fingerprint is"):
            train(workflow, tmp_path / "runs")

    def test_a_store_can_be_pinned_by_its_fingerprint(self, workflow, store, tmp_path):
        workflow["data"]["fingerprint"] = store.fingerprint
        train(workflow, tmp_path)
        workflow["data"]["fingerprint"] = "0" * 64
        with pytest.raises(StoreError, match=r"not those of data.fingerprint 0000000000000000"):
            train(workflow, tmp_path / "other")


class TestAFolderThatIsNoRun:
    @pytest.mark.parametrize("overwrite", [False, True])
    def test_is_left_alone(self, overwrite, workflow, tmp_path):
        precious = tmp_path / "demo" / "thesis.tex"
        precious.parent.mkdir()
        precious.write_text("years")
        with pytest.raises(RunError, match="is no run"):
            train(workflow, tmp_path, overwrite=overwrite)
        assert precious.read_text() == "years"
        assert len(list(precious.parent.iterdir())) == 1

    def test_that_cannot_be_made(self, workflow, tmp_path):
        (tmp_path / "runs").write_text("a file")
        with pytest.raises(RunError, match="cannot be written"):
            train(workflow, tmp_path / "runs")


class TestTwoAtATime:
    def test_wait_for_each_other_or_give_up(self, workflow, tmp_path, monkeypatch):
        run = stopped_at(monkeypatch, 10, workflow, tmp_path)
        monkeypatch.setattr("sciflow.training.run.LOCK_SECONDS", 0.2)
        with run.locked(), pytest.raises(RunError, match="another process is training this run"):
            train(workflow, tmp_path)
        assert train(workflow, tmp_path).outcome is not None

    @pytest.mark.parametrize("name", ["lock", DRIVER_LOCK])
    def test_a_run_in_use_is_not_replaced(self, name, workflow, tmp_path, monkeypatch):
        run = stopped_at(monkeypatch, 10, workflow, tmp_path)
        with run.locked(name=name), pytest.raises(RunError, match="another process is training this run"):
            train(workflow, tmp_path, overwrite=True)
        assert run.workflow_file.exists()

    def test_two_drivers_do_not_both_start_ray(self, workflow, tmp_path, monkeypatch):
        run = stopped_at(monkeypatch, 10, workflow, tmp_path)
        with run.locked(name=DRIVER_LOCK), pytest.raises(RunError, match="another process is training this run"):
            sf.train(workflow, runs=tmp_path)
        assert "ray" not in sys.modules or not sys.modules["ray"].is_initialized()


class TestDamage:
    @pytest.fixture
    def run(self, workflow, tmp_path, monkeypatch) -> Run:
        return stopped_at(monkeypatch, 45, workflow, tmp_path)

    @pytest.mark.parametrize("file", ["state.safetensors", "state.json"])
    def test_of_the_newest_checkpoint_falls_back_to_the_one_before(self, run, file, workflow, tmp_path):
        unbroken = train(workflow, tmp_path / "unbroken")
        newest = sorted((run.folder / "checkpoints").glob("step-*"))[-1]
        flip(newest / file)
        with pytest.warns(UserWarning, match=rf"{newest.name}: damaged.*going on from step-000000040"):
            train(workflow, tmp_path)
        assert digest(run) == digest(unbroken)

    @pytest.mark.parametrize("place", range(2, 60, 7))
    def test_anywhere_in_the_record_is_seen(self, run, place):
        for path in (run.folder / "checkpoints").glob("step-*"):
            flip(path / "state.json", place)
        with pytest.raises(CheckpointError):
            checkpoints.newest(run.folder / "checkpoints")
        with pytest.raises(CheckpointError):
            checkpoints.verify(run.folder / "checkpoints")

    def test_of_all_checkpoints_is_an_error_and_never_a_new_beginning(self, run, workflow, tmp_path):
        paths = sorted((run.folder / "checkpoints").glob("step-*"))
        for path in paths:
            flip(path / "state.safetensors")
        with pytest.raises(CheckpointError, match=r"no checkpoint can be read.*--overwrite") as caught:
            train(workflow, tmp_path)
        assert all(path.name in str(caught.value) for path in paths)
        assert len(list((run.folder / "checkpoints").glob("step-*"))) == len(paths)
        assert train(workflow, tmp_path, overwrite=True).outcome is not None

    def test_a_checkpoint_half_written_by_a_killed_process_is_passed_over(self, run, workflow, tmp_path):
        left = run.folder / "checkpoints" / ".step-000000046.partial"
        left.mkdir()
        (left / "state.json").write_text("{")
        assert train(workflow, tmp_path).outcome is not None
        assert not left.exists()

    def test_of_the_model_is_told(self, run, workflow, tmp_path):
        train(workflow, tmp_path)
        flip(run.folder / "model" / "model.safetensors")
        with pytest.raises(ModelFileError, match="damaged"):
            _ = run.density

    @pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"validation": {"mean": 1}}', "\xff"])
    def test_of_the_outcome_is_told(self, run, content):
        (run.folder / "outcome.json").write_text(content)
        with pytest.raises(RunError, match=r"outcome.json: damaged"):
            _ = run.outcome

    @pytest.mark.parametrize(
        ("key", "value"), [("steps", None), ("steps", "many"), ("ended", "never"), ("validation", None)]
    )
    def test_of_a_figure_of_the_outcome_is_told(self, run, key, value, workflow, tmp_path):
        train(workflow, tmp_path)
        file = run.folder / "outcome.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {key: value}))
        with pytest.raises(RunError, match=r"outcome.json: damaged .*: remove it, and run sciflow train again"):
            run.fit()
        file.unlink()
        assert train(workflow, tmp_path).fit().steps == 60

    @pytest.mark.parametrize("name", ["model.json", "model.safetensors"])
    def test_a_model_that_is_gone_is_made_again(self, run, name, workflow, tmp_path):
        before = digest(train(workflow, tmp_path))
        (run.folder / "model" / name).unlink()
        assert run.outcome is None
        assert digest(train(workflow, tmp_path)) == before
        assert run.outcome is not None

    @pytest.mark.parametrize("content", [b"", b"[1, 2]", b"words", b"5", b"\xff\xfe\x00", b"[" * 3000, b"name: [1]"])
    def test_of_the_workflow_is_told(self, run, content):
        run.workflow_file.write_bytes(content)
        with pytest.raises(RunError, match=r"workflow.yaml: damaged: "):
            _ = run.workflow

    def test_of_the_metrics_costs_their_tail_only(self, run, workflow, tmp_path):
        with (run.folder / "metrics.jsonl").open("a") as file:
            file.write('{"step": 45, "lo')
        train(workflow, tmp_path)
        assert read_metrics(run.folder / "metrics.jsonl")[-1]["step"] == 60

    @pytest.mark.parametrize("line", ["5", "[]", "{}", '{"step": null}', '{"step": 7, "loss": "low"}', "[" * 5000])
    def test_of_a_line_of_the_metrics_costs_that_line_only(self, run, line, workflow, tmp_path):
        file = run.folder / "metrics.jsonl"
        records = read_metrics(file)
        file.write_text(f"{line}\n" + file.read_text())
        assert read_metrics(file) == records
        assert train(workflow, tmp_path).fit().history[-1]["step"] == 60


def full(*_, **__):
    raise OSError(errno.ENOSPC, "No space left on device")


class TestAFullDisk:
    """By an injected error, file by file; and on a small file system that is really full, where we may mount one."""

    @pytest.mark.parametrize(
        ("module", "name", "kind"),
        [
            (checkpoints, "write_to_disk", CheckpointError),
            (metrics, "write_whole", RunError),
            (files.os, "replace", (RunError, ModelFileError)),
        ],
        ids=["checkpoint", "metrics", "result"],
    )
    def test_is_said_and_the_same_command_goes_on(self, module, name, kind, workflow, tmp_path, monkeypatch):
        unbroken = train(workflow, tmp_path / "unbroken")
        run = stopped_at(monkeypatch, 25, workflow, tmp_path)
        before = checkpoints.newest(run.folder / "checkpoints").step
        with monkeypatch.context() as patch:
            patch.setattr(module, name, full)
            with pytest.raises(kind, match="No space left on device"):
                train(workflow, tmp_path)
        assert checkpoints.newest(run.folder / "checkpoints").step >= before
        assert not list(run.folder.rglob("*.partial"))
        assert digest(train(workflow, tmp_path)) == digest(unbroken)

    @pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
    @pytest.mark.parametrize("kilobytes", [8, 40, 80])
    @pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
    def test_on_a_file_system_that_is_full(self, kilobytes, workflow, tmp_path):
        disk = tmp_path / "disk"
        disk.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", disk]
        if subprocess.run(mount, capture_output=True).returncode:
            pytest.skip("mounting is not allowed here")
        try:
            with pytest.raises((CheckpointError, RunError), match="No space left on device"):
                train(workflow, disk)
            folder = disk / "demo"
            kept = checkpoints.newest(folder / "checkpoints")
            assert kept is None or kept.step > 0
            assert not list(folder.rglob("*.partial"))
            subprocess.run(["mount", "-o", "remount,size=20m", disk], check=True)
            assert digest(train(workflow, disk)) == digest(train(workflow, tmp_path / "unbroken"))
        finally:
            subprocess.run(["umount", disk], check=True)


class TestRowsThatCannotBeTrainedOn:
    def test_written_past_the_checks_are_named(self, store, workflow, tmp_path, monkeypatch):
        read = type(store.train).read

        def spoilt(self, start, stop, events, context=None):
            read(self, start, stop, events, context)
            if self.name == "train" and start <= 123 < stop:
                events[123 - start] = np.nan

        monkeypatch.setattr(type(store.train), "read", spoilt)
        with pytest.raises(DataError, match=r"rows.zarr, train rows 123: not finite"):
            train(workflow, tmp_path)

    def test_that_appear_later_end_training_with_step_and_rows_and_keep_the_checkpoint(
        self, store, workflow, tmp_path, monkeypatch
    ):
        run = stopped_at(monkeypatch, 45, workflow, tmp_path)
        read = type(store.train).read

        def spoilt(self, start, stop, events, context=None):
            read(self, start, stop, events, context)
            # Only when units are read for training: the checks read other ranges.
            if self.name == "train" and start <= 123 < stop and not checking:
                events[123 - start] = np.nan

        from sciflow.training import run as run_module

        checking = []
        prepare = run_module.prepare

        def watched(*arguments):
            checking.append(True)
            prepare(*arguments)
            checking.clear()

        monkeypatch.setattr(type(store.train), "read", spoilt)
        monkeypatch.setattr(run_module, "prepare", watched)
        with pytest.raises(TrainingError, match=r"step \d+: the loss of .*rows.zarr, train rows 123 is not finite"):
            train(workflow, tmp_path)
        kept = checkpoints.newest(run.folder / "checkpoints")
        assert all(torch.isfinite(t).all() for t in kept.tensors.values() if t.is_floating_point())

    def test_constant_variables_are_found_before_anything_starts(self, workflow, tmp_path):
        frame = pd.DataFrame(np.random.default_rng(0).normal(size=(100, 2)), columns=["u", "v"]).assign(w=1.5)
        workflow["data"]["store"] = sf.shard(frame, tmp_path / "constant.zarr", progress=False).path
        with pytest.raises(DataError, match=r"variable 'w' is constant, always 1.5"):
            train(workflow, tmp_path / "runs", overrides=["training.degenerate=error"])
        assert not (tmp_path / "runs").exists()
        with pytest.warns(UserWarning, match="variable 'w' is constant") as caught:
            run = train(workflow, tmp_path / "runs")
        assert run.outcome is not None
        assert len(caught) == 1

    def test_too_few_to_hold_out(self, workflow, tmp_path):
        rows = np.random.default_rng(0).normal(size=(20, 2))
        workflow["data"]["store"] = sf.shard(rows, tmp_path / "s.zarr", split=[1, 0, 0], progress=False).path
        with pytest.raises(DataError, match="20 training and 0 validation events"):
            train(workflow, tmp_path / "runs")


class TestInspect:
    def told(self, path: Path, capsys) -> str:
        describe(path)
        return capsys.readouterr().out

    def test_a_run_that_has_ended_and_one_that_has_not(self, workflow, tmp_path, monkeypatch, capsys):
        run = stopped_at(monkeypatch, 37, workflow, tmp_path)
        assert "not ended; step 30" in self.told(run.folder, capsys)
        assert "ended after 60 steps" in self.told(train(workflow, tmp_path).folder, capsys)

    def test_scores_with_their_mean_log_p_over_each_split(self, store, workflow, tmp_path, capsys):
        run = train(workflow, tmp_path)
        sf.score(run.density, store, progress=False).to_zarr(tmp_path / "scores.zarr", consolidated=False)
        words = self.told(tmp_path / "scores.zarr", capsys)
        assert words.startswith(f"scores {tmp_path / 'scores.zarr'}")
        assert re.search(r"likelihood +exact", words)
        assert re.search(r"mean log p .* nats, 500 events", words)
        held = run.outcome["validation"]
        assert re.search(rf"validation +{re.escape(str(held))}, {held.count} events", words)

    def test_samples(self, workflow, tmp_path, capsys):
        samples_as_dataset(train(workflow, tmp_path).density, torch.zeros(7, 2)).to_zarr(
            tmp_path / "drawn.zarr", consolidated=False
        )
        words = self.told(tmp_path / "drawn.zarr", capsys)
        assert words.startswith("samples ")
        assert "sample 7" in words

    def test_a_zarr_store_of_another_kind_is_an_error(self, tmp_path):
        import xarray as xr

        xr.Dataset({"u": ("x", np.arange(3.0))}).to_zarr(tmp_path / "other.zarr", zarr_format=3, consolidated=False)
        with pytest.raises(StoreError, match="not a store of ours"):
            describe(tmp_path / "other.zarr")


def test_the_report_names_the_elements_of_gridded_events(tmp_path):
    import xarray as xr

    values = np.random.default_rng(0).normal(size=(240, 10))
    field = xr.DataArray(values, dims=("time", "cell"), name="t2m", attrs={"units": "K"})
    path = sf.shard(field, tmp_path / "field.zarr", event={"time": 4}, sample=["cell"], progress=False).path
    run = train({"name": "r", "data": {"store": path}, "model": PLAIN, "training": {"max_steps": 5}}, tmp_path)
    page = write_report(run).read_text()
    assert "by t2m time+0 [K], t2m time+1 [K], t2m time+2 [K], t2m time+3 [K]" in page


def test_gradients_are_those_of_the_loop_not_of_the_caller(workflow, tmp_path):
    with torch.no_grad():
        run = train(workflow, tmp_path)
        assert not torch.is_grad_enabled()
    assert run.outcome["best_step"] > 0


def test_more_workers_than_this_machine_has_cores_for_are_refused_at_once(workflow, tmp_path, monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    message = "cluster: 64 workers need 64 cores, this machine has 2: lower cluster.num_workers, or name a cluster"
    with pytest.raises(ConfigError, match=message):
        sf.train(workflow, ["cluster.num_workers=64"], runs=tmp_path)


def test_a_run_that_is_none_says_so(tmp_path):
    with pytest.raises(RunError, match="no run here"):
        _ = Run(tmp_path).workflow


def test_metrics_are_read_by_their_tail(tmp_path):
    file = tmp_path / "metrics.jsonl"
    file.write_text("".join(json.dumps({"step": step}) + "\n" for step in range(1000)))
    tail = [record["step"] for record in read_metrics(file, tail_bytes=200)]
    assert tail == list(range(tail[0], 1000))
    assert len(tail) < 20
