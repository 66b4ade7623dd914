"""The folder of the results: versions of it, each whole, of which one is current."""

from __future__ import annotations

import errno
import os
import shutil
from contextlib import AbstractContextManager, suppress
from pathlib import Path

from sciflow.anomaly.scheduled.ledger import Ledger
from sciflow.anomaly.scheduled.listing import require_whole, write_listing
from sciflow.data.lock import locked
from sciflow.errors import RunError, StoreError
from sciflow.training.files import write_whole

__all__ = ["Folder"]

FILES = ("results.zarr", "events.parquet", "events.csv", "report.html", "state.json")
OURS = {*FILES, "current", "versions", "work", "detector", "metrics.prom", "lock"}

# What a file system says that has no symbolic links.
_NO_LINKS = (errno.EPERM, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL)


class Folder:
    """What a run reads and writes.

    A version is made beside the current one and takes its place by the renaming of one symbolic link, so that whoever
    reads finds all files of one version, and whoever is killed leaves one. The version before stays until the next
    one is made, for those who are still reading it.

    Args:
        path: Where it is, or will be.

    Raises:
        StoreError: Something else is there, or another version of sciflow wrote it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            there = {entry.name for entry in path.glob("[!.]*")} if path.exists() else set()
        except OSError as error:
            raise StoreError(f"{path}: cannot be read: {error.strerror or error}") from None
        if there - OURS and "current" not in there:
            raise StoreError(f"{path}: something else is there ({min(there - OURS)}): choose another detection.out")
        self.require_readable()

    @property
    def current(self) -> Path | None:
        """The version that readers find; None before the first.

        Raises:
            StoreError: It is gone.
        """
        link = self.path / "current"
        if link.is_symlink() and not link.exists():
            raise StoreError(
                f"{link}: leads to {os.readlink(link)}, which is gone: restore it; or remove {link.name}, and all is "
                "judged anew"
            )
        return link.resolve() if link.exists() else None

    @property
    def ledger(self) -> Ledger:
        """What has been done."""
        return Ledger.read(self.current / "state.json") if self.current else Ledger()

    @property
    def work(self) -> Path:
        """What an unfinished run goes on from."""
        return self.path / "work"

    def require_readable(self) -> None:
        """Refuse an output that another version wrote.

        Raises:
            StoreError: It did, or the state is damaged.
        """
        _ = self.ledger

    def require_whole(self) -> None:
        """Refuse results of which a file is gone since they were written.

        Raises:
            StoreError: Names it.
        """
        if self.current is not None:
            require_whole(self.current)

    def locked(self, seconds: float) -> AbstractContextManager[None]:
        """Hold the folder for this process.

        Raises:
            RunError: Another process holds it, or it cannot be written.
        """
        busy = RunError(f"{self.path}: another run is at work on it: give --wait SECONDS, or leave it to that one")
        return locked(self.path, self.path / "lock", busy, seconds)

    def begin(self) -> Path:
        """Return an empty folder for the next version; what is neither current nor this one is removed."""
        versions = self.path / "versions"
        versions.mkdir(parents=True, exist_ok=True)
        for old in versions.iterdir():
            if old.is_symlink():
                old.unlink()
            elif old.resolve() != self.current:
                shutil.rmtree(old)
        new = versions / f"{self.ledger.number + 1:06d}"
        new.mkdir()
        return new

    def commit(self, new: Path) -> None:
        """Let readers find a version that is whole, and clear the work that led to it.

        Raises:
            StoreError: The file system has no symbolic links.
        """
        write_listing(new)
        beside = self.path / "versions" / ".link"
        try:
            beside.symlink_to(Path("versions", new.name))
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            raise StoreError(
                f"{self.path}: the file system has no symbolic links ({error.strerror or error}), by which results "
                "appear whole: choose a detection.out that has"
            ) from None
        beside.replace(self.path / "current")
        self.tidy()

    def tidy(self) -> None:
        """What comes after a commit, and may have been cut short: names for the files, and no more work."""
        for name in FILES:
            with suppress(FileExistsError):
                (self.path / name).symlink_to(Path("current", name))
        shutil.rmtree(self.work, ignore_errors=True)
        for folder in (self.path, self.path / "current"):
            for file in folder.glob(".*.partial"):
                file.unlink()  # of a process that was killed

    def rewrite(self, ledger: Ledger) -> None:
        """Write the current state anew: a message has been delivered."""
        assert self.current is not None
        write_whole(self.current / "state.json", ledger.to_text())

    def relative(self, path: Path) -> str:
        """How messages call something in the folder."""
        return os.path.relpath(path, self.path)
