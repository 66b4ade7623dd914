"""Draws as labelled data."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from sciflow.data.lock import writing
from sciflow.data.store import is_url
from sciflow.density import Density
from sciflow.progress import progress_bar
from sciflow.scoring.drawing import Drawing
from sciflow.scoring.labels import labelled_draws

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["draw_here", "samples_as_dataset", "write_samples"]


def write_samples(
    density: Density,
    n: int,
    out: str | Path,
    *,
    context: Any = None,
    seed: int = 0,
    block_rows: int | None = None,
    overwrite: bool = False,
    progress: bool = True,
    **options: Any,
) -> Path | str:
    """Draw events in this process, and write them as a Zarr store with the variables of the training data.

    A drawing that was interrupted goes on with the same call, and ends with the same bytes as an unbroken one; one that
    is done is left as it is. What a function does, and an object of a class of your own, cannot be compared: with one
    among the options, or in the density, a drawing that was interrupted begins anew, and one that is done is not taken
    for the same.

    Args:
        density: A trained density; it stays in the mode it is in.
        n: Number of draws.
        out: Zarr store to be written; a path, or a URL that fsspec knows.
        context: One context, for a conditional density.
        seed: The same seed gives the same draws, on the same kind of device.
        block_rows: Most draws at a time, which bounds the memory; None for 65,536, or 8 MiB of them. Draws depend on
            it.
        overwrite: Replace what is there.
        progress: Show a progress bar on a terminal.
        **options: Of the density's sampler.

    Returns:
        Where they are.

    Raises:
        ConfigError: ``n`` is below 1, the seed below 0, an option unknown, ``out`` no place, or there are too many
            blocks.
        ShapeError: The context is missing, or not one of this density's; or guidance has rows of which ``n`` and
            ``block_rows`` are no multiples.
        StoreError: Another output is already there, or what is none; or another process is writing it.
        RunError: It cannot be written, or does not fit into memory; what is drawn is kept.

    Example:
        >>> import tempfile, xarray
        >>> from sciflow.flows import NSF
        >>> path = write_samples(NSF((2,), num_transforms=1), 5, tempfile.mkdtemp() + "/draws.zarr")
        >>> xarray.open_zarr(path).x.shape
        (5, 2)
    """
    job = Drawing.of(density, n, out, context=context, options=options, seed=seed, block_rows=block_rows)
    with nullcontext() if is_url(job.out) else writing(Path(job.out)):
        waiting = job.begin(density, overwrite)
        if waiting is not None:
            draw_here(job, density, waiting, progress)
            job.finish()
    return job.out if is_url(job.out) else Path(job.out)


def draw_here(job: Drawing, density: Density, waiting: list[int], progress: bool) -> None:
    """Draw blocks in this process; the progress bar counts them, or the steps of a single one."""
    alone = len(waiting) == 1
    with progress_bar("drawing blocks", len(waiting), progress and not alone) as update:
        for done, number in enumerate(waiting, 1):
            job.draw(density, number, progress and alone)
            update(done, "")


def samples_as_dataset(density: Density, samples: torch.Tensor, first: int = 0) -> xr.Dataset:
    """Label draws ``[n, *event_shape]`` with the variables, units and dimensions of the training data."""
    import xarray as xr

    arrays = labelled_draws(density, samples.cpu().numpy(), first)
    return xr.Dataset({name: tuple(array) for name, array in arrays.items()})
