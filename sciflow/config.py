"""The workflow file: checked before anything starts, and every error says file, key, value and what would be valid."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from sciflow.errors import ConfigError, nearest
from sciflow.sections import TOGETHER, Cluster, Data, Detection, Scoring, Section, Training, Workflow

__all__ = [
    "Cluster",
    "Data",
    "Detection",
    "Scoring",
    "Section",
    "Training",
    "Workflow",
    "explained",
    "from_yaml",
    "load_workflow",
    "must_be",
    "validate",
]


def explained(section: Section) -> str:
    """Return a workflow, or a part of it, as a file would hold it, with what every key means.

    Example:
        >>> print(explained(Workflow(name="demo", data={"store": "rows.zarr"})))  # doctest: +ELLIPSIS
        name: demo  # Of the run; its folder is runs/NAME.
        data:
          store: rows.zarr  # A store that sciflow shard wrote: a folder or a URL.
        ...
    """
    lines = []
    for name, field in type(section).model_fields.items():
        if name in section.overruled:
            continue
        value = getattr(section, name)
        if not isinstance(value, Section):
            lines.append(f"{name}: {_as_yaml(value)}  # {field.description}")
            continue
        lines.append(f"{name}:")
        lines += [f"  {line}" for line in explained(value).splitlines()]
    return "\n".join(lines)


def load_workflow(source: str | Path | Mapping[str, Any] | Workflow, overrides: Sequence[str] = ()) -> Workflow:
    """Read and check a workflow.

    Args:
        source: A YAML file, or what it would hold.
        overrides: ``key=value`` with dots, such as ``training.max_steps=500``; values are YAML.

    Raises:
        ConfigError: The file cannot be read, or a key or value is wrong.

    Example:
        >>> workflow = load_workflow({"name": "demo", "data": {"store": "rows.zarr"}}, ["training.max_steps=500"])
        >>> workflow.training.max_steps
        500
    """
    if isinstance(source, Workflow):
        # Defaults that nobody has given stay so: beside an override they may not stand.
        return _overridden(source.model_dump(exclude_unset=True), overrides, "workflow")
    if isinstance(source, Mapping):
        return _overridden(dict(source), overrides, "workflow")
    path = Path(source)
    try:
        content = from_yaml(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such workflow file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: a workflow is a mapping with name, data, model, training; this is {content!r:.60}")
    return _overridden(content, overrides, str(path))


def from_yaml(text: str) -> Any:
    """Read YAML, in which ``1e-3`` is a number and a key is given once.

    Raises:
        yaml.YAMLError: The text is no YAML, or is nested beyond reason.

    Example:
        >>> from_yaml("training: {learning_rate: 1e-3}")
        {'training': {'learning_rate': 0.001}}
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except RecursionError:
        raise yaml.YAMLError("nested too deeply, or within itself") from None
    except (ValueError, LookupError) as error:
        # Of a number or a date that looks like one and is none, such as 2020-13-45.
        raise yaml.YAMLError(str(error)) from None


def validate(section: type[Section], values: Mapping[str, Any], where: str) -> Any:
    """Build a section; the first thing wrong with it becomes one line.

    Raises:
        ConfigError: Names file, key, value and what would be valid.
    """
    if not isinstance(values, Mapping):
        raise ConfigError(f"{where}: a mapping of keys to values expected; this is {values!r:.60}")
    try:
        return section.model_validate(dict(values))
    except ValidationError as error:
        raise ConfigError(_first(error, section, where)) from None


class _Loader(yaml.SafeLoader):
    """Safe YAML that reads ``1e-3`` as a number, and refuses a key that is given twice."""

    def compose_mapping_node(self, anchor: Any) -> Any:
        # Before keys are merged by <<, which may repeat those of the mapping itself.
        node = super().compose_mapping_node(anchor)
        keys = [(key.tag, key.value) for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        twice = [key for key, count in Counter(keys).items() if count > 1]
        if twice:
            raise yaml.YAMLError(f"key {twice[0][1]!r} is given twice{str(node.start_mark).replace(chr(34), '')}")
        return node


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:[0-9][0-9_]*)(?:\.[0-9_]*)?[eE][-+]?[0-9]+$"),
    list("-+0123456789"),
)


def _overridden(content: dict[str, Any], overrides: Sequence[str], where: str) -> Workflow:
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key:
            raise ConfigError(f"{override}: give key=value, such as training.max_steps=500")
        try:
            value = from_yaml(text)
        except yaml.YAMLError:
            raise ConfigError(f"{key}: {text!r} is not a YAML value") from None
        *parents, last = key.split(".")
        at = content
        for parent in parents:
            below = at.get(parent)
            at[parent] = dict(below) if isinstance(below, Mapping) else {}
            at = at[parent]
        at[last] = value
    try:
        return Workflow.model_validate(content)
    except ValidationError as error:
        given = [override.partition("=")[0] for override in overrides]
        raise ConfigError(_first(error, Workflow, where, given)) from None


def _first(error: ValidationError, section: type[Section], where: str, given: Sequence[str] = ()) -> str:
    """The first problem as ``file: key: what is wrong``; unknown keys before the rest, since they explain it.

    Keys that were ``given`` on the command line are no fault of the file.
    """
    problems = sorted(error.errors(), key=lambda problem: problem["type"] != "extra_forbidden")
    problem = problems[0]
    place = [part for part in problem["loc"] if not (isinstance(part, str) and part.startswith("function-"))]
    key = ".".join(str(part) for part in place) or section.__name__.lower()
    theirs = any(f"{key}.".startswith(f"{other}.") or other.startswith(f"{key}.") for other in given)
    prefix = f"{where}: " if where and not theirs else ""
    if problem["type"] == "extra_forbidden":
        return f"{prefix}{key}: unknown key; {nearest(str(place[-1]), _known(section, place[:-1]))}"
    if problem["type"] == "missing":
        return f"{prefix}{key}: missing; it must be given"
    if problem["type"] == TOGETHER:
        return f"{prefix}{key}: {problem['msg']}"
    if problem["type"] == "invalid_key" or place[-1:] == ["[key]"]:
        return f"{prefix}{key.removesuffix('.[key]')}: a key must be a text; got {problem['input']!r}"
    return f"{prefix}{key}: got {problem['input']!r}, it must be {must_be(problem)}"


def must_be(problem: Mapping[str, Any]) -> str:
    """What would be valid, as pydantic's record of a problem tells it, in our words where its own are a programmer's.

    Args:
        problem: One of ``ValidationError.errors()``.

    Example:
        >>> must_be({"type": "string_too_short", "msg": "String should have at least 1 character"})
        'a text that is not empty'
    """
    known = {
        "dict_type": "a mapping of keys to values",
        "model_type": "a mapping of keys to values",
        "model_attributes_type": "a mapping of keys to values",
        "is_instance_of": "a list",  # The only classes that settings are checked against are sequences.
        "string_too_short": "a text that is not empty",
        "too_short": "a list that is not empty",
        "string_pattern_mismatch": "letters, digits, '.', '_' and '-', the first a letter or a digit",
    }
    return known.get(problem["type"]) or problem["msg"].removeprefix("Input should be ").removeprefix("Value error, ")


def _known(section: type[Section], parents: Sequence[Any]) -> list[str]:
    for parent in parents:
        below = section.model_fields[str(parent)].annotation
        if isinstance(below, type) and issubclass(below, Section):
            section = below
    return list(section.model_fields)


def _as_yaml(value: Any) -> str:
    return yaml.safe_dump(value, default_flow_style=True, width=10_000).removesuffix("\n").removesuffix("\n...")
