"""A call in a process of its own, which is ended when it takes too long."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from typing import Any

import torch

from sciflow.errors import first_line

__all__ = ["CallError", "guarded"]

_GRACE = 5.0


class CallError(Exception):
    """A call failed, or did not come back; the message says how."""


def guarded(function: Callable[[], Any], timeout: float | None) -> Any:
    """Call a function, and give up on it after a while.

    With a timeout it runs in a forked process, so that no loop of Python or C can hold up this one, and no crash can
    take it along; what it returns must be numbers of NumPy or Python's own. Without one it is called here.

    Args:
        function: Takes nothing.
        timeout: Seconds; None for as long as it takes.

    Raises:
        CallError: It raised an error, took too long, or its process ended.

    Example:
        >>> guarded(lambda: 3, timeout=10.0)
        3
        >>> guarded(lambda: 1 // 0, timeout=None)
        Traceback (most recent call last):
        sciflow.inference.conditional.guarded.CallError: ZeroDivisionError: integer division or modulo by zero
    """
    if timeout is None:
        try:
            return function()
        except Exception as error:
            raise CallError(_named(error)) from error
    context = multiprocessing.get_context("fork")
    mine, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_answer, args=(function, theirs), daemon=True)
    process.start()
    theirs.close()
    try:
        if not mine.poll(timeout):
            raise CallError(f"no answer after {timeout:g} s")
        worked, answer = mine.recv()
    except EOFError:
        process.join(_GRACE)
        raise CallError(f"its process ended (exit code {process.exitcode})") from None
    finally:
        mine.close()
        process.kill()
        process.join(_GRACE)
    if not worked:
        raise CallError(answer)
    return answer


def _answer(function: Callable[[], Any], pipe: Any) -> None:
    # Threads of the parent are not there after a fork: nothing may wait for them.
    torch.set_num_threads(1)
    try:
        answer = True, function()
    except BaseException as error:
        answer = False, _named(error)
    try:
        pipe.send(answer)
    except Exception as error:
        pipe.send((False, _named(error)))
    pipe.close()


def _named(error: BaseException) -> str:
    return f"{type(error).__name__}: {first_line(error)}"
