"""Solving x + g(x) = z for a contraction g, row by row, with a check that it was solved."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from sciflow.errors import ConvergenceError
from sciflow.nets.lipschitz import Contraction

__all__ = ["solve"]

# In units of the dtype's rounding: what the iteration goes on to, and what it may end at where that is out of reach.
_AIM, _ACCEPTED = 8, 64
_MEMORY = 3  # steps that the next one is put together from


@torch.no_grad()
def solve(function: Contraction, z: Tensor, bound: float) -> Tensor:
    r"""Return ``x`` with :math:`x + g(x) = z`, by iterating :math:`x \leftarrow z - g(x)`.

    Each row goes at its own pace, and leaves when it is done. The last few steps are combined to a longer one that
    would solve a linear equation in their span (Anderson, J. ACM 12 (1965)). It is kept where it came nearer by the
    factor ``bound``, and else replaced by the plain step, which always does: so one knows beforehand how many steps
    are enough, and most rows take far fewer.

    Args:
        function: The contraction :math:`g`.
        z: ``[n, num_features]``; rows for which :math:`g(z)` is not finite come out as NaN.
        bound: Lipschitz bound of the contraction, below 1.

    Returns:
        ``[n, num_features]``, without gradient.

    Raises:
        ConvergenceError: Rows are not solved after as many steps as a contraction can need: it is none. A compiled
            graph cannot raise; there these rows are NaN.
    """
    rounding = torch.finfo(z.dtype).eps
    max_steps = 2 * math.ceil(math.log(rounding) / math.log(bound))
    state = _first(function, z)
    if torch.compiler.is_compiling():
        return _solve_compiled(function, z, bound, state, max_steps)
    solution = torch.full_like(z, torch.nan)
    left = torch.arange(len(z), device=z.device)
    # What is not finite now will not become so; any other row has to be solved.
    going = state.image.isfinite().all(-1)
    for _ in range(max_steps):
        if not going.all():
            left, z, function = left[going], z[going], function.rows(going)
            state = _State(*(tensor[going] for tensor in state))
        if len(left) == 0:
            return solution
        state = _next(function, z, bound, state)
        going = ~(state.distance() <= _AIM * rounding)
        solution[left[~going]] = state.image[~going]
    distance = state.distance()
    failed = ~(distance <= _ACCEPTED * rounding)
    if failed.any():
        raise ConvergenceError(
            f"x + g(x) = z is not solved for {int(failed.sum())} of {len(solution)} rows: after {max_steps} steps it "
            f"is off by up to {float(distance.max()):.1g} of |x|, where {_ACCEPTED * rounding:.1g} is wanted. A "
            f"contraction by {bound} is solved sooner: g is none, or its terms are so large and opposite that rounding "
            "is in the way, and density.double() will help"
        )
    solution[left] = state.image
    return solution


class _State(NamedTuple):
    """Where the iteration is, and the steps that it remembers, those of the residual orthonormal."""

    image: Tensor  # z - g(x), [n, num_features]
    residual: Tensor  # z - g(x) - x
    images: Tensor  # [n, num_features, _MEMORY], with zeros for what is forgotten
    residuals: Tensor

    def distance(self) -> Tensor:
        """How far each row is off, relative to its length or 1."""
        return _norm(self.residual) / _norm(self.image).clamp_min(1)


def _first(function: Contraction, z: Tensor) -> _State:
    image = z - function(z)
    nothing = z.new_zeros(*z.shape, _MEMORY)
    return _State(image, image - z, nothing, nothing.clone())


def _next(function: Contraction, z: Tensor, bound: float, state: _State) -> _State:
    x = state.image - _along(state.images, state.residuals, state.residual)
    image = z - function(x)
    residual = image - x
    is_plain = ~state.residuals.flatten(1).any(-1)
    kept = is_plain | (_norm(residual) <= bound * _norm(state.residual))
    # The part of the new step that is not in the span of the others.
    image_step, residual_step = image - state.image, residual - state.residual
    length = _norm(residual_step)
    image_step = image_step - _along(state.images, state.residuals, residual_step)
    residual_step = residual_step - _along(state.residuals, state.residuals, residual_step)
    new_length = _norm(residual_step)
    scale = torch.where(new_length > 1e-3 * length, 1 / new_length, 0)[:, None]
    forward = _State(
        image,
        residual,
        torch.cat(((image_step * scale).unsqueeze(-1), state.images[..., :-1]), -1),
        torch.cat(((residual_step * scale).unsqueeze(-1), state.residuals[..., :-1]), -1),
    )
    back = state._replace(images=torch.zeros_like(state.images), residuals=torch.zeros_like(state.residuals))
    return _State(
        *(torch.where(kept.view(-1, *[1] * (new.ndim - 1)), new, old) for new, old in zip(forward, back, strict=True))
    )


def _along(targets: Tensor, directions: Tensor, vector: Tensor) -> Tensor:
    """What becomes of a vector's part in the span of orthonormal directions, if each of them becomes its target."""
    return (targets @ (directions.mT @ vector.unsqueeze(-1))).squeeze(-1)


def _norm(x: Tensor) -> Tensor:
    return torch.linalg.vector_norm(x, dim=-1)


def _solve_compiled(function: Contraction, z: Tensor, bound: float, state: _State, max_steps: int) -> Tensor:
    """The same in one graph: all rows go on until the last one is done."""
    rounding = torch.finfo(z.dtype).eps
    known = state.image.isfinite().all(-1)

    def goes_on(step: Tensor, *state: Tensor) -> Tensor:
        return (step < max_steps) & (known & ~(_State(*state).distance() <= _AIM * rounding)).any()

    def one_step(step: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        return step + 1, *_next(function, z, bound, _State(*state))

    _, *last = torch.while_loop(goes_on, one_step, (torch.zeros((), dtype=torch.int64, device=z.device), *state))
    found = _State(*last)
    return torch.where((found.distance() <= _ACCEPTED * rounding).unsqueeze(-1), found.image, torch.nan)
