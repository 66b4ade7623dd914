"""Draws as labelled data."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from sciflow.data.layout import Layout
from sciflow.data.lock import writing
from sciflow.data.place import consolidate, put_in_place, require_free
from sciflow.data.store import is_url
from sciflow.density import Density
from sciflow.errors import ConfigError, StoreError
from sciflow.kernels import repeated
from sciflow.progress import progress_bar

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["samples_as_dataset", "write_samples"]

BLOCK_ROWS = 1 << 16


def write_samples(
    density: Density,
    n: int,
    out: str | Path,
    *,
    context: Any = None,
    seed: int = 0,
    overwrite: bool = False,
    progress: bool = True,
) -> Path:
    """Draw events and write them as a Zarr store with the variables that the density was trained on.

    Args:
        density: A trained density.
        n: Number of draws.
        out: Zarr store to be written; it appears whole.
        context: One context, for a conditional density.
        seed: The same seed gives the same draws.
        overwrite: Replace what is there.
        progress: Show a progress bar on a terminal.

    Raises:
        ConfigError: ``n`` is below 1, or the seed below 0.
        StoreError: The output is already there, is being written by another process, or cannot be written.
    """
    if n < 1:
        raise ConfigError(f"n {n}: draw 1 event or more")
    if seed < 0:
        raise ConfigError(f"seed {seed}: 0 or more")
    path = Path(out)
    if is_url(out):
        raise StoreError(f"{out}: samples are written to a file system: give a path, and copy the result")
    require_free(path, overwrite)
    partial = Path(f"{path}.partial")
    density.eval()
    with writing(path):
        try:
            shutil.rmtree(partial, ignore_errors=True)
            with progress_bar("drawing", n, progress) as update, repeated(-(-n // BLOCK_ROWS)):
                for number, start in enumerate(range(0, n, BLOCK_ROWS)):
                    # A seed of its own for every block: draws do not depend on how many blocks are made at a time.
                    block_seed = int(np.random.SeedSequence([seed, number]).generate_state(1)[0])
                    rows = min(BLOCK_ROWS, n - start)
                    block = samples_as_dataset(density, density.sample(rows, context, seed=block_seed), start)
                    how: dict[str, Any] = {"append_dim": "sample"} if number else {"zarr_format": 3}
                    block.to_zarr(partial, consolidated=False, **how)
                    update(start + rows, "")
            consolidate(partial)
            put_in_place(partial, path)
        except OSError as error:
            shutil.rmtree(partial, ignore_errors=True)
            raise StoreError(f"{path}: cannot be written: {error.strerror or error}; nothing is left behind") from None
    return path


def samples_as_dataset(density: Density, samples: torch.Tensor, first: int = 0) -> xr.Dataset:
    """Label draws ``[n, *event_shape]`` with the variables, units and dimensions of the training data."""
    import xarray as xr

    values = samples.cpu().numpy()
    coords = {"sample": np.arange(first, first + len(values))}
    if density.layout is None:
        axes = [f"axis_{place}" for place in range(values.ndim - 1)]
        return xr.Dataset({"x": (("sample", *axes), values)}, coords)
    layout = Layout.from_json(density.layout)
    dims = ("sample", *(dim.name for dim in layout.event_dims))
    parts = values.swapaxes(0, 1) if layout.has_variable_axis else [values]
    arrays = {
        name: (dims, part, {"units": units} if units else {})
        for name, units, part in zip(layout.variables, layout.units, parts, strict=True)
    }
    return xr.Dataset(arrays, coords)
