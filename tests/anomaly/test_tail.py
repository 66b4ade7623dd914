"""A tail beyond the calibration: of the right steepness, joined without a step, never zero, and marked."""

from __future__ import annotations

import numpy as np
import pytest

from sciflow.anomaly.calibration import Calibration
from sciflow.anomaly.tail import SMALLEST, Tail

# Draw by 1 - F: a score that is exceeded with the given probability.
EXCEEDED = {
    "exponential": lambda q: -np.log(q),
    "Pareto": lambda q: q**-0.5,
    "very heavy": lambda q: q**-2.0,
    "uniform": lambda q: 1 - q,
    "triangular": lambda q: 1 - np.sqrt(q),
}


@pytest.mark.parametrize("exceeded", EXCEEDED.values(), ids=EXCEEDED)
class TestOfAKnownDistribution:
    def test_finds_its_shape(self, exceeded):
        shape = {"exponential": 0, "Pareto": -0.5, "very heavy": -2, "uniform": 1, "triangular": 0.5}
        expected = next(shape[name] for name, other in EXCEEDED.items() if other is exceeded)
        tail = Tail.fit(np.sort(exceeded(np.random.default_rng(0).random(100_000))))
        assert tail.weights @ tail.shapes == pytest.approx(expected, abs=0.15 * max(1, abs(expected)))

    def test_falls_as_the_truth_does_and_never_faster(self, exceeded):
        rng = np.random.default_rng(1)
        odds = np.array([3e-3, 1e-3, 1e-4, 1e-5])  # the largest of 50,000 scores is exceeded with odds of 2e-5
        found = []
        for _ in range(60):
            scores = np.sort(exceeded(rng.random(50_000)))
            tail = Tail.fit(scores)
            found.append(tail._survival(exceeded(odds)) * (scores > tail.threshold).mean())
        ratio = np.median(found, axis=0) / odds
        assert (ratio > 0.7).all(), ratio
        assert (ratio[:3] < 1.6).all(), ratio  # the very end of a bounded tail is approached with caution

    def test_false_alarms_below_the_resolution_are_about_as_many_as_asked_for(self, exceeded):
        rng = np.random.default_rng(2)
        found = []
        for _ in range(150):
            scores = exceeded(rng.random(1000))
            calibration = Calibration.of(scores, tail=True)
            # Where the p-value reaches a tenth of the resolution, the truth is known.
            odds = np.exp(np.linspace(np.log(2e-2), np.log(1e-9), 800))
            p = calibration.p_values(exceeded(odds)).p_value
            below = odds[p <= calibration.resolution() / 10]
            found.append((below[0] if len(below) else 0.0) / (calibration.resolution() / 10))
        assert np.mean(found) < 2.2, np.mean(found)

    def test_joins_without_a_step_and_falls_but_never_to_zero(self, exceeded):
        scores = exceeded(np.random.default_rng(3).random(800))
        calibration = Calibration.of(scores, tail=True)
        largest = scores.max()
        beyond = largest + np.append(0, np.logspace(-14, 300, 400) * abs(largest))
        found = calibration.p_values(np.append(beyond, np.inf))
        assert found.p_value[0] == 2 / 801
        assert found.p_value[1] == pytest.approx(calibration.resolution(), rel=1e-6)
        assert (np.diff(found.p_value) <= 0).all()
        assert (found.p_value >= SMALLEST).all()
        assert found.extrapolated.tolist() == [False, *[True] * 401]


def test_leaves_all_that_the_calibration_knows_as_it_is():
    scores, new = np.random.default_rng(4).normal(size=(2, 2000))
    plain, tailed = Calibration.of(scores).p_values(new), Calibration.of(scores, tail=True).p_values(new)
    np.testing.assert_array_equal(tailed.p_value[~tailed.extrapolated], plain.p_value[~tailed.extrapolated])
    assert (tailed.extrapolated == (new > scores.max())).all()


def test_few_scores_are_more_cautious_than_many():
    rng = np.random.default_rng(5)
    ratios = [
        np.median([tail.ratio(np.array([tail.largest + 10.0]))[0] for tail in fits])
        for fits in ([Tail.fit(np.sort(rng.exponential(size=n))) for _ in range(20)] for n in (500, 50_000))
    ]
    assert ratios[0] > 3 * ratios[1] > 3 * np.exp(-10) / 3


def test_alike_scores_count_for_less():
    scores = np.sort(np.random.default_rng(6).exponential(size=2000))
    alone, alike = Tail.fit(scores), Tail.fit(scores, independent=0.05)
    far = np.array([scores[-1] + 15])
    assert alike.ratio(far) > 3 * alone.ratio(far)


@pytest.mark.parametrize(
    "scores",
    [
        np.arange(499.0),
        np.random.default_rng(7).poisson(size=5000),
        np.append(np.arange(600.0), np.inf),
        np.append(np.full(600, -np.inf), np.arange(30.0)),
        np.zeros(1000),
    ],
    ids=["too few", "whole numbers", "an infinite one", "nearly all minus infinity", "all alike"],
)
def test_there_is_none_where_it_would_mean_nothing(scores):
    calibration = Calibration.of(scores, tail=True)
    assert calibration.without_tail == [None]
    found = calibration.p_values([1e9])
    assert not found.extrapolated.any()
    assert found.p_value[0] >= calibration.resolution()


def test_names_groups_without_one():
    scores = np.random.default_rng(8).normal(size=700)
    calibration = Calibration.of(scores, groups=["much"] * 600 + ["little"] * 100, tail=True)
    assert calibration.without_tail == ["little"]
    found = calibration.p_values([50.0, 50.0], groups=["much", "little"])
    assert found.extrapolated.tolist() == [True, False]
    assert found.p_value[1] == 1 / 101
