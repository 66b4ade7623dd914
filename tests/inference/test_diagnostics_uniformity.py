"""The band and the p-value of values that are to be uniform are exact."""

from __future__ import annotations

import itertools
from math import factorial

import numpy as np
import pytest
from scipy.stats import binom

from sciflow.inference.diagnostics.uniformity import (
    Departure,
    adjusted_p_values,
    band,
    distribution,
    evaluation_points,
    uniform_p_value,
)


def test_p_value_is_that_of_all_sets_of_counts():
    """Six values: every way to fall between the points, with its multinomial probability."""
    num, points = 6, evaluation_points(6)
    every, at = np.arange(num + 1)[:, None], np.arange(len(points))
    table = 2 * np.minimum(binom.cdf(every, num, points), binom.sf(every - 1, num, points))
    statistics, weights = [], []
    for ways in itertools.product(range(num + 1), repeat=len(points)):
        steps = np.diff([0, *ways, num])
        if (steps >= 0).all():
            statistics.append(table[ways, at].min())
            weights.append(factorial(num) / np.prod([factorial(step) for step in steps]) / num**num)
    statistics, weights = np.array(statistics), np.array(weights)
    assert weights.sum() == pytest.approx(1)
    rng = np.random.default_rng(0)
    for values in (rng.random(num), rng.random(num) ** 2, rng.random(num) ** 4):
        counts = np.round(distribution(values) * num).astype(int)
        expected = weights[statistics <= table[counts, at].min() * (1 + 1e-8)].sum()
        assert uniform_p_value(values) == pytest.approx(expected, rel=1e-8)


@pytest.mark.parametrize("num", [20, 100, 1000])
def test_band_and_p_value_have_the_level_they_say(num):
    rng = np.random.default_rng(num)
    for level in (0.05, 0.2):
        low, high = band(num, level)
        left = []
        for values in rng.random((1500, num)):
            shares = distribution(values)
            left.append(bool(((shares < low - 1e-12) | (shares > high + 1e-12)).any()))
        assert np.mean(left) == pytest.approx(level, abs=4 * np.sqrt(level * (1 - level) / 1500) + 0.004)
        for values in rng.random((100, num)):
            shares = distribution(values)
            out = bool(((shares < low - 1e-12) | (shares > high + 1e-12)).any())
            assert out == (uniform_p_value(values) <= level)


def test_p_values_stay_positive_however_wrong():
    p_values = [uniform_p_value(np.linspace(0.4, 0.6, num)) for num in (50, 500, 5000)]
    assert all(0 < p < 1e-8 for p in p_values)
    assert p_values == sorted(p_values, reverse=True)


def test_holm_is_the_formula():
    assert adjusted_p_values(np.array([0.01, 0.04, 0.03, 0.005])).tolist() == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert adjusted_p_values(np.array([0.9, 0.8])).tolist() == [1, 1]


def test_departures_of_uniform_values_are_standard_normal():
    found = [Departure.of(values) for values in np.random.default_rng(1).random((2000, 200))]
    for name in ("shift", "spread"):
        scores = np.array([getattr(each, name) for each in found])
        assert scores.mean() == pytest.approx(0, abs=0.1)
        assert scores.std() == pytest.approx(1, abs=0.06)
