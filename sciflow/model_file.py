"""A trained density as two files: ``model.safetensors`` holds the numbers, ``model.json`` says what they are.

No pickle is read or written: a pickle can run code when it is opened.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch

from sciflow.density import Density
from sciflow.errors import ModelFileError, SciflowError, first_line, nearest

__all__ = ["load", "save"]

_FORMAT = "sciflow-model"
_VERSION = 1
_WEIGHTS = "model.safetensors"
_DESCRIPTION = "model.json"
_PICKLE_SUFFIXES = {".pt", ".pth", ".pkl", ".pickle", ".bin", ".ckpt", ".joblib"}
_PICKLE_STARTS = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")  # torch.save writes a zip


def save(density: Density, path: str | Path) -> Path:
    """Write a density into the folder ``path``, which is made if need be.

    Each file is written beside its place and renamed, the numbers first: a reader meets whole files, and a description
    whose hash is that of the numbers.

    Args:
        density: What to save; its device does not matter.
        path: The folder.

    Returns:
        The folder.

    Raises:
        ModelFileError: The disk is full, or the folder cannot be written; files of before are left as they were.

    Example:
        >>> import tempfile
        >>> from sciflow.flows import NSF
        >>> flow = NSF(event_shape=(2,), num_transforms=1)
        >>> sorted(file.name for file in save(flow, Path(tempfile.mkdtemp()) / "model").iterdir())
        ['model.json', 'model.safetensors']
    """
    folder = Path(path)
    weights = safetensors.torch.save({name: t.detach().contiguous() for name, t in density.state_dict().items()})
    description = {
        "format": _FORMAT,
        "version": _VERSION,
        "family": density.family,
        "arguments": density.arguments,
        "dtype": str(density.dtype).removeprefix("torch."),
        "layout": density.layout,
        "provenance": density.provenance,
        "weights": {"file": _WEIGHTS, "bytes": len(weights), "sha256": hashlib.sha256(weights).hexdigest()},
        "written_by": {"sciflow": _sciflow_version(), "torch": torch.__version__},
    }
    try:
        text = json.dumps({**description, "sha256": _seal(description)}, indent=2, allow_nan=False) + "\n"
    except (TypeError, ValueError) as error:
        raise ModelFileError(f"{folder / _DESCRIPTION} cannot be written: not plain JSON values: {error}") from None
    made = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with (
            _written_beside(folder / _WEIGHTS, weights) as new_weights,
            _written_beside(folder / _DESCRIPTION, text.encode()) as new_description,
        ):
            os.replace(new_weights, folder / _WEIGHTS)
            os.replace(new_description, folder / _DESCRIPTION)
    except OSError as error:
        if made:
            with contextlib.suppress(OSError):
                folder.rmdir()
        raise ModelFileError(
            f"the model cannot be saved in {folder}: {error.strerror or error}; nothing was written. "
            "Free some space or choose another folder"
        ) from None
    return folder


def load(path: str | Path, families: Mapping[str, type[Density]], device: str | torch.device = "cpu") -> Density:
    """Read a density back, in eval mode; users call :func:`sciflow.load`, which knows the families.

    Args:
        path: A folder that :func:`save` wrote, or a run folder that holds one as ``model/``.
        families: Density class by family name.
        device: Where to put it.

    Raises:
        ModelFileError: A file is missing, damaged, of an unknown kind, or would have to be unpickled.
    """
    folder = _model_folder(Path(path))
    description = _description(folder)
    weights = _weights(folder, description["weights"])
    name = description["family"]
    if name not in families:
        raise ModelFileError(f"{folder / _DESCRIPTION}: unknown family {name!r}; {nearest(str(name), families)}")
    try:
        density = families[name](**description["arguments"])
        density.to(getattr(torch, description["dtype"]))
        density.load_state_dict(safetensors.torch.load(weights))
    except (SciflowError, TypeError, AttributeError, RuntimeError, safetensors.SafetensorError) as error:
        problem = f"{folder}: {_DESCRIPTION} and {_WEIGHTS} do not make a {name}"
        raise ModelFileError(f"{problem}: {first_line(error)}") from None
    density.layout = description["layout"]
    density.provenance = description["provenance"]
    return density.to(device).eval()


@contextlib.contextmanager
def _written_beside(target: Path, content: bytes) -> Iterator[Path]:
    """Yield a file on the disk beside ``target``, to be renamed; it is gone afterwards, renamed or not."""
    beside = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        with beside.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        yield beside
    finally:
        beside.unlink(missing_ok=True)


def _model_folder(path: Path) -> Path:
    if path.suffix in _PICKLE_SUFFIXES and not path.is_dir():
        raise ModelFileError(_no_pickles(path))
    if not path.exists():
        raise ModelFileError(f"no model at {path}: there is no such folder")
    if not path.is_dir():
        raise ModelFileError(f"{path} is a file: give the folder that holds {_WEIGHTS} and {_DESCRIPTION}")
    for folder in (path, path / "model"):
        if (folder / _DESCRIPTION).is_file():
            return folder
    raise ModelFileError(f"no model at {path}: it holds no {_DESCRIPTION}, nor does {path / 'model'}")


def _description(folder: Path) -> dict[str, Any]:
    file = folder / _DESCRIPTION
    try:
        description = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ModelFileError(f"{file} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise ModelFileError(f"{file} is damaged: not JSON ({error})") from None
    if not isinstance(description, dict) or description.get("format") != _FORMAT:
        raise ModelFileError(f'{file} does not describe a sciflow model: "format" is not "{_FORMAT}"')
    version = description.get("version")
    if not isinstance(version, int) or version > _VERSION:
        raise ModelFileError(
            f"{file} has format version {version}, written by a newer sciflow; this one reads up to {_VERSION}: upgrade"
        )
    seal = description.pop("sha256", None)
    if seal != _seal(description):
        raise ModelFileError(f"{file} is damaged, or was edited: it is not what was written; copy it again")
    return description


def _seal(description: dict[str, Any]) -> str:
    """Hash of a description: one that was altered would make another density of the same numbers."""
    return hashlib.sha256(json.dumps(description, sort_keys=True, allow_nan=False).encode()).hexdigest()


def _weights(folder: Path, expected: Mapping[str, Any]) -> bytes:
    file = folder / _WEIGHTS
    try:
        weights = file.read_bytes()
    except OSError as error:
        raise ModelFileError(f"{file} cannot be read: {error.strerror}") from None
    # A safetensors header is JSON behind 8 bytes of length, which by chance may begin like a pickle.
    if weights.startswith(_PICKLE_STARTS) and weights[8:9] != b"{":
        raise ModelFileError(_no_pickles(file))
    if len(weights) != expected["bytes"]:
        raise ModelFileError(
            f"{file} is damaged: it has {len(weights)} bytes, {_DESCRIPTION} says {expected['bytes']}; copy it again"
        )
    if hashlib.sha256(weights).hexdigest() != expected["sha256"]:
        raise ModelFileError(f"{file} is damaged: its SHA-256 differs from {_DESCRIPTION}'s; copy it again")
    return weights


def _no_pickles(path: Path) -> str:
    return (
        f"{path}: pickles are not read: they can run code. "
        f"Save the density with density.save(folder), and give that folder ({_WEIGHTS} and {_DESCRIPTION})"
    )


def _sciflow_version() -> str:
    try:
        return metadata.version("sciflow")
    except metadata.PackageNotFoundError:  # run from a source tree
        return "unknown"
