"""Methods by name: which density is fitted, of what given what, and how."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import nn

from sciflow.contexts import Context
from sciflow.density import Density
from sciflow.diffusion import Diffusion
from sciflow.errors import ConfigError, nearest
from sciflow.families import build
from sciflow.inference.conditional.embedded import Embedded
from sciflow.inference.conditional.regressed import Regressed
from sciflow.inference.conditional.support import Support
from sciflow.inference.conditional.wrapped import innermost

__all__ = ["METHODS", "Method", "member", "method_of"]


@dataclass(frozen=True)
class Method:
    """One way to posteriors.

    Attributes:
        name: As users call it.
        event: What the density is of; the other is what it is conditioned on.
        model: Family and arguments of the density, where the user names none.
        settings: Of training on few simulations, where the user does not say.
        members: How many densities are fitted.
    """

    name: str
    event: Literal["theta", "x"]
    model: Mapping[str, Any]
    settings: Mapping[str, Any] = field(default_factory=dict)
    members: int = 1

    def settings_for(self, num_simulations: int) -> Mapping[str, Any]:
        """Of training on so many: where they are many, the rules of :func:`sciflow.fit` know better.

        Example:
            >>> sorted(METHODS["npe"].settings_for(1000)), sorted(METHODS["npe"].settings_for(10**6))
            (['batch_size', 'learning_rate', 'max_steps', 'weight_decay'], [])
        """
        return self.settings if num_simulations <= _FEW else {}


# Simulations are few, and a posterior has to be learned for each: small batches, large steps, and what keeps networks
# plain. Measured at 10,000 simulations of five simulators, see tests/benchmarks/inference_c2st.py.
_FEW = 30_000
_SPLINES = {"name": "nsf", "autoregressive": True, "num_transforms": 5, "dropout": 0.1}
_SPARING = {"batch_size": 64, "max_steps": 6000, "learning_rate": 4e-3, "weight_decay": 0.3}
# Networks of noisy parameters see another noise at every step, and have less to learn by heart; to look at log p is
# dear, and done seldom.
_NOISE = {"name": "diffusion", "context_dropout": 0.0, "network": {"mlp": {"hidden_features": (128, 128, 128)}}}
_MATCHING = {"batch_size": 128, "max_steps": 4000, "learning_rate": 2e-3, "weight_decay": 0.1, "validate_every": 250}

METHODS = {
    method.name: method
    for method in (
        Method("npe", "theta", _SPLINES, _SPARING, members=2),
        Method("fmpe", "theta", {"name": "continuousflow"}, _MATCHING, members=2),
        Method("npse", "theta", _NOISE, _MATCHING, members=2),
        Method("nle", "x", _SPLINES, _SPARING),
    )
}


def method_of(name: Any) -> Method:
    """Return a method by its name.

    Raises:
        ConfigError: There is none of this name.

    Example:
        >>> method_of("nle").event
        'x'
    """
    if not isinstance(name, str) or name.lower() not in METHODS:
        raise ConfigError(f"method: unknown {name!r:.80}; {nearest(str(name), METHODS)}")
    return METHODS[name.lower()]


def member(
    method: Method,
    given: Any,
    embedding: Any,
    support: Support,
    x_shape: Sequence[int],
    seed: int,
) -> Density:
    """Build one density.

    Args:
        method: Which way.
        given: A density of the user's, family and arguments, or None for the method's own.
        embedding: A network of observations by name or a module, a kind of context, or None by their shape.
        support: Of the parameters.
        x_shape: Shape of one observation.
        seed: Of the initial weights.

    Raises:
        ConfigError: They do not go together.
    """
    d, size = len(support.low), math.prod(x_shape)
    if isinstance(given, Density):
        _require_fit(given, (d,) if method.event == "theta" else tuple(x_shape), size if method.event == "theta" else d)
        return given
    if given is not None and not isinstance(given, Mapping):
        raise ConfigError(
            "density: a density that is not fitted yet, or a mapping such as {'name': 'nsf'} expected; "
            f"got {given!r:.80}"
        )
    model = {**(method.model if given is None else given)}
    model.setdefault("seed", seed)
    if method.event == "x":
        if embedding is not None:
            raise ConfigError(
                "embedding: method nle is conditioned on parameters, and embeds no observations: leave it out"
            )
        if given is None and len(x_shape) == 1:
            return Regressed(tuple(x_shape), (d,), density=model)
        return build(model, tuple(x_shape), (d,))
    if given is None and embedding is None and len(x_shape) == 1:
        return Regressed((d,), tuple(x_shape), density=model, preprocess=support.preprocess)
    model.setdefault("preprocess", support.preprocess)
    if embedding is None and len(x_shape) > 1:
        embedding = "convolution" if len(x_shape) <= 4 else "mlp"
    if isinstance(embedding, Context):
        if embedding.shape.numel() != size:
            raise ConfigError(
                f"embedding: {embedding!r} has {embedding.shape.numel()} numbers, observations have {size}"
            )
        return build(model, (d,), {"x": embedding})
    if embedding is None:
        return build(model, (d,), (size,))
    if not isinstance(embedding, str | Mapping | nn.Module):
        raise ConfigError(f"embedding: a name, a mapping, a module or a context expected; got {embedding!r:.80}")
    return Embedded((d,), tuple(x_shape), density=model, embedding=embedding)


def unit_of(density: Density) -> str:
    """What validation of a density is in."""
    inner = innermost(density)
    return "bound in nats" if isinstance(inner, Diffusion) else density.unit


def _require_fit(density: Density, event_shape: tuple[int, ...], context_size: int) -> None:
    context = density.context_shape
    found = None if context is None else context.numel()
    if tuple(density.event_shape) != event_shape or found != context_size:
        raise ConfigError(
            f"density: one of events {list(event_shape)} and a context of {context_size} numbers is needed; this is of "
            f"events {list(density.event_shape)} and {'no context' if found is None else f'{found} numbers'}"
        )
