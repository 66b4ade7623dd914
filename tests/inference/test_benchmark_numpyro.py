"""The peer's models are our densities to the last constant, and its draws and weights are what they say."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from inference_posteriors import posteriors, reference_draws

pytest.importorskip("numpyro")

import inference_numpyro
from inference_numpyro import MODELS, numpyro_fit
from numpyro.infer.util import log_density


@pytest.mark.parametrize("name", MODELS)
def test_its_density_is_ours(name, shared_data):
    """At points near the true draws, and at others far from them."""
    posterior = posteriors(shared_data)[name]
    model = MODELS[name](inference_numpyro.data(shared_data, name))
    draws = reference_draws(shared_data, name)
    near = posterior.parameters.pack({key: value[0, :3] for key, value in posterior.underlying(draws).items()})
    wide = 0.7 * torch.randn(3, near.shape[1], generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for free in (*near, *wide):
        values, _ = posterior.parameters.unpack(free)
        its, _ = log_density(model, (), {}, {key: value.numpy() for key, value in values.items()})
        assert float(its) == pytest.approx(posterior.log_density(**values).item(), rel=1e-6, abs=1e-5)


def test_a_fit(shared_data):
    name = "kidiq-kidscore_momiq"
    fit = numpyro_fit(name, "AutoIAFNormal", 20, num_draws=50, k_hat=lambda weights: len(weights), folder=shared_data)
    assert {key: value.shape for key, value in fit.draws.items()} == {"beta": (50, 2), "sigma": (50,)}
    assert fit.k_hat == 50
    assert len(fit.losses) == 20
    assert fit.elbo == pytest.approx(fit.log_weights.mean())
    assert np.isfinite(fit.log_weights).all()
