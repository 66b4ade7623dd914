"""Which files results are made of: a chunk that is gone would be read as rows that were never judged."""

from __future__ import annotations

import json
import os
from pathlib import Path

from sciflow.errors import StoreError, first_line

__all__ = ["require_whole", "write_listing"]

_LISTING, _RESULTS = "files.json", "results.zarr"


def write_listing(version: Path) -> None:
    """Write down the files of a version's results, before readers find it.

    Args:
        version: Its folder, whole but for this.
    """
    (version / _LISTING).write_text(json.dumps(sorted(_files(version / _RESULTS)), indent=0) + "\n")


def require_whole(version: Path) -> None:
    """Refuse results of which a file is gone, before they are carried on. Names are compared, and nothing is read.

    Args:
        version: Its folder. One without a list, as earlier versions wrote it, is taken as it is.

    Raises:
        StoreError: Names the first file, and says what to do.
    """
    listing, results = version / _LISTING, version / _RESULTS
    try:
        names = json.loads(listing.read_text())
        gone = sorted(set(names) - _files(results))
    except FileNotFoundError:
        return
    except OSError as error:
        raise StoreError(f"{error.filename or version}: cannot be read: {error.strerror or error}") from None
    except (ValueError, TypeError) as error:
        raise StoreError(
            f"{listing}: damaged ({first_line(error)}): restore it, or choose another detection.out"
        ) from None
    if gone:
        what = f"{gone[0]} is gone" if len(gone) == 1 else f"{gone[0]} and {len(gone) - 1:,} more files are gone"
        raise StoreError(
            f"{results}: damaged: {what}, and would be read as rows that nobody has judged: restore what is gone, or "
            "choose another detection.out, where all is judged anew"
        )


def _files(folder: Path) -> set[str]:
    """Paths of all files below a folder, from there."""
    found: set[str] = set()
    for place, _, names in os.walk(folder):
        beginning = os.path.relpath(place, folder).replace(os.sep, "/")
        found.update(name if beginning == "." else f"{beginning}/{name}" for name in names)
    return found
