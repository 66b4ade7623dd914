"""A posterior in a folder: its density, its weighted draws, and what was found out about them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import safetensors
import safetensors.torch
import torch

from sciflow.density import Density
from sciflow.errors import ModelFileError, SciflowError, first_line
from sciflow.families import load
from sciflow.files import written_whole
from sciflow.inference.evidence import Evidence
from sciflow.inference.parameters import Parameters
from sciflow.inference.variational.diffusion_sampler import DiffusionSampler, is_diffusion_sampler
from sciflow.inference.variational.log_density import EVENT, LogDensity

if TYPE_CHECKING:
    from sciflow.inference.posterior import Posterior

__all__ = ["read_posterior", "write_posterior"]

_FORMAT, _VERSION = "sciflow-posterior", 1
_DESCRIPTION, _DRAWS = "posterior.json", "draws.safetensors"
_OBSERVED = "observed/"


def write_posterior(posterior: Posterior, folder: Path) -> Path:
    """Write safetensors and JSON into a folder, and return it.

    Raises:
        ModelFileError: It cannot be written, or what was observed is no numbers.
    """
    posterior.density.save(folder / "model")
    description = {
        "format": _FORMAT,
        "version": _VERSION,
        "parameters": posterior.parameters.to_json(),
        "by_name": posterior.by_name,
        "elbo": [posterior.elbo, posterior.elbo_error],
        "log_z": [posterior.log_z.value, posterior.log_z.standard_error, posterior.log_z.method],
        "ess": posterior.ess,
        "k_hat": posterior.k_hat if math.isfinite(posterior.k_hat) else str(posterior.k_hat),
        "notes": posterior.notes,
        "history": posterior.history,
    }
    try:
        tensors = {"pool": posterior.pool.cpu().contiguous(), "log_weights": posterior.log_weights.cpu().contiguous()}
        for name, value in posterior.observed.items():
            tensors[_OBSERVED + name] = torch.as_tensor(np.array(value))
        with written_whole(folder / _DRAWS) as file:
            file.write_bytes(safetensors.torch.save(tensors))
        with written_whole(folder / _DESCRIPTION) as file:
            file.write_text(json.dumps(description, indent=2))
    except (OSError, TypeError) as error:
        raise ModelFileError(f"{folder}: cannot be written: {first_line(error)}") from None
    return folder


def read_posterior(folder: Path, device: str | torch.device, log_density: Callable[..., Any] | None) -> dict[str, Any]:
    """Read back what :func:`write_posterior` wrote: the fields of a posterior, by name.

    Raises:
        ModelFileError: A file is missing, damaged, or of another kind; or a diffusion lacks its ``log_density``.
    """
    try:
        found = json.loads((folder / _DESCRIPTION).read_text())
        if not isinstance(found, dict) or found.get("format") != _FORMAT:
            raise ModelFileError(f"{folder / _DESCRIPTION}: not a description of a posterior")
        if found["version"] != _VERSION:
            raise ModelFileError(
                f"{folder / _DESCRIPTION}: version {found['version']!r}; this sciflow reads {_VERSION}"
            )
        tensors = safetensors.torch.load_file(folder / _DRAWS)
        parameters = Parameters.from_json(found["parameters"])
        dtype = tensors["pool"].dtype
        return {
            "density": _density(folder / "model", parameters, found["by_name"], dtype, device, log_density),
            "parameters": parameters,
            "by_name": found["by_name"],
            "elbo": found["elbo"][0],
            "elbo_error": found["elbo"][1],
            "log_z": Evidence(*found["log_z"]),
            "ess": found["ess"],
            "k_hat": float(found["k_hat"]),
            "pool": tensors["pool"],
            "log_weights": tensors["log_weights"],
            "notes": found["notes"],
            "history": found["history"],
            "observed": {
                name.removeprefix(_OBSERVED): value.numpy()
                for name, value in tensors.items()
                if name.startswith(_OBSERVED)
            },
        }
    except ModelFileError:
        raise
    except (OSError, ValueError, KeyError, TypeError, IndexError, SciflowError, safetensors.SafetensorError) as error:
        raise ModelFileError(
            f"{folder}: cannot be read as a posterior: {type(error).__name__}: {first_line(error)}"
        ) from None


def _density(
    folder: Path,
    parameters: Parameters,
    by_name: bool,
    dtype: torch.dtype,
    device: str | torch.device,
    log_density: Callable[..., Any] | None,
) -> Density | DiffusionSampler:
    """The fitted density of a folder."""
    if not is_diffusion_sampler(folder):
        return load(folder, device)
    if log_density is None:
        raise ModelFileError(
            f"{folder}: a diffusion draws with the help of the density it was fitted to, which no file holds: "
            "Posterior.load(path, log_density=...)"
        )
    event_shape = None if by_name else parameters[EVENT].shape
    target = LogDensity(log_density, event_shape, parameters if by_name else None, dtype, device)
    return DiffusionSampler.load(folder, target)
