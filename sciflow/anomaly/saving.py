"""A detector as files: JSON, safetensors, and a folder for every density it stands on. No pickle is read or written."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import threading
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from sciflow.anomaly.calibration import Calibration
from sciflow.anomaly.fitting import Fitted
from sciflow.anomaly.scores import SCORES, Score
from sciflow.data.layout import Layout
from sciflow.data.place import put_in_place
from sciflow.density import Density
from sciflow.errors import ConfigError, ModelFileError, SciflowError, first_line, nearest
from sciflow.families import load as load_density

__all__ = ["Saved", "read", "write"]

_FORMAT, _VERSION = "sciflow-detector", 2
_UNSEALED = 1  # The version before, which says nothing of its own hash.
_DESCRIPTION, _NUMBERS, _OF_DENSITY = "detector.json", "detector.safetensors", "model.json"

Saved = tuple[dict[str, Any], Fitted, Calibration | None]


def write(path: str | Path, settings: dict[str, Any], fitted: Fitted, calibration: Calibration | None) -> Path:
    """Write a detector into the folder ``path``, which appears whole or not at all.

    Args:
        path: The folder; a detector that is there is replaced.
        settings: The constructor's.
        fitted: What fitting has made.
        calibration: What p-values come from.

    Raises:
        ConfigError: The score is none of those that can be read back.
        ModelFileError: It cannot be written, or something else is there.
    """
    folder = Path(path)
    _require_ours(folder)
    densities = fitted.score.all_densities()
    numbers: dict[str, Tensor] = {"typical": fitted.typical}
    numbers["hashes"] = torch.from_numpy(fitted.hashes.view(np.int64))
    description: dict[str, Any] = {
        "format": _FORMAT,
        "version": _VERSION,
        "settings": settings,
        "score": _described(fitted.score, densities, "score", numbers),
        "layout": None if fitted.layout is None else fitted.layout.to_json(),
        "usual": fitted.usual,
        "copies": fitted.copies,
        "inside": dict(fitted.inside),
        "calibration": None,
    }
    if calibration is not None:
        arrays, description["calibration"] = calibration.state()
        numbers |= {f"calibration.{name}": torch.from_numpy(array) for name, array in arrays.items()}
    beside = folder.with_name(f".{folder.name}.{os.getpid()}-{threading.get_ident()}.partial")
    try:
        beside.mkdir(parents=True)
        for number, density in enumerate(densities):
            density.save(beside / f"density-{number}")
        # Scores that are put together share what they have found; a file holds every tensor by itself.
        apart = {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in numbers.items()}
        content = safetensors.torch.save(apart)
        (beside / _NUMBERS).write_bytes(content)
        description["sha256"] = {_NUMBERS: hashlib.sha256(content).hexdigest(), **_hashes(beside, len(densities))}
        description["seal"] = _seal(description)
        (beside / _DESCRIPTION).write_text(json.dumps(description, indent=2) + "\n")
        put_in_place(beside, folder)
    except OSError as error:
        if isinstance(error, SciflowError):
            raise
        raise ModelFileError(f"{folder}: the detector cannot be written: {error.strerror or error}") from None
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return folder


def read(path: str | Path, device: str | torch.device = "cpu") -> Saved:
    """Read what :func:`write` has written.

    Args:
        path: The folder.
        device: Where to put what scores.

    Raises:
        ConfigError: There is no such device.
        ModelFileError: A file is missing, damaged, or of another version.
    """
    folder = Path(path)
    description = _description(folder)
    numbers = _numbers(folder, description)
    try:
        count = 1 + max((k for k in _densities(description["score"])), default=-1)
        densities = [load_density(folder / f"density-{number}", device) for number in range(count)]
        _require_own(folder, description, count)
        score = _score(
            description["score"], densities, "score", {k: tensor.to(device) for k, tensor in numbers.items()}
        )
        layout = None if description["layout"] is None else Layout.from_json(description["layout"])
        hashes = numbers["hashes"].numpy().view(np.uint64)
        known = description["usual"], hashes, description["copies"], description.get("inside", {})
        fitted = Fitted(score, layout, numbers["typical"], *known)
        calibration = None
        if description["calibration"] is not None:
            arrays = {
                name.removeprefix("calibration."): tensor.numpy()
                for name, tensor in numbers.items()
                if name.startswith("calibration.")
            }
            calibration = Calibration.from_state(arrays, description["calibration"])
        return description["settings"], fitted, calibration
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, ModelFileError):
            raise
        raise ModelFileError(
            f"{folder / _DESCRIPTION} is damaged: {first_line(error)}; save the detector anew"
        ) from None


def _require_ours(folder: Path) -> None:
    """Refuse a place where there is something else than a detector."""
    try:
        is_taken = folder.exists() and not (folder / _DESCRIPTION).is_file()
    except OSError as error:
        raise ModelFileError(f"{folder}: the detector cannot be written: {error.strerror or error}") from None
    if is_taken:
        raise ModelFileError(f"{folder}: there is something else: choose another folder")


def _described(score: Score, densities: list[Density], place: str, numbers: dict[str, Tensor]) -> dict[str, Any]:
    """A score as JSON holds it; its numbers go to ``numbers``."""
    if SCORES.get(score.name) is not type(score):
        raise ConfigError(
            f"the score {type(score).__name__} is none of sciflow's, by whose names files are read back "
            f"({', '.join(SCORES)}): a detector that scores by it cannot be saved"
        )
    numbers |= {f"{place}.found.{name}": tensor for name, tensor in score.found.items()}
    return {
        "name": score.name,
        "arguments": score.arguments,
        "densities": [next(k for k, d in enumerate(densities) if d is mine) for mine in score.densities],
        "members": [_described(member, densities, f"{place}.{k}", numbers) for k, member in enumerate(score.members)],
    }


def _score(described: dict[str, Any], densities: list[Density], place: str, numbers: dict[str, Tensor]) -> Score:
    name = described["name"]
    if name not in SCORES:
        raise ModelFileError(f"{_DESCRIPTION}: unknown score {name!r}; {nearest(str(name), SCORES)}")
    members = [_score(of, densities, f"{place}.{k}", numbers) for k, of in enumerate(described["members"])]
    first: list[Any] = [members] if members else []
    score = SCORES[name](*first, *(densities[k] for k in described["densities"]), **described["arguments"])
    begin = f"{place}.found."
    score.found = {key.removeprefix(begin): tensor for key, tensor in numbers.items() if key.startswith(begin)}
    return score


def _densities(described: dict[str, Any]) -> list[int]:
    return described["densities"] + [number for member in described["members"] for number in _densities(member)]


def _description(folder: Path) -> dict[str, Any]:
    file = folder / _DESCRIPTION
    try:
        description = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelFileError(f"no detector at {folder}: there is no {_DESCRIPTION} in it") from None
    except OSError as error:
        raise ModelFileError(f"{file} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise ModelFileError(f"{file} is damaged: not JSON ({error})") from None
    if not isinstance(description, dict) or description.get("format") != _FORMAT:
        raise ModelFileError(f'{file} does not describe a detector: "format" is not "{_FORMAT}"')
    version = description.get("version")
    if type(version) is not int or not _UNSEALED <= version <= _VERSION:
        raise ModelFileError(
            f"{file} has format version {version!r}, this one reads up to {_VERSION}: use the sciflow that wrote it, "
            "or fit anew"
        )
    seal = description.pop("seal", None)
    if seal != _seal(description) and not (version == _UNSEALED and seal is None):
        raise ModelFileError(
            f"{file} is damaged, or was edited: it is not what was written; copy it again, or save the detector anew"
        )
    return description


def _require_own(folder: Path, description: dict[str, Any], count: int) -> None:
    """Refuse densities that are whole, and another detector's."""
    if description["version"] == _UNSEALED:
        return
    for name, found in _hashes(folder, count).items():
        if description["sha256"].get(name) != found:
            raise ModelFileError(
                f"{folder / name} is not the one that this detector was saved with: copy the whole folder again, or "
                "save the detector anew"
            )


def _seal(description: dict[str, Any]) -> str:
    """Hash of a description: a threshold, or a name, that was altered would make another detector."""
    return hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()


def _hashes(folder: Path, count: int) -> dict[str, str]:
    """Hashes of the descriptions of densities, each of which holds that of its numbers, by their names."""
    names = [f"density-{number}/{_OF_DENSITY}" for number in range(count)]
    return {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names}


def _numbers(folder: Path, description: dict[str, Any]) -> dict[str, Tensor]:
    file = folder / _NUMBERS
    try:
        content = file.read_bytes()
    except OSError as error:
        raise ModelFileError(f"{file} cannot be read: {error.strerror}") from None
    hashes = description.get("sha256")
    if not isinstance(hashes, dict) or hashlib.sha256(content).hexdigest() != hashes.get(_NUMBERS):
        raise ModelFileError(f"{file} is damaged: its SHA-256 differs from {_DESCRIPTION}'s; copy it again")
    try:
        return safetensors.torch.load(content)
    except safetensors.SafetensorError as error:
        raise ModelFileError(f"{file} is damaged: {first_line(error)}") from None
