"""What can go wrong, as one small hierarchy: every message says what, where, and what to do."""

from __future__ import annotations

__all__ = [
    "CheckpointError",
    "ConfigError",
    "ConvergenceError",
    "DataError",
    "DerivativeError",
    "LayoutError",
    "ModelFileError",
    "RunError",
    "SciflowError",
    "ShapeError",
    "StoreError",
    "TrainingError",
    "first_line",
    "nearest",
]

from collections.abc import Iterable
from difflib import get_close_matches


class SciflowError(Exception):
    """Anything that sciflow itself reports; the command line prints it as one line, without a traceback."""


class ConfigError(SciflowError, ValueError):
    """A setting is unknown, of the wrong type, or out of range."""


class ConvergenceError(SciflowError, ArithmeticError):
    """An iteration ended before its result was as accurate as it is to be."""


class DataError(SciflowError, ValueError):
    """The data cannot be used as they are: missing values, text, constant columns, nothing left."""


class DerivativeError(SciflowError, RuntimeError):
    """A derivative is asked for that would be wrong."""


class LayoutError(SciflowError, ValueError):
    """A dimension or variable does not exist or does not fit, or model and store disagree on the layout."""


class ShapeError(SciflowError, ValueError):
    """A tensor does not have the shape that the density or bijection was made for."""


class StoreError(SciflowError, OSError):
    """A store is missing, damaged, incomplete, or written by another version."""


class ModelFileError(SciflowError, OSError):
    """A model file is missing, damaged, or of a kind that is not read."""


class CheckpointError(SciflowError, OSError):
    """No checkpoint can be read, or none can be written."""


class RunError(SciflowError, RuntimeError):
    """A run directory belongs to another configuration, or is in use."""


class TrainingError(SciflowError, RuntimeError):
    """Training cannot go on: the loss is not finite, or a worker failed for good."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Return the hint that ends an unknown-name message.

    Example:
        >>> nearest("learning_rat", ["learning_rate", "batch_size"])
        'did you mean learning_rate?'
        >>> nearest("zzz", ["b", "a"])
        'known: a, b'
    """
    known = sorted(map(str, known))
    match = get_close_matches(name, known, n=1, cutoff=0.6)
    if match:
        return f"did you mean {match[0]}?"
    return "known: " + (", ".join(known) if known else "none")


def first_line(error: BaseException) -> str:
    """Return what another package's error says, in one line.

    Example:
        >>> first_line(ValueError("no such axis: 3\\nsee the manual"))
        'no such axis: 3'
    """
    return (str(error).splitlines() or [type(error).__name__])[0]
