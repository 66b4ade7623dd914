"""The files of a store: what they are called, and whether they are those that were written."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

import zarr
from zarr.abc.store import RangeByteRequest, SuffixByteRequest
from zarr.core.buffer import cpu, default_buffer_prototype
from zarr.core.sync import sync
from zarr.storage import LocalStore

from sciflow.data.layout import Layout
from sciflow.data.split import SPLITS
from sciflow.errors import StoreError
from sciflow.files import written_whole

__all__ = ["hash_files", "read_bytes", "require_files", "shard_keys", "write_file"]

# Everything in these groups is small, and read whole.
SMALL_GROUPS = ("coordinates", "statistics")


def shard_keys(layout: Layout, split: str, number: int) -> dict[str, str]:
    """Where the arrays of a shard lie, by array; events come first.

    Example:
        >>> shard_keys(Layout(("x",), ("",), (), ()), "train", 3)
        {'events': 'train/events/c/3/0', 'index': 'train/index/c/3'}
    """
    keys = {
        "events": "/".join([split, "events", "c", str(number), *["0"] * len(layout.event_shape)]),
        "index": f"{split}/index/c/{number}",
    }
    return keys | ({"context": f"{split}/context/c/{number}/0"} if layout.context else {})


def write_file(group: zarr.Group, key: str, pieces: Iterable[bytes]) -> None:
    """Write a file of a store, which appears whole or not at all."""
    place = group.store_path / key
    if not isinstance(place.store, LocalStore):
        # An object store makes an object whole of one request.
        sync(place.set(cpu.Buffer.from_bytes(b"".join(pieces))))
        return
    file = Path(place.store.root, place.path)
    file.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(file) as beside, beside.open("wb") as stream:
        stream.writelines(pieces)


def read_bytes(group: zarr.Group, key: str, start: int, stop: int | None = None) -> bytes:
    """Read a part of a file of a store; a negative ``start`` counts from its end.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It has fewer bytes.
    """
    place = group.store_path / key
    size = -start if stop is None else stop - start
    if isinstance(place.store, LocalStore):
        with Path(place.store.root, place.path).open("rb", buffering=0) as file:
            length = file.seek(0, os.SEEK_END)
            file.seek(max(0, start if start >= 0 else length + start))
            content = file.read(size)
    else:
        part = SuffixByteRequest(size) if stop is None else RangeByteRequest(start, stop)
        buffer = sync(place.get(default_buffer_prototype(), part))
        if buffer is None:
            raise FileNotFoundError(key)
        content = buffer.to_bytes()
    if len(content) != size:
        raise ValueError("it is cut short")
    return content


def hash_files(group: zarr.Group) -> dict[str, str]:
    """SHA-256 of the files of a finished store, by key; its shards are left out, their chunks have checksums."""
    keys = ["zarr.json"]
    for name in (*SPLITS, *SMALL_GROUPS):
        found = sorted(sync(_list(group, name)))
        keys += [key for key in found if name in SMALL_GROUPS or key.endswith("/zarr.json")]
    return {key: _hash(group, key) or "" for key in keys}


def require_files(group: zarr.Group, files: dict[str, str], prefixes: tuple[str, ...], where: str) -> None:
    """Check that files are what they were when the store was written.

    Args:
        group: The store.
        files: Their hashes, by key.
        prefixes: Keys are checked that begin so.
        where: What to call the store.

    Raises:
        StoreError: A file is missing, or another than was written.
    """
    for key, expected in files.items():
        if key.startswith(prefixes):
            found = _hash(group, key)
            if found != expected:
                state = "missing" if found is None else "damaged, or was changed"
                raise StoreError(f"{where}: {key} is {state}: restore it, or shard the source again")


def _hash(group: zarr.Group, key: str) -> str | None:
    content = sync((group.store_path / key).get(default_buffer_prototype()))
    return None if content is None else hashlib.sha256(content.to_bytes()).hexdigest()


async def _list(group: zarr.Group, name: str) -> list[str]:
    place = group.store_path / name
    strip = len(group.store_path.path) + 1 if group.store_path.path else 0
    return [key[strip:] async for key in place.store.list_prefix(place.path)]
