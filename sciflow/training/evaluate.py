"""Mean log p of held-out rows, or what else a density is judged by, with its standard error."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from sciflow.data.loader import Rows, sequential
from sciflow.density import Density
from sciflow.errors import TrainingError
from sciflow.training.process import Process

__all__ = ["Evaluation", "evaluate", "named_rows"]

BATCH_SIZE = 4096
NAMED_ROWS = 10


@dataclass(frozen=True)
class Evaluation:
    """Log p of a set of rows, or another figure that is the better, the higher it is.

    Attributes:
        mean: Mean log p a row, nats, data units (the bound that is trained on, where there is no log p in one pass).
        error: Standard error of the mean.
        count: Rows.
        impossible: Rows outside the support of the density, log p = -inf; they are left out of the mean.
        unit: ``"nats"``; something else where the figure is not log p, see :attr:`sciflow.density.Density.unit`.

    Example:
        >>> print(Evaluation(-31.4159, 0.0313, 1000))
        -31.42 +- 0.03 nats
        >>> print(Evaluation(-31.4159, 0.0013, 998, impossible=2))
        -31.416 +- 0.001 nats (2 more rows are impossible, log p -inf)
    """

    mean: float
    error: float
    count: int
    impossible: int = 0
    unit: str = "nats"

    def __str__(self) -> str:
        # As many digits as the error bears.
        digits = min(8, max(2, math.ceil(-math.log10(self.error)))) if 0 < self.error < math.inf else 2
        outside = f" ({self.impossible:,} more rows are impossible, log p -inf)" if self.impossible else ""
        return f"{self.mean:.{digits}f} +- {self.error:.{digits}f} {self.unit}{outside}"

    def to_json(self) -> dict[str, Any]:
        """Return a plain dictionary."""
        return asdict(self)


def evaluate(
    density: Density, rows: Rows, process: Process, dtype: str = "float32", most: int | None = None
) -> Evaluation:
    """Evaluate a density on rows, shared out over the processes.

    A density that draws noise to evaluate draws the same at every call: differences are those of the weights.

    Args:
        density: Left in evaluation mode.
        rows: Held-out rows.
        process: This process.
        dtype: In which rows are read.
        most: Rows to look at, at most, in batches spread over all of them; None looks at all.

    Raises:
        TrainingError: Log p of a row is NaN or +inf; names the rows.
    """
    density.eval()
    process.seed(0)
    context_shape = None if density.context_shape is None else tuple(density.context_shape)
    size = min(BATCH_SIZE, max(1, len(rows) // process.world_size))
    # Batches that are left out are not read.
    every = 1 if most is None else max(1, round(len(rows) / most))
    totals = torch.zeros(5, dtype=torch.float64)
    bad: list[int] = []
    with torch.no_grad():
        for batch in sequential(rows, size, context_shape, dtype, process.rank, process.world_size, every):
            context = None if batch.context is None else batch.context.to(process.device)
            log_prob = -density.loss(batch.events.to(process.device), context).double().cpu()
            outside, finite = torch.isneginf(log_prob), torch.isfinite(log_prob)
            bad += batch.rows[~(finite | outside).numpy()].tolist()
            known = log_prob[finite]
            counts = [known.numel(), int(outside.sum()), log_prob.numel() - int((finite | outside).sum())]
            totals += torch.stack([*map(known.new_tensor, counts), known.sum(), known.square().sum()])
    count, impossible, failed, total, squares = process.sum(totals.to(process.device)).cpu().tolist()
    if failed:
        figure = "log p" if density.unit == "nats" else "the error"
        found = sorted(row for mine in process.gather(bad) for row in mine)
        raise TrainingError(
            f"{figure} of validation rows {named_rows(found)} is not finite: look at these rows, or lower "
            "training.learning_rate"
        )
    if count == 0:
        raise TrainingError(
            f"log p of all {int(impossible)} validation rows is -inf: they are outside the support of the density; "
            "choose another preprocess"
        )
    mean = total / count
    variance = max(0.0, squares / count - mean**2)
    return Evaluation(mean, math.sqrt(variance / max(1.0, count - 1)), int(count), int(impossible), density.unit)


def named_rows(rows: Sequence[int]) -> str:
    """The first few of many rows, for a message.

    Example:
        >>> named_rows([4, 8]), named_rows(range(12))
        ('4, 8', '0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 2 more')
    """
    more = f" and {len(rows) - NAMED_ROWS} more" if len(rows) > NAMED_ROWS else ""
    return ", ".join(map(str, rows[:NAMED_ROWS])) + more
