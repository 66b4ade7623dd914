"""Values of a command's options, read from the texts that they are given as."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sciflow.errors import ConfigError

__all__ = [
    "is_setting",
    "parse_context",
    "parse_names",
    "parse_numbers",
    "parse_settings",
    "parse_sizes",
    "parse_split_by",
    "parse_strides",
]


def parse_names(text: str | None) -> list[str] | None:
    """Read names with commas between them.

    Example:
        >>> parse_names("t2m, u10")
        ['t2m', 'u10']
    """
    return None if text is None else [name.strip() for name in text.split(",") if name.strip()]


def parse_numbers(text: str, option: str) -> list[float]:
    """Read numbers with commas between them.

    Args:
        text: As it was given.
        option: Whose value it is, for the message.

    Raises:
        ConfigError: One of them is no number.

    Example:
        >>> parse_numbers("0.8,0.1,0.1", "split")
        [0.8, 0.1, 0.1]
    """
    try:
        return [float(word) for word in text.split(",")]
    except ValueError:
        raise ConfigError(f"--{option} {text}: give numbers with commas between them") from None


def parse_sizes(text: str | None, option: str) -> dict[str, int | None] | None:
    """Read lengths along dimensions; None is all of one.

    Args:
        text: As it was given.
        option: Whose value it is, for the message.

    Raises:
        ConfigError: A length is no whole number.

    Example:
        >>> parse_sizes("time=24,level", "event")
        {'time': 24, 'level': None}
    """
    if text is None:
        return None
    sizes: dict[str, int | None] = {}
    for item in parse_names(text) or []:
        name, equals, size = item.partition("=")
        try:
            sizes[name] = int(size) if equals else None
        except ValueError:
            raise ConfigError(
                f"--{option} {item}: give NAME=LENGTH, a whole number of steps, or NAME for all of it"
            ) from None
    return sizes


def parse_strides(text: str | None) -> dict[str, int] | None:
    """Read the steps from one window to the next, by dimension.

    Raises:
        ConfigError: One is missing, or no whole number.

    Example:
        >>> parse_strides("time=12")
        {'time': 12}
    """
    sizes = parse_sizes(text, "stride")
    if sizes is None:
        return None
    for name, size in sizes.items():
        if size is None:
            raise ConfigError(f"--stride {name}: give NAME=STEPS")
    return {name: size for name, size in sizes.items() if size is not None}


def parse_split_by(text: str | None) -> tuple[str | None, int | None]:
    """Read the dimension that a split goes along, and the length of its blocks where there are any.

    Raises:
        ConfigError: There are several dimensions, or the length is no whole number.

    Example:
        >>> parse_split_by("time=7")
        ('time', 7)
    """
    sizes = parse_sizes(text, "split-by")
    if not sizes:
        return None, None
    if len(sizes) > 1:
        raise ConfigError(f"--split-by {text}: give one dimension")
    return next(iter(sizes.items()))


def parse_context(text: str | None) -> Any:
    """Read a context: numbers with commas between them, or YAML where it begins with a bracket.

    Raises:
        ConfigError: It is neither.

    Example:
        >>> parse_context("0.5,12")
        [0.5, 12.0]
        >>> parse_context("{season: 2}")
        {'season': 2}
    """
    if text is None:
        return None
    return _yaml("--context", text) if text.lstrip().startswith(("{", "[")) else parse_numbers(text, "context")


def is_setting(text: str) -> bool:
    """Whether an argument is ``KEY=VALUE`` and no store: that may be left out, and folders may be called ``year=2020``.

    Example:
        >>> is_setting("tolerance=1e-4"), is_setting("runs/rain.zarr")
        (True, False)
    """
    key, equals, _ = text.partition("=")
    return bool(equals) and key.isidentifier() and not Path(text).exists()


def parse_settings(items: Sequence[str], of: str) -> dict[str, Any]:
    """Read settings ``KEY=VALUE``, whose values are YAML.

    Args:
        items: As they were given.
        of: What has them, and one of them, for the message.

    Raises:
        ConfigError: One is of another form, or its value no YAML.

    Example:
        >>> parse_settings(["tolerance=1e-4", "max_steps=500"], "the method")
        {'tolerance': 0.0001, 'max_steps': 500}
    """
    settings = {}
    for item in items:
        key, equals, text = item.partition("=")
        if not (key and equals):
            raise ConfigError(f"{item}: give KEY=VALUE, an option of {of}")
        settings[key] = _yaml(key, text)
    return settings


def _yaml(what: str, text: str) -> Any:
    import yaml

    from sciflow.config import from_yaml

    try:
        return from_yaml(text)
    except yaml.YAMLError:
        raise ConfigError(f"{what}: {text!r} is not a YAML value") from None
