"""One process at a time writes to a place."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path

from sciflow.errors import SciflowError, StoreError

__all__ = ["locked", "writing"]

POLL_SECONDS = 0.1


@contextmanager
def locked(path: Path, file: Path, busy: SciflowError, seconds: float = 0.0) -> Iterator[None]:
    """Hold a place for this process while the block runs.

    The system gives the lock back when the process ends, however it ends.

    Args:
        path: What is held.
        file: Carries the lock; it comes and goes with it.
        busy: What to raise where another process holds it.
        seconds: How long to wait for that process first.

    Raises:
        SciflowError: ``busy``; or an error of its kind, where the folder cannot be written.
    """
    deadline = time.monotonic() + seconds
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        while (descriptor := _open_current(file)) is None:
            if time.monotonic() >= deadline:
                raise busy from None
            time.sleep(POLL_SECONDS)
    except OSError as error:
        if error is busy:
            raise
        raise type(busy)(f"{path}: cannot be written: {error.strerror or error}") from None
    try:
        yield
    finally:
        # The folder may have been put aside meanwhile, and another process be at work in a new one.
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), os.stat(file)):
                file.unlink()
        os.close(descriptor)


def writing(path: Path) -> AbstractContextManager[None]:
    """Hold a place that this process writes to; a file beside it, ``.NAME.lock``, carries the lock.

    Raises:
        StoreError: Another process holds it, the folder cannot be written, or the path ends in no name.
    """
    if path.name in ("", ".."):
        raise StoreError(f"{path}: names no folder of its own: end it with a name, such as data.zarr")
    busy = StoreError(f"{path}: another process is writing it: wait for it, or end it")
    return locked(path, path.with_name(f".{path.name}.lock"), busy)


def _open_current(file: Path) -> int | None:
    """Return a descriptor that holds the lock, or None where another process has it."""
    while True:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Whoever held it before may have removed the file meanwhile: a lock on what has no name locks nothing.
            if os.path.samestat(os.fstat(descriptor), os.stat(file)):
                return descriptor
        except BlockingIOError:
            os.close(descriptor)
            return None
        except FileNotFoundError:
            pass
        os.close(descriptor)
