"""The plan and the loader: the order of the rows is a pure function of (seed, epoch, step), whoever reads them."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

import sciflow as sf
from sciflow.data.loader import ArrayRows, Batch, Loader, sequential
from sciflow.data.plan import Plan

PLANS = {
    "even": Plan(num_rows=960, shard_rows=60, batch_size=48, window_rows=240, seed=0),
    "uneven": Plan(num_rows=1013, shard_rows=97, batch_size=64, window_rows=300, seed=1),
    "batch larger than a window": Plan(num_rows=500, shard_rows=30, batch_size=130, window_rows=60, seed=2),
    "window larger than the store": Plan(num_rows=200, shard_rows=30, batch_size=32, window_rows=10_000, seed=3),
    "a window smaller than a shard": Plan(num_rows=300, shard_rows=100, batch_size=30, window_rows=10, seed=4),
    "one batch": Plan(num_rows=50, shard_rows=20, batch_size=1000, window_rows=40, seed=5),
    "batches of one": Plan(num_rows=40, shard_rows=7, batch_size=1, window_rows=14, seed=6),
    "one shard": Plan(num_rows=130, shard_rows=1000, batch_size=20, window_rows=1000, seed=7),
    "one row": Plan(num_rows=1, shard_rows=10, batch_size=4, window_rows=10, seed=8),
    "shards of one": Plan(num_rows=90, shard_rows=1, batch_size=8, window_rows=16, seed=9),
}


def rows_of(plan: Plan) -> ArrayRows:
    """Rows that say their own number, in events and in context."""
    numbers = np.arange(plan.num_rows, dtype="f4")
    return ArrayRows(np.stack([numbers, -numbers], 1), numbers[:, None] * 2)


def batches(plan: Plan, epoch: int, world_size: int, first: int = 0) -> list[list[Batch]]:
    """The shares of all workers, by batch."""
    shares = [
        list(Loader(rows_of(plan), plan, (1,), rank=rank, world_size=world_size).epoch(epoch, first))
        for rank in range(world_size)
    ]
    return [list(batch) for batch in zip(*shares, strict=True)]


def global_rows(shares: list[Batch]) -> list[int]:
    return sorted(int(row) for share in shares for row in share.rows)


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
@pytest.mark.parametrize("world_size", [1, 2, 3, 5, 70])
class TestEveryPlan:
    def test_an_epoch_has_every_row_once(self, plan, world_size):
        found = [global_rows(shares) for shares in batches(plan, 0, world_size)]
        assert sorted(row for rows in found for row in rows) == list(range(plan.num_rows))
        assert len(found) == plan.batches_per_epoch
        sizes = {len(rows) for rows in found}
        assert max(sizes) <= plan.batch_size
        assert max(sizes) - min(sizes) <= 1

    def test_batches_are_the_same_for_any_number_of_workers(self, plan, world_size):
        for epoch in (0, 3):
            alone = [global_rows(shares) for shares in batches(plan, epoch, 1)]
            assert [global_rows(shares) for shares in batches(plan, epoch, world_size)] == alone

    def test_what_is_read_is_what_the_row_number_says(self, plan, world_size):
        for shares in batches(plan, 1, world_size):
            for share in shares:
                rows = torch.from_numpy(share.rows).float()
                assert share.total == sum(len(other.rows) for other in shares)
                assert torch.equal(share.events, torch.stack([rows, -rows], 1))
                assert torch.equal(share.context, rows[:, None] * 2)

    def test_resuming_anywhere_misses_nothing_and_repeats_nothing(self, plan, world_size):
        whole = [global_rows(shares) for shares in batches(plan, 2, 1)]
        for first in {1, plan.batches_per_epoch // 2, plan.batches_per_epoch - 1}:
            if first < plan.batches_per_epoch:
                assert [global_rows(shares) for shares in batches(plan, 2, world_size, first)] == whole[first:]


class TestOrder:
    def order(self, plan: Plan, epoch: int) -> list[int]:
        return [int(row) for batch in batches(plan, epoch, 1) for row in batch[0].rows]

    def test_it_is_a_function_of_seed_and_epoch(self):
        plan = PLANS["uneven"]
        other = Plan(plan.num_rows, plan.shard_rows, plan.batch_size, plan.window_rows, seed=99)
        first = self.order(plan, 0)
        assert self.order(plan, 0) == first
        assert len({tuple(order) for order in (first, self.order(plan, 1), self.order(other, 0))}) == 3

    def test_one_loader_may_go_through_epochs_in_any_order(self):
        plan = PLANS["even"]
        loader = Loader(rows_of(plan), plan)
        for epoch in (4, 0, 4):
            assert [int(row) for batch in loader.epoch(epoch) for row in batch.rows] == self.order(plan, epoch)

    def test_rows_are_shuffled_and_not_only_shards(self):
        order = np.array(self.order(PLANS["even"], 0))
        assert np.mean(np.diff(order) == 1) < 0.05
        for batch in np.split(order, PLANS["even"].batches_per_epoch):
            assert len(set(batch // 60)) >= 3

    def test_every_batch_draws_on_all_units_of_its_window_about_evenly(self):
        plan = Plan(num_rows=6400, shard_rows=800, batch_size=320, window_rows=3200, seed=0)
        for window in plan.windows(0):
            _, units = plan.order(0, window)
            assert len(window.units) == 64
            for batch in np.split(units, window.num_rows // plan.batch_size):
                counts = np.bincount(batch, minlength=64)
                assert counts.min() >= 4
                assert counts.max() <= 6

    def test_a_row_finds_every_place_of_the_epoch_equally(self):
        plan = PLANS["uneven"]
        places = [self.order(plan, epoch).index(17) / plan.num_rows for epoch in range(60)]
        assert 0.35 < np.mean(places) < 0.65
        assert min(places) < 0.15
        assert max(places) > 0.85


class TestWork:
    @pytest.mark.parametrize("world_size", [1, 2, 4])
    def test_workers_read_whole_shards_of_their_own_where_they_divide_evenly(self, world_size):
        plan, read = PLANS["even"], []

        class Recorded(ArrayRows):
            def read(self, start, stop, events, context=None):
                read.append((rank, start // plan.shard_rows))
                super().read(start, stop, events, context)

        data = rows_of(plan)
        for rank in range(world_size):
            list(Loader(Recorded(data._events), plan, rank=rank, world_size=world_size).epoch(0))
        owners = {}
        for rank, shard in read:
            owners.setdefault(shard, set()).add(rank)
        assert sorted(owners) == list(range(16))
        assert all(len(ranks) == 1 for ranks in owners.values())

    @pytest.mark.parametrize("world_size", [2, 3, 5])
    def test_workers_have_about_the_same_share_of_every_batch(self, world_size):
        plan = Plan(num_rows=9600, shard_rows=600, batch_size=480, window_rows=4800, seed=0)
        for shares in batches(plan, 0, world_size):
            sizes = [len(share.rows) for share in shares]
            assert max(sizes) - min(sizes) < 0.25 * plan.batch_size / world_size + 8

    def test_a_worker_may_have_no_row_of_a_batch(self):
        shares = [share for batch in batches(PLANS["batches of one"], 0, 3) for share in batch]
        empty = [share for share in shares if share.total == 1 and len(share.rows) == 0]
        assert empty
        assert all(share.events.shape == (0, 2) and share.context.shape == (0, 1) for share in empty)

    def test_memory_is_flat_over_epochs(self):
        plan = PLANS["uneven"]
        loader = Loader(rows_of(plan), plan, (1,))
        list(loader.epoch(0))
        held = [buffer._events.ctypes.data for buffer in loader._buffers]
        most = max(len(buffer._events) for buffer in loader._buffers)
        for epoch in range(1, 20):
            for _ in loader.epoch(epoch):
                pass
        assert [buffer._events.ctypes.data for buffer in loader._buffers] == held
        assert most <= plan.window_rows

    def test_batches_are_the_caller_s_own(self):
        plan = PLANS["even"]
        kept = [share for batch in batches(plan, 0, 1) for share in batch]
        for share in kept:
            assert share.events[:, 0].tolist() == share.rows.tolist()

    def test_an_epoch_that_is_left_half_way_ends_its_thread(self):
        plan = PLANS["even"]
        before = set(threading.enumerate())
        for _ in range(5):
            epoch = Loader(rows_of(plan), plan).epoch(0)
            next(epoch)
            epoch.close()
            assert set(threading.enumerate()) <= before

    def test_an_error_while_reading_reaches_the_caller(self):
        class Broken(ArrayRows):
            def read(self, start, stop, events, context=None):
                raise OSError("shard train/3 is damaged")

        with pytest.raises(OSError, match="train/3"):
            list(Loader(Broken(rows_of(PLANS["even"])._events), PLANS["even"]).epoch(0))


class TestSequential:
    @pytest.mark.parametrize("world_size", [1, 2, 3, 5, 20])
    def test_every_row_once_over_all_workers(self, world_size):
        data = rows_of(PLANS["uneven"])
        found = [
            batch
            for rank in range(world_size)
            for batch in sequential(data, 100, (1,), rank=rank, world_size=world_size)
        ]
        assert sorted(int(row) for batch in found for row in batch.rows) == list(range(1013))
        assert all(batch.events[:, 0].tolist() == batch.rows.tolist() for batch in found)

    def test_every_nth_batch(self):
        starts = [batch.rows[0] for batch in sequential(rows_of(PLANS["uneven"]), 100, every=3)]
        assert starts == [0, 300, 600, 900]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> sf.Store:
    path: Path = tmp_path_factory.mktemp("loader") / "s.zarr"
    rows = np.random.default_rng(0).normal(size=(1200, 5)).astype("f4")
    return sf.shard(rows, path, shard_rows=70, split=(0.9, 0.05, 0.05), progress=False)


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_a_store_is_read_as_arrays_are(store, world_size):
    split = store.train
    plan = Plan(len(split), split.shard_rows, batch_size=90, window_rows=280, seed=1)
    events = split[:]
    for rank in range(world_size):
        for batch in Loader(split, plan, rank=rank, world_size=world_size).epoch(1):
            assert torch.equal(batch.events, events[batch.rows])


def test_shards_that_are_not_dealt_to_a_worker_are_not_read(store, tmp_path):
    path = shutil.copytree(store.path, tmp_path / "s.zarr")
    split = sf.open_store(path).train
    plan = Plan(len(split), split.shard_rows, batch_size=100, window_rows=4 * split.shard_rows, seed=0)
    window = next(plan.windows(0))
    mine = {window.shards[unit] for unit in window.units_of(0, 2)}
    assert len(mine) == 2
    for shard in set(window.shards) - mine:
        (path / "train" / "events" / "c" / str(shard) / "0").write_bytes(b"damaged")
    loader = Loader(split, plan, rank=0, world_size=2)
    batch = next(loader.epoch(0))
    assert set(batch.rows // split.shard_rows) <= mine
