"""What is stored somewhere, as hashes: two places that hold the same have the same ones."""

from __future__ import annotations

import hashlib
from pathlib import Path

import fsspec

__all__ = ["contents", "contents_at"]


def contents(folder: Path) -> dict[str, str]:
    """Every file with its hash."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): _hash(path.read_bytes()) for path in files}


def contents_at(url: str) -> dict[str, str]:
    """Every object under a URL of fsspec's memory, with its hash."""
    files = fsspec.filesystem("memory")
    root = fsspec.core.url_to_fs(url)[1]
    return {name.removeprefix(f"{root}/"): _hash(files.cat_file(name)) for name in files.find(root)}


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
