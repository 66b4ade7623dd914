"""What comes in: late, written anew, moved away, damaged, of another kind. What can be done is, the rest is told."""

from __future__ import annotations

import json
import shutil

import fsspec
import numpy as np
import pytest
import xarray as xr
from stored import contents
from watched import World, weather

import sciflow as sf
from sciflow.anomaly.scheduled import tasks
from sciflow.anomaly.scheduled.detect import detect
from sciflow.errors import ConfigError, ModelFileError, RunError, StoreError


def scored(monkeypatch) -> list[str]:
    """Which shards are scored from now on."""
    seen: list[str] = []
    score = tasks.Task.score

    def looking(self, unit):
        seen.append(f"{unit.store}/{unit.key}")
        score(self, unit)

    monkeypatch.setattr(tasks.Task, "score", looking)
    return seen


class TestAStoreThatIsWrittenAnew:
    def test_is_judged_anew_where_its_events_are_others(self, world, monkeypatch):
        days = weather("2001-06-30", 4, seed=1)
        store = world.root / "incoming" / "four.zarr"
        sf.shard(days, store, like=world.root / "t2m.zarr", shard_rows=12, progress=False)
        assert world.detect().flagged == 0
        before = world.results
        seen = scored(monkeypatch)
        days.t2m[14:16, 1, 1] += 15
        sf.shard(days, store, like=world.root / "t2m.zarr", shard_rows=12, overwrite=True, progress=False)
        assert world.detect().flagged == 1
        assert seen == ["four.zarr/test/2"]
        after = world.results
        changed = after.score.values != before.score.values
        assert changed.sum() == 1
        assert changed[2, 1, 1]
        assert after.flag.values.nonzero() == ([2], [1], [1])
        np.testing.assert_array_equal(after.p_value.values[~changed], before.p_value.values[~changed])

    def test_loses_what_it_has_no_more(self, world):
        world.come_in(0, num_days=4, name="days.zarr", odd=True)
        assert world.detect().flagged >= 2
        world.come_in(1, num_days=2, name="days.zarr")
        assert world.detect().rows == 24
        found = world.results
        assert found.day.values.astype("datetime64[D]").astype(str).tolist() == ["2001-07-01", "2001-07-02"]
        assert not found.flag.any()

    def test_of_which_nothing_can_be_read_leaves_what_was_there(self, world):
        world.come_in(0, odd=True)
        world.detect()
        before = contents(world.current)
        shutil.rmtree(world.come_in(0, name="day000.zarr", seed=9) / "test" / "events" / "c")
        done = world.detect()
        assert (done.exit_code, len(done.unreadable)) == (3, 1)
        assert contents(world.current) == before


class TestAStoreThatIsMovedAway:
    def test_leaves_its_results(self, world):
        world.come_in(0, odd=True)
        world.detect()
        shutil.rmtree(world.root / "incoming" / "day000.zarr")
        assert "day000.zarr: not watched any more; its results stay" in str(world.plan())
        assert world.detect().exit_code == 0
        world.come_in(1)
        world.detect()
        assert world.results.flag.sum("lat").sum("lon").values.tolist() == [2, 0]


class TestAShard:
    @pytest.mark.parametrize("damage", ["missing", "flipped", "another's", "index"])
    def test_that_cannot_be_read_is_left_and_done_once_it_is_restored(self, damage, world, monkeypatch):
        world.come_in(0)
        store = world.come_in(1, odd=True, shard_rows=4)
        whole = world.copy(world.root.parent / "whole")
        file, other = (store / "test" / "events" / "c" / str(number) / "0" for number in (1, 2))
        if damage == "index":
            file = store / "test" / "index" / "c" / "1"
        content = file.read_bytes()
        if damage == "missing":
            file.unlink()
        elif damage == "another's":
            shutil.copy(other, file)
        else:
            file.write_bytes(content[:20] + bytes([content[20] ^ 1]) + content[21:])
        done = world.detect()
        assert done.exit_code == (13 if done.flagged else 3)
        (words,) = done.unreadable
        assert "day001.zarr: shard test/1" in words
        assert (world.results.status == -1).sum() == 4
        assert world.detect().exit_code == 3
        file.write_bytes(content)
        seen = scored(monkeypatch)
        world.detect()
        assert seen == ["day001.zarr/test/1"]
        whole.detect()
        for name in ("score", "p_value", "status"):
            xr.testing.assert_identical(world.results[name], whole.results[name])

    def test_of_the_trained_store_is_told_by_its_split(self, world):
        world.detection["stores"] = str(world.root / "t2m.zarr")
        done = world.detect()
        store = sf.open_store(world.root / "t2m.zarr")
        assert done.rows == len(store)
        assert [int((world.results.split == code).sum()) for code in range(3)] == [len(split) for split in store.splits]


class TestEventsThatAreMissing:
    def test_are_no_events_and_never_flagged(self, world):
        days = weather("2001-06-30", 2, seed=1, odd=1)
        days.t2m[:, 0, 0] = np.nan
        store = world.root / "incoming" / "days.zarr"
        sf.shard(days, store, like=world.root / "t2m.zarr", missing="drop", progress=False)
        assert world.detect().rows == 22
        gone = world.results.isel(lat=0, lon=0)
        assert gone.status.values.tolist() == gone.split.values.tolist() == gone.detector.values.tolist() == [-1, -1]
        assert np.isnan(gone.score).all()
        assert np.isnan(gone.p_value).all()
        assert not gone.flag.any()


class TestAStoreOfAnotherKind:
    def refused(self, world: World, words: str) -> None:
        """It is refused, told of, and the others are done."""
        world.come_in(5)
        done = world.detect()
        assert (done.exit_code, done.rows) == (3, 12)
        (said,) = done.unreadable
        assert words in said
        assert world.results.sizes["day"] == 1

    def shard(self, world: World, data: xr.Dataset, **layout) -> None:
        layout = {"event": {"time": 6}, "sample": ["lat", "lon"], "split": (0, 0, 1), **layout}
        sf.shard(data, world.root / "incoming" / "other.zarr", progress=False, **layout)

    def test_of_units(self, world):
        self.shard(world, weather("2001-06-30", 1, seed=1, units="degC"))
        self.refused(world, "other.zarr: the model was trained on another layout: units ['degC'] here, ['K'] there")

    def test_of_windows(self, world):
        self.shard(world, weather("2001-06-30", 1, seed=1), event={"time": 3})
        self.refused(world, "the model was trained on another layout: event shape [3] here, [6] there")

    def test_of_steps(self, world):
        slow = weather("2001-06-30", 1, seed=1)
        self.shard(world, slow.assign_coords(time=slow.time[0] + 2 * (slow.time - slow.time[0])))
        done = world.detect()
        assert (done.exit_code, done.rows) == (3, 0)
        (said,) = done.unreadable
        assert "other.zarr: coordinate 'time' of an event is 0, 2.88e+13, 5.76e+13, ... 1.44e+14 here, and 0, " in said

    def test_of_cells(self, world):
        world.come_in(0)
        world.detect()
        data = weather("2001-07-01", 1, seed=1)
        self.shard(world, data.assign_coords(lat=data.lat + 1))
        world.come_in(5)
        done = world.detect()
        assert (done.exit_code, done.rows) == (3, 12)
        assert done.unreadable[0].endswith("other.zarr: coordinate 'lat' is another than that of the other stores")

    def test_of_a_day_that_is_there(self, world):
        world.come_in(0)
        world.detect()
        self.shard(world, weather("2001-06-30", 1, seed=1))
        world.come_in(5)
        done = world.detect()
        assert (done.exit_code, done.rows) == (3, 12)
        assert (
            "day=2001-06-30T00:00:00.000000000 is in day000.zarr already: a place has one store" in done.unreadable[0]
        )

    def test_that_is_none(self, world):
        (world.root / "incoming" / "other.zarr").mkdir()
        (world.root / "incoming" / "other.zarr" / "notes.txt").write_text("to do")
        self.refused(world, "other.zarr: not a Zarr v3 group")

    def test_of_one_name(self, world):
        (world.root / "more").mkdir()
        shutil.copytree(world.come_in(0), world.root / "more" / "day000.zarr")
        world.detection["stores"] = [str(world.root / place / "*.zarr") for place in ("incoming", "more")]
        with pytest.raises(ConfigError, match="have one name: rename one of them"):
            world.detect()


class TestAPattern:
    def test_of_a_url_that_cannot_be_listed_is_an_error(self, world):
        world.detection["stores"] = "nowhere://bucket/*.zarr"
        with pytest.raises(StoreError, match=r"nowhere://bucket/.*cannot be listed: ValueError: Protocol not known"):
            world.detect()

    def test_of_a_url_means_what_is_there(self, world):
        files = fsspec.filesystem("memory")
        files.put(str(world.come_in(0, odd=True)), "/watched/day000.zarr", recursive=True)
        shutil.rmtree(world.root / "incoming")
        world.detection["stores"] = "memory://watched/*.zarr"
        assert world.detect().flagged == 2


class TestAnOutput:
    def test_of_another_version_is_refused(self, world):
        world.come_in(0)
        world.detect()
        file = world.current / "state.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), "version": 99}))
        with pytest.raises(StoreError, match="version 99, this sciflow goes on with sciflow-detections version 1"):
            world.detect()

    @pytest.mark.parametrize("text", ["", "{}", "[]", '{"format": "sciflow-detections", "version": 1}', "\0"])
    def test_that_is_damaged_is_refused(self, text, world):
        world.come_in(0)
        world.detect()
        (world.current / "state.json").write_text(text)
        with pytest.raises(StoreError, match=r"state.json: damaged \("):
            world.detect()

    def test_that_is_something_else_is_never_touched(self, world):
        world.detection["out"] = str(world.root / "thesis")
        (world.root / "thesis").mkdir()
        (world.root / "thesis" / "thesis.tex").write_text("years")
        with pytest.raises(StoreError, match=r"something else is there \(thesis.tex\)"):
            world.detect()
        assert contents(world.root / "thesis").keys() == {"thesis.tex"}

    def test_of_another_workflow_is_refused(self, world):
        world.detection["out"] = str(world.root / "found")
        world.come_in(0)
        world.detect()
        shutil.copytree(world.root / "runs" / "demo", world.root / "runs" / "other")
        with pytest.raises(RunError, match="holds what was found by the workflow demo"):
            detect({**world.workflow, "name": "other"}, runs=world.root / "runs", local=True)

    @pytest.mark.parametrize("store", ["t2m.zarr", "incoming/day000.zarr"])
    def test_is_never_what_is_watched(self, world, store):
        world.come_in(0)
        world.detection["out"] = str(world.root / store / "found")
        with pytest.raises(StoreError, match="is read, or lies in it or around it"):
            world.detect()

    def test_at_a_url_is_refused(self, world):
        world.detection["out"] = "s3://bucket/found"
        with pytest.raises(ConfigError, match="a folder of a file system that all nodes see, not a URL"):
            world.detect()

    def test_on_a_full_disk_is_an_error_that_leaves_what_was_there(self, world, monkeypatch):
        world.come_in(0)
        world.detect()
        before = contents(world.current)
        world.come_in(1, odd=True)

        def full(*_):
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(tasks, "write_part", full)
            with pytest.raises(RunError, match="No space left on device; results are as they were before"):
                world.detect()
        assert contents(world.current) == before
        assert world.detect().flagged == 2

    def test_needs_a_trained_run(self, world):
        (world.root / "runs" / "demo" / "model" / "model.json").write_text("{")
        with pytest.raises(ModelFileError, match="damaged: restore it, or train again"):
            world.detect()
        shutil.rmtree(world.root / "runs" / "demo" / "model")
        with pytest.raises(RunError, match="training has not ended"):
            world.detect()
        shutil.rmtree(world.root / "runs" / "demo")
        with pytest.raises(RunError, match="no such run: train first"):
            world.detect()
