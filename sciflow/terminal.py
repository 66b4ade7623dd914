"""How commands speak to a terminal: what went wrong, or is worth knowing, is one line on standard error."""

from __future__ import annotations

import os
import sys
import threading
import warnings
from typing import Any

import typer
from typer.core import TyperGroup

from sciflow.errors import SciflowError

__all__ = ["Commands", "is_first", "say"]


class Commands(TyperGroup):
    """Commands whose errors and warnings are one line each."""

    def main(self, *args: Any, **options: Any) -> Any:
        """Run a command; a command that was given wrongly is told so in one line, too."""
        standalone = options.pop("standalone_mode", True)
        try:
            code = super().main(*args, **{**options, "standalone_mode": False})
        except Exception as error:
            # Typer's usage errors, whose class has moved from release to release.
            if not hasattr(error, "format_message"):
                raise
            if type(error).__name__ == "NoArgsIsHelpError":
                error.show()  # type: ignore[attr-defined]
            else:
                say(f"error: {error.format_message().rstrip('.')}; --help says what there is")
            sys.exit(2)
        if standalone:
            sys.exit(code if isinstance(code, int) else 0)
        return code

    def invoke(self, ctx: Any) -> Any:
        """Run what a command does."""
        with warnings.catch_warnings():
            warnings.simplefilter("default", UserWarning)
            warnings.showwarning = lambda message, *_, **__: say(f"warning: {message}")
            threading.excepthook = _excepthook
            try:
                return super().invoke(ctx)
            except SciflowError as error:
                say(f"error: {error}")
            except KeyboardInterrupt:
                say("interrupted: the same command goes on from here")
                sys.exit(130)
            except BrokenPipeError:
                os._exit(0)
            except OSError as error:
                say(f"error: {error.filename or 'file system'}: {error.strerror or error}")
            finally:
                threading.excepthook = threading.__excepthook__
        sys.exit(1)


def is_first() -> bool:
    """Whether this process speaks for those that torchrun has started with it."""
    return int(os.environ.get("RANK", 0)) == 0


def say(text: str) -> None:
    """Write a line to standard error, once for all processes of a run."""
    if is_first():
        typer.echo(text, err=True)


def _excepthook(raised: threading.ExceptHookArgs) -> None:
    # A full disk in TensorBoard's writing thread is raised again, and told of, by the next write.
    if not issubclass(raised.exc_type, OSError):
        threading.__excepthook__(raised)
