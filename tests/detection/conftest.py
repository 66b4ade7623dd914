"""What tests of scheduled runs share: a trained world, a copy for each test, and a page that is drawn only if asked."""

from __future__ import annotations

from pathlib import Path

import pytest
from watched import World, make_world

from sciflow.anomaly import page

DRAWN = page.write_detection_page


@pytest.fixture(scope="session", autouse=True)
def _no_figures():
    """The page without its figures, which take longer than all else."""

    def write(path, found, events, **about):
        counts = int(found.flag.sum()), len(events)
        Path(path).write_text(f"{counts} {about['title']} {about['facts']}")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(page, "write_detection_page", write)
        yield


@pytest.fixture
def _figures(monkeypatch):
    """The page as it is."""
    monkeypatch.setattr(page, "write_detection_page", DRAWN)


@pytest.fixture(scope="session")
def trained(tmp_path_factory) -> World:
    return make_world(tmp_path_factory.mktemp("trained") / "world")


@pytest.fixture
def world(trained, tmp_path) -> World:
    return trained.copy(tmp_path / "world")
