"""What no density can do right by, and training goes on all the same: constants, copies, values on a grid."""

from __future__ import annotations

import math
import re
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr

import sciflow as sf
from sciflow.errors import DataError
from sciflow.training.doubts import doubts

COVARIANCE = np.array([[2.0, 1.2], [1.2, 1.5]])
ENTROPY = 0.5 * math.log((2 * math.pi * math.e) ** 2 * np.linalg.det(COVARIANCE))


def gaussian(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).multivariate_normal([3.0, -1.0], COVARIANCE, size=n)


def small(event_shape=(3,), **arguments) -> sf.flows.NSF:
    return sf.flows.NSF(event_shape, **{"num_transforms": 1, "hidden_features": (16,), "seed": 0, **arguments})


def said(rows: np.ndarray, dequantized: bool = False) -> list[str]:
    columns = np.asarray(rows, "float32").reshape(len(rows), -1)
    return doubts(columns, None, dequantized, columns.shape[1:])


@pytest.fixture
def frame() -> pd.DataFrame:
    return pd.DataFrame(gaussian(60), columns=["height", "weight"])


class TestWarnings:
    def test_a_constant_is_named(self, frame):
        with pytest.warns(UserWarning, match="variable 'planet' is constant, always 3: .* better leave it out"):
            assert sf.fit(small(), frame.assign(planet=3.0), max_steps=2).steps == 2
        with pytest.warns(UserWarning, match=r"element \[2\] of the event is constant"):
            sf.fit(small(), frame.assign(planet=3.0).to_numpy(), max_steps=2)

    def test_several_constants_are_counted(self):
        rows = np.tile([*range(8), 0.0], (50, 1))
        rows[:, 4] = np.random.default_rng(0).normal(size=50)
        (doubt,) = said(rows)
        assert doubt.startswith("element [0] of the event is constant, always 0, and so are element [1] of the event, ")
        assert "element [3] of the event and 4 more: " in doubt

    def test_a_copy_is_named_with_its_original(self, frame):
        with pytest.warns(UserWarning, match="variable 'again' is a copy of variable 'height': .* joint density"):
            sf.fit(small(), frame.assign(again=frame["height"]), max_steps=2)

    def test_an_element_of_a_field_is_named_by_its_place(self):
        field = xr.DataArray(np.random.default_rng(0).normal(size=(60, 4)), dims=("day", "hour"), name="t2m")
        field[:, 3] = 0.0
        with pytest.warns(UserWarning, match=r"variable 't2m' at hour\+3 is constant"):
            sf.fit(small((4,)), field, max_steps=2)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_a_column_that_the_floating_type_cannot_resolve(self, dtype):
        rows = np.random.default_rng(0).normal(size=(300, 2))
        rows[:, 1] = 1.7e9 + 600 * rows[:, 1]
        flow = small((2,)).to(dtype)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            sf.fit(flow, rows, max_steps=2)
        words = r"element \[1\] of the event: values about 1.7e\+09 .* in steps of 2e\+02 only: take off an offset"
        assert len(caught) == (dtype == torch.float32)
        assert all(re.search(words, str(warning.message)) for warning in caught)

    def test_a_change_too_rare_for_the_sample_is_told(self):
        columns = np.column_stack([gaussian(100), np.zeros(100)]).astype("float32")
        extrema = columns.min(0), columns.max(0) + np.array([0, 0, 1], "float32")
        (doubt,) = doubts(columns, extrema, False, (3,))
        assert "element [2] of the event: always 0 in the 100 rows that scales are taken from" in doubt

    def test_the_users_own_line_is_shown(self, frame):
        with pytest.warns(UserWarning, match="is constant") as caught:
            sf.fit(small(), frame.assign(planet=3.0), max_steps=2)
        assert [warning.filename for warning in caught] == [__file__]

    def test_or_an_error_if_the_user_says_so(self, frame):
        for table, words in (
            (frame.assign(planet=3.0), "'planet' is constant"),
            (frame.assign(again=frame["height"]), "'again' is a copy"),
            (frame.assign(count=np.arange(60) % 7), "'count': the same values again and again"),
        ):
            with pytest.raises(DataError, match=f"{words}.*; or go on all the same with training.degenerate=warn"):
                sf.fit(small(), table, degenerate="error")


class TestGrids:
    RANDOM = np.random.default_rng(0)

    @pytest.mark.parametrize(
        "values",
        [
            RANDOM.poisson(3.0, 500),
            RANDOM.integers(0, 2, 60),
            RANDOM.integers(0, 1000, 3000),
            RANDOM.integers(-5, 5, 500) * 0.25,
            np.round(RANDOM.normal(size=2000), 1),
            np.maximum(0, RANDOM.normal(size=500)),
            RANDOM.poisson(20_000.0, 20_000),
        ],
        ids=["counts", "flags", "whole numbers of a wide range", "quarters", "rounded", "exact zeros", "large counts"],
    )
    def test_values_that_come_again_and_again(self, values):
        columns = np.column_stack([self.RANDOM.normal(size=len(values)), values])
        (doubt,) = said(columns)
        number = len(np.unique(values.astype("float32")))
        assert doubt.startswith(f"element [1] of the event: the same values again and again ({number:,} different ones")
        assert "log p diverges" in doubt
        assert 'preprocess=["dequantize", "standardize"]' in doubt
        assert said(columns, dequantized=True) == []

    @pytest.mark.parametrize(
        "values",
        [
            RANDOM.normal(size=60),
            RANDOM.normal(size=60_000),
            280 + 8 * RANDOM.normal(size=60_000),
            np.round(RANDOM.normal(size=3000), 3),
            273.15 + 0.002 * np.round(4000 * RANDOM.normal(size=20_000)),
            RANDOM.integers(0, 10**9, 5000),
            RANDOM.standard_t(1.5, size=5000),
            np.where(RANDOM.random(1000) < 0.05, 0.0, RANDOM.normal(size=1000)),
        ],
        ids=["few", "many", "kelvins", "three digits", "packed", "numbers of records", "heavy tails", "few zeros"],
    )
    def test_ordinary_measurements_are_let_be(self, values):
        assert said(values[:, None]) == []

    def test_real_tables(self, shared_data):
        rows = np.load(shared_data / "adbench" / "22_magic.gamma.npz")["X"]
        assert said(rows) == []
        wine = np.loadtxt(shared_data / "density" / "wine-quality-red" / "data.txt")
        (doubt,) = said(wine)
        assert "and 8 more: the same values" in doubt

    def test_many_columns_are_looked_through_in_no_time(self):
        image = self.RANDOM.integers(0, 256, (300, 64, 64, 3)).astype("float32")
        (doubt,) = doubts(image.reshape(300, -1), None, False, (64, 64, 3))
        assert doubt.startswith("element [0, 0, 0] of the event, ")

    def test_no_warning_where_noise_is_added(self):
        counts = np.random.default_rng(0).poisson(2.0, (80, 2))
        for noise in ("dequantize", "variational_dequantize"):
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                sf.fit(small((2,), preprocess=[noise, "standardize"]), counts, max_steps=2)
        with pytest.warns(UserWarning, match="again and again"):
            sf.fit(small((2,)), counts, max_steps=2)


class TestTrainingAllTheSame:
    """Against truth: log p is that of the other columns, and of the noise."""

    @pytest.mark.filterwarnings("ignore:element")
    @pytest.mark.parametrize("kind", ["constant", "copy"])
    def test_the_other_columns_are_learned_as_if_alone(self, kind):
        def rows(n: int, seed: int) -> np.ndarray:
            x = gaussian(n, seed)
            return np.column_stack([x, np.full(n, 101325.0) if kind == "constant" else x[:, 0]])

        fitted = sf.fit(small(num_transforms=2, hidden_features=(32,)), rows(4000, 0), max_steps=500, batch_size=500)
        width = 1.0 if kind == "constant" else 0.1 * COVARIANCE[0, 0] ** 0.5
        of_noise = -math.log(width * math.sqrt(2 * math.pi))
        assert fitted.density.log_prob(rows(20_000, 1)).mean().item() == pytest.approx(-ENTROPY + of_noise, abs=0.06)
        draws = fitted.density.sample(20_000, seed=0).double().numpy()
        np.testing.assert_allclose(np.cov(draws[:, :2].T), COVARIANCE, atol=0.2)
        np.testing.assert_allclose(draws.mean(0), rows(20_000, 1).mean(0), atol=0.1)
        # A change in what never changed is noticed.
        changed = rows(200, 2)
        changed[:, 2] += 8 * width
        assert fitted.density.log_prob(changed).mean() < fitted.density.log_prob(rows(200, 2)).mean() - 5

    @pytest.mark.filterwarnings("ignore:element")
    @pytest.mark.parametrize("preprocess", ["none", "logit", ["log1p", "standardize"], ["dequantize", "standardize"]])
    def test_under_any_preprocessing_log_p_has_a_limit(self, preprocess):
        x = np.random.default_rng(0).gamma(3.0, size=(1000, 1))
        rows = np.column_stack([x, np.full(1000, 2.0), x])
        fitted = sf.fit(small(preprocess=preprocess), rows, max_steps=150, learning_rate=0.02, patience=100)
        losses = [record["loss"] for record in fitted.history if "loss" in record]
        assert np.isfinite(losses).all()
        assert fitted.density.log_prob(rows).mean() < 10

    def test_noise_is_for_training_and_for_those_elements_alone(self):
        x = torch.randn(100, 4, generator=torch.Generator().manual_seed(0))
        x[:, 1], x[:, 3] = 5.0, x[:, 0]
        flow = small((4,))
        flow.fit_preprocessing(x)
        torch.testing.assert_close(flow.blur, torch.tensor([0.0, 1.0, 0.0, 0.1]), rtol=1e-3, atol=0)
        flow.eval()
        assert torch.equal(flow.encode(x), flow.encode(x))
        moved = (flow.train().encode(x) - flow.encode(x)).abs().amax(0) > 0
        assert sorted(moved.tolist()) == [False, False, True, True]  # in the order of the flow
        flow.fit_preprocessing(torch.randn(100, 4))
        assert flow.blur is None
        assert "blur" not in flow.state_dict()
