"""What is flagged: by the workflow's level and method, in groups, and over the runs where control goes on."""

from __future__ import annotations

import json

import numpy as np
import pytest
import xarray as xr
from stored import contents

import sciflow as sf
from sciflow.anomaly.calibration import Calibration
from sciflow.anomaly.decision import decide
from sciflow.anomaly.online import LORD, SAFFRON


def scores(world) -> np.ndarray:
    """Of the first days, by the run's own model, and of the events that calibrate."""
    store = sf.open_store(world.root / "t2m.zarr")
    density = sf.load(world.root / "runs" / "demo")
    return -density.log_prob(store.test[:]).detach().numpy().astype(np.float64)


class TestResults:
    def test_are_minus_log_p_and_its_conformal_p_value(self, world):
        store = sf.open_store(world.come_in(0, odd=True))
        world.detect()
        found, density = world.results, sf.load(world.root / "runs" / "demo")
        expected = -density.log_prob(store.test[:]).detach().numpy()
        np.testing.assert_allclose(found.score.values.ravel(), expected, rtol=1e-5)
        held_out = scores(world)
        p = [(1 + (held_out >= score).sum()) / (len(held_out) + 1) for score in found.score.values.ravel()]
        np.testing.assert_allclose(found.p_value.values.ravel(), p, atol=1.5 / len(held_out))
        np.testing.assert_array_equal(found.flag.values.ravel(), decide(found.p_value.values.ravel(), fdr=0.1).flag)

    def test_have_coordinates_units_and_fingerprints(self, world):
        world.come_in(0)
        world.come_in(1)
        world.detect()
        found = world.results
        assert found.score.dims == ("day", "lat", "lon")
        assert found.attribution.dims == ("day", "lat", "lon", "time")
        xr.testing.assert_equal(found.lat, xr.DataArray(np.arange(50.0, 53.0), {"lat": np.arange(50.0, 53.0)}, "lat"))
        assert [found.attrs["stores"][code] for code in found.store.values] == ["day000.zarr", "day001.zarr"]
        state = json.loads((world.out / "state.json").read_text())
        (detector,) = state["detectors"]
        model = json.loads((world.root / "runs" / "demo" / "model" / "model.json").read_text())
        assert detector["model"] == model["weights"]["sha256"] == found.attrs["model"]
        assert detector["calibration"] == found.attrs["calibration"]
        assert (found.detector == 0).all()
        assert state["watermark"].startswith("2001-07-01T00")

    def test_have_attributions_where_they_are_flagged(self, world):
        world.come_in(0, odd=True)
        world.detect()
        found = world.results
        has = ~np.isnan(found.attribution)
        assert (has.all("time") == found.flag).all()
        # The third and fourth of six steps are too warm.
        largest = found.attribution.isel(day=0, lat=1, lon=1).argsort().values[-2:]
        assert sorted(largest.tolist()) == [2, 3]

    def test_open_without_a_word(self, world, recwarn):
        world.come_in(0)
        world.detect()
        recwarn.clear()
        xr.open_zarr(world.out / "results.zarr").load()
        assert not recwarn.list

    @pytest.mark.usefixtures("_figures")
    def test_are_drawn_on_one_page_that_is_the_same_each_time(self, world, trained, tmp_path):
        other = trained.copy(tmp_path / "other")
        for one in (world, other):
            one.come_in(0)
            one.come_in(1, odd=True)
            one.detect()
        page = (world.out / "report.html").read_text()
        assert "1 event, 2 of 24 cells flagged at FDR 0.1" in page
        assert "2001-07-01" in page
        assert contents(world.current) == contents(other.current)


class TestTheLevel:
    def test_is_the_workflows(self, world):
        world.detection |= {"false_alarm_rate": 0.3}
        world.come_in(0, odd=True)
        world.detect()
        found = world.results
        np.testing.assert_array_equal(found.flag, found.p_value <= 0.3)
        assert found.attrs["false_alarm_rate"] == 0.3
        assert "fdr" not in found.attrs

    def test_that_the_calibration_cannot_reach_is_said(self, world):
        world.detection |= {"fdr": 1e-5}
        world.come_in(0, odd=True)
        done = world.detect()
        assert done.flagged == 0
        assert any("one odd row alone cannot be flagged among 12 tests" in note for note in done.notes)


class TestOnlineControl:
    @pytest.mark.parametrize("method", ["lord", "saffron"])
    def test_goes_on_from_run_to_run_as_if_it_were_one(self, method, world, trained, tmp_path):
        once = trained.copy(tmp_path / "once")
        for one in (world, once):
            one.detection |= {"method": method, "fdr": 0.2}
        for day in range(3):
            world.come_in(day, odd=day != 1)
            once.come_in(day, odd=day != 1)
            world.detect()
        once.detect()
        found = world.results
        xr.testing.assert_identical(found.flag, once.results.flag)
        stream = {"lord": LORD, "saffron": SAFFRON}[method](0.2)
        np.testing.assert_array_equal(found.flag.values.ravel(), stream.decide(found.p_value.values.ravel()).flag)
        state = json.loads((world.out / "state.json").read_text())
        assert state["online"] == stream.state()

    def test_takes_rows_that_are_judged_again_for_new_tests(self, world):
        world.detection |= {"method": "lord"}
        world.come_in(0)
        world.detect()
        world.detect(start="2001-06", stop="2001-06")
        assert json.loads((world.out / "state.json").read_text())["online"]["clock"] == 24

    def test_says_so_where_it_begins_anew(self, world):
        world.detection |= {"method": "lord", "fdr": 0.2}
        world.come_in(0)
        world.detect()
        world.detection["fdr"] = 0.1
        world.come_in(1)
        notes = world.detect().notes
        assert "control begins anew: it went on by lord at 0.2, of which nothing is left" in notes
        world.come_in(2)
        assert not any("anew" in note for note in world.detect().notes)


class TestGroups:
    def test_are_calibrated_apart(self, world):
        world.detection["calibration"] = {"group": "lat"}
        world.come_in(0)
        world.detect()
        found = world.results
        store = sf.open_store(world.root / "t2m.zarr")
        held_out = scores(world)
        latitude = store.coordinates.lat.values[store.test.grid_index(0, len(store.test)) // 4 % 3]
        for lat in (50.0, 52.0):
            expected = Calibration.of(held_out[latitude == lat]).p_values(found.score.sel(lat=lat).values.ravel())
            np.testing.assert_allclose(found.p_value.sel(lat=lat).values.ravel(), expected.p_value, atol=0.02)

    def test_that_the_calibration_has_not_seen_are_said_and_never_flagged(self, world):
        world.detection["calibration"] = {"group": "month"}
        world.come_in(40, odd=True)
        done = world.detect()
        assert done.flagged == 0
        assert np.isnan(world.results.p_value).all()
        assert any("groups that the calibration has not seen" in note and "8 (12 rows)" in note for note in done.notes)


class TestDrift:
    def test_is_told_once_the_world_has_moved(self, world):
        world.come_in(0, num_days=4, name="same.zarr")
        assert not world.detect().has_moved
        moved = world.root / "incoming" / "moved.zarr"
        import pandas as pd
        from watched import FIRST_DAY, weather

        data = weather(FIRST_DAY + pd.Timedelta(days=10), 20, seed=3) + 2
        data.t2m.attrs["units"] = "K"
        sf.shard(data, moved, like=world.root / "t2m.zarr", progress=False)
        done = world.detect()
        assert done.has_moved
        assert done.drift.startswith("the world moved")
        assert 'sciflow_detect_drift{workflow="demo"} 1\n' in (world.out / "metrics.prom").read_text()


class TestAnotherModel:
    def test_judges_new_rows_and_leaves_the_others_unless_asked(self, world):
        world.come_in(0)
        world.detect()
        before = world.results
        world.detection["calibration"] = {"tail": True}
        world.come_in(1)
        done = world.detect()
        assert any("another model, score or calibration than before" in note for note in done.notes)
        found = world.results
        assert found.detector.values[:, 0, 0].tolist() == [0, 1]
        np.testing.assert_array_equal(found.p_value[0], before.p_value[0])
        world.detect(start="2001-06-30", stop="2001-06-30")
        assert world.results.detector.values[:, 0, 0].tolist() == [1, 1]


class TestTheStoreThatCalibrates:
    def test_written_anew_since_the_training_is_a_warning(self, world):
        from watched import weather

        data = weather("2001-01-01", 180, seed=77)
        layout = {"event": {"time": 6}, "sample": ["lat", "lon"], "split": (0.6, 0.1, 0.3), "overwrite": True}
        sf.shard(data, world.root / "t2m.zarr", progress=False, **layout)
        world.come_in(0)
        with pytest.warns(UserWarning, match="has been written anew since the model was trained"):
            world.detect()
