"""Processes that tests start, watch, and kill."""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

__all__ = ["alive", "offspring", "processes", "title", "wait_until"]


def wait_until(true: Callable[[], object], child: subprocess.Popen | None = None, seconds: float = 90) -> None:
    """Wait for something, as long as ``child``, of which it is expected, is running."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it never came true"
        assert child is None or child.poll() is None, child.communicate()[1]
        time.sleep(0.005)


def processes(words: str) -> list[int]:
    """Processes whose title holds certain words."""
    return [pid for pid in _all() if words in title(pid)]


def offspring(pid: int) -> list[int]:
    """Processes that a process has started, and those that they have."""
    found = []
    for other in _all():
        with contextlib.suppress(OSError, IndexError):
            if int(_stat(other)[1]) == pid:
                found += [other, *offspring(other)]
    return found


def alive(pid: int) -> bool:
    """Whether it is running still; one that has ended, and that nobody has asked about, is not."""
    try:
        return _stat(pid)[0] != "Z"
    except OSError:
        return False


def title(pid: int) -> str:
    """What it calls itself; nothing where it has ended."""
    try:
        return (Path("/proc") / str(pid) / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


def _all() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]


def _stat(pid: int) -> list[str]:
    """Its state, its parent, and more of the like."""
    return (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()
