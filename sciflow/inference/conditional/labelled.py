"""Draws of a posterior as ArviZ takes them: a tree of labelled data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["posterior_tree"]


def posterior_tree(
    draws: np.ndarray, log_prob: np.ndarray | None, x: np.ndarray, attributes: Mapping[str, Any]
) -> xr.DataTree:
    """Label draws ``[n, d]`` of one chain, their log p ``[n]`` and the observation.

    Example:
        >>> tree = posterior_tree(np.zeros((5, 2)), np.zeros(5), np.zeros(3), {})
        >>> tree["posterior"].theta.dims, sorted(tree.children)
        (('chain', 'draw', 'parameter'), ['observed_data', 'posterior', 'sample_stats'])
    """
    import xarray as xr

    counted = {"chain": [0], "draw": np.arange(len(draws))}
    posterior = xr.Dataset(
        {"theta": (("chain", "draw", "parameter"), draws[None])},
        coords={**counted, "parameter": np.arange(draws.shape[1])},
        attrs=dict(attributes),
    )
    observed = xr.Dataset({"x": (tuple(f"x_dim_{place}" for place in range(x.ndim)), x)})
    stats = xr.Dataset({} if log_prob is None else {"lp": (("chain", "draw"), log_prob[None])}, coords=counted)
    groups = {"posterior": posterior, "observed_data": observed, "sample_stats": stats}
    return xr.DataTree.from_dict({f"/{name}": dataset for name, dataset in groups.items()})
