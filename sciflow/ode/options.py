"""How log p is to be computed by an ODE, checked before anything is."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from sciflow.arguments import Arguments, is_number
from sciflow.errors import ConfigError, nearest
from sciflow.ode.pairs import pair
from sciflow.ode.solve import Steps

__all__ = [
    "MOST_PROBES",
    "Options",
    "checked_tolerance",
    "least_tolerance",
    "likelihood_options",
    "steps_for",
    "usual_tolerance",
]

# Error of log p that is aimed at where the user does not say, in nats.
_TOLERANCE = 1e-5

# An error of a step may be so many times the tolerance: what is left of it, once it is corrected, is below.
_OF_STEP = 10.0
# Where an event is one number, nothing tells how well it is corrected.
_OF_NUMBERS = 1.0
# Below it the higher order is less work.
_TIGHT = 1e-6
_EXACT_UP_TO = 128
_PROBES = 16
MOST_PROBES = 1 << 14
_MOST_STEPS, _MOST_OF_MOST = 1000, 1 << 20
_BUDGET, _MOST_BUDGET = 20_000, 1 << 40


@dataclass(frozen=True)
class Options:
    """What can be chosen of a likelihood by an ODE.

    Attributes:
        tolerance: Error of log p that is aimed at, in nats.
        steps: How steps are taken.
        probes: Of the divergence, at random; None for the exact one.
        seed: Of the probes: a number, a generator, or None for torch's own.
        target_error: Error that rows are computed again for, in nats; None for none.
        budget: Evaluations and products with the Jacobian that a row may take for that.
    """

    tolerance: float
    steps: Steps
    probes: int | None
    seed: int | torch.Generator | None
    target_error: float | None = None
    budget: int = 0


def likelihood_options(given: Mapping[str, Any], num_features: int, dtype: torch.dtype) -> Options:
    """Check the options of ``density.likelihood(x, method="ode", ...)``.

    Args:
        given: By name:

            - ``tolerance``: Error of log p that is aimed at, in nats; 1e-5 by default, and in float32 1.2e-6 at the
              least. What it is known to is said by the error, which for learned fields may be above it.
            - ``divergence``: ``"exact"``; ``"hutchinson"``, estimated by random probes; or ``"auto"``, exact for
              events of up to 128 numbers.
            - ``probes``: How many; 16 by default. Fewer than 4 give no error of their own: it is infinite. Where there
              are as many as an event has numbers, the exact divergence is no dearer, and is taken.
            - ``seed``: Of the probes, 0 by default: those of a row follow from its own numbers. Or a generator, or
              None, for others every time.
            - ``target_error``: Error that every row is to have at most, in nats: rows above it are computed again by a
              tighter tolerance or with more probes, whichever their error comes from, until it is met, or else
              their status is ``TARGET_MISSED``.
            - ``budget``: What may be spent on a row for that, in evaluations of the network and products with its
              Jacobian; 20,000 by default.
            - ``solver``: ``"bosh3"``, ``"dopri5"``, ``"tsit5"`` or ``"dop853"``, see :func:`sciflow.ode.pairs.pair`;
              None for the second, and for the last where tolerances are tight.
            - ``max_steps``: Of one row, 1000 by default.
            - ``num_steps``: That many equal steps, of some ten evaluations each, whatever the error: biased, labelled
              so, and with an error that is a guess where steps are few.
        num_features: Of an event.
        dtype: Of the states.

    Raises:
        ConfigError: An option is unknown or out of range.
    """
    arguments = Arguments("likelihood")
    for name in given:
        if name not in _NAMES:
            raise ConfigError(f"likelihood: method 'ode': {name!r:.80}: unknown option; {nearest(str(name), _NAMES)}")
    options = {**_USUAL, **given}
    tolerance = checked_tolerance("likelihood", options["tolerance"], dtype)
    divergence = arguments.choice("divergence", options["divergence"], ("auto", "exact", "hutchinson"))
    probes = arguments.whole("probes", options["probes"], 1, MOST_PROBES)
    max_steps = arguments.whole("max_steps", options["max_steps"], 1, _MOST_OF_MOST)
    fixed = options["num_steps"]
    if fixed is not None:
        fixed = arguments.whole("num_steps", fixed, 1, _MOST_STEPS)
    if divergence == "auto":
        divergence = "exact" if num_features <= _EXACT_UP_TO else "hutchinson"
    elif divergence == "exact" and num_features > _EXACT_UP_TO:
        warnings.warn(
            f"likelihood: an exact divergence of events of {num_features:,} numbers takes as many products with the "
            f"Jacobian at every node, some {50 * num_features:,} a row; 'hutchinson' takes {_PROBES} a node",
            stacklevel=5,
        )
    target_error = options["target_error"]
    if target_error is not None:
        target_error = arguments.positive("target_error", target_error)
        if fixed is not None:
            raise ConfigError("likelihood: target_error: num_steps steps have the error that they have; leave one out")
    budget = arguments.whole("budget", options["budget"], 1, _MOST_BUDGET)
    seed = options["seed"]
    steps = steps_for(tolerance, options["solver"])
    of_step = (_OF_NUMBERS if num_features == 1 else _OF_STEP) * tolerance
    return Options(
        tolerance,
        replace(steps, tolerance=of_step, most=max_steps, fixed=fixed, kept=True),
        None if divergence == "exact" or probes >= num_features else probes,
        seed if isinstance(seed, torch.Generator) else arguments.seed(seed),
        target_error,
        budget,
    )


def steps_for(tolerance: float, solver: str | None = None) -> Steps:
    """Return steps with which log p comes out within a tolerance, most of the time."""
    usual = "dopri5" if tolerance >= _TIGHT else "dop853"
    return Steps(pair(usual if solver is None else solver), _OF_STEP * tolerance)


def checked_tolerance(whose: str, tolerance: Any, dtype: torch.dtype) -> float:
    """Return a tolerance that states of a dtype can keep; of None, the usual one.

    Raises:
        ConfigError: It is no positive number, or below what the dtype can hold.

    Example:
        >>> checked_tolerance("likelihood", 1e-9, torch.float32)
        Traceback (most recent call last):
        sciflow.errors.ConfigError: likelihood: tolerance: float32 holds 1.2e-06 and above; got 1e-09. Use .double()
    """
    if tolerance is None:
        return usual_tolerance(dtype)
    if not (is_number(tolerance) and 0 < tolerance < math.inf):
        raise ConfigError(f"{whose}: tolerance: a positive number of nats, such as 1e-4; got {tolerance!r:.80}")
    floor = least_tolerance(dtype)
    if tolerance < floor:
        hint = " Use .double()" if dtype != torch.float64 else ""
        name = str(dtype).removeprefix("torch.")
        raise ConfigError(f"{whose}: tolerance: {name} holds {floor:.2g} and above; got {tolerance:g}.{hint}")
    return float(tolerance)


def usual_tolerance(dtype: torch.dtype) -> float:
    """Return the tolerance where the user does not say: 1e-5, or what states of a dtype can keep."""
    return max(_TOLERANCE, least_tolerance(dtype))


def least_tolerance(dtype: torch.dtype) -> float:
    """Return the tightest tolerance that states of a dtype can keep."""
    return 10 * torch.finfo(dtype).eps


_USUAL: dict[str, Any] = {
    "tolerance": None,
    "divergence": "auto",
    "probes": _PROBES,
    "seed": 0,
    "solver": None,
    "max_steps": _MOST_STEPS,
    "num_steps": None,
    "target_error": None,
    "budget": _BUDGET,
}
_NAMES = tuple(_USUAL)
