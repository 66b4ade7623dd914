"""The dimension that grows: where rows of many stores are, in memory that does not grow with them."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

from sciflow.anomaly.scheduled.axis import Axis, Stretch
from sciflow.anomaly.scheduled.runs import Runs
from sciflow.errors import LayoutError


def days(first: str, count: int) -> dict[str, xr.Variable]:
    values = np.arange(first, np.datetime64(first, "D") + count, dtype="datetime64[D]").astype("datetime64[ns]")
    return {"day": xr.Variable(("day",), values), "place": xr.Variable(("day",), np.arange(count))}


def of(axis: Axis) -> list[tuple[int, int]]:
    """Store and place there, of every position."""
    return list(zip(axis.stores(slice(None)).tolist(), axis.positions(slice(None)).tolist(), strict=True))


NAMES = {0: "a", 1: "b", 2: "c"}


class TestRuns:
    @pytest.mark.parametrize(
        "numbers",
        [[], [7], [3, 4, 5], [5, 4, 3], [0, 1, 7, 8, 2, 3], [-2, -1, 0, 1], [9, 9, 10]],
        ids=str,
    )
    def test_are_the_numbers_that_they_are_made_of(self, numbers):
        numbers = np.array(numbers, np.int64)
        runs = Runs.of(numbers)
        assert len(runs) == len(numbers)
        np.testing.assert_array_equal(runs[:], numbers)
        np.testing.assert_array_equal(runs[1:3], numbers[1:3])
        every_other = np.arange(0, len(numbers), 2)
        np.testing.assert_array_equal(runs[every_other], numbers[every_other])

    def test_tell_where_a_number_is(self):
        numbers = np.random.default_rng(0).permutation(np.arange(60).reshape(20, 3)).ravel()
        runs = Runs.of(numbers)
        np.testing.assert_array_equal(numbers[runs.find(np.arange(60))], np.arange(60))

    def test_are_one_where_parts_go_on(self):
        joined = Runs.joined([Runs.of(np.arange(5)), Runs.of(np.arange(5, 9)), Runs.of(np.arange(3))])
        assert joined.first.tolist() == [0, 0]
        assert joined.length.tolist() == [9, 3]


class TestAxis:
    def test_rows_of_tables_stand_store_by_store_in_the_order_of_their_names(self):
        axis, was = Axis.empty("row").replaced([Stretch(1, 2, {}), Stretch(0, 3, {})], NAMES)
        assert of(axis) == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)]
        assert (was[:] < 0).all()

    def test_what_stays_knows_where_it_was(self):
        before, _ = Axis.empty("row").replaced([Stretch(0, 2, {}), Stretch(2, 2, {})], NAMES)
        axis, was = before.replaced([Stretch(1, 3, {})], NAMES)
        assert of(axis) == [(0, 0), (0, 1), (1, 0), (1, 1), (1, 2), (2, 0), (2, 1)]
        assert np.maximum(was[:], -1).tolist() == [0, 1, -1, -1, -1, 2, 3]

    def test_a_store_takes_the_place_of_what_it_was(self):
        before, _ = Axis.empty("row").replaced([Stretch(0, 2, {}), Stretch(1, 2, {})], NAMES)
        axis, was = before.replaced([Stretch(0, 4, {})], NAMES)
        assert of(axis) == [(0, 0), (0, 1), (0, 2), (0, 3), (1, 0), (1, 1)]
        assert np.maximum(was[:], -1).tolist() == [-1, -1, -1, -1, 2, 3]

    def test_with_times_it_is_in_their_order_however_stores_came(self):
        before, _ = Axis.empty("day").replaced([Stretch(0, 2, days("2026-01-05", 2))], NAMES)
        axis, was = before.replaced([Stretch(1, 3, days("2026-01-01", 3))], NAMES)
        assert of(axis) == [(1, 0), (1, 1), (1, 2), (0, 0), (0, 1)]
        assert np.maximum(was[:], -1).tolist() == [-1, -1, -1, 0, 1]
        assert (np.diff(axis.coordinates["day"].values) > np.timedelta64(0)).all()
        assert axis.coordinates["place"].values.tolist() == [0, 1, 2, 0, 1]

    def test_stores_whose_times_lie_between_each_other(self):
        even, odd = ({"t": xr.Variable(("t",), np.arange(first, 6, 2))} for first in (0, 1))
        before, _ = Axis.empty("t").replaced([Stretch(0, 3, even)], NAMES)
        axis, was = before.replaced([Stretch(1, 3, odd)], NAMES)
        assert of(axis) == [(0, 0), (1, 0), (0, 1), (1, 1), (0, 2), (1, 2)]
        assert np.maximum(was[:], -1).tolist() == [0, -1, 1, -1, 2, -1]
        assert axis.find(1, np.array([2, 0])).tolist() == [5, 1]
        assert axis.first(1) == 1

    def test_comes_back_from_what_is_written_of_it(self):
        axis, _ = Axis.empty("row").replaced([Stretch(2, 5, {}), Stretch(0, 4, {})], NAMES)
        parts = [(axis.stores(slice(i, i + 2)), axis.positions(slice(i, i + 2))) for i in range(0, 9, 2)]
        again = Axis.of("row", parts, {})
        assert of(again) == of(axis)
        assert len(again.places.first) == 2

    def test_a_table_of_any_length_takes_no_memory(self):
        axis, was = Axis.empty("row").replaced([Stretch(0, 10**11, {}), Stretch(1, 7, {})], NAMES)
        assert len(axis) == len(was) == 10**11 + 7
        assert axis.find(1, np.array([6])).tolist() == [10**11 + 6]

    def test_a_place_has_one_store(self):
        axis, _ = Axis.empty("day").replaced([Stretch(0, 3, days("2026-01-01", 3))], NAMES)
        axis.require_apart(Stretch(0, 3, days("2026-01-01", 3)), NAMES)
        axis.require_apart(Stretch(1, 3, days("2026-01-04", 3)), NAMES)
        with pytest.raises(LayoutError, match=r"day=2026-01-03.* is in a already"):
            axis.require_apart(Stretch(1, 3, days("2026-01-03", 3)), NAMES)
