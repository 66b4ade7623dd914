"""Sharding that is interrupted, refused, or done twice: a store is whole or not there, and the same command goes on."""

from __future__ import annotations

import errno
import importlib
import os
import resource
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from processes import wait_until
from stored import contents

import sciflow as sf
from sciflow.data.lock import writing
from sciflow.errors import ConfigError, DataError, StoreError

SHARD_ROWS = 40
COMMAND = "from sciflow.cli import main; main()"


@pytest.fixture
def source(tmp_path) -> Path:
    """A file of 2,000 fields, for 40 training shards and as many held-out ones."""
    field = np.random.default_rng(0).normal(size=(2000, 6, 7)).astype("f4")
    field[::101, 2, 3] = np.nan
    data = xr.Dataset(
        {"x": (("time", "lat", "lon"), field), "c": ("time", np.arange(2000) % 7)}, {"time": np.arange(2000)}
    )
    data.to_netcdf(tmp_path / "field.nc")
    return tmp_path / "field.nc"


def options(source: Path, store: Path, *more: str) -> list[str]:
    return [
        *("shard", str(source), str(store), "--variables", "x", "--sample", "time", "--context", "c"),
        *("--shard-rows", str(SHARD_ROWS), "--missing", "fill", "--fill-value", "0", *more),
    ]


def run(*arguments: str, **settings: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", COMMAND, *arguments], capture_output=True, text=True, **settings)


def whole_shards(folder: Path) -> dict[Path, tuple[int, int]]:
    """Inode and time of every shard that is there."""
    return {file: (file.stat().st_ino, file.stat().st_mtime_ns) for file in folder.glob("*/events/c/*/0/0")}


def killed_half_way(source: Path, store: Path) -> Path:
    """Kill a sharding process when some of its shards are written; return what it leaves."""
    partial = Path(f"{store}.partial")
    # Slowed down, so that it is killed in the middle on any machine.
    slow = (
        "import time; from sciflow.data import writer; write = writer.write_file\n"
        "def write_slowly(*args): time.sleep(0.02); write(*args)\n"
        f"writer.write_file = write_slowly; {COMMAND}"
    )
    process = subprocess.Popen([sys.executable, "-c", slow, *options(source, store)], stdout=subprocess.DEVNULL)
    try:
        wait_until(lambda: len(whole_shards(partial)) >= 12, process, seconds=60)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not store.exists()
    return partial


class TestKilled:
    def test_the_same_command_goes_on_and_ends_with_the_same_bytes(self, source, tmp_path):
        plain = tmp_path / "plain.zarr"
        assert run(*options(source, plain)).returncode == 0
        store = tmp_path / "killed.zarr"
        partial = killed_half_way(source, store)
        (partial / "train" / "events" / "c" / "7" / "0").mkdir(parents=True, exist_ok=True)
        (partial / "train" / "events" / "c" / "7" / "0" / "0.partial").write_bytes(b"half a shard")
        before = whole_shards(partial)
        assert 12 <= len(before) < 80
        with pytest.raises(StoreError, match="half-written: run the command that wrote it again"):
            sf.open_store(store)
        done = run(*options(source, store))
        assert (done.returncode, done.stderr) == (0, "")
        assert contents(store) == contents(plain)
        assert sf.open_store(store).fingerprint == sf.open_store(plain).fingerprint
        after = {file.relative_to(store): stat for file, stat in whole_shards(store).items()}
        assert {file.relative_to(partial): stat for file, stat in before.items()}.items() <= after.items()
        assert sorted(entry.name for entry in tmp_path.iterdir()) == ["field.nc", "killed.zarr", "plain.zarr"]


def failing(monkeypatch: pytest.MonkeyPatch, name: str, error: BaseException, after: int = 0) -> None:
    """Let the writer's ``name`` raise from its ``after``-th call on."""
    module = importlib.import_module("sciflow.data.writer")
    real, calls = getattr(module, name), []

    def call(*args: object) -> object:
        calls.append(1)
        if len(calls) > after:
            raise error
        return real(*args)

    monkeypatch.setattr(module, name, call)


ROWS = np.random.default_rng(0).normal(size=(500, 4)).astype("f4")


def stopped_half_way(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Leave a half-written ``s.zarr``; return its source."""
    path = folder / "rows.csv"
    np.savetxt(path, ROWS, delimiter=",", header="a,b,c,d", comments="")
    with monkeypatch.context() as patch:
        failing(patch, "write_file", OSError(errno.ENOSPC, "full"), 8)
        with pytest.raises(StoreError, match="full"):
            sf.shard(path, folder / "s.zarr", shard_rows=50, num_writers=1, progress=False)
    assert len(whole_shards_of(folder / "s.zarr.partial")) == 4
    return path


class TestErrorsHalfWay:
    @pytest.mark.parametrize(
        ("name", "after"), [("write_file", 0), ("write_file", 3), ("hash_files", 0), ("encode_shard", 5)]
    )
    @pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EDQUOT])
    def test_an_error_of_the_disk_is_one_line_and_the_same_call_goes_on(
        self, tmp_path, monkeypatch, name, after, number
    ):
        np.save(tmp_path / "rows.npy", ROWS)
        with monkeypatch.context() as patch:
            failing(patch, name, OSError(number, os.strerror(number)), after)
            with pytest.raises(StoreError, match=rf"s\.zarr: cannot be written: {os.strerror(number)}.*same command"):
                sf.shard(tmp_path / "rows.npy", tmp_path / "s.zarr", shard_rows=50, progress=False)
        assert not (tmp_path / "s.zarr").exists()
        store = sf.shard(tmp_path / "rows.npy", tmp_path / "s.zarr", shard_rows=50, progress=False)
        plain = sf.shard(tmp_path / "rows.npy", tmp_path / "plain.zarr", shard_rows=50, progress=False)
        assert contents(tmp_path / "s.zarr") == contents(tmp_path / "plain.zarr")
        assert store.fingerprint == plain.fingerprint

    def test_a_disk_that_is_really_full(self, tmp_path):
        disk = tmp_path / "disk"
        disk.mkdir()
        mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)], capture_output=True)
        if mounted.returncode:
            pytest.skip("no permission to mount a small disk")
        try:
            rows = np.random.default_rng(0).normal(size=(100_000, 8)).astype("f4")
            np.save(tmp_path / "rows.npy", rows)
            with pytest.raises(StoreError, match=r"s\.zarr: cannot be written: No space left on device") as caught:
                sf.shard(tmp_path / "rows.npy", disk / "s.zarr", shard_rows=4000, progress=False)
            assert "\n" not in str(caught.value)
            assert not (disk / "s.zarr").exists()
            subprocess.run(["mount", "-o", "remount,size=16m", str(disk)], check=True)
            written = set(whole_shards_of(disk / "s.zarr.partial"))
            assert written
            store = sf.shard(tmp_path / "rows.npy", disk / "s.zarr", shard_rows=4000, progress=False)
            assert written <= set(whole_shards_of(disk / "s.zarr"))
            assert len(store) == 100_000
        finally:
            subprocess.run(["umount", str(disk)], check=True)

    def test_files_that_may_not_grow(self, tmp_path):
        np.save(tmp_path / "rows.npy", np.random.default_rng(0).normal(size=(40_000, 8)).astype("f4"))
        limit = 1 << 16

        def limited() -> None:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

        arguments = ["shard", str(tmp_path / "rows.npy"), str(tmp_path / "s.zarr")]
        failed = run(*arguments, preexec_fn=limited)
        assert failed.returncode == 1
        assert failed.stderr.count("\n") == 1
        assert "cannot be written: File too large" in failed.stderr
        assert not (tmp_path / "s.zarr").exists()
        assert run(*arguments).returncode == 0

    @pytest.mark.parametrize("array", ["events", "index"])
    def test_a_shard_that_is_not_whole_after_all_is_written_again(self, tmp_path, monkeypatch, array):
        rows = stopped_half_way(tmp_path, monkeypatch)
        torn = next((tmp_path / "s.zarr.partial" / "train" / array).rglob("0"))
        torn = torn / "0" if torn.is_dir() else torn
        torn.write_bytes(torn.read_bytes()[:-9])
        sf.shard(rows, tmp_path / "s.zarr", shard_rows=50, progress=False)
        sf.shard(rows, tmp_path / "plain.zarr", shard_rows=50, progress=False)
        assert contents(tmp_path / "s.zarr") == contents(tmp_path / "plain.zarr")

    @pytest.mark.parametrize(
        "change",
        [
            {},
            {"seed": 1},
            {"shard_rows": 60},
            {"split": (0.7, 0.1, 0.2)},
            {"dtype": "float64"},
            {"variables": ["b", "a"]},
        ],
        ids=str,
    )
    def test_another_request_begins_anew(self, tmp_path, monkeypatch, change):
        rows = stopped_half_way(tmp_path, monkeypatch)
        inodes = set(whole_shards_of(tmp_path / "s.zarr.partial"))
        if not change:
            os.utime(rows)
        request = {"shard_rows": 50, "progress": False, **change}
        sf.shard(rows, tmp_path / "s.zarr", **request)
        sf.shard(rows, tmp_path / "plain.zarr", **request)
        assert not inodes & set(whole_shards_of(tmp_path / "s.zarr"))
        assert contents(tmp_path / "s.zarr") == contents(tmp_path / "plain.zarr")

    def test_data_in_memory_begin_anew(self, tmp_path, monkeypatch):
        with monkeypatch.context() as patch:
            failing(patch, "write_file", OSError(errno.ENOSPC, "full"), 3)
            with pytest.raises(StoreError):
                sf.shard(ROWS, tmp_path / "s.zarr", shard_rows=50, progress=False)
        store = sf.shard(ROWS + 1, tmp_path / "s.zarr", shard_rows=50, progress=False)
        index = store.train.grid_index(0, len(store.train))
        np.testing.assert_array_equal(store.train[:], (ROWS + 1)[index])

    def test_bad_data_leave_nothing(self, tmp_path):
        rows = ROWS.copy()
        rows[450, 2] = np.nan
        with pytest.raises(DataError, match="row=450, feature=2"):
            sf.shard(rows, tmp_path / "s.zarr", shard_rows=50, progress=False)
        assert list(tmp_path.iterdir()) == []

    def test_interrupting_with_the_keyboard_leaves_what_can_go_on(self, tmp_path, monkeypatch):
        np.save(tmp_path / "rows.npy", ROWS)
        with monkeypatch.context() as patch:
            failing(patch, "encode_shard", KeyboardInterrupt(), 3)
            with pytest.raises(KeyboardInterrupt):
                sf.shard(tmp_path / "rows.npy", tmp_path / "s.zarr", shard_rows=50, progress=False)
        written = whole_shards_of(tmp_path / "s.zarr.partial")
        assert written
        sf.shard(tmp_path / "rows.npy", tmp_path / "s.zarr", shard_rows=50, progress=False)
        assert set(written) <= set(whole_shards_of(tmp_path / "s.zarr"))


def whole_shards_of(folder: Path) -> list[tuple[int, int]]:
    """The same for events of one dimension."""
    return [(file.stat().st_ino, file.stat().st_mtime_ns) for file in folder.glob("*/events/c/*/0")]


class TestPlaces:
    def test_what_is_there_is_not_replaced_unasked(self, tmp_path):
        sf.shard(ROWS, tmp_path / "s.zarr", progress=False)
        before = contents(tmp_path / "s.zarr")
        with pytest.raises(StoreError, match=r"already there; choose another name, or replace it by overwrite=True"):
            sf.shard(ROWS + 1, tmp_path / "s.zarr", progress=False)
        assert contents(tmp_path / "s.zarr") == before

    def test_overwriting_keeps_the_old_store_until_the_new_one_is_whole(self, tmp_path, monkeypatch):
        sf.shard(ROWS, tmp_path / "s.zarr", progress=False)
        before = contents(tmp_path / "s.zarr")
        (tmp_path / "s.zarr.old").mkdir()
        with monkeypatch.context() as patch:
            failing(patch, "hash_files", OSError(errno.ENOSPC, "full"))
            with pytest.raises(StoreError, match="cannot be written: full"):
                sf.shard(ROWS + 1, tmp_path / "s.zarr", overwrite=True, progress=False)
        assert contents(tmp_path / "s.zarr") == before
        with pytest.raises(DataError):
            sf.shard(ROWS * np.nan, tmp_path / "s.zarr", overwrite=True, progress=False)
        assert contents(tmp_path / "s.zarr") == before
        store = sf.shard(ROWS + 1, tmp_path / "s.zarr", overwrite=True, progress=False)
        assert store.train[:].mean() > 0.5
        # What others have called alike is theirs.
        assert sorted(entry.name for entry in tmp_path.iterdir()) == ["s.zarr", "s.zarr.old"]

    def test_a_process_that_died_while_it_replaced_is_made_good(self, tmp_path):
        np.save(tmp_path / "rows.npy", ROWS)
        sf.shard(tmp_path / "rows.npy", tmp_path / "s.zarr", progress=False)
        (tmp_path / "s.zarr").rename(tmp_path / ".s.zarr.replaced")
        sf.shard(tmp_path / "rows.npy", tmp_path / "s.zarr", progress=False)
        assert sorted(entry.name for entry in tmp_path.iterdir()) == ["rows.npy", "s.zarr"]

    @pytest.mark.parametrize("overwrite", [False, True])
    def test_what_is_no_store_is_never_replaced(self, tmp_path, overwrite):
        (tmp_path / "notes").mkdir()
        (tmp_path / "notes" / "important.txt").write_text("x")
        (tmp_path / "file").write_text("x")
        for name in ("notes", "file"):
            with pytest.raises(StoreError, match=r"not a Zarr store|already there"):
                sf.shard(ROWS, tmp_path / name, overwrite=overwrite, progress=False)
        assert (tmp_path / "notes" / "important.txt").read_text() == "x"

    def test_a_store_is_not_sharded_onto_itself(self, tmp_path):
        data = xr.Dataset({"x": (("time", "place"), ROWS)})
        data.to_zarr(tmp_path / "s.zarr", consolidated=False)
        with pytest.raises(StoreError, match="which is read, or lies in it"):
            sf.shard(tmp_path / "s.zarr", tmp_path / "s.zarr", overwrite=True, progress=False)
        assert xr.open_zarr(tmp_path / "s.zarr", consolidated=False)["x"].shape == (500, 4)

    def test_nor_by_another_name_for_it(self, tmp_path):
        data = xr.Dataset({"x": (("time", "place"), ROWS)})
        data.to_zarr(tmp_path / "s.zarr", consolidated=False)
        (tmp_path / "sub").mkdir()
        (tmp_path / "link.zarr").symlink_to(tmp_path / "s.zarr")
        for other in (tmp_path / "sub" / ".." / "s.zarr", tmp_path / "link.zarr", tmp_path / "s.zarr" / "inside.zarr"):
            with pytest.raises(StoreError, match="which is read, or lies in it"):
                sf.shard(tmp_path / "s.zarr", other, overwrite=True, progress=False)

    def test_folders_on_the_way_are_made(self, tmp_path):
        sf.shard(ROWS, tmp_path / "a" / "b" / "s.zarr", progress=False)
        assert [entry.name for entry in (tmp_path / "a" / "b").iterdir()] == ["s.zarr"]

    def test_a_file_on_the_way(self, tmp_path):
        (tmp_path / "a").write_text("x")
        with pytest.raises(StoreError, match=r"a/s\.zarr: cannot be written: (Not a directory|File exists)"):
            sf.shard(ROWS, tmp_path / "a" / "s.zarr", progress=False)

    def test_no_permission(self):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            folder.chmod(0o755)
            for file in ("rows.npy", "closed.npy"):
                np.save(folder / file, ROWS)
            sf.shard(folder / "rows.npy", folder / "warm.zarr", progress=False)
            (folder / "closed.npy").chmod(0)
            (folder / "closed").mkdir(0o555)
            with other_user():
                with pytest.raises(StoreError, match=r"closed/s\.zarr: cannot be written: Permission denied"):
                    sf.shard(folder / "rows.npy", folder / "closed" / "s.zarr", progress=False)
                with pytest.raises(DataError, match=r"closed\.npy: no permission to read it"):
                    sf.shard(folder / "closed.npy", folder / "s.zarr", progress=False)
            (folder / "warm.zarr" / "zarr.json").chmod(0)
            with other_user(), pytest.raises(StoreError, match=r"warm\.zarr: no permission to read it"):
                sf.open_store(folder / "warm.zarr")


@contextmanager
def other_user() -> Iterator[None]:
    """Root may read and write everything: be somebody else for a while."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


class TestTwoAtATime:
    def test_the_second_process_is_refused(self, tmp_path):
        with writing(tmp_path / "s.zarr"):
            other = "import sys, sciflow as sf, numpy as np; sf.shard(np.ones((9, 2)), sys.argv[1])"
            second = subprocess.run(
                [sys.executable, "-c", other, str(tmp_path / "s.zarr")], capture_output=True, text=True
            )
            assert "s.zarr: another process is writing it: wait for it, or end it" in second.stderr
            with pytest.raises(StoreError, match="another process is writing it"):
                sf.shard(ROWS, tmp_path / "s.zarr", progress=False)
            sf.shard(ROWS, tmp_path / "other.zarr", progress=False)
        sf.shard(ROWS, tmp_path / "s.zarr", progress=False)

    def test_of_two_that_race_one_is_whole_and_one_is_refused(self, source, tmp_path):
        store = tmp_path / "s.zarr"
        command = [sys.executable, "-c", COMMAND]
        pair = [
            subprocess.Popen([*command, *options(source, store, "--seed", seed)], stderr=subprocess.PIPE, text=True)
            for seed in ("0", "1")
        ]
        messages = [process.communicate()[1] for process in pair]
        codes = [process.returncode for process in pair]
        assert sorted(codes) == [0, 1]
        assert any(words in messages[codes.index(1)] for words in ("another process is writing it", "already there"))
        assert run(*options(source, tmp_path / "plain.zarr", "--seed", str(codes.index(0)))).returncode == 0
        assert sf.open_store(store).fingerprint == sf.open_store(tmp_path / "plain.zarr").fingerprint

    def test_a_lock_ends_with_its_process(self, tmp_path):
        code = "import sys, os\nfrom pathlib import Path\nfrom sciflow.data.lock import writing\n"
        code += "with writing(Path(sys.argv[1])): os.kill(os.getpid(), 9)"
        subprocess.run([sys.executable, "-c", code, str(tmp_path / "s.zarr")], check=False)
        assert (tmp_path / ".s.zarr.lock").exists()
        with writing(tmp_path / "s.zarr"):
            pass
        assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options_", "message"),
    [
        ({"split": (0.5, 0.5)}, r"split \[0\.5, 0\.5\]: give three shares"),
        ({"missing": "mask"}, r"missing 'mask': choose error, drop or fill"),
        ({"fill_value": 1.0}, "fill_value without missing='fill' does nothing"),
        ({"shard_rows": 0}, "shard_rows 0: a shard holds 1 event or more"),
        ({"num_writers": 0}, "num_writers 0: 1 or more threads write"),
        ({"seed": -1}, "seed -1: 0 or more"),
    ],
)
def test_settings_out_of_range_are_refused_before_anything_is_written(tmp_path, options_, message):
    with pytest.raises(ConfigError, match=message):
        sf.shard(ROWS, tmp_path / "s.zarr", progress=False, **options_)
    assert list(tmp_path.iterdir()) == []


def test_a_store_can_be_written_to_a_url():
    fsspec = pytest.importorskip("fsspec")
    files = fsspec.filesystem("memory")
    try:
        store = sf.shard(ROWS, "memory://written.zarr", shard_rows=60, progress=False)
        np.testing.assert_array_equal(store.train[:], ROWS[store.train.grid_index(0, len(store.train))])
        with pytest.raises(StoreError, match=r"memory://written\.zarr: already there"):
            sf.shard(ROWS + 1, "memory://written.zarr", progress=False)
    finally:
        files.rm("/written.zarr", recursive=True)
