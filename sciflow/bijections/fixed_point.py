"""Solving x + g(x) = z for a contraction g, row by row, with a check that it was solved."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sciflow.errors import ConvergenceError
from sciflow.nets.lipschitz import Contraction

__all__ = ["solve"]

# In units of the dtype's rounding: what the iteration goes on to, and what it may end at if that is out of reach.
_AIM, _ACCEPTED = 16, 128


@torch.no_grad()
def solve(function: Contraction, z: Tensor, bound: float) -> Tensor:
    r"""Return ``x`` with :math:`x + g(x) = z`, by repeating :math:`x \leftarrow z - g(x)`.

    Every step brings a row closer by the factor ``bound`` at least, so that one knows beforehand how many steps are
    enough; rows that are done leave the others. A row whose ``z`` or ``g`` is not finite comes out as NaN.

    Args:
        function: The contraction :math:`g`.
        z: ``[n, num_features]``.
        bound: Lipschitz bound of the contraction, below 1.

    Returns:
        ``[n, num_features]``, without gradient.

    Raises:
        ConvergenceError: Rows are not solved after as many steps as a contraction can need: it is none. A compiled
            graph cannot raise; there these rows are NaN.
    """
    epsilon = torch.finfo(z.dtype).eps
    max_steps = math.ceil(math.log(epsilon) / math.log(bound))
    if torch.compiler.is_compiling():
        return _solve_compiled(function, z, max_steps)
    solution = torch.full_like(z, torch.nan)
    left = torch.arange(len(z), device=z.device)
    x = z
    for _ in range(max_steps):
        following = z - function(x)
        off = _relative_distance(following, x)
        # A row that is NaN is none that one could go on with.
        going = off > _AIM * epsilon
        if not going.all():
            solution[left[~going]] = following[~going]
            left, z, following, off = left[going], z[going], following[going], off[going]
            function = function.rows(going)
            if len(left) == 0:
                return solution
        x = following
    solution[left] = x
    failed = off > _ACCEPTED * epsilon
    if failed.any():
        raise ConvergenceError(
            f"x + g(x) = z is not solved for {int(failed.sum())} of {len(solution)} rows: after {max_steps} steps it is "
            f"off by up to {float(off.max()):.1g} of |x|, where {_ACCEPTED * epsilon:.1g} is wanted. A contraction by "
            f"{bound} comes closer: g is none, for a network of your own, or its numbers are too large for "
            f"{str(z.dtype).removeprefix('torch.')}: try density.double()"
        )
    return solution


def _relative_distance(x: Tensor, y: Tensor) -> Tensor:
    norm = torch.linalg.vector_norm
    return norm(x - y, dim=-1) / norm(x, dim=-1).clamp_min(1)


def _solve_compiled(function: Contraction, z: Tensor, max_steps: int) -> Tensor:
    """The same in one graph: all rows go on until the last one is done."""
    epsilon = torch.finfo(z.dtype).eps

    def goes_on(step: Tensor, x: Tensor, off: Tensor) -> Tensor:
        return (step < max_steps) & (off > _AIM * epsilon).any()

    def one_step(step: Tensor, x: Tensor, off: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        following = z - function(x)
        return step + 1, following, _relative_distance(following, x)

    first = torch.zeros((), dtype=torch.int64, device=z.device)
    start = (first, z.clone(), z.new_full((len(z),), torch.inf))
    _, x, off = torch.while_loop(goes_on, one_step, start)
    return torch.where((off <= _ACCEPTED * epsilon)[:, None], x, torch.nan)
