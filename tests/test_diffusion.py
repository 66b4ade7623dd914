"""Diffusion models: what every density owes, learning, contexts, and bad input."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr
from torch import Tensor

import sciflow as sf
from sciflow.contexts import Field, Label, Vector
from sciflow.diffusion import Diffusion
from sciflow.errors import ConfigError, DataError, ShapeError, TrainingError
from sciflow.families import build, load
from sciflow.matching import paired

SMALL: dict[str, Any] = {"network": {"mlp": {"hidden_features": (32, 32)}}, "seed": 0}
NARROW: dict[str, Any] = {"network": {"unet": {"channels": 8, "blocks_per_level": 1}}, "seed": 0}
SCHEDULES = ("vp", "cosine", "sub-vp", "ve", "edm", "flow")

MODELS = [
    *(Diffusion((2,), schedule=name, **SMALL) for name in SCHEDULES),
    *(Diffusion((2,), schedule="flow", parametrization=name, **SMALL) for name in ("noise", "data", "v", "score")),
    *(Diffusion((2,), weighting=name, **SMALL) for name in ("edm", "simple", "min-snr", "likelihood", "logit-normal")),
    Diffusion((1,), context_shape=(3,), **SMALL),
    Diffusion((3,), context_shape={"season": Label(4), "place": Vector(2)}, **SMALL),
    Diffusion((2,), schedule="flow", parametrization="velocity", pairing="optimal-transport", **SMALL),
    Diffusion((2,), preprocess=["log1p", "standardize"], **SMALL),
    Diffusion((2, 12), **NARROW),
    Diffusion((1, 6, 8), context_shape={"coarse": Field((1, 3, 4))}, **NARROW),
    Diffusion((1, 4, 4), network={"transformer": {"hidden_features": (16, 16), "patch_size": 2}}, seed=0),
]


def context_for(model: Diffusion, n: int | None = None) -> Any:
    if model.contexts is None:
        return None
    lead = () if n is None else (n,)
    generator = torch.Generator().manual_seed(3)
    parts = {}
    for name, kind in model.contexts.items():
        if isinstance(kind, Label):
            parts[name] = torch.randint(kind.num_classes, lead, generator=generator)
        else:
            parts[name] = torch.randn(*lead, *kind.shape, generator=generator)
    return parts["context"] if list(parts) == ["context"] else parts


def randomised(model: Diffusion) -> Diffusion:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture
def model(request: pytest.FixtureRequest) -> Diffusion:
    original: Diffusion = request.param
    return randomised(Diffusion(**original.arguments))


@pytest.mark.parametrize("model", MODELS, ids=repr, indirect=True)
class TestEveryDiffusion:
    def test_starts_as_the_gaussian_of_the_data(self, model: Diffusion) -> None:
        if model.arguments["parametrization"] != "edm" or model.arguments["preprocess"] != "standardize":
            pytest.skip("starts elsewhere")
        fresh = Diffusion(**model.arguments).eval()
        x = torch.randn(4000, *fresh.event_shape, generator=torch.Generator().manual_seed(1)) * 2 + 7
        fresh.fit_preprocessing(x, context_for(fresh, 4000))
        draws = fresh.sample(4000, context_for(fresh), seed=0, num_steps=15)
        assert (draws.mean(0) - 7).abs().max() < 0.2
        assert (draws.std(0) - 2).abs().max() < 0.15

    def test_training_lowers_the_loss(self, model: Diffusion) -> None:
        x = torch.rand(512, *model.event_shape, generator=torch.Generator().manual_seed(0)).square()
        context = context_for(model, 512)
        model = Diffusion(**model.arguments)
        model.fit_preprocessing(x, context)
        optimiser = torch.optim.Adam(model.parameters(), 3e-3)

        def loss(seed: int) -> Tensor:
            torch.manual_seed(seed)
            return model.loss(x, context).mean()

        # Of the same levels and noise before and after.
        before = np.mean([loss(seed).item() for seed in range(1000, 1008)])
        for step in range(60):
            optimiser.zero_grad()
            loss(step).backward()
            assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
            optimiser.step()
        assert np.mean([loss(seed).item() for seed in range(1000, 1008)]) < before

    def test_draws_and_their_likelihood_have_the_right_shapes(self, model: Diffusion) -> None:
        context = context_for(model)
        draws = model.sample((2, 3), context, num_steps=3, seed=0)
        assert draws.shape == (2, 3, *model.event_shape)
        assert draws.isfinite().all()
        found = model.likelihood(draws, context, num_draws=8)
        assert found.kind == "elbo"
        assert found.log_prob.shape == found.error.shape == (2, 3)
        assert (found.nfe == 8).all()
        assert (found.status == 0).all()

    def test_no_rows_are_no_trouble(self, model: Diffusion) -> None:
        none, context = torch.zeros(0, *model.event_shape), context_for(model)
        assert model.log_prob(none, context).shape == (0,)
        assert model.sample(0, context, num_steps=2).shape == none.shape
        assert model.train().loss(none, context).shape == (0,)

    def test_same_seed_same_draws(self, model: Diffusion) -> None:
        context = context_for(model)
        first, again, other = (model.sample(4, context, seed=seed, num_steps=4, sampler="ddpm") for seed in (1, 1, 2))
        assert torch.equal(first, again)
        assert not torch.equal(first, other)

    def test_a_row_is_worth_the_same_alone(self, model: Diffusion) -> None:
        context = context_for(model)
        x = model.sample(5, context, seed=0, num_steps=4)
        together = model.double().likelihood(x.double(), context, num_draws=8).log_prob
        alone = model.likelihood(x[3:4].double(), context, num_draws=8).log_prob
        torch.testing.assert_close(alone, together[3:4], rtol=1e-9, atol=1e-9)

    def test_survives_saving(self, model: Diffusion, tmp_path) -> None:
        again = load(model.save(tmp_path / "model"))
        context = context_for(model)
        x = model.sample(3, context, seed=0, num_steps=3)
        assert torch.equal(again.sample(3, context, seed=0, num_steps=3), x)
        assert torch.equal(again.log_prob(x, context), model.log_prob(x, context))

    def test_a_workflow_names_it(self, model: Diffusion) -> None:
        arguments = {key: value for key, value in model.arguments.items() if not key.endswith("_shape")}
        built = build({"name": "diffusion", **arguments}, model.event_shape, model.arguments["context_shape"])
        assert built.arguments == model.arguments

    def test_decode_undoes_encode(self, model: Diffusion) -> None:
        if model.arguments["parametrization"] == "data":
            pytest.skip("starts as a point, from which nothing comes back")
        model = Diffusion(**model.arguments).double().eval()  # as it starts: smooth
        x = torch.rand(6, *model.event_shape, dtype=torch.float64) + 0.5
        z = model.encode(x, context_for(model))
        assert z.abs().max() < 6
        torch.testing.assert_close(model.decode(z, context_for(model)), x, rtol=0, atol=0.02)


# Learning. -----------------------------------------------------------------------------------------------------------


def test_fit_learns_a_mixture_in_data_units() -> None:
    generator = torch.Generator().manual_seed(0)
    x = 280 + 5 * torch.sign(torch.randn(4000, 1, generator=generator)) + torch.randn(4000, 1, generator=generator)
    density = Diffusion((1,), network={"mlp": {"hidden_features": (64, 64)}}, seed=0)
    fitted = sf.fit(density, x, max_steps=700, patience=50, batch_size=256, learning_rate=2e-3, seed=0)
    draws = density.sample(4000, seed=0).flatten()
    assert (draws > 280).float().mean().item() == pytest.approx(0.5, abs=0.05)
    assert (draws - 280).abs().mean().item() == pytest.approx(5, abs=0.2)
    assert (draws - 280).abs().std().item() == pytest.approx(1, abs=0.2)
    truth = -math.log(2) - 0.5 * math.log(2 * math.pi * math.e)
    assert truth - 0.25 < fitted.validation.mean < truth + 0.1


def test_draws_follow_their_context_and_guidance_takes_them_further() -> None:
    generator = torch.Generator().manual_seed(0)
    season = torch.randint(3, (3000,), generator=generator)
    x = season[:, None] * 2.0 + torch.randn(3000, 1, generator=generator)
    density = Diffusion((1,), {"season": Label(3)}, network={"mlp": {"hidden_features": (64, 64)}}, seed=0)
    sf.fit(density, x, context={"season": season}, max_steps=500, patience=50, batch_size=256, learning_rate=2e-3)
    means = density.sample(2000, {"season": torch.arange(3)}, seed=0).mean(0).flatten()
    assert (means - torch.tensor([0.0, 2.0, 4.0])).abs().max() < 0.3
    free = density.sample(3000, {"season": None}, seed=0)
    assert free.mean().item() == pytest.approx(2.0, abs=0.3)
    assert free.std().item() == pytest.approx(float(x.std()), abs=0.3)
    further = density.sample(2000, {"season": 2}, seed=0, guidance=3.0)
    assert further.mean() > means[2] + 0.3


def test_fields_of_one_variable_are_no_channels(tmp_path) -> None:
    fields = xr.DataArray(np.random.default_rng(0).normal(size=(40, 6, 8)), dims=("time", "lat", "lon"), name="t2m")
    store = sf.shard(
        fields, tmp_path / "fields.zarr", event={"lat": None, "lon": None}, sample=["time"], progress=False
    )
    assert store.event_shape == (6, 8)
    sizes = {"channels": 8, "blocks_per_level": 1}
    with pytest.warns(UserWarning, match="of which the network takes lat for channels: build it with"):
        sf.fit(Diffusion(store.event_shape, network={"unet": sizes}), store, max_steps=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        density = Diffusion(store.event_shape, network={"unet": {**sizes, "grid_dims": 2}}, seed=0)
        fitted = sf.fit(density, store, max_steps=2)
    assert fitted.density.sample(2, num_steps=2).shape == (2, 6, 8)
    assert sf.load(density.save(tmp_path / "model")).arguments["network"] == {"unet": {**sizes, "grid_dims": 2}}
    assert sf.score(density, store).attrs["likelihood"] == "elbo"


def test_a_workflow_trains_scores_and_draws_it(tmp_path) -> None:
    generator = np.random.default_rng(0)
    season = generator.integers(0, 3, 600)
    table = pd.DataFrame({"x": season + generator.normal(size=600), "y": generator.normal(size=600), "season": season})
    store = sf.shard(table, tmp_path / "rows.zarr", variables=["x", "y"], context=["season"], progress=False)
    workflow = {
        "name": "seasons",
        "data": {"store": str(store.path)},
        "model": {
            "name": "diffusion",
            "context_shape": {"season": {"label": 3}},
            "network": {"mlp": {"hidden_features": [16]}},
        },
        "training": {"max_steps": 40},
    }
    run = sf.train(workflow, runs=tmp_path / "runs", local=True, progress=False)
    assert any("objective" in record for record in run.fit().history)
    assert run.density.sample(5, {"season": 2}, num_steps=3).shape == (5, 2)
    scores = sf.score(run.density, store, num_draws=8)
    assert int(scores.nfe.max()) == 8


def test_optimal_transport_pairs_what_is_near() -> None:
    generator = torch.Generator().manual_seed(0)
    noise, y = torch.randn(2, 600, 3, generator=generator)
    moved = paired(noise, y)
    assert (moved - y).square().sum() < 0.5 * (noise - y).square().sum()
    assert torch.equal(moved.sum(1).sort().values, noise.sum(1).sort().values)


@pytest.mark.parametrize("size", [1e-3, 1e4])
def test_events_of_any_size_are_brought_to_that_of_the_noise(size: float) -> None:
    x = size * (3 + torch.tensor([1.0, 0.1]) * torch.randn(500, 2, generator=torch.Generator().manual_seed(0)))
    density = Diffusion((2,), preprocess="none", **SMALL)
    density.fit_preprocessing(x)
    y, log_det = density.preprocess(x)
    assert y.mean().abs() < 1e-4
    assert float(y.std(correction=0)) == pytest.approx(1, abs=1e-4)
    assert float(density.denoiser.data_std) == pytest.approx(1, abs=1e-4)
    torch.testing.assert_close(density.preprocess.inverse(y)[0], x, rtol=1e-4, atol=0)
    assert float(log_det[0]) == pytest.approx(-2 * math.log(x.std(correction=0)), abs=1e-3)


def test_draws_do_not_depend_on_the_mode() -> None:
    density = Diffusion((2,), network={"mlp": {"hidden_features": (16,), "dropout": 0.5}}, seed=0)
    draws = randomised(density).eval().sample(5, seed=0)
    assert torch.equal(density.train().sample(5, seed=0), draws)
    assert density.training


# Bad input. ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"network": {"unet": {"grid_dims": 3}}, "event_shape": (2, 4)}, r"events \[2, 4\] have 1 or 2; got 3"),
        ({"schedule": "vpp"}, "schedule: unknown 'vpp'"),
        ({"parametrization": "eps"}, "parametrization: got 'eps'; known: data, edm"),
        ({"weighting": "edn"}, "weighting: unknown 'edn'; did you mean edm"),
        ({"network": "une"}, "network: unknown 'une'; did you mean unet"),
        ({"network": {"mlp": {"hiden_features": (3,)}}}, "mlp: 'hiden_features': unknown size; did you mean hidden_f"),
        ({"network": {"mlp": 3}}, "network: mlp takes options by name; got 3"),
        ({"context_dropout": 1.0}, "context_dropout must be at least 0 and below 1; got 1.0"),
        ({"pairing": "ot"}, "pairing: got 'ot'"),
        ({"seed": -1}, "seed must be 0 to"),
        ({"context_shape": (2,), "pairing": "optimal-transport"}, "pairing: optimal transport would pair"),
        ({"event_shape": ()}, "event_shape must hold at least one dimension"),
        ({"event_shape": (1, 2, 2), "network": {"unet": {"channel_multipliers": (1, 2, 2, 2)}}}, "channel_multipliers"),
    ],
)
def test_arguments_out_of_range_are_told_of(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises((ConfigError, ShapeError), match=message):
        Diffusion(**{"event_shape": (2,), **arguments})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_steps": 0}, "num_steps must be a whole number from 1 to .*; got 0"),
        ({"num_steps": 2.5}, "num_steps must be a whole number"),
        ({"sampler": "dpn++"}, "did you mean dpm"),
        ({"spacing": "even"}, "spacing: got 'even'"),
        ({"least_noise": 0}, "least_noise must be a number from"),
        ({"guidance": "strong"}, "guidance: a number such as 2.0"),
        ({"steps": 10}, "takes sampler, num_steps, .*; got steps"),
    ],
)
def test_drawing_options_out_of_range_are_told_of(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Diffusion((2,), **SMALL).sample(2, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "exact"}, "by methods .elbo. and .ode."),
        ({"num_draws": 3}, "num_draws must be 8 to"),
        ({"draws": 64}, "takes num_draws and seed; got draws"),
    ],
)
def test_likelihood_options_out_of_range_are_told_of(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Diffusion((2,), **SMALL).eval().likelihood(torch.zeros(1, 2), **options)


def test_contexts_that_are_missing_or_wrong_are_told_of() -> None:
    density = Diffusion((1,), {"season": Label(4)}, **SMALL)
    with pytest.raises(ShapeError, match="conditional: give"):
        density.sample(2)
    with pytest.raises(DataError, match="context 'season': there is no class 7: they are 0 to 3"):
        density.sample(2, {"season": 7})
    with pytest.raises(ShapeError, match="context 'saison'"):
        density.sample(2, {"saison": 1})
    never = Diffusion((1,), {"season": Label(4)}, context_dropout=0.0, **SMALL)
    with pytest.raises(ConfigError, match="trained with context_dropout 0"):
        never.sample(2, {"season": 1}, guidance=2.0)


def test_guidance_without_a_context_changes_nothing() -> None:
    density = Diffusion((2,), **SMALL)
    assert torch.equal(density.sample(3, seed=0, guidance=2.0), density.sample(3, seed=0))


def test_training_stops_at_a_row_that_is_no_number_and_names_it() -> None:
    rows = torch.randn(400, 2)
    density = Diffusion((2,), **SMALL)
    with pytest.raises((DataError, TrainingError), match="row"):
        sf.fit(density, torch.cat((rows, torch.full((1, 2), torch.nan))), max_steps=50)
    sf.fit(density, rows, max_steps=5)


def test_a_run_that_diverges_keeps_what_it_had() -> None:
    rows = torch.randn(400, 2, generator=torch.Generator().manual_seed(0))
    density = Diffusion((2,), **SMALL)
    with pytest.raises(TrainingError, match=r"step .*: .* not finite.*; the density has the weights of step"):
        sf.fit(density, rows, max_steps=4000, learning_rate=1e18, gradient_clip=1e30, ema_decay=0.0, patience=4000)
    assert all(parameter.isfinite().all() for parameter in density.parameters())


def test_trajectories_lead_from_noise_to_events() -> None:
    density = Diffusion((2,), **SMALL).eval()
    states = density.sample((3, 4), seed=0, num_steps=6, return_trajectory=True)
    assert states.shape == (7, 3, 4, 2)
    torch.testing.assert_close(states[-1], density.sample((3, 4), seed=0, num_steps=6))
    assert states[0].std() > 20
