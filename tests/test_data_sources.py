"""Sources: every kind of file and of data in memory gives the same events, in bounded memory, or one clear line."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr

import sciflow as sf
from sciflow.data.sources import open_source
from sciflow.errors import DataError, LayoutError, SciflowError

NAMES = ["mean", "width", "skew"]
ROWS = np.random.default_rng(0).normal(size=(60, 3)).astype("f4")
TABLE = pd.DataFrame(ROWS, columns=NAMES)
FIELD = xr.Dataset(
    {"t2m": (("time", "lat"), ROWS, {"units": "K"})}, {"time": pd.date_range("2019", periods=60, freq="h")}
)


def events_of(data: object, **options: object) -> np.ndarray:
    """All events of a source, in grid order."""
    blocks = list(open_source(data, **options).blocks(100))
    assert len(blocks) > 1
    return np.concatenate([block.events for block in blocks])


def written(write: Callable[[Path], object], name: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        write(folder / name)
        return folder / name

    return make


TABLES = {
    "csv": written(lambda path: TABLE.to_csv(path, index=False), "rows.csv"),
    "csv without header": written(lambda path: TABLE.to_csv(path, index=False, header=False), "rows.csv"),
    "csv of windows": written(lambda path: TABLE.to_csv(path, index=False, lineterminator="\r\n"), "rows.CSV"),
    "csv with mark": written(lambda path: TABLE.to_csv(path, index=False, encoding="utf-8-sig"), "rows.csv"),
    "tsv": written(lambda path: TABLE.to_csv(path, index=False, sep="\t"), "rows.tsv"),
    "parquet": written(lambda path: TABLE.to_parquet(path), "rows.parquet"),
    "pandas": lambda folder: TABLE,
    "npy": written(lambda path: np.save(path, ROWS), "rows.npy"),
    "npz": written(lambda path: np.savez(path, rows=ROWS), "rows.npz"),
    "npz, compressed": written(lambda path: np.savez_compressed(path, rows=ROWS), "rows.npz"),
    "numpy": lambda folder: ROWS,
    "numpy, other bytes": lambda folder: ROWS.astype(">f8"),
    "numpy, strided": lambda folder: np.asfortranarray(np.repeat(ROWS, 2, 0))[::2],
    "torch": lambda folder: torch.from_numpy(ROWS).requires_grad_(),
    "xarray": lambda folder: FIELD,
    "xarray array": lambda folder: FIELD.t2m,
    "xarray array without a name": lambda folder: FIELD.t2m.rename(None),
    "xarray, one variable a column": lambda folder: TABLE.to_xarray(),
    "netcdf4": written(lambda path: FIELD.to_netcdf(path, engine="netcdf4"), "field.nc"),
    "hdf5": written(lambda path: FIELD.to_netcdf(path, engine="h5netcdf"), "field.h5"),
    "netcdf3": written(lambda path: FIELD.to_netcdf(path, engine="scipy"), "field.nc"),
    "zarr 3": written(lambda path: FIELD.to_zarr(path, zarr_format=3, consolidated=False), "field.zarr"),
    "zarr 2": written(lambda path: FIELD.to_zarr(path, zarr_format=2), "field.zarr"),
    "zarr, no suffix": written(lambda path: FIELD.to_zarr(path, zarr_format=2), "field"),
}


@pytest.mark.filterwarnings("ignore:.*no header")
@pytest.mark.parametrize("make", TABLES.values(), ids=TABLES)
class TestEveryKind:
    def test_events_are_the_rows(self, tmp_path, make):
        # Text of 9 digits brings a float32 back as it was.
        np.testing.assert_allclose(events_of(make(tmp_path)), ROWS, rtol=1e-6)

    def test_a_text_path_is_a_path(self, tmp_path, make):
        data = make(tmp_path)
        if isinstance(data, Path):
            assert len(events_of(str(data))) == len(ROWS)


class TestColumns:
    @pytest.mark.parametrize("kind", ["csv", "parquet", "pandas"])
    def test_some_are_chosen_and_some_are_context(self, tmp_path, kind):
        source = open_source(TABLES[kind](tmp_path), variables=["skew", "mean"], context=["width"])
        block = next(source.blocks(1 << 20))
        np.testing.assert_allclose(block.events, ROWS[:, [2, 0]], rtol=1e-6)
        np.testing.assert_allclose(block.context, ROWS[:, [1]], rtol=1e-6)
        assert source.layout.variables == ("skew", "mean")

    def test_all_but_the_context_by_default(self, tmp_path):
        source = open_source(TABLES["csv"](tmp_path), context=["width"])
        assert source.layout.variables == ("mean", "skew")

    def test_text_that_nobody_asked_for_does_no_harm(self, tmp_path):
        TABLE.assign(name="x", day="2019-01-01").to_csv(tmp_path / "rows.csv", index=False)
        np.testing.assert_allclose(events_of(tmp_path / "rows.csv", variables=NAMES), ROWS, rtol=1e-6)

    def test_columns_without_a_name_are_numbered(self, tmp_path):
        with pytest.warns(
            UserWarning, match=r"rows\.csv: no header: columns are called column_0, column_1, column_2, and"
        ):
            source = open_source(TABLES["csv without header"](tmp_path))
        assert source.layout.variables == ("column_0", "column_1", "column_2")

    @pytest.mark.filterwarnings("ignore:.*no header")
    @pytest.mark.parametrize("first", ["1,,3", "nan,2,3", "1e-3,+2,-.5"])
    def test_a_first_line_of_numbers_is_no_header_even_with_gaps(self, tmp_path, first):
        (tmp_path / "rows.csv").write_text(f"{first}\n" + "1,2,3\n" * 30)
        assert len(events_of(tmp_path / "rows.csv")) == 31

    def test_whole_numbers_booleans_and_gaps_are_numbers(self, tmp_path):
        pd.DataFrame({"a": pd.array([1, None] * 10, dtype="Int64"), "b": [True, False] * 10}).to_parquet(
            tmp_path / "rows.parquet"
        )
        for data in (tmp_path / "rows.parquet", pd.read_parquet(tmp_path / "rows.parquet")):
            np.testing.assert_array_equal(events_of(data), [[1, 1], [np.nan, 0]] * 10)

    @pytest.mark.parametrize("begin", ["1", ""])
    def test_what_begins_with_whole_numbers_or_nothing_may_go_on_with_fractions(self, tmp_path, begin):
        (tmp_path / "rows.csv").write_text("a,b\n" + f"{begin},2\n" * 500_000 + "2.5,3\n")
        blocks = list(open_source(tmp_path / "rows.csv").blocks(1 << 20))
        assert blocks[-1].events[-1].tolist() == [2.5, 3]

    def test_whole_numbers_of_a_text_file_are_told_apart_or_refused(self, tmp_path):
        (tmp_path / "rows.csv").write_text("id,b\n" + "1234567890,2\n" * 9)
        with pytest.raises(DataError, match=r"column 'id' holds 1234567890, which float32 cannot tell"):
            events_of(tmp_path / "rows.csv")
        assert events_of(tmp_path / "rows.csv", dtype="float64")[0].tolist() == [1234567890, 2]

    def test_whole_numbers_with_gaps_are_told_apart_or_refused(self, tmp_path):
        for number, dtype in ((2**24 + 1, "float32"), (2**53 + 10, "float64")):
            table = pd.DataFrame({"id": pd.array([number, None] * 10, dtype="Int64"), "b": 1.0})
            table.to_csv(tmp_path / "rows.csv", index=False)
            table.to_parquet(tmp_path / "rows.parquet")
            for data in (table, tmp_path / "rows.csv", tmp_path / "rows.parquet"):
                with pytest.raises(DataError, match=f"'id' holds {number}, which {dtype} cannot tell"):
                    events_of(data, dtype=dtype)

    def test_context_is_no_event(self):
        assert open_source(TABLE, context=["width"]).layout.variables == ("mean", "skew")

    def test_pandas_labels_become_coordinates(self, tmp_path):
        for index, expected in (
            (pd.Index([f"star {i}" for i in range(60)]), "star 3"),
            (pd.date_range("2019", periods=60, tz="Europe/Paris"), np.datetime64("2019-01-03T23:00")),
            (pd.RangeIndex(100, 160), 103),
        ):
            coordinates = open_source(TABLE.set_index(index)).coordinates()
            assert coordinates["row"].values[3] == expected
        assert "row" not in open_source(TABLE.set_index(["mean", "width"])).coordinates().coords


class TestSeveralFiles:
    @pytest.mark.parametrize("suffix", ["csv", "tsv", "parquet"])
    def test_tables_come_one_after_the_other(self, tmp_path, suffix):
        for number, part in enumerate((TABLE[:25], TABLE[25:])):
            if suffix == "parquet":
                part.to_parquet(tmp_path / f"{number}.parquet")
            else:
                part.to_csv(tmp_path / f"{number}.{suffix}", index=False, sep="," if suffix == "csv" else "\t")
        paths = [tmp_path / f"{number}.{suffix}" for number in (0, 1)]
        np.testing.assert_allclose(events_of(paths), ROWS, rtol=1e-6)
        np.testing.assert_allclose(events_of(paths[::-1])[:5], ROWS[25:30], rtol=1e-6)

    def test_a_column_may_be_whole_in_one_and_fractions_in_the_next(self, tmp_path):
        pd.DataFrame({"a": [1, 2]}).to_parquet(tmp_path / "0.parquet")
        pd.DataFrame({"a": [2.5]}).to_parquet(tmp_path / "1.parquet")
        source = open_source([tmp_path / "0.parquet", tmp_path / "1.parquet"])
        assert np.concatenate([b.events for b in source.blocks(1)]).tolist() == [[1], [2], [2.5]]

    def test_columns_may_come_in_another_order_but_none_may_lack(self, tmp_path):
        TABLE[:25].to_csv(tmp_path / "0.csv", index=False)
        TABLE[25:][NAMES[::-1]].to_csv(tmp_path / "1.csv", index=False)
        np.testing.assert_allclose(events_of([tmp_path / "0.csv", tmp_path / "1.csv"]), ROWS, rtol=1e-6)
        TABLE[["mean", "skew"]].to_csv(tmp_path / "1.csv", index=False)
        with pytest.raises(DataError, match=r"1\.csv: no column 'width', which .*0\.csv has"):
            open_source([tmp_path / "0.csv", tmp_path / "1.csv"])

    def test_netcdf_is_put_together_by_its_coordinates(self, tmp_path):
        FIELD.isel(time=slice(40, None)).to_netcdf(tmp_path / "a.nc")
        FIELD.isel(time=slice(0, 40)).to_netcdf(tmp_path / "b.nc")
        source = open_source([tmp_path / "a.nc", tmp_path / "b.nc"])
        np.testing.assert_array_equal(np.concatenate([b.events for b in source.blocks(100)]), ROWS)
        assert source.coordinates()["time"].values[0] == np.datetime64("2019-01-01")

    def test_the_one_that_cannot_be_read_is_named(self, tmp_path):
        FIELD.to_netcdf(tmp_path / "a.nc")
        (tmp_path / "b.nc").write_text("a,b")
        with pytest.raises(DataError, match=r"b\.nc: not a readable \.nc file: it is of no kind"):
            open_source([tmp_path / "a.nc", tmp_path / "b.nc"])

    def test_files_that_do_not_go_together(self, tmp_path):
        for name in ("a", "b"):
            FIELD.drop_vars("time").to_netcdf(tmp_path / f"{name}.nc")
        with pytest.raises(DataError, match=r"a\.nc and 1 more: they do not go together: Could not find any dimension"):
            open_source([tmp_path / "a.nc", tmp_path / "b.nc"])

    def test_a_pattern_means_its_files_in_order(self, tmp_path):
        for number in (1, 0):
            TABLE[25 * number :][: 25 + 10 * number].to_csv(tmp_path / f"{number}.csv", index=False)
        np.testing.assert_allclose(events_of(str(tmp_path / "*.csv")), ROWS, rtol=1e-6)
        np.testing.assert_allclose(events_of([tmp_path / "[1].csv", tmp_path / "0.csv"])[:35], ROWS[25:], rtol=1e-6)
        (tmp_path / "0.csv").rename(tmp_path / "[1].csv")
        assert len(events_of(tmp_path / "[1].csv")) == 25
        with pytest.raises(DataError, match=r"\*\.nc: no such file, and none that it is a pattern of"):
            open_source(tmp_path / "*.nc")

    def test_kinds_are_not_mixed(self, tmp_path):
        with pytest.raises(DataError, match=r"several kinds \(\.csv, \.parquet\)"):
            open_source([TABLES["csv"](tmp_path), TABLES["parquet"](tmp_path)])


class TestUnits:
    def test_they_come_from_the_source(self):
        assert open_source(FIELD).layout.units == ("K",)

    def test_seconds_are_a_number_and_not_a_time(self, tmp_path):
        FIELD.assign(t2m=FIELD.t2m.assign_attrs(units="seconds")).to_netcdf(tmp_path / "waves.nc")
        np.testing.assert_array_equal(events_of(tmp_path / "waves.nc"), ROWS)

    def test_packed_values_are_unpacked(self, tmp_path):
        FIELD.to_netcdf(
            tmp_path / "packed.nc", encoding={"t2m": {"dtype": "i2", "scale_factor": 1e-3, "_FillValue": -1}}
        )
        np.testing.assert_allclose(events_of(tmp_path / "packed.nc"), ROWS, atol=6e-4)


def text(content: str | bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(content.encode() if isinstance(content, str) else content)


def cut(write: Callable[[Path], object]) -> Callable[[Path], object]:
    def make(path: Path) -> None:
        write(path)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    return make


def header(shape: str) -> bytes:
    """The beginning of an npy file that claims a shape."""
    line = f"{{'descr': '<f8', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\x01\x00" + len(line).to_bytes(2, "little") + line


def member(content: bytes) -> Callable[[Path], object]:
    def make(path: Path) -> None:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("x.npy", content)

    return make


MANY = "1,2\n" * 50
PICKLE = np.array([{}, 1], object)
BAD_FILES: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "not there": ("a.nc", lambda path: None, "no such file"),
    "zero bytes": ("a.csv", text(""), "the file is empty"),
    "zero bytes, netcdf": ("a.nc", text(""), "the file is empty"),
    "header only": ("a.csv", text("a,b\n"), "the table has no rows"),
    "one row": ("a.csv", text("a,b\n1,2\n"), "1 event cannot be shared out"),
    "ragged": ("a.csv", text("a,b\n1,2\n1,2,3\n" + MANY), r"not a readable table: .*Row #3: Expected 2 columns, got 3"),
    "text": ("a.csv", text("a,b\n" + "1,x\n" * 50), r"column 'b' holds text, such as 'x'.*--variables"),
    "text further down": (
        "a.csv",
        text("a,b\n" + MANY * 8000 + "1,oops\n"),
        r"column 'b' .* such as 'oops' at row=400000",
    ),
    "text deep down": (
        "a.csv",
        text("a,b\n" + MANY * 40_000 + "1,oops\n"),
        r"text among numbers: .*Row #2000002.*'oops'",
    ),
    "dates": ("a.csv", text("a,b\n" + "1,2019-01-01\n" * 9), r"column 'b' holds dates, such as '2019-01-01'"),
    "semicolons": ("a.csv", text("a;b\n" + "1;2\n" * 9), r"column 'a;b' holds text, such as '1;2'"),
    "two of a name": ("a.csv", text("a,a\n" + MANY), "2 columns are called 'a': rename them"),
    "latin": ("a.csv", text(b"a,\xe9\n" + MANY.encode()), "not a readable table"),
    "bytes": ("a.csv", text(bytes(range(256)) * 9), "not a readable table"),
    "folder as csv": ("a.csv", Path.mkdir, "a folder, not a file"),
    "folder as parquet": ("a.parquet", Path.mkdir, "a folder, not a file"),
    "folder as zarr": ("a.zarr", Path.mkdir, r"not a readable \.zarr file"),
    "folder as npz": ("a.npz", Path.mkdir, r"not a readable \.npz file"),
    "csv as parquet": ("a.parquet", text("a,b\n" + MANY), "Parquet magic bytes not found"),
    "cut parquet": ("a.parquet", cut(TABLE.to_parquet), "Parquet magic bytes not found"),
    "text in parquet": ("a.parquet", TABLE.assign(b="x").to_parquet, r"column 'b' holds text, such as 'x'"),
    "empty parquet": ("a.parquet", TABLE[:0].to_parquet, "the table has no rows"),
    "text as netcdf": ("a.nc", text("a,b\n" + MANY), r"not a readable \.nc file: it is of no kind"),
    "text as zarr": ("a.zarr", text("a,b\n"), r"not a readable \.zarr file"),
    "text as npz": ("a.npz", text("a,b\n"), r"not a readable \.npz file: it begins as neither"),
    "text as npy": ("a.npy", text("a,b\n"), r"not a readable \.npy file: it begins as neither"),
    "pickle as npz": ("a.npz", text(b"\x80\x04N."), r"Python objects \(a pickle\), never read"),
    "objects in npz": ("a.npz", lambda path: np.savez(path, x=PICKLE), r"Python objects \(a pickle\), never read"),
    "objects in npy": ("a.npy", lambda path: np.save(path, PICKLE), r"Python objects \(a pickle\), never read"),
    "nothing in npz": ("a.npz", lambda path: np.savez(path), "there are no variables in it"),
    "several in npz": ("a.npz", lambda path: np.savez(path, x=ROWS, y=ROWS[:5]), r"choose .* among x \(row, x_1\), y"),
    "cut npy": ("a.npy", cut(lambda path: np.save(path, ROWS)), r"not a readable \.npy file"),
    "cut npz": ("a.npz", cut(lambda path: np.savez(path, ROWS)), r"not a readable \.npz file"),
    "pickle in npz": ("a.npz", member(b"\x80\x04N."), "'x' in it is no array: save plain arrays"),
    "text in npz": ("a.npz", member(b"hello"), "'x' in it is no array"),
    "npz that claims much": ("a.npz", member(header("(900000000000,)")), "claims more than memory holds"),
    "npy that claims less than nothing": ("a.npy", text(header("(-5, 3)") + bytes(99)), r"not a readable \.npy file"),
    "npy with junk": ("a.npy", text(header("(((")), r"not a readable \.npy file"),
    "npy of one number": ("a.npy", lambda path: np.save(path, 3.0), "a single number"),
    "long header": (
        "a.csv",
        text("a" * 140_000 + ",b\n" + MANY),
        "not a readable table: field larger than field limit",
    ),
    "store": (
        "a.zarr",
        lambda path: sf.shard(ROWS, path, progress=False),
        r"is already a store: open it with sf\.open",
    ),
    "unknown": ("a.xyz", text("a,b\n"), r"unknown kind of file; known: .*\.csv"),
}


@pytest.mark.parametrize(("name", "write", "message"), BAD_FILES.values(), ids=BAD_FILES)
def test_a_file_that_cannot_be_used_is_one_clear_line(tmp_path, name, write, message):
    path = tmp_path / "in" / name
    path.parent.mkdir()
    write(path)
    with pytest.raises(SciflowError, match=message) as caught:
        sf.shard(path, tmp_path / "store.zarr", progress=False)
    assert "\n" not in str(caught.value)
    assert name in str(caught.value) or "event" in str(caught.value)
    assert [entry.name for entry in tmp_path.iterdir()] == ["in"]


def test_a_file_that_breaks_off_is_said_to_be_damaged_and_leaves_nothing(tmp_path):
    path = tmp_path / "field.nc"
    big = xr.Dataset({"x": (("time", "lat"), np.random.default_rng(0).normal(size=(400, 500)))})
    big.to_netcdf(path, engine="h5netcdf", encoding={"x": {"chunksizes": (10, 500), "zlib": True}})
    content = bytearray(path.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 2000] = bytes(2000)
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"field\.nc: variable 'x' cannot be read, the file may be damaged") as caught:
        sf.shard(path, tmp_path / "store.zarr", progress=False)
    assert "\n" not in str(caught.value)
    assert [entry.name for entry in tmp_path.iterdir()] == ["field.nc"]


class TestReaderThatIsNotInstalled:
    @pytest.mark.parametrize("name", ["a.grib", "a.grib2", "a.grb"])
    def test_grib_says_what_to_install(self, tmp_path, name):
        pytest.importorskip("xarray")
        if "cfgrib" in xr.backends.list_engines():
            pytest.skip("cfgrib is installed")
        (tmp_path / name).write_bytes(b"GRIB" + bytes(100))
        with pytest.raises(DataError, match=r"reading GRIB needs cfgrib: pip install cfgrib"):
            open_source(tmp_path / name)


class TestDataInMemory:
    @pytest.mark.parametrize(
        ("data", "message"),
        [
            ([[1.0, 2.0]], "cannot take events from a list"),
            (None, "cannot take events from a NoneType"),
            ([], "cannot take events from a list"),
            (np.array(3.0), "a single number"),
            (xr.Dataset(), "there are no variables"),
            (TABLE.assign(b="x"), r"variable 'b' holds text, such as 'x'"),
            (TABLE.assign(b=pd.Categorical(["u"] * 60)), r"variable 'b' holds text, such as 'u'"),
            (TABLE.assign(b=pd.Timestamp("2019")), r"variable 'b' holds dates"),
            (pd.concat([TABLE, TABLE], axis=1), r"2 columns are called 'mean'"),
            (TABLE.assign(row=1.0), "a column is called 'row', as the rows themselves are: rename it"),
            (FIELD.time, "the array and one of its coordinates are both called 'time'"),
            (TABLE[:0], "dimension 'row' is empty"),
        ],
        ids=str,
    )
    def test_what_cannot_be_used_is_one_clear_line(self, data, message):
        with pytest.raises(SciflowError, match=message) as caught:
            open_source(data)
        assert "\n" not in str(caught.value)

    def test_bfloat16_and_series(self):
        assert open_source(torch.ones(5, 2).bfloat16()).layout.event_shape == (2,)
        assert open_source(TABLE["mean"]).layout.variables == ("mean",)


class TestTableRequests:
    def test_events_are_rows_and_nothing_else(self, tmp_path):
        for request in ({"event": ["row"]}, {"stride": {"row": 2}}, {"sample": ["time"]}):
            with pytest.raises(LayoutError, match="the events of a table are its rows"):
                open_source(TABLES["csv"](tmp_path), **request)

    @pytest.mark.parametrize(
        ("request_", "message"),
        [
            ({"variables": ["maen"]}, r"no column 'maen'; did you mean mean\? known: mean, width, skew"),
            ({"context": ["q"]}, "no column 'q'; known: mean, skew, width"),
            ({"variables": ["mean", "mean"]}, "column 'mean' is named twice"),
            ({"variables": ["mean"], "context": ["mean"]}, "column 'mean' is named twice"),
            ({"context": NAMES}, "no column is left for the events"),
        ],
    )
    def test_columns_that_are_not_there(self, tmp_path, request_, message):
        with pytest.raises(LayoutError, match=message):
            open_source(TABLES["csv"](tmp_path), **request_)


MEASURE = """
import json, sys
import sciflow.data.shard
from sciflow.data.sources import open_source

def held():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("RssAnon"))

for paths in json.loads(sys.argv[1]):
    most, rows, first = 0, 0, None
    for block in open_source(paths).blocks(1 << 20):
        first = held() if first is None else first
        most, rows = max(most, held() - first), rows + len(block.events)
    print(rows, most / 1024)
"""


def test_sources_are_read_in_bounded_memory(tmp_path):
    field = np.random.default_rng(0).normal(size=(600, 40_000)).astype("f4")
    dataset = xr.Dataset({"x": (("time", "place"), field)}, {"time": np.arange(600)})
    paths = {kind: tmp_path / f"field.{kind}" for kind in ("nc", "zarr", "npy", "parquet", "csv")}
    dataset.to_netcdf(paths["nc"], engine="h5netcdf")
    dataset.to_zarr(paths["zarr"], encoding={"x": {"chunks": (10, 40_000)}}, consolidated=False)
    np.save(paths["npy"], field)
    pd.DataFrame(field.reshape(-1, 8)).rename(columns=str).to_parquet(paths["parquet"], row_group_size=50_000)
    lines = "\n".join(",".join(f"{value:.3f}" for value in row) for row in field[:4].reshape(-1, 4))
    paths["csv"].write_text("a,b,c,d\n" + (lines + "\n") * 60)
    halves = [tmp_path / f"{number}.nc" for number in range(2)]
    for half, path in zip((slice(0, 300), slice(300, 600)), halves, strict=True):
        dataset.isel(time=half).to_netcdf(path, engine="h5netcdf")
    sources = [*([str(path)] for path in paths.values()), [str(path) for path in halves]]
    command = [sys.executable, "-c", MEASURE, json.dumps(sources)]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    figures = [tuple(map(float, line.split())) for line in printed]
    assert [rows for rows, _ in figures] == [600, 600, 600, 3_000_000, 2_400_000, 600]
    # The sources have 92 MiB (the text 65) and blocks 1 MiB; what more there is, allocators keep back.
    assert max(mebibytes for _, mebibytes in figures) < 40
