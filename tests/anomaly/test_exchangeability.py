"""The test of exchangeability: it fires no more often than it says, sees what there is, and says what to do."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from scipy.signal import lfilter
from scipy.stats import norm, spearmanr

from sciflow.anomaly.calibration import Calibration
from sciflow.anomaly.exchangeability import (
    _serial,
    _trend,
    autocorrelation_time,
    effective_rows,
    exchangeability,
    ranks,
)


def autoregressive(rng, n, memory):
    noise = rng.normal(size=n + 1000)
    return lfilter([1.0], [1.0, -memory], noise)[1000:]


class TestStandardScores:
    @pytest.mark.parametrize("values", [[3, 1, 4, 15, 9, 2], [0, 0, 0, 1, 1, 7]], ids=["distinct", "ties"])
    @pytest.mark.parametrize("score", [_serial, _trend])
    def test_have_mean_0_and_variance_1_over_all_orders(self, values, score):
        z = ranks(np.array(values, dtype=float))
        of_orders = [score(np.array(order)) for order in permutations(z)]
        assert np.mean(of_orders) == pytest.approx(0, abs=1e-12)
        assert np.var(of_orders) == pytest.approx(1)

    def test_of_trend_is_spearman(self):
        values = np.random.default_rng(0).poisson(3, size=50).astype(float)
        expected = spearmanr(values, np.arange(50)).statistic * 7
        assert _trend(ranks(values)) == pytest.approx(expected)


@pytest.mark.parametrize("draw", ["normal", "standard_cauchy", "poisson", "blocks"])
def test_fires_no_more_often_than_it_says(draw):
    rng = np.random.default_rng(1)
    found = []
    for _ in range(1500):
        if draw == "blocks":
            scores = np.repeat(rng.normal(size=40), 5) + 0.1 * rng.normal(size=200)
            found.append(exchangeability([scores], [np.arange(200) // 5]).p_value)
        else:
            found.append(exchangeability([getattr(rng, draw)(size=60) for _ in range(2)]).p_value)
    for level in (0.01, 0.1):
        assert np.mean(np.array(found) <= level) <= level + 4 * np.sqrt(level / 1500)
    assert np.mean(np.array(found) <= 0.1) > 0.03


class TestOfDependentRows:
    def test_finds_neighbours_alike_and_says_how_long_blocks_are_to_be(self):
        rng = np.random.default_rng(2)
        for _ in range(20):
            found = exchangeability([autoregressive(rng, 4000, memory=0.8)])
            assert not found.holds
            # tau = (1 + 0.8) / (1 - 0.8) = 9 of the values; five times that of rows.
            assert 25 < found.block_rows < 65
            assert found.verdict.startswith("not exchangeable: neighbouring rows are alike")
            assert f"blocks of about {found.block_rows} rows (p" in found.verdict

    def test_holds_of_blocks_as_long_as_it_says(self):
        rng = np.random.default_rng(3)
        held = 0
        for _ in range(40):
            scores = autoregressive(rng, 4000, memory=0.8)
            of_rows = Calibration.of(scores).exchangeability
            of_blocks = Calibration.of(scores, blocks=np.arange(4000) // of_rows.block_rows).exchangeability
            assert of_blocks.tested == "blocks"
            held += of_blocks.holds
        assert held >= 36

    def test_asks_for_more_rows_where_there_are_too_few_for_blocks(self):
        scores = autoregressive(np.random.default_rng(4), 300, memory=0.95)
        assert "rows would do, or groups" in exchangeability([scores]).verdict

    def test_finds_a_trend_and_a_step(self):
        rng = np.random.default_rng(5)
        rising = rng.normal(size=500) + np.linspace(0, 1, 500)
        stepping = rng.normal(size=500) - 0.7 * (np.arange(500) > 250)
        for scores, way in ((rising, "rise"), (stepping, "fall")):
            found = exchangeability([scores])
            assert not found.holds
            assert f"scores {way} from the first row to the last" in found.verdict

    def test_finds_seasons_and_that_groups_put_it_right(self):
        rng = np.random.default_rng(6)
        month = np.arange(1200) // 30 % 12
        scores = rng.normal(size=1200) + np.sin(2 * np.pi * month / 12)
        assert not Calibration.of(scores).exchangeability.holds
        assert Calibration.of(scores, groups=month).exchangeability.holds

    def test_finds_rows_that_take_turns(self):
        scores = np.random.default_rng(7).normal(size=200) + np.tile([0.0, 1.0], 100)
        assert "take turns" in exchangeability([scores]).verdict

    def test_names_the_group(self):
        rng = np.random.default_rng(8)
        scores = np.concatenate([rng.normal(size=300), autoregressive(rng, 300, memory=0.7)])
        found = Calibration.of(scores, groups=["calm"] * 300 + ["rough"] * 300).exchangeability
        assert "neighbouring rows of group rough are alike" in found.verdict


@pytest.mark.parametrize("scores", [np.arange(5.0), np.zeros(100)], ids=["few", "all alike"])
def test_says_where_nothing_could_be_tested(scores):
    found = exchangeability([scores])
    assert (found.p_value, found.holds) == (1.0, True)
    assert found.verdict == "not tested: fewer than 10 different rows"


def test_autocorrelation_time_is_that_of_the_process():
    z = autoregressive(np.random.default_rng(9), 200_000, memory=0.9)
    assert autocorrelation_time(z - z.mean()) == pytest.approx(19, rel=0.1)


def test_effective_rows_are_those_that_the_mean_of_all_has():
    rng = np.random.default_rng(10)
    blocks = np.arange(4000) // 20
    scores = (rng.normal(size=(300, 200, 1)) + rng.normal(size=(300, 200, 20))).reshape(300, 4000)
    mean = norm.cdf(scores / np.sqrt(2)).mean(1)
    found = [effective_rows(row, blocks) for row in scores[:50]]
    assert np.mean(found) == pytest.approx((1 / 12) / mean.var(), rel=0.3)
