"""New data of a known kind: laid out as those that a model was trained on, and none of them for training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import xarray as xr

import sciflow as sf
from sciflow.errors import ConfigError, DataError, LayoutError


def weather(first: str, num_hours: int, units: str = "K", gap: bool = False) -> xr.Dataset:
    values = 280 + np.random.default_rng(num_hours).normal(size=(num_hours, 3)).astype("float32")
    if gap:
        values[5, 0] = np.nan
    hours = pd.date_range(first, periods=num_hours, freq="h")
    coordinates = {"time": hours, "lat": [50.0, 51.0, 52.0]}
    return xr.Dataset({"t2m": (("time", "lat"), values, {"units": units})}, coordinates)


@pytest.fixture
def trained(tmp_path: Path) -> sf.Store:
    return sf.shard(weather("2001-01-01", 240), tmp_path / "t2m.zarr", event={"time": 24}, sample=["lat"])


class TestNewData:
    def test_are_laid_out_as_the_store_and_all_for_the_test(self, trained, tmp_path):
        new = sf.shard(weather("2001-01-11", 48), tmp_path / "new.zarr", like=trained.path)
        assert new.layout.difference(trained.layout.to_json()) is None
        assert [len(split) for split in new.splits] == [0, 0, 6]
        assert (
            new.coordinates.day.values.astype("datetime64[D]").tolist()
            == pd.date_range("2001-01-11", periods=2).values.astype("datetime64[D]").tolist()
        )
        np.testing.assert_allclose(new.statistics.mean, new.test[:].numpy().mean(0), rtol=1e-6)

    def test_the_store_may_be_open(self, trained, tmp_path):
        new, same = (
            sf.shard(weather("2001-01-11", 48), tmp_path / name, like=like)
            for name, like in (("open.zarr", trained), ("path.zarr", trained.path))
        )
        assert new.fingerprint == same.fingerprint

    def test_of_a_table(self, tmp_path):
        rows = np.random.default_rng(0).normal(size=(50, 2))
        trained = sf.shard(pd.DataFrame(rows, columns=["u", "v"]), tmp_path / "old.zarr")
        pd.DataFrame(rows[:7], columns=["u", "v"]).assign(w=1.0).to_csv(tmp_path / "new.csv", index=False)
        new = sf.shard(str(tmp_path / "new.csv"), tmp_path / "new.zarr", like=trained.path)
        np.testing.assert_allclose(new.test[:], rows[:7], rtol=1e-6)

    def test_of_other_units_are_refused(self, trained, tmp_path):
        with pytest.raises(LayoutError, match=r"not like .*t2m.zarr: units \['degC'\] here, \['K'\] there"):
            sf.shard(weather("2001-01-11", 48, "degC"), tmp_path / "new.zarr", like=trained.path)

    def test_of_other_steps_are_refused(self, trained, tmp_path):
        new = weather("2001-01-11", 48)
        slow = new.assign_coords(time=pd.date_range("2001-01-11", periods=48, freq="3h"))
        with pytest.raises(LayoutError, match=r"not like .*t2m.zarr: coordinate 'time' of an event is 0, 1.08e\+13"):
            sf.shard(slow, tmp_path / "new.zarr", like=trained.path)

    def test_that_are_flipped_are_refused(self, tmp_path):
        trained = sf.shard(weather("2001-01-01", 240), tmp_path / "t2m.zarr", event=["lat"], sample=["time"])
        new = weather("2001-01-11", 48)
        with pytest.raises(LayoutError, match=r"'lat' of an event is 52, 51, 50 here, and 50, 51, 52 there: put it in"):
            sf.shard(new.isel(lat=[2, 1, 0]), tmp_path / "new.zarr", like=trained.path)
        # As single precision has them, they are the same places.
        sf.shard(new.assign_coords(lat=new.lat.astype("f4") + 1e-5), tmp_path / "new.zarr", like=trained.path)

    def test_take_the_layout_from_nowhere_else(self, trained, tmp_path):
        with pytest.raises(ConfigError, match="event beside like="):
            sf.shard(weather("2001-01-11", 48), tmp_path / "new.zarr", like=trained.path, event={"time": 12})


class TestMissingValues:
    def test_follow_the_stores_policy_or_the_users(self, trained, tmp_path):
        new = weather("2001-01-11", 48, gap=True)
        with pytest.raises(DataError, match="missing or infinite"):
            sf.shard(new, tmp_path / "new.zarr", like=trained.path)
        assert len(sf.shard(new, tmp_path / "new.zarr", like=trained.path, missing="drop")) == 5

    def test_are_filled_with_what_the_store_was_filled_with(self, tmp_path):
        old = weather("2001-01-01", 240, gap=True)
        layout = {"event": {"time": 24}, "sample": ["lat"]}
        trained = sf.shard(old, tmp_path / "t2m.zarr", missing="fill", **layout)
        new = sf.shard(weather("2001-01-11", 48, gap=True), tmp_path / "new.zarr", like=trained.path)
        assert new.filled_with == trained.filled_with == [pytest.approx(float(old.t2m.mean()), rel=1e-6)]
        assert new.test[0][5].item() == pytest.approx(trained.filled_with[0])

    def test_of_a_store_that_does_not_say_are_filled_with_what_is_given(self, trained, tmp_path):
        new = weather("2001-01-11", 48, gap=True)
        with pytest.raises(ConfigError, match="filled with is not known: give fill_value"):
            sf.shard(new, tmp_path / "new.zarr", like=trained.path, missing="fill")
        sf.shard(new, tmp_path / "new.zarr", like=trained.path, missing="fill", fill_value=280.0)
