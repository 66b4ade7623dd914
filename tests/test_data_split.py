"""Splits: the shares are those asked for, a pure function of the seed, and what belongs together stays together."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

import sciflow as sf
from sciflow.data.layout import EventDim, Layout, SampleDim
from sciflow.data.split import DROPPED, SplitRule, assign
from sciflow.errors import ConfigError, DataError, LayoutError


def rows(n: int) -> Layout:
    return Layout(("x",), ("",), (SampleDim("row", "row", n),), ())


def grid(days: int, places: int) -> Layout:
    dims = (SampleDim("day", "time", days), SampleDim("place", "place", places))
    return Layout(("x",), ("",), dims, (EventDim("time", 24, 24),))


def shares(codes: np.ndarray) -> list[int]:
    return [int(np.count_nonzero(codes == code)) for code in range(3)]


NAN = float("nan")
NO_SHARES = [(0.8, 0.1), (0.8, 0.1, 0.2), (1.2, -0.1, -0.1), (0, 0.5, 0.5), (NAN, 0.5, 0.5), (0.8, NAN, 0.1)]


class TestShares:
    @pytest.mark.parametrize("n", [3, 10, 97, 1000, 1001, 12_345])
    @pytest.mark.parametrize("fractions", [(0.8, 0.1, 0.1), (0.5, 0.25, 0.25), (1, 0, 0), (0.9, 0.1, 0), (0.7, 0, 0.3)])
    def test_they_are_exact(self, n, fractions):
        found = shares(assign(SplitRule(fractions), rows(n)))
        assert sum(found) == n
        for count, fraction in zip(found, fractions, strict=True):
            # To a row in every thousand; and none is left out that was asked for.
            assert abs(count - n * fraction) <= 1.5 + n / 1000
            assert (count > 0) == (fraction > 0)

    def test_every_stretch_of_the_data_has_its_share(self):
        codes = assign(SplitRule((0.8, 0.1, 0.1)), rows(50_000))
        for stretch in np.split(codes, 50):
            assert shares(stretch) == [800, 100, 100]

    def test_they_are_of_what_is_kept(self):
        keep = np.random.default_rng(0).random(10_000) > 0.3
        codes = assign(SplitRule((0.6, 0.2, 0.2)), rows(10_000), keep)
        assert np.array_equal(codes == DROPPED, ~keep)
        np.testing.assert_allclose(shares(codes), keep.sum() * np.array([0.6, 0.2, 0.2]), atol=5)

    @pytest.mark.parametrize("fractions", NO_SHARES)
    def test_what_is_no_share(self, fractions):
        with pytest.raises(ConfigError, match="split"):
            SplitRule(fractions)


class TestSeed:
    def test_the_same_seed_is_the_same_split(self):
        first, again, other = (assign(SplitRule(seed=seed), rows(5000)) for seed in (3, 3, 4))
        assert np.array_equal(first, again)
        assert np.mean(first != other) > 0.2

    def test_blocks_too(self):
        rule = SplitRule(by="day", block=5, seed=3)
        assert np.array_equal(assign(rule, grid(100, 7)), assign(rule, grid(100, 7)))


class TestAlongADimension:
    def test_in_order_the_latest_is_for_the_test(self):
        codes = assign(SplitRule((0.8, 0.1, 0.1), "day"), grid(50, 7)).reshape(50, 7)
        assert (codes == codes[:, :1]).all()
        assert codes[:, 0].tolist() == [0] * 40 + [1] * 5 + [2] * 5

    def test_any_counted_dimension_may_be_chosen(self):
        codes = assign(SplitRule((0.6, 0.2, 0.2), "place"), grid(50, 10)).reshape(50, 10)
        assert codes[0].tolist() == [0] * 6 + [1, 1, 2, 2]
        assert (codes == codes[:1]).all()

    def test_in_blocks_neighbours_stay_together(self):
        codes = assign(SplitRule((0.6, 0.2, 0.2), "day", 7, 0), grid(100, 3)).reshape(100, 3)[:, 0]
        blocks = [set(codes[start : start + 7].tolist()) for start in range(0, 100, 7)]
        assert all(len(block) == 1 for block in blocks)
        assert [block.pop() for block in blocks] != sorted(codes[::7].tolist())
        assert shares(codes[::7]) == [9, 3, 3]

    def test_windows_that_overlap_never_mix_at_random(self):
        layout = Layout(
            ("x",),
            ("",),
            (SampleDim("time_window", "time", 89), SampleDim("place", "place", 3)),
            (EventDim("time", 24, 2),),
        )
        rule = SplitRule().resolved(layout)
        assert rule.by == "time_window"
        codes = assign(rule, layout).reshape(89, 3)
        assert (np.diff(codes[codes != 255].astype(int)) >= 0).all()
        # Eleven windows before each cut reach over it.
        assert shares(codes) == [3 * (71 - 11), 3 * (9 - 9), 3 * 9]

    @pytest.mark.parametrize(
        ("event", "stride", "block"),
        [
            ({"time": 24}, {"time": 12}, None),
            ({"time": 24}, {"time": 7}, 10),
            ({"time": 6}, {"time": 1}, 40),
            ({"lat": 2, "lon": 3}, {"lat": 1, "lon": 1}, None),
        ],
    )
    def test_no_value_is_in_two_splits(self, event, stride, block, tmp_path):
        numbers = np.arange(600.0 * 30 * 5).reshape(600, 30, 5)
        data = xr.Dataset({"x": (("time", "lat", "lon"), numbers)})
        store = sf.shard(
            data, tmp_path / "s.zarr", event=event, stride=stride, split_block=block,
            split_by=None if block is None else "time", dtype="float64", progress=False,
        )  # fmt: skip
        seen = [set(split[:].numpy().ravel().tolist()) for split in store.splits]
        assert all(seen)
        assert seen[0].isdisjoint(seen[1])
        assert seen[0].isdisjoint(seen[2])
        assert seen[1].isdisjoint(seen[2])

    def test_windows_that_do_not_overlap_are_shared_out_one_by_one(self):
        assert SplitRule().resolved(grid(10, 3)).by is None

    def test_too_few_positions_say_so(self, tmp_path):
        data = xr.Dataset({"x": (("time", "place"), np.random.default_rng(0).normal(size=(2, 500)))})
        with pytest.raises(DataError, match=r"2 positions of 'time' cannot be shared out .*--split 1,0,0"):
            sf.shard(data, tmp_path / "s.zarr", sample=["time"], split_by="time", progress=False)

    @pytest.mark.parametrize("block", [0, -1])
    def test_a_block_of_nothing(self, block):
        with pytest.raises(ConfigError, match="1 or more positions stay together"):
            SplitRule(by="day", block=block)

    def test_only_what_is_counted_can_be_split(self):
        with pytest.raises(
            LayoutError, match=r"split by 'level': only what is counted .*no dimension 'level'; known: "
        ):
            SplitRule(by="level").resolved(grid(10, 3))


def test_a_store_keeps_the_split_it_was_given(tmp_path):
    times = np.datetime64("2019-01-01", "ns") + np.arange(24 * 40) * np.timedelta64(1, "h")
    data = xr.Dataset(
        {"x": (("time", "place"), np.random.default_rng(0).normal(size=(len(times), 4)))}, {"time": times}
    )
    store = sf.shard(data, tmp_path / "s.zarr", event={"time": 24}, split_by="time", split_block=5, progress=False)
    blocks = [{int(i) // 4 // 5 for i in split.grid_index(0, len(split))} for split in store.splits]
    assert [len(split) for split in store.splits] == [6 * 20, 20, 20]
    assert set.union(*blocks) == set(range(8))
    assert sum(map(len, blocks)) == 8
    assert store.attributes["split"] == {"fractions": [0.8, 0.1, 0.1], "by": "day", "block": 5, "seed": 0}
