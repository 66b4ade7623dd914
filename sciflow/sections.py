"""What a workflow file holds: its sections and their keys, each with what it means and what it may be."""

from __future__ import annotations

import shlex
from collections.abc import Collection
from typing import Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationInfo,
    field_validator,
    model_serializer,
    model_validator,
)
from pydantic_core import PydanticCustomError

__all__ = [
    "TOGETHER",
    "Calibration",
    "Cluster",
    "Data",
    "Detection",
    "Events",
    "Notify",
    "Scoring",
    "Section",
    "Training",
    "Workflow",
]

# Type of pydantic's record of keys that exclude each other.
TOGETHER = "given_together"
_OF_FDR = ("fdr", "method")


class Section(BaseModel):
    """A part of the workflow file; unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=False, allow_inf_nan=False)

    @property
    def overruled(self) -> Collection[str]:
        """Keys that do not count beside others that are given: a file may not hold them."""
        return ()

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


class Calibration(Section):
    """What an ordinary score is, by the test events of data.store, and which of them are alike."""

    group: str | None = Field(
        default=None, description="Like with like: month, season, hour, or a coordinate of the store; null: all alike."
    )
    block: int | None = Field(
        default=None, ge=1, description="Consecutive positions that depend on each other; null: none do."
    )
    tail: bool = Field(default=False, description="Extrapolate beyond the largest held-out score, and mark it.")


class Events(Section):
    """What neighbouring flagged rows are merged into."""

    gap: int = Field(default=0, ge=0, description="Positions between two flagged rows of one event, at most.")


class Notify(Section):
    """Who hears of anomalies, once the results are safe."""

    webhook: str | None = Field(default=None, description="A URL that a message is posted to, as JSON.")
    command: str | None = Field(
        default=None, min_length=1, description="A command that gets the message on its standard input."
    )
    retries: int = Field(default=4, ge=0, description="Tries after one that failed, each after a longer wait.")
    timeout: float = Field(default=10.0, gt=0, description="Seconds that one try may take.")

    @field_validator("command")
    @classmethod
    def _is_command(cls, value: str | None) -> str | None:
        try:
            words = None if value is None else shlex.split(value)
        except ValueError:
            words = []
        if words == []:
            raise ValueError("a command, whose quotation marks are closed")
        return value

    @field_validator("webhook")
    @classmethod
    def _is_url(cls, value: str | None) -> str | None:
        if value is not None and not value.startswith(("http://", "https://")):
            raise ValueError("a URL that begins with https:// or http://")
        return value


class Detection(Section):
    """What `sciflow detect` looks at, what it holds for an anomaly, and who hears of it."""

    stores: list[str] | None = Field(
        default=None,
        min_length=1,
        description="Stores that are watched, or patterns of them: incoming/*.zarr; null: data.store.",
    )
    out: str | None = Field(default=None, description="Folder of the results; null: runs/NAME/detections.")
    score: Any = Field(default=None, description="A score by its name, or several; null: by the family.")
    fdr: float = Field(default=0.1, gt=0, lt=1, description="Share of false alarms among the flagged rows, at most.")
    false_alarm_rate: float | None = Field(
        default=None, gt=0, lt=1, description="Share of ordinary rows that are flagged; in place of fdr."
    )
    method: Literal["bh", "by", "lord", "saffron"] = Field(
        default="bh", description="Of control: bh, by; lord and saffron go on from run to run."
    )
    calibration: Calibration = Calibration()
    events: Events = Events()
    notify: Notify = Notify()

    @field_validator("score")
    @classmethod
    def _is_plain(cls, value: Any) -> Any:
        if not isinstance(value, str | dict | list | None):
            raise ValueError("a name, {name: options}, or a list of them")
        return value

    @field_validator("stores", mode="before")
    @classmethod
    def _one_is_a_list(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    @property
    def control(self) -> dict[str, Any]:
        """The level that decides, and by what method, as :func:`sciflow.anomaly.decide` is told."""
        if self.false_alarm_rate is not None:
            return {"false_alarm_rate": self.false_alarm_rate}
        return {"fdr": self.fdr, "method": self.method}

    @property
    def overruled(self) -> Collection[str]:
        return () if self.false_alarm_rate is None else _OF_FDR

    @model_validator(mode="after")
    def _one_level(self) -> Self:
        beside = [name for name in self.overruled if name in self.model_fields_set]
        if beside:
            raise PydanticCustomError(
                TOGETHER,
                "false_alarm_rate and {name} are both given, and only one can decide: leave one of them out",
                {"name": beside[0]},
            )
        return self

    @model_serializer(mode="wrap")
    def _as_given(self, written: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out a default of control where nobody has given it: read again, it would stand beside another level."""
        values: dict[str, Any] = written(self)
        return {name: value for name, value in values.items() if name not in _OF_FDR or name in self.model_fields_set}


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
    detection: Detection = Detection()
    cluster: Cluster = Cluster()
