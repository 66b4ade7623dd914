"""Files that are there whole or not at all."""

from __future__ import annotations

import pytest

from sciflow.files import write_to_disk, written_whole


@pytest.fixture
def state(tmp_path):
    """A file that is there already."""
    path = tmp_path / "state.json"
    path.write_text("before")
    return path


class TestWrittenWhole:
    def test_what_was_written_takes_the_place_of_what_was_there(self, state):
        with written_whole(state) as beside:
            beside.write_text("after")
            assert state.read_text() == "before"
        assert state.read_text() == "after"
        assert list(state.parent.iterdir()) == [state]

    @pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
    def test_an_error_leaves_what_was_there_and_nothing_beside_it(self, state, error):
        def write_half(path):
            path.write_text("half")
            raise error

        with pytest.raises(error), written_whole(state) as beside:
            write_half(beside)
        assert state.read_text() == "before"
        assert list(state.parent.iterdir()) == [state]

    def test_what_a_killed_process_leaves_can_be_told_by_its_name(self, state):
        with written_whole(state) as beside:
            beside.write_text("half")
            assert list(state.parent.glob(".*.partial")) == [beside]

    def test_a_folder_that_is_not_there_is_an_error(self, tmp_path):
        with pytest.raises(FileNotFoundError), written_whole(tmp_path / "nowhere" / "file") as beside:
            write_to_disk(beside, b"content")
