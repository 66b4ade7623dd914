"""Missing values, and the statistics of what is there."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import xarray as xr

import sciflow as sf
from sciflow.data.statistics import Statistics, merge
from sciflow.errors import DataError

ALL = {"split": (0.6, 0.2, 0.2), "progress": False}


def make_weather(bad: float = np.nan) -> xr.Dataset:
    """Two series at four places, with gaps in both, and a context with one."""
    rng = np.random.default_rng(0)
    t2m, u10 = rng.normal(280, 5, (240, 4)), rng.normal(0, 5, (4, 240))
    t2m[[30, 30, 100], [1, 2, 3]] = bad
    u10[0, 77] = bad
    times = np.datetime64("2019-03-01", "ns") + np.arange(240) * np.timedelta64(1, "h")
    return xr.Dataset(
        {
            "t2m": (("time", "lat"), t2m),
            "u10": (("lat", "time"), u10),
            "wet": ("time", np.where(np.arange(240) == 5, bad, 1.0)),
        },
        {"time": times, "lat": [50.0, 50.5, 51.0, 51.5]},
    )


def all_events(store: sf.Store) -> tuple[np.ndarray, np.ndarray]:
    """Events by grid index, and the indices that are there."""
    index = np.concatenate([split.grid_index(0, len(split)) for split in store.splits])
    events = np.full((store.layout.num_grid_events, *store.event_shape), np.nan)
    events[index] = np.concatenate([split[:].numpy() for split in store.splits])
    return events, np.sort(index)


class TestError:
    @pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
    def test_it_names_the_variable_and_the_place_and_says_what_to_do(self, tmp_path, bad):
        with pytest.raises(DataError) as caught:
            sf.shard(make_weather(bad), tmp_path / "s.zarr", variables=["t2m"], event={"time": 24}, **ALL)
        assert str(caught.value) == (
            "dataset: variable 't2m' has missing or infinite values, first at time=2019-03-02T06:00, lat=50.5. "
            "Choose what becomes of them: --missing drop | fill"
        )
        assert list(tmp_path.iterdir()) == []

    def test_the_variable_is_the_one_that_has_the_gap(self, tmp_path):
        data = make_weather()
        data["t2m"] = data.t2m.fillna(0)
        with pytest.raises(DataError, match=r"variable 'u10' .* first at time=2019-03-04T05:00, lat=50\. "):
            sf.shard(data, tmp_path / "s.zarr", variables=["t2m", "u10"], event={"time": 24}, **ALL)

    @pytest.mark.parametrize("policy", [{}, {"missing": "fill"}])
    def test_a_gap_in_the_context_cannot_be_filled(self, tmp_path, policy):
        data = make_weather().fillna({"t2m": 0})
        with pytest.raises(DataError, match=r"the context \(wet\) has missing .* first at time=2019-03-01T05.* drop"):
            sf.shard(data, tmp_path / "s.zarr", variables=["t2m"], sample=["time"], context=["wet"], **policy, **ALL)


class TestDrop:
    def test_events_with_gaps_are_left_out_and_no_others(self, tmp_path):
        data = make_weather()
        store = sf.shard(data, tmp_path / "s.zarr", variables=["t2m", "u10"], event={"time": 24}, missing="drop", **ALL)
        _, index = all_events(store)
        gaps = np.isnan(data.t2m.values) | np.isnan(data.u10.values.T)
        whole = ~gaps.reshape(10, 24, 4).any(1)
        np.testing.assert_array_equal(index, np.flatnonzero(whole.reshape(-1)))
        assert np.isfinite(store.statistics.mean).all()
        assert store._group["statistics"].attrs["missing"] == {"t2m": 3, "u10": 1}

    def test_gaps_in_the_context_count(self, tmp_path):
        data = make_weather().fillna({"t2m": 0})
        store = sf.shard(
            data, tmp_path / "s.zarr", variables=["t2m"], sample=["time"], context=["wet"], missing="drop", **ALL
        )
        assert sorted(set(range(240)) - set(all_events(store)[1])) == [5]

    def test_nothing_left(self, tmp_path):
        with pytest.raises(DataError, match="no events left: all 240 had missing values"):
            sf.shard(
                make_weather() * np.nan, tmp_path / "s.zarr", variables=["t2m"], sample=["time"], missing="drop", **ALL
            )


class TestFill:
    @pytest.mark.parametrize("value", [None, 0.0, -9.5])
    @pytest.mark.parametrize("bad", [np.nan, np.inf])
    def test_gaps_become_the_value_or_the_mean_of_the_variable(self, tmp_path, value, bad):
        data = make_weather(bad)
        store = sf.shard(
            *(data, tmp_path / "s.zarr"),
            variables=["t2m", "u10"],
            event={"time": 24},
            missing="fill",
            fill_value=value,
            **ALL,
        )
        events, _ = all_events(store)
        for place, name in enumerate(("t2m", "u10")):
            expected = data[name].transpose("time", "lat").values
            finite = np.isfinite(expected)
            filled = np.where(finite, expected, expected[finite].mean() if value is None else value)
            filled = filled.reshape(10, 24, 4).transpose(0, 2, 1).reshape(40, 24)
            np.testing.assert_allclose(events[:, place], filled, rtol=1e-6)
        assert store._group["statistics"].attrs["missing"] == {"t2m": 3, "u10": 1}

    def test_the_mean_is_exact_far_from_zero(self, tmp_path):
        x = (1e5 + np.random.default_rng(0).normal(size=(100_000, 1))).astype("f4")
        mean = x.astype("f8").mean()
        x[7] = np.nan
        store = sf.shard(x, tmp_path / "s.zarr", missing="fill", **ALL)
        events, _ = all_events(store)
        assert abs(events[7, 0] - mean) < 0.008

    def test_a_variable_without_any_value(self, tmp_path):
        data = make_weather()
        data["u10"] = data.u10 * np.nan
        with pytest.raises(DataError, match=r"variable 'u10' has no value at all: leave it out, or give --fill-value"):
            sf.shard(data, tmp_path / "s.zarr", variables=["t2m", "u10"], event={"time": 24}, missing="fill", **ALL)

    @pytest.mark.parametrize(("value", "message"), [(np.nan, "give a finite number"), (1e39, "beyond float32")])
    def test_a_value_that_is_none(self, tmp_path, value, message):
        with pytest.raises(DataError, match=message):
            sf.shard(make_weather(), tmp_path / "s.zarr", variables=["t2m"], missing="fill", fill_value=value, **ALL)


def test_a_source_that_is_large_but_finite_is_not_missing(tmp_path):
    x = np.full((60, 50), 3e38, "f4")
    x[::2] *= -1
    store = sf.shard(x, tmp_path / "s.zarr", **ALL)
    assert len(store) == 60
    assert np.isfinite(store.statistics.variance).all()


SHAPES = [(1, 1), (2, 1), (5, 3), (1000, 1), (999, 7), (4097, 2), (10_001, 24), (300, 5, 41), (70, 5000), (3, 100_000)]


class TestGaps:
    """What a dimension leaves out is missing, too, wherever a window lies across it."""

    def hourly(self, *hours: int) -> xr.Dataset:
        times = np.datetime64("2001-01-01T00", "h") + np.array(hours)
        values = np.random.default_rng(0).normal(size=(len(hours), 40))
        return xr.Dataset({"t": (("time", "place"), values)}, {"time": times})

    @pytest.mark.parametrize("missing", ["error", "fill"])
    def test_are_an_error_that_names_the_place(self, missing, tmp_path):
        data = self.hourly(*range(20), *range(25, 60))
        words = r"'time' jumps from 2001-01-01T19\S* to 2001-01-02T01\S*, in steps of 3600 \S*: 40 windows lie across"
        with pytest.raises(DataError, match=words):
            sf.shard(data, tmp_path / "s.zarr", event={"time": 8}, missing=missing, progress=False)

    def test_are_left_out_where_missing_values_are(self, tmp_path):
        data = self.hourly(*range(20), *range(25, 60))
        store = sf.shard(data, tmp_path / "s.zarr", event={"time": 8}, missing="drop", progress=False)
        whole = np.concatenate([split.grid_index(0, len(split)) for split in store.splits])
        assert sorted(set(whole // 40)) == [0, 1, 3, 4, 5]
        assert len(store) == 5 * 40

    def test_between_windows_do_no_harm(self, tmp_path):
        data = self.hourly(*range(16), *range(25, 57))
        assert len(sf.shard(data, tmp_path / "s.zarr", event={"time": 8}, progress=False)) == 6 * 40

    def test_months_and_whole_dimensions_have_none(self, tmp_path):
        months = pd.date_range("2001-01-01", periods=48, freq="MS")
        data = xr.Dataset({"t": (("time", "level"), np.random.default_rng(0).normal(size=(48, 4)))})
        data = data.assign_coords(time=months, level=[1000.0, 850.0, 500.0, 50.0])
        assert len(sf.shard(data, tmp_path / "a.zarr", event={"time": 1, "level": None}, progress=False)) == 48
        assert len(sf.shard(data, tmp_path / "b.zarr", event=["level"], sample=["time"], progress=False)) == 48

    @pytest.mark.parametrize(
        ("hours", "words"),
        [
            ([*range(20), *range(10, 60)], r"is not in order, 2001-01-01T19\S* is followed by 2001-01-01T10"),
            ([*range(20), *range(19, 60)], r"has 2001-01-01T19\S* twice"),
        ],
    )
    def test_neither_disorder_nor_repetition_is_a_window(self, hours, words, tmp_path):
        for missing in ("error", "drop"):
            with pytest.raises(DataError, match=words):
                sf.shard(self.hourly(*hours), tmp_path / "s.zarr", event={"time": 8}, missing=missing, progress=False)

    def test_a_dimension_that_runs_down_is_in_order(self, tmp_path):
        data = self.hourly(*range(40)).isel(time=slice(None, None, -1))
        assert len(sf.shard(data, tmp_path / "s.zarr", event={"time": 8}, progress=False)) == 200


class TestStatistics:
    @pytest.mark.parametrize("shape", SHAPES, ids=str)
    @pytest.mark.parametrize("dtype", ["f4", "f8"])
    @pytest.mark.parametrize("offset", [0.0, 1e5])
    def test_they_are_those_of_numpy_in_double(self, shape, dtype, offset):
        x = (offset + np.random.default_rng(0).normal(size=shape)).astype(dtype)
        found, wide = Statistics.of(x), x.astype("f8")
        assert found.count == shape[0]
        np.testing.assert_allclose(found.mean, wide.mean(0), rtol=1e-13, atol=1e-13)
        np.testing.assert_allclose(found.variance, wide.var(0), rtol=1e-9, atol=1e-12)
        np.testing.assert_array_equal(found.minimum, x.min(0))
        np.testing.assert_array_equal(found.maximum, x.max(0))

    def test_an_outlier_in_the_first_row_costs_no_digits(self):
        x = np.random.default_rng(0).normal(size=(1000, 2))
        x[0] = 1e9
        np.testing.assert_allclose(Statistics.of(x).variance, x.var(0), rtol=1e-12)

    @pytest.mark.parametrize("scale", [1e-30, 1e30])
    def test_neither_small_nor_large_numbers_are_lost(self, scale):
        x = (scale * np.random.default_rng(0).normal(size=(100, 3))).astype("f4")
        np.testing.assert_allclose(Statistics.of(x).variance, x.astype("f8").var(0), rtol=1e-9)

    @pytest.mark.parametrize("cuts", [[1], [500], [1, 2, 3, 999], [250, 500, 750]])
    def test_parts_merge_into_the_whole(self, cuts):
        x = 1e4 + np.random.default_rng(0).normal(size=(1000, 3)).cumsum(0)
        merged = merge(Statistics.of(part) for part in np.split(x, cuts))
        np.testing.assert_allclose(merged.mean, x.mean(0), rtol=1e-13)
        np.testing.assert_allclose(merged.variance, x.var(0), rtol=1e-10)

    def test_a_constant_has_no_variance(self):
        assert Statistics.of(np.full((1000, 2), 0.1, "f4")).variance.tolist() == [0, 0]

    def test_of_nothing_there_are_none(self):
        with pytest.raises(ValueError, match="no events"):
            merge([])

    @pytest.mark.parametrize("shard_rows", [7, 100, None])
    def test_those_of_a_store_are_of_its_training_events(self, tmp_path, shard_rows):
        x = (1e5 + np.random.default_rng(0).normal(size=(2000, 3))).astype("f4")
        store = sf.shard(x, tmp_path / "s.zarr", shard_rows=shard_rows, **ALL)
        rows, found = store.train[:].numpy(), store.statistics
        assert found.count == len(rows) == 1200
        np.testing.assert_allclose(found.mean, rows.mean(0, dtype="f8"), rtol=1e-13)
        np.testing.assert_allclose(found.variance, rows.astype("f8").var(0), rtol=1e-9)
        np.testing.assert_array_equal(found.minimum, rows.min(0))
        np.testing.assert_array_equal(found.maximum, rows.max(0))
