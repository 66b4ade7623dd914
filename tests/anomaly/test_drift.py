"""Drift: quiet where nothing moves, for as long as one likes; loud where all rows do; unmoved by a few odd ones."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy.signal import lfilter

from sciflow.anomaly.calibration import Calibration
from sciflow.anomaly.drift import NUM_BINS, _Jumper, drift
from sciflow.errors import DataError


def autoregressive(rng, n, memory=0.95):
    return lfilter([np.sqrt(1 - memory**2)], [1.0, -memory], rng.normal(size=n + 500))[500:]


def again_and_again(calibration, runs, **given):
    """The findings of one run after the other, the state carried as JSON."""
    state, found = None, []
    for scores in runs:
        found.append(drift(calibration, scores, num_flagged=0, state=state, **given))
        state = json.loads(json.dumps(found[-1].state, allow_nan=False))
    return found


class TestWhereNothingMoves:
    @pytest.mark.parametrize("draw", ["normal", "poisson"])
    @pytest.mark.parametrize("m", [50, 1000])
    def test_the_p_value_is_one(self, draw, m):
        rng = np.random.default_rng(0)
        drawn = getattr(rng, draw)
        found = [drift(Calibration.of(drawn(size=300)), drawn(size=m), num_flagged=0).p_value for _ in range(150)]
        for level in (0.01, 0.1):
            assert np.mean(np.array(found) <= level) <= level + 3 * np.sqrt(level / 150)

    def test_the_martingale_has_mean_1_whatever_the_luck_of_the_calibration(self):
        rng = np.random.default_rng(1)
        capital = []
        for _ in range(1500):
            # As drift does it, but of few rows: later the mean is that of very few rich bettors.
            jumper = _Jumper.of(Calibration.of(rng.normal(size=100)), None)
            chance = rng.dirichlet(np.full(NUM_BINS, 90 / NUM_BINS))
            jumper.bet(np.eye(NUM_BINS)[rng.choice(NUM_BINS, size=20, p=chance)], np.zeros(20, dtype=int))
            capital.append(jumper.capital)
        assert np.mean(capital) == pytest.approx(1, abs=4 * np.std(capital) / np.sqrt(1500))

    def test_it_is_quiet_for_long_though_all_runs_share_one_small_calibration(self):
        rng = np.random.default_rng(2)
        for _ in range(10):
            found = again_and_again(Calibration.of(rng.normal(size=200)), rng.normal(size=(15, 300)))
            assert max(one.martingale for one in found) < 1000
            assert {one.verdict for one in found} == {"quiet"}
            assert found[-1].words.startswith("quiet: the bulk")

    def test_groups_have_their_own_luck(self):
        rng = np.random.default_rng(3)
        small = ["small"] * 30
        moved = 0
        for _ in range(60):
            scores = rng.normal(size=5030)
            calibration = Calibration.of(scores, groups=["large"] * 5000 + small)
            moved += drift(calibration, rng.normal(size=3000), groups=small * 100, num_flagged=0).verdict == "moved"
        assert moved <= 1

    def test_blocks_of_autocorrelated_rows_are_no_drift(self):
        rng = np.random.default_rng(4)
        found = {"blocks": 0, "rows": 0}
        for _ in range(60):
            scores, new = autoregressive(rng, 4000), autoregressive(rng, 1000)
            by_block = Calibration.of(scores, blocks=np.arange(4000) // 200)
            found["blocks"] += drift(by_block, new, num_flagged=0).verdict == "moved"
            found["rows"] += drift(Calibration.of(scores), new, num_flagged=0).verdict == "moved"
        assert found["blocks"] <= 2
        assert found["rows"] > 20


class TestWhereTheWorldMoves:
    @pytest.mark.parametrize("shift", [0.4, -0.4])
    def test_a_modest_shift_of_all_rows_is_found(self, shift):
        rng = np.random.default_rng(5)
        for _ in range(20):
            calibration = Calibration.of(rng.normal(size=2000))
            found = drift(calibration, rng.normal(size=2000) + shift, num_flagged=3)
            assert found.verdict == "moved"
            assert f"scores are {'higher' if shift > 0 else 'lower'} than in calibration" in found.words
            assert 0.05 < found.statistic < 0.25

    def test_small_runs_add_up(self):
        rng = np.random.default_rng(6)
        calibration = Calibration.of(rng.normal(size=2000))
        found = again_and_again(calibration, rng.normal(size=(30, 30)) + 0.5)
        assert found[-1].verdict == "moved"
        assert found[-1].martingale > 1e4
        assert sum(one.p_value < 0.001 for one in found) < 10

    def test_it_is_found_soon_after_a_long_quiet_time(self):
        rng = np.random.default_rng(7)
        calibration = Calibration.of(rng.normal(size=2000))
        found = again_and_again(calibration, [rng.normal(size=20_000), *(rng.normal(size=(8, 100)) + 0.5)])
        assert found[0].verdict == "quiet"
        assert found[-1].martingale > 1000

    def test_a_shift_of_autocorrelated_rows_is_found(self):
        rng = np.random.default_rng(8)
        found = 0
        for _ in range(10):
            calibration = Calibration.of(autoregressive(rng, 8000), blocks=np.arange(8000) // 200)
            found += drift(calibration, autoregressive(rng, 8000) + 1, num_flagged=0).verdict == "moved"
        assert found >= 9

    def test_most_rows_cannot_be_odd(self):
        rng = np.random.default_rng(9)
        calibration = Calibration.of(rng.normal(size=1000))
        found = drift(calibration, rng.normal(size=20) + 50, num_flagged=20)
        assert found.verdict == "moved"
        assert "higher" in found.words

    @pytest.mark.parametrize("size", [1, 10])
    def test_most_rows_cannot_be_odd_in_small_runs_either(self, size):
        rng = np.random.default_rng(9)
        calibration = Calibration.of(rng.normal(size=1000))
        quiet = rng.normal(size=(100, size))
        found = again_and_again(calibration, [*quiet, *(rng.normal(size=(40 // size, size)) + 50)])
        assert {one.verdict for one in found[:100]} == {"quiet"}
        assert found[-1].verdict == "moved"
        assert "higher" in found[-1].words

    def test_whole_numbers_that_become_all_alike_are_found(self):
        calibration = Calibration.of(np.random.default_rng(10).poisson(0.5, size=2000))
        assert drift(calibration, np.zeros(500), num_flagged=0).verdict == "moved"


class TestWhereFewRowsAreOdd:
    @pytest.mark.parametrize("share", [0.0005, 0.01, 0.05])
    def test_they_are_odd_and_the_world_is_as_it_was(self, share):
        rng = np.random.default_rng(11)
        calibration = Calibration.of(rng.normal(size=20_000))
        scores = rng.normal(size=20_000)
        odd = int(share * 20_000)
        scores[:odd] += 1000
        found = drift(calibration, scores, num_flagged=odd)
        assert found.verdict == "odd"
        assert found.martingale < 10
        assert found.words.startswith(f"odd rows: {odd:,}; the bulk")

    def test_a_single_row_is_no_drift(self):
        calibration = Calibration.of(np.random.default_rng(12).normal(size=1000))
        assert drift(calibration, [99.0], num_flagged=1).verdict == "odd"


class TestItsState:
    def test_goes_on_as_if_runs_were_one(self):
        rng = np.random.default_rng(14)
        calibration = Calibration.of(rng.normal(size=300), groups=["a", "b"] * 150)
        scores, groups = rng.normal(size=900) + 0.3, rng.choice(["a", "b"], size=900)
        whole, state = drift(calibration, scores, groups=groups, num_flagged=0), None
        for part in np.split(np.arange(900), [100, 101, 600]):
            last = drift(calibration, scores[part], groups=groups[part], num_flagged=0, state=state)
            state = json.loads(json.dumps(last.state))
        assert last.state["log_capital"] == pytest.approx(whole.state["log_capital"])
        # The bet on a majority of odd rows is one a run.
        assert last.martingale == pytest.approx(whole.martingale, rel=0.05)
        for group in ("0", "1"):
            np.testing.assert_allclose(last.state["counts"][group], whole.state["counts"][group])

    def test_is_begun_anew_by_another_calibration(self):
        rng = np.random.default_rng(13)
        first, second = (Calibration.of(rng.normal(size=500)) for _ in range(2))
        moved = drift(first, rng.normal(size=500) + 1, num_flagged=0)
        new = rng.normal(size=500)
        anew = drift(second, new, num_flagged=0, state=moved.state)
        assert anew == drift(second, new, num_flagged=0)
        assert drift(first, new, num_flagged=0, state=moved.state).martingale > 1000

    def test_of_something_else_is_refused(self):
        calibration = Calibration.of(np.arange(100.0))
        with pytest.raises(DataError, match="not the state of a drift test"):
            drift(calibration, [1.0], num_flagged=0, state={"calibration": calibration.fingerprint})


def test_no_rows_and_rows_without_scores_are_quiet():
    calibration = Calibration.of(np.arange(100.0), groups=["a"] * 100)
    for scores, groups in (([], []), ([np.nan] * 9, ["a"] * 9), ([1.0] * 9, ["unknown"] * 9)):
        found = drift(calibration, scores, groups=groups, num_flagged=0)
        assert (found.verdict, found.p_value, found.martingale) == ("quiet", 1.0, 1.0)
