"""Scores of a store, shard by shard: each part is written once and whole, and all are put together at the end."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import fsspec
import numpy as np

from sciflow.arguments import plain
from sciflow.data.place import require_apart
from sciflow.data.split import SPLITS
from sciflow.data.store import Store, open_store
from sciflow.density import Density
from sciflow.errors import ConfigError, RunError
from sciflow.families import load as load_density
from sciflow.kernels import repeated
from sciflow.scoring.output import Output, reported
from sciflow.scoring.part_file import read_part, write_part
from sciflow.scoring.process import one_thread, within_memory
from sciflow.scoring.score import (
    BATCH_SIZE,
    FIELDS,
    NO_SPLIT,
    known_by,
    labelled,
    score_rows,
    split_attributes,
)
from sciflow.training.method import kind_of_likelihood
from sciflow.training.run import require_ended

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["Scoring"]


@dataclass(frozen=True)
class Scoring:
    """A model, a store, where its scores go, and how log p is to be known; :meth:`of` makes one.

    Parts lie beside the output until they are put together: ``OUT.parts/train-00003.safetensors`` is the third training
    shard. A part that is there is whole; a scoring that was interrupted makes the missing ones. Parts and output may be
    on any file system that fsspec knows.

    Attributes:
        model: Folder of the model or its run.
        store: Path of the store.
        out: Zarr store to be written: a path, or a URL.
        batch_size: Events at a time; part of what the bytes depend on.
        method: Of the density's likelihood; None for the family's own.
        options: Of the method.
        kind: How log p will be known, see :attr:`sciflow.likelihood.Likelihood.kind`.
        sources: Hash of model and store; what has taken their place meanwhile is not mixed in.
    """

    model: str
    store: str
    out: str
    batch_size: int
    method: str | None
    options: Mapping[str, Any]
    kind: str
    sources: str

    @classmethod
    def of(
        cls,
        model: str,
        store: str,
        out: str,
        *,
        batch_size: int = BATCH_SIZE,
        method: str | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> Scoring:
        """Check all that can be checked before anything is scored.

        Args:
            model: Folder of the model or its run.
            store: Path of the store.
            out: Zarr store to be written: a path, or a URL.
            batch_size: Events at a time.
            method: Of the density's likelihood; None for the family's own.
            options: Of the method.

        Raises:
            ConfigError: The density has no such method or option, or the batch size is below 1.
            StoreError: The store cannot be read, or the output would lie in it or in the model.
            LayoutError: Model and store do not fit.
            ModelFileError: The model cannot be read.
            RunError: The model's training has not ended.
        """
        require_ended(Path(model))
        opened, density = open_store(store), load_density(model)
        # Beside the model, in the folder of its run, is a good place.
        for source in (store, _description(model).parent):
            require_apart(out, source)
        opened.layout.require_fits(density.layout, density.event_shape, store, "the model")
        if batch_size < 1:
            raise ConfigError(f"batch_size {batch_size}: 1 event or more at a time")
        kind = kind_of_likelihood(density, opened.context_shape, method, options or {})
        options = {name: plain(f"option {name}", value) for name, value in (options or {}).items()}
        if "seed" in options and options["seed"] is None:
            raise ConfigError("option seed: give a number: what is interrupted goes on with the same draws")
        return cls(model, store, out, batch_size, method, options, kind, _sources(opened, model))

    def begin(self, overwrite: bool) -> list[tuple[str, int]] | None:
        """Return the shards that are still to be scored; None where the output is there already.

        Raises:
            StoreError: Another output is there, or something else.
            RunError: The folder of parts cannot be written.
        """
        output = self._output
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
        shards = [(record.split, record.number) for record in open_store(self.store).manifest.shards]
        return [shard for shard in shards if self._part(*shard).rpartition("/")[2] not in there]

    def score_shard(self, split: str, number: int, device: str = "cpu") -> int:
        """Score one shard and write its part; returns its number of events.

        Raises:
            StoreError: The shard is missing or damaged.
            RunError: It does not fit into memory, or its part cannot be written; or model or store are others by now.
        """
        store, density = _opened(self.store, self.model, device, self.sources)
        rows = getattr(store, split)
        start, stop = rows.shard_range(number)
        context = None if store.context_shape is None else rows.context[start:stop]
        too_many = (
            f"{self.batch_size:,} events at a time do not fit into memory: lower batch_size (--batch-size); the "
            "scoring then begins anew"
        )
        # What is compiled, and with it the last digits, must not depend on which shards are left to be scored.
        with one_thread(), within_memory(too_many), repeated(len(store.manifest.shards)):
            fields, _ = score_rows(density, rows[start:stop], context, self.method, self.options, self.batch_size)
        with reported(self.out):
            write_part(self._files, self._part(split, number), {**fields, "index": rows.grid_index(start, stop)})
        return int(stop - start)

    def finish(self) -> None:
        """Put the parts together over the store's own coordinates, and remove them.

        Raises:
            RunError: A part is damaged, or the output cannot be written; what is scored is kept. Or model or store are
                others by now.
        """
        store, output = open_store(self.store), self._output
        _require_same(store, self.model, self.sources)
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
        dims = tuple(dim.name for dim in store.layout.sample_dims)
        attributes = {**known_by(self.kind, self.method, self.options), "unfinished": output.token}
        coordinates: xr.Dataset | None = store.coordinates
        with output.laid_out():
            # One variable at a time: memory is bounded by the largest of them.
            for name in (*FIELDS, "split"):
                dtype, empty = FIELDS[name][:2] if name in FIELDS else ("int8", NO_SPLIT)
                grid = np.full(store.layout.num_grid_events, empty, dtype)
                for record in store.manifest.shards:
                    part = read_part(self._files, self._part(record.split, record.number))
                    grid[part["index"]] = part[name] if name in FIELDS else SPLITS.index(record.split)
                array = {name: grid.reshape(store.layout.grid_shape)}
                dataset = labelled(array, dims, coordinates, attributes)
                if name == "split":
                    dataset[name].attrs = split_attributes()
                dataset.to_zarr(output.target, mode="a", zarr_format=3, consolidated=False)
                coordinates = None
            output.opened().attrs.update({"model": self._weights(), "store": store.fingerprint})

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

    @property
    def _output(self) -> Output:
        return Output(self.out, _hash([self.sources, self.batch_size, self.method, self.options]), name="scoring")

    def _weights(self) -> str:
        return str(json.loads(_description(self.model).read_text())["weights"]["sha256"])


@lru_cache(maxsize=1)
def _opened(store: str, model: str, device: str, sources: str) -> tuple[Store, Density]:
    """A process's store and density, kept from one shard to the next."""
    opened, density = open_store(store), load_density(model, device)
    _require_same(opened, model, sources)
    return opened, density


def _require_same(store: Store, model: str, sources: str) -> None:
    if _sources(store, model) != sources:
        raise RunError(f"{model} or {store.path}: another has taken its place meanwhile: run the same command again")


def _sources(store: Store, model: str) -> str:
    description = hashlib.sha256(_description(model).read_bytes()).hexdigest()
    # The fingerprint is of the events; where they stand, and what the places are called, is in the files' hashes.
    return _hash([description, store.fingerprint, store.layout.to_json(), store.manifest.files])


def _description(model: str) -> Path:
    folder = Path(model)
    return next(file for file in (folder / "model.json", folder / "model" / "model.json") if file.exists())


def _hash(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
