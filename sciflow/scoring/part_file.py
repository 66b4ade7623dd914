"""Arrays of a part, in a file that is there whole or not at all, and is known to be damaged where it is."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from contextlib import suppress

import fsspec
import numpy as np
from safetensors.numpy import load, save

from sciflow.errors import RunError

__all__ = ["read_part", "write_part"]

DIGEST_BYTES = hashlib.sha256().digest_size


def write_part(files: fsspec.AbstractFileSystem, path: str, arrays: Mapping[str, np.ndarray]) -> None:
    """Write a part beside its place, and rename it.

    Args:
        files: Where it is written.
        path: As this file system calls it.
        arrays: By name.

    Raises:
        OSError: It cannot be written.
    """
    content = save(dict(arrays))
    content += hashlib.sha256(content).digest()
    folder, _, name = path.rpartition("/")
    partial = f"{folder}/.{name}.{os.getpid()}.partial"
    try:
        files.pipe_file(partial, content)
        files.mv(partial, path)
    except OSError:
        with suppress(OSError):
            files.rm(partial)
        raise


def read_part(files: fsspec.AbstractFileSystem, path: str) -> dict[str, np.ndarray]:
    """Read what :func:`write_part` has written.

    Raises:
        RunError: The file is damaged.
        OSError: It cannot be read.
    """
    content = files.cat_file(path)
    if hashlib.sha256(content[:-DIGEST_BYTES]).digest() != content[-DIGEST_BYTES:]:
        raise RunError(f"{path}: a part is damaged: remove it, and score again")
    return dict(load(content[:-DIGEST_BYTES]))
