"""Scores of a store, shard by shard: each part is written once and whole, and all are put together at the end."""

from __future__ import annotations

import hashlib
import json
import os
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import fsspec
import numpy as np
from safetensors.numpy import load, save

from sciflow.data.place import require_apart
from sciflow.data.split import SPLITS
from sciflow.data.store import Store, open_store
from sciflow.density import Density
from sciflow.errors import RunError
from sciflow.families import load as load_density
from sciflow.kernels import repeated
from sciflow.scoring.output import Output, reported
from sciflow.scoring.score import FIELDS, NO_SPLIT, labelled, require_layout, score_rows, split_attributes
from sciflow.training.run import require_ended

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["Scoring"]

DIGEST_BYTES = hashlib.sha256().digest_size


@dataclass(frozen=True)
class Scoring:
    """A model, a store, and where its scores go.

    Parts lie beside the output until they are put together: ``OUT.parts/train-00003.safetensors`` is the third training
    shard. A part that is there is whole; a scoring that was interrupted makes the missing ones. Parts and output may be
    on any file system that fsspec knows.

    Attributes:
        model: Folder of the model or its run.
        store: Path of the store.
        out: Zarr store to be written: a path, or a URL.
        batch_size: Events at a time; part of what the bytes depend on.
    """

    model: str
    store: str
    out: str
    batch_size: int

    def begin(self, overwrite: bool) -> list[tuple[str, int]] | None:
        """Check everything, and return the shards that are still to be scored; None where the output is there already.

        Raises:
            StoreError: The output is of another model or store, or the store cannot be read.
            LayoutError: Model and store do not fit.
            ModelFileError: The model cannot be read.
            RunError: The model's training has not ended, or the folder of parts cannot be written.
        """
        require_ended(Path(self.model))
        store, density = open_store(self.store), load_density(self.model)
        # Beside the model, in the folder of its run, is a good place.
        for source in (self.store, self._description.parent):
            require_apart(self.out, source)
        require_layout(density, store.layout, self.store)
        output = self._output(store)
        with reported(self.out):
            if output.is_done(overwrite):
                self._remove_parts()
                return None
            note = json.dumps({"token": output.token}).encode()
            if not self._files.exists(self._note) or self._files.cat_file(self._note) != note:
                self._remove_parts()
                self._files.makedirs(self._folder)
                self._files.pipe_file(self._note, note)
            there = {name.rpartition("/")[2] for name in self._files.ls(self._folder, detail=False)}
        shards = [(record.split, record.number) for record in store.manifest.shards]
        return [shard for shard in shards if self._part(*shard).rpartition("/")[2] not in there]

    def score_shard(self, split: str, number: int, device: str = "cpu") -> int:
        """Score one shard and write its part; returns its number of events."""
        store, density = _opened(self.store, self.model, device)
        rows = getattr(store, split)
        start, stop = rows.shard_range(number)
        context = None if store.context_shape is None else rows.context[start:stop]
        # What is compiled, and with it the last digits, must not depend on which shards are left to be scored.
        with repeated(len(store.manifest.shards)):
            fields, _ = score_rows(density, rows[start:stop], context, None, self.batch_size)
        content = save({**fields, "index": rows.grid_index(start, stop)})
        content += hashlib.sha256(content).digest()
        part = self._part(split, number)
        partial = f"{self._folder}/.{split}-{number:05d}.{os.getpid()}.partial"
        with reported(self.out):
            try:
                self._files.pipe_file(partial, content)
                self._files.mv(partial, part)
            except OSError:
                with suppress(OSError):
                    self._files.rm(partial)
                raise
        return int(stop - start)

    def finish(self) -> None:
        """Put the parts together over the store's own coordinates, and remove them.

        Raises:
            RunError: A part is damaged, or the output cannot be written; what is scored is kept.
        """
        store = open_store(self.store)
        output = self._output(store)
        with reported(self.out):
            try:
                self._put_together(store, output)
            except OSError:
                # Parts are kept; what is half put together is not worth its place on a disk that is full.
                with suppress(OSError):
                    output.discard()
                raise
            output.finish()
            self._remove_parts()

    def _put_together(self, store: Store, output: Output) -> None:
        """Write all parts over the store's own coordinates."""
        density = load_density(self.model)
        dims = tuple(dim.name for dim in store.layout.sample_dims)
        kind = density.likelihood(np.zeros((0, *store.event_shape)), _no_context(store)).kind
        coordinates: xr.Dataset | None = store.coordinates
        with output.laid_out():
            # One variable at a time: memory is bounded by the largest of them.
            for name in (*FIELDS, "split"):
                dtype, empty = FIELDS[name][:2] if name in FIELDS else ("int8", NO_SPLIT)
                grid = np.full(store.layout.num_grid_events, empty, dtype)
                for record in store.manifest.shards:
                    part = self._read(record.split, record.number)
                    grid[part["index"]] = part[name] if name in FIELDS else SPLITS.index(record.split)
                array = {name: grid.reshape(store.layout.grid_shape)}
                dataset = labelled(array, dims, coordinates, kind, unfinished=output.token)
                if name == "split":
                    dataset[name].attrs = split_attributes()
                dataset.to_zarr(output.target, mode="a", zarr_format=3, consolidated=False)
                coordinates = None
            output.opened().attrs.update({"model": self._weights(), "store": store.fingerprint})

    def _read(self, split: str, number: int) -> dict[str, np.ndarray]:
        content = self._files.cat_file(self._part(split, number))
        if hashlib.sha256(content[:-DIGEST_BYTES]).digest() != content[-DIGEST_BYTES:]:
            raise RunError(f"{self._part(split, number)}: a part is damaged: remove it, and score again")
        return dict(load(content[:-DIGEST_BYTES]))

    @property
    def _files(self) -> fsspec.AbstractFileSystem:
        return fsspec.core.url_to_fs(self.out)[0]

    @property
    def _folder(self) -> str:
        """Of parts, as its file system calls it."""
        return f"{fsspec.core.url_to_fs(self.out)[1]}.parts"

    @property
    def _note(self) -> str:
        return f"{self._folder}/scoring.json"

    def _part(self, split: str, number: int) -> str:
        return f"{self._folder}/{split}-{number:05d}.safetensors"

    def _remove_parts(self) -> None:
        if self._files.exists(self._folder):
            self._files.rm(self._folder, recursive=True)

    def _output(self, store: Store) -> Output:
        model = hashlib.sha256(self._description.read_bytes()).hexdigest()
        # The fingerprint is of the events; where they stand, and what the places are called, is in the files' hashes.
        store_ = [store.fingerprint, store.layout.to_json(), store.manifest.files]
        token = hashlib.sha256(json.dumps([model, store_, self.batch_size], sort_keys=True).encode()).hexdigest()
        return Output(self.out, token, name="scoring")

    def _weights(self) -> str:
        return str(json.loads(self._description.read_text())["weights"]["sha256"])

    @property
    def _description(self) -> Path:
        folder = Path(self.model)
        return next(f for f in (folder / "model.json", folder / "model" / "model.json") if f.exists())


def _no_context(store: Store) -> np.ndarray | None:
    return None if store.context_shape is None else np.zeros((0, *store.context_shape))


@lru_cache(maxsize=1)
def _opened(store: str, model: str, device: str) -> tuple[Store, Density]:
    """A worker's store and density, kept from one shard to the next."""
    return open_store(store), load_density(model, device)
