"""Checkpoints that are whole or not there, hashed, without pickle; the newest good one is used."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from sciflow.errors import CheckpointError

__all__ = ["Checkpoint", "newest", "optimizer_tensors", "restore_optimizer", "write"]

KEEP = 3


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
    path = folder / f"step-{checkpoint.step:09d}"
    partial = folder / f".{path.name}.partial"
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        content = save_tensors({name: tensor.detach().cpu().contiguous() for name, tensor in checkpoint.tensors.items()})
        _write_synced(partial / "state.safetensors", content)
        record = {"step": checkpoint.step, "sha256": hashlib.sha256(content).hexdigest(), "state": checkpoint.state}
        _write_synced(partial / "state.json", json.dumps(record).encode())
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
    """Read the newest checkpoint that is whole; None where there is none. Damaged ones are passed over with a warning."""
    for path in reversed(_all(folder)):
        try:
            return _read(path)
        except CheckpointError as error:
            warnings.warn(f"{error}; going on from the one before it", stacklevel=2)
    return None


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


def _read(path: Path) -> Checkpoint:
    try:
        record = json.loads((path / "state.json").read_bytes())
        content = (path / "state.safetensors").read_bytes()
        if hashlib.sha256(content).hexdigest() != record["sha256"]:
            raise CheckpointError(f"{path}: damaged: state.safetensors is not what was written")
        return Checkpoint(int(record["step"]), load_tensors(content), record["state"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{path}: damaged: {error}") from None


def _write_synced(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
