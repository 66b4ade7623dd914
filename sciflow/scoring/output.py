"""An output that is made in many steps: whole, or known to be unfinished."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
import zarr

from sciflow.data.place import already_there, consolidate, put_in_place
from sciflow.data.store import is_url
from sciflow.errors import ConfigError, RunError, SciflowError, StoreError, first_line

__all__ = ["Output", "checked_place", "reported"]

# What stands for the token until every array has its place: nothing of that is worth keeping.
NOTHING_YET = ""


@dataclass(frozen=True)
class Output:
    """A Zarr store that is being made, on any file system that fsspec knows.

    On a file system of this machine it is ``PLACE.partial`` until it is whole. Elsewhere nothing can be renamed: until
    it is whole, its attribute ``unfinished`` stands where its name will be.

    Attributes:
        place: Where it will be: a path, or a URL; see :func:`checked_place`.
        token: Hash of all that it depends on; what was made of something else is not mixed in.
        name: Of the attribute that says so.
        unknown: What the token does not tell, in words: then whatever is there is taken for something else.
    """

    place: str
    token: str
    name: str = "token"
    unknown: str = ""

    @property
    def target(self) -> str:
        """Where it is written."""
        return self.place if is_url(self.place) else f"{self.place}.partial"

    def is_done(self, overwrite: bool) -> bool:
        """Say whether it is there already, and is not to be replaced; what has its place, and must not, is refused.

        Raises:
            StoreError: Another output is there, or something else.
        """
        if not self._files.exists(self._called(self.place)):
            return False
        found = self._attributes(self.place)
        if self._is_same(found.get(self.name)) and not overwrite:
            if self._is_beside:
                self.discard()
            return True
        if not {self.name, "unfinished"} & set(found):
            raise StoreError(
                f"{self.place}: something else is there, so it is not replaced: choose another name, or remove it"
            )
        unfinished = found.get("unfinished")
        if not (overwrite or unfinished == NOTHING_YET or self._is_same(unfinished)):
            doubt = f", and {self.unknown}, so it may be another"
            raise already_there(self.place, doubt if self.unknown else ", with other contents")
        return False

    def is_begun(self) -> bool:
        """Whether some of it is there, from a process that ended before it was done."""
        found = self._attributes(self.target)
        begun = self._is_same(found.get("unfinished")) or (self._is_beside and self._is_same(found.get(self.name)))
        if begun and self._is_beside:
            for file in Path(self.target).rglob("*.partial"):
                file.unlink()  # of a process that was killed
        return begun

    @contextmanager
    def laid_out(self) -> Iterator[zarr.Group]:
        """Begin anew, with an empty group to make arrays in; the token comes last, when all of them are there."""
        self.discard()
        group = zarr.open_group(self.target, mode="w", zarr_format=3, attributes={"unfinished": NOTHING_YET})
        yield group
        # Opened anew: the group's attributes may have been written by another hand meanwhile.
        self.opened().attrs["unfinished"] = self.token

    def opened(self) -> zarr.Group:
        """What is there of it, to be written to."""
        return zarr.open_group(self.target, mode="r+")

    def finish(self) -> None:
        """Give it its name; all of it is there."""
        group = self.opened()
        attributes = dict(group.attrs)
        if attributes.pop("unfinished", None) is not None:
            group.attrs.put({**attributes, self.name: self.token})
        consolidate(self.target)
        if self._is_beside:
            put_in_place(Path(self.target), Path(self.place))

    def discard(self) -> None:
        """Remove what is there of it."""
        if self._files.exists(self._called(self.target)):
            self._files.rm(self._called(self.target), recursive=True)

    @property
    def _files(self) -> fsspec.AbstractFileSystem:
        return fsspec.core.url_to_fs(self.place)[0]

    def _called(self, place: str) -> str:
        """A place, as its file system calls it."""
        return str(fsspec.core.url_to_fs(place)[1])

    @property
    def _is_beside(self) -> bool:
        """Whether it is written beside its place."""
        return self.target != self.place

    def _is_same(self, token: Any) -> bool:
        return token == self.token and not self.unknown

    def _attributes(self, place: str) -> dict[str, Any]:
        """Of what is there; none where it is nothing, or damaged."""
        try:
            return dict(zarr.open_group(place, mode="r").attrs)
        except (OSError, ValueError, KeyError, TypeError):
            return {}


@contextmanager
def reported(place: str) -> Iterator[None]:
    """Turn an error of the file system, while an output is written, into one of ours.

    Raises:
        RunError: It cannot be written; the same command will go on.
    """
    try:
        yield
    except SciflowError:
        raise
    except OSError as error:
        raise RunError(
            f"{place}: cannot be written: {error.strerror or error}; what is done is kept: "
            "make room or mend it, and run the same command again"
        ) from None


def checked_place(out: Any) -> str:
    """Return the place of an output as a text that ends in its name: a path, or a URL that fsspec knows.

    Raises:
        ConfigError: It is neither.

    Example:
        >>> checked_place("draws.zarr/"), checked_place("memory://bucket/draws.zarr/")
        ('draws.zarr', 'memory://bucket/draws.zarr')
    """
    place = os.fspath(out) if isinstance(out, os.PathLike) else out
    if not isinstance(place, str) or "\0" in place:
        raise ConfigError(f"out {out!r:.80}: a path or a URL expected, such as 'draws.zarr'")
    place = place.removeprefix("file://")
    if is_url(place):
        try:
            name = str(fsspec.core.url_to_fs(place)[1]).strip("/")
        except (ValueError, ImportError) as error:
            raise ConfigError(f"out {place}: fsspec cannot open such a URL: {first_line(error)}") from None
    else:
        name, place = Path(place).name, str(Path(place))
    if name in ("", ".."):
        raise ConfigError(f"out {str(out)!r}: names no folder of its own: end it with a name, such as 'draws.zarr'")
    return place.rstrip("/")
