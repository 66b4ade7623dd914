"""Streams of tests: the published recursions, the same however they are cut, their rate kept."""

from __future__ import annotations

import json

import numpy as np
import pytest

from sciflow.anomaly import online
from sciflow.anomaly.calibration import Calibration
from sciflow.anomaly.online import LORD, SAFFRON
from sciflow.errors import ConfigError, DataError

STREAMS = [LORD, SAFFRON]


def stream(rng, m, share=0.05, size=1e-4):
    odd = rng.random(m) < share
    return np.where(odd, rng.random(m) * size, rng.random(m)), odd


def lord(p, level):
    """Ramdas et al., arXiv:1710.00499, as it stands there."""
    gamma = lambda t: 0.079 * np.log(max(t, 2)) / (t * np.exp(np.sqrt(np.log(t))))  # noqa: E731
    w0, taus, flags = level / 2, [], []
    for t in range(1, len(p) + 1):
        alpha = w0 * gamma(t)
        if taus:
            alpha += (level - w0) * gamma(t - taus[0])
        alpha += level * sum(gamma(t - tau) for tau in taus[1:])
        flags.append(p[t - 1] <= alpha)
        if flags[-1]:
            taus.append(t)
    return flags


def saffron(p, level, lam=0.5):
    """Ramdas et al., arXiv:1802.09098, as it stands there, with the count of candidates since every discovery."""
    gamma = lambda t: t**-1.6 / 2.285765666  # noqa: E731
    w0, taus, flags = (1 - lam) * level / 2, [], []
    candidate = np.asarray(p) <= lam
    for t in range(1, len(p) + 1):
        since = lambda tau, t=t: int(candidate[tau : t - 1].sum())  # noqa: E731
        alpha = w0 * gamma(t - since(0))
        if taus:
            alpha += ((1 - lam) * level - w0) * gamma(t - taus[0] - since(taus[0]))
        alpha += sum((1 - lam) * level * gamma(t - tau - since(tau)) for tau in taus[1:])
        flags.append(p[t - 1] <= min(lam, alpha))
        if flags[-1]:
            taus.append(t)
    return flags


@pytest.mark.parametrize(("kind", "published"), [(LORD, lord), (SAFFRON, saffron)])
@pytest.mark.parametrize("share", [0.0, 0.02, 0.3, 1.0])
@pytest.mark.parametrize("block", [8, 16384])
def test_is_the_published_recursion(kind, published, share, block, monkeypatch):
    monkeypatch.setattr(online, "_BLOCK", block)
    for seed in range(2):
        p, _ = stream(np.random.default_rng(seed), 400, share, size=0.02)
        found = kind(0.1).decide(p)
        assert found.flag.tolist() == published(p, 0.1)
        assert found.method == kind.method


@pytest.mark.parametrize("kind", STREAMS)
class TestOfEveryStream:
    def test_is_the_same_however_it_is_cut_and_saved(self, kind):
        rng = np.random.default_rng(1)
        p, _ = stream(rng, 60_000, 0.05, size=1e-3)
        p[:20], p[::97] = 1e-6, np.nan
        whole = kind(0.1)
        expected = whole.decide(p).flag
        assert 500 < expected.sum() < 4000
        for num_cuts in (1, 40):
            again, flags = kind(0.1), []
            for part in np.split(p, np.sort(rng.integers(0, len(p), num_cuts))):
                again = kind.from_state(json.loads(json.dumps(again.state())))
                flags.append(again.decide(part).flag)
            np.testing.assert_array_equal(np.concatenate(flags), expected)
            assert again.state() == whole.state()

    def test_gammas_are_a_budget(self, kind):
        gamma = kind(0.1)._gamma(np.arange(1.0, 1e6 + 1))
        y = np.sqrt(np.log(1e6))
        beyond = {  # the integrals from 1e6 on
            "lord": 0.079 * 2 * np.exp(-y) * (y**3 + 3 * y**2 + 6 * y + 6),
            "saffron": 1e6**-0.6 / 0.6 / 2.285765666,
        }
        assert 0.99 < gamma.sum() + beyond[kind.method] <= 1 + 1e-6
        assert (np.diff(gamma[1:]) < 0).all()

    def test_keeps_its_rate_and_finds_anomalies(self, kind):
        rng = np.random.default_rng(2)
        false, power = [], []
        for _ in range(300):
            p, odd = stream(rng, 1000, 0.1)
            flag = kind(0.1).decide(p).flag
            false.append((flag & ~odd).sum() / max(flag.sum(), 1))
            power.append(flag[odd].mean())
        assert np.mean(false) <= 0.1 + 3 * np.std(false) / np.sqrt(300)
        assert np.mean(power) > 0.9

    def test_keeps_its_rate_with_conformal_p_values_of_one_calibration(self, kind):
        rng = np.random.default_rng(3)
        false, power = [], []
        for _ in range(300):
            odd = rng.random(500) < 0.1
            calibration = Calibration.of(rng.normal(size=10_000))
            flag = kind(0.1).decide(calibration.p_values(rng.normal(size=500) + 5 * odd).p_value).flag
            false.append((flag & ~odd).sum() / max(flag.sum(), 1))
            power.append(flag[odd].mean())
        assert np.mean(false) <= 0.1 + 3 * np.std(false) / np.sqrt(300)
        assert np.mean(power) > 0.5

    def test_flags_nothing_much_where_there_is_nothing(self, kind):
        rng = np.random.default_rng(4)
        alarms = [kind(0.1).decide(rng.random(1000)).flag.any() for _ in range(400)]
        assert np.mean(alarms) <= 0.1 + 3 * np.sqrt(0.09 / 400)

    def test_a_p_value_that_is_nan_is_no_test(self, kind):
        p, _ = stream(np.random.default_rng(5), 300)
        with_nan = np.insert(p, np.arange(0, 300, 3), np.nan)
        found = kind(0.1).decide(with_nan).flag
        np.testing.assert_array_equal(found[~np.isnan(with_nan)], kind(0.1).decide(p).flag)
        assert not found[np.isnan(with_nan)].any()

    def test_says_where_the_calibration_has_become_too_small(self, kind):
        long = kind(0.1)
        long.decide(np.full(5000, 0.9))
        found = long.decide([0.01, 0.5], resolution=0.01)
        assert "the calibration gives no p below 0.01" in found.note
        assert not found.flag.any()
        assert kind(0.1).decide([0.5], resolution=1e-6).note is None
        assert kind(0.1).decide([], resolution=0.5).note is None

    def test_is_quick_for_long_streams(self, kind):
        p, odd = stream(np.random.default_rng(6), 200_000, 0.01, size=1e-6)
        assert kind(0.1).decide(p).flag[odd].mean() > 0.99

    def test_refuses_what_it_cannot_go_on_from(self, kind):
        other = next(one for one in STREAMS if one is not kind)
        with pytest.raises(ConfigError, match=f"begun by {other.method}, and cannot go on by {kind.method}"):
            kind.from_state(other(0.1).state())
        with pytest.raises(DataError, match="not the state of a stream"):
            kind.from_state({"method": kind.method})
        with pytest.raises(ConfigError, match="level is 1"):
            kind(1)
        with pytest.raises(DataError, match=r"row 0 is -1"):
            kind(0.1).decide([-1.0])
