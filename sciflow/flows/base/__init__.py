"""The density of the noise that a flow maps events to."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch.distributions import Distribution

from sciflow.errors import ConfigError, ShapeError, nearest
from sciflow.flows.base.circle import OnCircles
from sciflow.flows.base.contract import Base
from sciflow.flows.base.description import distribution_from
from sciflow.flows.base.distribution import TorchDistribution
from sciflow.flows.base.full_mixture import FullGaussianMixture
from sciflow.flows.base.mixture import GaussianMixture
from sciflow.flows.base.normal import StandardNormal
from sciflow.flows.base.student_t import StudentT

__all__ = [
    "Base",
    "FullGaussianMixture",
    "GaussianMixture",
    "OnCircles",
    "StandardNormal",
    "StudentT",
    "TorchDistribution",
    "base_density",
]

_KINDS: dict[str, Callable[..., Base]] = {
    "normal": StandardNormal,
    "student_t": StudentT,
    "gaussian_mixture": GaussianMixture,
    "full_gaussian_mixture": FullGaussianMixture,
}


def base_density(base: Any, event_shape: Sequence[int]) -> Base:
    """Build the density of the noise that a constructor, a workflow or a model file names.

    Args:
        base: ``"normal"``, ``"student_t"``, ``"gaussian_mixture"``, ``"full_gaussian_mixture"``; with options, such as
            ``{"gaussian_mixture": {"num_components": 4}}``; a distribution of ``torch.distributions``, or in a file
            ``{"distribution": {"name": "Laplace", "parameters": {"loc": 0.0, "scale": 1.0}}}``; or a :class:`Base`.
        event_shape: Shape of one event.

    Raises:
        ConfigError: There is no such density, or it does not take these options.
        ShapeError: It is for events of another shape.

    Example:
        >>> base_density({"student_t": {"degrees_of_freedom": 3}}, (2,)).specification
        {'student_t': {'degrees_of_freedom': 3.0}}
        >>> base_density("student", (2,))
        Traceback (most recent call last):
        sciflow.errors.ConfigError: base: unknown 'student'; did you mean student_t?
    """
    if isinstance(base, Base):
        if base.event_shape != tuple(event_shape):
            raise ShapeError(f"base: made for events of shape {list(base.event_shape)}, not {list(event_shape)}")
        return base
    if isinstance(base, Distribution):
        return TorchDistribution(base, event_shape)
    name, options = next(iter(base.items())) if isinstance(base, Mapping) and len(base) == 1 else (base, None)
    if name == "distribution":
        return TorchDistribution(distribution_from(options), event_shape)
    if not isinstance(name, str) or name not in _KINDS:
        raise ConfigError(f"base: unknown {name!r}; {nearest(str(name), [*_KINDS, 'distribution'])}")
    if not isinstance(options or {}, Mapping):
        raise ConfigError(f"base: {name} takes options by name; got {options!r}")
    try:
        return _KINDS[name](event_shape, **(options or {}))
    except TypeError:
        raise ConfigError(f"base: {name} does not take {options!r}") from None
