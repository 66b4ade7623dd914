"""What the tests of drawing share."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import xarray as xr

import sciflow as sf


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """A density of a table, with units."""
    folder = tmp_path_factory.mktemp("model")
    rows = np.random.default_rng(0).normal(size=(300, 2)).astype("float32")
    table = xr.Dataset({"t2m": ("time", rows[:, 0], {"units": "K"}), "u/v": ("time", rows[:, 1])})
    store = sf.shard(table, folder / "rows.zarr", sample=["time"], progress=False)
    density = sf.flows.NSF(store.event_shape, num_transforms=1, hidden_features=(8,), seed=0)
    sf.fit(density, store, max_steps=5)
    return density.save(folder / "model")


@pytest.fixture(scope="module")
def density(model) -> sf.Density:
    return sf.load(model)
