"""Checkpoints that are whole or not there, hashed, without pickle; the newest good one is used."""

from __future__ import annotations

import hashlib
import json
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from sciflow.errors import CheckpointError
from sciflow.files import write_to_disk

__all__ = ["Checkpoint", "newest", "optimizer_tensors", "restore_optimizer", "verify", "write"]

KEEP = 3

Found = TypeVar("Found")


@dataclass(frozen=True)
class Checkpoint:
    """All that a training run needs to go on as if it had never stopped.

    Attributes:
        step: Steps done.
        tensors: Weights, best weights and the optimiser's moments, by name.
        state: The rest, as JSON can hold it.
    """

    step: int
    tensors: dict[str, Tensor]
    state: dict[str, Any]

    def part(self, prefix: str) -> dict[str, Tensor]:
        """Tensors whose names begin with ``prefix.``, without it."""
        return {name[len(prefix) + 1 :]: t for name, t in self.tensors.items() if name.startswith(f"{prefix}.")}


def write(folder: Path, checkpoint: Checkpoint) -> Path:
    """Write a checkpoint beside the others, rename it into place, and remove all but the newest few.

    Raises:
        CheckpointError: It cannot be written; those that were there are whole.
    """
    path = folder / _name(checkpoint.step)
    partial = folder / f".{path.name}.partial"
    try:
        # Of a process that was killed while it wrote, too.
        for left in folder.glob(".step-*.partial"):
            shutil.rmtree(left, ignore_errors=True)
        partial.mkdir(parents=True)
        content = save_tensors({name: t.detach().cpu().contiguous() for name, t in checkpoint.tensors.items()})
        write_to_disk(partial / "state.safetensors", content)
        digest = _digest(hashlib.sha256(content), checkpoint.step, checkpoint.state)
        record = {"step": checkpoint.step, "sha256": digest, "state": checkpoint.state}
        write_to_disk(partial / "state.json", json.dumps(record).encode())
        if path.exists():
            shutil.rmtree(path)
        partial.rename(path)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise CheckpointError(
            f"{path}: cannot be written: {error.strerror or error}; earlier checkpoints are whole: "
            "make room or mend it, and run the same command again"
        ) from None
    for old in _all(folder)[:-KEEP]:
        shutil.rmtree(old, ignore_errors=True)
    return path


def newest(folder: Path) -> Checkpoint | None:
    """Read the newest checkpoint that is whole; None where there has been none yet.

    Damaged ones are passed over with a warning.

    Raises:
        CheckpointError: There are checkpoints, and all are damaged: nothing begins anew unless it is asked to.
    """
    return _newest(folder, _read)


def verify(folder: Path) -> Path | None:
    """Return the path of what :func:`newest` reads, without loading it.

    Raises:
        CheckpointError: There are checkpoints, and all are damaged.
    """

    def verified(path: Path) -> Path:
        with _damage_reported(path):
            record = json.loads((path / "state.json").read_bytes())
            with (path / "state.safetensors").open("rb") as file:
                _require_hash(path, hashlib.file_digest(file, "sha256"), record)
        return path

    return _newest(folder, verified)


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimiser's state as named tensors."""
    return {
        f"optimizer.{index}.{name}": torch.as_tensor(value)
        for index, moments in optimizer.state_dict()["state"].items()
        for name, value in moments.items()
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Undo :func:`optimizer_tensors`."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        index, moment = name.split(".", 1)
        state.setdefault(int(index), {})[moment] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _all(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("step-*") if path.is_dir()) if folder.is_dir() else []


def _newest(folder: Path, read: Callable[[Path], Found]) -> Found | None:
    damaged: list[str] = []
    for path in reversed(_all(folder)):
        try:
            found = read(path)
        except CheckpointError as error:
            damaged.append(str(error))
            continue
        for problem in damaged:
            warnings.warn(f"{problem}; going on from {path.name}", stacklevel=3)
        return found
    if damaged:
        raise CheckpointError(
            f"no checkpoint can be read: {'; '.join(damaged)}. Restore one of them, or begin anew with --overwrite"
        )
    return None


def _read(path: Path) -> Checkpoint:
    with _damage_reported(path):
        record = json.loads((path / "state.json").read_bytes())
        content = (path / "state.safetensors").read_bytes()
        _require_hash(path, hashlib.sha256(content), record)
        return Checkpoint(record["step"], load_tensors(content), record["state"])


def _require_hash(path: Path, tensors: hashlib._Hash, record: dict[str, Any]) -> None:
    if record["sha256"] != _digest(tensors, record["step"], record["state"]):
        raise CheckpointError(f"{path}: damaged: it is not what was written")


def _digest(tensors: hashlib._Hash, step: int, state: dict[str, Any]) -> str:
    """Hash of the tensors' file and all that goes with it: an altered step would shift the order of the rows."""
    tensors.update(json.dumps([step, state]).encode())
    return tensors.hexdigest()


@contextmanager
def _damage_reported(path: Path) -> Iterator[None]:
    try:
        yield
    except CheckpointError:
        raise
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: damaged: {error}") from None


def _name(step: int) -> str:
    return f"step-{step:09d}"
