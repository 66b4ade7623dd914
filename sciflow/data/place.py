"""Outputs that appear under their name whole, or not at all."""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path

import zarr

from sciflow.errors import StoreError

__all__ = ["already_there", "consolidate", "put_in_place", "require_apart", "require_free"]


def already_there(place: str | Path, what: str = "") -> StoreError:
    """Return the error of a place that is taken, and may be replaced by who says so.

    Args:
        place: A path or a URL.
        what: Is there, where that is known.
    """
    return StoreError(
        f"{place}: already there{what}; choose another name, or replace it by overwrite=True (--overwrite)"
    )


def require_free(path: Path, overwrite: bool) -> None:
    """Refuse a place that is taken; with ``overwrite``, a Zarr store may be replaced, and nothing else.

    Raises:
        StoreError: Something stands there that is not to be replaced.
    """
    if not path.exists():
        return
    if not overwrite:
        raise already_there(path)
    if not (path / "zarr.json").exists():
        raise StoreError(f"{path}: not a Zarr store, so it is not replaced: choose another name")


def require_apart(out: str | Path, source: str | Path) -> None:
    """Refuse an output that is one of the things it is made from, lies in it, or holds it.

    Raises:
        StoreError: They are not apart.
    """
    if "://" in f"{out}{source}":
        apart = str(out).rstrip("/") != str(source).rstrip("/")
    else:
        mine, its = Path(out).resolve(), Path(source).resolve()
        apart = mine not in (its, *its.parents) and its not in mine.parents
    if not apart:
        raise StoreError(f"{out}: is {source}, which is read, or lies in it or around it: choose another place")


def consolidate(path: str | Path) -> None:
    """Gather the metadata of a finished store, so that xarray opens it without a word."""
    with warnings.catch_warnings():
        # That it is not part of Zarr v3 yet; those who do not know it read the arrays' own metadata.
        warnings.filterwarnings("ignore", "Consolidated metadata")
        zarr.consolidate_metadata(str(path), zarr_format=3)


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
