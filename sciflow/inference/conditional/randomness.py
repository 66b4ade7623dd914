"""Random numbers of the user's own functions: whichever generator they draw from, a seed decides."""

from __future__ import annotations

import inspect
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from sciflow.arguments import GENERATORS
from sciflow.density import MOST_SEED
from sciflow.errors import ConfigError

__all__ = ["checked_seed", "child_seed", "seed_arguments", "seed_of", "seeding"]


def child_seed(*numbers: int) -> int:
    """Return a seed that follows from numbers, and is another for others.

    Example:
        >>> child_seed(0, 1) == child_seed(0, 1), child_seed(0, 1) == child_seed(1, 0)
        (True, False)
    """
    return int(np.random.SeedSequence(list(numbers)).generate_state(1)[0])


def checked_seed(seed: Any) -> int:
    """Return a seed as Python's own number.

    Raises:
        ConfigError: It is none.
    """
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or not 0 <= seed <= MOST_SEED:
        raise ConfigError(f"seed {seed!r:.80}: a whole number expected, 0 to 2**63 - 1")
    return int(seed)


def seed_of(seed: int | torch.Generator | None) -> int:
    """Return a seed for what a user asked for: the number itself, or one drawn from a generator, or from torch's own.

    Raises:
        ConfigError: It is neither.
    """
    if seed is None or isinstance(seed, torch.Generator):
        return int(torch.randint(2**31, (), generator=seed, device="cpu" if seed is None else seed.device))
    return checked_seed(seed)


@contextmanager
def seeding(seed: int) -> Iterator[None]:
    """Seed the generators that functions draw from unasked: of torch, NumPy and Python; they are as before afterwards.

    Example:
        >>> with seeding(3):
        ...     first = torch.rand(2), np.random.rand(2)
        >>> with seeding(3):
        ...     bool((torch.rand(2) == first[0]).all()), bool((np.random.rand(2) == first[1]).all())
        (True, True)
    """
    own, numpys = random.getstate(), np.random.get_state()
    with GENERATORS, torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        np.random.seed(seed % 2**32)
        random.seed(seed)
        try:
            yield
        finally:
            random.setstate(own)
            np.random.set_state(numpys)


def seed_arguments(function: Callable[..., Any], seed: int) -> dict[str, Any]:
    """Return what a function that asks for its randomness by name is to be given: ``seed``, ``generator`` or ``rng``.

    Example:
        >>> seed_arguments(lambda theta, seed: theta, 7)
        {'seed': 7}
        >>> seed_arguments(lambda theta: theta, 7)
        {}
    """
    try:
        names = inspect.signature(function).parameters
    except (TypeError, ValueError):
        return {}
    given: dict[str, Callable[[], Any]] = {
        "seed": lambda: seed,
        "generator": lambda: torch.Generator().manual_seed(seed),
        "rng": lambda: np.random.default_rng(seed),
    }
    return {name: make() for name, make in given.items() if name in names}
