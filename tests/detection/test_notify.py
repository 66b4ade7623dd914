"""Who hears of anomalies does so once it is certain, until it is delivered, and can tell what was sent twice."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from stored import contents
from watched import killed

from sciflow.anomaly.scheduled import notify
from sciflow.anomaly.scheduled.folder import Folder
from sciflow.config import load_workflow
from sciflow.errors import ConfigError
from sciflow.sections import Notify


class Hook(HTTPServer):
    """A webhook that fails a number of times, and keeps what it was sent."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.failures = 0
        self.asked: list[str] = []
        self.got: list[dict] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/hook"


class _Handler(BaseHTTPRequestHandler):
    server: Hook

    def do_POST(self) -> None:
        message = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append(self.headers["Idempotency-Key"])
        if len(self.server.asked) <= self.server.failures:
            self.send_error(503)
            return
        self.server.got.append(message)
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_) -> None:
        pass


@pytest.fixture
def hook() -> Iterator[Hook]:
    with Hook() as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def _hurry(monkeypatch):
    monkeypatch.setattr(notify, "FIRST_WAIT", 0.01)


class TestTheWebhook:
    def test_hears_of_anomalies_and_of_nothing_else(self, world, hook):
        world.detection["notify"] = {"webhook": hook.url}
        world.come_in(0)
        world.detect()
        assert hook.got == []
        world.come_in(1, odd=True)
        world.detect()
        world.detect()
        (message,) = hook.got
        assert hook.asked == [message["key"]]
        assert (message["workflow"], message["number"], message["rows"], message["flagged"]) == ("demo", 2, 12, 2)
        assert message["stores"] == ["day001.zarr"]
        assert message["results"] == str(world.out)
        (event,) = message["events"]
        assert event["id"].startswith("day=2001-07-01")
        assert event["rows"] == 2

    def test_that_fails_is_tried_again(self, world, hook):
        hook.failures = 2
        world.detection["notify"] = {"webhook": hook.url}
        world.come_in(0, odd=True)
        assert world.detect().undelivered == 0
        assert len(hook.got) == 1
        assert len(hook.asked) == 3
        assert len(set(hook.asked)) == 1

    def test_that_does_not_answer_leaves_the_results_safe_and_hears_of_them_later(self, world, hook):
        hook.failures = 3
        world.detection["notify"] = {"webhook": hook.url, "retries": 2}
        world.come_in(0, odd=True)
        with pytest.warns(UserWarning, match=r"answered 503 Service Unavailable \(3 tries\)"):
            done = world.detect()
        assert (done.exit_code, done.undelivered) == (10, 1)
        assert world.results.flag.sum() == 2
        assert 'sciflow_detect_undelivered{workflow="demo"} 1\n' in (world.out / "metrics.prom").read_text()
        again = world.detect()
        assert (again.exit_code, again.undelivered, len(hook.got)) == (0, 0, 1)
        assert len(set(hook.asked)) == 1
        world.detect()
        assert len(hook.got) == 1

    def test_that_is_not_there_is_said_in_a_line(self, world):
        world.detection["notify"] = {"webhook": "http://127.0.0.1:9/", "retries": 0}
        world.come_in(0, odd=True)
        with pytest.warns(UserWarning, match=r"webhook: http://127.0.0.1:9/: .*refused \(1 tries\)"):
            world.detect()

    def test_hears_of_what_a_killed_run_had_no_time_to_tell(self, world, hook, monkeypatch):
        world.detection["notify"] = {"webhook": hook.url}
        world.come_in(0, odd=True)

        def dying(self, ledger):
            os.kill(os.getpid(), signal.SIGKILL)

        with monkeypatch.context() as patch:
            patch.setattr(Folder, "rewrite", dying)
            assert killed(world.detect) == -signal.SIGKILL
        before = contents(world.current)
        done = world.detect()
        # Sent twice, as nobody knew that it had arrived; the key says so.
        assert len(hook.got) == 2
        assert len(set(hook.asked)) == 1
        assert done.exit_code == 10
        assert str(done).startswith("2 rows flagged by a run that had no time to say so")
        changed = contents(world.current)
        assert {name for name in before if before[name] != changed[name]} == {"state.json"}
        assert world.detect().exit_code == 0


@pytest.mark.parametrize("path", ["a b", "a\nb"])
def test_a_webhook_that_is_no_url_is_said_in_a_line(path):
    problem = notify.deliver(Notify(webhook=f"http://127.0.0.1:9/{path}", retries=0), {"key": "1"})
    assert problem is not None
    assert "control characters" in problem


def test_a_webhook_that_speaks_otherwise_is_said_in_a_line():
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(b"220 mail\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        url = f"http://127.0.0.1:{server.getsockname()[1]}/"
        assert "220 mail" in str(notify.deliver(Notify(webhook=url, retries=0), {"key": "1"}))
        thread.join()


@pytest.mark.parametrize("command", ["", "  ", "echo 'a"])
def test_a_command_is_one(command):
    with pytest.raises(ConfigError, match=r"notify.command"):
        load_workflow({"name": "demo", "data": {"store": "x"}, "detection": {"notify": {"command": command}}})


class TestTheCommand:
    def test_gets_the_message_on_its_standard_input(self, world):
        world.detection["notify"] = {"command": f"tee '{world.root / 'a message.json'}'"}
        world.come_in(0, odd=True)
        world.detect()
        assert json.loads((world.root / "a message.json").read_text())["flagged"] == 2

    @pytest.mark.parametrize(
        ("command", "words"),
        [
            ("no-such-command", "No such file or directory"),
            ("sh -c 'echo out of paper >&2; exit 7'", "ended with 7, out of paper"),
            ("sleep 9", "not done after 0.2 s"),
        ],
    )
    def test_that_fails_is_said_in_a_line(self, command, words, world):
        settings = world.detection["notify"] = {"command": command, "retries": 0, "timeout": 0.2}
        problem = notify.deliver(notify.Notify(**settings), {"key": "1"})
        assert words in problem
        assert "\n" not in problem
