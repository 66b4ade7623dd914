"""What work on a part of the rows asks of its process, so that it comes out the same in any of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from sciflow.errors import RunError
from sciflow.memory import is_out_of_memory

__all__ = ["one_thread", "within_memory"]


@contextmanager
def one_thread() -> Iterator[None]:
    """Sums may depend on the number of threads; what is written must not."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@contextmanager
def within_memory(what: str) -> Iterator[None]:
    """Say in one line that memory has run out.

    Args:
        what: What does not fit, and what to do about it.

    Raises:
        RunError: With these words.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if is_out_of_memory(error):
            raise RunError(what) from None
        raise
