"""Whether an error says that memory has run out."""

from __future__ import annotations

import torch

__all__ = ["is_out_of_memory"]


def is_out_of_memory(error: Exception) -> bool:
    """Tell it of any device: of a GPU such an error has a class of its own, of the machine only words.

    Example:
        >>> is_out_of_memory(MemoryError()), is_out_of_memory(RuntimeError("shapes do not fit"))
        (True, False)
    """
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "you tried to allocate" in str(error)
