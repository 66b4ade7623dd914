"""Every event of a store is the slice of the source that its place on the grid and its coordinates say."""

from __future__ import annotations

import math

import numpy as np
import pytest
import xarray as xr

import sciflow as sf
from sciflow.data.store import Store
from sciflow.errors import DataError, LayoutError

TIME, LAT, LON, LEVEL = 20, 6, 8, 3
ALL = {"split": (0.6, 0.2, 0.2), "progress": False}


def make_climate() -> xr.Dataset:
    """Two fields, one with its dimensions in another order; a series, and a map, to condition on."""
    rng = np.random.default_rng(0)
    dims = ("time", "latitude", "longitude")
    return xr.Dataset(
        {
            "t2m": (dims, rng.normal(280, 5, (TIME, LAT, LON)).astype("f4"), {"units": "K"}),
            "u10": (dims[::-1], rng.normal(0, 5, (LON, LAT, TIME)), {"units": "m/s"}),
            "z": (("time", "level", "latitude", "longitude"), rng.normal(size=(TIME, LEVEL, LAT, LON)).astype("f4")),
            "index": ("time", np.arange(TIME)),
            "height": (("latitude", "longitude"), rng.normal(size=(LAT, LON))),
        },
        {
            "time": np.datetime64("2019-03-01", "ns") + np.arange(TIME) * np.timedelta64(6, "h"),
            "latitude": np.linspace(60, 50, LAT),
            "longitude": np.linspace(-5, 2, LON),
            "season": ("time", np.arange(TIME) // 10),
        },
    )


def expected_values(source: xr.Dataset, store: Store, variable: str, place: tuple[int, ...]) -> np.ndarray:
    """The slice of one variable that an event is made of, cut with NumPy alone."""
    layout, array = store.layout, source[variable]
    cut = {dim.name: slice(0, dim.size) for dim in layout.event_dims}
    for dim, position in zip(layout.sample_dims, place, strict=True):
        window = next((d for d in layout.event_dims if d.name == dim.source), None)
        if window is None:
            cut[dim.source] = position
        else:
            cut[dim.source] = slice(position * window.stride, position * window.stride + window.size)
    values = array.values[tuple(cut[dim] for dim in array.dims)]
    axes = [dim for dim in array.dims if isinstance(cut[dim], slice)]
    order = [dim.name for dim in layout.event_dims if dim.name in axes]
    return values.transpose([axes.index(dim) for dim in order])


def require_every_event(source: xr.Dataset, store: Store) -> None:
    """Compare all events, and all contexts, of a store with the source; together they are the grid, each place once."""
    layout, seen = store.layout, []
    for split in store.splits:
        if not len(split):
            continue
        index = split.grid_index(0, len(split))
        assert (np.diff(index) > 0).all()
        seen.append(index)
        events = split[:].numpy()
        contexts = split.context[:].numpy() if layout.context else None
        assert events.shape == (len(split), *store.event_shape)
        for row, number in enumerate(index):
            place = tuple(int(i) for i in np.unravel_index(number, layout.grid_shape))
            parts = [expected_values(source, store, variable, place) for variable in layout.variables]
            event = np.stack(parts) if layout.has_variable_axis else parts[0]
            np.testing.assert_array_equal(events[row], event.astype(layout.dtype))
            if contexts is not None:
                parts = [expected_values(source, store, variable, place).reshape(-1) for variable in layout.context]
                np.testing.assert_array_equal(contexts[row], np.concatenate(parts).astype(layout.dtype))
    assert np.array_equal(np.sort(np.concatenate(seen)), np.arange(layout.num_grid_events))


LAYOUTS = {
    "fields": ({"variables": ["t2m"], "sample": ["time"]}, (LAT, LON), (TIME,)),
    "first dimension is counted": ({"variables": ["t2m"]}, (LAT, LON), (TIME,)),
    "single values": ({"variables": ["t2m"], "sample": ["time", "lat", "lon"]}, (1,), (TIME, LAT, LON)),
    "windows, first dimension": ({"variables": ["t2m"], "event": {"time": 4}}, (4,), (5, LAT, LON)),
    "windows, last dimension": ({"variables": ["u10"], "event": {"time": 4}}, (4,), (LON, LAT, 5)),
    "windows, the rest left over": ({"variables": ["t2m"], "event": {"time": 7}}, (7,), (2, LAT, LON)),
    "overlapping": (
        {"variables": ["t2m"], "event": {"time": 6}, "stride": {"time": 2}, "split": (1, 0, 0)},
        (6,),
        (8, LAT, LON),
    ),
    "windows with gaps": ({"variables": ["t2m"], "event": {"time": 3}, "stride": {"time": 5}}, (3,), (4, LAT, LON)),
    "windows of fields": ({"variables": ["t2m"], "event": {"time": 5, "lat": None, "lon": None}}, (5, LAT, LON), (4,)),
    "patches": ({"variables": ["t2m"], "event": {"lat": 2, "lon": 4}}, (2, 4), (TIME, 3, 2)),
    "patches, other order": ({"variables": ["t2m"], "event": {"lon": 4, "lat": 2}}, (4, 2), (TIME, 3, 2)),
    "patches, overlapping": (
        {
            "variables": ["z"],
            "event": {"lat": 3, "lon": 4, "level": None},
            "stride": {"lat": 1, "lon": 2},
            "split": (1, 0, 0),
        },
        (3, 4, LEVEL),
        (TIME, 4, 3),
    ),
    "patches in time": ({"variables": ["t2m"], "event": {"time": 4, "lat": 3, "lon": 4}}, (4, 3, 4), (5, 2, 2)),
    "profiles": ({"variables": ["z"], "event": ["level"]}, (LEVEL,), (TIME, LAT, LON)),
    "two variables, one transposed": ({"variables": ["t2m", "u10"], "event": {"time": 4}}, (2, 4), (5, LAT, LON)),
    "two variables, transposed first": ({"variables": ["u10", "t2m"], "event": ["lat"]}, (2, LAT), (LON, TIME)),
    "fields of two variables": ({"variables": ["t2m", "u10"], "sample": ["time"]}, (2, LAT, LON), (TIME,)),
    "context: a series": ({"variables": ["t2m"], "sample": ["time"], "context": ["index"]}, (LAT, LON), (TIME,)),
    "context: a map": ({"variables": ["t2m"], "event": {"time": 4}, "context": ["height"]}, (4,), (5, LAT, LON)),
    "context: windows and a map": (
        {"variables": ["t2m"], "event": {"time": 4}, "context": ["u10", "index", "height"]},
        (4,),
        (5, LAT, LON),
    ),
    "context: a field": ({"variables": ["t2m"], "sample": ["time"], "context": ["u10"]}, (LAT, LON), (TIME,)),
    "float64": ({"variables": ["u10"], "event": {"time": 4}, "dtype": "float64"}, (4,), (LON, LAT, 5)),
    "many small shards": ({"variables": ["t2m"], "event": {"time": 4}, "shard_rows": 7}, (4,), (5, LAT, LON)),
    "a time at a time": ({"variables": ["t2m"], "sample": ["time"], "shard_rows": 1}, (LAT, LON), (TIME,)),
}


@pytest.mark.parametrize(("request_", "event_shape", "grid_shape"), LAYOUTS.values(), ids=LAYOUTS)
class TestEveryLayout:
    def test_events_are_slices_of_the_source(self, tmp_path, request_, event_shape, grid_shape):
        source = make_climate()
        store = sf.shard(source, tmp_path / "store.zarr", **{**ALL, **request_})
        assert (store.event_shape, store.layout.grid_shape) == (event_shape, grid_shape)
        require_every_event(source, store)

    def test_coordinates_are_those_of_the_source(self, tmp_path, request_, event_shape, grid_shape):
        source = make_climate()
        store = sf.shard(source, tmp_path / "store.zarr", **{**ALL, **request_})
        coordinates = store.coordinates
        windows = {dim.name: dim for dim in store.layout.event_dims if dim.stride is not None}
        for dim in store.layout.sample_dims:
            if dim.source not in source.coords:
                continue
            steps = source[dim.source].values
            if dim.source in windows:
                steps = steps[:: windows[dim.source].stride][: dim.size]
            np.testing.assert_array_equal(coordinates[dim.name].values, steps)
        for dim in store.layout.event_dims:
            if dim.name in source.coords:
                inside = source[dim.name].values[: dim.size]
                expected = inside if dim.stride is None else inside - inside[0]
                np.testing.assert_array_equal(coordinates[dim.name].values, expected)
        if store.layout.has_variable_axis:
            assert coordinates["variable"].values.tolist() == request_["variables"]


@pytest.mark.parametrize("max_bytes", [1, 40, 700, 5000, 1 << 30])
@pytest.mark.parametrize("start", [0, 1, 17, 100])
def test_blocks_cover_the_grid_whatever_their_size_and_beginning(max_bytes, start):
    from sciflow.data.source import GridSource

    source = GridSource(make_climate(), ["t2m"], event={"time": 4}, context=["height"])
    whole = next(source.blocks(1 << 30))
    place = None
    for block in source.blocks(max_bytes, start):
        assert block.start <= start if place is None else block.start == place
        place = block.start + len(block.events)
        np.testing.assert_array_equal(block.events, whole.events[block.start : place])
        np.testing.assert_array_equal(block.context, whole.context[block.start : place])
    assert place == source.layout.num_grid_events


class TestNamesOfWindows:
    @pytest.mark.parametrize(
        ("hours", "size", "stride", "name"),
        [
            (1, 24, None, "day"),
            (6, 4, None, "day"),
            (6, 8, 4, "day"),
            (24, 7, None, "week"),
            (1, 168, None, "week"),
            (1, 12, None, "time_window"),
            (1, 24, 12, "time_window"),
        ],
    )
    def test_they_are_called_by_their_period(self, tmp_path, hours, size, stride, name):
        times = np.datetime64("2019-01-01", "ns") + np.arange(1000) * np.timedelta64(hours, "h")
        source = xr.Dataset({"x": ("time", np.arange(1000.0))}, {"time": times})
        strides = None if stride is None else {"time": stride}
        store = sf.shard(source, tmp_path / "s.zarr", event={"time": size}, stride=strides, **ALL)
        assert [dim.name for dim in store.layout.sample_dims] == [name]
        assert store.coordinates[name].values[1] == times[stride or size]
        assert store.coordinates["time"].values[-1] == np.timedelta64((size - 1) * hours, "h")

    def test_an_uneven_axis_has_no_period(self, tmp_path):
        times = np.datetime64("2019-01-01", "ns") + np.array([*range(24), *range(30, 70)]) * np.timedelta64(1, "h")
        source = xr.Dataset({"x": ("time", np.arange(64.0))}, {"time": times})
        store = sf.shard(source, tmp_path / "s.zarr", event={"time": 8}, **ALL)
        assert store.layout.sample_dims[0].name == "time_window"

    def test_a_variable_called_day_keeps_its_name(self, tmp_path):
        source = make_climate().assign_coords(day=("time", np.arange(TIME) // 4))
        store = sf.shard(source, tmp_path / "s.zarr", variables=["t2m"], event={"time": 4}, **ALL)
        assert store.layout.sample_dims[0].name == "time_window"
        assert store.coordinates["day"].values.tolist() == [0, 1, 2, 3, 4]


class TestNamesThatAreTaken:
    @pytest.mark.parametrize("name", ["log_prob", "error", "nfe", "status", "split"])
    def test_scores_have_names_of_their_own(self, tmp_path, name):
        for source in (
            xr.Dataset({"x": ((name, "lat"), np.zeros((20, 3)))}),
            xr.Dataset({"x": (("time", "lat"), np.zeros((20, 3)))}, {name: ("time", np.arange(20))}),
        ):
            with pytest.raises(LayoutError, match=f"'{name}' has a name that scores use: rename"):
                sf.shard(source, tmp_path / "s.zarr", **ALL)
        # Nothing of what is inside an event is in the scores.
        source = xr.Dataset({"x": (("time", name), np.ones((20, 3)))}, {name: np.arange(3)})
        assert sf.shard(source, tmp_path / "s.zarr", **ALL).coordinates[name].values.tolist() == [0, 1, 2]

    def test_sample_may_be_counted(self, tmp_path):
        source = xr.Dataset({"x": (("sample", "lat"), np.zeros((20, 3)))})
        assert sf.shard(source, tmp_path / "s.zarr", **ALL).layout.sample_dims[0].name == "sample"
        with pytest.raises(LayoutError, match="dimension 'sample' has a name that samples of events are counted by"):
            sf.shard(source, tmp_path / "t.zarr", sample=["lat"], **ALL)

    def test_variable_may_be_a_dimension_where_events_have_no_axis_of_that_name(self, tmp_path):
        source = make_climate()[["t2m", "u10"]].to_array().to_dataset(name="x")
        store = sf.shard(source, tmp_path / "s.zarr", event=["variable", "lat", "lon"], **ALL)
        assert store.coordinates["variable"].values.tolist() == ["t2m", "u10"]
        with pytest.raises(LayoutError, match="'variable' has the name of the axis that variables lie along"):
            sf.shard(source, tmp_path / "t.zarr", sample=["variable", "time", "lat", "lon"], **ALL)

    def test_windows_are_not_called_like_another_dimension(self, tmp_path):
        source = xr.Dataset({"x": (("time", "time_window"), np.zeros((20, 3)))})
        with pytest.raises(LayoutError, match="'time_window' has the name that is given to the windows of another"):
            sf.shard(source, tmp_path / "s.zarr", event={"time": 4}, **ALL)

    def test_names_are_text(self, tmp_path):
        for source, what in (
            (xr.Dataset({"x": ((0, "lat"), np.zeros((20, 3)))}), "dimension"),
            (xr.Dataset({0: (("time", "lat"), np.zeros((20, 3)))}), "variable"),
        ):
            with pytest.raises(LayoutError, match=f"a {what} is called 0, which is no text: rename it"):
                sf.shard(source, tmp_path / "s.zarr", **ALL)


def coordinates_of(path: object, **coords: object) -> xr.Dataset:
    """What a store keeps of coordinates along time."""
    field = xr.Dataset({"x": (("time", "lat"), np.ones((20, 3)))}, coords)
    return sf.shard(field, path, **ALL).coordinates


class TestCoordinatesThatAStoreCannotHold:
    DATES = np.datetime64("2019-03-01", "ns") + np.arange(20) * np.timedelta64(1, "D")

    @pytest.mark.parametrize("values", [DATES, DATES - DATES[0]], ids=["dates", "durations"])
    def test_units_of_dates_are_not_theirs_to_say(self, tmp_path, values):
        attrs = {"units": "days since 1900-01-01", "calendar": "noleap", "long_name": "day"}
        kept = coordinates_of(tmp_path / "s.zarr", day=("time", values, attrs)).day
        np.testing.assert_array_equal(kept.values, values)
        assert kept.attrs == {"long_name": "day"}

    def test_attributes_are_kept_that_are_json(self, tmp_path):
        lost = {"a": b"1", "b": 1j, "c": {1}, "d": np.datetime64("2000", "ns"), "e": object(), 3: 4, "_FillValue": 0}
        kept = {"units": "m", "f": np.float32(0.5), "g": np.arange(3), "h": {"i": [1, "j"]}}
        found = coordinates_of(tmp_path / "s.zarr", z=("time", np.arange(20), {**lost, **kept})).z
        assert found.attrs == {"units": "m", "f": 0.5, "g": [0, 1, 2], "h": {"i": [1, "j"]}}
        assert found.values.tolist() == list(range(20))

    def test_units_that_cannot_be_read_again_are_left_out(self, tmp_path):
        found = coordinates_of(tmp_path / "s.zarr", time=("time", np.arange(20), {"units": "days since the flood"}))
        assert found.time.values.tolist() == list(range(20))

    def test_dates_that_cannot_be_written_are_left_out(self, tmp_path):
        far = np.arange(20).astype("M8[Y]") + 300_000
        assert "far" not in coordinates_of(tmp_path / "s.zarr", far=("time", far))

    def test_names_that_are_no_names_of_folders_are_left_out(self, tmp_path):
        names = ["../../evil", ".", "..", "", "a/b", "a\\b", "zarr.json", ".zgroup", "x" * 300, "height"]
        found = coordinates_of(tmp_path / "s.zarr", **{name: ("time", np.arange(20)) for name in names})
        assert list(found.coords) == ["height"]
        assert [entry.name for entry in tmp_path.iterdir()] == ["s.zarr"]

    @pytest.mark.parametrize("dtype", ["u1", "i1"])
    def test_steps_inside_a_window_do_not_wrap(self, tmp_path, dtype):
        depth = np.arange(100, -100, -10).astype("i1") if dtype == "i1" else np.arange(200, 0, -10).astype("u1")
        source = xr.Dataset({"x": (("depth", "lat"), np.ones((20, 3)))}, {"depth": depth})
        store = sf.shard(source, tmp_path / "s.zarr", event={"depth": 20}, **ALL)
        assert store.coordinates.depth.values.tolist() == [-10 * step for step in range(20)]


class TestBeginningsOfNames:
    def test_a_beginning_means_the_only_dimension_that_begins_so(self, tmp_path):
        source = make_climate()
        full = sf.shard(
            source,
            tmp_path / "full.zarr",
            variables=["t2m"],
            event={"time": 4},
            sample=["latitude", "longitude"],
            split_by="latitude",
            **ALL,
        )
        short = sf.shard(
            source,
            tmp_path / "short.zarr",
            variables=["t2m"],
            event={"ti": 4},
            sample=["lat", "lon"],
            stride={"t": 4},
            split_by="lat",
            **ALL,
        )
        assert short.layout == full.layout
        assert short.fingerprint == full.fingerprint

    def test_a_dimension_s_own_name_comes_first(self, tmp_path):
        source = xr.Dataset({"x": (("lat", "latitude"), np.arange(50.0).reshape(10, 5))})
        assert sf.shard(source, tmp_path / "s.zarr", sample=["lat"], **ALL).event_shape == (5,)

    @pytest.mark.parametrize(
        "named", [{"sample": ["l"]}, {"event": {"l": 2}}, {"event": ["time"], "sample": ["la", "l"]}]
    )
    def test_several_are_an_error_that_lists_them(self, tmp_path, named):
        with pytest.raises(LayoutError, match=r"'l' may be latitude or longitude: say which"):
            sf.shard(make_climate(), tmp_path / "s.zarr", variables=["t2m"], **named, **ALL)

    def test_split_by_may_name_windows_or_their_dimension(self, tmp_path):
        stores = [
            sf.shard(make_climate(), tmp_path / name, variables=["t2m"], event={"time": 4}, split_by=name, **ALL)
            for name in ("time", "day", "t", "da")
        ]
        assert len({store.fingerprint for store in stores}) == 1

    def test_real_data_under_the_names_that_everybody_uses(self, tmp_path, shared_data):
        path = shared_data / "climate" / "era5-2mt-2019-03-uk.nc"
        with xr.open_dataset(path) as source:
            store = sf.shard(
                source,
                tmp_path / "s.zarr",
                variables=["t2m"],
                event={"time": 24},
                sample=["lat", "lon"],
                progress=False,
            )
            assert store.event_shape == (24,)
            assert [dim.name for dim in store.layout.sample_dims] == ["day", "latitude", "longitude"]
            index = store.test.grid_index(5, 6)
            day, lat, lon = np.unravel_index(index[0], store.layout.grid_shape)
            cycle = source.t2m.values[24 * day : 24 * (day + 1), lat, lon]
            np.testing.assert_array_equal(store.test[5], cycle)


CF = {"variables": ["t2m"]}
BAD_LAYOUTS = {
    "no such variable": ({"variables": ["t2"]}, r"no variable 't2'; did you mean t2m\? known: t2m, u10, z"),
    "no such dimension": (
        {**CF, "event": {"tome": 4}},
        r"no dimension 'tome'; did you mean time\? known: time, latitude",
    ),
    "nothing like it": ({**CF, "sample": ["q"]}, r"no dimension 'q'; known: latitude, longitude, time"),
    "several variables": (
        {},
        r"choose with --variables, or as dataset\[\['t2m'\]\], among t2m \(time, latitude, longitude\)",
    ),
    "window too long": ({**CF, "event": {"time": 21}}, r"window of 21 along 'time' is longer .* which has 20"),
    "window of nothing": ({**CF, "event": {"time": 0}}, r"length 0 and stride 0 must both be 1 or more"),
    "stride of nothing": ({**CF, "event": {"time": 4}, "stride": {"time": 0}}, r"stride 0 must both be 1 or more"),
    "backwards": ({**CF, "event": {"time": 4}, "stride": {"time": -1}}, r"stride -1 must both be 1 or more"),
    "stride alone": ({**CF, "stride": {"time": 4}}, r"stride of 'time' without a window along it"),
    "both": ({**CF, "event": ["time"], "sample": ["time"]}, r"'time' is both in --sample and in --event"),
    "neither": ({**CF, "event": ["time"], "sample": ["lat"]}, r"'longitude' is neither counted nor part of an event"),
    "nothing counted": ({**CF, "event": ["time", "lat", "lon"]}, r"nothing is counted"),
    "twice": ({"variables": ["t2m", "t2m"]}, r"variable 't2m' is named twice"),
    "dimension twice": ({**CF, "sample": ["lat", "latitude"]}, r"dimension 'latitude' is named twice"),
    "foreign dimension": ({"variables": ["t2m"], "context": ["z"], "sample": ["time"]}, r"'z' has dimension 'level'"),
    "too few dimensions": ({"variables": ["t2m", "height"], "event": {"time": 4}}, r"'height' has no dimension 'time'"),
    "context missing": ({**CF, "context": ["heigth"]}, r"no variable 'heigth'; did you mean height\?"),
    "split by": ({**CF, "sample": ["time"], "split_by": "lat"}, r"split by 'lat': only what is counted .* known: time"),
    "event and context": ({**CF, "context": ["t2m"], "sample": ["time"]}, r"variable 't2m' is named twice"),
    "nothing but context": ({"context": ["t2m", "u10", "z", "index", "height"]}, r"no variable is left"),
    "dtype": ({**CF, "dtype": "float16"}, r"dtype 'float16': events are stored as float32 or float64"),
}


@pytest.mark.parametrize(("request_", "message"), BAD_LAYOUTS.values(), ids=BAD_LAYOUTS)
def test_a_layout_that_does_not_fit_is_one_clear_line(tmp_path, request_, message):
    with pytest.raises(LayoutError, match=message) as caught:
        sf.shard(make_climate(), tmp_path / "s.zarr", **request_, progress=False)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


class TestWhatIsNotANumber:
    @pytest.mark.parametrize(
        ("values", "message"),
        [
            (np.array(["a", "b"] * 5), r"variable 'x' holds text, such as 'a'"),
            (np.array([{}] * 10), r"variable 'x' holds text"),
            (np.arange(10).astype("M8[ns]"), r"variable 'x' holds dates, such as '1970"),
            (np.arange(10).astype("m8[s]"), r"variable 'x' holds durations"),
            (np.arange(10) * 1j, r"variable 'x' holds complex numbers"),
            (np.arange(10) + 2**24, r"'x' holds 167772\d\d, which float32 cannot tell .*: use --dtype float64"),
            (np.where(np.arange(10) == 3, np.nan, 2.0**24 + 1), r"'x' holds 16777217, which float32 cannot tell"),
            (np.full(10, 1e-50), r"'x' holds 1e-50, which float32 takes for 0: use --dtype float64, or other units"),
            (np.full(10, 1e300), r"'x' holds 1e\+300, which is beyond float32: use --dtype float64, or scale it"),
            (np.zeros(0), r"there are no events: dimension 'row' is empty"),
        ],
    )
    def test_it_is_refused_with_an_example(self, tmp_path, values, message):
        with pytest.raises(DataError, match=message):
            sf.shard(xr.Dataset({"x": ("row", values)}), tmp_path / "s.zarr", progress=False)

    def test_integers_are_exact_or_refused(self, tmp_path):
        numbers = np.arange(10) + 2**53
        with pytest.raises(DataError, match=r"float64 cannot tell from its neighbours: scale it, or leave it out"):
            sf.shard(numbers, tmp_path / "s.zarr", dtype="float64", progress=False)
        store = sf.shard(numbers - 10, tmp_path / "s.zarr", dtype="float64", split=(1, 0, 0), progress=False)
        assert store.train[:].numpy()[:, 0].astype(int).tolist() == (numbers - 10).tolist()

    @pytest.mark.parametrize("values", [np.full(10, 1e30), 2.0**24 + np.arange(10) + 0.3, 2.0**25 + 8 * np.arange(10)])
    def test_large_floats_are_rounded_where_they_have_fractions_and_kept_where_they_fit(self, tmp_path, values):
        store = sf.shard(values, tmp_path / "s.zarr", split=(1, 0, 0), progress=False)
        np.testing.assert_array_equal(store.train[:].numpy()[:, 0], values.astype("f4"))

    def test_a_dimension_that_is_empty(self, tmp_path):
        with pytest.raises(DataError, match="dimension 'feature' is empty"):
            sf.shard(np.zeros((5, 0)), tmp_path / "s.zarr", progress=False)


def test_the_place_of_a_value_is_told_in_coordinates():
    from sciflow.data.source import GridSource

    source = GridSource(make_climate(), ["t2m"], event={"time": 4})
    number = math.prod(source.layout.grid_shape[1:]) * 2
    assert source.place(number, (1,)) == "time=2019-03-03T06:00, latitude=60, longitude=-5"
    assert source.place(number + 1) == "time=2019-03-03, latitude=60, longitude=-4"
