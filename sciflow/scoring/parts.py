"""Scores of a store, shard by shard: each part is written once and whole, and all are put together at the end."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from sciflow.data.split import SPLITS
from sciflow.data.store import Store, open_store
from sciflow.density import Density
from sciflow.errors import RunError, SciflowError, StoreError
from sciflow.families import load
from sciflow.scoring.score import FIELDS, NO_SPLIT, labelled, require_layout, score_rows, split_attributes
from sciflow.training.run import require_ended

__all__ = ["Scoring"]


@dataclass(frozen=True)
class Scoring:
    """A model, a store, and where its scores go.

    Parts lie beside the output until they are put together: ``OUT.parts/train-00003.safetensors`` is the third training
    shard. A part that is there is whole; a scoring that was interrupted makes the missing ones.

    Attributes:
        model: Folder of the model or its run.
        store: Path of the store.
        out: Zarr store to be written.
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
        store, density = open_store(self.store), load(self.model)
        require_layout(density, store.layout, self.store)
        if Path(self.out).exists():
            if not (Path(self.out) / "zarr.json").exists():
                raise StoreError(f"{self.out}: not a Zarr store, so it is not replaced: choose another name")
            if self._is_done(store):
                shutil.rmtree(self._folder, ignore_errors=True)
                if not overwrite:
                    return None
            elif not overwrite:
                raise StoreError(
                    f"{self.out}: already there, with other contents; choose another name, or replace it by --overwrite"
                )
        note = json.dumps({"token": self._token(store)})
        try:
            if not self._note.exists() or self._note.read_text() != note:
                shutil.rmtree(self._folder, ignore_errors=True)
                self._folder.mkdir(parents=True)
                self._note.write_text(note)
        except OSError as error:
            raise RunError(f"{self._folder}: cannot be written: {error.strerror or error}") from None
        shards = [(record.split, record.number) for record in store.manifest.shards]
        return [shard for shard in shards if not self._part(*shard).exists()]

    def score_shard(self, split: str, number: int, device: str = "cpu") -> int:
        """Score one shard and write its part; returns its number of events."""
        store, density = _opened(self.store, self.model, device)
        rows = getattr(store, split)
        start, stop = rows.shard_range(number)
        context = None if store.context_shape is None else rows.context[start:stop]
        fields, _ = score_rows(density, rows[start:stop], context, None, self.batch_size)
        part = self._part(split, number)
        partial = part.with_name(f".{part.name}.{os.getpid()}.partial")
        try:
            save_file({**fields, "index": rows.grid_index(start, stop)}, partial)
            os.replace(partial, part)
        except OSError as error:
            partial.unlink(missing_ok=True)
            raise RunError(
                f"{part}: cannot be written: {error.strerror or error}; what is scored is kept: "
                "make room or mend it, and run the same command again"
            ) from None
        return int(stop - start)

    def finish(self) -> None:
        """Put the parts together over the store's own coordinates; the output appears whole, and the parts go.

        Raises:
            RunError: A part is damaged, or the output cannot be written; what is scored is kept.
        """
        try:
            self._put_together()
        except SafetensorError as error:
            raise RunError(f"{self._folder}: a part is damaged ({error}): remove the folder, and score again") from None
        except OSError as error:
            if isinstance(error, SciflowError):
                raise
            shutil.rmtree(f"{self.out}.partial", ignore_errors=True)
            raise RunError(
                f"{self.out}: cannot be written: {error.strerror or error}; what is scored is kept: "
                "make room or mend it, and run the same command again"
            ) from None

    def _put_together(self) -> None:
        store = open_store(self.store)
        density = load(self.model)
        dims = tuple(dim.name for dim in store.layout.sample_dims)
        partial = Path(f"{self.out}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        kind = density.likelihood(np.zeros((0, *store.event_shape)), _no_context(store)).kind
        attrs = {"model": self._weights(), "store": store.fingerprint, "scoring": self._token(store)}
        # One variable at a time: memory is bounded by the largest of them.
        for name in (*FIELDS, "split"):
            dtype, empty = FIELDS[name][:2] if name in FIELDS else ("int8", NO_SPLIT)
            grid = np.full(store.layout.num_grid_events, empty, dtype)
            for record in store.manifest.shards:
                part = load_file(self._part(record.split, record.number))
                grid[part["index"]] = part[name] if name in FIELDS else SPLITS.index(record.split)
            array = {name: grid.reshape(store.layout.grid_shape)}
            dataset = labelled(array, dims, store.coordinates if not partial.exists() else None, kind, **attrs)
            if name == "split":
                dataset[name].attrs = split_attributes()
            dataset.to_zarr(partial, mode="a", zarr_format=3, consolidated=False)
        old = Path(f"{self.out}.old")
        shutil.rmtree(old, ignore_errors=True)
        if Path(self.out).exists():
            Path(self.out).rename(old)
        partial.rename(self.out)
        shutil.rmtree(old, ignore_errors=True)
        shutil.rmtree(self._folder)

    @property
    def _folder(self) -> Path:
        return Path(f"{self.out}.parts")

    @property
    def _note(self) -> Path:
        return self._folder / "scoring.json"

    def _part(self, split: str, number: int) -> Path:
        return self._folder / f"{split}-{number:05d}.safetensors"

    def _token(self, store: Store) -> str:
        """What the parts depend on; parts of another model or store are not mixed in."""
        model = hashlib.sha256(self._description.read_bytes()).hexdigest()
        return hashlib.sha256(json.dumps([model, store.fingerprint, self.batch_size]).encode()).hexdigest()

    def _weights(self) -> str:
        return str(json.loads(self._description.read_text())["weights"]["sha256"])

    @property
    def _description(self) -> Path:
        folder = Path(self.model)
        return next(f for f in (folder / "model.json", folder / "model" / "model.json") if f.exists())

    def _is_done(self, store: Store) -> bool:
        try:
            attributes = json.loads((Path(self.out) / "zarr.json").read_text())["attributes"]
        except (OSError, ValueError, KeyError):
            return False
        return bool(attributes.get("scoring") == self._token(store))


def _no_context(store: Store) -> np.ndarray | None:
    return None if store.context_shape is None else np.zeros((0, *store.context_shape))


@lru_cache(maxsize=1)
def _opened(store: str, model: str, device: str) -> tuple[Store, Density]:
    """A worker's store and density, kept from one shard to the next."""
    return open_store(store), load(model, device)
