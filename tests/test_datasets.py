"""The catalogue is complete and true where the data are at hand; the simulator is one function of place and seed."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import simulate
import yaml

ROOT = Path(__file__).parents[1]
DATASETS = ROOT / "datasets"
SHARED = ROOT.parent / "shared" / "data"
CATALOGUE = sorted(DATASETS.glob("*.yaml"))


def entry(path: Path) -> dict:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", CATALOGUE, ids=lambda path: path.stem)
class TestCatalogue:
    def test_every_key_is_there_and_no_other(self, path):
        record = entry(path)
        required = {"name", "title", "source", "licence", "file", "dimensions", "variables", "events", "shard", "notes"}
        assert required <= set(record) <= required | {"label"}
        assert set(record["source"]) == {"url", "origin", "citation"}
        assert (
            {"name", "format", "bytes", "sha256"}
            <= set(record["file"])
            <= {"name", "format", "bytes", "sha256", "made_by"}
        )
        assert set(record["events"]) == {"what", "shape", "count"}
        assert set(record.get("label", dict.fromkeys(("name", "anomaly", "count")))) == {"name", "anomaly", "count"}
        for variable in record["variables"]:
            assert {"name", "unit"} <= set(variable) <= {"name", "unit", "description"}
            assert isinstance(variable["unit"], str)
        assert len(record["file"]["sha256"]) == 64
        assert record["source"]["url"].startswith("https://")

    def test_its_name_is_the_file_s(self, path):
        assert entry(path)["name"].replace("-", "_") == path.stem

    def test_the_command_reads_the_file_and_names_its_variables(self, path):
        record = entry(path)
        assert record["shard"].startswith(f"sciflow shard {record['file']['name']} ")
        if "--variables" in record["shard"]:
            for variable in record["variables"]:
                assert variable["name"] in record["shard"]

    def test_the_readme_lists_it(self, path):
        row = next(line for line in (DATASETS / "README.md").read_text().splitlines() if f"`{path.name}`" in line)
        assert f"{entry(path)['events']['count']:,}" in row

    def test_a_copy_at_hand_is_the_one_described(self, path):
        file = entry(path)["file"]
        copies = list(SHARED.glob(f"*/{file['name']}"))
        if not copies:
            pytest.skip("the data do not lie beside the project")
        content = copies[0].read_bytes()
        assert len(content) == file["bytes"]
        assert hashlib.sha256(content).hexdigest() == file["sha256"]

    def test_the_events_are_those_described(self, path):
        record = entry(path)
        copies = list(SHARED.glob(f"*/{record['file']['name']}"))
        if not copies:
            pytest.skip("the data do not lie beside the project")
        from sciflow.data.sources import open_source

        event = {"time": 24} if "--event time=24" in record["shard"] else None
        source = open_source(copies[0], variables=[v["name"] for v in record["variables"]], event=event)
        assert list(source.layout.event_shape) == record["events"]["shape"]
        assert source.layout.num_grid_events == record["events"]["count"]


def test_breast_cancer_is_made_as_described(tmp_path):
    datasets = pytest.importorskip("sklearn.datasets")
    record = entry(DATASETS / "breast_cancer.yaml")
    frame = datasets.load_breast_cancer(as_frame=True).data
    frame.to_csv(tmp_path / record["file"]["name"], index=False)
    content = (tmp_path / record["file"]["name"]).read_bytes()
    assert hashlib.sha256(content).hexdigest() == record["file"]["sha256"]
    assert [variable["name"] for variable in record["variables"]] == list(frame.columns)
    assert list(frame.shape) == [record["events"]["count"], *record["events"]["shape"]]


class TestField:
    whole = simulate.field_block(0, 100, 20, 30, seed=3)

    @pytest.mark.parametrize(("start", "stop"), [(0, 100), (0, 1), (15, 17), (16, 32), (37, 91), (50, 50)])
    def test_a_block_is_its_part_of_the_whole(self, start, stop):
        block = simulate.field_block(start, stop, 20, 30, seed=3)
        assert block.dtype == np.float32
        np.testing.assert_array_equal(block, self.whole[start:stop])

    def test_another_seed_is_another_field(self):
        assert np.abs(simulate.field_block(0, 4, 20, 30, seed=4) - self.whole[:4]).mean() > 1

    def test_it_is_smooth_in_space_and_correlated_in_time(self):
        field = simulate.field_block(0, 1200, 48, 48)
        weather = field.reshape(-1, 24, 48, 48)[:, 12]  # One hour of the day: the cycle is a constant.
        anomaly = weather - weather.mean(0)
        scale = anomaly.std()
        assert 3 < scale < 5
        assert np.diff(anomaly, axis=1).std() < 0.25 * scale
        assert np.mean(anomaly[:, 0, 0] * anomaly[:, 0, 47]) < 0.3 * scale**2
        next_day = np.mean(anomaly[1:] * anomaly[:-1]) / scale**2
        assert next_day == pytest.approx(np.exp(-1), abs=0.15)

    def test_there_is_a_daily_cycle_and_white_noise(self):
        field = simulate.field_block(0, 2400, 16, 16)
        cycle = field.reshape(-1, 24, 16, 16).mean(0)
        assert 1 < np.ptp(cycle, axis=0).min() < np.ptp(cycle, axis=0).max() < 25
        assert 10 <= cycle.mean((1, 2)).argmax() <= 18
        # A second difference in space takes what is smooth away and multiplies the variance of the noise by 6.
        second = np.diff(field, n=2, axis=2)
        assert second.std() / np.sqrt(6) == pytest.approx(simulate.WHITE, rel=0.15)

    def test_impossible_sizes_are_errors(self):
        with pytest.raises(ValueError, match="nothing to simulate"):
            simulate.field_block(5, 3, 4, 4)


class TestTable:
    def test_a_block_is_its_part_of_the_whole(self):
        whole = simulate.table_block(0, 20_000, 4, seed=1)
        for start, stop in ((0, 1), (8191, 8193), (5000, 20_000), (7, 7)):
            np.testing.assert_array_equal(simulate.table_block(start, stop, 4, seed=1), whole[start:stop])

    def test_its_log_p_integrates_to_one(self):
        axis = np.linspace(-15, 15, 601)
        grid = np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2)
        for seed in (0, 1):
            total = np.exp(simulate.table_log_prob(grid, seed)).sum() * (axis[1] - axis[0]) ** 2
            assert total == pytest.approx(1.0, abs=1e-3)

    def test_its_rows_are_drawn_from_that_log_p(self):
        rows = simulate.table_block(0, 200_000, 2, seed=2)
        edges = [np.quantile(rows[:, 0], q) for q in (0.2, 0.5, 0.8)]
        axis = np.linspace(-15, 15, 601)
        grid = np.stack(np.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 2)
        density = np.exp(simulate.table_log_prob(grid, 2)).reshape(601, 601).sum(1)
        for edge, share in zip(edges, (0.2, 0.5, 0.8), strict=True):
            assert density[axis < edge].sum() / density.sum() == pytest.approx(share, abs=0.02)

    def test_its_columns_are_correlated(self):
        correlation = np.corrcoef(simulate.table_block(0, 20_000, 8).T)
        assert np.abs(correlation[np.triu_indices(8, 1)]).max() > 0.2


class TestFiles:
    def test_npy_holds_the_blocks(self, tmp_path, monkeypatch):
        monkeypatch.setattr(simulate, "BLOCK_BYTES", 100_000)
        path = simulate.write_field(tmp_path / "field.npy", 70, 12, 20, seed=5)
        np.testing.assert_array_equal(np.load(path), simulate.field_block(0, 70, 12, 20, seed=5))
        path = simulate.write_table(tmp_path / "rows.npy", 30_000, 3, seed=5)
        np.testing.assert_array_equal(np.load(path), simulate.table_block(0, 30_000, 3, seed=5))

    def test_netcdf_is_labelled_and_holds_the_blocks(self, tmp_path, monkeypatch):
        pytest.importorskip("h5py")
        import xarray as xr

        monkeypatch.setattr(simulate, "BLOCK_BYTES", 100_000)
        path = simulate.write_field(tmp_path / "field.nc", 150, 12, 20, seed=5)
        with xr.open_dataset(path) as dataset:
            assert dict(dataset.sizes) == {"time": 150, "latitude": 12, "longitude": 20}
            assert dataset.t2m.attrs["units"] == "K"
            assert str(dataset.time.values[25])[:13] == "2000-01-02T01"
            np.testing.assert_array_equal(dataset.t2m.values, simulate.field_block(0, 150, 12, 20, seed=5))

    def test_a_write_that_fails_leaves_nothing(self, tmp_path, monkeypatch):
        def fail(*_):
            raise KeyboardInterrupt

        monkeypatch.setattr(simulate, "field_block", fail)
        with pytest.raises(KeyboardInterrupt):
            simulate.write_field(tmp_path / "field.npy", 70, 12, 20)
        assert list(tmp_path.iterdir()) == []

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(DATASETS / "simulate.py"), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    def test_the_script_writes_the_size_that_was_asked_for(self, tmp_path):
        path = tmp_path / "rows.npy"
        done = self.run("table", str(path), "--gigabytes", "0.001", "--seed", "7")
        assert done.returncode == 0, done.stderr
        assert "15,625 x 16" in done.stdout
        np.testing.assert_allclose(np.load(path), simulate.table_block(0, 15_625, 16, seed=7), rtol=0, atol=1e-5)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (("field", "field.csv"), "must end in .nc or .npy"),
            (("table", "nowhere/rows.npy"), "no folder"),
            (("field", "field.npy", "--height", "0"), "must be 1 or more"),
            (("field", "field.npy", "--gigabytes", "-1"), "must be 1 or more"),
        ],
    )
    def test_a_wrong_request_is_one_clear_line(self, arguments, message):
        done = self.run(*arguments)
        assert done.returncode == 2
        assert message in done.stderr.splitlines()[-1]
