"""Progress on a terminal, silence elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["progress_bar"]


@contextmanager
def progress_bar(description: str, total: int | None, enabled: bool = True) -> Iterator[Callable[[int, str], None]]:
    """Show a progress bar on standard error while the block runs, where that is a terminal.

    Args:
        description: What is going on.
        total: Steps in all; None where unknown.
        enabled: False shows nothing.

    Yields:
        A function ``update(done, note)``: steps done so far, and a few words beside the bar.

    Example:
        >>> with progress_bar("counting", 2, enabled=False) as update:
        ...     update(1, "half way")
    """
    if not enabled or not sys.stderr.isatty():
        yield lambda done, note: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("[progress.description]{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task(description, total=total, note="")
        yield lambda done, note: bars.update(task, completed=done, note=note)
