"""What may be chosen: densities, embeddings, dtype, training; and what is told of a wrong choice."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from conjugate import PRIOR, simulate
from torch import nn
from torch.distributions import Independent, Uniform

import sciflow as sf
from sciflow.contexts import Field, Tokens
from sciflow.errors import ConfigError, DataError, ModelFileError, ShapeError, StoreError
from sciflow.inference import fit_conditional, load_conditional

SMALL = {"name": "maf", "num_transforms": 1, "hidden_features": (8,)}
QUICK = {"progress": False, "members": 1, "max_steps": 5, "density": SMALL}
THETA = PRIOR.sample((100,))
ROWS = (THETA, simulate(THETA))


class TestSimulationsThatAreThere:
    """Pairs and mappings of whatever holds numbers."""

    @pytest.mark.parametrize(
        "given",
        [
            ROWS,
            {"theta": ROWS[0].numpy(), "x": ROWS[1].numpy()},
            (ROWS[0].double(), ROWS[1].double()),
        ],
        ids=["tensors", "mapping", "float64"],
    )
    def test_the_same_numbers_the_same_posterior(self, given):
        draws = [fit_conditional(each, prior=PRIOR, **QUICK).sample(3, ROWS[1][:2], seed=0) for each in (given, ROWS)]
        assert torch.equal(*draws)

    def test_labelled_data(self):
        import xarray as xr

        data = xr.Dataset({"theta": (("n", "d"), ROWS[0].numpy()), "x": (("n", "e"), ROWS[1].numpy())})
        found = fit_conditional(data, prior=PRIOR, **QUICK)
        assert found.sample(2, data["x"][:4], seed=0).shape == (2, 4, 2)

    def test_without_a_prior_nothing_is_cut(self):
        found = fit_conditional(ROWS, **QUICK)
        assert found.prior is None
        assert found.posterior(ROWS[1][0]).leakage.share == 0

    def test_rows_that_are_not_finite_are_left_out(self):
        x = ROWS[1].clone()
        x[3] = torch.nan
        found = fit_conditional((ROWS[0], x), prior=PRIOR, **QUICK)
        assert found.failures.counts == {"not finite": 1}
        assert torch.equal(torch.from_numpy(found.failures.parameters[0]), ROWS[0][3])

    @pytest.mark.parametrize(
        ("given", "error", "words"),
        [
            (ROWS[0], DataError, "a pair"),
            ({"theta": ROWS[0]}, DataError, "'x' is missing"),
            ((ROWS[0], ROWS[1][:50]), ShapeError, "100 rows of theta, 50 of x"),
            ((ROWS[0][:10], ROWS[1][:10]), DataError, "20 at the least"),
            ((ROWS[0] * torch.nan, ROWS[1]), DataError, "theta has missing"),
            ((ROWS[0], ROWS[1] * torch.nan), DataError, "100 of 100 simulations failed"),
            ((ROWS[0][:, :, None], ROWS[1]), ShapeError, r"theta \[n, d\]"),
            ((ROWS[0][:, :1], ROWS[1]), DataError, "prior: of 2 parameters, and the simulations have 1"),
            ((ROWS[0] * 0 - 1, ROWS[1]), DataError, "outside the prior's support, first row 0"),
            ("nowhere.zarr", StoreError, "no such store"),
        ],
    )
    def test_what_cannot_be_used_is_refused(self, given, error, words):
        prior = Independent(Uniform(torch.zeros(2), torch.ones(2)), 1) if "outside" in words else PRIOR
        with pytest.raises(error, match=words):
            fit_conditional(given, prior=prior, **QUICK)

    def test_parameters_on_a_bound_are_taken(self):
        prior = Independent(Uniform(torch.zeros(2), torch.ones(2)), 1)
        theta = torch.rand(100, 2)
        theta[:2] = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
        found = fit_conditional((theta, theta + torch.randn(100, 2)), prior=prior, **{**QUICK, "density": None})
        assert torch.isfinite(found.sample(4, theta[:2], seed=0)).all()


class TestDensities:
    """By name, as a section of a workflow, or ready."""

    def test_one_that_is_ready(self):
        flow = sf.flows.MAF((2,), (3,), num_transforms=1, seed=0)
        found = fit_conditional(ROWS, prior=PRIOR, density=flow, max_steps=5, progress=False)
        assert found.densities == [flow]

    def test_members_differ_and_count_the_same(self):
        found = fit_conditional(ROWS, prior=PRIOR, **{**QUICK, "members": 3})
        each = torch.stack([density.log_prob(ROWS[0], ROWS[1]) for density in found.densities])
        assert not torch.allclose(each[0], each[1])
        mixture = torch.logsumexp(each.double(), 0) - np.log(3)
        assert torch.allclose(found.log_prob(ROWS[0], ROWS[1]), mixture.detach(), atol=1e-5)
        # A draw is of any member: the first half of many is distributed as the second.
        draws = found.sample(8000, ROWS[1][0], seed=0)
        assert torch.allclose(draws[:4000].mean(0), draws[4000:].mean(0), atol=0.15)

    def test_same_seed_same_densities(self):
        draws = [fit_conditional(ROWS, prior=PRIOR, seed=s, **QUICK).sample(3, ROWS[1][:2], seed=0) for s in (1, 1, 2)]
        assert torch.equal(draws[0], draws[1])
        assert not torch.equal(draws[0], draws[2])

    def test_float64(self):
        found = fit_conditional(ROWS, prior=PRIOR, dtype="float64", **QUICK)
        assert found.densities[0].dtype == torch.float64
        assert found.sample(2, ROWS[1][0], seed=0).dtype == torch.float64

    @pytest.mark.parametrize("method", ["npe", "fmpe", "npse", "nle"])
    def test_each_method_has_a_density_of_its_own(self, method):
        found = fit_conditional(ROWS, prior=PRIOR, method=method, members=1, max_steps=2, progress=False)
        assert found.method == method
        assert found.densities[0].event_shape == ((3,) if method == "nle" else (2,))

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            ({"method": "npee"}, "did you mean npe"),
            ({"density": {"name": "nfs"}}, "did you mean nsf"),
            ({"density": "nsf"}, "a mapping such as"),
            ({"density": sf.flows.MAF((2,), (4,), num_transforms=1)}, "a context of 3 numbers is needed"),
            ({"members": 0}, "1 to 100"),
            ({"max_stepps": 3}, "did you mean max_steps"),
            ({"dtype": "float16"}, "float32 or float64"),
            ({"seed": -1}, "a whole number expected"),
            ({"embedding": "convolution", "method": "nle"}, "embeds no observations"),
            ({"embedding": "cnn"}, "known: convolution, mlp, rows"),
            ({"embedding": {"mlp": {"width": 3}}}, "unknown size"),
            ({"embedding": 3}, "embedding"),
            ({"num_workers": 0}, "1 or more"),
            ({"simulator": simulate}, "both given"),
        ],
    )
    def test_a_wrong_choice_is_told(self, arguments, words):
        with pytest.raises(ConfigError, match=words):
            fit_conditional(ROWS, prior=PRIOR, **{**QUICK, **arguments})

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            ({"prior": PRIOR}, "simulator: missing"),
            ({"simulator": simulate}, "prior: missing"),
            ({"prior": PRIOR, "simulator": simulate, "num_simulations": 3}, "num_simulations 3"),
            ({"prior": PRIOR, "simulator": simulate, "timeout": 0}, "timeout 0"),
        ],
    )
    def test_what_is_missing_is_told(self, arguments, words):
        with pytest.raises(ConfigError, match=words):
            fit_conditional(**QUICK, **arguments)


def series(theta):
    """Two channels of 20 steps: waves whose height and rate are the parameters."""
    time = torch.linspace(0, 6, 20)
    wave = theta[:, :1] * torch.sin(time * (1 + 0.1 * theta[:, 1:]))
    return torch.stack((wave, wave.square()), 1) + 0.1 * torch.randn(len(theta), 2, 20)


class TestEmbeddings:
    """Structured observations go through a network first."""

    @pytest.mark.parametrize(
        "embedding",
        [
            None,
            "mlp",
            {"rows": {"num_features": 4}},
            {"convolution": {"hidden_features": 16}},
            Field((2, 20)),
            Tokens(2, features=20),
        ],
        ids=["by-shape", "mlp", "rows", "convolution", "field", "tokens"],
    )
    def test_survives_saving(self, embedding, tmp_path):
        found = fit_conditional(prior=PRIOR, simulator=series, num_simulations=60, embedding=embedding, **QUICK)
        x = series(THETA[:3])
        assert found.sample(2, x, seed=0).shape == (2, 3, 2)
        again = load_conditional(found.save(tmp_path / "found"), PRIOR)
        assert torch.equal(again.log_prob(THETA[:3], x), found.log_prob(THETA[:3], x))

    def test_a_module_of_the_users_is_trained_too(self, tmp_path):
        module = nn.Sequential(nn.Flatten(), nn.Linear(40, 5))
        before = module[1].weight.detach().clone()
        found = fit_conditional(prior=PRIOR, simulator=series, num_simulations=60, embedding=module, **QUICK)
        assert not torch.equal(module[1].weight, before)
        with pytest.raises(ModelFileError, match="a network of your own"):
            found.save(tmp_path / "found")

    def test_the_order_of_rows_does_not_matter_to_rows(self):
        theta = PRIOR.sample((60,))
        x = theta[:, None] + torch.randn(60, 7, 2)
        found = fit_conditional((theta, x), prior=PRIOR, embedding="rows", **QUICK)
        assert torch.allclose(found.log_prob(theta[:3], x[:3]), found.log_prob(theta[:3], x[:3].flip(1)), atol=1e-4)

    @pytest.mark.parametrize("method", ["fmpe", "npse"])
    def test_of_densities_by_flow_and_diffusion(self, method):
        density = {"network": {"mlp": {"hidden_features": (8,)}}}
        name = {"fmpe": "continuousflow", "npse": "diffusion"}[method]
        found = fit_conditional(
            prior=PRIOR,
            simulator=series,
            num_simulations=60,
            method=method,
            **{**QUICK, "density": {"name": name, **density}},
        )
        x = series(THETA[:2])
        assert torch.isfinite(found.log_prob(found.sample(3, x, seed=0), x)).all()

    def test_a_store_streams_structured_observations(self, tmp_path):
        call = {"prior": PRIOR, "simulator": series, "num_simulations": 60, **QUICK}
        found = fit_conditional(store=tmp_path / "sims.zarr", local=True, **call)
        assert found.x_shape == (2, 20)
        likelihood = fit_conditional(tmp_path / "sims.zarr", method="nle", **{**QUICK, "prior": PRIOR})
        assert likelihood.densities[0].event_shape == (2, 20)


class TestFolders:
    """What is read back is what was written, or an error that says where it is not."""

    def test_damage_is_told(self, tmp_path):
        folder = fit_conditional(ROWS, prior=PRIOR, **QUICK).save(tmp_path / "found")
        with pytest.raises(ModelFileError, match="no conditional posteriors here"):
            load_conditional(tmp_path / "other")
        description = json.loads((folder / "conditional.json").read_text())
        (folder / "conditional.json").write_text(json.dumps({**description, "version": 99}))
        with pytest.raises(ModelFileError, match="not written by this version"):
            load_conditional(folder)
        (folder / "conditional.json").write_text("{")
        with pytest.raises(ModelFileError, match="damaged"):
            load_conditional(folder)

    def test_another_prior_is_refused(self, tmp_path):
        folder = fit_conditional(ROWS, prior=PRIOR, **QUICK).save(tmp_path / "found")
        with pytest.raises(ShapeError, match=r"prior: of 3 parameters; what .* holds was fitted with 2"):
            load_conditional(folder, torch.distributions.Normal(torch.zeros(3), 1.0))

    def test_a_likelihood_needs_its_prior_again(self, tmp_path):
        folder = fit_conditional(ROWS, prior=PRIOR, method="nle", **QUICK).save(tmp_path / "found")
        with pytest.raises(DataError, match="give prior= when it is loaded"):
            load_conditional(folder).sample(3, ROWS[1][0])
