"""Scores of a store on Ray: those of ``sf.score``, every event once, whatever happens on the way."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import fsspec
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from processes import wait_until
from stored import contents, contents_at

import sciflow as sf
from sciflow.data.lock import writing
from sciflow.errors import ConfigError, LayoutError, RunError, ShapeError, StoreError
from sciflow.scoring.distributed import score_on_ray
from sciflow.scoring.parts import Scoring

COMMAND = [sys.executable, "-m", "sciflow.cli", "score"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def temperatures(units: str = "K", name: str = "t2m") -> xr.Dataset:
    values = 280 + np.random.default_rng(0).normal(size=(60, 8, 4)).astype("float32")
    values[7, 3, 2] = np.nan
    days = pd.date_range("2001-01-01", periods=60)
    array = xr.DataArray(
        values, {"time": days, "lat": np.linspace(50, 57, 8)}, ("time", "lat", "hour"), name, {"units": units}
    )
    return array.to_dataset()


def sharded(path: Path, dataset: xr.Dataset | None = None, shard_rows: int = 64) -> sf.Store:
    dataset = temperatures() if dataset is None else dataset
    options = {"event": ["hour"], "sample": ["time", "lat"], "missing": "drop", "shard_rows": shard_rows}
    return sf.shard(dataset, path, variables=list(dataset.data_vars), progress=False, **options)


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> sf.Store:
    return sharded(tmp_path_factory.mktemp("scoring") / "t2m.zarr")


@pytest.fixture(scope="module")
def model(store, tmp_path_factory) -> Path:
    density = sf.flows.NSF(store.event_shape, num_transforms=1, hidden_features=(16,), seed=0)
    sf.fit(density, store, max_steps=10)
    return density.save(tmp_path_factory.mktemp("model") / "model")


def shard_file(store: sf.Store, number: int) -> Path:
    return next(Path(store.path, "train", "events", "c", str(number)).rglob("0"))


def score_here(model: Path, store: sf.Store | str, out, overwrite: bool = False):
    """What ``score_on_ray`` does, without Ray."""
    score_on_ray(model, getattr(store, "path", store), out, local=True, overwrite=overwrite)
    return out


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
class TestScores:
    def test_are_those_of_one_process_with_the_stores_coordinates(self, model, store, tmp_path):
        out = score_on_ray(model, store.path, tmp_path / "out.zarr")
        scores, here = xr.open_zarr(out, consolidated=False).load(), sf.score(sf.load(model), store)
        assert set(scores.data_vars) == {"log_prob", "error", "nfe", "status", "split"}
        for name in scores.data_vars:
            np.testing.assert_allclose(scores[name], here[name], rtol=1e-6, err_msg=name)
            assert scores[name].dims == ("time", "lat")
            assert scores[name].attrs == here[name].attrs
        assert scores.log_prob.attrs["units"] == "nats"
        xr.testing.assert_equal(scores.coords.to_dataset(), temperatures().coords.to_dataset())
        assert scores.attrs["store"] == store.fingerprint
        assert [path.name for path in tmp_path.iterdir()] == ["out.zarr"]

    def test_stand_where_the_event_is(self, model, store, tmp_path):
        scores = xr.open_zarr(score_on_ray(model, store.path, tmp_path / "out.zarr"), consolidated=False)
        event = temperatures().t2m.sel(time="2001-02-11", lat=54.0).values
        there = float(scores.log_prob.sel(time="2001-02-11", lat=54.0))
        assert there == pytest.approx(sf.load(model).log_prob(event).item(), rel=1e-5)

    def test_are_missing_where_the_event_was_dropped(self, model, store, tmp_path):
        scores = xr.open_zarr(score_on_ray(model, store.path, tmp_path / "out.zarr"), consolidated=False).load()
        gone = scores.isel(time=7, lat=3)
        assert np.isnan(gone.log_prob)
        assert int(gone.split) == int(gone.status) == -1
        assert int(np.isnan(scores.log_prob).sum()) == int((scores.split == -1).sum()) == 1
        counts = [int((scores.split == code).sum()) for code in range(3)]
        assert counts == [len(split) for split in store.splits]

    @pytest.mark.parametrize("damage", ["flipped", "missing"])
    def test_of_a_damaged_store_are_refused_by_the_name_of_the_shard(self, damage, model, tmp_path):
        store = sharded(tmp_path / "t2m.zarr")
        file = shard_file(store, 3)
        if damage == "missing":
            file.unlink()
        else:
            content = bytearray(file.read_bytes())
            content[len(content) // 3] ^= 1
            file.write_bytes(content)
        with pytest.raises(StoreError, match="train/3"):
            score_on_ray(model, store.path, tmp_path / "out.zarr")
        assert not (tmp_path / "out.zarr").exists()
        assert not (tmp_path / "out.zarr.partial").exists()


@pytest.mark.ray
class TestInterrupted:
    def test_it_goes_on_with_the_same_command_and_ends_with_the_same_bytes(self, model, tmp_path):
        # Small shards, one event at a time: slow enough to be killed half way.
        store = sharded(tmp_path / "t2m.zarr", shard_rows=4)
        out = tmp_path / "out.zarr"
        parts = Path(f"{out}.parts")
        command = [*COMMAND, str(model), store.path, "--out", str(out), "--batch-size", "1", "--quiet"]
        child = subprocess.Popen(command, env=ENVIRONMENT)
        wait_until(lambda: len(list(parts.glob("*.safetensors"))) >= 5, child, seconds=120)
        child.kill()
        child.wait()
        assert not out.exists()
        time.sleep(1)  # Ray's workers see that their driver is gone.
        before = {path.name: path.stat().st_mtime_ns for path in parts.glob("*.safetensors")}
        assert 5 <= len(before) < len(store.manifest.shards)
        seen: dict[str, int] = {}
        again = subprocess.Popen(command, env=ENVIRONMENT)
        while again.poll() is None:
            for path in list(parts.glob("*.safetensors")):
                try:
                    seen[path.name] = path.stat().st_mtime_ns
                except FileNotFoundError:
                    break
            time.sleep(0.005)
        assert again.returncode == 0
        # Nothing is scored twice.
        assert {name: seen[name] for name in before} == before
        score_on_ray(model, store.path, tmp_path / "unbroken.zarr", batch_size=1, local=True)
        assert contents(out) == contents(tmp_path / "unbroken.zarr")
        assert not parts.exists()


class TestTheOutput:
    def test_that_is_done_is_left_as_it_is(self, model, store, tmp_path):
        out = score_here(model, store, tmp_path / "out.zarr")
        before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
        score_on_ray(model, store.path, out)
        assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before

    def test_says_what_was_scored_and_by_what(self, model, store, tmp_path):
        attributes = xr.open_zarr(score_here(model, store, tmp_path / "out.zarr")).attrs
        weights = json.loads((model / "model.json").read_text())["weights"]["sha256"]
        assert (attributes["likelihood"], attributes["model"], attributes["store"]) == (
            "exact",
            weights,
            store.fingerprint,
        )
        assert "unfinished" not in attributes

    def test_of_another_model_is_not_replaced_unasked(self, model, store, tmp_path):
        out = score_here(model, store, tmp_path / "out.zarr")
        other = sf.fit(sf.load(model), store, max_steps=2, seed=1).density.save(tmp_path / "other")
        before = contents(out)
        with pytest.raises(StoreError, match="already there, with other contents"):
            score_here(other, store, out)
        assert contents(out) == before
        score_here(other, store, out, overwrite=True)
        assert contents(out) != before
        assert [path.name for path in tmp_path.glob("out*")] == ["out.zarr"]

    def test_that_is_something_else_is_never_replaced(self, model, store, tmp_path):
        (tmp_path / "thesis").mkdir()
        (tmp_path / "thesis" / "thesis.tex").write_text("years")
        with pytest.raises(StoreError, match="something else is there, so it is not replaced"):
            score_here(model, store, tmp_path / "thesis", overwrite=True)
        assert (tmp_path / "thesis" / "thesis.tex").read_text() == "years"

    def test_that_is_a_store_of_events_is_never_replaced(self, model, store, tmp_path):
        other = sharded(tmp_path / "other.zarr")
        before = contents(Path(other.path))
        with pytest.raises(StoreError, match="something else is there, so it is not replaced"):
            score_here(model, store, other.path, overwrite=True)
        assert contents(Path(other.path)) == before

    def test_is_not_mixed_of_parts_of_two_models(self, model, store, tmp_path):
        other = sf.fit(sf.load(model), store, max_steps=2, seed=1).density.save(tmp_path / "other")
        job = Scoring.of(str(other), store.path, str(tmp_path / "out.zarr"))
        for shard in job.begin(False)[:5]:
            job.score_shard(*shard)
        score_here(model, store, tmp_path / "out.zarr")
        assert contents(tmp_path / "out.zarr") == contents(score_here(model, store, tmp_path / "plain.zarr"))

    @pytest.mark.parametrize("place", ["t2m.zarr", "t2m.zarr/train", "t2m.zarr/../t2m.zarr/train", ""])
    def test_is_never_what_is_scored(self, place, model, tmp_path):
        store = sharded(tmp_path / "t2m.zarr")
        before = contents(tmp_path / "t2m.zarr")
        with pytest.raises(StoreError, match="is read, or lies in it or around it"):
            score_here(model, store, tmp_path / place, overwrite=True)
        assert contents(tmp_path / "t2m.zarr") == before

    def test_is_never_the_model_but_may_lie_in_its_run(self, model, store, tmp_path):
        shutil.copytree(model, tmp_path / "run" / "model")
        before = contents(tmp_path / "run")
        for out in ("run", "run/model", "run/model/scores.zarr"):
            with pytest.raises(StoreError, match="is read, or lies in it or around it"):
                score_here(tmp_path / "run", store, tmp_path / out, overwrite=True)
        assert contents(tmp_path / "run") == before
        score_here(tmp_path / "run", store, tmp_path / "run" / "scores.zarr")

    def test_of_the_same_values_at_other_places_is_another(self, model, store, tmp_path):
        later = temperatures()
        later = sharded(tmp_path / "later.zarr", later.assign_coords(time=later.time + np.timedelta64(365, "D")))
        out = score_here(model, store, tmp_path / "out.zarr")
        with pytest.raises(StoreError, match="already there, with other contents"):
            score_here(model, later, out)

    def test_opens_without_a_word(self, model, store, tmp_path, recwarn):
        xr.open_zarr(score_here(model, store, tmp_path / "out.zarr"))
        assert not recwarn.list

    def test_is_written_by_one_at_a_time(self, model, store, tmp_path):
        with writing(tmp_path / "out.zarr"), pytest.raises(StoreError, match="another process is writing it"):
            score_on_ray(model, store.path, tmp_path / "out.zarr")
        assert not (tmp_path / "out.zarr").exists()

    def test_appears_after_a_crash_at_any_point_of_putting_together(self, model, store, tmp_path, monkeypatch):
        plain = contents(score_here(model, store, tmp_path / "plain.zarr"))
        out = score_here(model, store, tmp_path / "out.zarr")
        # Killed while the old output was being replaced: it has been moved away, the new one is half there.
        out.rename(tmp_path / ".out.zarr.replaced")
        Path(f"{out}.partial").mkdir()
        assert contents(score_here(model, store, out)) == plain
        assert sorted(path.name for path in tmp_path.iterdir()) == ["out.zarr", "plain.zarr"]

    def test_of_a_full_disk_is_an_error_that_keeps_what_is_scored(self, model, store, tmp_path, monkeypatch):
        def full(*_, **__):
            raise OSError(28, "No space left on device")

        out = tmp_path / "out.zarr"
        with monkeypatch.context() as patch:
            patch.setattr(xr.Dataset, "to_zarr", full)
            with pytest.raises(RunError, match="No space left on device; what is done is kept"):
                score_here(model, store, out)
        assert not out.exists()
        assert len(list(Path(f"{out}.parts").glob("*.safetensors"))) == len(store.manifest.shards)
        with monkeypatch.context() as patch:
            patch.setattr(Scoring, "score_shard", full)
            score_here(model, store, out)
        assert contents(out) == contents(score_here(model, store, tmp_path / "plain.zarr"))

    def test_a_damaged_part_is_told(self, model, store, tmp_path):
        job = Scoring.of(str(model), store.path, str(tmp_path / "out.zarr"))
        for shard in job.begin(False):
            job.score_shard(*shard)
        part = next(Path(tmp_path / "out.zarr.parts").glob("*.safetensors"))
        whole = bytearray(part.read_bytes())
        for damaged in (b"short", whole[:300] + bytes([whole[300] ^ 1]) + whole[301:]):
            part.write_bytes(damaged)
            with pytest.raises(RunError, match="a part is damaged"):
                job.finish()
            assert not (tmp_path / "out.zarr").exists()


class TestOnAUrl:
    @pytest.fixture
    def out(self):
        yield "memory://bucket/out.zarr"
        fsspec.filesystem("memory").rm("/bucket", recursive=True)

    def test_the_output_is_that_on_a_file_system(self, out, model, store, tmp_path):
        assert contents_at(score_here(model, store, out)) == contents(score_here(model, store, tmp_path / "out.zarr"))
        assert fsspec.filesystem("memory").ls("/bucket", detail=False) == ["/bucket/out.zarr"]

    def test_one_that_was_not_finished_says_so_and_goes_on(self, out, model, store, monkeypatch):
        def killed(*_, **__):
            raise KeyboardInterrupt

        plain = contents_at(score_here(model, store, "memory://bucket/plain.zarr"))
        with monkeypatch.context() as patch:
            patch.setattr(Scoring, "_weights", killed)
            with pytest.raises(KeyboardInterrupt):
                score_here(model, store, out)
        assert "unfinished" in xr.open_zarr(out, consolidated=False).attrs
        with monkeypatch.context() as patch:
            patch.setattr(Scoring, "score_shard", killed)
            assert contents_at(score_here(model, store, out)) == plain

    def test_one_that_failed_keeps_what_is_scored_and_nothing_half_made(self, out, model, store, monkeypatch):
        def lost(*_, **__):
            raise OSError("the connection was lost")

        with monkeypatch.context() as patch:
            patch.setattr(Scoring, "_weights", lost)
            with pytest.raises(RunError, match="the connection was lost; what is done is kept"):
                score_here(model, store, out)
        assert fsspec.filesystem("memory").ls("/bucket", detail=False) == ["/bucket/out.zarr.parts"]

    def test_another_output_is_not_replaced_unasked(self, out, model, store, tmp_path):
        other = sf.fit(sf.load(model), store, max_steps=2, seed=1).density.save(tmp_path / "other")
        before = contents_at(score_here(model, store, out))
        with pytest.raises(StoreError, match="already there, with other contents"):
            score_here(other, store, out)
        assert contents_at(out) == before
        assert contents_at(score_here(other, store, out, overwrite=True)) != before

    @pytest.mark.ray
    @pytest.mark.usefixtures("ray_cluster")
    def test_of_a_file_is_a_path(self, model, store, tmp_path):
        out = score_on_ray(model, store.path, f"file://{tmp_path}/out.zarr")
        assert out == f"{tmp_path}/out.zarr"
        assert contents(tmp_path / "out.zarr") == contents(score_here(model, store, tmp_path / "plain.zarr"))


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
class TestWhatIsLeftOut:
    @pytest.fixture
    def run(self, model, store, tmp_path) -> Path:
        run = tmp_path / "runs" / "demo"
        shutil.copytree(model, run / "model")
        (run / "workflow.yaml").write_text(
            f"name: demo\ndata: {{store: {store.path}}}\nscoring: {{out: {tmp_path}/theirs.zarr, batch_size: 16}}\n"
        )
        return run

    def test_comes_from_the_workflow_of_the_run(self, run, model, store, tmp_path):
        assert score_on_ray(run) == f"{tmp_path}/theirs.zarr"
        same = score_on_ray(model, store.path, tmp_path / "mine.zarr", batch_size=16)
        assert contents(tmp_path / "theirs.zarr") == contents(Path(same))

    def test_is_asked_for_where_there_is_none(self, run, model, store):
        with pytest.raises(ConfigError, match="say which store is to be scored"):
            score_on_ray(model)
        (run / "workflow.yaml").write_text(f"name: demo\ndata: {{store: {store.path}}}\n")
        with pytest.raises(ConfigError, match=r"Give --out, or scoring\.out in the workflow"):
            score_on_ray(run)


class TestWhereTheyGo:
    @pytest.mark.parametrize("out", [3, "..", "zzz://a/out.zarr"])
    def test_is_a_place_that_can_be_written(self, out, model, store):
        with pytest.raises(ConfigError, match=r"^out "):
            score_on_ray(model, store.path, out)

    def test_nothing_is_written_where_there_is_no_gpu(self, model, store, tmp_path, monkeypatch):
        monkeypatch.setattr("torch.cuda.is_available", lambda: False)
        monkeypatch.delenv("RAY_ADDRESS", raising=False)
        with pytest.raises(ConfigError, match="has no GPU: leave it out"):
            score_on_ray(model, store.path, tmp_path / "out.zarr", use_gpu=True)
        assert not list(tmp_path.iterdir())


class TestInThisProcess:
    def test_the_density_stays_in_its_mode(self, model, store):
        density = sf.load(model).train()
        scores = sf.score(density, store)
        assert density.training
        xr.testing.assert_identical(scores, sf.score(density.eval(), store))

    def test_a_path_is_a_store(self, model, store):
        density = sf.load(model)
        xr.testing.assert_identical(sf.score(density, store.path), sf.score(density, store))
        with pytest.raises(StoreError, match="no such store"):
            sf.score(density, "none.zarr")

    def test_what_cannot_be_scored_is_told(self, model):
        density = sf.load(model)
        with pytest.raises(ConfigError, match="batch_size 0: 1 event or more"):
            sf.score(density, np.zeros((3, 4)), batch_size=0)
        for shape in ((4,), (2, 3, 4)):
            with pytest.raises(ShapeError, match=r"expected; got"):
                sf.score(density, np.zeros(shape))

    def test_one_context_is_for_all(self):
        density = sf.flows.NSF((2,), context_shape=(1,), num_transforms=1, seed=0)
        scores = [sf.score(density, np.zeros((7, 2)), context=c, batch_size=3) for c in ([[0.5]], [0.5], [[0.5]] * 7)]
        assert scores[0].identical(scores[1])
        assert scores[0].identical(scores[2])


class TestWhatDoesNotFit:
    @pytest.mark.parametrize(
        ("dataset", "words"),
        [
            (temperatures(units="degC"), r"units \['degC'\] here, \['K'\] there"),
            (temperatures(name="d2m"), r"variables \['d2m'\] here, \['t2m'\] there"),
            (temperatures().isel(hour=slice(3)), r"event shape \[3\] here, \[4\] there"),
            (temperatures().rename(hour="level"), r"event dimensions \['level'\] here, \['hour'\] there"),
        ],
        ids=["units", "variables", "shape", "dimensions"],
    )
    def test_is_refused(self, dataset, words, model, tmp_path):
        event = ["hour" if "hour" in dataset.dims else "level"]
        other = sf.shard(
            dataset, tmp_path / "other.zarr", event=event, sample=["time", "lat"], missing="drop", progress=False
        )
        for score in (score_on_ray, lambda m, s, o: sf.score(sf.load(m), other)):
            with pytest.raises(LayoutError, match=words):
                score(model, other.path, tmp_path / "out.zarr")
        assert not list(tmp_path.glob("out*"))

    def test_a_store_that_is_not_there(self, model, tmp_path):
        with pytest.raises(StoreError, match="no such store"):
            score_on_ray(model, tmp_path / "none.zarr", tmp_path / "out.zarr")

    def test_a_run_that_has_not_ended(self, store, tmp_path):
        run = tmp_path / "runs" / "demo"
        run.mkdir(parents=True)
        (run / "workflow.yaml").write_text(f"name: demo\ndata: {{store: {store.path}}}\n")
        with pytest.raises(RunError, match="training has not ended"):
            score_on_ray(run, store.path, tmp_path / "out.zarr")
