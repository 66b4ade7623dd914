"""How log p is to be known: by which method, with which options, on Ray or in this process."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr
from stored import contents

import sciflow as sf
from sciflow.errors import ConfigError, RunError, ShapeError, StoreError
from sciflow.scoring.distributed import score_on_ray
from sciflow.scoring.parts import Scoring

ELBO = {"method": "elbo", "options": {"num_draws": 16, "seed": 3}}


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> sf.Store:
    rows = pd.DataFrame(np.random.default_rng(0).normal(size=(200, 2)), columns=["u", "v"])
    return sf.shard(rows, tmp_path_factory.mktemp("methods") / "rows.zarr", shard_rows=40, progress=False)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """A density whose log p is known by a bound, with an error that options make smaller."""
    return bounded(seed=0).save(tmp_path_factory.mktemp("model") / "model")


@pytest.fixture(scope="module")
def flow(tmp_path_factory) -> Path:
    return sf.flows.NSF((2,), num_transforms=1, hidden_features=(8,), seed=0).save(tmp_path_factory.mktemp("flow"))


@pytest.fixture
def no_ray(monkeypatch) -> None:
    def connected(*_, **__):
        raise AssertionError("Ray was started")

    monkeypatch.setattr("sciflow.scoring.distributed.connected", connected)


def bounded(seed: int) -> sf.Density:
    return sf.diffusion.Diffusion((2,), network={"mlp": {"hidden_features": (8,)}}, seed=seed)


def scored(model: Path, store: sf.Store, out: Path, **how) -> Path:
    return Path(score_on_ray(model, store.path, out, local=True, **how))


def opened(path: Path | str) -> xr.Dataset:
    return xr.open_zarr(path).load()


class TestScores:
    def test_are_those_of_the_method_with_its_options(self, model, store, tmp_path):
        found = opened(scored(model, store, tmp_path / "out.zarr", **ELBO))
        here = sf.score(sf.load(model), store, method="elbo", num_draws=16, seed=3)
        for name in here.data_vars:
            np.testing.assert_allclose(found[name], here[name], rtol=1e-5, err_msg=name)
        assert (found.nfe == 16).all()
        less = opened(scored(model, store, tmp_path / "less.zarr", options={"num_draws": 1024}))
        assert float(less.error.mean()) < 0.5 * float(found.error.mean())

    def test_say_how_log_p_is_known(self, model, flow, store, tmp_path):
        found = opened(scored(model, store, tmp_path / "elbo.zarr", **ELBO)).attrs
        assert (found["likelihood"], found["method"]) == ("elbo", "elbo")
        assert json.loads(found["options"]) == {"num_draws": 16, "seed": 3}
        plain = opened(scored(flow, store, tmp_path / "plain.zarr")).attrs
        assert (plain["likelihood"], plain["method"], plain["options"]) == ("exact", "default", "{}")
        here = sf.score(sf.load(model), store, method="elbo", num_draws=16, seed=3).attrs
        assert here.items() <= found.items()

    def test_say_what_became_of_every_event(self, flow, store, tmp_path):
        status = opened(scored(flow, store, tmp_path / "out.zarr")).status.attrs
        meanings = dict(zip(status["flag_meanings"].split(), status["flag_values"], strict=True))
        assert meanings == {"no_event": -1} | {member.name.lower(): int(member) for member in sf.Status}
        assert meanings["target_missed"] == 4

    @pytest.mark.ray
    @pytest.mark.usefixtures("ray_cluster")
    def test_are_the_same_bytes_on_ray_and_in_this_process(self, model, store, tmp_path):
        on_ray = score_on_ray(model, store.path, tmp_path / "ray.zarr", **ELBO)
        assert contents(Path(on_ray)) == contents(scored(model, store, tmp_path / "here.zarr", **ELBO))


OTHERS = [
    {"method": "elbo", "options": {"num_draws": 16, "seed": 4}},
    {"method": "elbo", "options": {"num_draws": 16}},
    {"method": "elbo", "options": None},
    {"method": None, "options": {"num_draws": 16, "seed": 3}},
]


class TestOtherOptions:
    @pytest.mark.parametrize("other", OTHERS, ids=str)
    def test_never_take_an_output_for_theirs(self, other, model, store, tmp_path):
        out = scored(model, store, tmp_path / "out.zarr", **ELBO)
        before = contents(out)
        with pytest.raises(StoreError, match="already there, with other contents"):
            scored(model, store, out, **other)
        assert contents(out) == before
        scored(model, store, out, **other, overwrite=True)
        assert contents(out) == contents(scored(model, store, tmp_path / "plain.zarr", **other))

    @pytest.mark.parametrize("other", OTHERS, ids=str)
    def test_are_not_mixed_in_after_an_interruption(self, other, model, store, tmp_path):
        job = Scoring.of(str(model), store.path, str(tmp_path / "out.zarr"), **other)
        for shard in job.begin(False)[:2]:
            job.score_shard(*shard)
        scored(model, store, tmp_path / "out.zarr", **ELBO)
        assert contents(tmp_path / "out.zarr") == contents(scored(model, store, tmp_path / "plain.zarr", **ELBO))

    def test_are_the_same_in_another_order_and_as_numbers_of_numpy(self, model, store, tmp_path):
        out = scored(model, store, tmp_path / "out.zarr", **ELBO)
        before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
        scored(model, store, out, method="elbo", options={"seed": np.int64(3), "num_draws": 16})
        assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before


@pytest.mark.usefixtures("no_ray")
class TestWhatIsWrong:
    """It is told before anything is written, and before Ray is started."""

    @pytest.mark.parametrize("how", [{}, {"local": True}, {"use_gpu": True, "address": "auto"}], ids=str)
    @pytest.mark.parametrize(
        ("method", "options", "words"),
        [
            ("exact", {}, "got 'exact'"),
            ("", {}, "got ''"),
            ("elbo", {"num_draw": 16}, "got num_draw"),
            ("elbo", {"num_draws": 2}, "num_draws must be"),
            ("elbo", {"num_draws": "many"}, "num_draws must be"),
            (None, {"tolerance": 1e-4}, "got tolerance"),
            (None, {"seed": None}, "option seed: give a number"),
            *((None, {name: 1}, f"option {name}: not one of a method") for name in ("x", "y", "context", "method")),
        ],
        ids=str,
    )
    def test_with_a_method_or_an_option(self, method, options, words, how, model, store, tmp_path):
        with pytest.raises(ConfigError, match=words):
            score_on_ray(model, store.path, tmp_path / "out.zarr", method=method, options=options, **how)
        assert not list(tmp_path.iterdir())

    def test_with_the_number_of_events_at_a_time(self, model, store, tmp_path):
        with pytest.raises(ConfigError, match="batch_size 0: 1 event or more"):
            score_on_ray(model, store.path, tmp_path / "out.zarr", batch_size=0)
        assert not list(tmp_path.iterdir())

    def test_with_a_store_that_has_no_context(self, store, tmp_path):
        conditional = sf.flows.NSF((2,), context_shape=(1,), num_transforms=1).save(tmp_path / "model")
        with pytest.raises(ShapeError, match="context"):
            score_on_ray(conditional, store.path, tmp_path / "out.zarr")
        assert [path.name for path in tmp_path.iterdir()] == ["model"]

    def test_with_a_gpu_that_is_not_there(self, model, store, tmp_path, monkeypatch):
        monkeypatch.setattr("torch.cuda.is_available", lambda: False)
        monkeypatch.setenv("RAY_ADDRESS", "auto")
        with pytest.raises(ConfigError, match="has no GPU: leave it out"):
            score_on_ray(model, store.path, tmp_path / "out.zarr", use_gpu=True, local=True)
        assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("no_ray")
class TestInThisProcess:
    @pytest.fixture
    def scored_shards(self, monkeypatch) -> list[tuple]:
        """Which shards were scored; an interruption comes after three of them."""
        seen, original = [], Scoring.score_shard

        def score_shard(self, *shard):
            if len(seen) == 3:
                seen.append("stopped")
                raise KeyboardInterrupt
            original(self, *shard)
            seen.append(shard)

        monkeypatch.setattr(Scoring, "score_shard", score_shard)
        return seen

    def test_it_goes_on_where_it_was_interrupted_and_ends_with_the_same_bytes(
        self, scored_shards, model, store, tmp_path
    ):
        out = tmp_path / "out.zarr"
        with pytest.raises(KeyboardInterrupt):
            scored(model, store, out, **ELBO)
        assert [path.name for path in tmp_path.iterdir()] == ["out.zarr.parts"]
        scored(model, store, out, **ELBO)
        shards = [shard for shard in scored_shards if shard != "stopped"]
        assert len(shards) == len(set(shards)) == len(store.manifest.shards)
        assert [path.name for path in tmp_path.iterdir()] == ["out.zarr"]
        assert contents(out) == contents(scored(model, store, tmp_path / "unbroken.zarr", **ELBO))

    def test_it_scores_the_model_that_is_there_now(self, model, store, tmp_path):
        place = shutil.copytree(model, tmp_path / "model")
        scored(place, store, tmp_path / "before.zarr")
        trained = sf.load(place)
        with torch.no_grad():
            for parameter in trained.parameters():
                parameter.add_(0.1)
        trained.save(place)
        after = opened(scored(place, store, tmp_path / "after.zarr"))
        np.testing.assert_allclose(after.log_prob, sf.score(trained, store).log_prob, rtol=1e-5)

    @pytest.mark.parametrize("when", ["score_shard", "finish"])
    def test_another_model_in_the_place_of_the_first_is_told(self, when, model, store, tmp_path, monkeypatch):
        place = shutil.copytree(model, tmp_path / "model")
        original = getattr(Scoring, when)

        def trained_anew(self, *arguments):
            bounded(seed=1).save(place)
            return original(self, *arguments)

        monkeypatch.setattr(Scoring, when, trained_anew)
        with pytest.raises(RunError, match="another has taken its place meanwhile"):
            scored(place, store, tmp_path / "out.zarr")
        assert not (tmp_path / "out.zarr").exists()

    def test_a_lack_of_memory_is_an_error_that_says_what_to_do(self, model, store, tmp_path, monkeypatch):
        def full(*_, **__):
            raise MemoryError

        monkeypatch.setattr("sciflow.scoring.parts.score_rows", full)
        with pytest.raises(RunError, match="4,096 events at a time do not fit into memory: lower batch_size"):
            scored(model, store, tmp_path / "out.zarr")

    def test_threads_are_as_many_afterwards_and_one_meanwhile(self, model, store, tmp_path, monkeypatch):
        import sciflow.scoring.parts as module

        meanwhile, original = [], module.score_rows

        def score_rows(*arguments):
            meanwhile.append(torch.get_num_threads())
            return original(*arguments)

        monkeypatch.setattr(module, "score_rows", score_rows)
        torch.set_num_threads(2)
        scored(model, store, tmp_path / "out.zarr")
        assert set(meanwhile) == {1}
        assert torch.get_num_threads() == 2


class TestAWorkflow:
    @pytest.fixture
    def run(self, model, store, tmp_path) -> Path:
        run = tmp_path / "runs" / "demo"
        shutil.copytree(model, run / "model")
        scoring = "{method: elbo, options: {num_draws: 16, seed: 3}}"
        (run / "workflow.yaml").write_text(f"name: demo\ndata: {{store: {store.path}}}\nscoring: {scoring}\n")
        return run

    @pytest.mark.parametrize(
        ("given", "method", "options"),
        [
            ({}, "elbo", {"num_draws": 16, "seed": 3}),
            ({"options": {"seed": 5}}, "elbo", {"num_draws": 16, "seed": 5}),
            ({"method": "elbo", "options": {"seed": 5}}, "elbo", {"num_draws": 16, "seed": 5}),
        ],
        ids=str,
    )
    def test_says_what_is_left_out(self, given, method, options, run, store, tmp_path):
        attributes = opened(scored(run, store, tmp_path / "out.zarr", **given)).attrs
        assert (attributes["method"], json.loads(attributes["options"])) == (method, options)

    def test_lends_its_options_to_no_other_method(self, flow, run, store, tmp_path):
        shutil.rmtree(run / "model")
        shutil.copytree(flow, run / "model")
        attributes = opened(scored(run, store, tmp_path / "out.zarr", method="exact")).attrs
        assert (attributes["method"], attributes["options"]) == ("exact", "{}")
