"""p-values of held-out scores hold what they claim: of rows, in groups, by blocks, under weights, with ties."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy.signal import lfilter
from scipy.stats import norm

from sciflow.anomaly.calibration import Calibration
from sciflow.errors import ConfigError, DataError

LEVELS = np.array([0.02, 0.05, 0.1, 0.3, 0.7])


def shares(p_values: list[np.ndarray], levels: np.ndarray = LEVELS) -> tuple[np.ndarray, np.ndarray]:
    """The share of p-values up to each level, a mean over calibrations, with its standard error."""
    each = np.array([(p[:, None] <= levels).mean(0) for p in p_values])
    return each.mean(0), each.std(0) / np.sqrt(len(each))


def assert_at_most_the_level(p_values, levels=LEVELS):
    mean, error = shares(p_values, levels)
    assert (mean <= levels + 4 * error).all(), (mean, error)


def assert_the_level(p_values, levels=LEVELS):
    mean, error = shares(p_values, levels)
    assert (abs(mean - levels) <= 4 * error).all(), (mean, error)


def smoothed(calibration, scores, rng, **columns):
    intervals = calibration.intervals(scores, **columns)
    return intervals.low + rng.random(len(scores)) * (intervals.high - intervals.low)


def test_is_the_formula():
    calibration = Calibration.of([3.0, 1.0, 2.0, 2.0])
    assert calibration.p_values([0.0, 2.0, 2.5, 3.0, 4.0]).p_value.tolist() == [1, 4 / 5, 2 / 5, 2 / 5, 1 / 5]
    assert calibration.resolution() == 1 / 5


def test_takes_infinite_scores_and_leaves_out_nan():
    calibration = Calibration.of([np.inf, 0.0, -np.inf, np.nan])
    assert (calibration.rows, calibration.missing) == (3, 1)
    found = calibration.p_values([np.inf, 1.0, -np.inf, np.nan])
    np.testing.assert_array_equal(found.p_value, [2 / 4, 2 / 4, 1, np.nan])
    assert not found.extrapolated.any()


def test_of_blocks_is_the_formula():
    calibration = Calibration.of([1.0, 5.0, 2.0, 4.0, 4.0], blocks=["a", "b", "b", "c", "c"])
    assert calibration.p_values([3.0]).p_value[0] == (1 + 0 + 1 / 2 + 1) / 4
    assert calibration.resolution() == 1 / 4


def test_of_weights_is_the_formula():
    calibration = Calibration.of([1.0, 2.0, 3.0], weights=[1.0, 2.0, 4.0])
    assert calibration.p_values([2.5], weights=[3.0]).p_value[0] == (4 + 3) / (7 + 3)
    assert calibration.resolution() == pytest.approx(1 / (1 + 7**2 / 21))


class TestOfRows:
    @pytest.mark.parametrize("draw", ["normal", "standard_cauchy", "poisson"])
    def test_smoothed_are_uniform_and_others_never_too_small(self, draw):
        rng = np.random.default_rng(0)
        drawn = getattr(rng, draw)
        plain, uniform = [], []
        for _ in range(400):
            calibration, new = Calibration.of(drawn(size=60)), drawn(size=200)
            plain.append(calibration.p_values(new).p_value)
            uniform.append(smoothed(calibration, new, rng))
        assert_at_most_the_level(plain)
        assert_the_level(uniform)

    def test_share_of_false_alarms_of_one_calibration_is_beta_distributed(self):
        rng = np.random.default_rng(1)
        found = []
        for _ in range(2000):
            scores = np.sort(rng.random(99))
            calibration = Calibration.of(scores)
            # p <= 5 / 100 are just the scores above the fifth largest.
            at = scores[-5]
            assert calibration.p_values([at, at + 1e-12]).p_value.tolist() == [0.06, 0.05]
            found.append(1 - at)
        assert np.mean(found) == pytest.approx(0.05, abs=0.002)
        assert np.quantile(found, [0.025, 0.975]) == pytest.approx([0.0166, 0.1], abs=0.006)


class TestByGroups:
    def test_holds_in_every_group_where_a_common_calibration_does_not(self):
        rng = np.random.default_rng(2)
        scale = {"calm": 1.0, "rough": 3.0}
        by_group, common = {name: [] for name in scale}, []
        for _ in range(200):
            groups = rng.choice(list(scale), size=150, p=[0.7, 0.3])
            scores = rng.normal(size=150) * [scale[name] for name in groups]
            calibration, pooled = Calibration.of(scores, groups=groups), Calibration.of(scores)
            for name in scale:
                new = scale[name] * rng.normal(size=200)
                by_group[name].append(calibration.p_values(new, groups=[name] * 200).p_value)
            common.append(pooled.p_values(new).p_value)
        for name in scale:
            assert_at_most_the_level(by_group[name])
        assert shares(common)[0][1] > 0.1

    def test_labels_may_be_numbers_and_the_order_of_rows_does_not_matter(self):
        rng = np.random.default_rng(3)
        scores, months = rng.normal(size=240), np.tile(np.arange(1, 13), 20)
        calibration = Calibration.of(scores, groups=months)
        assert calibration.groups == list(range(1, 13))
        new, of = rng.normal(size=50), rng.integers(1, 13, size=50)
        found = calibration.p_values(new, groups=of).p_value
        for month in range(1, 13):
            alone = Calibration.of(scores[months == month]).p_values(new[of == month]).p_value
            np.testing.assert_array_equal(found[of == month], alone)

    def test_a_group_never_seen_has_no_p_value_and_is_told(self):
        calibration = Calibration.of(np.arange(40.0), groups=["a", "b"] * 20)
        found = calibration.p_values([50.0, 50.0, 50.0], groups=["a", "c", "c"])
        np.testing.assert_array_equal(found.p_value, [1 / 21, np.nan, np.nan])
        assert found.unknown == {"c": 2}

    def test_resolution_is_that_of_the_group_or_of_the_largest(self):
        calibration = Calibration.of(np.arange(60.0), groups=["a"] * 20 + ["b"] * 40)
        assert (calibration.resolution("a"), calibration.resolution()) == (1 / 21, 1 / 41)
        with pytest.raises(DataError, match=r"no group 'c'; it has 'a' \(20\), 'b' \(40\)"):
            calibration.resolution("c")


class TestByBlocks:
    LEVELS = np.array([0.01, 0.03, 0.05, 0.1])

    def drawn(self, rng, num_blocks, length=25, memory=0.99):
        noise = rng.normal(size=(num_blocks, length)) * np.sqrt(1 - memory**2)
        noise[:, 0] = rng.normal(size=num_blocks)
        return lfilter([1.0], [1.0, -memory], noise, axis=1)

    def test_holds_for_autocorrelated_rows_where_that_of_rows_does_not(self):
        rng = np.random.default_rng(4)
        by_block, by_row = [], []
        for _ in range(400):
            scores, new = self.drawn(rng, 40).ravel(), self.drawn(rng, 60).ravel()
            by_block.append(Calibration.of(scores, blocks=np.arange(1000) // 25).p_values(new).p_value)
            by_row.append(Calibration.of(scores).p_values(new).p_value)
        assert_at_most_the_level(by_block, self.LEVELS)
        mean, error = shares(by_row, self.LEVELS)
        assert mean[0] - 6 * error[0] > 0.01

    def test_knows_how_many_independent_rows_it_is_worth(self):
        rng = np.random.default_rng(5)
        blocks = np.arange(5000) // 25
        alike = Calibration.of(self.drawn(rng, 200, memory=0.999).ravel(), blocks=blocks)
        assert alike.effective_rows == pytest.approx([200], rel=0.1)
        independent = Calibration.of(rng.normal(size=5000), blocks=blocks)
        assert independent.effective_rows[0] > 3500


class TestByWeights:
    def test_are_uniform_under_a_known_shift_where_unweighted_ones_are_not(self):
        rng = np.random.default_rng(6)
        weighted, unweighted, uniform = [], [], []
        for _ in range(300):
            x, new = rng.normal(size=300), rng.normal(loc=0.7, size=200)
            ratio = lambda x: 5 * norm.pdf(x, loc=0.7) / norm.pdf(x)  # noqa: E731
            calibration = Calibration.of(x, weights=ratio(x))
            weighted.append(calibration.p_values(new, weights=ratio(new)).p_value)
            uniform.append(smoothed(calibration, new, rng, weights=ratio(new)))
            unweighted.append(Calibration.of(x).p_values(new).p_value)
        assert_at_most_the_level(weighted)
        assert_the_level(uniform)
        assert shares(unweighted)[0][2] > 0.2

    def test_go_together_with_groups(self):
        rng = np.random.default_rng(10)
        scores, weights, groups = rng.normal(size=80), rng.random(80) + 0.1, np.repeat(["a", "b"], 40)
        new, own, of = rng.normal(size=30), rng.random(30) + 0.1, rng.choice(["a", "b"], size=30)
        found = Calibration.of(scores, weights=weights, groups=groups).p_values(new, weights=own, groups=of).p_value
        for name in "ab":
            alone = Calibration.of(scores[groups == name], weights=weights[groups == name])
            np.testing.assert_array_equal(
                found[of == name], alone.p_values(new[of == name], weights=own[of == name]).p_value
            )

    def test_equal_weights_change_nothing(self):
        scores, new = np.random.default_rng(7).normal(size=(2, 64))
        weighted = Calibration.of(scores, weights=np.full(64, 0.25))
        found = weighted.p_values(new, weights=np.full(64, 0.25)).p_value
        np.testing.assert_array_equal(found, Calibration.of(scores).p_values(new).p_value)


def calibrations():
    rng = np.random.default_rng(8)
    scores = rng.normal(size=1600)
    yield pytest.param(Calibration.of(scores), {}, id="rows")
    yield pytest.param(Calibration.of(scores, tail=True), {}, id="tail")
    yield pytest.param(Calibration.of(scores, blocks=np.arange(1600) // 7, tail=True), {}, id="blocks")
    weights = {"weights": np.linspace(0.1, 3, 500)}
    yield pytest.param(Calibration.of(scores, weights=rng.random(1600) + 0.1), weights, id="weights")
    for name, labels in {"text": ["b", "a"], "numbers": [-3, 12]}.items():
        groups = {"groups": rng.choice(labels, size=500)}
        yield pytest.param(Calibration.of(scores, groups=labels * 800, tail=True), groups, id=f"groups by {name}")


@pytest.mark.parametrize(("calibration", "given"), list(calibrations()))
def test_survives_saving(calibration, given):
    new = np.random.default_rng(9).normal(size=500) * 2
    arrays, description = calibration.state()
    again = Calibration.from_state(arrays, json.loads(json.dumps(description, allow_nan=False)))
    before, after = calibration.p_values(new, **given), again.p_values(new, **given)
    np.testing.assert_array_equal(after.p_value, before.p_value)
    np.testing.assert_array_equal(after.extrapolated, before.extrapolated)
    assert again.fingerprint == calibration.fingerprint
    assert repr(again) == repr(calibration)
    assert (again.exchangeability, again.missing) == (calibration.exchangeability, calibration.missing)


def test_fingerprints_tell_calibrations_apart():
    scores = np.arange(60.0)
    last_digit = scores.copy()
    last_digit[7] = np.nextafter(7, 8)
    several = [
        Calibration.of(scores),
        Calibration.of(last_digit),
        Calibration.of(scores, tail=True),
        Calibration.of(scores, blocks=np.arange(60)),
        Calibration.of(scores, groups=["a", "b"] * 30),
        Calibration.of(scores, groups=["a", "c"] * 30),
    ]
    assert len({calibration.fingerprint for calibration in several}) == len(several)
    assert Calibration.of(scores).fingerprint == several[0].fingerprint


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"scores": []}, "0 calibration scores"),
        ({"scores": [np.nan] * 3}, "3 calibration scores, none of them a number"),
        ({"scores": ["high", "low"]}, "calibration scores are not numbers"),
        ({"scores": [[1.0, 2.0]]}, r"calibration scores have shape \[1, 2\]"),
        ({"scores": [1.0, 2.0], "groups": ["a"]}, "1 groups for 2 scores"),
        ({"scores": [1.0, 2.0], "blocks": [1, 2, 3]}, "3 blocks for 2 scores"),
        ({"scores": [1.0, 2.0], "weights": [1.0]}, "1 weights for 2 scores"),
        ({"scores": [1.0, 2.0], "weights": [1.0, 0.0]}, "above 0 and finite, and 1 are not, first in row 1: 0"),
        ({"scores": [1.0, 2.0], "weights": [np.nan, -1.0]}, "2 are not, first in row 0: nan"),
        (
            {"scores": [1.0, 2.0], "groups": ["a", 1]},
            "groups are of type str and int: label all rows by text, or all by whole numbers",
        ),
        ({"scores": [1.0, 2.0], "groups": [0.5, 1.5]}, "groups are of type float: label all"),
        ({"scores": np.arange(30.0), "groups": ["a"] * 25 + ["b"] * 5}, r"fewer than 19 rows .*'b' \(5\)"),
        (
            {"scores": np.arange(30.0), "groups": ["a"] * 30, "blocks": np.arange(30) // 3},
            r"fewer than 19 blocks .*'a' \(10\)",
        ),
    ],
    ids=str,
)
def test_refuses_what_it_cannot_calibrate_on(columns, message):
    with pytest.raises(DataError, match=message):
        Calibration.of(columns.pop("scores"), **columns)


def test_refuses_columns_that_do_not_fit_the_calibration():
    scores = np.arange(40.0)
    with pytest.raises(ConfigError, match="by blocks or by weights"):
        Calibration.of(scores, blocks=scores.astype(int), weights=scores + 1)
    with pytest.raises(ConfigError, match="by groups: give those"):
        Calibration.of(scores, groups=["a"] * 40).p_values(scores)
    with pytest.raises(ConfigError, match="has no groups"):
        Calibration.of(scores).p_values(scores, groups=["a"] * 40)
    with pytest.raises(ConfigError, match="by weights: give those"):
        Calibration.of(scores, weights=scores + 1).p_values(scores)
    with pytest.raises(DataError, match="groups of the calibration are text, as 'a'; these are as 1"):
        Calibration.of(scores, groups=["a"] * 40).p_values(scores[:2], groups=[1, 2])
    with pytest.raises(DataError, match="not the state of a calibration"):
        Calibration.from_state({}, {"kind": "rows"})


def test_no_rows_have_no_p_values():
    calibration = Calibration.of(np.arange(40.0), groups=["a"] * 40)
    assert len(calibration.p_values([], groups=[]).p_value) == 0
