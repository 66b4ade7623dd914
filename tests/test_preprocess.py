"""The bijections from data units: what they learn, and what they refuse. Their maps are tested with all bijections."""

from __future__ import annotations

import math

import pytest
import torch

from sciflow.bijections import (
    Composite,
    Dequantize,
    Identity,
    Log,
    Log1p,
    Logit,
    NormalScores,
    Preprocessor,
    Rescale,
    Standardize,
    VariationalDequantize,
    preprocessing,
)
from sciflow.errors import ConfigError, DataError
from sciflow.flows import NSF

KINDS = [Standardize, Rescale, Log1p, Logit, Dequantize, VariationalDequantize, NormalScores]


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("kind", KINDS)
class TestEveryKind:
    def test_state_survives_saving(self, kind: type[Preprocessor]) -> None:
        x = torch.rand(50, 2, 3) * 7
        fitted, fresh = kind((2, 3)).eval(), kind((2, 3)).eval()
        assert not fresh.is_fitted
        assert fitted.fit(x) is fitted
        fresh.load_state_dict(fitted.state_dict())
        assert fresh.is_fitted
        assert torch.equal(fresh(x)[0], fitted(x)[0])

    def test_values_that_are_not_finite_are_counted_and_placed(self, kind: type[Preprocessor]) -> None:
        x = torch.rand(50, 2, 3)
        x[4, 1, 2] = torch.nan
        x[9, 0, 0] = torch.inf
        with pytest.raises(DataError, match=r"2 of 300 values are not finite.*row 4, element \(1, 2\)"):
            kind((2, 3)).fit(x)

    def test_no_rows_is_an_error(self, kind: type[Preprocessor]) -> None:
        with pytest.raises(DataError, match=r"n >= 1; got \[0, 2\]"):
            kind((2,)).fit(torch.zeros(0, 2))

    @pytest.mark.parametrize("value", [0.0, 3.0, 101325.0, 1e9])
    def test_a_constant_element_stays_finite(self, kind: type[Preprocessor], value: float) -> None:
        x = torch.stack((torch.full((100,), value), torch.rand(100)), dim=1)
        z, log_det = kind((2,)).fit(x)(x)
        assert z.isfinite().all()
        assert log_det.isfinite().all()

    def test_double(self, kind: type[Preprocessor]) -> None:
        x = torch.rand(50, 3, dtype=torch.float64)
        same = kind((3,)).double().eval().fit(x)
        z, log_det = same(x)
        assert z.dtype == log_det.dtype == torch.float64
        if not issubclass(kind, Dequantize):
            assert (same.inverse(z)[0] - x).abs().max() < 1e-12


@pytest.mark.parametrize(
    ("built", "name", "given"),
    [
        (lambda: Dequantize((2,), step=0.1), "step", 0.1),
        (lambda: VariationalDequantize((2,), step=0.1), "step", 0.1),
        (lambda: Log((2,), low=0.1), "low", 0.1),
        (lambda: Logit((2,), low=0.1, high=0.7), "low", 0.1),
        (lambda: Logit((2,), high=0.7), "high", 0.7),
        (lambda: preprocessing({"log": {"low": 0.1, "features": [1]}}, (2,)), "bijection.low", 0.1),
    ],
    ids=["dequantize", "variational", "log", "low of logit", "high of logit", "log of some"],
)
class TestGivenConstants:
    def test_are_exact_in_every_dtype(self, built, name: str, given: float) -> None:
        module = built()
        assert set(module.get_buffer(name).tolist()) == {torch.tensor(given).item()}
        for moved in (module.double(), module.half().double(), module.float().to(torch.float64)):
            assert set(moved.get_buffer(name).tolist()) == {given}

    def test_are_those_of_a_state_dict_that_is_loaded(self, built, name: str, given: float) -> None:
        module = built()
        module.load_state_dict(
            {key: torch.full_like(t, 0.25) for key, t in module.state_dict().items() if key == name}, False
        )
        assert set(module.double().get_buffer(name).tolist()) == {0.25}


@pytest.mark.parametrize("kind", [Standardize, Rescale, NormalScores])
class TestScales:
    @pytest.mark.parametrize(
        ("scale", "dtype"),
        [
            (1e-36, torch.float32),
            (1e-30, torch.float32),
            (1e37, torch.float32),
            (1e-305, torch.float64),
            (1e-200, torch.float64),
            (1e200, torch.float64),
            (1e307, torch.float64),
        ],
    )
    def test_none_is_too_small_or_too_large(self, kind: type[Preprocessor], scale: float, dtype: torch.dtype) -> None:
        x = torch.randn(1000, 1, dtype=torch.float64)
        expected, log_det = kind((1,)).double().fit(x)(x)
        scaled = (x * scale).to(dtype)
        z, scaled_log_det = kind((1,)).to(dtype).fit(scaled)(scaled)
        torch.testing.assert_close(z.double(), expected, atol=1e-4, rtol=0)
        torch.testing.assert_close(scaled_log_det.double(), log_det - math.log(scale), atol=1e-2, rtol=0)


@pytest.mark.parametrize("kind", [Standardize, NormalScores])
class TestDigits:
    @pytest.mark.parametrize(
        ("scale", "dtype", "remedy"),
        [
            (1e-39, torch.float32, "float32 has no full digits; rescale them, or use float64: density.double"),
            (1e-310, torch.float64, "float64 has no full digits; rescale them. The first"),
        ],
    )
    def test_what_the_dtype_has_no_digits_for_is_refused(
        self, kind: type[Preprocessor], scale: float, dtype: torch.dtype, remedy: str
    ) -> None:
        x = torch.randn(100, 2, dtype=torch.float64) * torch.tensor([1.0, scale], dtype=torch.float64)
        message = rf"1 of 2 elements vary by less than .*{remedy}.*\(1,\), with a standard deviation of"
        with pytest.raises(DataError, match=message):
            kind((2,)).to(dtype).fit(x.to(dtype))


class TestStandardize:
    @pytest.mark.parametrize(("offset", "spread"), [(101325.0, 1.0), (280.0, 8.0), (0.0, 1e-20), (1e9, 500.0)])
    def test_a_large_offset_costs_no_digits(self, offset: float, spread: float) -> None:
        x = (offset + spread * torch.randn(20_000, 1, generator=torch.Generator().manual_seed(0)).double()).float()
        z, _ = Standardize((1,)).fit(x)(x)
        exact = (x.double() - x.double().mean()) / x.double().std(unbiased=False)
        # The mean itself is rounded to float32: one part in 2^24 of the offset.
        assert (z - exact).abs().max() <= 1e-5 + offset * 2**-24 / spread
        assert abs(z.double().std() - 1) < 1e-4

    def test_statistics_are_per_element(self) -> None:
        x = torch.randn(5000, 2, 3) * torch.tensor([1.0, 10.0, 100.0]) + torch.tensor([[0.0], [50.0]])
        z, log_det = Standardize((2, 3)).fit(x)(x)
        torch.testing.assert_close(z.mean(0), torch.zeros(2, 3), atol=1e-4, rtol=0)
        torch.testing.assert_close(z.std(0), torch.ones(2, 3), atol=1e-3, rtol=0)
        assert abs(log_det[0] + 2 * torch.tensor(1000.0).log()) < 0.2


class TestSupport:
    @pytest.mark.parametrize(
        ("bijection", "impossible"),
        [
            (Log((1,)), [0.0, -1e-9, -1e6]),
            (Log((1,), low=-2.0), [-2.0, -3.0]),
            (Log1p((1,)), [-1.0, -2.0, -1e6]),
            (Logit((1,), low=0.0, high=1.0), [0.0, 1.0, -3.0, 1e6]),
        ],
        ids=["log", "log above -2", "log1p", "logit"],
    )
    def test_beyond_it_log_det_is_minus_infinity_and_gradients_finite(self, bijection, impossible) -> None:
        x = torch.tensor([*impossible, 0.5])[:, None].requires_grad_()
        z, log_det = bijection(x)
        assert z.isfinite().all()
        assert (log_det[:-1] == -torch.inf).all()
        assert log_det[-1].isfinite()
        (gradient,) = torch.autograd.grad(z.sum() + log_det[-1], x)
        assert gradient.isfinite().all()

    def test_log_refuses_what_is_not_above_its_bound(self) -> None:
        with pytest.raises(DataError, match=r"1 of 3 values are not above low=0.* use log1p, or a lower bound.* row 1"):
            Log((1,)).fit(torch.tensor([[0.5], [0.0], [2.0]]))

    def test_draws_of_a_flow_stay_within_it(self) -> None:
        chain = [{"log": {"features": [0]}}, {"logit": {"features": [2], "low": 0.0, "high": 1.0}}, "standardize"]
        flow = NSF((3,), preprocess=chain, num_transforms=1, hidden_features=(8,), seed=0)
        rows = torch.stack((torch.rand(200).exp(), torch.randn(200), torch.rand(200).clamp(0.01, 0.99)), dim=1)
        flow.fit_preprocessing(rows)
        draws = flow.sample(5_000, seed=0)
        assert (draws[:, 0] > 0).all()
        assert (draws[:, 1] < -1).any()
        assert ((draws[:, 2] > 0) & (draws[:, 2] < 1)).all()
        rows[0, 0], rows[1, 2] = -1.0, 2.0
        assert torch.isneginf(flow.log_prob(rows)[:2]).all()

    def test_log1p_takes_its_scale_from_the_positive_values(self) -> None:
        x = torch.tensor([[0.0, 0.0], [0.0, 0.0], [1e-6, 0.0], [3e-6, 0.0], [5e-6, 0.0]])
        log1p = Log1p((2,)).fit(x)
        torch.testing.assert_close(log1p.scale, torch.tensor([3e-6, 1.0]))

    def test_log1p_refuses_negative_rows(self) -> None:
        with pytest.raises(DataError, match=r"2 of 4 values are negative.*The first is -1, in row 1, element \(0,\)"):
            Log1p((1,)).fit(torch.tensor([[0.0], [-1.0], [-2.0], [4.0]]))

    def test_logit_widens_the_extrema_by_its_margin(self) -> None:
        logit = Logit((1,)).fit(torch.tensor([[10.0], [30.0], [12.0]]))
        torch.testing.assert_close(torch.stack((logit.low, logit.high)), torch.tensor([[9.0], [31.0]]))

    def test_logit_keeps_given_bounds_and_refuses_rows_on_them(self) -> None:
        logit = Logit((1,), low=0.0).fit(torch.tensor([[10.0], [30.0]]))
        assert logit.low.item() == 0
        with pytest.raises(DataError, match=r"1 of 2 values are at or outside the bounds.*wider"):
            Logit((1,), low=0.0, high=1.0).fit(torch.tensor([[0.5], [1.0]]))
        with pytest.raises(ConfigError, match="low must be below high, in float32 too; got low=2"):
            Logit((1,), low=2, high=1)


class TestDequantize:
    def test_step_is_the_smallest_gap(self) -> None:
        # 0.1 + 0.2 is not 0.3 to the last digit, and no grid of its own.
        x = torch.tensor([[0.1, 5.0], [0.3, 8.0], [0.1 + 0.2 + 3e-8, 8.0], [0.9, 14.0], [0.4, 5.0]])
        torch.testing.assert_close(Dequantize((2,)).fit(x).step, torch.tensor([0.1, 3.0]))

    @pytest.mark.parametrize("outlier", [1.2e6, -1.2e6, 1200000.5, 9.96921e36])
    def test_step_of_counts_is_that_of_the_many(self, outlier: float) -> None:
        x = torch.poisson(torch.full((2000, 1), 3.0))
        x[7] = outlier
        dequantize = Dequantize((1,)).eval().fit(x)
        assert dequantize.step.item() == 1
        others = x[x.abs() < 100][:, None]
        assert torch.equal(dequantize.inverse(dequantize(others)[0])[0], others)

    @pytest.mark.parametrize(
        ("mean", "std", "decimals", "accuracy"),
        [
            (300, 5, 2, 1e-6),
            (1013, 8, 2, 1e-6),
            (1e5, 500, 1, 1e-5),
            (1e5, 5, 1, 1e-3),
            (-20, 10, 2, 1e-6),
            (0, 1, 3, 1e-6),
        ],
    )
    def test_decimal_grids_come_back_to_the_last_digit(
        self, mean: float, std: float, decimals: int, accuracy: float
    ) -> None:
        exact = torch.round(mean + std * torch.randn(5000, 1, dtype=torch.float64), decimals=decimals)
        x = exact.float()
        dequantize = Dequantize((1,)).eval().fit(x)
        assert dequantize.step.item() == pytest.approx(10.0**-decimals, rel=accuracy)
        back, _ = dequantize.inverse(dequantize(x)[0])
        digit = torch.nextafter(x.abs(), torch.tensor(torch.inf)) - x.abs()
        assert ((back - x).abs() <= digit).all()

    def test_an_outlier_off_a_decimal_grid_leaves_it_alone(self) -> None:
        x = torch.round(300 + 5 * torch.randn(5000, 1, dtype=torch.float64), decimals=2).float()
        x[3] = -12345.678
        assert Dequantize((1,)).fit(x).step.item() == pytest.approx(0.01, rel=1e-6)

    def test_values_far_apart_are_counted_in_steps(self) -> None:
        x = torch.tensor([[0.7], [1.4], [700.0], [7000.7]])
        torch.testing.assert_close(Dequantize((1,)).fit(x).step, torch.tensor([0.7]))

    def test_noise_while_training_and_none_after(self) -> None:
        x = torch.randint(0, 5, (4000, 1)).float()
        dequantize = Dequantize((1,)).fit(x)
        noise = dequantize.train()(x)[0] - x
        assert 0 <= noise.min() < 0.01
        assert 0.99 < noise.max() <= 1
        assert torch.equal(dequantize.eval()(x)[0], x + 0.5)

    @pytest.mark.parametrize("training", [True, False])
    def test_inverse_comes_back_to_the_grid(self, training: bool) -> None:
        x = 273.15 + 0.01 * torch.randint(0, 500, (1000, 1)).double()
        dequantize = Dequantize((1,), step=0.01).double().fit(x).train(training)
        torch.testing.assert_close(dequantize.inverse(dequantize(x)[0])[0], x, rtol=0, atol=1e-6)

    def test_step_must_be_positive(self) -> None:
        with pytest.raises(ConfigError, match=r"step must be positive, and 1\.2e-38 at least; got 0"):
            Dequantize((1,), step=0)


class TestPreprocessing:
    def test_each_is_fitted_on_what_those_before_it_make(self) -> None:
        x = torch.distributions.LogNormal(2.0, 1.0).sample((5000, 2))
        chain = preprocessing(["log1p", "standardize"], (2,)).fit(x)
        assert chain.is_fitted
        z, _ = chain(x)
        torch.testing.assert_close(z.mean(0), torch.zeros(2), atol=1e-4, rtol=0)
        torch.testing.assert_close(z.std(0), torch.ones(2), atol=1e-3, rtol=0)

    def test_fitting_draws_no_noise_and_leaves_the_mode_alone(self) -> None:
        x = torch.randint(0, 5, (100, 1)).float()
        fits = [preprocessing(["dequantize", "standardize"], (1,)).train().fit(x) for _ in range(2)]
        assert all(chain.training and chain.bijections[0].training for chain in fits)
        assert torch.equal(fits[0].bijections[1].mean, fits[1].bijections[1].mean)

    def test_names_build_what_they_say(self) -> None:
        assert isinstance(preprocessing("none", (2,)), Identity)
        assert isinstance(preprocessing([], (2,)), Identity)
        assert isinstance(preprocessing("log1p", (2,)), Log1p)
        chain = preprocessing([{"logit": {"low": 0, "high": 2}}, "standardize"], (2,))
        assert isinstance(chain, Composite)
        assert chain.bijections[0].high.tolist() == [2, 2]

    @pytest.mark.parametrize(
        ("names", "message"),
        [
            ("standardise", "unknown 'standardise'; did you mean standardize"),
            (["log1p", "lgit"], "unknown 'lgit'; did you mean logit"),
            ({"logit": {"lo": 0}}, "logit does not take {'lo': 0}"),
            ({"logit": {}, "log1p": {}}, "one name with its options"),
            ([3], "unknown 3"),
            (5, "unknown 5"),
            (None, "unknown None"),
            ([["logit"]], r"unknown \['logit'\]; did you mean logit"),
            ({"logit": {"low": float("nan")}}, "logit: low must be a finite number; got nan"),
            ({"logit": {"high": "1"}}, "logit: high must be a finite number; got '1'"),
            ({"dequantize": {"step": float("inf")}}, "dequantize: step must be a finite number; got inf"),
            ({"dequantize": {"step": 10**400}}, "dequantize: step must be a finite number; got 1000"),
            ({"log1p": {"features": [3]}}, r"log1p: features must be places from 0 to 1, each once; got \[3\]"),
            ({"log1p": {"features": []}}, r"places from 0 to 1, each once; got \[\]"),
            ({"log1p": {"features": "speed"}}, "places from 0 to 1, each once; got 'speed'"),
            ({"log1p": {"features": [1, 1]}}, "each once"),
            ({"log1p": {"features": [True]}}, "each once"),
            ({"dequantize": {"features": [1]}}, "dequantize is for all features"),
            ({"log1p": [0]}, r"log1p takes options by name; got \[0\]"),
            ({"variational_dequantize": {"step": -1}}, "variational_dequantize: step must be positive, .* got -1"),
            ({"variational_dequantize": {"num_draws": 1}}, "num_draws must be 4 to 4,096; got 1"),
            ({"dequantize": {"num_draws": 3}}, "num_draws, unless 1, must be 4 to 4,096; got 3"),
            ({"dequantize": {"num_draws": True}}, "num_draws, unless 1, must be 4 to 4,096; got True"),
            ({"dequantize": {"num_draws": 1.0}}, "num_draws, unless 1, must be 4 to 4,096; got 1.0"),
            ({"dequantize": {"step": 1e-60}}, "dequantize: step must be positive, and 1.2e-38 at least; got 1e-60"),
            ({"dequantize": {"step": "1"}}, "dequantize: step must be a finite number; got '1'"),
            ({"logit": {"low": -(10**400)}}, "logit: low must be a finite number; got -1000"),
            ({"logit": {"low": 0.1, "high": 0.1 + 1e-12}}, "low must be below high, in float32 too"),
            ({"variational_dequantize": {"num_bins": 2.5}}, "num_bins must be 2 to 256; got 2.5"),
            ({"variational_dequantize": {"num_transforms": True}}, "num_transforms must be 1 to 64; got True"),
            ({"variational_dequantize": {"hidden_features": 32}}, "hidden_features must be a list of widths; got 32"),
            (
                {"variational_dequantize": {"hidden_features": []}},
                r"hidden_features must be a list of widths; got \[\]",
            ),
            ({"variational_dequantize": {"hidden_features": ["a"]}}, "hidden_features must be 1 to 65,536; got 'a'"),
            ({"variational_dequantize": {"steps": 1}}, "variational_dequantize does not take {'steps': 1}"),
            (["standardize", "dequantize"], "dequantisation comes first, and once"),
            (["dequantize", "variational_dequantize"], "dequantisation comes first, and once"),
        ],
    )
    def test_a_wrong_name_or_option_is_named(self, names, message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            preprocessing(names, (2,))


class TestNormalScores:
    def test_scores_are_those_of_the_ranks(self) -> None:
        from scipy import stats

        x = torch.rand(200, 2).square() * torch.tensor([1.0, 1000.0])
        z, _ = NormalScores((2,)).fit(x)(x)
        for column in range(2):
            ranks = stats.rankdata(x[:, column].numpy()) - 0.5
            expected = torch.from_numpy(stats.norm.ppf(ranks / len(x))).float()
            # The knots are not at the values, which lie far apart in the tails.
            difference = (z[:, column] - expected).abs()
            assert difference[expected.abs() < 1.5].max() < 0.1
            assert difference.max() < 0.5

    def test_equal_values_get_the_score_of_their_middle(self) -> None:
        x = torch.cat([torch.zeros(60), torch.arange(1.0, 41.0)])[:, None]
        z, _ = NormalScores((1,)).fit(x)(torch.tensor([[0.0], [40.0]]))
        assert z[:, 0].tolist() == pytest.approx([-0.524, 2.576], abs=0.01)

    def test_goes_on_beyond_the_training_values_at_the_slope_of_standardising(self) -> None:
        x = torch.randn(500, 1).exp()
        scores = NormalScores((1,)).fit(x)
        low, high = x.min(), x.max()
        (z0, z1, z2, z3), _ = scores(torch.stack([low - 7, low - 5, high + 5, high + 9])[:, None])
        assert (z1 - z0).item() == pytest.approx(2 / x.std(correction=0).item(), rel=1e-3)
        assert (z3 - z2).item() == pytest.approx(4 / x.std(correction=0).item(), rel=1e-3)

    def test_even_elements_are_standardised_where_that_is_asked_for(self) -> None:
        even, tailed = torch.rand(1000) * 9, torch.randn(1000).mul(2).exp()
        shared = torch.where(torch.rand(1000) < 0.4, 3.0, torch.rand(1000))
        x = torch.stack([even, tailed, shared], dim=1)
        standardized = Standardize((3,)).fit(x)(x)[0]
        scores = NormalScores((3,)).fit(x)(x)[0]
        chosen = NormalScores((3,), uneven_only=True).fit(x)(x)[0]
        torch.testing.assert_close(chosen[:, 0], standardized[:, 0], rtol=0, atol=1e-5)
        torch.testing.assert_close(chosen[:, 1:], scores[:, 1:])
        assert (chosen[:, 1:] - standardized[:, 1:]).abs().max() > 1
