"""Conditional posteriors as a folder: JSON, and safetensors for numbers; no pickle is written or read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from sciflow.errors import ModelFileError, ShapeError, first_line
from sciflow.files import write_to_disk, written_whole
from sciflow.inference.conditional.embedded import load_member
from sciflow.inference.conditional.prior import Prior
from sciflow.inference.conditional.result import ConditionalPosterior, describe
from sciflow.inference.conditional.simulations import Failures
from sciflow.inference.conditional.surprise import Surprise

__all__ = ["load_conditional", "save"]

_FORMAT = "sciflow-conditional"
_VERSION = 1
_DESCRIPTION, _NUMBERS = "conditional.json", "conditional.safetensors"


def save(result: ConditionalPosterior, path: str | Path) -> Path:
    """Write a folder with a description, numbers, and a folder for each density.

    Raises:
        ModelFileError: It cannot be written, or no file can hold a part of it.
    """
    folder = Path(path)
    for place, density in enumerate(result.densities):
        density.save(folder / f"density_{place}")
    tensors: dict[str, Tensor] = {"failures": torch.from_numpy(np.ascontiguousarray(result.failures.parameters))}
    if result.surprise is not None:
        tensors |= {f"surprise.{name}": tensor for name, tensor in result.surprise.tensors().items()}
    if result.x_observed is not None:
        tensors["x_observed"] = result.x_observed.contiguous()
    text = json.dumps({"format": _FORMAT, "version": _VERSION, **describe(result)}, indent=2)
    try:
        # The description last: a folder that has it is whole.
        with written_whole(folder / _DESCRIPTION) as description, written_whole(folder / _NUMBERS) as contents:
            write_to_disk(contents, safetensors.torch.save(tensors))
            write_to_disk(description, text.encode())
    except OSError as error:
        raise ModelFileError(f"the posteriors cannot be saved in {folder}: {error.strerror or error}") from None
    return folder


def load_conditional(path: str | Path, prior: Any = None, device: str | torch.device = "cpu") -> ConditionalPosterior:
    """Read conditional posteriors back.

    Args:
        path: A folder that :meth:`ConditionalPosterior.save` wrote.
        prior: The one that they were fitted with, which no file holds. Draws that leak out of its support are cut off
            by it. Method ``nle`` needs it.
        device: Where to put the densities.

    Raises:
        ModelFileError: A file is missing or damaged.
        ShapeError: The prior is of another number of parameters.

    Example:
        >>> import tempfile
        >>> from torch.distributions import Normal
        >>> from sciflow.inference import fit_conditional
        >>> prior = Normal(torch.zeros(2), 1.0)
        >>> simulate = lambda theta: theta + 0.1 * torch.randn_like(theta)
        >>> npe = fit_conditional(prior=prior, simulator=simulate, num_simulations=200, max_steps=10, members=1)
        >>> load_conditional(npe.save(tempfile.mkdtemp() + "/npe"), prior).method
        'npe'
    """
    folder = Path(path)
    try:
        description = json.loads((folder / _DESCRIPTION).read_text())
        if description.get("format") != _FORMAT or description.get("version") != _VERSION:
            raise ModelFileError(f"{folder / _DESCRIPTION}: not written by this version of sciflow")
        tensors = safetensors.torch.load_file(folder / _NUMBERS)
        of_surprise = {
            name.removeprefix("surprise."): tensor for name, tensor in tensors.items() if name.startswith("surprise.")
        }
        failures = description["failures"]
        told, d = None if prior is None else Prior(prior), tensors["failures"].shape[1]
        if told is not None and told.num_parameters != d:
            raise ShapeError(f"prior: of {told.num_parameters} parameters; what {folder} holds was fitted with {d}")
        densities = [load_member(folder / f"density_{place}", device) for place in range(description["members"])]
        return ConditionalPosterior(
            method=description["method"],
            densities=densities,
            prior=told,
            x_shape=tuple(description["x_shape"]),
            num_simulations=description["num_simulations"],
            failures=Failures(tensors["failures"].numpy(), tuple(failures["reasons"]), failures["total"]),
            validation=tuple(description["validation"]),
            unit=description["unit"],
            surprise=Surprise.from_tensors(of_surprise) if of_surprise else None,
            x_observed=tensors.get("x_observed"),
            notes=tuple(description["notes"]),
        )
    except FileNotFoundError as error:
        raise ModelFileError(f"{folder}: no conditional posteriors here: {error.filename} is missing") from None
    except (ModelFileError, ShapeError):
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError, safetensors.SafetensorError) as error:
        raise ModelFileError(f"{folder}: damaged ({type(error).__name__}: {first_line(error)})") from None
