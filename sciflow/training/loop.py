"""The training loop: pure torch, the same alone, under torchrun and under Ray."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from sciflow.config import Training
from sciflow.data.loader import Batch, Loader, Rows
from sciflow.data.plan import Plan
from sciflow.density import Density
from sciflow.errors import CheckpointError, TrainingError
from sciflow.kernels import compiling, repeated
from sciflow.training import checkpoint as checkpoints
from sciflow.training.average import WeightAverage
from sciflow.training.budget import Budget
from sciflow.training.evaluate import Evaluation, evaluate, named_rows
from sciflow.training.metrics import Metrics
from sciflow.training.process import Process

__all__ = ["Outcome", "TrainingData", "train"]

VALIDATION_ROWS = 1 << 16
ALL_AT_ONCE = 1 << 20


@dataclass(frozen=True)
class TrainingData:
    """What is trained on, and what training is judged by.

    Attributes:
        train: Training rows.
        validation: Validation rows.
        dtype: NumPy dtype in which rows are read.
        name: What to call the training rows in messages.
        numbers: The user's number of every training row, where it is another than ours.
        extrema: Least and largest value of every element of the event over all training rows.
    """

    train: Rows
    validation: Rows
    dtype: str = "float32"
    name: str = "rows"
    numbers: np.ndarray | None = None
    extrema: tuple[np.ndarray, np.ndarray] | None = None


@dataclass(frozen=True)
class Outcome:
    """How training ended; the density holds the best weights.

    Attributes:
        steps: Steps done.
        best_step: Step of the weights that are kept.
        validation: Log p of the validation rows under them; None where training stopped before it was looked at.
        ended: ``"steps"`` after the last step, ``"patience"`` by early stopping, ``"stopped"`` on request.
        seconds: Time spent, that of earlier starts included.
    """

    steps: int
    best_step: int
    validation: Evaluation | None
    ended: Literal["steps", "patience", "stopped"]
    seconds: float


def train(
    density: Density,
    data: TrainingData,
    settings: Training,
    process: Process,
    metrics: Metrics,
    folder: Path | None = None,
    stop_requested: Callable[[], bool] = lambda: False,
) -> Outcome:
    """Train a density, from the newest checkpoint in ``folder`` if there is one.

    The preprocessing must be fitted. Every process calls this with the same arguments; rows are dealt out by a plan,
    and gradients are averaged over the rows of the global batch, so that the number of processes does not matter.

    Args:
        density: Trained in place; ends with the weights of the best validation.
        data: Rows.
        settings: How.
        process: This process.
        metrics: Where figures go.
        folder: Where checkpoints go; None keeps none.
        stop_requested: Asked at every step in every process; True in any of them saves and leaves.

    Raises:
        TrainingError: The loss or its gradient is not finite; names step and rows.
        CheckpointError: A checkpoint cannot be written, or none can be read.
    """
    devices = [process.device] if process.device.type == "cuda" else []
    # Noise is drawn from torch's own generators, whose state is the caller's; so is whether there are gradients.
    # What is compiled must not depend on where a run was interrupted: all steps count, also those done before.
    budget = Budget.of(settings, len(data.train), density.relative_steps)
    with torch.random.fork_rng(devices), torch.enable_grad(), compiling(settings.compile), repeated(budget.max_steps):
        return _train(density, data, settings, budget, process, metrics, folder, stop_requested)


def _train(
    density: Density,
    data: TrainingData,
    settings: Training,
    budget: Budget,
    process: Process,
    metrics: Metrics,
    folder: Path | None,
    stop_requested: Callable[[], bool],
) -> Outcome:
    plan = _plan(data.train, budget, settings)
    loader = Loader(
        data.train, plan, _shape(density.context_shape), data.dtype, rank=process.rank, world_size=process.world_size
    )
    density.to(process.device)
    model = _parallel(_Loss(density), process, settings)
    parameters = list(density.parameters())
    optimizer = torch.optim.AdamW(parameters, budget.learning_rate, weight_decay=settings.weight_decay, fused=True)
    average = WeightAverage(density, settings.ema_decay)
    state = _restore(density, optimizer, average, folder, process) or _State()
    metrics.objective = density.objective
    metrics.resume_from(state.step)
    began = time.monotonic() - state.seconds
    spare = _spare_row(data, density)
    density.train()

    def save() -> None:
        state.seconds = time.monotonic() - began
        if folder is not None and process.is_first:
            checkpoints.write(folder, state.checkpoint(density, optimizer, average))

    def validate() -> None:
        with average.applied():
            try:
                found = evaluate(density, data.validation, process, data.dtype, most=VALIDATION_ROWS)
            except TrainingError as error:
                raise TrainingError(f"step {state.step}: {error}") from None
            if state.best is None or found.mean > state.best.mean:
                state.best, state.best_step, state.stale = found, state.step, 0
                state.best_weights = {name: tensor.detach().clone() for name, tensor in density.state_dict().items()}
            else:
                state.stale += 1
        metrics.validation(state.step, found)
        density.train()

    # A run that was killed between its last checkpoint and its result has no step left.
    ended: Literal["steps", "patience", "stopped"] = "patience" if state.stale >= settings.patience else "steps"
    try:
        while state.step < budget.max_steps and ended == "steps":
            epoch, batch_number = divmod(state.step, plan.batches_per_epoch)
            for batch in loader.epoch(epoch, batch_number):
                # Noise is a function of (seed, step, rank): a resumed run draws what an unbroken one would.
                process.seed(settings.seed, state.step)
                rate = _learning_rate(state.step, budget, settings.warmup)
                for group in optimizer.param_groups:
                    group["lr"] = rate
                optimizer.zero_grad(set_to_none=True)
                row_losses, objective = _loss(model, batch, spare, process)
                objective.backward()
                norm = nn.utils.clip_grad_norm_(parameters, settings.gradient_clip)
                # One small sum tells every process the loss of the whole batch, and whether any was asked to stop.
                votes = objective.new_tensor(stop_requested(), dtype=torch.float64)
                total, stops = process.sum(torch.stack([row_losses.detach().sum().double(), votes])).tolist()
                if not (math.isfinite(total) and math.isfinite(float(norm))):
                    _fail(state, row_losses, batch, process, data, folder)
                optimizer.step()
                state.step += 1
                average.update(state.step)
                metrics.step(state.step, epoch, total / batch.total, rate, float(norm), batch.total)
                due = state.step % budget.validate_every == 0 or state.step == budget.max_steps
                if due:
                    validate()
                if stops:
                    ended = "stopped"
                elif state.stale >= settings.patience:
                    ended = "patience"
                if due or ended == "stopped":
                    save()
                if ended != "steps" or state.step == budget.max_steps:
                    break
        if ended != "stopped":
            density.load_state_dict(state.best_weights)
    except BaseException:
        # An interrupt may fall into the middle of a step: leave weights that belong together.
        if state.best_weights:
            density.load_state_dict(state.best_weights)
        raise
    finally:
        optimizer.zero_grad(set_to_none=True)
        density.eval()
    # The last figure is over all validation rows; but whoever asks to stop is in a hurry.
    final = state.best if ended == "stopped" else evaluate(density, data.validation, process, data.dtype)
    return Outcome(state.step, state.best_step, final, ended, time.monotonic() - began)


@dataclass
class _State:
    """What changes from step to step, besides weights and moments."""

    step: int = 0
    best: Evaluation | None = None
    best_step: int = 0
    stale: int = 0
    seconds: float = 0.0
    best_weights: dict[str, Tensor] = field(default_factory=dict)

    def checkpoint(
        self, density: Density, optimizer: torch.optim.Optimizer, average: WeightAverage
    ) -> checkpoints.Checkpoint:
        tensors = {f"model.{name}": tensor for name, tensor in density.state_dict().items()}
        tensors |= {f"average.{name}": tensor for name, tensor in average.tensors.items()}
        tensors |= {f"best.{name}": tensor for name, tensor in self.best_weights.items()}
        tensors |= checkpoints.optimizer_tensors(optimizer)
        record: dict[str, Any] = {
            "best": None if self.best is None else self.best.to_json(),
            "best_step": self.best_step,
            "stale": self.stale,
            "seconds": self.seconds,
        }
        return checkpoints.Checkpoint(self.step, tensors, record)


class _Loss(nn.Module):
    """The loss as ``forward``, which is what DistributedDataParallel takes hold of."""

    def __init__(self, density: Density) -> None:
        super().__init__()
        self.density = density

    def forward(self, x: Tensor, context: Tensor | None) -> Tensor:
        return self.density.loss(x, context)


def _parallel(model: nn.Module, process: Process, settings: Training) -> nn.Module:
    if process.world_size > 1:
        with warnings.catch_warnings():
            # Of its new name in torch 2.13, which earlier ones do not know.
            warnings.simplefilter("ignore", FutureWarning)
            # On a CPU the sums compete with the backward pass for the cores: all at once costs least.
            bucket_megabytes = None if process.device.type == "cuda" else ALL_AT_ONCE
            model = DistributedDataParallel(
                model, broadcast_buffers=False, gradient_as_bucket_view=True, bucket_cap_mb=bucket_megabytes
            )
    return _Autocast(model, process.device.type) if settings.precision == "bfloat16" else model


class _Autocast(nn.Module):
    def __init__(self, model: nn.Module, device_type: str) -> None:
        super().__init__()
        self.model, self.device_type = model, device_type

    def forward(self, x: Tensor, context: Tensor | None) -> Tensor:
        with torch.autocast(self.device_type, torch.bfloat16):
            return self.model(x, context)


def _plan(rows: Rows, budget: Budget, settings: Training) -> Plan:
    row_bytes = 4 * math.prod(rows.event_shape)
    window = max(budget.batch_size, settings.shuffle_megabytes * (1 << 20) // row_bytes)
    return Plan(len(rows), rows.shard_rows, budget.batch_size, window, settings.seed)


def _loss(
    model: nn.Module, batch: Batch, spare: tuple[Tensor, Tensor | None], process: Process
) -> tuple[Tensor, Tensor]:
    """Losses of this process's rows, and its part of the mean over the global batch."""
    events, context = batch.events, batch.context
    if len(events) == 0:
        # Every process must take part in the averaging of gradients, one without rows with nothing to add.
        losses = model(*(None if t is None else t.to(process.device) for t in spare))
        return losses[:0], losses.sum() * 0.0
    losses = model(events.to(process.device), None if context is None else context.to(process.device))
    # Gradients are averaged over processes, whose shares of the batch may differ by a few rows.
    return losses, losses.sum() * (process.world_size / batch.total)


def _learning_rate(step: int, budget: Budget, warmup: float) -> float:
    """Linear warm-up, then half a cosine down to zero (Loshchilov and Hutter, arXiv:1608.03983)."""
    rising = max(1, round(warmup * budget.max_steps))
    if step < rising:
        return budget.learning_rate * (step + 1) / rising
    progress = (step - rising) / max(1, budget.max_steps - rising)
    return budget.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))


def _restore(
    density: Density,
    optimizer: torch.optim.Optimizer,
    average: WeightAverage,
    folder: Path | None,
    process: Process,
) -> _State | None:
    if folder is None:
        return None
    found = checkpoints.newest(folder)
    step = process.from_first(None if found is None else found.step)
    if found is None or step is None:
        return None
    if found.step != step:
        raise TrainingError(f"{folder}: the processes see different checkpoints (steps {step} and {found.step})")
    try:
        density.load_state_dict(found.part("model"))
        checkpoints.restore_optimizer(optimizer, found.part("optimizer"))
        average.restore(found.part("average"))
    except (RuntimeError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{folder}: of another model ({reason:.200}); begin anew with --overwrite") from None
    record = found.state
    best = None if record["best"] is None else Evaluation(**record["best"])
    weights = {name: tensor.to(process.device) for name, tensor in found.part("best").items()}
    return _State(found.step, best, record["best_step"], record["stale"], record["seconds"], weights)


def _spare_row(data: TrainingData, density: Density) -> tuple[Tensor, Tensor | None]:
    loader = Loader(data.train, Plan(1, 1, 1, 1), _shape(density.context_shape), data.dtype)
    batch = next(loader.epoch(0))
    return batch.events, batch.context


def _shape(shape: torch.Size | None) -> tuple[int, ...] | None:
    return None if shape is None else tuple(shape)


def _fail(
    state: _State, losses: Tensor, batch: Batch, process: Process, data: TrainingData, folder: Path | None
) -> None:
    """Say which rows spoilt the step; every process knows of all of them."""
    mine = batch.rows[(~torch.isfinite(losses.detach())).cpu().numpy()] if len(losses) else batch.rows[:0]
    numbers = mine if data.numbers is None else data.numbers[mine]
    rows = sorted(row for found in process.gather(numbers.tolist()) for row in found)
    if not rows:
        what = "the gradient is not finite, though the loss is"
    elif len(rows) == sum(process.gather(len(batch.rows))):
        what = "the loss is finite of no row of the batch: the weights have diverged"
    else:
        what = f"the loss of {data.name} {named_rows(rows)} is not finite"
    if folder is not None:
        kept = f"the last good checkpoint is in {folder}"
    else:
        step = state.best_step if state.best_weights else state.step
        good = "" if state.best_weights else ", no good ones: build it anew"
        kept = f"the density has the weights of step {step}{good}"
    raise TrainingError(
        f"step {state.step}: {what}; {kept}. Look at the rows, or lower training.learning_rate (or "
        "training.gradient_clip)"
    )
