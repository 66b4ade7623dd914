"""The figures hold what they were given, and the page is one whole, safe file."""

from __future__ import annotations

import base64
import io
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch

from sciflow.errors import DataError, SciflowError
from sciflow.report import Section, Table, corner, log_prob_histogram, loss_curve, score_map, write_page


def rows(n: int, num_features: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, num_features)).cumsum(axis=1)


def drawn(figure) -> bytes:
    picture = io.BytesIO()
    figure.savefig(picture, format="png")
    return picture.getvalue()


@pytest.fixture
def metrics() -> list[dict[str, float]]:
    training = [{"step": step, "loss": 5 + 1e6 * np.exp(-step)} for step in range(1, 400)]
    validation = [
        {"step": step, "validation_log_prob": -6 + 1e-4 * step * (600 - step) / 300, "validation_error": 0.1}
        for step in range(50, 400, 50)
    ]
    return [*training, *validation, {"step": 401, "loss": float("nan")}]


def test_importing_report_imports_no_matplotlib():
    code = "import sys, sciflow.report; print('matplotlib' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_no_figure_is_left_in_pyplot(metrics):
    loss_curve(metrics)
    pyplot = sys.modules.get("matplotlib.pyplot")
    assert pyplot is None or pyplot.get_fignums() == []


class TestLossCurve:
    def test_the_best_validation_is_marked(self, metrics):
        axes = loss_curve(metrics).axes[0]
        star = next(line for line in axes.lines if line.get_marker() == "*")
        best = max((m for m in metrics if "validation_log_prob" in m), key=lambda m: m["validation_log_prob"])
        assert star.get_xdata()[0] == best["step"]
        assert star.get_ydata()[0] == -best["validation_log_prob"]

    def test_a_spike_at_the_start_does_not_flatten_the_curve(self, metrics):
        low, high = loss_curve(metrics).axes[0].get_ylim()
        assert low < 5 < 6 < high < 10

    def test_records_out_of_order_draw_the_same_curve(self, metrics):
        assert drawn(loss_curve(metrics[::-1])) == drawn(loss_curve(metrics))

    @pytest.mark.parametrize("records", [[], [{"step": 3}], [{"step": 1, "loss": float("inf")}]])
    def test_nothing_recorded_is_said(self, records):
        figure = loss_curve(records)
        assert "nothing recorded" in figure.get_label()
        drawn(figure)

    def test_one_record_is_enough(self):
        drawn(loss_curve([{"step": 1, "loss": 2.0}]))

    def test_an_objective_that_is_not_log_p_has_a_panel_of_its_own(self, metrics):
        renamed = [{("objective" if key == "loss" else key): value for key, value in m.items()} for m in metrics]
        upper, lower = loss_curve(renamed).axes
        assert upper.get_xlim() == lower.get_xlim()
        assert 5 < sum(upper.get_ylim()) / 2 < 7
        assert len(lower.lines) == 2
        assert "best validation log p" in loss_curve(renamed).get_label()
        drawn(loss_curve(renamed[:1]))


class TestLogProbHistogram:
    def test_what_is_off_the_axis_is_counted_in_the_legend(self):
        bulk = np.random.default_rng(0).normal(-30, 3, 1000)
        figure = log_prob_histogram({"test": np.append(bulk, [-1e9, -1e9, -np.inf, np.nan])})
        words = figure.legends[0].get_texts()[0].get_text()
        assert words == "test (1,004 rows, 2 left of the axis, 2 not finite)"
        low, high = figure.axes[0].get_xlim()
        assert -60 < low < high < 0

    def test_each_group_integrates_to_one(self):
        figure = log_prob_histogram({"a": rows(500, 1), "b": rows(50, 1, seed=1) - 4})
        for patch in figure.axes[0].patches:
            density, edges, _ = patch.get_data()
            assert np.sum(density * np.diff(edges)) == pytest.approx(1.0, abs=0.02)

    @pytest.mark.parametrize("values", [[-3.0], [-3.0] * 10, [float("nan")], [-2.0, *[-3.0] * 9]])
    def test_degenerate_groups_are_drawn(self, values):
        drawn(log_prob_histogram({"few": values, "none": []}))

    def test_tensors_are_taken(self):
        drawn(log_prob_histogram({"t": torch.randn(20, requires_grad=True)}))

    def test_nothing_at_all_is_an_error(self):
        with pytest.raises(DataError, match="no group has a row"):
            log_prob_histogram({"a": []})


class TestCorner:
    def test_features_are_chosen_by_the_shape_alone(self):
        first = corner(rows(20, 24), rows(30, 24, seed=1)).get_label()
        other = corner(100 * rows(20, 24, seed=2), rows(30, 24, seed=3)).get_label()
        assert first == other
        assert "feature 0, feature 6, feature 12, feature 17, feature 23" in first

    def test_the_same_seed_draws_the_same_picture(self):
        data, samples = rows(5000, 2), rows(500, 2, seed=1)
        assert drawn(corner(data, samples, seed=3)) == drawn(corner(data, samples, seed=3))
        assert drawn(corner(data, samples, seed=3)) != drawn(corner(data, samples, seed=4))

    def test_an_outlier_does_not_set_the_limits(self):
        data = rows(500, 2)
        data[0, 0] = 1e8
        low, high = corner(data, rows(500, 2, seed=1)).axes[0].get_xlim()
        assert -20 < low < high < 20

    def test_events_of_any_shape_and_a_constant_feature(self):
        fields = torch.randn(40, 2, 3)
        fields[:, 0, 0] = 7.0
        drawn(corner(fields, fields + 0.1))

    def test_contours_hold_their_share_of_the_samples(self):
        from matplotlib.path import Path as Outline

        samples = np.random.default_rng(0).normal(size=(20_000, 2))
        figure = corner(samples[:100], samples)
        contours = next(c for axes in figure.axes for c in axes.collections if hasattr(c, "levels"))
        for path, share in zip(contours.get_paths(), (0.865, 0.393), strict=True):
            assert Outline(path.vertices).contains_points(samples).mean() == pytest.approx(share, abs=0.03)

    def test_names_are_whole_up_to_two_lines(self):
        name = "Standard deviation of the integrated pulse profile"
        axes = corner(rows(20, 2), rows(20, 2), names=[name, "b"]).axes
        assert axes[2].get_xlabel().split("\n") == ["Standard deviation of the", "integrated pulse profile"]

    @pytest.mark.parametrize("name", ["long " * 30 + "[m s**-1]", "x" * 70 + " [m s**-1]", "[m s**-1]" * 9])
    def test_longer_ones_keep_their_ends(self, name):
        figure = corner(rows(20, 2), rows(20, 2), names=["a", name])
        lines = figure.axes[2].get_ylabel().split("\n")
        assert len(lines) == 2
        assert max(map(len, lines)) <= 25
        assert "…" in "".join(lines)
        assert (lines[0][0], lines[1][-9:]) == (name[0], "[m s**-1]")
        assert name in figure.get_label()

    @pytest.mark.parametrize("name", ["cost in $", "$x^$", "\\alpha_$\\", "", "a\nb"])
    def test_no_name_is_read_as_a_formula(self, name):
        drawn(corner(rows(20, 2), rows(20, 2), names=["a", name]))

    def test_mismatches_are_errors(self):
        with pytest.raises(DataError, match="3 features in data, of 2 in samples"):
            corner(rows(5, 3), rows(5, 2))
        with pytest.raises(DataError, match="1 names for 3 features"):
            corner(rows(5, 3), rows(5, 3), names=["a"])
        with pytest.raises(DataError, match="no rows"):
            corner(np.empty((0, 3)), rows(5, 3))


class TestScoreMap:
    def test_cells_lie_on_their_coordinates(self):
        figure = score_map([[1.0, 2.0], [3.0, 4.0]], [10, 20], [50.0, 49.0])
        edges = figure.axes[0].collections[0].get_coordinates()
        assert edges[0, :, 0].tolist() == [5, 15, 25]
        assert edges[:, 0, 1].tolist() == [50.5, 49.5, 48.5]

    def test_an_outlier_does_not_set_the_colours_and_missing_cells_are_told(self):
        values = rows(20, 20)
        values[3, 3], values[5, 5] = -1e7, np.nan
        figure = score_map(values, np.arange(20), np.arange(20))
        low, high = figure.axes[0].collections[0].get_clim()
        assert -40 < low < high < 40
        assert "1 missing" in figure.get_label()

    def test_dates_words_and_a_single_row(self):
        days = np.arange("2019-03-01", "2019-03-06", dtype="datetime64[D]")
        drawn(score_map(rows(1, 5), days, ["north"], "day", "region", "log p"))

    def test_all_missing_is_drawn(self):
        drawn(score_map(np.full((2, 2), np.nan), [0, 1], [0, 1]))

    def test_a_transposed_map_is_an_error(self):
        with pytest.raises(DataError, match=r"give values \[y, x\]"):
            score_map(rows(3, 4), np.arange(3), np.arange(4))


class Page(HTMLParser):
    """Collects the tags that are open at the end, the images, and every address the page points at."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.images: list[dict[str, str | None]] = []
        self.addresses: list[str] = []
        self.words = ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        if tag == "img":
            self.images.append(dict(attributes))
        if tag not in ("img", "meta", "br"):
            self.open.append(tag)
        self.addresses += [value for key, value in attributes if key in ("src", "href", "srcset")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words += data


class TestWritePage:
    def write(self, folder: Path, *sections: Section, title: str = "A run") -> tuple[str, Page]:
        text = write_page(folder / "report.html", title, sections).read_text(encoding="utf-8")
        return text, Page(text)

    def test_a_page_is_one_well_formed_file(self, tmp_path, metrics):
        text, page = self.write(
            tmp_path,
            Section("Summary", "One.\n\nTwo.", {"steps": 3000, "log p": -31.421234567, "missing": None, "exact": True}),
            Section("Loss", figures=[loss_curve(metrics), log_prob_histogram({"test": [-1.0, -2.0]})]),
            Section("By group", table=Table(["group", "log p (nats)"], [["a", -1.5], ["b", None]])),
        )
        assert page.open == []
        assert text.count("<p>") == 2
        assert "3,000" in page.words
        assert "-31.4212" in page.words
        assert 'class="number"' in text
        assert all(address.startswith("data:image/png;base64,") for address in page.addresses)
        assert "<script" not in text
        assert "prefers-color-scheme: dark" in text

    def test_every_picture_is_whole_and_says_what_it_shows(self, tmp_path, metrics):
        _, page = self.write(tmp_path, Section("Loss", figures=[loss_curve(metrics)]))
        (image,) = page.images
        assert base64.b64decode(image["src"].partition(",")[2]).startswith(b"\x89PNG")
        assert image["alt"].startswith("Loss over 399 steps")

    def test_a_figure_without_a_label_takes_the_heading(self, tmp_path):
        from matplotlib.figure import Figure

        _, page = self.write(tmp_path, Section("By hand", figures=[Figure()]))
        assert page.images[0]["alt"] == "By hand"

    def test_text_is_escaped_everywhere(self, tmp_path):
        bad = "<b onload='x'>&\""
        figure = score_map([[1.0]], [0], [0], title=bad)
        text, page = self.write(
            tmp_path,
            Section(bad, bad, {bad: bad}, [figure]),
            Section("t", table=Table([bad], [[bad]])),
            title=bad,
        )
        assert "<b" not in re.sub("<body>", "", text)
        assert page.words.count(bad) == 8

    def test_the_same_sections_write_the_same_bytes(self, tmp_path, metrics):
        pages = [self.write(tmp_path, Section("Loss", figures=[loss_curve(metrics)]))[0] for _ in range(2)]
        assert pages[0] == pages[1]

    def test_a_page_that_fails_leaves_the_old_one(self, tmp_path):
        class Broken:
            def __str__(self) -> str:
                raise RuntimeError

        before, _ = self.write(tmp_path, Section("Old"))
        with pytest.raises(RuntimeError):
            self.write(tmp_path, Section("New", table={"value": Broken()}))
        assert (tmp_path / "report.html").read_text(encoding="utf-8") == before
        assert [path.name for path in tmp_path.iterdir()] == ["report.html"]

    def test_a_folder_that_is_not_there_is_an_error_that_names_it(self, tmp_path):
        with pytest.raises(SciflowError, match=r"nowhere.*cannot write the page"):
            write_page(tmp_path / "nowhere" / "report.html", "A run", [])

    def test_a_ragged_table_is_an_error(self):
        with pytest.raises(DataError, match="row 1 has 1 cells for 2 columns"):
            Table(["a", "b"], [[1, 2], [3]])
