"""Flagged neighbours become one event: by hand-made cases, and held against a flood fill that visits every cell."""

from __future__ import annotations

import json
from itertools import product

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from sciflow.anomaly.events import merge_events, write_events
from sciflow.errors import DataError, LayoutError, SciflowError


def days(n: int, first: str = "2019-03-01") -> np.ndarray:
    return (np.datetime64(first) + np.arange(n)).astype("datetime64[ns]")


def results(flag, dims, score=None, **coords) -> xr.Dataset:
    flag = np.asarray(flag, bool)
    score = np.where(flag, 10.0, 1.0) if score is None else np.asarray(score, float)
    arrays = {"score": (dims, score), "p_value": (dims, 1 / (1 + score)), "flag": (dims, flag)}
    return xr.Dataset(arrays, coords)


def series(flags: str, **coords) -> xr.Dataset:
    """A series of days; each letter ``#`` is a flagged one."""
    return results([letter == "#" for letter in flags], ("day",), **(coords or {"day": days(len(flags))}))


def random_field(seed: int, shape: tuple[int, int, int] = (7, 6, 8), share: float = 0.2) -> xr.Dataset:
    rng = np.random.default_rng(seed)
    lat, lon = 50.0 - 2.5 * np.arange(shape[1]), 10.0 + 2.5 * np.arange(shape[2])
    flag = rng.random(shape) < share
    return results(flag, ("day", "lat", "lon"), rng.normal(size=shape), day=days(shape[0]), lat=lat, lon=lon)


def flood_fill(flag: np.ndarray, reach: list[int], diagonals: bool, periodic: list[bool]) -> list[set[tuple[int, ...]]]:
    """Events as sets of cells, by walking from each flagged cell to all that it reaches."""
    left, events = set(zip(*(index.tolist() for index in np.nonzero(flag)), strict=True)), []
    while left:
        event, frontier = set(), [left.pop()]
        while frontier:
            cell = frontier.pop()
            event.add(cell)
            for offset in product(*(range(-r, r + 1) for r in reach)):
                if not diagonals and sum(map(bool, offset)) > 1:
                    continue
                moved = tuple(
                    (c + o) % n if wraps else c + o
                    for c, o, n, wraps in zip(cell, offset, flag.shape, periodic, strict=True)
                )
                if moved in left:
                    left.remove(moved)
                    frontier.append(moved)
        events.append(event)
    return events


class TestWhatAnEventIs:
    @pytest.mark.parametrize("seed", range(6))
    @pytest.mark.parametrize("diagonals", [True, False])
    @pytest.mark.parametrize("gap", [0, 2])
    @pytest.mark.parametrize("periodic", [(), ("lon",), ("lon", "lat")])
    def test_it_is_what_a_flood_fill_reaches(self, seed, diagonals, gap, periodic):
        found = random_field(seed, share=(0.03, 0.08, 0.2)[seed % 3])
        table = merge_events(found, gap=gap, diagonals=diagonals, periodic=periodic)
        wraps = [dim in periodic for dim in ("day", "lat", "lon")]
        events = flood_fill(found.flag.values, [1 + gap, 1, 1], diagonals, wraps)
        score = found.score.values
        assert sorted(zip(table.cells, table.peak, strict=True)) == sorted(
            (len(event), max(score[cell] for cell in event)) for event in events
        )

    def test_dimensions_in_any_order_make_the_same_events(self):
        found = random_field(1)
        turned = found.transpose("lon", "day", "lat")
        columns = ["peak", "cells", "day_start", "day_stop", "lat_start", "lon_stop", "duration"]
        pd.testing.assert_frame_equal(merge_events(turned, gap=1)[columns], merge_events(found, gap=1)[columns])

    def test_its_columns_say_where_it_is_and_how_much(self):
        flag = np.zeros((4, 3, 3), bool)
        flag[1, 0, 0] = flag[2, 0, 1] = flag[2, 1, 1] = True
        score = np.where(flag, 5.0, 1.0)
        score[2, 1, 1] = 9.0
        found = results(flag, ("day", "lat", "lon"), score, day=days(4), lat=[52.0, 51.0, 50.0], lon=[0.0, 1.0, 2.0])
        found["extrapolated"] = found.score > 8
        (event,) = merge_events(found).to_dict("records")
        assert event["id"] == "day=2019-03-02,lat=52.0,lon=0.0"
        assert (event["day_start"], event["day_stop"]) == (pd.Timestamp("2019-03-02"), pd.Timestamp("2019-03-03"))
        assert (event["lat_start"], event["lat_stop"], event["lat_extent"]) == (51.0, 52.0, 2)
        assert (event["lon_start"], event["lon_stop"], event["lon_extent"]) == (0.0, 1.0, 2)
        assert (event["day_peak"], event["lat_peak"], event["lon_peak"]) == (pd.Timestamp("2019-03-03"), 51.0, 1.0)
        assert (event["cells"], event["peak"], event["p_value"]) == (3, 9.0, 0.1)
        assert event["extrapolated"]
        assert event["duration"] == pd.Timedelta("2 days")

    def test_the_highest_peak_comes_first(self):
        found = results([1, 0, 1, 0, 1], ("day",), [5, 0, 7, 0, 6], day=days(5))
        assert merge_events(found).peak.tolist() == [7, 6, 5]

    def test_a_score_that_is_infinite_is_a_peak(self):
        found = results([1, 1], ("day",), [5, np.inf], day=days(2))
        assert merge_events(found).peak.tolist() == [np.inf]


class TestTime:
    @pytest.mark.parametrize(("gap", "cells"), [(0, [3, 2, 1]), (1, [5, 1]), (2, [5, 1]), (3, [6])])
    def test_gaps_are_bridged_up_to_their_length(self, gap, cells):
        table = merge_events(series("##.###...#"), gap=gap)
        assert sorted(table.cells, reverse=True) == cells

    def test_days_that_are_left_out_are_a_gap(self):
        there = np.concatenate([days(3), days(3, "2019-03-06")])
        found = series("######", day=there)
        assert merge_events(found).cells.tolist() == [3, 3]
        assert merge_events(found, gap=1).cells.tolist() == [3, 3]
        assert merge_events(found, gap=2).cells.tolist() == [6]
        assert merge_events(found, gap=10**9).cells.tolist() == [6]

    def test_months_are_steps_though_they_differ_in_length(self):
        months = pd.date_range("2019-01-01", periods=12, freq="MS").values
        assert merge_events(series("############", day=months)).cells.tolist() == [12]

    def test_a_time_that_stands_twice_is_a_neighbour_of_itself(self):
        twice = np.sort(np.concatenate([days(3), days(3)]))
        assert merge_events(series("######", day=twice)).cells.tolist() == [6]

    def test_a_descending_time_makes_the_same_events(self):
        found = series("##..#.")
        forth, back = merge_events(found), merge_events(found.isel(day=slice(None, None, -1)))
        pd.testing.assert_frame_equal(forth, back)

    @pytest.mark.parametrize("calendar", ["noleap", "360_day", "standard"])
    def test_other_calendars(self, calendar, tmp_path):
        dates = xr.date_range("2019-02-26", periods=6, freq="D", calendar=calendar, use_cftime=True)
        table = merge_events(series("##..##", day=dates))
        assert table.id.tolist() == ["day=2019-02-26", f"day={dates[4].isoformat()[:10]}"]
        assert table.duration.tolist() == [pd.Timedelta("2 days")] * 2
        write_events(table, tmp_path)
        pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "events.parquet"), table)

    def test_numbers_are_a_time_in_their_own_unit(self):
        table = merge_events(series("##.#", day=np.array([1960, 1961, 1962, 1963])))
        assert table.duration.tolist() == [2.0, 1.0]

    def test_the_time_need_not_come_first_nor_be_the_first_with_an_order(self):
        flag = np.array([[True, False, True]])
        found = results(flag, ("lat", "day"), lat=[50.0], day=days(3))
        assert merge_events(found, gap=1).cells.tolist() == [2]
        assert merge_events(found, gap=1).duration.tolist() == [pd.Timedelta("3 days")]

    def test_one_time_alone_has_no_length(self):
        assert merge_events(series("#")).duration.isna().all()

    def test_a_gap_without_a_time_is_refused(self):
        field = results([[1, 0]], ("lat", "lon"), lat=[50.0], lon=[0.0, 1.0])
        with pytest.raises(DataError, match=r"gap = 2: none of the dimensions \(lat, lon\) is a time"):
            merge_events(field, gap=2)
        with pytest.raises(DataError, match="gap = -1: 0 or more"):
            merge_events(field, gap=-1)


class TestWhoIsANeighbour:
    @pytest.mark.parametrize(
        "coordinate",
        [
            days(4),
            np.array([0.5, 1.0, 1.5, 2.0]),
            np.array([4, 3, 2, 1]),
            np.array([1960, 1961, 1962, 1963]),
            np.arange(4).astype("timedelta64[h]").astype("timedelta64[ns]"),
            xr.DataArray(np.arange(4), dims="place", attrs={"units": "km"}),
        ],
        ids=["times", "floats", "falling", "years", "spans", "counts with a unit"],
    )
    def test_along_an_order(self, coordinate):
        assert merge_events(results([1, 1, 1, 1], ("place",), place=coordinate)).cells.tolist() == [4]

    @pytest.mark.parametrize(
        "coordinate",
        [None, np.arange(4), np.array(list("abcd"), object), np.array([1.0, 3.0, 2.0, 4.0]), days(4)[[0, 2, 1, 3]]],
        ids=["none", "counts", "names", "back and forth", "a clock that runs backwards"],
    )
    def test_none_without_an_order(self, coordinate):
        found = results([1, 1, 1, 1], ("place",), **({} if coordinate is None else {"place": coordinate}))
        table = merge_events(found)
        assert table.cells.tolist() == [1] * 4
        assert table.id.is_unique
        assert merge_events(found, neighbours=["place"]).cells.tolist() == [4]

    def test_rows_are_not_though_they_are_counted_from_anywhere(self):
        assert merge_events(results([1, 1], ("row",), row=[100, 101])).cells.tolist() == [1, 1]
        assert merge_events(results([1, 1], ("row",), row=days(2))).cells.tolist() == [2]

    def test_stations_are_apart_though_their_times_are_not(self):
        found = results(np.ones((3, 2)), ("day", "station"), day=days(3), station=["Uccle", "De Bilt"])
        table = merge_events(found)
        assert sorted(zip(table.station_start, table.cells, strict=True)) == [("De Bilt", 3), ("Uccle", 3)]

    def test_neighbours_that_are_named_are_all_there_are(self):
        found = results(np.ones((3, 2)), ("day", "lat"), day=days(3), lat=[50.0, 51.0])
        assert merge_events(found, neighbours=["day"]).cells.tolist() == [3, 3]
        assert merge_events(found, neighbours=[]).cells.tolist() == [1] * 6
        with pytest.raises(LayoutError, match="no dimension 'lan'"):
            merge_events(found, neighbours=["lan"])


class TestPeriodic:
    def field(self, columns: list[int], step: float = 30.0) -> xr.Dataset:
        flag = np.zeros((1, 12), bool)
        flag[0, columns] = True
        return results(flag, ("lat", "lon"), lat=[0.0], lon=step * np.arange(12.0))

    def test_longitudes_that_go_round_are_joined_unasked(self):
        (event,) = merge_events(self.field([0, 1, 11])).to_dict("records")
        assert (event["lon_start"], event["lon_stop"], event["lon_extent"]) == (330.0, 30.0, 3)
        assert len(merge_events(self.field([0, 1, 11]), periodic=())) == 2

    def test_longitudes_that_do_not_are_not(self):
        assert len(merge_events(self.field([0, 1, 11], step=25.0))) == 2

    def test_all_the_way_round(self):
        (event,) = merge_events(self.field(list(range(12)))).to_dict("records")
        assert (event["lon_start"], event["lon_stop"], event["lon_extent"]) == (0.0, 330.0, 12)

    def test_a_time_that_goes_round(self):
        found = results([1, 0, 0, 0, 1, 1], ("hour",), hour=[0.0, 4.0, 8.0, 12.0, 16.0, 20.0])
        (event,) = merge_events(found, periodic=["hour"]).to_dict("records")
        assert (event["hour_start"], event["hour_stop"], event["duration"]) == (16.0, 0.0, 12.0)

    def test_what_has_no_order_does_not_go_round(self):
        with pytest.raises(DataError, match="dimension 'row' cannot be periodic"):
            merge_events(results([1, 1], ("row",)), periodic=["row"])
        with pytest.raises(LayoutError, match="no dimension 'lon'"):
            merge_events(results([1, 1], ("row",)), periodic=["lon"])


class TestIds:
    @pytest.mark.parametrize("seed", range(4))
    def test_later_days_change_no_id_and_rename_no_event(self, seed):
        whole = random_field(seed, (20, 6, 8), share=0.05)
        begins = dict[str, tuple]()
        for stop in range(1, 21):
            table = merge_events(whole.isel(day=slice(stop)), gap=1, neighbours=["day", "lat", "lon"])
            now = {row.id: (row.day_start, row.cells) for row in table.itertuples()}
            # An event may grow, or be joined to one that began earlier; it never changes its name.
            for name, (start, cells) in begins.items():
                if name in now:
                    assert now[name][0] == start
                    assert now[name][1] >= cells
                else:
                    assert any(other[0] <= start and other[1] > cells for other in now.values())
            begins = now

    def test_events_elsewhere_do_not_matter(self):
        found = series("..##......")
        more = series("#.##..#.#.")
        assert merge_events(found).id[0] in set(merge_events(more).id)

    def test_an_event_begins_at_its_earliest_time(self):
        flag = np.array([[False, True], [True, True]])
        found = results(flag, ("lat", "day"), lat=[50.0, 51.0], day=days(2))
        assert merge_events(found).id.tolist() == ["lat=51.0,day=2019-03-01"]


class TestAttribution:
    def found(self) -> xr.Dataset:
        found = series("##..#")
        attribution = np.full((5, 2, 3), np.nan)
        attribution[0] = [[1, 0, 0], [0, -2, 0]]
        attribution[1] = [[5, 0, 0], [0, 0, 0]]
        attribution[4] = np.nan
        found["attribution"] = (("day", "variable", "hour"), attribution)
        return found.assign_coords(variable=["t2m", "wind"], hour=[0, 6, 12])

    def test_elements_share_the_magnitudes_of_all_cells(self):
        first, second = merge_events(self.found()).sort_values("day_start").to_dict("records")
        assert first["features"] == "t2m hour=0 75 %, wind hour=6 25 %"
        assert json.loads(first["attribution"]) == [
            {"variable": "t2m", "hour": 0, "share": 0.75, "value": 3.0},
            {"variable": "wind", "hour": 6, "share": 0.25, "value": -1.0},
        ]
        assert (second["features"], second["attribution"]) == ("", "[]")

    def test_where_the_axes_lie_does_not_matter(self):
        found = self.found()
        pd.testing.assert_frame_equal(merge_events(found.transpose("variable", "hour", "day")), merge_events(found))

    def test_axes_without_names_are_numbered(self):
        found = series("#")
        found["attribution"] = (("day", "feature"), [[0.0, np.inf, 1.0]])
        assert merge_events(found).features[0] == "feature=1 100 %, feature=2 0 %"

    def test_hours_of_a_window_are_spans_of_time(self):
        found = self.found().assign_coords(hour=np.array([0, 6, 12], "timedelta64[h]").astype("timedelta64[ns]"))
        first = merge_events(found).sort_values("day_start").iloc[0]
        assert first["features"] == "t2m hour=0 75 %, wind hour=6 h 25 %"
        assert [element["hour"] for element in json.loads(first["attribution"])] == ["0", "6 h"]

    def test_blocks_hold_any_number_of_events(self, monkeypatch):
        found = random_field(2, (9, 6, 8), share=0.3).drop_vars("extrapolated", errors="ignore")
        values = np.random.default_rng(0).normal(size=(*found.flag.shape, 4))
        found["attribution"] = ((*found.flag.dims, "feature"), values)
        whole = merge_events(found, diagonals=False)
        monkeypatch.setattr("sciflow.anomaly.reasons.BLOCK_VALUES", 12)
        pd.testing.assert_frame_equal(merge_events(found, diagonals=False), whole)

    def test_only_flagged_cells_are_read(self):
        dask = pytest.importorskip("dask.array")

        def block(block_info=None) -> np.ndarray:
            (day, _), _ = block_info[None]["array-location"]
            assert day == 1, "a day without a flag is read"
            return np.ones((1, 2))

        found = series(".#..")
        lazy = dask.map_blocks(block, chunks=((1,) * 4, (2,)), dtype=float, meta=np.empty((0, 0)))
        found["attribution"] = (("day", "feature"), lazy)
        assert merge_events(found).features[0] == "feature=0 50 %, feature=1 50 %"


class TestTable:
    def test_nothing_flagged_is_an_empty_table_of_the_same_kind(self, tmp_path):
        found = TestAttribution().found()
        some = merge_events(found)
        none = merge_events(found.assign(flag=found.flag & False))
        assert len(none) == 0
        pd.testing.assert_series_equal(none.dtypes, some.dtypes)
        assert len(merge_events(found.isel(day=slice(0)))) == 0
        write_events(none, tmp_path)
        pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "events.parquet"), none)

    def test_files_hold_the_table(self, tmp_path):
        table = merge_events(random_field(0), gap=1)
        write_events(table, tmp_path)
        pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "events.parquet"), table)
        times = ["day_start", "day_stop", "day_peak"]
        text = pd.read_csv(tmp_path / "events.csv", parse_dates=times, keep_default_na=False)
        text["duration"] = pd.to_timedelta(text["duration"])
        pd.testing.assert_frame_equal(text, table, check_dtype=False)

    def test_equal_tables_make_equal_files_and_leave_nothing_beside(self, tmp_path):
        contents = []
        for _ in range(2):
            write_events(merge_events(random_field(0)), tmp_path)
            contents.append({path.name: path.read_bytes() for path in sorted(tmp_path.iterdir())})
        assert contents[0] == contents[1]
        assert list(contents[0]) == ["events.csv", "events.parquet"]

    def test_a_folder_that_is_not_there_is_said(self, tmp_path):
        with pytest.raises(SciflowError, match=r"nowhere/events.parquet: cannot write"):
            write_events(merge_events(random_field(0)), tmp_path / "nowhere")

    def test_millions_of_cells_with_a_few_flagged(self):
        shape = (400, 100, 100)
        flag = np.zeros(shape, bool)
        flag[100:110, 20:30, 40:50] = True
        flag[300, 5, 7] = True
        found = xr.Dataset(
            {
                name: (("day", "lat", "lon"), values)
                for name, values in {"flag": flag, "score": flag.astype("f4"), "p_value": 1 - flag.astype("f4")}.items()
            },
            {"day": days(400), "lat": np.linspace(-60, 60, 100), "lon": np.linspace(0, 356.4, 100)},
        )
        assert sorted(merge_events(found).cells) == [1, 1000]


class TestRefusals:
    def test_rows_are_no_results(self):
        with pytest.raises(DataError, match="results: ndarray; give what a detector's predict returns"):
            merge_events(np.zeros(3))

    @pytest.mark.parametrize("name", ["flag", "score", "p_value"])
    def test_what_is_missing_is_named(self, name):
        with pytest.raises(DataError, match=f"no variable '{name}'"):
            merge_events(series("#.").drop_vars(name))

    def test_flags_that_may_be_missing(self):
        found = series("#.").reindex(day=days(3))
        with pytest.raises(DataError, match="'flag' is float64, not bool"):
            merge_events(found)

    def test_variables_that_do_not_lie_along_the_same_dimensions(self):
        found = series("#.")
        with pytest.raises(DataError, match=r"'score' lies along \[\], 'flag' along \['day'\]"):
            merge_events(found.assign(score=1.0))

    def test_one_value_alone(self):
        with pytest.raises(DataError, match="without a dimension"):
            merge_events(series("#.").isel(day=0))
