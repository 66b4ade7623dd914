"""A store: what is read from it is what was written, or an error that says what is wrong, and where."""

from __future__ import annotations

import importlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
import zarr
from typer.testing import CliRunner

import sciflow as sf
from sciflow.cli import app
from sciflow.data.layout import Layout, SampleDim
from sciflow.data.store import Store
from sciflow.data.writer import StoreWriter
from sciflow.errors import ShapeError, StoreError

ROWS = np.random.default_rng(0).normal(size=(500, 6)).astype("f4")


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with context and coordinates, several shards a split, several chunks a shard."""
    source = xr.Dataset(
        {"x": (("time", "place"), ROWS, {"units": "m"}), "season": ("time", np.arange(500) % 4)},
        {
            "time": np.datetime64("2019-01-01", "ns") + np.arange(500) * np.timedelta64(1, "h"),
            "name": ("place", [*"abcdef"]),
        },
    )
    path = tmp_path_factory.mktemp("template") / "store.zarr"
    module = importlib.import_module("sciflow.data.shard")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "CHUNK_BYTES", 16 * ROWS[:1].nbytes)
        sf.shard(source, path, variables=["x"], context=["season"], shard_rows=144, progress=False)
    return path


@pytest.fixture
def path(template, tmp_path) -> Path:
    """A copy, to be damaged."""
    return Path(shutil.copytree(template, tmp_path / "store.zarr"))


def read_everything(path: Path) -> None:
    """Ask for all that a store has."""
    store = sf.open_store(path)
    read_rows(store)
    assert store.statistics.count == 400
    assert store.coordinates["name"].values.tolist() == [*"abcdef"]


def read_rows(store: Store) -> None:
    for split in store.splits:
        split[:], split.context[:], split.grid_index(0, len(split))


class TestReading:
    def test_indexing_is_that_of_numpy(self, template):
        split = sf.open_store(template).train
        rows = split[:].numpy()
        order = np.random.default_rng(1).permutation(len(split))
        for index in (
            *(slice(None, 256), slice(10, 20), slice(None, None, 7), slice(None, None, -3), slice(-5, None)),
            *(slice(20, 10), slice(1000, 2000), [], [5, 2, 5], [-1, 0], order, order - len(order)),
            *(order % 3 == 0, np.zeros(len(split), bool), np.arange(3, dtype=np.uint8)),
        ):
            np.testing.assert_array_equal(split[index], rows[[] if isinstance(index, list) and not index else index])
        for row in (0, 143, 144, len(split) - 1, -1, -len(split), np.int64(3)):
            np.testing.assert_array_equal(split[row], rows[row])
            assert split[row].shape == (6,)
        np.testing.assert_array_equal(split[torch.tensor([3, 1])], rows[[3, 1]])
        np.testing.assert_array_equal(split[torch.arange(len(split)) % 2 == 0], rows[::2])

    def test_context_is_indexed_alike(self, template):
        store = sf.open_store(template)
        seasons = store.train.grid_index(0, len(store.train)) % 4
        for index in (slice(0, 9), [7, 3], -1, seasons == 2):
            np.testing.assert_array_equal(store.train.context[index][..., 0], seasons[index])

    @pytest.mark.parametrize("index", [400, -401, [0, 400], [-401], np.ones(399, bool), np.ones(401, bool)])
    def test_rows_that_are_not_there(self, template, index):
        with pytest.raises(IndexError, match=r"400 .*train"):
            sf.open_store(template).train[index]

    @pytest.mark.parametrize("index", ["a", 1.5, [0.5], np.zeros((2, 2), int), None])
    def test_what_is_no_index(self, template, index):
        with pytest.raises((IndexError, TypeError), match="train"):
            sf.open_store(template).train[index]

    def test_iterating_gives_every_row(self, template):
        split = sf.open_store(template).test
        assert torch.equal(torch.stack(list(split)), split[:])

    def test_a_store_without_context_says_so(self, tmp_path):
        store = sf.shard(ROWS, tmp_path / "s.zarr", progress=False)
        with pytest.raises(ShapeError, match="this store has no context"):
            store.train.context[:3]

    def test_a_split_may_be_empty(self, tmp_path):
        store = sf.shard(ROWS, tmp_path / "s.zarr", split=(1, 0, 0), progress=False)
        assert (len(store), len(store.test), store.test[:].shape) == (500, 0, (0, 6))
        assert list(store.test) == []

    def test_xarray_and_zarr_can_read_it_too(self, template):
        store = sf.open_store(template)
        group = zarr.open_group(template, mode="r")
        np.testing.assert_array_equal(group["train/events"][:], store.train[:])
        opened = xr.open_zarr(template, group="train", consolidated=False)
        assert opened["events"].dims == ("event", "place")
        np.testing.assert_array_equal(opened["context"], store.train.context[:])


def data_files(template: Path) -> list[str]:
    return sorted(str(file.relative_to(template)) for file in template.glob("*/*/c/**/*") if file.is_file())


def test_all_files_of_a_store_are_known(template):
    arrays = {
        name.split("/")[1] for name in data_files(template) if name.split("/")[0] in ("train", "validation", "test")
    }
    assert arrays == {"events", "index", "context"}
    assert len([name for name in data_files(template) if name.startswith("train/events")]) == 3


class TestDamage:
    @pytest.mark.parametrize(
        "name", ["train/events/c/1/0", "test/events/c/0/0", "train/index/c/0", "train/context/c/2/0"]
    )
    def test_a_flipped_byte_anywhere_in_a_shard_is_an_error_that_names_it(self, path, name):
        file = path / name
        content = file.read_bytes()
        # All over the file; the first header, and the index at the end, byte by byte.
        places = {
            *np.linspace(0, len(content) - 1, 40).astype(int),
            *range(20),
            *range(len(content) - 20, len(content)),
        }
        split, _, _, number, *_ = name.split("/")
        for place in sorted(places):
            damaged = bytearray(content)
            damaged[place] ^= 1 << (place % 8)
            file.write_bytes(damaged)
            with pytest.raises(StoreError, match=rf"shard {split}/{number} is damaged \({name}: ") as caught:
                read_rows(sf.open_store(path))
            assert "\n" not in str(caught.value), place
        file.write_bytes(content)
        read_everything(path)

    @pytest.mark.parametrize(
        "name", ["train/events/c/1/0", "train/context/c/1/0", "test/events/c/1/0", "train/events/c/2/0"]
    )
    def test_rows_of_a_damaged_chunk_are_an_error_however_few_are_read(self, path, name):
        split_name, array, _, number, *_ = name.split("/")
        content = bytearray((path / name).read_bytes())
        # Among the values of the first chunk of the shard.
        content[30] ^= 16
        (path / name).write_bytes(content)
        split = getattr(sf.open_store(path), split_name)
        rows = split if array == "events" else split.context
        start, stop = split.shard_range(int(number))
        size = split.chunk_rows
        for index in (start, slice(start, start + 1), slice(start + 3, start + 9), [start + 5], slice(start + 5, stop)):
            with pytest.raises(StoreError, match=rf"shard {split_name}/{number} is damaged"):
                rows[index]
        if start:
            with pytest.raises(StoreError, match=rf"shard {split_name}/{number} is damaged"):
                rows[start - 1 : start + 1]
        assert len(rows[start + size : stop]) == stop - start - size

    def test_a_damaged_chunk_does_no_harm_to_the_others(self, path):
        whole = sf.open_store(path).train[:]
        file = path / "train/events/c/1/0"
        content = bytearray(file.read_bytes())
        content[3] ^= 255
        file.write_bytes(content)
        split = sf.open_store(path).train
        torch.testing.assert_close(split[:140], whole[:140])
        torch.testing.assert_close(split[200:280], whole[200:280])
        with pytest.raises(StoreError, match="shard train/1 is damaged"):
            split[[3, 150, 300]]
        with pytest.raises(StoreError, match="shard train/1 is damaged"):
            split[100:300]

    @pytest.mark.parametrize("size", [0, 1, 3, 100, -1, -4, -100])
    def test_a_shard_that_is_cut_short(self, path, size):
        for name in ("train/events/c/1/0", "train/index/c/1", "train/context/c/1/0"):
            content = (path / name).read_bytes()
            (path / name).write_bytes(content[:size])
            with pytest.raises(StoreError, match="shard train/1 is damaged"):
                read_everything(path)
            (path / name).write_bytes(content)

    def test_a_missing_shard_is_found_when_the_store_is_opened(self, path):
        for name in data_files(path):
            if name.startswith(("train", "validation", "test")):
                hidden = path / (name + ".hidden")
                (path / name).rename(hidden)
                split, _, _, number, *_ = name.split("/")
                with pytest.raises(StoreError, match=rf"shard {split}/{number} is missing \({name}\): restore it"):
                    sf.open_store(path)
                hidden.rename(path / name)

    def test_a_shard_that_goes_missing_later_is_never_read_as_fill_values(self, path):
        split = sf.open_store(path).train
        split[:], split.context[:], split.grid_index(0, 400)
        for name, read in (
            ("train/events/c/1/0", lambda: split[130:150]),
            ("train/index/c/1", lambda: split.grid_index(130, 150)),
            ("train/context/c/1/0", lambda: split.context[130:150]),
        ):
            hidden = (path / name).rename(path / "hidden")
            with pytest.raises(StoreError, match=rf"shard train/1 is missing \({name}\)"):
                read()
            assert split[:140].shape == (140, 6)
            hidden.rename(path / name)

    def test_every_other_file_is_held_against_its_hash(self, path):
        small = [str(file.relative_to(path)) for file in path.rglob("*") if file.is_file()]
        small = [
            name for name in small if not name.startswith(("train/", "validation/", "test/")) or "zarr.json" in name
        ]
        assert len(small) > 20
        for name in small:
            content = (path / name).read_bytes()
            for place in {0, len(content) // 3, len(content) // 2, len(content) - 2}:
                damaged = bytearray(content)
                damaged[place] ^= 1
                (path / name).write_bytes(damaged)
                with pytest.raises(StoreError) as caught:
                    read_everything(path)
                assert str(path) in str(caught.value)
                assert "\n" not in str(caught.value)
            (path / name).unlink()
            with pytest.raises(StoreError):
                read_everything(path)
            (path / name).write_bytes(content)
        read_everything(path)


class TestWhatIsNoStore:
    def test_nothing_there(self, tmp_path):
        with pytest.raises(StoreError, match=r"a\.zarr: no such store; make one with sciflow shard"):
            sf.open_store(tmp_path / "a.zarr")

    def test_half_written(self, tmp_path):
        (tmp_path / "a.zarr.partial").mkdir()
        with pytest.raises(StoreError, match=r"a\.zarr\.partial is half-written: run the command that wrote it again"):
            sf.open_store(tmp_path / "a.zarr")

    def test_a_file(self, tmp_path):
        (tmp_path / "a.nc").write_bytes(b"CDF")
        with pytest.raises(StoreError, match=r"a\.nc: a file, not a store: make one of it with sciflow shard"):
            sf.open_store(tmp_path / "a.nc")

    def test_a_folder(self, tmp_path):
        with pytest.raises(StoreError, match="not a Zarr v3 group, or damaged"):
            sf.open_store(tmp_path)

    @pytest.mark.parametrize("zarr_format", [2, 3])
    def test_a_zarr_group_of_somebody_else(self, tmp_path, zarr_format):
        xr.Dataset({"x": ("row", np.zeros(3))}).to_zarr(tmp_path / "a.zarr", zarr_format=zarr_format)
        with pytest.raises(
            StoreError, match="a Zarr group, but not a store of ours: make one of it with sciflow shard"
        ):
            sf.open_store(tmp_path / "a.zarr")

    def test_a_zarr_array(self, tmp_path):
        zarr.create_array(tmp_path / "a.zarr", data=np.zeros(3))
        with pytest.raises(StoreError, match="not a Zarr v3 group, or damaged"):
            sf.open_store(tmp_path / "a.zarr")

    def test_another_version(self, path):
        edit(path / "zarr.json", lambda record: record["attributes"]["sciflow"].update(version=7))
        with pytest.raises(
            StoreError, match="written as store version 7, this sciflow reads version 1: shard the source"
        ):
            sf.open_store(path)

    def test_without_a_manifest(self, path):
        shutil.rmtree(path / "manifest")
        with pytest.raises(StoreError, match="damaged or incomplete: no readable manifest"):
            sf.open_store(path)

    def test_with_a_manifest_that_was_changed(self, path):
        def drop_a_shard(record: dict) -> None:
            text = json.loads(record["attributes"]["manifest"])
            text["shards"].pop()
            record["attributes"]["manifest"] = json.dumps(text)

        edit(path / "manifest" / "zarr.json", drop_a_shard)
        with pytest.raises(StoreError, match="the manifest's checksum does not fit it"):
            sf.open_store(path)

    @pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"zarr_format": 3}', "\x00\xff"])
    def test_a_zarr_json_that_is_none(self, path, content):
        (path / "zarr.json").write_text(content, encoding="latin1")
        with pytest.raises(StoreError) as caught:
            sf.open_store(path)
        assert str(path) in str(caught.value)


def edit(file: Path, change) -> None:
    record = json.loads(file.read_text())
    change(record)
    file.write_text(json.dumps(record))


class TestWriter:
    def make(self, folder: Path, context: tuple[str, ...] = ()) -> StoreWriter:
        layout = Layout(("x",), ("",), (SampleDim("row", "row", 25),), (), context, len(context))
        counts, rows = {"train": 25, "validation": 0, "test": 0}, dict.fromkeys(("train", "validation", "test"), 10)
        return StoreWriter(folder / "s.zarr", layout, {"layout": layout.to_json()}, counts, rows, 5)

    def test_a_shard_has_one_writer_once(self, tmp_path):
        writer = self.make(tmp_path)
        events, index = np.zeros((10, 1), "f4"), np.arange(10)
        writer.write("train", 0, events, index, None)
        with pytest.raises(StoreError, match="shard train/0 has a writer already: a shard has one, once"):
            writer.write("train", 0, events + 1, index, None)
        assert zarr.open_group(tmp_path / "s.zarr")["train/events"][:10].tolist() == events.tolist()

    def test_a_shard_that_an_earlier_run_wrote_has_had_its_writer(self, tmp_path):
        self.make(tmp_path).write("train", 0, np.zeros((10, 1), "f4"), np.arange(10), None)
        writer = self.make(tmp_path)
        assert writer.finished_shards() == {("train", 0)}
        with pytest.raises(StoreError, match="shard train/0 has a writer already"):
            writer.write("train", 0, np.zeros((10, 1), "f4"), np.arange(10), None)

    @pytest.mark.parametrize(("number", "rows"), [(0, 9), (0, 11), (0, 0), (2, 10), (2, 4)])
    def test_a_shard_is_written_whole(self, tmp_path, number, rows):
        writer = self.make(tmp_path)
        with pytest.raises(
            StoreError, match=rf"shard train/{number} has {5 if number else 10} rows, .* got {rows} and"
        ):
            writer.write("train", number, np.zeros((rows, 1), "f4"), np.arange(rows), None)
        assert not (tmp_path / "s.zarr/train/events/c").exists()

    @pytest.mark.parametrize("number", [3, -1])
    def test_a_shard_that_does_not_exist(self, tmp_path, number):
        with pytest.raises(StoreError, match=rf"no shard train/{number}"):
            self.make(tmp_path).write("train", number, np.zeros((10, 1), "f4"), np.arange(10), None)

    def test_index_and_context_have_a_row_for_every_event(self, tmp_path):
        writer = self.make(tmp_path, ("c",))
        events = np.zeros((10, 1), "f4")
        for index, context in ((np.arange(9), events), (np.arange(10), events[:9]), (np.arange(10), None)):
            with pytest.raises(StoreError, match="shard train/0 has 10 rows, and is written whole"):
                writer.write("train", 0, events, index, context)


class TestFingerprint:
    def test_it_is_of_the_events_and_not_of_how_they_were_written(self, tmp_path):
        stores = [
            sf.shard(ROWS, tmp_path / f"{n}.zarr", num_writers=n, shard_rows=60, progress=False) for n in (1, 2, 4)
        ]
        assert len({store.fingerprint for store in stores}) == 1

    def test_another_value_seed_or_layout_gives_another(self, tmp_path):
        changed = ROWS.copy()
        changed[17, 3] = np.nextafter(changed[17, 3], 9)
        stores = [
            sf.shard(rows, tmp_path / f"{n}.zarr", seed=seed, progress=False)
            for n, (rows, seed) in enumerate(((ROWS, 0), (changed, 0), (ROWS, 1), (ROWS[:, :5], 0)))
        ]
        assert len({store.fingerprint for store in stores}) == 4


class TestInspect:
    @pytest.mark.parametrize(
        ("make", "lines"),
        [
            (lambda: ROWS, ["event        [6] (feature 6), float32", "counted over row 500", "left out     0 events"]),
            (
                lambda: xr.Dataset(dict.fromkeys("ab", ("row", ROWS[:, 0]))),
                ["event        [2] (variable 2), float32", "│ b "],
            ),
            (
                lambda: xr.Dataset({f"v{n:02}": ("row", ROWS[:, n % 6]) for n in range(30)}),
                ["event        [30] (variable 30)", "and 18 more"],
            ),
            (
                lambda: xr.Dataset({"t": (("time", "lat"), ROWS, {"units": "K"}), "u": (("lat", "time"), ROWS.T + 5)}),
                ["event        [2, 6] (variable 2, lat 6)", "│ t        │ K "],
            ),
            (
                lambda: np.ones((30, 2, 3, 4), "f4"),
                ["event        [2, 3, 4] (axis_1 2, axis_2 3, axis_3 4)", "x (constant)"],
            ),
            (lambda: np.where(ROWS > 2.8, np.nan, ROWS), [f"left out     {np.sum((ROWS > 2.8).any(1))} events"]),
        ],
    )
    def test_it_prints_what_the_store_is(self, tmp_path, make, lines):
        data = make()
        options = {"variables": ["t", "u"], "sample": ["time"]} if "t" in getattr(data, "data_vars", ()) else {}
        store = sf.shard(data, tmp_path / "s.zarr", missing="drop", progress=False, **options)
        result = CliRunner().invoke(app, ["inspect", str(tmp_path / "s.zarr")])
        assert result.exit_code == 0, result.output
        for line in (*lines, f"train: {len(store.train):,} events in 1 shard", store.fingerprint[:16]):
            assert line in result.output

    def test_context_is_named(self, template):
        assert "context      season" in CliRunner().invoke(app, ["inspect", str(template)]).output

    def test_a_store_that_is_damaged_is_an_error(self, path):
        (path / "statistics" / "mean" / "zarr.json").write_text("{}")
        result = CliRunner().invoke(app, ["inspect", str(path)])
        assert result.exit_code == 1
        assert result.exception is not None


def test_a_store_on_a_url_is_protected_alike(template):
    fsspec = pytest.importorskip("fsspec")
    files = fsspec.filesystem("memory")
    files.put(f"{template}/", "/store.zarr", recursive=True)
    try:
        store = Store("memory://store.zarr")
        np.testing.assert_array_equal(store.train[:], sf.open_store(template).train[:])
        files.rm("/store.zarr/train/events/c/1/0")
        with pytest.raises(StoreError, match=r"shard train/1 is missing \(train/events/c/1/0\)"):
            Store("memory://store.zarr").train[130:150]
        content = bytearray(files.cat("/store.zarr/train/events/c/2/0"))
        content[5] ^= 1
        files.pipe("/store.zarr/train/events/c/2/0", bytes(content))
        with pytest.raises(StoreError, match="shard train/2 is damaged"):
            Store("memory://store.zarr").train[290:]
    finally:
        files.rm("/store.zarr", recursive=True)


def test_a_shard_in_anothers_place_is_found_by_looking_for_it(tmp_path):
    rows = np.random.default_rng(0).normal(size=(400, 2))
    store = sf.shard(rows, tmp_path / "s.zarr", shard_rows=40, progress=False)
    store.verify()
    first, second = (tmp_path / "s.zarr" / "train" / "events" / "c" / number / "0" for number in "01")
    whole = first.read_bytes()
    first.write_bytes(second.read_bytes())
    with pytest.raises(StoreError, match="shard train/0 is not the one that was written"):
        sf.open_store(tmp_path / "s.zarr").verify()
    first.write_bytes(whole)
    index = tmp_path / "s.zarr" / "train" / "index" / "c"
    (index / "3").write_bytes((index / "2").read_bytes())
    with pytest.raises(StoreError, match="shard train/3 is not the one"):
        sf.open_store(tmp_path / "s.zarr").verify()
