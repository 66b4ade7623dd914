"""What a flow is built from: checked when it comes, and kept as JSON can hold it."""

from __future__ import annotations

import math
import operator
import threading
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from numbers import Integral, Real
from typing import Any, TypeGuard

import torch

from sciflow.density import MOST_SEED, checked_shape
from sciflow.errors import ConfigError, nearest

__all__ = ["GENERATORS", "MOST_FEATURES", "MOST_TRANSFORMS", "Arguments", "is_number", "named", "plain", "seeded"]

# torch's own generators are those of the whole process: whoever sets them for a while must be alone with them.
GENERATORS = threading.RLock()

# Far above any use, and below what would be built for hours.
MOST_TRANSFORMS, MOST_FEATURES = 1000, 1 << 20
# Positive numbers whose products and quotients float32 holds, too.
_LEAST, _MOST = 1e-15, 1e15


class Arguments:
    """The arguments of one family's constructor; each method checks one, records it and returns it.

    Args:
        family: Name of the class, which begins every error.

    Raises:
        ConfigError: From every method, where the value is not what it must be.

    Example:
        >>> arguments = Arguments("NSF")
        >>> arguments.whole("num_bins", 8, 2, 256), arguments.widths("hidden_features", [64, 64])
        (8, (64, 64))
        >>> arguments.values
        {'num_bins': 8, 'hidden_features': [64, 64]}
    """

    def __init__(self, family: str) -> None:
        self.family = family
        self.values: dict[str, Any] = {}

    def whole(self, name: str, value: Any, least: int, most: int) -> int:
        """A whole number as Python's own; NumPy's are taken."""
        self.require(name, value, _is_whole(value) and least <= value <= most, f"{least} to {most:,}")
        self.values[name] = operator.index(value)
        return operator.index(value)

    def positive(self, name: str, value: Any) -> float:
        """A positive number, which float32 can work with."""
        self.require(name, value, is_number(value) and 0 < value < math.inf, "a positive number")
        self.require(name, value, _LEAST <= value <= _MOST, f"{_LEAST:g} to {_MOST:g}")
        self.values[name] = float(value)
        return float(value)

    def number(self, name: str, value: Any, least: float, most: float) -> float:
        """A number within bounds."""
        valid = is_number(value) and least <= value <= most
        self.require(name, value, valid, f"a number from {least:,} to {most:,}")
        self.values[name] = float(value)
        return float(value)

    def fraction(self, name: str, value: Any) -> float:
        """A number from 0 to below 1."""
        self.require(name, value, is_number(value) and 0 <= value < 1, "at least 0 and below 1")
        self.values[name] = float(value)
        return float(value)

    def flag(self, name: str, value: Any) -> bool:
        """True or False."""
        self.require(name, value, isinstance(value, bool), "true or false")
        self.values[name] = value
        return bool(value)

    def choice(self, name: str, value: Any, choices: Sequence[str]) -> str:
        """One of several names."""
        if not isinstance(value, str) or value not in choices:
            raise ConfigError(f"{self.family}: {name}: got {value!r}; {nearest(str(value), choices)}")
        self.values[name] = value
        return str(value)

    def wholes(self, name: str, value: Any, least: int, most: int) -> tuple[int, ...]:
        """Whole numbers; one stands for a list of it alone."""
        return self._several_whole(name, value, "numbers", 0, least, most)

    def widths(self, name: str, value: Any, most: int = MOST_FEATURES) -> tuple[int, ...]:
        """Widths of hidden layers; one number stands for one layer."""
        return self._several_whole(name, value, "widths", 1, 1, most)

    def periods(self, name: str, value: Any, num_features: int) -> dict[int, float]:
        """Periods by place in the flattened event; a list of places stands for periods of 2 pi."""
        expected = f"places from 0 to {num_features - 1}, each once, or a mapping from them to positive periods"
        given = () if value is None else _unpacked(value)
        self.require(name, value, isinstance(given, Iterable) and not isinstance(given, str), expected)
        pairs = list(given.items()) if isinstance(given, Mapping) else [(place, math.tau) for place in given]
        # JSON and YAML files may have turned the places into texts.
        pairs = [(int(place) if isinstance(place, str) and place.isdecimal() else place, p) for place, p in pairs]
        places = [place for place, _ in pairs]
        valid = all(_is_whole(place) and 0 <= place < num_features for place in places)
        valid = valid and len(set(places)) == len(places)
        self.require(name, value, valid and all(is_number(p) and 0 < p < math.inf for _, p in pairs), expected)
        within = all(_LEAST <= period <= _MOST for _, period in pairs)
        self.require(name, value, within, f"periods of {_LEAST:g} to {_MOST:g}")
        periods = {operator.index(place): float(period) for place, period in pairs}
        self.values[name] = {str(place): period for place, period in periods.items()} or None
        return periods

    def seed(self, value: Any) -> int | None:
        """A seed, or None."""
        if value is None:
            self.values["seed"] = None
            return None
        return self.whole("seed", value, 0, MOST_SEED)

    def shape(self, name: str, value: Any) -> torch.Size:
        """A shape; it is recorded by the density itself."""
        value = _unpacked(value)
        self.require(name, value, all(map(_is_whole, _several(value))), "whole numbers")
        return checked_shape(value, name)

    def _several_whole(self, name: str, value: Any, what: str, fewest: int, least: int, most: int) -> tuple[int, ...]:
        numbers = _several(value)
        valid = len(numbers) >= fewest and all(_is_whole(number) and least <= number <= most for number in numbers)
        self.require(name, value, valid, f"whole {what} of {least:,} to {most:,}")
        self.values[name] = [operator.index(number) for number in numbers]
        return tuple(self.values[name])

    def require(self, name: str, value: object, valid: bool, expected: str) -> None:
        """Raise an error that says what ``name`` must be, unless it is."""
        if not valid:
            raise ConfigError(f"{self.family}: {name} must be {expected}; got {value!r:.200}")


def is_number(value: object) -> TypeGuard[float]:
    """Whether it is a real number, of Python's or NumPy's; true and false are none.

    Example:
        >>> is_number(0.5), is_number(True), is_number("0.5")
        (True, False, False)
    """
    return isinstance(value, Real) and not isinstance(value, bool)


def named(what: str, given: Any, known: Collection[str]) -> tuple[str, Mapping[str, Any]]:
    """Return the name and the options of something that is asked for by name, or by a mapping from name to options.

    Args:
        what: What is asked for, in messages.
        given: As users write it; capitals and underlines do not matter.
        known: Names that there are.

    Raises:
        ConfigError: There is none of this name, or its options are no mapping.

    Example:
        >>> named("sampler", "DPM_2", ["dpm-2"]), named("sampler", {"ddim": {"eta": 1}}, ["ddim"])
        (('dpm-2', {}), ('ddim', {'eta': 1}))
    """
    name, options = next(iter(given.items())) if isinstance(given, Mapping) and len(given) == 1 else (given, None)
    name = name.lower().replace("_", "-") if isinstance(name, str) else name
    if not isinstance(name, str) or name not in known:
        raise ConfigError(f"{what}: unknown {given!r:.80}; {nearest(str(name), known)}")
    if not isinstance(options or {}, Mapping):
        raise ConfigError(f"{what}: {name} takes options by name; got {options!r:.80}")
    return name, options or {}


def plain(name: str, value: Any) -> Any:
    """Return a copy in which everything is as JSON holds it: what is done to the original later does not matter.

    Args:
        name: What it is, in messages.
        value: Numbers, texts, and lists and mappings of them; those of NumPy and torch become Python's.

    Raises:
        ConfigError: A model file cannot hold it.

    Example:
        >>> import numpy as np
        >>> plain("preprocess", ("log1p", {"logit": {"low": np.float32(0), "high": np.array([1, 2])}}))
        ['log1p', {'logit': {'low': 0.0, 'high': [1, 2]}}]
    """
    value = _unpacked(value)
    if value is None or isinstance(value, str | bool):
        return value
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real) and math.isfinite(value):
        return float(value)
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {key: plain(name, item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, bytes):
        return [plain(name, item) for item in value]
    raise ConfigError(
        f"{name}: got {value!r:.200}, which no model file can hold: give texts, finite numbers, and lists and "
        "mappings of them"
    )


@contextmanager
def seeded(seed: int | None) -> Iterator[None]:
    """Draw initial weights by a seed, and leave torch's own generator as it was; None draws from that one.

    Threads that build at the same time wait for each other.

    Example:
        >>> with seeded(3):
        ...     first = torch.rand(2)
        >>> with seeded(3):
        ...     bool((torch.rand(2) == first).all())
        True
    """
    with GENERATORS, torch.random.fork_rng(devices=[], enabled=seed is not None):
        if seed is not None:
            torch.default_generator.manual_seed(seed)  # torch.manual_seed would reach for the GPUs' generators too
        yield


def _unpacked(value: Any) -> Any:
    """Arrays, tensors and numbers of theirs, as lists and numbers of Python's."""
    return value.tolist() if hasattr(value, "tolist") else value


def _several(value: Any) -> tuple[Any, ...]:
    """One value, or those that it is made of."""
    value = _unpacked(value)
    return tuple(value) if isinstance(value, Iterable) else (value,)


def _is_whole(value: Any) -> bool:
    try:
        return operator.index(value) == value and not isinstance(value, bool)
    except TypeError:
        return False
