"""Mean log p of held-out rows, with its standard error."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import torch

from sciflow.data.loader import Rows, sequential
from sciflow.density import Density
from sciflow.training.process import Process

__all__ = ["Evaluation", "evaluate"]

BATCH_SIZE = 4096


@dataclass(frozen=True)
class Evaluation:
    """Log p of a set of rows.

    Attributes:
        mean: Mean log p a row, nats, data units (the bound that is trained on, where there is no log p in one pass).
        error: Standard error of the mean.
        count: Rows.
    """

    mean: float
    error: float
    count: int

    def __str__(self) -> str:
        return f"{self.mean:.3f} +- {self.error:.3f} nats"

    def to_json(self) -> dict[str, float]:
        """Return a plain dictionary."""
        return asdict(self)


def evaluate(
    density: Density, rows: Rows, process: Process, dtype: str = "float32", most: int | None = None
) -> Evaluation:
    """Evaluate a density on rows, shared out over the processes.

    Args:
        density: Left in evaluation mode.
        rows: Held-out rows.
        process: This process.
        dtype: In which rows are read.
        most: Rows to look at, at most, in batches spread over all of them; None looks at all.
    """
    density.eval()
    context_shape = None if density.context_shape is None else tuple(density.context_shape)
    size = min(BATCH_SIZE, max(1, len(rows) // process.world_size))
    # Batches that are left out are not read.
    every = 1 if most is None else max(1, round(len(rows) / most))
    totals = torch.zeros(3, dtype=torch.float64)
    with torch.no_grad():
        for batch in sequential(rows, size, context_shape, dtype, process.rank, process.world_size, every):
            context = None if batch.context is None else batch.context.to(process.device)
            log_prob = -density.loss(batch.events.to(process.device), context).double().cpu()
            totals += torch.stack([log_prob.new_tensor(len(log_prob)), log_prob.sum(), log_prob.square().sum()])
    count, total, squares = process.sum(totals.to(process.device)).cpu().tolist()
    mean = total / count
    variance = max(0.0, squares / count - mean**2)
    return Evaluation(mean, math.sqrt(variance / max(1.0, count - 1)), int(count))
