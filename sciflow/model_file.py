"""A trained density as two files: ``model.safetensors`` holds the numbers, ``model.json`` says what they are.

No pickle is read or written: a pickle can run code when it is opened.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch.distributions import Distribution

from sciflow.density import Density
from sciflow.devices import checked_device
from sciflow.errors import ConfigError, ModelFileError, SciflowError, first_line, nearest
from sciflow.files import write_to_disk, written_whole

__all__ = ["family_of", "load", "require_saveable", "save", "weights_hash"]

_FORMAT = "sciflow-model"
_VERSION = 1
_WEIGHTS = "model.safetensors"
_DESCRIPTION = "model.json"
_ENTRIES: dict[str, tuple[type, ...]] = {
    "family": (str,),
    "arguments": (dict,),
    "dtype": (str,),
    "layout": (dict, type(None)),
    "context_columns": (list, dict, type(None)),
    "provenance": (dict,),
    "weights": (dict,),
}
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
        ConfigError: What is given is no path.
        ModelFileError: The disk is full, the folder cannot be written, or no file can hold the density; files of before
            are left as they were.

    Example:
        >>> import tempfile
        >>> from sciflow.flows import NSF
        >>> flow = NSF(event_shape=(2,), num_transforms=1)
        >>> sorted(file.name for file in save(flow, Path(tempfile.mkdtemp()) / "model").iterdir())
        ['model.json', 'model.safetensors']
    """
    folder = _as_path(path)
    weights = _as_bytes(density)
    description = {
        "format": _FORMAT,
        "version": _VERSION,
        "family": density.family,
        "arguments": density.arguments,
        "dtype": str(density.dtype).removeprefix("torch."),
        "layout": density.layout,
        "context_columns": density.context_columns,
        "provenance": density.provenance,
        "weights": {"file": _WEIGHTS, "bytes": len(weights), "sha256": hashlib.sha256(weights).hexdigest()},
        "written_by": {"sciflow": _sciflow_version(), "torch": torch.__version__},
    }
    try:
        sealed = {**description, "sha256": _seal(description)}
        text = json.dumps(sealed, indent=2, allow_nan=False, default=_refuse) + "\n"
    except (TypeError, ValueError) as error:
        raise ModelFileError(f"{folder / _DESCRIPTION} cannot be written: not plain JSON values: {error}") from None
    made = False
    try:
        made = not folder.exists()
        folder.mkdir(parents=True, exist_ok=True)
        # Left from the inside out: the numbers take their place first.
        with (
            written_whole(folder / _DESCRIPTION) as new_description,
            written_whole(folder / _WEIGHTS) as new_weights,
        ):
            write_to_disk(new_weights, weights)
            write_to_disk(new_description, text.encode())
    except OSError as error:
        if made:
            with contextlib.suppress(OSError):
                folder.rmdir()
        raise ModelFileError(
            f"the model cannot be saved in {folder}: {error.strerror or error}; nothing was written. "
            "Free some space or choose another folder"
        ) from None
    return folder


def require_saveable(path: str | Path, whose: str, arguments: Mapping[str, Any]) -> None:
    """Refuse to write what was built from parts of the user's own.

    Args:
        path: Where it would be written.
        whose: Begins the message.
        arguments: Of the constructor.

    Raises:
        ModelFileError: One of them is no name, nor numbers by name.
    """
    for name in ("denoise", "network", "schedule", "weighting"):
        if not isinstance(arguments.get(name), str | Mapping | None):
            raise ModelFileError(
                f"{path}: {whose} has a {name} of your own, which no file can hold: keep its state_dict() beside the "
                "code that builds it"
            )


def load(path: str | Path, families: Mapping[str, type[Density]], device: str | torch.device = "cpu") -> Density:
    """Read a density back, in eval mode; users call :func:`sciflow.load`, which knows the families.

    Args:
        path: A folder that :func:`save` wrote, or a run folder that holds one as ``model/``.
        families: Density class by family name.
        device: Where to put it.

    Raises:
        ConfigError: There is no such device, or what is given is no path.
        ModelFileError: A file is missing, damaged, of an unknown kind, or would have to be unpickled.
    """
    folder = _model_folder(_as_path(path))
    description = _description(folder)
    weights = _weights(folder, description["weights"])
    name = description["family"]
    if name not in families:
        raise ModelFileError(f"{folder / _DESCRIPTION}: unknown family {name!r}; {nearest(str(name), families)}")
    try:
        density = families[name](**description["arguments"])
        density.to(getattr(torch, description["dtype"]))
        density.load_state_dict(safetensors.torch.load(weights))
    except (
        SciflowError,
        ArithmeticError,
        TypeError,
        AttributeError,
        ValueError,
        LookupError,
        RuntimeError,
        safetensors.SafetensorError,
    ) as error:
        problem = f"{folder}: {_DESCRIPTION} and {_WEIGHTS} do not make a {name}"
        raise ModelFileError(f"{problem}: {first_line(error)}") from None
    density.layout = description["layout"]
    density.context_columns = description["context_columns"]
    density.provenance = description["provenance"]
    return density.to(checked_device(device)).eval()


def family_of(path: str | Path) -> str:
    """Return the name of the family that a folder holds a density of.

    Args:
        path: As :func:`load` takes it.

    Raises:
        ConfigError: What is given is no path.
        ModelFileError: The description is missing or damaged.
    """
    return str(_description(_model_folder(_as_path(path)))["family"])


def weights_hash(density: Density) -> str:
    """Return the hash of a density's numbers, the one that its model file has."""
    return hashlib.sha256(_as_bytes(density)).hexdigest()


def _as_bytes(density: Density) -> bytes:
    return safetensors.torch.save({name: t.detach().contiguous() for name, t in density.state_dict().items()})


def _as_path(path: Any) -> Path:
    if not isinstance(path, str | os.PathLike) or "\0" in str(path):
        raise ConfigError(f"{path!r:.80} is no path: give that of a folder")
    return Path(path)


def _model_folder(path: Path) -> Path:
    if path.suffix in _PICKLE_SUFFIXES and not path.is_dir():
        raise ModelFileError(_no_pickles(path))
    try:
        path.stat()
    except FileNotFoundError:
        raise ModelFileError(f"no model at {path}: there is no such folder") from None
    except OSError as error:
        raise ModelFileError(f"{path!s:.200} cannot be read: {error.strerror}") from None
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
        seal = description.pop("sha256", None) if isinstance(description, dict) else None
        found = _seal(description)
    except OSError as error:
        raise ModelFileError(f"{file} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise ModelFileError(f"{file} is damaged: not JSON ({error})") from None
    if not isinstance(description, dict) or description.get("format") != _FORMAT:
        raise ModelFileError(f'{file} does not describe a sciflow model: "format" is not "{_FORMAT}"')
    version = description.get("version")
    if type(version) is not int or not 1 <= version <= _VERSION:
        newer = type(version) is int and version > _VERSION
        why = f"written by a newer sciflow; this one reads up to {_VERSION}: upgrade" if newer else "which there is not"
        raise ModelFileError(f"{file} has format version {version!r}, {why}")
    if seal != found:
        raise ModelFileError(f"{file} is damaged, or was edited: it is not what was written; copy it again")
    description.setdefault("context_columns", None)  # which earlier versions did not write
    for name, kinds in _ENTRIES.items():
        if name not in description or not isinstance(description[name], kinds):
            raise ModelFileError(f"{file} is damaged: {name!r} is missing, or not what it must be; save the model anew")
    return description


def _seal(description: dict[str, Any]) -> str:
    """Hash of a description: one that was altered would make another density of the same numbers."""
    text = json.dumps(description, sort_keys=True, allow_nan=False, default=_refuse)
    return hashlib.sha256(text.encode()).hexdigest()


def _refuse(value: Any) -> Any:
    """Say what of a description is no JSON, and what to do."""
    cure = (
        ", a base whose parameters do not tell all of it: build it of the classes of torch.distributions, by numbers "
        "and tensors; or keep density.state_dict() beside the code that builds the flow"
    )
    raise TypeError(f"Object of type {type(value).__name__}{cure if isinstance(value, Distribution) else ''}")


def _weights(folder: Path, expected: Mapping[str, Any]) -> bytes:
    file = folder / _WEIGHTS
    try:
        weights = file.read_bytes()
    except OSError as error:
        raise ModelFileError(f"{file} cannot be read: {error.strerror}") from None
    # A safetensors header is JSON behind 8 bytes of length, which by chance may begin like a pickle.
    if weights.startswith(_PICKLE_STARTS) and weights[8:9] != b"{":
        raise ModelFileError(_no_pickles(file))
    size = expected.get("bytes")
    if len(weights) != size:
        raise ModelFileError(
            f"{file} is damaged: it has {len(weights)} bytes, {_DESCRIPTION} says {size}; copy it again"
        )
    if hashlib.sha256(weights).hexdigest() != expected.get("sha256"):
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
