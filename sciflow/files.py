"""Files that are there whole or not at all, and outlast a machine that stops."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["write_to_disk", "written_whole"]


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Give a path beside ``path`` to write to; what was written there takes its place at the end.

    Where something is raised in between, what was there stays as it was, and nothing is left beside it. The name
    beside ends in ``.partial``, by which what a killed process has left is known.

    Raises:
        OSError: It cannot be renamed.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> with written_whole(folder / "state.json") as beside:
        ...     _ = beside.write_text("{}")
        >>> [file.name for file in folder.iterdir()]
        ['state.json']
    """
    # Two processes may write the same.
    beside = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield beside
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def write_to_disk(path: Path, content: bytes) -> None:
    """Write a file, and wait until it is on the disk.

    Raises:
        OSError: It cannot be written.
    """
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
