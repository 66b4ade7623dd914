"""Distributions of ``torch.distributions`` as JSON can hold them: the name of the class, and its arguments."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution, Transform

from sciflow.errors import ConfigError, first_line, nearest

__all__ = ["described", "distribution_from"]

# Several names of one thing, of which a constructor takes one; which one was given is the first to have become an
# attribute, for the others are computed when they are asked for.
_ALTERNATIVES = ({"probs", "logits"}, {"covariance_matrix", "precision_matrix", "scale_tril"})
_ATTRIBUTES = {"base_distribution": "base_dist"}  # where it does not have the argument's name
_LEFT_OUT = ("self", "validate_args", "cache_size")


def described(value: Any) -> Any:
    """Return a distribution as ``{"name": "Laplace", "parameters": {"loc": 0.0, "scale": 1.0}}``.

    Arguments that are distributions or transforms themselves are described likewise.

    Args:
        value: A distribution, a transform, or an argument of one.

    Returns:
        Plain values; None where class and arguments do not tell all, as with classes that are not torch's.

    Example:
        >>> described(torch.distributions.Laplace(0.0, 1.0))
        {'name': 'Laplace', 'parameters': {'loc': 0.0, 'scale': 1.0}}
    """
    if isinstance(value, Tensor):
        return value.tolist()
    if isinstance(value, int | float):
        return value
    if isinstance(value, list | tuple):
        items = [described(item) for item in value]
        return None if None in items else items
    kind = type(value)
    if _kinds().get(kind.__name__) is not kind:
        return None
    parameters = {name: described(attribute) for name, attribute in _arguments(value).items()}
    return None if None in parameters.values() else {"name": kind.__name__, "parameters": parameters}


def distribution_from(description: Any) -> Distribution:
    """Build the distribution that :func:`described` describes.

    Args:
        description: ``{"name": ..., "parameters": {...}}``; numbers and nested lists become float64 tensors.

    Raises:
        ConfigError: There is no such distribution, or it does not take such parameters.

    Example:
        >>> distribution_from({"name": "Laplace", "parameters": {"loc": 0.0, "scale": [1.0, 2.0]}})
        Laplace(loc: torch.Size([2]), scale: torch.Size([2]))
    """
    if not isinstance(description, Mapping) or set(description) != {"name", "parameters"}:
        raise ConfigError(f"base: distribution: name and parameters expected; got {description!r}")
    name, parameters = description["name"], description["parameters"]
    if not isinstance(name, str) or name not in _kinds():
        raise ConfigError(f"base: distribution: unknown {name!r}; {nearest(str(name), _kinds())}")
    kind = _kinds()[name]
    known = _signature(kind)
    if not isinstance(parameters, Mapping):
        raise ConfigError(f"base: {name}: parameters by name expected; got {parameters!r}")
    for key in parameters:
        if key not in known:
            raise ConfigError(f"base: {name}: unknown parameter {key!r}; {nearest(str(key), known)}")
    try:
        arguments = {key: _argument(value) for key, value in parameters.items()}
        # Said expressly: importing a compiler switches the checks off for all of torch.distributions.
        return kind(**arguments, **({"validate_args": True} if issubclass(kind, Distribution) else {}))
    except (TypeError, ValueError, RuntimeError, IndexError, AttributeError) as error:
        raise ConfigError(f"base: {name} cannot be built from {dict(parameters)!r:.200}: {first_line(error)}") from None


def _kinds() -> dict[str, type]:
    places = (torch.distributions, torch.distributions.transforms)
    found = {name: getattr(place, name) for place in places for name in place.__all__}
    return {n: k for n, k in found.items() if isinstance(k, type) and issubclass(k, Distribution | Transform)}


def _signature(kind: type) -> dict[str, inspect.Parameter]:
    parameters = inspect.signature(kind.__init__).parameters  # type: ignore[misc]
    return {name: p for name, p in parameters.items() if name not in _LEFT_OUT}


def _arguments(value: Any) -> dict[str, Any]:
    """The arguments that an object was built from, as its attributes show them."""
    found = {}
    for name in _signature(type(value)):
        rivals = next((group for group in _ALTERNATIVES if name in group), set())
        if rivals and name != next((attribute for attribute in vars(value) if attribute in rivals), None):
            continue
        found[name] = getattr(value, _ATTRIBUTES.get(name, name), None)
    return found


def _argument(value: Any) -> Any:
    if isinstance(value, Mapping):
        return distribution_from(value)
    if isinstance(value, list | tuple) and any(isinstance(item, Mapping) for item in value):
        return [_argument(item) for item in value]
    if isinstance(value, list | tuple | float):
        return torch.tensor(value, dtype=torch.float64)
    return value
