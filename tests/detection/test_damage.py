"""What has happened to results and detectors since the run before is told, in words, and nothing is done by halves."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from stored import contents

import sciflow as sf
from sciflow.anomaly.scheduled import job, tasks, work
from sciflow.errors import ModelFileError, RunError, SciflowError, StoreError


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


def test_a_damaged_part_of_work_is_in_nobodys_way(done, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(work, "judge", None)
        with pytest.raises(TypeError):
            done.detect()
    part = next((done.out / "work" / "parts").glob("*.safetensors"))
    part.write_bytes(b"\0" + part.read_bytes()[1:])
    tasks._read_scores.cache_clear()
    with pytest.raises(RunError, match="was damaged, and is removed: run the same command again"):
        done.detect()
    assert done.detect().rows == 12


def test_results_that_cannot_be_opened(done):
    (done.current / "results.zarr" / "zarr.json").unlink()
    with pytest.raises(StoreError, match=r"results.zarr: damaged"):
        done.detect()


@pytest.mark.parametrize("name", [*VALUES, "store", "lat", "time", "day"])
def test_a_file_of_the_results_that_is_gone_does_not_read_as_rows_never_judged(done, name):
    file = next(file for file in (done.current / "results.zarr" / name / "c").rglob("*") if file.is_file())
    before = contents(done.current)
    place, content = file.relative_to(done.current / "results.zarr"), file.read_bytes()
    file.unlink()
    for call in (done.detect, done.plan):
        with pytest.raises(StoreError, match=rf"results.zarr: damaged: {place} is gone"):
            call()
    file.write_bytes(content)  # nothing else has changed, and so it goes on
    assert contents(done.current) == before
    assert done.detect().rows == 12


def test_a_list_of_files_that_is_damaged(done):
    (done.current / "files.json").write_text("{")
    with pytest.raises(StoreError, match=r"files.json: damaged"):
        done.detect()


def test_results_of_before_there_were_lists_are_carried_on(done):
    (done.current / "files.json").unlink()
    assert done.detect().rows == 12
    assert (done.current / "files.json").exists()


def test_a_version_that_is_gone_is_no_beginning(done):
    before = done.current
    before.rename(before.with_name("elsewhere"))
    for call in (done.detect, done.plan):
        with pytest.raises(StoreError, match=r"current: leads to versions/000001, which is gone: restore it"):
            call()
    (done.out / "current").unlink()
    assert done.detect().rows == 36


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


def test_a_detector_that_somebody_has_edited(done):
    (detector,) = (done.out / "detector").iterdir()
    before = contents(detector)
    file = detector / "detector.json"
    file.write_text(file.read_text().replace('"missing": 0', '"missing": 1'))
    with pytest.raises(ModelFileError, match=rf"edited.*; or remove {detector}"):
        done.detect()
    shutil.rmtree(detector)
    assert done.detect().rows == 12
    assert contents(detector) == before


def test_figures_that_cannot_be_written_are_no_failure_of_the_run(done):
    figures = done.out / "metrics.prom"
    figures.unlink()
    figures.mkdir()
    with pytest.warns(UserWarning, match=r"metrics.prom: cannot be written, figures are as before"):
        assert done.detect().rows == 12
    assert done.results.sizes["day"] == 3


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (errno.EPERM, "the file system has no symbolic links"),
        (errno.ENOSPC, "No space left on device; results are as they were before"),
    ],
)
def test_a_link_that_cannot_be_made(number, message, done, monkeypatch):
    def refused(*_):
        raise OSError(number, os.strerror(number))

    before = contents(done.current)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "symlink_to", refused)
        with pytest.raises(SciflowError, match=message):
            done.detect()
    assert contents(done.current) == before
    assert done.detect().rows == 12


@pytest.mark.parametrize("name", ["online", "drift"])
def test_a_state_that_somebody_has_edited(done, name):
    file = done.current / "state.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), name: {"a": 1}}))
    done.detection["method"] = "lord"
    with pytest.raises(SciflowError, match=r"damaged|not the state"):
        done.detect()
