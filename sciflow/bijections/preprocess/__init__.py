"""From data units to numbers near zero: bijections that are fitted to rows, saved with the model, and counted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sciflow.bijections.base import Bijection
from sciflow.bijections.composite import Composite
from sciflow.bijections.identity import Identity
from sciflow.bijections.preprocess.angles import Angles
from sciflow.bijections.preprocess.bounds import Log, Log1p, Logit
from sciflow.bijections.preprocess.dequantize import Dequantize
from sciflow.bijections.preprocess.preprocessor import Preprocessor
from sciflow.bijections.preprocess.rescale import Rescale
from sciflow.bijections.preprocess.standardize import Standardize
from sciflow.bijections.preprocess.variational import VariationalDequantize
from sciflow.bijections.some import OnSome
from sciflow.errors import ConfigError, nearest

__all__ = [
    "Angles",
    "Dequantize",
    "Log",
    "Log1p",
    "Logit",
    "Preprocessor",
    "Rescale",
    "Standardize",
    "VariationalDequantize",
    "preprocessing",
]

_KINDS: dict[str, type[Bijection]] = {
    "none": Identity,
    "standardize": Standardize,
    "rescale": Rescale,
    "log": Log,
    "log1p": Log1p,
    "logit": Logit,
    "dequantize": Dequantize,
    "variational_dequantize": VariationalDequantize,
}


def preprocessing(
    names: str | Mapping[str, Any] | Sequence[str | Mapping[str, Any]],
    event_shape: Sequence[int],
    unit_size: bool = False,
) -> Bijection:
    """Build the chain from data units that a workflow or model file names.

    Args:
        names: One name or several, applied in order: ``"standardize"``, ``"rescale"``, ``"log"``, ``"log1p"``,
            ``"logit"``, ``"dequantize"``, ``"variational_dequantize"``, ``"none"``; with options, a mapping such as
            ``{"logit": {"low": 0, "high": 1}}``. Of a vector event, ``"features"`` says which ones alone it is for,
            such as ``{"log": {"features": [0, 3]}}``.
        event_shape: Shape of one event.
        unit_size: Rescale what comes out to mean 0 and standard deviation 1 overall, unless the chain ends with that.

    Raises:
        ConfigError: A name or an option is unknown, or a dequantisation is not the first of the chain.

    Example:
        >>> len(preprocessing(["log1p", "standardize"], (3,)).bijections)
        2
        >>> preprocessing("standardise", (3,))
        Traceback (most recent call last):
        sciflow.errors.ConfigError: preprocess: unknown 'standardise'; did you mean standardize?
    """
    steps = [names] if isinstance(names, str | Mapping) or not isinstance(names, Sequence) else list(names)
    if unit_size and (not steps or steps[-1] not in ("standardize", "rescale")):
        steps.append("rescale")
    bijections = [_build(step, event_shape) for step in steps]
    if not bijections:
        return Identity(event_shape)
    if any(bijection.num_draws for bijection in bijections[1:]):
        raise ConfigError("preprocess: dequantisation comes first, and once: the grid is one of the data's own units")
    return bijections[0] if len(bijections) == 1 else Composite(bijections)


def _build(step: str | Mapping[str, Any], event_shape: Sequence[int]) -> Bijection:
    if isinstance(step, Mapping):
        if len(step) != 1:
            raise ConfigError(f"preprocess: one name with its options expected; got {dict(step)}")
        name, options = next(iter(step.items()))
    else:
        name, options = step, None
    if not isinstance(name, str) or name not in _KINDS:
        raise ConfigError(f"preprocess: unknown {name!r}; {nearest(str(name), _KINDS)}")
    if not isinstance(options or {}, Mapping):
        raise ConfigError(f"preprocess: {name} takes options by name; got {options!r}")
    others = dict(options or {})
    features = others.pop("features", None)
    try:
        if features is None:
            return _KINDS[name](event_shape, **others)
        places = _checked_features(name, features, event_shape)
        return OnSome(_KINDS[name]((len(places),), **others), places, event_shape[0])
    except TypeError:
        raise ConfigError(f"preprocess: {name} does not take {options}") from None


def _checked_features(name: str, features: Any, event_shape: Sequence[int]) -> list[int]:
    if len(event_shape) != 1:
        raise ConfigError(f"preprocess: {name}: features are those of a vector; events have shape {list(event_shape)}")
    if issubclass(_KINDS[name], Dequantize):
        raise ConfigError(f"preprocess: {name} is for all features: where the steps are small, so is the noise")
    places = list(features) if isinstance(features, Sequence) and not isinstance(features, str) else []
    whole = all(isinstance(place, int) and not isinstance(place, bool) for place in places)
    if not (places and whole and len(set(places)) == len(places) and all(0 <= p < event_shape[0] for p in places)):
        expected = f"places from 0 to {event_shape[0] - 1}, each once"
        raise ConfigError(f"preprocess: {name}: features must be {expected}; got {features!r}")
    return places
