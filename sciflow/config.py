"""The workflow file: checked before anything starts, and every error says file, key, value and what would be valid."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator

from sciflow.errors import ConfigError, nearest

__all__ = [
    "Cluster",
    "Data",
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


class Section(BaseModel):
    """A part of the workflow file; unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=False, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse ``batch_size: true``, which would be read as 1."""
        if isinstance(value, bool) and cls.model_fields[str(info.field_name)].annotation is not bool:
            raise ValueError("a number or a text, not true or false")
        return value


class Data(Section):
    """Where the events are."""

    store: str = Field(min_length=1, description="A store that sciflow shard wrote: a folder or a URL.")
    fingerprint: str | None = Field(
        default=None, description="Hash of its events; taken down when a run begins, and checked."
    )


class Training(Section):
    """How a density is trained. What is left out is chosen by a rule from the number of training events."""

    batch_size: int | None = Field(default=None, ge=1, description="Events in a global batch, over all workers.")
    max_steps: int | None = Field(default=None, ge=1, description="Steps of the optimiser, at most.")
    max_epochs: int | None = Field(default=None, ge=1, description="Passes over the training events, at most.")
    learning_rate: float | None = Field(default=None, gt=0, description="Peak of the learning rate.")
    warmup: float = Field(default=0.02, ge=0, lt=1, description="Share of the steps in which the learning rate rises.")
    weight_decay: float = Field(default=1e-4, ge=0, description="Decoupled weight decay (AdamW).")
    ema_decay: float = Field(
        default=0.998, ge=0, lt=1, description="Of the average of the weights, which is kept; 0: none."
    )
    gradient_clip: float = Field(default=5.0, gt=0, description="Largest norm of the gradient.")
    validate_every: int | None = Field(
        default=None, ge=1, description="Steps between validations; a checkpoint goes with each."
    )
    patience: int = Field(default=12, ge=1, description="Validations without a better one before training stops.")
    precision: Literal["float32", "bfloat16"] = Field(
        default="float32", description="Of the networks; log p keeps float32."
    )
    compile: Literal["auto", "always", "never"] = Field(
        default="auto", description="Compile the kernels of flows: auto where the work ahead pays for it."
    )
    shuffle_megabytes: int = Field(default=128, ge=1, description="Events shuffled together, over all workers.")
    degenerate: Literal["error", "warn"] = Field(
        default="warn", description="What a constant, duplicate or discrete variable leads to."
    )
    seed: int = Field(default=0, ge=0, le=2**63 - 1, description="Of weights, order and noise.")


class Scoring(Section):
    """Where the scores go, and how log p is to be known."""

    out: str | None = Field(default=None, description="A Zarr store to be written.")
    batch_size: int = Field(default=4096, ge=1, description="Events scored at a time.")
    method: str | None = Field(
        default=None, description="How log p is known: exact, ode or elbo; null: the family's own."
    )
    options: dict[str, Any] = Field(default_factory=dict, description="Of the method, such as {tolerance: 1.0e-4}.")


class Cluster(Section):
    """What Ray gives to a run. Not part of a run's identity: it may change from one start to the next."""

    num_workers: int = Field(default=1, ge=1, description="Training workers.")
    use_gpu: bool = Field(default=False, description="One GPU a worker.")
    cpus_per_worker: int = Field(default=1, ge=1, description="Processor cores a worker.")
    max_failures: int = Field(default=3, ge=0, description="Restarts after lost workers.")


class Workflow(Section):
    """A workflow file.

    Example:
        >>> Workflow(name="demo", data={"store": "rows.zarr"}).training.weight_decay
        0.0001
    """

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="Of the run; its folder is runs/NAME.")
    data: Data
    model: dict[str, Any] = Field(default_factory=lambda: {"name": "nsf"}, description="A family and its arguments.")
    training: Training = Training()
    scoring: Scoring = Scoring()
    cluster: Cluster = Cluster()


def explained(workflow: Workflow) -> str:
    """Return a workflow as a file would hold it, with what every key means.

    Example:
        >>> print(explained(Workflow(name="demo", data={"store": "rows.zarr"})))  # doctest: +ELLIPSIS
        name: demo  # Of the run; its folder is runs/NAME.
        data:
          store: rows.zarr  # A store that sciflow shard wrote: a folder or a URL.
        ...
    """
    lines = []
    for name, field in Workflow.model_fields.items():
        value = getattr(workflow, name)
        if not isinstance(value, Section):
            lines.append(f"{name}: {_as_yaml(value)}  # {field.description}")
            continue
        lines.append(f"{name}:")
        for key, inner in type(value).model_fields.items():
            lines.append(f"  {key}: {_as_yaml(getattr(value, key))}  # {inner.description}")
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
        return _overridden(source.model_dump(), overrides, "workflow")
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
