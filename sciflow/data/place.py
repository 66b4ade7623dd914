"""Outputs that appear under their name whole, or not at all."""

from __future__ import annotations

import shutil
from pathlib import Path

from sciflow.errors import StoreError

__all__ = ["put_in_place", "require_free"]


def require_free(path: Path, overwrite: bool) -> None:
    """Refuse a place that is taken; with ``overwrite``, a Zarr store may be replaced, and nothing else.

    Raises:
        StoreError: Something stands there that is not to be replaced.
    """
    if not path.exists():
        return
    if not overwrite:
        raise StoreError(f"{path}: already there; choose another name, or replace it with --overwrite")
    if not (path / "zarr.json").exists():
        raise StoreError(f"{path}: not a Zarr store, so it is not replaced: choose another name")


def put_in_place(finished: Path, path: Path) -> None:
    """Give a finished folder its name; what stood there is removed only once it does.

    Raises:
        OSError: A folder cannot be renamed.
    """
    old = path.with_name(f".{path.name}.replaced")
    if path.exists():
        shutil.rmtree(old, ignore_errors=True)
        path.rename(old)
    finished.rename(path)
    shutil.rmtree(old, ignore_errors=True)
