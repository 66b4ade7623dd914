"""Training in this process: ``sciflow.fit``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch

from sciflow.config import Training, validate
from sciflow.density import Density
from sciflow.progress import progress_bar
from sciflow.training.budget import Budget
from sciflow.training.evaluate import Evaluation
from sciflow.training.loop import train
from sciflow.training.metrics import Metrics
from sciflow.training.process import Process
from sciflow.training.rows import prepare, training_data

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Fit", "fit"]


@dataclass(frozen=True)
class Fit:
    """A fitted density and how it came about.

    Attributes:
        density: With the weights of the best validation, in evaluation mode.
        steps: Steps done.
        best_step: Step of the weights that are kept.
        validation: Log p of the validation rows, or what else the density is judged by: mean, standard error, count.
        seconds: Time spent.
        ended: ``"steps"`` after the last step, ``"patience"`` by early stopping, ``"stopped"`` on request.
        history: Records of training and validation, as ``metrics.jsonl`` holds them.
    """

    density: Density
    steps: int
    best_step: int
    validation: Evaluation
    seconds: float
    ended: Literal["steps", "patience", "stopped"]
    history: list[dict[str, Any]]

    def __repr__(self) -> str:
        return f"Fit(steps={self.steps}, validation={self.validation}, {self.seconds:.0f} s)"

    def plot(self) -> Figure:
        """Draw training loss and validation log p (or score) against steps."""
        from sciflow.report import loss_curve

        return loss_curve(self.history)


def fit(
    density: Density,
    data: Any,
    validation: Any = None,
    *,
    context: Any = None,
    validation_context: Any = None,
    seed: int = 0,
    progress: bool = True,
    **settings: Any,
) -> Fit:
    """Train a density in this process, with early stopping; the best weights are kept.

    Nothing need be set: batch size and length follow from the number of events by a rule
    (:class:`sciflow.training.budget.Budget`), the learning rate warms up and falls along a cosine, and training ends
    when held-out log p has stopped rising.

    Args:
        density: Trained in place, on the device where it is.
        data: A store; or events ``[n, *event_shape]`` as NumPy, torch, pandas or xarray.
        validation: Held-out events; None holds out a tenth of ``data`` (a fifth of fewer than 1,000), by ``seed``.
        context: ``[n, *context_shape]`` for a conditional density, where ``data`` is no store; where contexts have
            names, a mapping (or a table, or an ``xarray.Dataset``) that has each as ``[n, *shape]``.
        validation_context: The same for ``validation``.
        seed: Of hold-out, order and noise.
        progress: Show a progress bar on a terminal.
        **settings: Any key of the workflow file's ``training`` section, such as ``max_steps=500``.

    Returns:
        The fitted density and its history.

    Raises:
        ConfigError: A setting is unknown or out of range, or the density was built in inference mode.
        DataError: Too few rows, missing values, or a label or token that there is not; with ``degenerate="error"`` also
            a constant, duplicate or discrete variable, of which there is a warning otherwise.
        ShapeError: Events or context are not of the density's shape.
        TrainingError: The loss is not finite; names step and rows.

    Example:
        >>> import torch
        >>> from sciflow.flows import NSF
        >>> rows = torch.randn(400, 2, generator=torch.Generator().manual_seed(0)) * 3 + 5
        >>> fit(NSF((2,), num_transforms=1, seed=0), rows, max_steps=20).steps
        20
    """
    chosen: Training = validate(Training, {**settings, "seed": seed}, "sciflow.fit")
    rows, layout, fingerprint = training_data(density, data, validation, context, validation_context, seed)
    # Whoever only looks at densities otherwise may do so in inference mode, in which nothing is learned.
    with torch.inference_mode(False):
        prepare(density, rows, chosen.degenerate, layout)
        density.layout = None if layout is None else layout.to_json()
        density.context_columns = None
        if context is not None and density.conditions is not None:
            density.context_columns = density.conditions.columns(context)
        budget = Budget.of(chosen, len(rows.train), density.relative_steps)
        with progress_bar("training", budget.max_steps, progress) as update:
            metrics = Metrics(every=max(1, budget.max_steps // 200), update=update)
            outcome = train(density, rows, chosen, Process(density.device, alone=True), metrics)
    assert outcome.validation is not None
    density.provenance = {"data": fingerprint, "steps": outcome.steps, "validation": outcome.validation.to_json()}
    return Fit(
        density=density,
        steps=outcome.steps,
        best_step=outcome.best_step,
        validation=outcome.validation,
        seconds=outcome.seconds,
        ended=outcome.ended,
        history=metrics.records,
    )
