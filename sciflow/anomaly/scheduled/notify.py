"""Who hears of anomalies: a webhook, a command. A message is sent until it is delivered, and known by its key."""

from __future__ import annotations

import http.client
import json
import shlex
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from sciflow.errors import first_line
from sciflow.sections import Notify

__all__ = ["deliver", "wanted"]

FIRST_WAIT, LONGEST_WAIT = 0.5, 30.0


def wanted(settings: Notify) -> bool:
    """Whether anybody is to hear of anything."""
    return settings.webhook is not None or settings.command is not None


def deliver(settings: Notify, message: Mapping[str, Any]) -> str | None:
    """Send a message to all who are to hear of it.

    It is sent again where it is not known to have arrived: whoever must not act twice goes by its ``key``, which is
    also the header ``Idempotency-Key``.

    Args:
        settings: Who they are, and how often to try.
        message: What JSON can hold.

    Returns:
        What went wrong with the last try, in words; None where it was delivered.
    """
    ways = {"webhook": (settings.webhook, _post), "command": (settings.command, _run)}
    for what, (target, send) in ways.items():
        problem = None if target is None else _tried(settings, partial(send, settings, message))
        if problem is not None:
            return f"{what}: {problem}"
    return None


def _tried(settings: Notify, send: Callable[[], str | None]) -> str | None:
    """Try until it works, with longer and longer waits in between."""
    problem: str | None = None
    for number in range(settings.retries + 1):
        if number:
            time.sleep(min(FIRST_WAIT * 2 ** (number - 1), LONGEST_WAIT))
        problem = send()
        if problem is None:
            return None
    return f"{problem} ({settings.retries + 1} tries)"


def _post(settings: Notify, message: Mapping[str, Any]) -> str | None:
    assert settings.webhook is not None
    headers = {
        "Content-Type": "application/json",
        "User-Agent": "sciflow",
        "Idempotency-Key": str(message["key"]),
    }
    request = urllib.request.Request(settings.webhook, json.dumps(message).encode(), headers, method="POST")
    try:
        with urllib.request.urlopen(request, timeout=settings.timeout):
            return None
    except urllib.error.HTTPError as error:
        error.close()
        return f"{settings.webhook} answered {error.code} {error.reason}"
    except (OSError, ValueError, http.client.HTTPException) as error:
        return f"{settings.webhook}: {first_line(getattr(error, 'reason', None) or error)}"


def _run(settings: Notify, message: Mapping[str, Any]) -> str | None:
    assert settings.command is not None
    try:
        done = subprocess.run(
            shlex.split(settings.command),
            input=json.dumps(message).encode(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            timeout=settings.timeout,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"{settings.command}: not done after {settings.timeout:g} s"
    except (OSError, ValueError) as error:
        return f"{settings.command}: {getattr(error, 'strerror', None) or error}"
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        return f"{settings.command}: ended with {done.returncode}" + (f", {said[-1]:.200}" if said else "")
    return None
