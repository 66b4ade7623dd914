"""Small text files that are there whole or not at all."""

from __future__ import annotations

from pathlib import Path

from sciflow.files import written_whole

__all__ = ["write_whole"]


def write_whole(path: Path, text: str) -> None:
    """Write a small file beside its place, and rename it.

    Raises:
        OSError: It cannot be written; what was there is as it was.
    """
    with written_whole(path) as beside:
        beside.write_text(text)
