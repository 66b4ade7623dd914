"""An output that is made in many steps: whole, or known to be unfinished."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
import zarr

from sciflow.data.place import consolidate, put_in_place
from sciflow.data.store import is_url
from sciflow.errors import RunError, SciflowError, StoreError

__all__ = ["Output"]


@dataclass(frozen=True)
class Output:
    """A Zarr store that is being made, on any file system that fsspec knows.

    On a file system of this machine it is ``PLACE.partial`` until it is whole. Elsewhere nothing can be renamed: until
    it is whole, its attribute ``unfinished`` stands where ``token`` will be.

    Attributes:
        place: Where it will be: a path, or a URL.
        token: Hash of all that it depends on; what was made of something else is not mixed in.
    """

    place: str
    token: str

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
        if found.get("token") == self.token and not overwrite:
            if self.target != self.place:
                self._remove(self.target)
            return True
        if not overwrite and found.get("unfinished") != self.token:
            raise StoreError(
                f"{self.place}: already there, with other contents; choose another name, or replace it by --overwrite"
            )
        if not self._files.exists(f"{self._called(self.place)}/zarr.json"):
            raise StoreError(f"{self.place}: not a Zarr store, so it is not replaced: choose another name")
        if self.target == self.place and "token" in found:
            self._remove(self.place)
        return False

    def is_begun(self) -> bool:
        """Whether some of it is there, from a process that ended before it was done."""
        found = self._attributes(self.target)
        begun = self.token in (found.get("unfinished"), found.get("token"))
        if begun and self.target != self.place:
            for file in Path(self.target).rglob("*.partial"):
                file.unlink()  # of a process that was killed
        return begun

    @contextmanager
    def laid_out(self) -> Iterator[zarr.Group]:
        """Begin anew, with an empty group to make arrays in; the token comes last, when all of them are there."""
        self._remove(self.target)
        group = zarr.open_group(self.target, mode="w", zarr_format=3)
        yield group
        group.attrs["unfinished"] = self.token

    def opened(self) -> zarr.Group:
        """What is there of it, to be written to."""
        return zarr.open_group(self.target, mode="r+")

    def finish(self) -> None:
        """Give it its name; all of it is there."""
        group = self.opened()
        attributes = dict(group.attrs)
        if attributes.pop("unfinished", None) is not None:
            group.attrs.put({**attributes, "token": self.token})
        consolidate(self.target)
        if self.target != self.place:
            put_in_place(Path(self.target), Path(self.place))

    @contextmanager
    def reported(self) -> Iterator[None]:
        """Turn an error of the file system into one of ours.

        Raises:
            RunError: It cannot be written; the same command will go on.
        """
        try:
            yield
        except SciflowError:
            raise
        except OSError as error:
            raise RunError(
                f"{self.place}: cannot be written: {error.strerror or error}; what is done is kept: "
                "make room or mend it, and run the same command again"
            ) from None

    @property
    def _files(self) -> fsspec.AbstractFileSystem:
        return fsspec.core.url_to_fs(self.place)[0]

    def _called(self, place: str) -> str:
        """A place, as its file system calls it."""
        return str(fsspec.core.url_to_fs(place)[1])

    def _remove(self, place: str) -> None:
        if self._files.exists(self._called(place)):
            self._files.rm(self._called(place), recursive=True)

    def _attributes(self, place: str) -> dict[str, Any]:
        """Of what is there; none where it is nothing, or damaged."""
        try:
            return dict(zarr.open_group(place, mode="r").attrs)
        except (OSError, ValueError, KeyError, TypeError):
            return {}
