"""The command line: help that teaches, results in a line or two, and errors of one line."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import xarray as xr
import yaml

import sciflow as sf
from sciflow.cli import main
from sciflow.config import load_workflow
from sciflow.scoring.samples import write_samples

COMMANDS = ("shard", "inspect", "check", "train", "score", "sample")


@pytest.fixture
def sciflow(monkeypatch, capfd, tmp_path):
    """Run a command in this process, in an empty folder; returns exit status, standard output and standard error."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["sciflow", *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            main()
        said = capfd.readouterr()
        return int(left.value.code or 0), said.out, said.err

    return run


@pytest.fixture
def problem(sciflow):
    """Run a command that fails; returns its one line."""

    def run(*arguments: object, code: int = 1) -> str:
        status, out, err = sciflow(*arguments)
        assert status == code, err
        assert out == ""
        assert err.startswith("error: ")
        assert err.endswith("\n")
        assert err.count("\n") == 1
        return err.removeprefix("error: ").strip()

    return run


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> sf.Store:
    rows = np.random.default_rng(0).normal(size=(300, 2)) @ [[1, 0.5], [0, 1]]
    path = tmp_path_factory.mktemp("cli") / "rows.zarr"
    return sf.shard(pd.DataFrame(rows, columns=["u", "v"]), path, shard_rows=100, progress=False)


@pytest.fixture
def workflow(store, tmp_path) -> Path:
    content = {
        "name": "demo",
        "data": {"store": store.path},
        "model": {"name": "nsf", "num_transforms": 1, "hidden_features": [8]},
        "training": {"max_steps": 20, "batch_size": 64},
    }
    file = tmp_path / "flow.yaml"
    file.write_text(yaml.safe_dump(content))
    return file


class TestHelp:
    @pytest.mark.parametrize("command", COMMANDS)
    def test_of_every_command_shows_how_it_is_used(self, command, sciflow):
        status, out, _ = sciflow(command, "--help")
        assert status == 0
        assert f"sciflow {command} " in out.partition("Arguments")[0].replace("Usage: ", "", 1)
        assert "--help" in out

    def test_alone_lists_the_commands_and_a_first_run(self, sciflow):
        _, out, _ = sciflow("--help")
        assert all(command in out for command in COMMANDS)
        assert "sciflow shard era5.nc era5.zarr" in out

    def test_is_what_no_arguments_give(self, sciflow):
        assert "sciflow check workflow.yaml" in "".join(sciflow()[1:])

    def test_wrong_usage_is_one_line_too(self, problem):
        assert problem("chekc", code=2).startswith("No such command 'chekc'")
        assert problem("train", code=2) == "Missing argument 'workflow'; --help says what there is"
        assert problem("train", "flow.yaml", "--fast", code=2).startswith("No such option: --fast")
        assert "valid integer" in problem("sample", "runs/x", "--out", "y", "--n", "many", code=2)


class TestCheck:
    def test_says_that_all_is_well(self, workflow, store, sciflow):
        status, out, err = sciflow("check", workflow)
        assert (status, err) == (0, "")
        assert out == f"{workflow}: ok: demo, nsf on 240 training events of {store.path}\n"

    def test_prints_every_key_as_a_workflow_that_means_the_same(self, workflow, sciflow, tmp_path):
        _, printed, _ = sciflow("check", workflow, "training.max_steps=7", "--keys")
        again = tmp_path / "again.yaml"
        again.write_text(printed.rpartition("\n" + str(workflow))[0])
        assert load_workflow(again) == load_workflow(workflow, ["training.max_steps=7"])
        assert "max_steps: 7  # Steps of the optimiser, at most." in printed

    def test_needs_no_ray(self, workflow):
        code = (
            "import sys; sys.argv = ['sciflow', 'check', sys.argv[1]]\n"
            "from sciflow.cli import main\n"
            "try: main()\n"
            "except SystemExit as left: assert not left.code\n"
            "print([name for name in ('ray', 'matplotlib', 'xarray', 'pandas', 'tensorboard') if name in sys.modules])"
        )
        done = subprocess.run([sys.executable, "-c", code, workflow], capture_output=True, text=True, check=True)
        assert done.stdout.splitlines()[-1] == "[]"

    @pytest.mark.parametrize(
        ("override", "words"),
        [
            ("training.learning_rat=1e-3", "training.learning_rat: unknown key; did you mean learning_rate?"),
            ("model.num_bin=8", "model.num_bin: unknown key; did you mean num_bins?"),
            ("model.name=nfs", "model.name: got 'nfs'; did you mean nsf?"),
            ("model.num_bins=1", "num_bins must be 2 to 256; got 1"),
            ("model.hidden_features=wide", "model.hidden_features: got 'wide', it must be"),
            ("model.preprocess=standardise", "preprocess: unknown 'standardise'; did you mean standardize?"),
            ("scoring.method=ode", "scoring: NSF knows its log p by method 'exact' alone; got 'ode'"),
            ("scoring.options.tolerance=1e-4", "scoring: method 'exact' takes no options; got tolerance"),
            ("data.store=none.zarr", "none.zarr: no such store; make one with sciflow shard"),
        ],
    )
    def test_finds_what_is_wrong_before_anything_starts(self, override, words, workflow, problem):
        assert words in problem("check", workflow, override)
        assert words in problem("train", workflow, override)
        assert not Path("runs").exists()

    def test_names_the_file_of_a_wrong_model(self, workflow, problem):
        workflow.write_text(workflow.read_text().replace("num_transforms", "num_transform"))
        assert problem("check", workflow).startswith(f"{workflow}: model.num_transform: unknown key")

    def test_finds_a_constant_variable(self, workflow, problem, sciflow, tmp_path):
        frame = pd.DataFrame(np.random.default_rng(0).normal(size=(50, 2)), columns=["u", "v"]).assign(w=2.5)
        path = sf.shard(frame, tmp_path / "constant.zarr", progress=False).path
        strict = problem("check", workflow, f"data.store={path}", "training.degenerate=error")
        assert "variable 'w' is constant, always 2.5" in strict
        status, _, err = sciflow("check", workflow, f"data.store={path}")
        assert status == 0
        assert err.startswith("warning: variable 'w' is constant")
        assert err.count("\n") == 1

    def test_finds_a_store_of_another_version(self, workflow, store, problem, tmp_path):
        path = tmp_path / "newer.zarr"
        shutil.copytree(store.path, path)
        record = json.loads((path / "zarr.json").read_text())
        record["attributes"]["sciflow"]["version"] = 99
        (path / "zarr.json").write_text(json.dumps(record))
        assert "version 99" in problem("check", workflow, f"data.store={path}")


class TestFromTableToScores:
    def test_every_step_says_the_next(self, sciflow, tmp_path):
        rows = pd.DataFrame(np.random.default_rng(0).normal(size=(200, 2)), columns=["u", "v"])
        rows.to_csv("rows.csv", index=False)
        status, out, _ = sciflow("shard", "rows.csv", "rows.zarr")
        assert status == 0
        assert "next: sciflow inspect rows.zarr" in out
        assert "u" in sciflow("inspect", "rows.zarr")[1]
        Path("flow.yaml").write_text("name: demo\ndata: {store: rows.zarr}\nmodel: {name: nsf, num_transforms: 1}\n")
        status, out, err = sciflow("train", "flow.yaml", "training.max_steps=10", "--local")
        assert (status, err) == (0, "")
        first, report, following = out.splitlines()
        assert first.startswith("Fit(steps=10, validation=")
        assert Path(report.removeprefix("report: ")).is_file()
        assert following.startswith("next: sciflow score runs/demo ")
        assert "ended after 10 steps" in sciflow("inspect", "runs/demo")[1]
        status, out, _ = sciflow("sample", "runs/demo", "--n", "7", "--out", "draws.zarr")
        assert status == 0
        assert xr.open_zarr("draws.zarr", consolidated=False).u.shape == (7,)
        assert sciflow("inspect", "draws.zarr")[1].startswith("samples draws.zarr")

    def test_a_run_that_has_ended_is_not_trained_again_and_that_is_said(self, workflow, sciflow):
        _, first, _ = sciflow("train", workflow, "--local")
        status, second, _ = sciflow("train", workflow, "--local")
        assert status == 0
        assert second == "runs/demo has ended before; begin it anew with --overwrite\n" + first
        assert "ended before" not in sciflow("train", workflow, "--local", "--overwrite")[1]

    def test_another_configuration_under_its_name_is_refused(self, workflow, sciflow, problem):
        sciflow("train", workflow, "--local")
        said = problem("train", workflow, "--local", "training.seed=5")
        assert "training.seed is 0 there, 5 here" in said


class TestScore:
    @pytest.fixture
    def given(self, monkeypatch) -> list[tuple]:
        """What is asked for: run, store and place of the scores, method and options."""
        asked = []

        def score_on_ray(run, store, out, *, method, options, **_):
            asked.append((str(run), store, out, method, options))
            return out

        monkeypatch.setattr("sciflow.scoring.distributed.score_on_ray", score_on_ray)
        return asked

    def test_in_this_process_gives_what_sf_score_does(self, workflow, store, sciflow):
        sciflow("train", workflow, "--local")
        status, out, err = sciflow("score", "runs/demo", "--method", "exact", "--out", "scores.zarr", "--local")
        assert (status, err) == (0, "")
        assert out == "scores: scores.zarr; open with xarray.open_zarr('scores.zarr')\n"
        here = sf.score(sf.load("runs/demo"), store, method="exact")
        np.testing.assert_allclose(xr.open_zarr("scores.zarr").log_prob, here.log_prob, rtol=1e-6)

    @pytest.mark.parametrize(
        ("arguments", "store", "options"),
        [
            ([], None, {}),
            (["rows.zarr"], "rows.zarr", {}),
            (["rows.zarr", "tolerance=1e-4", "seed=3"], "rows.zarr", {"tolerance": 1e-4, "seed": 3}),
            (["tolerance=1e-4", "seed=3"], None, {"tolerance": 1e-4, "seed": 3}),
            (["year=2020"], "year=2020", {}),
            (["s3://climate/year=2020/rows.zarr", "seed=3"], "s3://climate/year=2020/rows.zarr", {"seed": 3}),
        ],
        ids=str,
    )
    def test_takes_options_of_the_method_with_or_without_a_store(self, arguments, store, options, given, sciflow):
        Path("year=2020").mkdir()
        assert sciflow("score", "runs/demo", *arguments, "--method", "ode", "--out", "scores.zarr")[0] == 0
        assert given == [("runs/demo", store, "scores.zarr", "ode", options)]

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (["--method", "ode"], "NSF knows its log p by method 'exact' alone; got 'ode'"),
            (["tolerance=1e-4"], "method 'exact' takes no options; got tolerance"),
            (["tolerance=1e-4", "rows.zarr"], "rows.zarr: give KEY=VALUE, an option of the method such as tolerance"),
            (["tolerance=[1"], "tolerance: '[1' is not a YAML value"),
            (["none.zarr"], "none.zarr: no such store"),
        ],
        ids=str,
    )
    def test_tells_what_does_not_fit_before_it_scores(self, arguments, words, workflow, sciflow, problem):
        sciflow("train", workflow, "--local")
        before = sorted(path.name for path in Path().iterdir())
        assert words in problem("score", "runs/demo", *arguments, "--out", "scores.zarr")
        assert sorted(path.name for path in Path().iterdir()) == before

    def test_another_way_after_training_comes_with_the_workflow(self, workflow, sciflow):
        sciflow("train", workflow, "--local")
        assert sciflow("train", workflow, "--local", "scoring.method=exact", "scoring.out=scores.zarr")[0] == 0
        assert sciflow("score", "runs/demo", "--local")[0] == 0
        assert xr.open_zarr("scores.zarr").attrs["method"] == "exact"


class TestSample:
    @pytest.fixture
    def conditional(self, tmp_path) -> Path:
        return sf.flows.NSF((2,), context_shape=(2,), num_transforms=1, hidden_features=(8,)).save(tmp_path / "model")

    def test_in_several_blocks_gives_what_one_process_draws(self, workflow, sciflow):
        sciflow("train", workflow, "--local")
        common = ("sample", "runs/demo", "--n", 9, "--seed", 3, "--block-rows", 4, "--local")
        status, out, err = sciflow(*common, "--out", "draws.zarr")
        assert (status, err) == (0, "")
        assert out == "samples: draws.zarr; open with xarray.open_zarr('draws.zarr')\n"
        write_samples(sf.load("runs/demo"), 9, "same.zarr", seed=3, block_rows=4)
        xr.testing.assert_identical(xr.open_zarr("draws.zarr").load(), xr.open_zarr("same.zarr").load())

    def test_again_leaves_what_is_done_and_refuses_what_is_other(self, workflow, sciflow, problem):
        sciflow("train", workflow, "--local")
        first = sciflow("sample", "runs/demo", "--n", 9, "--out", "draws.zarr")
        assert sciflow("sample", "runs/demo", "--n", 9, "--out", "draws.zarr") == first
        assert "already there, with other contents" in problem("sample", "runs/demo", "--n", 8, "--out", "draws.zarr")
        assert sciflow("sample", "runs/demo", "--n", 8, "--out", "draws.zarr", "--overwrite") == first

    @pytest.mark.parametrize("context", ["0.5,12", "-0.5,12", "[0.5, 12]", "{context: [0.5, 1e1]}"])
    def test_takes_a_context_as_numbers_or_as_yaml(self, context, conditional, sciflow):
        status, _, err = sciflow("sample", conditional, "--n", 3, "--out", "draws.zarr", "--context", context)
        assert (status, err) == (0, "")

    def test_takes_options_of_the_sampler_as_yaml(self, conditional, sciflow, monkeypatch):
        def given(*_, options, **__):
            assert options == {"num_steps": 20, "sampler": "dpm++", "guidance": 2.0, "times": [0, 0.5]}
            return "draws.zarr"

        monkeypatch.setattr("sciflow.scoring.distributed.sample_on_ray", given)
        options = ("num_steps=20", "sampler=dpm++", "guidance=2e0", "times=[0, 0.5]")
        assert sciflow("sample", conditional, *options, "--out", "draws.zarr")[0] == 0

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (["num_steps=20"], "sampling from NSF takes no options; got num_steps"),
            (["seed=20"], "option seed: not one of a sampler"),
            (["num_steps"], "num_steps: give KEY=VALUE"),
            (["=20"], "=20: give KEY=VALUE"),
            (["num_steps=[2"], "num_steps: '[2' is not a YAML value"),
            (["--context", "1,2,3"], "context of shape [2] expected"),
            (["--context", "[[1,2],[3,4]]"], "context: give one, for all draws; got 2"),
            (["--context", "{a: [1, 2]}"], "context"),
            (["--context", "{a: [1"], "--context: '{a: [1' is not a YAML value"),
            (["--context", "[a, b]"], "context"),
            (["--n", "0"], "n 0: a whole number expected, 1 or more"),
        ],
        ids=str,
    )
    def test_tells_what_does_not_fit_before_it_draws(self, arguments, words, conditional, problem):
        context = [] if "--context" in arguments else ["--context", "1,2"]
        assert words in problem("sample", conditional, *arguments, *context, "--out", "draws.zarr")
        assert [path.name for path in Path().iterdir()] == ["model"]


class TestErrors:
    def test_of_a_workflow_file(self, problem):
        assert problem("check", "none.yaml") == "none.yaml: no such workflow file"
        Path("flow.yaml").write_bytes(b"\x80\x02\x00")
        assert problem("train", "flow.yaml").startswith("flow.yaml: ")

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
    def test_of_permissions(self, workflow, problem, tmp_path):
        (tmp_path / "locked").mkdir(mode=0o500)
        assert "Permission denied" in problem("train", workflow, "--local", "--runs", "locked")

    def test_of_a_folder_of_runs_that_is_a_file(self, workflow, problem):
        Path("runs").write_text("")
        assert "runs/demo: cannot be written" in problem("train", workflow, "--local")

    def test_of_something_that_is_no_run(self, store, problem):
        Path("empty").mkdir()
        assert problem("inspect", "empty") == "empty: neither a store (no zarr.json) nor a run (no workflow.yaml)"
        assert "no model at empty" in problem("sample", "empty", "--out", "draws.zarr").replace(os.getcwd() + "/", "")
        assert "no model at" in problem("score", "empty", store.path, "--out", "scores.zarr")
        assert "no such store" in problem("inspect", "none")

    def test_of_a_run_that_has_not_ended(self, workflow, store, sciflow, problem):
        sciflow("train", workflow, "--local")
        shutil.rmtree("runs/demo/model")
        Path("runs/demo/outcome.json").unlink()
        assert "not ended; step 20" in sciflow("inspect", "runs/demo")[1]
        assert "training has not ended" in problem("score", "runs/demo", store.path, "--out", "scores.zarr")
        assert "training has not ended" in problem("sample", "runs/demo", "--out", "draws.zarr")

    def test_of_a_damaged_model(self, workflow, store, sciflow, problem):
        sciflow("train", workflow, "--local")
        file = Path("runs/demo/model/model.safetensors")
        content = bytearray(file.read_bytes())
        content[-3] ^= 1
        file.write_bytes(content)
        assert "is damaged: its SHA-256 differs" in problem("score", "runs/demo", store.path, "--out", "scores.zarr")

    def test_of_a_diverging_run(self, workflow, problem):
        said = problem("train", workflow, "--local", "training.learning_rate=1e25", "training.warmup=0")
        assert said.startswith("step ")
        assert "lower training.learning_rate" in said

    def test_of_an_output_that_is_there(self, workflow, sciflow, problem):
        sciflow("train", workflow, "--local")
        Path("draws.zarr").mkdir()
        for overwrite in ([], ["--overwrite"]):
            assert "something else is there" in problem("sample", "runs/demo", "--out", "draws.zarr", *overwrite)

    def test_of_a_context_that_is_none(self, workflow, sciflow, problem):
        sciflow("train", workflow, "--local")
        assert "no context" in problem("sample", "runs/demo", "--out", "draws.zarr", "--context", "1,2")
        assert "numbers with commas" in problem("sample", "runs/demo", "--out", "draws.zarr", "--context", "a,b")

    def test_an_unexpected_one_of_the_file_system_is_one_line(self, workflow, monkeypatch, problem):
        def fail(*_, **__):
            raise PermissionError(13, "Permission denied", "/somewhere/file")

        monkeypatch.setattr("sciflow.training.report.write_report", fail)
        monkeypatch.setattr("sciflow.training.run.Run.fit", lambda self: fail())
        assert problem("train", workflow, "--local") == "/somewhere/file: Permission denied"


class TestImports:
    def test_are_few_until_they_are_needed(self):
        code = (
            "import sys, time\n"
            "began = time.perf_counter()\n"
            "import torch\n"
            "after = time.perf_counter()\n"
            "import sciflow\n"
            "sciflow.flows\n"
            "share = (time.perf_counter() - after) / (after - began)\n"
            "heavy = ('ray', 'zarr', 'xarray', 'matplotlib', 'pandas', 'tensorboard', 'scipy')\n"
            "print([name for name in heavy if name in sys.modules], share)"
        )
        found = []
        for _ in range(3):
            done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
            modules, _, share = done.stdout.strip().rpartition(" ")
            assert modules == "[]"
            found.append(float(share))
        # Of the time that torch takes; the best of three, on a machine that others use too.
        assert min(found) < 0.5
