"""Gradients of what was computed by a solver: the same steps once more, one after the other, with a graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from sciflow.derivatives import refuse_torch_func
from sciflow.errors import DerivativeError
from sciflow.modes import in_evaluation_mode
from sciflow.ode.path import Path
from sciflow.ode.solve import Dynamics, combined

__all__ = ["differentiable", "replayed"]


def differentiable(
    compute: Callable[..., tuple[Tensor, ...]],
    again: Callable[..., Tensor],
    given: Sequence[Tensor | None],
    module: nn.Module,
    rows_at_a_time: int,
) -> tuple[Tensor, ...]:
    """Compute without a graph, and make up for it when a gradient is asked for.

    A solver looks for its steps by trial; its gradient is that of the steps that it found, which are taken again, a few
    rows at a time. Who asks for no gradient pays for none. Rows without a result have a gradient of zero. In both the
    module is in evaluation mode and computes in its own precision: a solver would follow dropout and rounding.

    Args:
        compute: ``compute(*given)`` returns the result, and whatever else there is to say of it.
        again: ``again(rows, *given)``, after ``compute``, returns the result for some rows once more, with a graph.
        given: ``[n, ...]`` each or None: what a gradient may be asked of, next to the weights of the module.
        module: Whose parameters are used.
        rows_at_a_time: For the gradient.

    Returns:
        What ``compute`` does; the first of it has a gradient, and no second derivatives.
    """
    refuse_torch_func("a solver")
    device = next(tensor.device.type for tensor in given if tensor is not None)

    def quietly(function: Callable[..., Any]) -> Callable[..., Any]:
        def called(*arguments: Any) -> Any:
            with in_evaluation_mode(module), torch.autocast(device, enabled=False):
                return function(*arguments)

        return called

    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    outputs: tuple[Tensor, ...] = _Replayed.apply(
        quietly(compute), quietly(again), rows_at_a_time, len(given), *given, *parameters
    )
    return outputs


class _Replayed(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, compute: Any, again: Any, rows_at_a_time: int, num_given: int, *tensors: Tensor | None
    ) -> tuple[Tensor, ...]:
        outputs: tuple[Tensor, ...] = compute(*tensors[:num_given])
        ctx.again, ctx.rows_at_a_time, ctx.num_given, ctx.tensors = again, rows_at_a_time, num_given, tensors
        ctx.known = _all_of_rows(torch.isfinite(outputs[0]))
        ctx.mark_non_differentiable(*outputs[1:])
        return outputs

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        if torch.is_grad_enabled():
            raise DerivativeError(
                "the gradient of a solution of an ODE cannot be differentiated again: leave out create_graph"
            )
        wanted = [place for place, tensor in enumerate(ctx.tensors) if tensor is not None and tensor.requires_grad]
        inputs = [None if tensor is None else tensor.detach() for tensor in ctx.tensors[: ctx.num_given]]
        inputs = [*(t if t is None else t.requires_grad_(place in wanted) for place, t in enumerate(inputs))]
        leaves = [*inputs, *ctx.tensors[ctx.num_given :]]
        answers: list[Tensor | None] = [None] * len(leaves)
        asked = ctx.known & _all_of_rows(gradients[0] == 0).logical_not()
        for rows in torch.nonzero(asked).squeeze(1).split(max(1, ctx.rows_at_a_time)):
            if not len(rows):
                break
            with torch.enable_grad():
                result = ctx.again(rows, *inputs)
            found = torch.autograd.grad(
                result, [leaves[place] for place in wanted], gradients[0][rows], allow_unused=True
            )
            for place, gradient in zip(wanted, found, strict=True):
                if gradient is not None:
                    before = answers[place]
                    answers[place] = gradient if before is None else before + gradient
        return None, None, None, None, *answers


def _all_of_rows(flags: Tensor) -> Tensor:
    return flags.flatten(1).all(1) if flags.ndim > 1 else flags


def replayed(path: Path, dynamics: Dynamics, z: Tensor) -> Path:
    """Return a path whose steps are taken again from states that may have a graph; memory holds one step's at a time.

    Args:
        path: What was found.
        dynamics: What was solved.
        z: ``[n, d]``, where rows begin.
    """
    first = torch.searchsorted(path.rows, torch.arange(len(z), device=z.device))
    count = torch.bincount(path.rows, minlength=len(z))
    pair, begun, stages = path.pair, [], []
    places = []
    for number in range(int(count.max()) if len(z) else 0):
        rows = torch.nonzero(count > number).squeeze(1)
        steps = first[rows] + number
        start, width = path.start[steps], path.width[steps]

        def step(
            state: Tensor, start: Tensor = start, width: Tensor = width, rows: Tensor = rows
        ) -> tuple[Tensor, Tensor]:
            signed = width.to(state.dtype)[:, None]
            found: list[Tensor] = []
            end = state
            for place, weights in enumerate(pair.matrix):
                here = state + signed * combined(weights, found) if found else state
                found.append(dynamics.velocity(start + pair.nodes[place] * width, here, rows))
                if place == pair.num_stages - 1:
                    end = here
            return end, torch.stack(found, 1)

        state = z[rows]
        end, of_step = checkpoint(step, state, use_reentrant=False)
        begun.append(state)
        stages.append(of_step)
        places.append(steps)
        z = z.index_copy(0, rows, end)
    if not places:
        return replace(path, end=z)
    order = torch.argsort(torch.cat(places))
    return replace(path, end=z, begin=torch.cat(begun)[order], stages=torch.cat(stages)[order])
