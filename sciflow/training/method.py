"""By which method log p is to be known: what is wrong with it is told before anything else happens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from sciflow.density import Density
from sciflow.errors import ConfigError
from sciflow.modes import in_evaluation_mode

__all__ = ["kind_of_likelihood"]

# What an option of a method cannot be called.
NOT_OPTIONS = ("self", "x", "y", "context", "method")


def kind_of_likelihood(
    density: Density, context_shape: Sequence[int] | None, method: str | None, options: Mapping[str, Any]
) -> str:
    """Score no events, by this method: what is wrong with it, or with an option, the density itself tells.

    Args:
        density: Trained or not.
        context_shape: Of the contexts that come with the events, or None.
        method: As :meth:`sciflow.density.Density.likelihood` takes it; None for the family's own.
        options: Of the method.

    Returns:
        How log p will be known, see :attr:`sciflow.likelihood.Likelihood.kind`.

    Raises:
        ConfigError: The density has no such method, or the method no such option, or an option has a wrong value.
        ShapeError: Contexts are missing, or not those of this density.

    Example:
        >>> from sciflow.flows import NSF
        >>> kind_of_likelihood(NSF((2,), num_transforms=1), None, None, {})
        'exact'
        >>> kind_of_likelihood(NSF((2,), num_transforms=1), None, "exact", {"tolerance": 1e-4})
        Traceback (most recent call last):
        ...
        sciflow.errors.ConfigError: method 'exact' takes no options; got tolerance
    """
    for name in NOT_OPTIONS:
        if name in options:
            raise ConfigError(f"option {name}: not one of a method; it is said elsewhere what is scored, and how")
    events = np.zeros((0, *density.event_shape))
    context = None if context_shape is None else np.zeros((0, *context_shape))
    with torch.no_grad(), in_evaluation_mode(density):
        return density.likelihood(events, context, method, **options).kind
