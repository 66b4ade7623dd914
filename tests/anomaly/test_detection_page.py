"""The page of what was found says it in words, draws it where it is, and is one whole file for any kind of results."""

from __future__ import annotations

import base64
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import xarray as xr

from sciflow.anomaly.axes import axes_of
from sciflow.anomaly.events import merge_events
from sciflow.anomaly.figures.calibration import distance, p_value_histogram, score_distributions
from sciflow.anomaly.figures.choice import where_figures
from sciflow.anomaly.figures.marks import highest, marks_of
from sciflow.anomaly.figures.reasons import attribution_panels
from sciflow.anomaly.page import write_detection_page
from sciflow.errors import DataError, SciflowError


def days(n: int) -> np.ndarray:
    return (np.datetime64("2019-01-01") + np.arange(n)).astype("datetime64[ns]")


def results(dims: tuple[str, ...], shape: tuple[int, ...], level: float = 2.5, seed: int = 0, **coords) -> xr.Dataset:
    """Normal scores, flagged above a level."""
    score = np.random.default_rng(seed).normal(size=shape)
    p_value = 1 / (1 + np.exp(2 * score))
    attrs = {"score": "negative log p", "fdr": 0.1, "calibration_rows": 400, "model_fingerprint": "0123abcd"}
    arrays = {"score": (dims, score, {"units": "nats"}), "p_value": (dims, p_value), "flag": (dims, score > level)}
    return xr.Dataset(arrays, coords, attrs)


def field(*shape: int, **options) -> xr.Dataset:
    lat, lon = 60 - 2.5 * np.arange(shape[-2]), -10 + 2.5 * np.arange(shape[-1])
    coords = {"lat": ("lat", lat, {"units": "degrees_north"}), "lon": ("lon", lon, {"units": "degrees_east"})}
    if len(shape) == 3:
        coords["day"] = days(shape[0])
    return results(("day", "lat", "lon")[3 - len(shape) :], shape, **options, **coords)


def series(n: int = 200, level: float = 1.5) -> xr.Dataset:
    return results(("time",), (n,), level, time=days(n))


def with_missing(found: xr.Dataset, missing) -> xr.Dataset:
    there = ~xr.zeros_like(found.flag).where(False, missing)
    return found.assign(score=found.score.where(there), p_value=found.p_value.where(there), flag=found.flag & there)


def with_attribution(found: xr.Dataset, **sizes: int) -> xr.Dataset:
    shape = (*found.flag.shape, *sizes.values())
    values = np.random.default_rng(1).normal(size=shape)
    attribution = xr.DataArray(values, dims=(*found.flag.dims, *sizes), attrs={"units": "nats"}).where(found.flag)
    return found.assign(attribution=attribution)


def page(folder: Path, found: xr.Dataset, **options) -> str:
    path = write_detection_page(folder / "report.html", found, merge_events(found), **options)
    return path.read_text(encoding="utf-8")


def headings(text: str) -> list[str]:
    return re.findall("<h2>(.*?)</h2>", text)


def pictures(text: str) -> list[bytes]:
    return [base64.b64decode(image) for image in re.findall('base64,([^"]+)"', text)]


@pytest.fixture(autouse=True)
def small_pictures(monkeypatch):
    monkeypatch.setattr("sciflow.report.page.DOTS_PER_INCH", 40)


EVERY_KIND = {
    "rows": lambda: results(("row",), (300,)),
    "one row": lambda: results(("row",), (1,), level=-9),
    "stations": lambda: results(("station",), (4,), level=0, station=["Uccle", "De Bilt", "Kew $", "Uppsala"]),
    "one series": series,
    "one time": lambda: series(1, level=-9),
    "a series of numbers": lambda: results(("depth",), (50,), level=1, depth=np.geomspace(1, 1000, 50)),
    "another calendar": lambda: results(
        ("time",), (60,), level=1, time=xr.date_range("2019-02-01", periods=60, calendar="360_day", use_cftime=True)
    ),
    "spans of time": lambda: results(("lead",), (9,), level=0, lead=np.arange(9).astype("timedelta64[h]")),
    "time and stations": lambda: results(
        ("time", "station"), (40, 3), level=1, time=days(40), station=["Uccle", "De Bilt", "Kew"]
    ),
    "time and latitude": lambda: results(("lat", "time"), (5, 40), level=1, time=days(40), lat=np.arange(5.0)),
    "fields with land": lambda: with_missing(field(30, 6, 8), xr.DataArray(np.arange(6) < 2, dims="lat")),
    "one field": lambda: field(6, 8, level=1),
    "levels": lambda: results(
        ("day", "level", "lat", "lon"), (9, 3, 4, 5), level=2, day=days(9), level_=("level", [1, 2, 3])
    ),
    "words by words": lambda: results(("a", "b"), (2, 3), level=0, a=["x", "y"], b=["u", "v", "w"]),
    "nothing flagged": lambda: series(level=99),
    "nothing flagged in fields": lambda: field(30, 6, 8, level=99),
    "everything missing": lambda: with_missing(field(3, 4, 5), True),
    "nothing at all": lambda: series(0),
    "infinite scores": lambda: series().assign(score=series().score.where(~series().flag, np.inf)),
    "single precision": lambda: field(6, 8, level=1).map(lambda v: v if v.dtype == bool else v.astype("float32")),
    "equal scores": lambda: series().assign(score=xr.zeros_like(series().score)),
}


class TestEveryKindOfResults:
    @pytest.mark.parametrize("kind", EVERY_KIND)
    @pytest.mark.filterwarnings("error")
    def test_makes_a_whole_page_without_a_warning(self, kind, tmp_path):
        found = EVERY_KIND[kind]()
        text = page(tmp_path, found, calibration_scores=np.random.default_rng(2).normal(size=300))
        assert text.endswith("</html>\n")
        assert "<script" not in text
        assert "NaT" not in re.sub('base64,([^"]+)"', "", text)
        for picture in pictures(text):
            assert picture.startswith(b"\x89PNG")
        assert [entry.name for entry in tmp_path.iterdir()] == ["report.html"]

    @pytest.mark.parametrize("kind", ["fields with land"])
    def test_the_same_results_make_the_same_bytes(self, kind, tmp_path):
        (tmp_path / "a").mkdir()
        (tmp_path / "b").mkdir()
        assert page(tmp_path / "a", EVERY_KIND[kind]()) == page(tmp_path / "b", EVERY_KIND[kind]())

    def test_millions_of_times(self, tmp_path):
        score = np.zeros(2_000_000, np.float32)
        score[1_234_567] = 9
        time = np.datetime64("2000-01-01", "ns") + np.arange(len(score)) * np.timedelta64(1, "m")
        arrays = {"score": ("time", score), "p_value": ("time", 1 - score / 10), "flag": ("time", score > 5)}
        text = page(tmp_path, xr.Dataset(arrays, {"time": time}))
        assert headings(text)[0] == "1 event, 1 of 2,000,000 times flagged"
        assert len(text) < 500_000


class TestWords:
    def test_the_headline_counts(self, tmp_path):
        found = field(6, 8, level=1)
        num_events, num_flagged = len(merge_events(found)), int(found.flag.sum())
        text = page(tmp_path, found)
        assert headings(text)[0] == f"{num_events} events, {num_flagged} of 48 cells flagged at FDR 0.1"

    @pytest.mark.parametrize(
        ("kind", "headline"),
        [
            ("nothing flagged", "No event: none of 200 times flagged at FDR 0.1"),
            ("everything missing", "No score: all 60 cells are missing"),
            ("nothing at all", "Nothing new: there are no times"),
            ("one row", "1 event, 1 of 1 rows flagged at FDR 0.1"),
        ],
    )
    def test_the_headline_says_when_there_is_nothing(self, kind, headline, tmp_path):
        assert headings(page(tmp_path, EVERY_KIND[kind]()))[0] == headline

    def test_what_is_extrapolated_missing_or_without_a_p_value_is_said(self, tmp_path):
        found = with_missing(series(), xr.DataArray(np.arange(200) < 7, dims="time"))
        found["extrapolated"] = found.flag
        found["p_value"] = found.p_value.where(np.arange(200) < 190)
        found = found.assign_attrs(note="too few rows")
        text = page(tmp_path, found)
        assert f"{int(found.extrapolated.sum())} p-values are extrapolated" in text
        assert "what 400 rows of calibration can tell apart" in text
        assert "7 times have no score" in text
        assert "10 scored times have no p-value" in text
        assert "too few rows" in text
        assert "*" in text

    def test_one_is_told_as_one(self, tmp_path):
        found = with_missing(series(), xr.DataArray(np.arange(200) < 1, dims="time"))
        found["p_value"] = found.p_value.where(np.arange(200) < 199)
        text = page(tmp_path, found)
        assert "1 time has no score." in text
        assert "1 scored time has no p-value, as calibration has none like it." in text

    def test_the_table_has_the_events_in_their_order(self, tmp_path):
        found = with_attribution(series(300), variable=3).assign_coords(variable=["t2m", "wind", "<b>"])
        events = merge_events(found)
        assert len(events) > 10
        text = page(tmp_path, found)
        assert f"{len(events) - 10} more are not shown here" in text
        rows = re.findall("<tr>(.*?)</tr>", text.split("<h2>Events</h2>")[1].split("</table>")[0])[1:]
        cells = [re.findall("<td.*?>(.*?)</td>", row) for row in rows]
        assert [row[0] for row in cells] == [str(i) for i in range(1, 11)]
        assert [float(row[-3]) for row in cells] == pytest.approx(events.peak[:10], rel=1e-3)
        assert "&lt;b&gt;" in cells[0][-1]

    def test_facts_and_attributes_stand_at_the_end(self, tmp_path):
        text = page(tmp_path, series(), facts={"rows read": 1240})
        facts = text.split("<h2>Facts</h2>")[1]
        assert "model fingerprint" in facts
        assert "0123abcd" in facts
        assert "1,240" in facts

    def test_a_list_of_facts_is_told_in_words_and_a_note_once(self, tmp_path):
        text = page(tmp_path, series().assign_attrs(stores=["monday.zarr", "tuesday.zarr"], note="too few rows"))
        assert "monday.zarr, tuesday.zarr" in text
        assert "[" not in text.split("<h2>Facts</h2>")[1]
        assert text.count("too few rows") == 1

    def test_drift_is_told_with_and_without_scores(self, tmp_path):
        drift = SimpleNamespace(words="The world has moved.")
        assert "The world has moved." in page(tmp_path, series(), drift=drift)
        text = page(tmp_path, series(), drift=drift, calibration_scores=np.zeros(9))
        assert "9 scores of calibration and 200 new ones; furthest apart" in text
        assert "Drift" not in headings(page(tmp_path, series()))


class TestRefusals:
    @pytest.mark.parametrize("name", ["flag", "score", "p_value"])
    def test_a_variable_that_is_missing(self, name, tmp_path):
        with pytest.raises(DataError, match=f"no variable '{name}'"):
            write_detection_page(tmp_path / "x.html", series().drop_vars(name), merge_events(series()))

    def test_events_of_other_results(self, tmp_path):
        with pytest.raises(DataError, match="events: no column 'time_start'"):
            write_detection_page(tmp_path / "x.html", series(), merge_events(field(3, 4, 5)))

    def test_a_folder_that_is_not_there(self, tmp_path):
        with pytest.raises(SciflowError, match="cannot write the page"):
            page(tmp_path / "nowhere", series())


def drawn(found: xr.Dataset) -> list:
    axes = axes_of(found)
    arrays = (found[name].values for name in ("score", "flag"))
    return where_figures(*arrays, merge_events(found), axes)


def circles(axes) -> dict[str, tuple[float, float]]:
    return {text.get_text(): text.xy for text in axes.texts}


class TestSeries:
    def test_the_numbers_stand_at_the_peaks(self):
        from matplotlib.dates import date2num

        found = series()
        (figure,) = drawn(found)
        events = merge_events(found)
        for label, (x, _) in circles(figure.axes[0]).items():
            assert x == pytest.approx(date2num(events.time_peak[int(label) - 1]))
        assert len(circles(figure.axes[0])) == min(10, len(events))

    def test_every_flagged_time_is_a_point(self):
        found = series()
        axes = drawn(found)[0].axes[0]
        points = next(line for line in axes.lines if line.get_label() == "flagged")
        assert len(points.get_xdata()) == int(found.flag.sum())

    def test_the_threshold_is_drawn_where_there_is_one(self):
        def thresholds(found: xr.Dataset) -> list[float]:
            lines = drawn(found)[0].axes[0].lines
            return [line.get_ydata()[0] for line in lines if str(line.get_label()).startswith("flagged from")]

        found = series()
        assert thresholds(found) == [float(found.score.where(found.flag).min())]
        by_group = found.assign(flag=found.flag & (np.arange(200) % 2 == 0))
        assert int(by_group.flag.sum()) > 1
        assert thresholds(by_group) == []

    def test_downsampling_keeps_the_peaks(self):
        values = np.random.default_rng(0).normal(size=100_003)
        values[[5, 50_000]] = 99, np.nan
        kept = highest(values, 100)
        assert kept.shape == (100,)
        assert kept.max() == 99
        assert not np.isnan(kept).any()
        assert highest(values > 98, 100).sum() == 1

    def test_a_score_far_out_does_not_flatten_the_others(self):
        found = series()
        score = found.score.copy()
        score[50] = 1e9
        axes = drawn(found.assign(score=score))[0].axes[0]
        ends = axes.transAxes.inverted().transform(axes.transData.transform([(0, float(score.min())), (0, 2.0)]))
        assert ends[1, 1] - ends[0, 1] > 0.05

    def test_of_a_field_it_is_the_highest_everywhere(self):
        found = field(30, 6, 8)
        line = drawn(found)[0].axes[0].lines[0]
        np.testing.assert_array_equal(line.get_ydata(), found.score.max(("lat", "lon")))


class TestMaps:
    def test_they_hold_the_scores_where_each_event_peaks(self):
        found = with_missing(field(30, 6, 8), xr.DataArray(np.arange(6) < 1, dims="lat"))
        events = merge_events(found)
        series_figure, overview, maps = drawn(found)
        for axes, event in zip(maps.axes, events.itertuples(), strict=False):
            mesh = axes.collections[0]
            expected = found.score.sel(day=event.day_peak).values
            np.testing.assert_array_equal(mesh.get_array().filled(np.nan), expected)
            (place,) = circles(axes).values()
            assert place == (event.lon_peak, event.lat_peak)
        np.testing.assert_array_equal(overview.axes[0].collections[0].get_array(), found.score.max("lon").T)
        assert len(series_figure.axes) == 1

    def test_the_outline_lies_between_flagged_and_not(self):
        found = field(6, 8, level=99)
        found.flag[2, 3:5] = True
        (figure,) = drawn(found)
        line = next(c for c in figure.axes[0].collections[1:] if len(c.get_segments()))
        points = np.concatenate(line.get_segments())
        west, east = found.lon.values[3] - 1.25, found.lon.values[4] + 1.25
        south, north = found.lat.values[2] - 1.25, found.lat.values[2] + 1.25
        assert len(line.get_segments()) == 6
        assert {*points[:, 0]} == {west, found.lon.values[3] + 1.25, east}
        assert {*points[:, 1]} == {south, north}

    def test_latitudes_point_upwards_however_they_are_stored(self):
        for found in (field(30, 6, 8), field(30, 6, 8).transpose("lon", "day", "lat"), field(6, 8, level=1)):
            axes = drawn(found)[-1].axes[0]
            assert "lat (°N)" in axes.get_ylabel()
            assert axes.get_ylim()[0] < axes.get_ylim()[1]

    def test_an_event_that_begins_before_the_results_is_cut_off(self):
        whole = series(200)
        whole.flag[:] = False
        whole.flag[80:140] = True
        events, part = merge_events(whole), whole.isel(time=slice(100, 120))
        assert marks_of(events, axes_of(part), 5) == []  # its peak lies elsewhere
        events["time_peak"] = part.time.values[3]
        (mark,) = marks_of(events, axes_of(part), 5)
        assert (mark.start, mark.stop, mark.peak) == ((0,), (19,), (3,))


class TestAttribution:
    def draw(self, *arrays: xr.DataArray):
        return attribution_panels(arrays, [f"event {i}" for i in range(len(arrays))], "nats")

    def test_a_vector_is_bars_the_largest_first(self):
        names = [f"x{i}" for i in range(12)]
        figure = self.draw(xr.DataArray(np.arange(12.0) - 3, {"variable": names}, "variable"))
        axes = figure.axes[0]
        assert [patch.get_width() for patch in axes.patches] == [8, 7, 6, 5, 4, -3, 3, -2, 2]
        words = [label.get_text() for label in axes.get_yticklabels()]
        assert words == ["x11", "x10", "x9", "x8", "x7", "x0", "x6", "x1", "4 others"]
        assert axes.get_xlabel() == "attribution (nats)"

    def test_a_window_is_a_line(self):
        window = xr.DataArray(np.arange(24.0), {"hour": ("hour", np.arange(24), {"units": "h"})}, "hour")
        axes = self.draw(window).axes[0]
        np.testing.assert_array_equal(axes.lines[-1].get_ydata(), np.arange(24))
        assert axes.get_xlabel() == "hour (h)"

    @pytest.mark.parametrize("dims", [("variable", "hour"), ("hour", "variable")])
    def test_variables_have_the_same_colour_in_every_panel(self, dims):
        coords = {"variable": ["a", "b"], "hour": np.arange(5)}
        one = xr.DataArray([[1.0] * 5, [9.0] * 5], coords, ("variable", "hour")).transpose(*dims)
        figure = self.draw(one, one[::-1] if dims[0] == "hour" else -one)
        colours = [[line.get_color() for line in axes.lines[1:]] for axes in figure.axes]
        assert colours[0] == colours[1]
        assert [text.get_text() for text in figure.legends[0].get_texts()] == ["a", "b"]

    def test_a_field_is_a_map_of_the_variable_that_is_largest(self):
        values = np.zeros((2, 3, 4))
        values[1, 2, 3] = -5
        coords = {"variable": ["a", "b"], "lat": [50.0, 51.0, 52.0], "lon": np.arange(4.0)}
        axes = self.draw(xr.DataArray(values, coords, ("variable", "lat", "lon"))).axes[0]
        assert axes.get_title(loc="left") == "event 0, b"
        np.testing.assert_array_equal(axes.collections[0].get_array(), values[1])
        assert axes.collections[0].get_clim() == (-5, 5)

    def test_where_no_element_adds_anything_that_is_said(self):
        coords = {"variable": ["a", "b"], "hour": np.arange(9)}
        nothing = xr.DataArray(np.zeros((2, 9)), coords, ("variable", "hour"))
        figure = self.draw(nothing, nothing + 1)
        assert [text.get_text() for text in figure.axes[0].texts] == ["no element by itself adds to the score"]
        assert not figure.axes[0].axison
        assert [text.get_text() for text in figure.legends[0].get_texts()] == ["a", "b"]
        assert not self.draw(nothing).legends

    def test_one_element_has_nothing_to_draw(self, tmp_path):
        assert self.draw(xr.DataArray([3.0], dims="variable")) is None
        assert "Why" not in headings(page(tmp_path, with_attribution(series(), variable=1)))

    @pytest.mark.parametrize("sizes", [{"variable": 3}, {"hour": 24}, {"variable": 2, "y": 5, "x": 6}])
    def test_it_is_on_the_page(self, sizes, tmp_path):
        assert "Why" in headings(page(tmp_path, with_attribution(series(100), **sizes)))


class TestCalibration:
    def test_uniform_p_values_are_level(self):
        figure = p_value_histogram(np.arange(1, 1001) / 1000, 999)
        heights, _, _ = figure.axes[0].patches[0].get_data()
        assert heights == pytest.approx(np.ones(20))

    def test_a_few_values_that_can_be_are_no_pattern(self):
        figure = p_value_histogram(np.tile(np.arange(1, 21) / 20, 50), 19)
        heights, _, _ = figure.axes[0].patches[0].get_data()
        assert heights == pytest.approx(np.ones(4))

    def test_the_distance_is_that_of_kolmogorov_and_smirnov(self):
        from scipy.stats import ks_2samp

        rng = np.random.default_rng(0)
        first, second = np.sort(rng.normal(size=70)), np.sort(rng.normal(0.5, size=90).round(1))
        assert distance(first, second)[0] == pytest.approx(ks_2samp(first, second).statistic)

    def test_missing_scores_are_left_out_and_infinite_ones_are_not(self):
        figure = score_distributions(np.array([1.0, np.nan, 2.0]), np.array([np.inf, 1.5]))
        assert "2 scores of calibration and 2 new ones" in figure.get_label()
