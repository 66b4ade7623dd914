"""Where the steps of a sampler fall."""

from __future__ import annotations

import pytest
import torch

from sciflow.diffusion.samplers import SPACINGS, times
from sciflow.diffusion.schedules import Schedule, schedule
from sciflow.errors import ConfigError

SCHEDULES = {name: schedule(name) for name in ("vp", "cosine", "sub-vp", "ve", "edm", "flow")}
every_schedule = pytest.mark.parametrize("of", SCHEDULES.values(), ids=SCHEDULES)


class TestTimes:
    @every_schedule
    @pytest.mark.parametrize("spacing", SPACINGS)
    def test_fall_from_most_to_least_noise(self, spacing: str, of: Schedule) -> None:
        along = times(of, 1000, spacing, 5e-3)
        assert along.dtype == torch.float64
        assert (along.diff() < 0).all()
        ends = of.noise_level(along[[0, -1]]).tolist()
        assert ends == pytest.approx(
            [float(of.noise_level(torch.tensor(of.t_max, dtype=torch.float64))), 5e-3], rel=1e-6
        )
        assert torch.equal(times(of, 1, spacing), along[:1])

    def test_are_spaced_evenly_in_what_they_say(self) -> None:
        of = SCHEDULES["ve"]
        even_in = {
            "sigmoid": lambda k: k**0.7 / (1 + k**0.7),
            "power": lambda k: k ** (1 / 7),
            "log": torch.log,
            "time": of.time,
        }
        for spacing, even in even_in.items():
            gaps = even(of.noise_level(times(of, 9, spacing))).diff()
            torch.testing.assert_close(gaps, gaps.mean().expand(8))

    @pytest.mark.parametrize(
        ("given", "message"),
        [
            ({"num_steps": 0}, "num_steps must be a whole number from 1"),
            ({"num_steps": 2.5}, "num_steps must be a whole number"),
            ({"num_steps": True}, "num_steps must be a whole number"),
            ({"spacing": "lag"}, "spacing: got 'lag'; did you mean log"),
            ({"least_noise": 0.0}, "least_noise must be a number"),
            ({"least_noise": 60.0}, "least_noise must be a number from 1e-12 to 40"),
        ],
    )
    def test_say_what_is_wrong(self, given: dict[str, object], message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            times(SCHEDULES["edm"], **{"num_steps": 5, **given})
