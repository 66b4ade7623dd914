"""What has happened to results and detectors since the run before is told, in words, and nothing is done by halves."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from stored import contents

import sciflow as sf
from sciflow.anomaly.scheduled import job
from sciflow.errors import ModelFileError, SciflowError, StoreError


@pytest.fixture
def done(world):
    """A run is done, and a day has come in since."""
    world.come_in(0)
    world.come_in(1, odd=True)
    world.detect()
    world.come_in(2)
    job._opened.cache_clear()  # as in a process of its own
    yield world
    job._opened.cache_clear()


VALUES = ["flag", "score", "p_value", "attribution", "status", "detector"]


@pytest.mark.parametrize("name", [*VALUES, "store", "lat", "time", "day"])
def test_a_flipped_byte_in_the_results_is_no_wrong_number(done, name):
    file = next(file for file in (done.current / "results.zarr" / name / "c").rglob("*") if file.is_file())
    damaged = bytearray(file.read_bytes())
    damaged[len(damaged) // 2] ^= 0x10
    file.write_bytes(bytes(damaged))
    with pytest.raises(StoreError, match=r"results.zarr: damaged"):
        done.detect()


def test_results_that_cannot_be_opened(done):
    (done.current / "results.zarr" / "zarr.json").unlink()
    with pytest.raises(StoreError, match=r"results.zarr: damaged"):
        done.detect()


def test_what_is_left_of_a_detector_is_made_anew(done):
    (detector,) = (done.out / "detector").iterdir()
    before = contents(detector)
    (detector / "detector.json").unlink()
    assert done.detect().rows == 12
    assert contents(detector) == before


def test_a_detector_of_another_model_is_not_taken_for_this_one(done):
    (detector,) = (done.out / "detector").iterdir()
    other = sf.Detector("nll", training={"max_steps": 5}).fit(np.random.default_rng(0).normal(size=(100, 6)))
    shutil.rmtree(detector)
    other.save(detector)
    before = contents(done.current)
    with pytest.raises(ModelFileError, match="another model"):
        done.detect()
    assert contents(done.current) == before


@pytest.mark.parametrize("name", ["online", "drift"])
def test_a_state_that_somebody_has_edited(done, name):
    file = done.current / "state.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), name: {"a": 1}}))
    done.detection["method"] = "lord"
    with pytest.raises(SciflowError, match=r"damaged|not the state"):
        done.detect()
