"""What draws are called: the variables, dimensions and units of the data that the density was trained on."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from sciflow.data.layout import Layout
from sciflow.density import Density

__all__ = ["Labelled", "labelled_draws"]

# What a variable of the output cannot be called: its coordinate, and places in a folder.
TAKEN = ("sample", "zarr.json", "", ".", "..")


class Labelled(NamedTuple):
    """Values with the names of their dimensions, and attributes; ``xarray`` takes it for a variable."""

    dims: tuple[str, ...]
    values: np.ndarray
    attributes: dict[str, Any]


def labelled_draws(density: Density, draws: np.ndarray, first: int = 0) -> dict[str, Labelled]:
    """Cut draws into the variables of the training data.

    Args:
        density: What they are drawn from.
        draws: ``[n, *event_shape]``.
        first: Number of the first of them.

    Returns:
        Arrays ``[n, ...]`` by name; ``sample`` counts the draws.

    Example:
        >>> from sciflow.flows import NSF
        >>> arrays = labelled_draws(NSF((2,), num_transforms=1), np.zeros((5, 2)))
        >>> [(name, array.dims, array.values.shape) for name, array in arrays.items()]
        [('sample', ('sample',), (5,)), ('x', ('sample', 'axis_0'), (5, 2))]
    """
    count = np.arange(first, first + len(draws), dtype=np.int64)
    arrays = {"sample": Labelled(("sample",), count, {})}
    if density.layout is None:
        axes = (f"axis_{place}" for place in range(draws.ndim - 1))
        return arrays | {"x": Labelled(("sample", *axes), draws, {})}
    layout = Layout.from_json(density.layout)
    dims = ("sample", *(dim.name for dim in layout.event_dims))
    parts = draws.swapaxes(0, 1) if layout.has_variable_axis else [draws]
    for variable, units, part in zip(layout.variables, layout.units, parts, strict=True):
        # Arrays are folders: a slash would make two of one.
        name = variable.replace("/", "_")
        while name in TAKEN or name in arrays:
            name += "_"
        attributes = {"units": units} if units else {}
        arrays[name] = Labelled(dims, part, attributes if name == variable else {**attributes, "long_name": variable})
    return arrays
