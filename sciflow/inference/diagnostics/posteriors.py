"""What a posterior may be, and how it is asked: ready draws, a model, a density, an object for each x, a function."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from sciflow.arguments import Arguments
from sciflow.arrays import numbers
from sciflow.density import Density
from sciflow.errors import ConfigError, DataError, ShapeError
from sciflow.inference.diagnostics.rows import finite, select_rows
from sciflow.report.drawing import Floats

__all__ = ["FEWEST_DRAWS", "draws_of_cases", "draws_of_one", "is_array", "log_prob_of_cases", "seeds"]

# With fewer, quantiles of 5 % are not known at all.
FEWEST_DRAWS = 20
# Rows that a network is asked for at a time.
_MOST_ROWS = 1 << 17
_FORMS = (
    "give draws [num_draws, cases, d], a model with sample(n, x, seed), a Density with a context, an object with "
    "posterior(x), or a function of (x, n, seed) that returns draws [n, d]"
)


def draws_of_cases(posterior: Any, x: Any, shape: tuple[int, int], num_draws: int, seed: int, what: str) -> Floats:
    """Return draws ``[num_draws, cases, d]`` of the posterior of every case.

    Args:
        posterior: Draws ``[num_draws, cases, d]``, all of which are used; a model with ``sample(n, x, seed)``; a
            Density conditioned on ``x``; an object with ``posterior(x)``, asked for one case after the other; or a
            function of ``(x, n, seed)`` for one ``x``, which returns ``[n, d]``.
        x: ``[cases, ...]``, a mapping of such, or None where the draws are ready.
        shape: Cases and parameters that there are.
        num_draws: For each case.
        seed: Of the draws.
        what: Which diagnostic asks, in messages.

    Raises:
        ShapeError: The draws do not have that shape.
        DataError: Some of them are not finite.
        ConfigError: Too few draws, or the posterior is none of the above.
    """
    num_cases, num_parameters = shape
    if is_array(posterior):
        draws = numbers(posterior, f"{what}: draws").astype(np.float64)
    else:
        Arguments(what).whole("num_draws", num_draws, FEWEST_DRAWS, 1 << 24)
        if x is None:
            raise ConfigError(f"{what}: the posterior is to be asked for draws: give the x of every case, or {_FORMS}")
        with torch.no_grad():
            draws = _asked(posterior, x, num_cases, num_draws, seed, what)
    if draws.shape[1:] != (num_cases, num_parameters) or draws.ndim != 3:
        hint = ""
        if draws.ndim == 3 and draws.shape[0] == num_cases and draws.shape[2] == num_parameters:
            hint = "; the draws come first: draws.swapaxes(0, 1)"
        raise ShapeError(
            f"{what}: draws must be [num_draws, {num_cases} cases, {num_parameters} parameters] as theta is, got "
            f"{list(draws.shape)}{hint}"
        )
    if len(draws) < FEWEST_DRAWS:
        raise ConfigError(f"{what}: {len(draws)} draws a case are too few: give at least {FEWEST_DRAWS}, better 1,000")
    missing = ~np.isfinite(draws).all(-1)
    if missing.any():
        draw, case = (int(i) for i in np.argwhere(missing)[0])
        raise DataError(
            f"{what}: {missing.sum():,} of {missing.size:,} draws are not finite, first draw {draw} of case {case}: a "
            "posterior that gives no numbers there cannot be judged; look at the x of that case"
        )
    return draws


def draws_of_one(posterior: Any, x: Any, num_draws: int, seed: int, what: str) -> Floats:
    """Return draws ``[n, d]`` of the posterior of one ``x``, of what :func:`draws_of_cases` takes, or of one alone.

    Args:
        posterior: As there; an object with ``sample(n, seed=)`` and no ``x``; or draws ``[n, d]``.
        x: The one that was observed; None where the posterior is its own already.
        num_draws: How many to draw; ready draws are all used.
        seed: Of the draws.
        what: Which diagnostic asks, in messages.

    Raises:
        ShapeError: The draws are no ``[n, d]``.
        DataError: Some of them are not finite.
        ConfigError: Too few draws, or the posterior is none of the above.
    """
    if is_array(posterior):
        draws = numbers(posterior, f"{what}: draws")
    else:
        Arguments(what).whole("num_draws", num_draws, FEWEST_DRAWS, 1 << 24)
        with torch.no_grad():
            if hasattr(posterior, "sample") and (x is None or not hasattr(posterior, "posterior")):
                draws = numbers(_sampled(posterior, x, num_draws, seed, one=True), f"{what}: draws")
            else:
                draws = numbers(_one_case(posterior, x, num_draws, seed, what), f"{what}: draws")
    if draws.ndim == 3 and draws.shape[1] == 1:
        draws = draws[:, 0]
    if draws.ndim != 2 or draws.shape[1] == 0:
        raise ShapeError(f"{what}: draws of one posterior are [n, d], got {list(draws.shape)}")
    if len(draws) < FEWEST_DRAWS:
        raise ConfigError(f"{what}: {len(draws)} draws are too few: give at least {FEWEST_DRAWS}, better 1,000")
    return finite(draws, f"{what}: draws")


def log_prob_of_cases(posterior: Any, theta: Floats, x: Any) -> Floats:
    """Return log p of the posterior of each case at ``theta`` ``[..., cases, d]``, ``[..., cases]``.

    Raises:
        ShapeError: The model returns another shape.
        DataError: It returns NaN.
    """
    found = np.empty(theta.shape[:-1])
    by_case = not hasattr(posterior, "log_prob")
    block = 1 if by_case else max(1, _MOST_ROWS // max(int(np.prod(theta.shape[:-2])), 1))
    for start in range(0, theta.shape[-2], block):
        rows = slice(start, start + block)
        asked = torch.from_numpy(theta[..., rows, :])
        with torch.no_grad():
            if by_case:
                density = posterior.posterior(select_rows(x, start)).log_prob(asked[..., 0, :])[..., None]
            elif _takes(posterior.log_prob, "context"):
                density = posterior.log_prob(asked, context=select_rows(x, rows))
            else:
                density = posterior.log_prob(asked, select_rows(x, rows))
        values = numbers(density, "log_prob")
        if values.shape != asked.shape[:-1]:
            raise ShapeError(
                f"log_prob: of theta {list(asked.shape)} there are {list(asked.shape[:-1])} values, got "
                f"{list(values.shape)}"
            )
        found[..., rows] = values
    if np.isnan(found).any():
        raise DataError(f"log_prob: NaN for {np.isnan(found).sum():,} of {found.size:,} values: look at the model")
    return found


def is_array(value: Any) -> bool:
    """Whether these are ready draws."""
    return isinstance(value, torch.Tensor | np.ndarray | list | tuple) or hasattr(value, "__array__")


def seeds(seed: int, num: int) -> list[int]:
    """Return seeds, one for each of several parts, none like another."""
    return [int(word) for word in np.random.SeedSequence(seed).generate_state(num, np.uint64) >> np.uint64(1)]


def _asked(posterior: Any, x: Any, num_cases: int, num_draws: int, seed: int, what: str) -> Floats:
    """Draws of a model, many cases at once where it can."""
    if hasattr(posterior, "sample") and (_names_x(posterior.sample) or not hasattr(posterior, "posterior")):
        if not _names_x(posterior.sample):
            raise ConfigError(
                f"{what}: {type(posterior).__name__}.sample knows no x, and so one posterior only; {_FORMS}"
            )
        block = max(1, _MOST_ROWS // num_draws)
        starts = range(0, num_cases, block)
        parts = [
            numbers(_sampled(posterior, select_rows(x, slice(start, start + block)), num_draws, own), f"{what}: draws")
            for start, own in zip(starts, seeds(seed, len(starts)), strict=True)
        ]
        return np.concatenate(parts, axis=1).astype(np.float64)
    each = [
        numbers(_one_case(posterior, select_rows(x, case), num_draws, own, what), f"{what}: draws")
        for case, own in enumerate(seeds(seed, num_cases))
    ]
    if len({one.shape for one in each}) > 1:
        raise ShapeError(f"{what}: the posterior gives draws of other shapes for other cases; return [n, d] for each")
    return np.stack(each, axis=1).astype(np.float64)


def _one_case(posterior: Any, x: Any, num_draws: int, seed: int, what: str) -> Any:
    if hasattr(posterior, "posterior"):
        return posterior.posterior(x).sample(num_draws, seed=seed)
    if callable(posterior):
        return posterior(x, num_draws, seed)
    raise ConfigError(f"{what}: {type(posterior).__name__} is no posterior; {_FORMS}")


def _sampled(posterior: Any, x: Any, num_draws: int, seed: int, one: bool = False) -> Any:
    if isinstance(posterior, Density):
        return posterior.sample(num_draws, context=x, seed=seed)
    if one and (x is None or not _names_x(posterior.sample)):
        return posterior.sample(num_draws, seed=seed)
    if _takes(posterior.sample, "context"):
        return posterior.sample(num_draws, context=x, seed=seed)
    return posterior.sample(num_draws, x, seed=seed)


def _takes(function: Callable[..., Any], name: str) -> bool:
    return name in inspect.signature(function).parameters


def _names_x(function: Callable[..., Any]) -> bool:
    return _takes(function, "x") or _takes(function, "context")
