"""Continuous normalizing flow: events drift to noise along a learned velocity."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sciflow.arguments import Arguments, plain, seeded
from sciflow.bijections import context_preprocessing, preprocessing
from sciflow.contexts import ContextShape
from sciflow.density import Density, Likelihood, checked_shape
from sciflow.derivatives import require_graph
from sciflow.errors import ConfigError, nearest
from sciflow.matching import PAIRINGS, paired, require_pairable, spread_evenly
from sciflow.model_file import require_saveable
from sciflow.nets.by_name import doubts_of_channels
from sciflow.nets.by_name import network as build_network
from sciflow.ode.discretised import discretised, jittered
from sciflow.ode.field_flow import FieldFlow
from sciflow.ode.likelihood import likelihood_of, to_events, to_noise
from sciflow.ode.log_det import log_normal
from sciflow.ode.options import checked_tolerance, likelihood_options, usual_tolerance

__all__ = ["ContinuousFlow"]

# With how many times as many steps as other flows: one by likelihood is dear.
_WAYS = {"flow-matching": 3, "likelihood": 1}
# Smaller than those that only draw: log p of a row asks it hundreds of times.
_PERCEPTRON = {"mlp": {"hidden_features": (128, 128, 128)}}
# Noise by the size of events, below which the level that the network is told of hardly changes.
_SOFT = 0.005
# Four times the level at noise; at events it is minus that.
_RANGE = math.log((1 + _SOFT) / _SOFT)
# Of the logarithm of t / (1 - t) while matching: log p is decided where there is little noise.
_MEAN_LEVEL, _STD_LEVEL = -1.2, 1.6
# While training by likelihood: steps, and nats for kinetic energy and roughness.
_STEPS, _REGULAR = 10, 1e-3
# Of the log p by which training is judged, and of draws, in nats.
_JUDGED, _DRAWN = 0.1, 1e-3


class ContinuousFlow(Density):
    r"""A continuous normalizing flow: a velocity that takes events, at time 0, to standard normal noise, at time 1.

    .. math:: \frac{dz}{dt} = v(z, t, c), \qquad
              \log p(y \mid c) = \log N(z_1; 0, 1) + \int_0^1 \operatorname{tr} \frac{\partial v}{\partial z} \, dt

    Any network makes such a map invertible: no halves, no order of the features, no triangular Jacobian. The velocity
    is what standard normal events would have, and what a network adds,

    .. math:: v = \frac{2t - 1}{t^2 + (1 - t)^2} \, z + F\Big(\frac{z}{\sqrt{t^2 + (1 - t)^2}}, \, l, \, c\Big), \qquad
              l = \tfrac14 \log \frac{t + \delta}{1 - t + \delta}

    so that the density begins as a standard normal of the normalised event. Steps of solvers are taken in the level
    :math:`l`, in which both ends are as smooth as the middle. It is trained in two ways:

    - ``"flow-matching"``: no equation is solved. Along straight lines from events to noise :math:`\varepsilon`,

      .. math:: L = E_{t, \varepsilon} \, \big| v\big((1 - t) \, y + t \, \varepsilon, \, t, \, c\big)
                - (\varepsilon - y) \big|^2

      with the logit of the time spread evenly under a normal distribution.
    - ``"likelihood"``: minus log p, by 10 steps of the classical method of Runge and Kutta, moved by chance at every
      batch, and one random probe of the trace for each row. To the loss of a row come 0.001 nats for each unit of
      :math:`\int |v|^2` and of :math:`\int |\partial v / \partial z|^2`, which keep the way short and the velocity
      smooth. A step takes some 150 times as long as one of matching.

    What matching has found training by likelihood may improve. ``sf.fit`` fits the preprocessing again, and on the same
    rows finds the same:

    .. code-block:: python

        sf.fit(flow, rows, seed=0)
        flow.trained_by = "likelihood"
        sf.fit(flow, rows, seed=0, max_steps=100, learning_rate=1e-4)

    ``log_prob`` and ``likelihood`` solve the equation, each row in steps of its own, and know their error; options are
    those of :func:`sciflow.ode.options.likelihood_options`. ``encode`` and ``decode`` take a ``tolerance`` (1e-5 nats),
    and so does ``sample`` (1e-3). In evaluation mode the loss is minus log p at a tolerance of 0.1. Source: Chen et
    al., arXiv:1806.07366; Grathwohl et al., arXiv:1810.01367; Lipman et al., arXiv:2210.02747; Finlay et al.,
    arXiv:2002.02798.

    Args:
        event_shape: Shape of one event: a vector ``[d]``, a series ``[channel, length]``, a field
            ``[channel, height, width]`` or a volume.
        context_shape: What the density is conditioned on: a shape, a context, or several by name, see
            :mod:`sciflow.contexts`.
        trained_by: ``"flow-matching"`` or ``"likelihood"``.
        pairing: Of events and noise while matching: ``"independent"``, or ``"optimal-transport"`` within a batch, for
            straighter ways.
        network: ``"mlp"``, ``"unet"`` or ``"transformer"``, with sizes ``{"mlp": {"hidden_features": (64, 64)}}``; None
            for a perceptron of three layers of 128 for vectors, and a U-Net for the rest; or a module; see
            :func:`sciflow.nets.by_name.network`.
        preprocess: Name or chain of the data-unit bijections, see :func:`sciflow.bijections.preprocessing`.
        seed: Of the initial weights; None draws from torch's own generator.

    Raises:
        ConfigError: An argument is unknown or out of range.

    Example:
        >>> flow = ContinuousFlow((3,), network={"mlp": {"hidden_features": (64, 64)}}, seed=0)
        >>> flow.sample(5, seed=1).shape
        torch.Size([5, 3])
        >>> flow.likelihood(torch.zeros(5, 3), tolerance=1e-4).kind
        'ode'
    """

    family = "continuousflow"
    objective = "objective"
    relative_steps = _WAYS["flow-matching"]

    def __init__(
        self,
        event_shape: Sequence[int],
        context_shape: ContextShape | None = None,
        *,
        trained_by: str = "flow-matching",
        pairing: str = "independent",
        network: str | Mapping[str, Any] | nn.Module | None = None,
        preprocess: str | Mapping[str, Any] | Sequence[str | Mapping[str, Any]] = "standardize",
        seed: int | None = None,
    ) -> None:
        arguments = Arguments("ContinuousFlow")
        arguments.choice("pairing", pairing, PAIRINGS)
        seed = arguments.seed(seed)
        preprocess = plain("preprocess", preprocess)
        shape = checked_shape(event_shape, "event_shape")
        super().__init__(
            shape,
            context_shape,
            preprocess=preprocessing(preprocess, shape),
            preprocess_context=context_preprocessing(context_shape),
            arguments={
                **arguments.values,
                "network": network if isinstance(network, nn.Module) else plain("network", network),
                "preprocess": preprocess,
            },
        )
        require_pairable("ContinuousFlow", pairing, self.contexts)
        self.trained_by = trained_by
        with seeded(seed):
            usual = _PERCEPTRON if len(self.event_shape) == 1 else None
            self.network = build_network(usual if network is None else network, self.event_shape, self.contexts)

    @property
    def trained_by(self) -> str:
        """How it is trained: ``"flow-matching"`` or ``"likelihood"``."""
        way: str = self.arguments["trained_by"]
        return way

    @trained_by.setter
    def trained_by(self, way: str) -> None:
        if not isinstance(way, str) or way not in _WAYS:
            raise ConfigError(f"ContinuousFlow: trained_by: got {way!r:.80}; {nearest(str(way), _WAYS)}")
        self.arguments["trained_by"] = way
        self.relative_steps = _WAYS[way]

    def velocity(self, t: Tensor, z: Tensor, context: Tensor | None = None) -> Tensor:
        """Return dz/dt in normalised units, ``[n, d]``.

        Args:
            t: ``[n]``, times, 0 for events and 1 for noise; or one for all.
            z: ``[n, d]``, events on their way, as vectors.
            context: ``[n, *context_shape]``, normalised, or None.
        """
        size = t.square() + (1 - t).square()
        level = ((t + _SOFT) / (1 - t + _SOFT)).log() / 4
        events = (size.rsqrt().to(z.dtype)[:, None] * z).reshape(-1, *self.event_shape)
        context = None if context is None else context.flatten(1)
        answer: Tensor = self.network(events.to(self.dtype), level.to(self.dtype), context)
        require_graph(answer, events, "network")
        return ((2 * t - 1) / size).to(z.dtype)[:, None] * z + answer.to(z.dtype).flatten(1)

    def doubts(self, layout: Any) -> list[str]:
        """Say so where a dimension of the grid would be taken for channels."""
        return doubts_of_channels(self.network, layout)

    def save(self, path: str | Path) -> Path:
        """Write ``model.safetensors`` and ``model.json`` into the folder ``path``; see :func:`sciflow.load`."""
        require_saveable(path, "this flow", self.arguments)
        return super().save(path)

    # What Density asks for. ------------------------------------------------------------------------------------

    def _log_prob(self, y: Tensor, context: Tensor | None) -> Tensor:
        return self._without_error(y, context, usual_tolerance(y.dtype))

    def _likelihood(self, y: Tensor, context: Tensor | None, method: str | None, **options: Any) -> Likelihood:
        if method not in (None, "ode"):
            raise ConfigError(f"ContinuousFlow knows its log p by method 'ode' alone; got {method!r:.80}")
        chosen = likelihood_options(options, self.event_shape.numel(), y.dtype)
        return likelihood_of(self._flow, self._vectors(y, context), context, chosen, self)

    def _loss(self, y: Tensor, context: Tensor | None, log_det: Tensor) -> Tensor:
        if not self.training:
            return -(self._without_error(y, context, _JUDGED) + log_det)
        if self.trained_by == "likelihood":
            return self._off_likelihood(y.flatten(1), context) - log_det
        # A row outside the support, or with a context that is none, must be told of.
        return torch.where(torch.isfinite(log_det), self._off_match(y, context), torch.nan)

    def _sample(self, n: int, context: Tensor | None, generator: torch.Generator | None, **options: Any) -> Tensor:
        self._require_options("sample", self._decode, options)
        z = torch.randn((n, *self.event_shape), generator=generator, dtype=self.dtype, device=self.device)
        return self._decode(z, context, **{"tolerance": max(_DRAWN, usual_tolerance(z.dtype)), **options})

    def _encode(self, y: Tensor, context: Tensor | None, *, tolerance: float | None = None) -> Tensor:
        tolerance = checked_tolerance("encode", tolerance, y.dtype)
        return to_noise(self._flow, self._vectors(y, context), context, tolerance, self).reshape(y.shape)

    def _decode(self, z: Tensor, context: Tensor | None, *, tolerance: float | None = None) -> Tensor:
        tolerance = checked_tolerance("decode", tolerance, z.dtype)
        return to_events(self._flow, self._vectors(z, context), context, tolerance, self).reshape(z.shape)

    # How it is done. -------------------------------------------------------------------------------------------

    def _rate(self, s: Tensor, z: Tensor, context: Tensor | None) -> Tensor:
        """Return dz/ds, ``[n, d]``, with s the share of the levels that lies behind: networks are smooth in that."""
        ratio = torch.exp(_RANGE * (2 * s - 1))
        t = ((1 + _SOFT) * ratio - _SOFT) / (1 + ratio)
        pace = 2 * _RANGE * (1 + 2 * _SOFT) * ratio / (1 + ratio).square()
        return pace.to(z.dtype)[:, None] * self.velocity(t, z, context)

    def _flow(self, context: Tensor | None) -> FieldFlow:
        return FieldFlow(self._rate, context)

    def _without_error(self, y: Tensor, context: Tensor | None, tolerance: float) -> Tensor:
        chosen = likelihood_options({"tolerance": tolerance}, self.event_shape.numel(), y.dtype)
        flow = lambda c: FieldFlow(self._rate, c, with_error=False)  # noqa: E731
        return likelihood_of(flow, self._vectors(y, context), context, chosen, self).log_prob

    def _vectors(self, rows: Tensor, context: Tensor | None) -> Tensor:
        """Rows as vectors; NaN where their context is none, of which networks know nothing."""
        vectors = rows.flatten(1)
        return vectors if context is None else vectors.masked_fill(~self.knows(context)[:, None], torch.nan)

    def _off_match(self, y: Tensor, context: Tensor | None) -> Tensor:
        """Mean squares of what the velocity of rows is off, ``[n]``."""
        noise = torch.randn_like(y)
        if self.arguments["pairing"] == "optimal-transport":
            noise = paired(noise, y)
        y, noise = y.flatten(1), noise.flatten(1)
        normal = torch.special.ndtri(spread_evenly(len(y), y.device))
        t = torch.sigmoid(_MEAN_LEVEL + _STD_LEVEL * normal)
        share = t.to(y.dtype)[:, None]
        off = self.velocity(t, (1 - share) * y + share * noise, context) - (noise - y)
        return off.square().mean(1)

    def _off_likelihood(self, y: Tensor, context: Tensor | None) -> Tensor:
        """Minus log p of rows in normalised units, and what keeps the velocity smooth, ``[n]``."""
        probes = 2 * torch.randint_like(y, 2) - 1
        found = discretised(lambda s, z: self._rate(s, z, context), y, jittered(_STEPS, y.device), probes)
        return _REGULAR * (found.kinetic + found.roughness) - log_normal(found.end).to(y.dtype) - found.log_det

    def __repr__(self) -> str:
        context = "" if self.contexts is None else f", {self.contexts!r}"
        return (
            f"ContinuousFlow(event_shape={tuple(self.event_shape)}{context}, trained_by={self.trained_by!r}, "
            f"{sum(p.numel() for p in self.parameters()):,} parameters)"
        )
