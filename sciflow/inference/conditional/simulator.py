"""The user's simulator as the rest needs it: many rows at once, by a seed, and told what failed from what did not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sciflow.errors import ConfigError, DataError
from sciflow.inference.conditional.guarded import CallError, guarded
from sciflow.inference.conditional.prior import Prior
from sciflow.inference.conditional.randomness import child_seed, seed_arguments, seeding

__all__ = ["Block", "Simulator", "pilot"]

_TRIES = 2
_PILOT = 16  # draws of which one must succeed, before any are counted on
NOT_FINITE = "not finite"


@dataclass(frozen=True)
class Block:
    """Some simulations.

    Attributes:
        theta: Parameters ``[n, d]``.
        x: What was observed ``[n, *x_shape]``, NaN where the simulator failed.
        reasons: Why it did, a text for every row, empty where it did not.
    """

    theta: np.ndarray
    x: np.ndarray
    reasons: list[str]


@dataclass(frozen=True)
class Simulator:
    """How parameters become observations.

    A batch that raises an error, or takes too long, is tried once more with the same random numbers, since machines
    have bad days; then it is halved, until the rows that fail are alone. Values that are not finite come of the
    numbers themselves, so those are not tried again: another draw in their place would bend the posterior, while
    leaving them out does not. For the same reason a function of one row gets the same random numbers at each try.

    Attributes:
        function: ``function(theta)``, ``theta`` being ``[n, d]``, returns ``[n, *x_shape]``; or it takes one row
            ``[d]`` and returns ``[*x_shape]``. It may ask for a ``seed``, a ``generator`` or an ``rng`` by that name.
        batched: Whether it takes many rows at once.
        x_shape: Shape of one observation.
        dtype: NumPy's, of parameters and observations.
        timeout: Seconds that one call may take; None for as long as it takes.
    """

    function: Callable[..., Any]
    batched: bool
    x_shape: tuple[int, ...]
    dtype: str = "float32"
    timeout: float | None = None

    def run(self, theta: Tensor, seed: int) -> Block:
        """Simulate for parameters ``[n, d]``.

        Args:
            theta: One row for every simulation.
            seed: The same seed, the same observations, where the function draws by the generators it is given, or by
                those of torch, NumPy or Python.
        """
        rows = theta.numpy().astype(self.dtype)
        x = np.full((len(rows), *self.x_shape), np.nan, self.dtype)
        reasons = [""] * len(rows)
        # One process for all rows of a batch, where all goes well.
        self._fill(rows, 0, len(rows), seed, x, reasons)
        return Block(rows, x, reasons)

    def _fill(self, rows: np.ndarray, start: int, stop: int, seed: int, x: np.ndarray, reasons: list[str]) -> None:
        part = rows[start:stop]
        reason = ""
        for _ in range(_TRIES):
            try:
                values = guarded(partial(called, self.function, self.batched, part, seed, start), self.timeout)
                break
            except CallError as error:
                reason = str(error)
        else:
            if stop - start > 1:
                middle = (start + stop) // 2
                self._fill(rows, start, middle, seed, x, reasons)
                self._fill(rows, middle, stop, seed, x, reasons)
            else:
                reasons[start] = reason
            return
        for place, value in enumerate(values, start):
            if value.shape != self.x_shape:
                reasons[place] = f"shape {list(value.shape)}, not {list(self.x_shape)}"
                continue
            with np.errstate(over="ignore", invalid="ignore"):
                value = value.astype(self.dtype)
            if np.isfinite(value).all():
                x[place] = value
            else:
                reasons[place] = NOT_FINITE


def called(
    function: Callable[..., Any], batched: bool, rows: np.ndarray, seed: int, first: int = 0
) -> list[np.ndarray]:
    """Ask a simulator for observations, one array for each of ``rows`` ``[n, d]``, of which ``first`` is the first.

    A function of one row draws the same for it in whatever company; one of many rows has a seed for all of them.

    Raises:
        ValueError: A function of many rows answers with another number of them.
    """
    if not batched:
        return [_of_row(function, row, child_seed(seed, first + place)) for place, row in enumerate(rows)]
    own = child_seed(seed, first, len(rows))
    with seeding(own), torch.no_grad():
        found = as_array(function(torch.from_numpy(rows.copy()), **seed_arguments(function, own)))
    if found.ndim == 0 or len(found) != len(rows):
        raise ValueError(f"{len(rows)} rows of parameters, and an answer of shape {list(found.shape)}")
    return [np.atleast_1d(value) for value in found]


def _of_row(function: Callable[..., Any], row: np.ndarray, seed: int) -> np.ndarray:
    with seeding(seed), torch.no_grad():
        return np.atleast_1d(as_array(function(torch.from_numpy(row.copy()), **seed_arguments(function, seed))))


def as_array(values: Any) -> np.ndarray:
    """Numbers that a simulator answers with, as an array of real ones.

    Raises:
        TypeError: They are something else.
    """
    if isinstance(values, Tensor):
        values = values.detach().cpu().resolve_neg().numpy()
    array = np.asarray(values)
    if array.dtype.kind not in "fiub":
        raise TypeError(f"numbers expected; got {array.dtype}")
    return array


def pilot(
    function: Any, prior: Prior, seed: int, dtype: str = "float32", timeout: float | None = None
) -> tuple[Simulator, np.ndarray | None]:
    """Try a simulator on a few draws: what it takes, and what comes out.

    Args:
        function: The user's.
        prior: Of its parameters.
        seed: Of the draws.
        dtype: NumPy's, of parameters and observations.
        timeout: Seconds that one call may take.

    Returns:
        The simulator, and an observation that is made again by the same seed; None where it is not.

    Raises:
        ConfigError: It is no function.
        DataError: Nothing comes out.

    Example:
        >>> from torch.distributions import Normal
        >>> prior = Prior(Normal(torch.zeros(2), 1.0))
        >>> pilot(lambda theta: theta.sum(-1, keepdim=True), prior, 0)[0].x_shape
        (1,)
    """
    if not callable(function):
        raise ConfigError(f"simulator: got {function!r:.80}; give a function from parameters to observations")
    theta = prior.sample(_PILOT, child_seed(seed, 1)).numpy().astype(dtype)
    reason = NOT_FINITE
    for row in theta:
        batched = _takes_batches(function, row, seed, timeout)
        ask = partial(called, function, batched, row[None], seed)
        try:
            (found,) = guarded(ask, timeout)
        except CallError as error:
            reason = str(error)
            continue
        if np.isfinite(found).all():
            return Simulator(function, batched, found.shape, dtype, timeout), _again(ask, found, timeout)
    raise DataError(
        f"simulator: none of {_PILOT} draws of the prior succeeds: {reason}. It is called with parameters "
        f"[n, {prior.num_parameters}] as a tensor, or with one row [{prior.num_parameters}]"
    )


def _takes_batches(function: Callable[..., Any], row: np.ndarray, seed: int, timeout: float | None) -> bool:
    """Whether the answer to three rows is three, and that to two rows two."""
    try:
        for number in (3, 2):
            guarded(partial(called, function, True, np.repeat(row[None], number, 0), seed), timeout)
    except CallError:
        return False
    return True


def _again(ask: Callable[[], list[np.ndarray]], found: np.ndarray, timeout: float | None) -> np.ndarray | None:
    try:
        (again,) = guarded(ask, timeout)
    except CallError:
        return None
    return found if np.array_equal(found, again) else None
