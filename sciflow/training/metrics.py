"""The figures of a training run: kept in memory, and in ``metrics.jsonl`` and TensorBoard where there is a folder."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

from sciflow.arguments import is_number
from sciflow.errors import RunError
from sciflow.training.evaluate import Evaluation
from sciflow.training.files import write_whole

__all__ = ["Metrics", "read_metrics"]


class Metrics:
    """Records of training and validation.

    Args:
        folder: Where ``metrics.jsonl`` and ``tensorboard/`` are written; None keeps the records in memory alone.
        every: Steps between records of the training loss; the first step has one of its own.
        update: Called at every step with the step and a few words, for a progress bar.

    Attributes:
        records: All that was recorded.
        objective: What the training loss is called: ``"loss"`` where it is minus log p, in nats; ``"objective"`` where
            it is something else.
    """

    def __init__(
        self, folder: Path | None = None, every: int = 10, update: Callable[[int, str], None] = lambda step, note: None
    ) -> None:
        self.records: list[dict[str, Any]] = []
        self.objective: Literal["loss", "objective"] = "loss"
        self._folder, self._every, self._update = folder, every, update
        self._file: Any = None
        self._board: Any = None
        self._loss, self._steps, self._rows, self._since = 0.0, 0, 0, time.monotonic()
        self._note = ""

    def resume_from(self, step: int) -> None:
        """Begin, or go on after ``step``: records of later steps, which will be made again, are dropped.

        Raises:
            RunError: The folder cannot be written.
        """
        self._since = time.monotonic()
        if self._folder is None:
            return
        path = self._folder / "metrics.jsonl"
        self.records = [record for record in read_metrics(path) if record["step"] <= step]
        with self._reported():
            self._folder.mkdir(parents=True, exist_ok=True)
            write_whole(path, "".join(json.dumps(record) + "\n" for record in self.records))
            self._file = path.open("a", buffering=1)

    def step(self, step: int, epoch: int, loss: float, learning_rate: float, gradient_norm: float, rows: int) -> None:
        """Take note of one step; every few of them become a record."""
        self._loss += loss
        self._steps += 1
        self._rows += rows
        if step == 1 or step % self._every == 0:
            now = time.monotonic()
            mean = self._loss / self._steps
            self._record(
                step=step,
                epoch=epoch,
                **{self.objective: mean},
                learning_rate=learning_rate,
                gradient_norm=gradient_norm,
                rows_per_second=round(self._rows / max(1e-9, now - self._since), 1),
            )
            self._note = f"{self.objective} {mean:.3f}" + self._note[self._note.find(",") :] * ("," in self._note)
            self._loss, self._steps, self._rows, self._since = 0.0, 0, 0, now
        self._update(step, self._note)

    def validation(self, step: int, found: Evaluation) -> None:
        """Take note of a validation."""
        name = "validation_log_prob" if found.unit == "nats" else "validation_score"
        self._record(step=step, **{name: found.mean}, validation_error=found.error)
        self._note = self._note.partition(",")[0] + f", validation {found.mean:.3f}"
        self._update(step, self._note)
        self._since = time.monotonic()
        self._rows = 0

    def close(self) -> None:
        """Close the files."""
        with self._reported():
            for file in (self._file, self._board):
                if file is not None:
                    file.close()

    def _record(self, **record: Any) -> None:
        self.records.append(record)
        if self._file is None:
            return
        with self._reported():
            self._file.write(json.dumps(record) + "\n")
            if self._board is None:
                from torch.utils.tensorboard import SummaryWriter

                assert self._folder is not None
                self._board = SummaryWriter(str(self._folder / "tensorboard"), purge_step=record["step"])
            for name, value in record.items():
                if name not in ("step", "epoch"):
                    self._board.add_scalar(name, value, record["step"])

    @contextmanager
    def _reported(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise RunError(
                f"{self._folder}: the metrics cannot be written: {error.strerror or error}; checkpoints are whole: "
                "make room or mend it, and run the same command again"
            ) from None


def read_metrics(path: Path, tail_bytes: int | None = None) -> list[dict[str, Any]]:
    """Read ``metrics.jsonl``; lines that are no records are left out, such as one that was cut short.

    Args:
        path: The file; one that is not there holds nothing.
        tail_bytes: Read the lines in about the last so many bytes alone.
    """
    if not path.exists():
        return []
    with path.open("rb") as file:
        if tail_bytes is not None and path.stat().st_size > tail_bytes:
            file.seek(-tail_bytes, 2)
            file.readline()
        lines = file.read().splitlines()
    records = []
    for line in lines:
        with suppress(ValueError, RecursionError):
            record = json.loads(line)
            if _is_record(record):
                records.append(record)
    return records


def _is_record(record: Any) -> bool:
    """Whether it is a step with numbers."""
    if not isinstance(record, dict) or not isinstance(record.get("step"), int):
        return False
    return all(map(is_number, record.values()))
