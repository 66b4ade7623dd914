"""Simulations are made once, the same by whoever makes them, and those that fail are known."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch
from conjugate import PRIOR, simulate
from stored import contents
from torch.distributions import Independent, Normal, Uniform

from sciflow.errors import ConfigError, DataError, RunError, ShapeError, StoreError
from sciflow.inference import fit_conditional
from sciflow.inference.conditional.prior import Prior
from sciflow.inference.conditional.simulating import Simulating, open_simulations
from sciflow.inference.conditional.simulator import pilot

QUICK = {
    "progress": False,
    "members": 1,
    "max_steps": 5,
    "density": {"name": "maf", "num_transforms": 1, "hidden_features": (8,)},
}


def job(function, n=40, seed=0, place="", prior=PRIOR, **pilot_options) -> Simulating:
    known = Prior(prior)
    simulator, witness = pilot(function, known, seed, **pilot_options)
    return Simulating(known, simulator, n, seed, known.num_parameters, witness, str(place))


def in_order(work, numbers) -> None:
    for number in numbers:
        work(number)


def backwards(work, numbers) -> None:
    for number in reversed(numbers):
        work(number)


class TestSimulators:
    """Whatever a user's function takes and gives."""

    @pytest.mark.parametrize(
        ("function", "shape", "batched"),
        [
            (lambda t: t + torch.randn_like(t), (2,), True),
            (lambda t: t.numpy() + np.random.normal(size=t.shape), (2,), True),
            (lambda t: t.sum(-1), (1,), True),
            (lambda t: float(t[0]) + float(t[1]), (1,), False),
            (lambda t: np.outer(t, [1, 2, 3]) if t.ndim == 1 else 1 // 0, (2, 3), False),
            (lambda t, seed: t + seed % 7, (2,), True),
            (lambda t, generator: t + torch.randn(t.shape, generator=generator), (2,), True),
            (lambda t, rng: t.numpy() + rng.normal(size=t.shape), (2,), True),
        ],
        ids=["torch", "numpy", "number", "row", "field-of-a-row", "seed", "generator", "rng"],
    )
    def test_batches_and_rows_of_torch_and_numpy(self, function, shape, batched):
        made = job(function)
        assert made.simulator.x_shape == shape
        assert made.simulator.batched == batched
        part = made.in_memory(in_order)
        assert part.x.shape == (40, *shape)
        assert np.isfinite(part.x).all()
        # The same whatever the order, and whatever else was drawn meanwhile.
        torch.manual_seed(9)
        assert np.array_equal(part.x, made.in_memory(backwards).x)
        assert not np.array_equal(part.theta, job(function, seed=1).in_memory(in_order).theta)

    def test_the_callers_generators_are_left_alone(self):
        torch.manual_seed(0)
        np.random.seed(0)
        expected = torch.rand(1), np.random.rand()
        torch.manual_seed(0)
        np.random.seed(0)
        job(simulate).in_memory(in_order)
        assert (torch.rand(1), np.random.rand()) == expected

    @pytest.mark.parametrize(
        ("function", "error", "words"),
        [
            (3, ConfigError, "give a function"),
            (lambda t: 1 // 0, DataError, "none of 16 draws .* ZeroDivisionError"),
            (lambda t: t * torch.nan, DataError, "not finite"),
            (lambda t: "text", DataError, "numbers expected"),
        ],
    )
    def test_what_gives_nothing_is_refused(self, function, error, words):
        with pytest.raises(error, match=words):
            job(function)


class TestPriors:
    """Distributions, objects and functions."""

    @pytest.mark.parametrize(
        "given",
        [
            lambda n: torch.rand(n, 2),
            lambda n, seed: np.random.default_rng(seed).random((n, 2)),
            lambda n, generator: torch.rand(n, 2, generator=generator),
            lambda n, whatever: np.random.default_rng(whatever).random((n, 2)),
            Uniform(torch.zeros(2), torch.ones(2)),
        ],
        ids=["function", "seed", "generator", "positional", "distribution"],
    )
    def test_draws_follow_the_seed(self, given):
        prior = Prior(given)
        assert prior.num_parameters == 2
        assert torch.equal(prior.sample(5, 3), prior.sample(5, 3))
        assert not torch.equal(prior.sample(5, 3), prior.sample(5, 4))

    def test_a_batch_of_independent_parameters_is_one_vector(self):
        theta = torch.rand(5, 2)
        batch, event = Uniform(torch.zeros(2), 2 * torch.ones(2)), Uniform(torch.zeros(2), 2 * torch.ones(2))
        assert torch.equal(Prior(batch).log_prob(theta), Prior(Independent(event, 1)).log_prob(theta))

    def test_one_parameter_may_be_a_number(self):
        prior = Prior(Normal(0.0, 1.0))
        assert prior.sample(4, 0).shape == (4, 1)
        assert torch.allclose(
            prior.log_prob(torch.zeros(2, 1)), torch.full((2,), -0.9189, dtype=torch.float64), atol=1e-4
        )

    @pytest.mark.parametrize(
        ("given", "error", "words"),
        [
            (3, ConfigError, "give a distribution"),
            (lambda n: torch.rand(n, 2, 2), ShapeError, "a vector each"),
            (lambda n: torch.rand(n + 1, 2), ShapeError, "a vector each"),
            (lambda n: torch.full((n, 2), torch.nan), DataError, "not finite"),
            (lambda n: 1 // 0, DataError, "fails to draw"),
        ],
    )
    def test_what_is_no_prior_is_refused(self, given, error, words):
        with pytest.raises(error, match=words):
            Prior(given)

    def test_without_log_prob_there_is_no_likelihood_method(self):
        with pytest.raises(ConfigError, match="the prior's log_prob"):
            fit_conditional(prior=lambda n: torch.rand(n, 2), simulator=simulate, method="nle")


def fails_above(limit: float):
    """A simulator of one row that raises an error for large parameters."""

    def function(theta):
        if theta[..., 0].max() > limit:
            raise ValueError("too large\nsecond line")
        return theta + 1

    return function


class TestFailures:
    """Retried, counted, left out, and known."""

    def test_an_error_is_of_its_rows_alone(self):
        part = job(fails_above(2.0), n=200).in_memory(in_order)
        large = part.theta[:, 0] > 2
        assert 0 < large.sum() < 100
        assert sorted(part.reasons) == np.flatnonzero(large).tolist()
        assert set(part.reasons.values()) == {"ValueError: too large"}

    def test_what_fails_once_is_tried_again(self):
        calls = []

        def function(theta):
            calls.append(len(theta))
            if len(calls) % 5 == 0:
                raise OSError("disk")
            return theta

        assert job(function, n=200).in_memory(in_order).reasons == {}

    def test_nan_and_wrong_shapes_are_left_out(self):
        def function(theta):
            assert theta.ndim == 1
            if theta[0] > 2:
                return theta * torch.nan
            return theta[:1] if theta[0] < 0 else theta

        with pytest.warns(UserWarning, match="simulations failed and were left out"):
            found = fit_conditional(prior=PRIOR, simulator=function, num_simulations=200, **QUICK)
        assert set(found.failures.counts) == {"not finite", "shape [1], not [2]"}
        assert found.num_simulations + len(found.failures) == found.failures.total == 200
        outside = (found.failures.parameters[:, 0] < 0) | (found.failures.parameters[:, 0] > 2)
        assert outside.all()
        assert "prior in effect" in found.notes[0]

    def test_what_hangs_is_ended(self):
        def function(theta):
            while theta[..., 0].max() > 3:
                time.sleep(0.01)
            return theta

        began = time.monotonic()
        part = job(function, n=40, seed=3, timeout=0.5).in_memory(in_order)
        large = part.theta[:, 0] > 3
        assert large.sum() == 1
        assert sorted(part.reasons) == np.flatnonzero(large).tolist()
        assert set(part.reasons.values()) == {"no answer after 0.5 s"}
        assert time.monotonic() - began < 30

    def test_a_crash_is_of_its_rows_alone(self):
        import os

        def function(theta):
            if theta[..., 0].max() > 2.5:
                os._exit(3)
            return theta

        part = job(function, n=40, timeout=5).in_memory(in_order)
        assert sorted(part.reasons) == np.flatnonzero(part.theta[:, 0] > 2.5).tolist()
        assert all("exit code 3" in reason for reason in part.reasons.values())

    def test_what_tells_nothing_is_warned_of(self):
        with pytest.warns(UserWarning, match="x is the same in all simulations"):
            found = fit_conditional(prior=PRIOR, simulator=lambda theta: torch.ones(3), num_simulations=100, **QUICK)
        assert "tells nothing" in found.notes[0]

    def test_too_many_failures_are_an_error(self):
        with pytest.raises(DataError, match=r"of 100 simulations failed, .* 'ValueError: too large'"):
            fit_conditional(prior=PRIOR, simulator=fails_above(0.5), num_simulations=100, **QUICK)


class TestStores:
    """Same seed, same bytes."""

    def made(self, place, waiting=None, function=simulate, order=in_order, **options):
        made = job(function, place=place, **options)
        numbers = made.begin(overwrite=False)
        if numbers is not None:
            order(made.write, numbers if waiting is None else numbers[:waiting])
        if waiting is None and numbers is not None:
            made.finish()
        return numbers

    def test_any_order_and_any_interruption_gives_the_same_bytes(self, tmp_path):
        self.made(tmp_path / "one.zarr")
        self.made(tmp_path / "other.zarr", order=backwards)
        assert self.made(tmp_path / "third.zarr", waiting=1) == [0, 1, 2]
        with pytest.raises(StoreError, match="half-written"):
            open_simulations(tmp_path / "third.zarr")
        assert self.made(tmp_path / "third.zarr") == [1, 2]
        assert contents(tmp_path / "one.zarr") == contents(tmp_path / "other.zarr") == contents(tmp_path / "third.zarr")
        assert self.made(tmp_path / "third.zarr") is None

    def test_it_holds_what_is_made_in_memory(self, tmp_path):
        made = job(fails_above(2.0), n=60, place=tmp_path / "some.zarr")
        in_order(made.write, made.begin(overwrite=False))
        made.finish()
        stored, part = open_simulations(tmp_path / "some.zarr"), made.in_memory(in_order)
        assert np.array_equal(stored.theta[:], part.theta)
        assert np.array_equal(stored.x[:], part.x, equal_nan=True)
        assert stored.reasons == part.reasons

    @pytest.mark.parametrize("change", [{"seed": 1}, {"n": 41}, {"function": lambda t: t.new_zeros(len(t), 3)}])
    def test_other_simulations_are_not_mixed_in(self, tmp_path, change):
        self.made(tmp_path / "sims.zarr")
        with pytest.raises(StoreError, match="already there"):
            self.made(tmp_path / "sims.zarr", **change)

    def test_a_block_that_is_not_whole_is_told(self, tmp_path):
        made = job(simulate, place=tmp_path / "sims.zarr")
        made.begin(overwrite=False)
        with pytest.raises(RunError, match="block 0 is not whole"):
            made.finish()

    def test_training_streams_from_it(self, tmp_path):
        call = {"prior": PRIOR, "simulator": simulate, "num_simulations": 100, "local": True, **QUICK}
        found = fit_conditional(store=tmp_path / "sims.zarr", **call)
        # Once there, they are not made again: neither by the same call nor by another method.
        first = contents(tmp_path / "sims.zarr")
        again = fit_conditional(store=tmp_path / "sims.zarr", **call)
        x = simulate(PRIOR.sample((3,)))
        assert torch.equal(found.sample(4, x, seed=0), again.sample(4, x, seed=0))
        other = fit_conditional(tmp_path / "sims.zarr", prior=PRIOR, method="nle", **QUICK)
        assert other.num_simulations == 100
        assert contents(tmp_path / "sims.zarr") == first

    def test_rounds_have_a_store_each(self, tmp_path):
        fit_conditional(
            prior=PRIOR,
            simulator=simulate,
            num_simulations=81,
            rounds=2,
            x_observed=torch.tensor([1.5, -1.0, 2.0]),
            store=tmp_path / "sims.zarr",
            local=True,
            **QUICK,
        )
        sizes = [len(open_simulations(tmp_path / name)) for name in ("sims.zarr", "sims.round2.zarr")]
        assert sizes == [41, 40]

    def test_a_store_of_sf_shard_is_taken(self, tmp_path):
        import xarray as xr

        import sciflow as sf

        theta = PRIOR.sample((100,))
        x = simulate(theta)
        names = {"a": theta[:, 0], "b": theta[:, 1], "x0": x[:, 0], "x1": x[:, 1]}
        table = xr.Dataset({name: ("simulation", values.numpy()) for name, values in names.items()})
        store = sf.shard(table, tmp_path / "sims.zarr", variables=["a", "b"], context=["x0", "x1"], progress=False)
        found = fit_conditional(store, prior=PRIOR, **QUICK)
        assert found.sample(2, x[:3, :2], seed=0).shape == (2, 3, 2)
        assert fit_conditional(tmp_path / "sims.zarr", prior=PRIOR, **QUICK).x_shape == (2,)

    @pytest.mark.ray
    def test_workers_write_the_same_bytes(self, tmp_path, ray_cluster):
        def function(theta):  # which workers need no file for
            return theta + torch.randn_like(theta)

        call = {"prior": PRIOR, "simulator": function, "num_simulations": 100, **QUICK}
        fit_conditional(store=tmp_path / "ray.zarr", num_workers=2, **call)
        fit_conditional(store=tmp_path / "here.zarr", local=True, **call)
        assert contents(tmp_path / "ray.zarr") == contents(tmp_path / "here.zarr")
        x = PRIOR.sample((2,))
        assert torch.equal(
            fit_conditional(num_workers=2, **call).sample(3, x, seed=0),
            fit_conditional(tmp_path / "ray.zarr", prior=PRIOR, **QUICK).sample(3, x, seed=0),
        )
