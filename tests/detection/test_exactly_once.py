"""A scheduled run is done once, whatever happens on the way: killed, called twice, called late, called again."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from processes import wait_until
from stored import contents
from watched import World, killed

from sciflow.anomaly.scheduled import detect as calling
from sciflow.anomaly.scheduled import job, publish, results, tasks, version, work
from sciflow.anomaly.scheduled.chunk import Chunk
from sciflow.anomaly.scheduled.folder import Folder
from sciflow.anomaly.scheduled.plan import Plan
from sciflow.errors import RunError

# Where a run is killed: before the call, or the n-th call, of a function. Together they are all that it does.
STAGES = {
    "nothing is written": (Plan, "write", 1),
    "the plan is written": (job.Job, "prepare", 1),
    "the first shard": (tasks, "write_part", 1),
    "the second shard": (tasks, "write_part", 2),
    "all are scored": (work, "judge", 1),
    "none is explained": (tasks.Task, "explain", 1),
    "all are explained": (Folder, "begin", 1),
    "an empty version": (version, "_laid_out", 1),
    "no chunk": (version, "Chunk", 1),
    "a chunk without attributions": (Chunk, "attributions", 1),
    "the results are whole": (version, "consolidate", 1),
    "no events": (publish, "_flagged", 1),
    "no page": (publish, "_last", 1),
    "no state": (work, "_message", 1),
    "all but the link": (Folder, "commit", 1),
    "a link under another name": (Path, "replace", "current"),
    "the link is there": (Folder, "tidy", 1),
    "nobody has been told": (calling, "_tell", 1),
    "all are told": (calling, "write_metrics", 1),
}


def dies_at(monkeypatch, owner, name: str, when: int | str) -> None:
    """Let this process end itself, as by SIGKILL, at a call of a function."""
    inner, calls = getattr(owner, name), iter(range(1, 1_000_000))

    def dying(*arguments, **options):
        if isinstance(when, str):
            at = str(arguments[1]).endswith(when)
        else:
            at = next(calls) == when
        if at:
            os.kill(os.getpid(), signal.SIGKILL)
        return inner(*arguments, **options)

    monkeypatch.setattr(owner, name, dying)


@pytest.fixture(scope="module")
def unbroken(trained, tmp_path_factory) -> World:
    """Two days, and then a third one, by runs that nothing befell."""
    world = trained.copy(tmp_path_factory.mktemp("unbroken") / "world")
    world.come_in(0)
    world.come_in(1)
    world.detect()
    world.come_in(2, odd=True, shard_rows=8)
    world.detect()
    return world


@pytest.fixture(scope="module")
def one_a_run(trained, tmp_path_factory) -> World:
    """Five days, one a run."""
    world = trained.copy(tmp_path_factory.mktemp("one_a_run") / "world")
    for day in range(5):
        world.come_in(day, odd=day in (1, 4))
        world.detect()
    return world


def _without_state(files: dict[str, str]) -> dict[str, str]:
    """Without what says who has been told."""
    return {name: content for name, content in files.items() if name != "state.json"}


class TestKilled:
    @pytest.mark.parametrize("stage", STAGES)
    def test_a_run_goes_on_and_ends_with_the_same_bytes(self, stage, unbroken, world, monkeypatch):
        world.come_in(0)
        world.come_in(1)
        world.detect()
        before, after = contents(world.current), contents(unbroken.current)
        world.come_in(2, odd=True, shard_rows=8)
        with monkeypatch.context() as patch:
            dies_at(patch, *STAGES[stage])
            assert killed(world.detect) == -signal.SIGKILL
        # Who reads meanwhile finds all of the version before, or all of the next one.
        assert _without_state(contents(world.current)) in (_without_state(before), _without_state(after))
        done = world.detect()
        assert contents(world.current) == after
        assert done.exit_code == (0 if stage == "all are told" else 10)
        assert not (world.out / "work").exists()
        assert world.detect().exit_code == 0
        assert contents(world.current) == after

    def test_the_first_run_of_all_goes_on_too(self, world, monkeypatch):
        world.come_in(0, odd=True)
        with monkeypatch.context() as patch:
            dies_at(patch, Folder, "commit", 1)
            assert killed(world.detect) == -signal.SIGKILL
        assert not (world.out / "results.zarr").exists()
        assert world.detect().flagged == 2
        assert world.results.sizes == {"day": 1, "lat": 3, "lon": 4, "time": 6}

    def test_at_any_time_while_it_scores(self, world):
        for day in range(4):
            world.come_in(day, odd=day == 3, shard_rows=1)
        parts = world.out / "work" / "parts"
        child = os.fork()
        if child == 0:
            world.detect()
            os._exit(0)
        wait_until(lambda: len(list(parts.glob("*.safetensors"))) >= 3)
        os.kill(child, signal.SIGKILL)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
        assert not (world.out / "current").exists()
        before = [part.stat().st_ino for part in parts.glob("*.safetensors")]
        seen: set[int] = set()
        scored = tasks.write_part

        def looking(*arguments):
            seen.update(part.stat().st_ino for part in parts.glob("*.safetensors"))
            scored(*arguments)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(tasks, "write_part", looking)
            assert world.detect().flagged == 2
        # Nothing is scored twice.
        assert seen.issuperset(before)
        assert 3 <= len(before) < 48


class TestAgain:
    def test_nothing_is_rewritten_and_nobody_is_told_twice(self, world):
        world.come_in(0, odd=True)
        assert world.detect().exit_code == 10
        before = {path: path.lstat().st_mtime_ns for path in world.out.rglob("*") if path.name != "metrics.prom"}
        again = world.detect()
        assert (again.exit_code, again.rows, again.number) == (0, 0, 1)
        assert str(again).startswith("nothing new: ")
        assert {path: path.lstat().st_mtime_ns for path in before} == before

    def test_without_anything_new_at_all_is_a_success_that_says_so(self, world):
        done = world.detect()
        assert done.exit_code == 0
        assert str(done) == f"nothing new: {world.out} is up to date"
        assert not (world.out / "current").exists()

    def test_with_a_clock_that_runs_backwards(self, world, monkeypatch):
        world.come_in(0)
        world.detect()
        monkeypatch.setattr(time, "time", lambda: 0.0)
        assert world.detect().rows == 0
        world.come_in(1, odd=True)
        assert world.detect().flagged == 2

    def test_two_at_once_wait_or_leave(self, world):
        world.come_in(0, odd=True)
        began, go_on = threading.Event(), threading.Event()

        def first() -> None:
            with Folder(world.out).locked(0):
                began.set()
                go_on.wait()

        thread = threading.Thread(target=first)
        thread.start()
        began.wait()
        with pytest.raises(RunError, match="another run is at work on it: give --wait SECONDS"):
            world.detect()
        threading.Timer(0.3, go_on.set).start()
        assert world.detect(wait=30).rows == 12
        thread.join()
        assert world.detect().rows == 0


class TestWhenStoresCome:
    """What is found depends on the data, and not on how many runs it took, or in which order they came."""

    def test_all_at_once_is_one_a_run(self, one_a_run, world):
        for day in range(5):
            world.come_in(day, odd=day in (1, 4))
        world.detect()
        assert values(world) == values(one_a_run)

    def test_late_ones_come_in_at_their_place(self, one_a_run, world):
        for days in ((0, 4), (2,), (3, 1)):
            for day in days:
                world.come_in(day, odd=day in (1, 4))
            world.detect()
        found = world.results
        assert found.day.to_index().is_monotonic_increasing
        assert found.drop_vars("store").identical(one_a_run.results.drop_vars("store").assign_attrs(found.attrs))

    def test_a_range_judged_anew_is_the_sum_of_single_runs(self, one_a_run, world):
        for day in range(5):
            world.come_in(day, odd=day in (1, 4))
            world.detect()
        done = world.detect(start="2001-07-01", stop="2001-07-03")
        assert (done.rows, done.flagged, done.exit_code) == (36, 0, 0)
        assert values(world) == values(one_a_run)

    def test_chunks_that_have_not_changed_are_the_same_files(self, world, monkeypatch):
        monkeypatch.setattr(results, "CHUNK_ROWS", 12)
        for day in range(3):
            world.come_in(day, odd=day == 0)
            world.detect()
            # Whoever is still reading the version before finds all of it.
            assert len(list((world.out / "versions").iterdir())) == min(day + 1, 2)
        old, new = sorted((world.out / "versions").iterdir())
        for name in ("score/c/0/0/0", "score/c/1/0/0", "attribution/c/0/0/0/0"):
            assert (old / "results.zarr" / name).samefile(new / "results.zarr" / name)
        assert not (old / "results.zarr" / "score/c/2/0/0").exists()

    def test_where_there_are_no_links_chunks_are_copied(self, one_a_run, world, monkeypatch):
        def refuse(*_):
            raise OSError(95, "Operation not supported")

        monkeypatch.setattr(version, "os", SimpleNamespace(link=refuse))
        for day in range(5):
            world.come_in(day, odd=day in (1, 4))
            world.detect()
        assert contents(world.current) == contents(one_a_run.current)


def values(world: World) -> dict[str, str]:
    """The chunks of all variables."""
    return {name: content for name, content in contents(world.current / "results.zarr").items() if "/c/" in name}
