"""A range of the first dimension, judged anew and put in place as a whole; and tables, which have no such dimension."""

from __future__ import annotations

import cftime
import numpy as np
import pandas as pd
import pytest
from stored import contents
from watched import World

import sciflow as sf
from sciflow.anomaly.scheduled import tasks
from sciflow.anomaly.scheduled.detect import detect
from sciflow.anomaly.scheduled.span import Span
from sciflow.errors import ConfigError

DAYS = np.array(["2000-12-31T18", "2001-01-01T00", "2001-01-31T18", "2001-02-01T00"], "datetime64[ns]")


class TestARange:
    @pytest.mark.parametrize(
        ("start", "stop", "covered"),
        [
            ("2001-01", "2001-01", [1, 2]),
            ("2001", None, [1, 2, 3]),
            (None, "2001-01-01", [0, 1]),
            ("2001-01-31 18", "2001-01-31 18:00", [2]),
            (pd.Timestamp("2001-01-31T18"), pd.Timestamp("2001-02-03"), [2, 3]),
            (pd.Timestamp("2001-01-01").date(), None, [1, 2, 3]),
            (np.datetime64("2001-01-01T00"), np.datetime64("2001-01-31"), [1, 2]),
        ],
    )
    def test_of_times_holds_all_that_begins_so(self, start, stop, covered):
        assert np.flatnonzero(Span.of(start, stop).covers("day", DAYS)).tolist() == covered
        other = np.array([cftime.DatetimeNoLeap(*map(int, str(day)[:13].replace("T", "-").split("-"))) for day in DAYS])
        assert np.flatnonzero(Span.of(start, stop).covers("day", other)).tolist() == covered

    def test_of_numbers_and_of_names(self):
        assert Span.of(2, "3.5").covers("row", np.array([1, 2, 3, 4])).tolist() == [False, True, True, False]
        assert Span.of("b", None).covers("station", np.array(["a", "b", "c"], object)).tolist() == [False, True, True]

    @pytest.mark.parametrize(
        ("values", "start", "words"),
        [
            (DAYS, "yesterday", "'yesterday' is no time, such as 2026-01-31"),
            (np.arange(3), "many", "'many' is no number, and 'day' is counted by numbers"),
            (DAYS, "2001-13", "'2001-13' is no time"),
            (DAYS, "2001-02-30", "'2001-02-30' is no time"),
            (DAYS, "2001-02-03T24", "'2001-02-03T24' is no time"),
            (None, "1", "'day' has no coordinate by which a range could be meant"),
        ],
    )
    def test_that_is_none_is_refused(self, values, start, words):
        with pytest.raises(ConfigError, match=words):
            Span.of(start, None).covers("day", values)

    @pytest.mark.parametrize(
        ("values", "start", "stop"),
        [(DAYS, "2001-03-02", "2001-03-01"), (DAYS, "2002", "2001-12-31"), (np.arange(12), "10", "9")],
    )
    def test_that_ends_before_it_begins_is_refused(self, values, start, stop):
        with pytest.raises(ConfigError, match=f"--from {start} is after --to {stop}"):
            Span.of(start, stop).covers("day", values)


class TestARangeJudgedAnew:
    def test_replaces_it_and_nothing_else(self, world):
        for day in range(4):
            world.come_in(day, odd=day == 3)
        world.detect()
        before = world.results
        world.detection["calibration"] = {"block": 3}
        done = world.detect(start="2001-07-01", stop="2001-07-02")
        assert (done.rows, done.stores) == (24, ("day001.zarr", "day002.zarr"))
        found = world.results
        assert found.detector.values[:, 0, 0].tolist() == [0, 1, 1, 0]
        for name in ("score", "p_value", "flag", "attribution"):
            np.testing.assert_array_equal(found[name][[0, 3]], before[name][[0, 3]])
            assert name != "p_value" or not np.array_equal(found[name][1:3], before[name][1:3])

    def test_is_as_good_within_a_store(self, world):
        world.come_in(0, num_days=6, name="six.zarr", shard_rows=4)
        world.detect()
        before = contents(world.current / "results.zarr")
        done = world.detect(start="2001-07-02", stop="2001-07-03T23")
        assert (done.rows, done.shards, done.flagged) == (24, 6, 0)
        after = contents(world.current / "results.zarr")
        assert {name for name in before if before[name] != after[name]} <= {"zarr.json"}

    def test_brings_in_what_is_new_there_and_leaves_the_rest_for_later(self, world):
        for day in range(3):
            world.come_in(day)
        assert world.detect(start="2001-07-01", stop="2001-07-01").stores == ("day001.zarr",)
        assert world.results.sizes["day"] == 1
        assert world.detect().stores == ("day000.zarr", "day002.zarr")
        assert world.results.day.to_index().is_monotonic_increasing

    def test_killed_is_done_by_the_same_command_and_only_once(self, world, monkeypatch):
        world.come_in(0, odd=True)
        world.detect()
        from sciflow.anomaly.scheduled import work

        def crash(*_):
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(work, "judge", crash)
            with pytest.raises(KeyboardInterrupt):
                world.detect(start="2001")
        done = world.detect(start="2001")
        assert (done.number, done.rows, done.flagged) == (2, 12, 0)

    def test_of_nothing_is_a_success(self, world):
        world.come_in(0)
        world.detect()
        assert world.detect(start="1999", stop="1999").exit_code == 0


class TestATable:
    """Rows without a coordinate stand in the order of their stores' names."""

    @pytest.fixture
    def table(self, tmp_path) -> World:
        world = World(tmp_path, tmp_path / "shelf")
        rows = np.random.default_rng(0).normal(size=(2000, 3))
        sf.shard(rows, tmp_path / "t2m.zarr", split=(0.6, 0.1, 0.3), progress=False)
        (tmp_path / "incoming").mkdir()
        sf.train(world.workflow, local=True, runs=tmp_path / "runs", progress=False)
        return world

    def come_in(self, world: World, name: str, seed: int, odd: int | None = None) -> np.ndarray:
        rows = 0.5 * np.random.default_rng(seed).normal(size=(40, 3))
        if odd is not None:
            rows[odd] = 9.0
        pd.DataFrame(rows).to_csv(world.root / f"{name}.csv", index=False)
        sf.shard(rows, world.root / "incoming" / f"{name}.zarr", like=world.root / "t2m.zarr", progress=False)
        return rows

    def test_is_put_together_in_the_order_of_names(self, table):
        self.come_in(table, "b", 5, odd=7)
        assert table.detect().flagged == 1
        self.come_in(table, "a", 2)
        self.come_in(table, "c", 3, odd=30)
        assert table.detect().flagged == 1
        found = table.results
        assert found.sizes == {"row": 120, "feature": 3}
        assert found.flag.values.nonzero()[0].tolist() == [47, 110]
        assert [found.attrs["stores"][code] for code in found.store.values[[0, 40, 80]]] == [
            "a.zarr",
            "b.zarr",
            "c.zarr",
        ]
        assert pd.read_csv(table.out / "events.csv")["id"].tolist() == ["row=110", "row=47"]

    def test_knows_no_range(self, table):
        self.come_in(table, "a", 1)
        table.detect()
        with pytest.raises(ConfigError, match="'row' has no coordinate by which a range could be meant"):
            detect(table.workflow, start=3, local=True, runs=table.root / "runs")

    def test_has_no_gaps_and_says_so_before_anything_is_scored(self, table, monkeypatch):
        monkeypatch.setattr(tasks.Task, "score", lambda self, unit: pytest.fail("scored"))
        table.detection["events"] = {"gap": 2}
        self.come_in(table, "a", 1)
        for work in (table.plan, table.detect):
            with pytest.raises(ConfigError, match=r"detection.events.gap: got 2, .* \(row\) is a time: leave it out"):
                work()
        assert not (table.out / "work").exists()
