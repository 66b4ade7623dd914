"""One process at a time writes to a place."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sciflow.errors import StoreError

__all__ = ["locked"]


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a place for this process while the block runs; a file beside it, ``.NAME.lock``, carries the lock.

    The system gives the lock back when the process ends, however it ends.

    Raises:
        StoreError: Another process holds it, or the folder cannot be written.
    """
    file = path.with_name(f".{path.name}.lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = _open_current(file)
    except OSError as error:
        raise StoreError(f"{path}: cannot be written: {error.strerror or error}") from None
    if descriptor is None:
        raise StoreError(f"{path}: another process is writing it: wait for it, or end it")
    try:
        yield
    finally:
        file.unlink(missing_ok=True)
        os.close(descriptor)


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
