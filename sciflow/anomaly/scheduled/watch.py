"""Stores that are watched: which there are, what they hold, and whether it goes together."""

from __future__ import annotations

import glob
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import fsspec
import zarr

from sciflow.anomaly.scheduled.axis import Stretch
from sciflow.anomaly.scheduled.grid import Grid, along
from sciflow.data.store import Store, is_url, open_store
from sciflow.errors import ConfigError, StoreError, first_line

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["Opened", "manifest_hash", "open_watched", "watched"]


def watched(patterns: Sequence[str]) -> dict[str, str]:
    """Paths of the stores that patterns mean, by name, in the order of their names.

    Args:
        patterns: Paths and URLs; with ``*`` and the like, of as many stores as there are.

    Raises:
        ConfigError: Two of them have one name.
        StoreError: What is at a URL cannot be listed.
    """
    found: dict[str, str] = {}
    for pattern in patterns:
        for path in _matching(pattern):
            name = path.rstrip("/").rpartition("/")[2]
            if found.setdefault(name, path) != path:
                raise ConfigError(f"detection.stores: {found[name]} and {path} have one name: rename one of them")
    return dict(sorted(found.items()))


def _matching(pattern: str) -> list[str]:
    pattern = pattern.removeprefix("file://")
    if not glob.has_magic(pattern):
        return [pattern if is_url(pattern) else str(Path(pattern).absolute())]
    if not is_url(pattern):
        return sorted(str(Path(path).absolute()) for path in glob.glob(pattern, recursive=True))
    try:
        files, root = fsspec.core.url_to_fs(pattern)
        return sorted(files.unstrip_protocol(path) for path in files.glob(root))
    except Exception as error:
        # Whatever the package for such URLs raises.
        raise StoreError(f"{pattern}: cannot be listed: {type(error).__name__}: {first_line(error)}") from None


def manifest_hash(path: str) -> str:
    """Return what a store's manifest says of itself: another one, and something has changed.

    Raises:
        StoreError: There is no store, or it is incomplete.
    """
    try:
        return str(zarr.open_group(path, path="manifest", mode="r").attrs["sha256"])
    except Exception:
        # Whatever it is: opening the store says it in words.
        manifest = open_store(path, whole=False).manifest
        return manifest.to_json()["sha256"]


@dataclass(frozen=True, eq=False)
class Opened:
    """A store that is watched, with what its results need to be put together with others.

    Attributes:
        name: Of the store; its results are known by it.
        store: It, of which shards may be missing.
        manifest: Hash of its manifest.
        grid: Of its results.
        places: Hash of its layout and coordinates.
        along: Coordinates along the dimension that grows.
    """

    name: str
    store: Store
    manifest: str
    grid: Grid
    places: str
    along: Mapping[str, xr.Variable]

    def stretch(self, code: int) -> Stretch:
        """Its positions along the dimension that grows."""
        return Stretch(code, self.store.layout.grid_shape[0], self.along)


@lru_cache(maxsize=64)
def open_watched(name: str, path: str, manifest: str) -> Opened:
    """Open a store, and keep it for the next question.

    Args:
        name: Of the store.
        path: Where it is.
        manifest: Hash of the manifest that it is to have.

    Raises:
        StoreError: It cannot be read, or has been written anew meanwhile.
        LayoutError: It cannot be watched.
    """
    store = open_store(path, whole=False)
    if store.manifest.to_json()["sha256"] != manifest:
        raise StoreError(f"{path}: was written anew meanwhile: it is left for the next run")
    places = {key: value for key, value in store.manifest.files.items() if key.startswith("coordinates/")}
    text = json.dumps([store.layout.to_json(), places], sort_keys=True)
    coordinates = store.coordinates
    grid = Grid.of(store.layout, coordinates)
    return Opened(
        name, store, manifest, grid, hashlib.sha256(text.encode()).hexdigest(), along(grid.dims[0], coordinates)
    )
