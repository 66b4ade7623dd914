"""``sf.fit``: training in this process, as an analysis script does it."""

from __future__ import annotations

import math
import os
import pty
import re
import subprocess
import sys
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr
from torch import Tensor

import sciflow as sf
from sciflow.config import Training
from sciflow.errors import ConfigError, DataError, LayoutError, ShapeError, TrainingError
from sciflow.training.budget import Budget
from sciflow.training.loop import _learning_rate

COVARIANCE = np.array([[2.0, 1.2], [1.2, 1.5]])


def gaussian(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).multivariate_normal([3.0, -1.0], COVARIANCE, size=n)


def small(event_shape=(2,), **arguments) -> sf.flows.NSF:
    return sf.flows.NSF(event_shape, **{"num_transforms": 1, "hidden_features": (16,), "seed": 0, **arguments})


def weights(density) -> bytes:
    return b"".join(t.detach().numpy().tobytes() for t in density.state_dict().values())


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> sf.Store:
    path = tmp_path_factory.mktemp("fit") / "rows.zarr"
    frame = pd.DataFrame(gaussian(600), columns=["height", "weight"])
    return sf.shard(frame, path, shard_rows=100, progress=False)


class TestWhatItLearns:
    def test_a_correlated_gaussian_to_its_entropy(self):
        fitted = sf.fit(small(num_transforms=2, hidden_features=(32,)), gaussian(6000), seed=0, max_steps=400)
        entropy = 0.5 * math.log((2 * math.pi * math.e) ** 2 * np.linalg.det(COVARIANCE))
        held_out = fitted.density.log_prob(gaussian(20_000, seed=1)).mean().item()
        assert held_out == pytest.approx(-entropy, abs=0.05)
        assert fitted.validation.mean == pytest.approx(-entropy, abs=0.05 + 3 * fitted.validation.error)

    def test_in_the_units_of_the_data(self):
        rows = gaussian(2000)
        metres = sf.fit(small(), rows, seed=0, max_steps=60)
        millimetres = sf.fit(small(), rows * 1000, seed=0, max_steps=60)
        assert millimetres.validation.mean == pytest.approx(metres.validation.mean - 2 * math.log(1000), abs=5e-3)

    def test_a_conditional_density(self):
        context = np.random.default_rng(0).normal(size=(2000, 1))
        events = context + 0.5 * np.random.default_rng(1).normal(size=(2000, 1))
        density = small((1,), context_shape=(1,), num_transforms=2)
        fitted = sf.fit(density, events, context=context, seed=0, max_steps=400)
        entropy = 0.5 * math.log(2 * math.pi * math.e * 0.25)
        assert fitted.validation.mean == pytest.approx(-entropy, abs=0.15)


class TestWhatItTakes:
    @pytest.mark.parametrize(
        "convert",
        [
            torch.as_tensor,
            lambda rows: pd.DataFrame(rows, columns=["a", "b"]),
            lambda rows: xr.DataArray(rows, dims=("row", "variable"), name="x"),
            lambda rows: rows.tolist(),
        ],
        ids=["torch", "pandas", "xarray", "list"],
    )
    def test_the_same_rows_in_any_dress_give_the_same_density(self, convert):
        rows = gaussian(200).astype("float32")
        plain = sf.fit(small(), rows, seed=0, max_steps=5)
        assert weights(sf.fit(small(), convert(rows), seed=0, max_steps=5).density) == weights(plain.density)

    def test_a_store_with_its_own_validation_rows(self, store):
        fitted = sf.fit(small(), store, seed=0, max_steps=20)
        assert fitted.validation.count == len(store.validation)
        assert fitted.density.layout == store.layout.to_json()
        assert fitted.density.provenance["data"] == store.fingerprint

    def test_validation_rows_of_the_user(self):
        fitted = sf.fit(small(), gaussian(200), validation=gaussian(77, seed=1), max_steps=5)
        assert fitted.validation.count == 77

    def test_a_tenth_is_held_out_of_many_and_a_fifth_of_few(self):
        assert sf.fit(small(), gaussian(1000), max_steps=1).validation.count == 100
        assert sf.fit(small(), gaussian(500), max_steps=1).validation.count == 100

    def test_a_table_leaves_its_names_with_the_density(self):
        frame = pd.DataFrame(gaussian(100), columns=["height", "weight"])
        density = sf.fit(small(), frame, max_steps=2).density
        assert list(density.layout["variables"]) == ["height", "weight"]

    def test_so_does_a_table_of_contexts(self):
        events, context = gaussian(100), pd.DataFrame(gaussian(100, seed=1), columns=["hour", "day"])
        given = {"context": context, "validation": events, "max_steps": 2}
        density = sf.fit(small(context_shape=(2,)), events, validation_context=context, **given).density
        assert density.context_columns == ["hour", "day"]
        other = sf.fit(small(context_shape=(2,)), events, validation_context=context[["day", "hour"]], **given)
        assert weights(other.density) == weights(density)
        assert sf.fit(density, events, context=context.to_numpy(), max_steps=1).density.context_columns is None

    def test_inference_mode_around_it(self):
        density = small()
        with torch.inference_mode():
            sf.fit(density, gaussian(100), max_steps=5)
        assert weights(density) == weights(sf.fit(small(), gaussian(100), max_steps=5).density)

    def test_double_precision(self):
        density = small().double()
        sf.fit(density, gaussian(100), max_steps=5)
        assert density.log_prob(gaussian(3)).dtype == torch.float64


class TestWhatItRefuses:
    @pytest.mark.parametrize(
        ("data", "options", "kind", "words"),
        [
            (np.zeros((0, 2)), {}, DataError, "no events"),
            (gaussian(2), {}, DataError, "at least 3"),
            (gaussian(50)[:, :1], {}, ShapeError, r"events \[n, 2\] expected; got \[50, 1\]"),
            (gaussian(50)[:, 0], {}, ShapeError, r"got \[50\]"),
            (np.full((5, 2), "text"), {}, DataError, "numbers"),
            (gaussian(50), {"max_step": 5}, ConfigError, r"max_step: unknown key; did you mean max_steps\?"),
            (gaussian(50), {"learning_rate": 0}, ConfigError, "greater than 0"),
            (gaussian(50), {"context": gaussian(50)}, ShapeError, "no context"),
            (gaussian(50), {"validation_context": gaussian(50)}, DataError, "without validation"),
        ],
    )
    def test_what_it_cannot_train_on(self, data, options, kind, words):
        with pytest.raises(kind, match=words):
            sf.fit(small(), data, **options)

    def test_a_missing_value_by_row_and_element(self):
        rows = gaussian(50)
        rows[17, 1] = np.nan
        with pytest.raises(DataError, match=r"1 of 50 rows .* first at row 17, element \[1\]"):
            sf.fit(small(), rows)

    @pytest.mark.parametrize("convert", [np.asarray, pd.DataFrame], ids=["numpy", "pandas"])
    def test_what_the_floating_type_makes_one_number(self, convert):
        rows = gaussian(50)
        rows[:, 1] += 1e9
        message = r"element \[1\] varies from 99.*, which is all one number in float32: take off an offset, or use den"
        with pytest.raises(DataError, match=f"^events: {message}"):
            sf.fit(small(), convert(rows))
        with pytest.raises(DataError, match=f"^context: {message}"):
            sf.fit(small(context_shape=(2,)), gaussian(50), context=convert(rows))
        assert sf.fit(small().double(), convert(rows), max_steps=1).steps == 1

    def test_what_is_beyond_the_floating_type(self):
        rows = gaussian(50) * 1e300
        message = "holds values that are finite, but beyond float32: give them in other units, or use density.double()"
        with pytest.raises(DataError, match=re.escape(f"events: element [0] {message}")):
            sf.fit(small(), rows)
        with pytest.raises(DataError, match=re.escape(f"context: element [0] {message}")):
            sf.fit(small(context_shape=(2,)), gaussian(50), context=rows)

    def test_two_contexts_of_one_name(self):
        twice = pd.DataFrame(gaussian(50), columns=["hour", "hour"])
        with pytest.raises(DataError, match="context: 2 columns are called 'hour': rename them"):
            sf.fit(small(context_shape=(2,)), gaussian(50), context=twice)

    def test_a_density_from_inference_mode(self):
        with torch.inference_mode():
            density = small()
        with pytest.raises(ConfigError, match="cannot be trained: build it outside"):
            sf.fit(density, gaussian(50))

    def test_a_context_of_other_length(self):
        with pytest.raises(ShapeError, match=r"context of shape \[50, 1\] expected.*got \[49, 1\]"):
            sf.fit(small(context_shape=(1,)), gaussian(50), context=np.zeros((49, 1)))

    def test_a_conditional_density_without_context(self):
        with pytest.raises(ShapeError, match="is conditional"):
            sf.fit(small(context_shape=(1,)), gaussian(50))

    def test_a_store_of_other_events(self, store):
        with pytest.raises(LayoutError, match=r"events have shape \[2\], the density is for \[3\]"):
            sf.fit(small((3,)), store)

    def test_validation_columns_in_another_order(self):
        frame = pd.DataFrame(gaussian(50), columns=["height", "weight"])
        with pytest.raises(LayoutError, match="laid out differently"):
            sf.fit(small(), frame, validation=frame[["weight", "height"]], max_steps=1)


class TestSettings:
    def test_the_same_seed_gives_the_same_density(self):
        one, two, other = (
            sf.fit(small(dropout=0.2), gaussian(200), seed=seed, max_steps=10).density for seed in (5, 5, 6)
        )
        assert weights(one) == weights(two) != weights(other)

    def test_patience_ends_training_and_the_best_weights_are_kept(self):
        fitted = sf.fit(
            small(num_transforms=2),
            gaussian(60),
            validation=gaussian(500, seed=1),
            max_steps=2000,
            learning_rate=2e-2,
            validate_every=5,
            patience=4,
            batch_size=60,
            weight_decay=0,
        )
        found = {r["step"]: r["validation_log_prob"] for r in fitted.history if "validation_log_prob" in r}
        assert fitted.ended == "patience"
        assert fitted.best_step == max(found, key=found.get) == fitted.steps - 4 * 5
        assert fitted.validation.mean == pytest.approx(found[fitted.best_step], abs=1e-5)
        assert found[fitted.steps] < found[fitted.best_step]

    def test_epochs_count_passes_over_the_training_rows(self):
        assert sf.fit(small(), gaussian(125), batch_size=25, max_epochs=3).steps == 3 * 4

    @pytest.mark.parametrize(("rows", "rate"), [(100, 1e-3), (1_000, 1e-3), (90_000, 1e-3 * 8**0.5), (10**7, 3e-3)])
    def test_the_learning_rate_grows_with_the_root_of_the_batch(self, rows, rate):
        assert Budget.of(Training(), rows).learning_rate == pytest.approx(rate)
        assert Budget.of(Training(learning_rate=0.5), rows).learning_rate == 0.5

    def test_a_family_that_learns_slowly_takes_more_steps_unless_told_how_many(self):
        assert Budget.of(Training(), 10_000, 3).max_steps == 3 * Budget.of(Training(), 10_000).max_steps
        assert Budget.of(Training(max_steps=70), 10_000, 3).max_steps == 70
        assert Budget.of(Training(max_epochs=2), 10_000, 3).max_steps == 80

    def test_the_learning_rate_rises_and_falls_to_zero(self):
        budget = Budget.of(Training(learning_rate=1.0, max_steps=100), 1_000)
        rates = [_learning_rate(step, budget, 0.1) for step in range(100)]
        assert rates[:10] == pytest.approx([0.1 * (i + 1) for i in range(10)])
        assert max(rates) == 1.0
        assert all(a >= b for a, b in pairwise(rates[10:]))
        assert rates[-1] < 1e-3

    def test_bfloat16_is_near_float32(self):
        plain, half = (
            sf.fit(small(), gaussian(500), seed=0, max_steps=40, precision=p) for p in ("float32", "bfloat16")
        )
        assert half.validation.mean == pytest.approx(plain.validation.mean, abs=0.1)
        assert half.density.dtype == torch.float32
        assert weights(half.density) != weights(plain.density)

    def test_compiled_kernels_give_the_same_loss(self):
        plain, compiled = (
            sf.fit(small((1,)), gaussian(100)[:, :1], seed=0, max_steps=2, compile=c) for c in ("never", "always")
        )
        assert compiled.validation.mean == pytest.approx(plain.validation.mean, abs=1e-3)


class Bad(sf.flows.NSF):
    """Its loss is NaN for rows whose first element is above a limit."""

    limit = math.inf

    def loss(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        losses = super().loss(x, context)
        return torch.where(torch.as_tensor(x)[:, 0] > self.limit, torch.nan, losses)


class TestALossThatIsNotFinite:
    def bad(self) -> Bad:
        return Bad((2,), num_transforms=1, hidden_features=(16,), seed=0)

    def test_is_told_with_step_and_rows_as_the_user_counts_them(self):
        rows = np.clip(gaussian(200), -50, 50)
        rows[[31, 142]] = [[100.0, 0.0], [101.0, 0.0]]
        density = self.bad()
        density.limit = 99.0
        # The validation rows are the user's, so that both bad ones are trained on.
        order = np.random.default_rng(3).permutation(len(rows))
        with pytest.raises(TrainingError) as caught:
            sf.fit(density, rows[order], validation=gaussian(20, 1), max_steps=10, batch_size=200)
        named = sorted(int(np.flatnonzero(order == row)[0]) for row in (31, 142))
        assert f"step 0: the loss of rows {named[0]}, {named[1]} is not finite" in str(caught.value)

    def test_counts_rows_before_the_hold_out(self):
        rows = gaussian(200)
        rows[150] = [1e3, 0.0]
        for seed in range(20):
            density = self.bad()
            density.limit = 999.0
            with pytest.raises(TrainingError) as caught:
                sf.fit(density, rows, seed=seed, max_steps=3, batch_size=200)
            if "validation" not in str(caught.value):
                assert "rows 150 is not finite" in str(caught.value)
                return
        pytest.fail("row 150 was held out twenty times")

    def test_leaves_the_density_with_the_best_weights_in_eval_mode(self):
        density = self.bad()
        calls = 0

        def loss(x, context=None):
            nonlocal calls
            calls += 1
            losses = sf.flows.NSF.loss(density, x, context)
            return losses * math.nan if calls > 30 else losses

        density.loss = loss
        with pytest.raises(TrainingError, match="the density has the weights of step"):
            sf.fit(density, gaussian(100), max_steps=100, validate_every=5)
        del density.loss
        assert not density.training
        assert torch.isfinite(density.log_prob(gaussian(10))).all()

    def test_a_diverging_fit_says_what_to_try(self):
        with pytest.raises(TrainingError, match=r"step \d+: .* lower training.learning_rate"):
            sf.fit(small(), gaussian(200), learning_rate=1e25, weight_decay=0, max_steps=20, validate_every=20)

    def test_validation_rows_are_named_too(self):
        density = self.bad()
        density.limit = 900.0
        held_out = gaussian(20)
        held_out[7] = [1e3, 0.0]
        with pytest.raises(TrainingError, match="log p of validation rows 7 is not finite"):
            sf.fit(density, gaussian(100), validation=held_out, max_steps=2)

    def test_held_out_rows_outside_the_support_are_counted_and_do_not_spoil_the_choice(self):
        held_out = np.random.default_rng(1).beta(4, 2, size=(50, 1))
        held_out[3] = 9.0
        rows = np.random.default_rng(0).beta(4, 2, size=(300, 1))
        fitted = sf.fit(small((1,), preprocess="logit"), rows, validation=held_out, max_steps=40, validate_every=10)
        assert (fitted.validation.count, fitted.validation.impossible) == (49, 1)
        assert math.isfinite(fitted.validation.mean)
        assert fitted.best_step > 10
        assert "1 more rows are impossible" in repr(fitted)


class TestManners:
    def test_the_record_is_short(self):
        fitted = sf.fit(small(), gaussian(100), max_steps=3)
        assert re.fullmatch(r"Fit\(steps=3, validation=-\d+\.\d\d \+- \d\.\d\d nats, \d+ s\)", repr(fitted))

    def test_loss_curves(self):
        import matplotlib

        matplotlib.use("Agg")
        assert sf.fit(small(), gaussian(100), max_steps=3).plot().axes

    def test_the_callers_random_numbers_are_not_touched(self):
        torch.manual_seed(7)
        np.random.seed(7)
        before, threads, dtype = torch.get_rng_state(), torch.get_num_threads(), torch.get_default_dtype()
        numpy_before = np.random.get_state()[1].copy()
        sf.fit(small(dropout=0.1), gaussian(100), max_steps=3)
        assert torch.equal(torch.get_rng_state(), before)
        assert np.array_equal(np.random.get_state()[1], numpy_before)
        assert (torch.get_num_threads(), torch.get_default_dtype()) == (threads, dtype)
        assert torch.is_grad_enabled()

    def test_the_data_are_not_touched(self):
        rows = gaussian(100)
        copy = rows.copy()
        sf.fit(small(preprocess=["dequantize", "standardize"]), rows, max_steps=3)
        assert np.array_equal(rows, copy)

    def test_the_density_is_ready_for_use(self):
        density = sf.fit(small(dropout=0.5), gaussian(100), max_steps=3).density
        assert not density.training
        assert all(p.grad is None for p in density.parameters())

    def test_no_progress_bar_where_nobody_looks(self, capfd):
        sf.fit(small(), gaussian(100), max_steps=3)
        assert capfd.readouterr() == ("", "")

    def test_a_progress_bar_on_a_terminal(self):
        leader, follower = pty.openpty()
        code = (
            "import torch; torch.set_num_threads(1); import sciflow as sf; "
            "sf.fit(sf.flows.NSF((1,), num_transforms=1, seed=0), torch.randn(50, 1), max_steps=50)"
        )
        child = subprocess.Popen([sys.executable, "-c", code], stderr=follower, env={**os.environ, "TERM": "xterm"})
        os.close(follower)
        shown = b""
        while True:
            try:
                part = os.read(leader, 4096)
            except OSError:
                break
            if not part:
                break
            shown += part
        assert child.wait() == 0
        assert b"training" in shown

    def test_an_interrupt_leaves_a_density_that_can_be_used(self):
        density = small()
        before = weights(density)
        steps = 0

        def loss(x, context=None):
            nonlocal steps
            steps += 1
            if steps == 60:
                raise KeyboardInterrupt
            return type(density).loss(density, x, context)

        density.loss = loss
        with pytest.raises(KeyboardInterrupt):
            sf.fit(density, gaussian(100), max_steps=200, validate_every=5)
        del density.loss
        assert not density.training
        assert all(p.grad is None for p in density.parameters())
        assert weights(density) != before
        assert torch.isfinite(density.log_prob(gaussian(10))).all()
        assert sf.fit(density, gaussian(100), max_steps=2).steps == 2
