"""Decisions: the published procedures, their rates kept, and a word where the calibration is too small."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import false_discovery_control, norm

from sciflow.anomaly.calibration import Calibration
from sciflow.anomaly.decision import decide
from sciflow.errors import ConfigError, DataError


@pytest.mark.parametrize("method", ["bh", "by"])
class TestFalseDiscoveryRate:
    def test_flags_what_scipy_does(self, method):
        rng = np.random.default_rng(0)
        for m in (1, 2, 7, 100, 1000):
            p = np.where(rng.random(m) < 0.2, rng.random(m) * 1e-3, rng.random(m))
            for level in (0.01, 0.1, 0.5):
                found = decide(p, fdr=level, method=method)
                np.testing.assert_array_equal(found.flag, false_discovery_control(p, method=method) <= level)
                assert (found.level, found.method) == (level, method)
                assert found.threshold == p[found.flag].max() if found.flag.any() else np.isnan(found.threshold)

    def test_is_kept_by_conformal_p_values_and_finds_anomalies(self, method):
        rng = np.random.default_rng(1)
        false, power = [], []
        for _ in range(300):
            calibration = Calibration.of(rng.normal(size=1000))
            odd = np.arange(400) < 40
            scores = rng.normal(size=400) + 4 * odd
            flag = decide(calibration.p_values(scores).p_value, fdr=0.1, method=method).flag
            false.append((flag & ~odd).sum() / max(flag.sum(), 1))
            power.append(flag[odd].mean())
        assert np.mean(false) <= 0.1 + 3 * np.std(false) / np.sqrt(300)
        assert np.mean(power) > {"bh": 0.8, "by": 0.4}[method]

    def test_nan_is_not_flagged_and_does_not_count(self, method):
        p = np.array([0.04, 0.9, 0.3])
        expected = decide(p, fdr=0.2, method=method)
        found = decide(np.concatenate([p, np.full(50, np.nan)]), fdr=0.2, method=method)
        assert found.flag.tolist() == [*expected.flag.tolist(), *[False] * 50]
        np.testing.assert_equal(found.threshold, expected.threshold)

    def test_is_the_same_without_the_p_values_that_are_above_the_level(self, method):
        rng = np.random.default_rng(3)
        p = np.where(rng.random(500) < 0.1, rng.random(500) * 1e-3, rng.random(500))
        expected, small = decide(p, fdr=0.1, method=method), p <= 0.1
        found = decide(p[small], fdr=0.1, method=method, num_tests=500)
        assert found.flag.tolist() == expected.flag[small].tolist()
        assert found.threshold == expected.threshold

    def test_there_are_no_more_p_values_than_tests(self, method):
        with pytest.raises(DataError, match="num_tests is 2, and there are 3"):
            decide([0.1, 0.2, 0.3], fdr=0.1, method=method, num_tests=2)


def test_the_rate_of_yekutieli_is_kept_where_rows_depend_on_each_other_and_that_of_hochberg_need_not_be():
    # The least favourable dependence, all normal. With probability
    # alpha / k k of the p-values are just small enough for k to be flagged.
    rng = np.random.default_rng(2)
    m, level = 20, 0.2
    found = {"bh": [], "by": []}
    for _ in range(3000):
        k = rng.choice(
            np.arange(m + 1), p=np.append(1 - level * (1 / np.arange(1, m + 1)).sum(), level / np.arange(1, m + 1))
        )
        p = np.full(m, 1.0)
        p[rng.permutation(m)[:k]] = level * (k - rng.random()) / m if k else 1.0
        for method, alarms in found.items():
            alarms.append(decide(p, fdr=level, method=method).flag.any())
    assert np.mean(found["by"]) <= level + 3 * np.sqrt(level * (1 - level) / 3000)
    assert np.mean(found["bh"]) > 2 * level


class TestFalseAlarmRate:
    def test_flags_up_to_the_rate(self):
        found = decide([0.01, 0.05, 0.050001, np.nan], false_alarm_rate=0.05)
        assert found.flag.tolist() == [True, True, False, False]
        assert (found.threshold, found.level, found.method) == (0.05, 0.05, "fixed")

    def test_is_the_share_of_normal_rows_however_many(self):
        rng = np.random.default_rng(3)
        shares = []
        for _ in range(300):
            p = Calibration.of(rng.normal(size=199)).p_values(rng.normal(size=500)).p_value
            shares.append(decide(p, false_alarm_rate=0.05).flag.mean())
        assert np.mean(shares) == pytest.approx(0.05, abs=4 * np.std(shares) / np.sqrt(300))


@pytest.mark.parametrize("m", [3, 10, 70, 300])
def test_p_values_that_meet_the_level_exactly_are_flagged_whatever_rounding_does(m):
    for k in range(1, m + 1):
        # k rows at the level of 0.3 for k of m, to the last digit or nearly.
        p = np.where(np.arange(m) < k, 3 * k / (10 * m), 1.0)
        assert decide(p, fdr=0.3).flag.sum() == k


def test_ties_are_flagged_together():
    assert decide([0.05, 0.05, 0.9, 0.9], fdr=0.1).flag.tolist() == [True, True, False, False]


class TestOfACalibrationThatIsTooSmall:
    @pytest.mark.parametrize(
        ("asked", "needed"),
        [
            ({"fdr": 0.1}, 4999),
            ({"fdr": 0.1, "method": "by"}, int(np.ceil(5000 * (1 / np.arange(1, 501)).sum())) - 1),
            ({"false_alarm_rate": 0.001}, 999),
        ],
        ids=str,
    )
    def test_the_note_says_how_many_rows_are_needed_and_so_many_do(self, asked, needed):
        new = np.append(np.zeros(499), 9.0)
        for rows, enough in ((needed - 1, False), (needed, True)):
            calibration = Calibration.of(np.linspace(-1, 1, rows))
            p = calibration.p_values(new).p_value
            found = decide(p, **asked, resolution=calibration.resolution())
            assert found.flag[-1] == enough
            assert (found.note is None) == enough
            if not enough:
                assert f"calibrate on {needed:,} rows" in found.note

    def test_there_is_no_note_where_something_is_flagged_or_nothing_is_odd(self):
        assert decide([0.01] * 50, fdr=0.1, resolution=0.01).note is None
        assert decide([0.5] * 50, fdr=0.1, resolution=1e-6).note is None
        assert decide([], fdr=0.1, resolution=0.01).note is None
        assert decide([np.nan] * 9, fdr=0.1, resolution=0.5).note is None


def test_is_quick_for_millions():
    p = norm.sf(np.random.default_rng(4).normal(size=4_000_000))
    assert decide(p, fdr=0.1).flag.sum() <= 5


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({}, "give either fdr= or false_alarm_rate="),
        ({"fdr": 0.1, "false_alarm_rate": 0.1}, "give either"),
        ({"fdr": 0.0}, "fdr is 0.0; it has to lie between 0 and 1"),
        ({"fdr": 10}, "fdr is 10"),
        ({"false_alarm_rate": float("nan")}, "false_alarm_rate is nan"),
        ({"fdr": 0.1, "method": "bonferroni"}, "known: bh, by"),
    ],
    ids=str,
)
def test_refuses_rates_that_are_none(asked, message):
    with pytest.raises(ConfigError, match=message):
        decide([0.5], **asked)


def test_refuses_what_are_no_p_values():
    with pytest.raises(DataError, match=r"row 1 is 3.5: are these scores\?"):
        decide([0.5, 3.5], fdr=0.1)
