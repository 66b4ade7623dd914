"""A normalizing flow: a bijection to noise, and so an exact density."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from sciflow.arguments import plain, seeded
from sciflow.bijections import Angles, Bijection, context_preprocessing, preprocessing
from sciflow.contexts import ContextShape
from sciflow.density import Likelihood, Status, checked_shape
from sciflow.errors import ConfigError
from sciflow.flows.base import Base, FullGaussianMixture, OnCircles, base_density
from sciflow.flows.context_features import ContextFeatures
from sciflow.flows.reparametrised import Draws, Reparametrised, frozen
from sciflow.kernels import repeated

__all__ = ["Flow"]

_SAMPLE_ROWS = 65536  # drawn at a time: the splines of one row take some hundred times the memory of the row


class Flow(Reparametrised):
    r"""The density of noise, seen through a bijection.

    .. math:: \log p_Y(y \mid c) = \log p_Z(z) + \log |\det \partial z / \partial y|, \qquad z = f(y \mid c)

    Sampling is the inverse of :math:`f` at noise drawn from :math:`p_Z`. From Rezende and Mohamed, arXiv:1505.05770.

    Args:
        transform: Bijection of the event, or of the flattened event, data to noise; its context is flattened, or what
            :class:`sciflow.flows.context_features.ContextFeatures` makes of contexts by name.
        event_shape: Shape of one event.
        context_shape: What the density is conditioned on: a shape, a context, contexts by name, or None.
        base: Density of the noise, see :func:`sciflow.flows.base.base_density`.
        preprocess: Name or chain of the data-unit bijections, see :func:`sciflow.bijections.preprocessing`.
        periods: Periods of the elements that are periodic, by place in the flattened event; the transform takes them
            as angles in [-pi, pi], and base and preprocessing are those of the others.
        arguments: The constructor's other arguments, as JSON can hold them.
    """

    #: Whether log p of given rows costs one pass: then path gradients do, too.
    one_pass: ClassVar[bool] = True

    def __init__(
        self,
        transform: Bijection,
        event_shape: Sequence[int],
        context_shape: ContextShape | None = None,
        *,
        base: Any,
        preprocess: str | Mapping[str, Any] | Sequence[str | Mapping[str, Any]],
        periods: Mapping[int, float] | None = None,
        arguments: dict[str, Any],
    ) -> None:
        preprocess = plain("preprocess", preprocess)
        with seeded(arguments.get("seed")):
            noise, to_normal_units = _ends(base, preprocess, checked_shape(event_shape, "event_shape"), periods or {})
        super().__init__(
            event_shape,
            context_shape,
            preprocess=to_normal_units,
            preprocess_context=context_preprocessing(context_shape),
            arguments={**arguments, "base": noise.specification, "preprocess": preprocess},
        )
        self.transform = transform
        self.base = noise
        with seeded(arguments.get("seed")):
            self.features = None if self.contexts is None else ContextFeatures(self.contexts)

    @property
    def latent_angles(self) -> Sequence[int]:
        return self.base.angles

    def draw(self, n: int, generator: torch.Generator, wide: float = 0.0) -> Draws:
        """Draw as :meth:`Reparametrised.draw` says; only a base of full Gaussians has heavy tails besides its own."""
        if isinstance(self.base, FullGaussianMixture):
            z, component = self.base.draw(n, generator, wide)
            chosen = self.base.log_weights[component]
            share = torch.exp(chosen - chosen.detach()) / n
        else:
            z = self.base.sample(n, generator, self.dtype, self.device)
            share = z.new_full((n,), 1 / max(1, n))
        y, log_det = self.transform.inverse(self._shaped(z))
        x, log_units = self.preprocess.inverse(y.reshape(z.shape))  # type: ignore[operator]
        return Draws(x, self._log_noise(z, wide) - log_det - log_units, share)

    def draw_along_paths(self, n: int, generator: torch.Generator, even: bool = False) -> Draws:
        drawn = self.draw(n, generator)
        if not self.one_pass:
            return drawn
        with frozen(self):
            return replace(drawn, log_q=self.log_prob(drawn.x))

    def log_prob_of_draws(self, x: Tensor, wide: float) -> Tensor:
        """log p ``[n]`` of rows ``[n, *event_shape]`` under what :meth:`draw` draws from, wide tails included."""
        y, log_units = self.preprocess(x)
        z, log_det = self.transform(self._shaped(y))
        return self._log_noise(z.reshape(y.shape), wide) + log_det + log_units

    def _log_noise(self, z: Tensor, wide: float) -> Tensor:
        log_base = self.base.log_prob(z)
        if not wide or not isinstance(self.base, FullGaussianMixture):
            return log_base
        return torch.logaddexp(math.log1p(-wide) + log_base, math.log(wide) + self.base.log_prob_wide(z))

    def _log_prob(self, y: Tensor, context: Tensor | None) -> Tensor:
        z, log_det = self.transform(self._shaped(y), context)
        return self.base.log_prob(z.reshape(y.shape)) + log_det

    def _likelihood(self, y: Tensor, context: Tensor | None, method: str | None, **options: Any) -> Likelihood:
        if method not in (None, "exact"):
            raise ConfigError(f"{type(self).__name__} knows its log p by method 'exact' alone; got {method!r}")
        if options:
            raise ConfigError(f"method 'exact' takes no options; got {', '.join(options)}")
        log_prob = self._log_prob(y, context)
        return Likelihood(
            log_prob=log_prob,
            error=torch.zeros_like(log_prob),
            nfe=torch.ones_like(log_prob, dtype=torch.int32),
            status=torch.full_like(log_prob, Status.OK, dtype=torch.int32),
            kind="exact",
        )

    def _sample(self, n: int, context: Tensor | None, generator: torch.Generator | None, **options: Any) -> Tensor:
        if options:
            raise ConfigError(f"sampling from {type(self).__name__} takes no options; got {', '.join(options)}")
        z = self.base.sample(n, generator, self.dtype, self.device)
        parts = z.split(_SAMPLE_ROWS)
        contexts = [None] * len(parts) if context is None else context.split(_SAMPLE_ROWS)
        with repeated(len(parts)):
            return torch.cat([self._decode(part, c) for part, c in zip(parts, contexts, strict=True)])

    def _encode(self, y: Tensor, context: Tensor | None) -> Tensor:
        z, _ = self.transform(self._shaped(y), context)
        return z.reshape(y.shape)

    def _decode(self, z: Tensor, context: Tensor | None) -> Tensor:
        y, _ = self.transform.inverse(self._shaped(z), context)
        return y.reshape(z.shape)

    def _normalise_context(self, context: Tensor | None) -> Tensor | None:
        """The features ``[n, num_features]`` that the transform is conditioned on."""
        context = super()._normalise_context(context)
        return None if context is None or self.features is None else self.features(context.flatten(1))

    def _shaped(self, rows: Tensor) -> Tensor:
        """Events as the transform takes them: as they are, or flattened."""
        return rows.reshape(-1, *self.transform.event_shape)

    def __repr__(self) -> str:
        conditions = self.conditions
        what = conditions and (conditions.contexts if conditions.declared else tuple(conditions.shape))
        return (
            f"{type(self).__name__}(event_shape={tuple(self.event_shape)}, context_shape={what}, "
            f"{self._summary()}{sum(p.numel() for p in self.parameters()):,} parameters)"
        )

    def _summary(self) -> str:
        """What ``repr`` says of the architecture; ends with a comma and a space."""
        return f"num_transforms={self.arguments['num_transforms']}, "


def _ends(base: Any, preprocess: Any, event_shape: torch.Size, periods: Mapping[int, float]) -> tuple[Base, Bijection]:
    """Both ends of a flow: the density of the noise, and the way from data units."""
    if not periods:
        return base_density(base, event_shape), preprocessing(preprocess, event_shape)
    num_others = event_shape.numel() - len(periods)
    # Where there are no others, what is said of them must be valid all the same.
    shape = (max(1, num_others),)
    noise, units = base_density(base, shape), preprocessing(preprocess, shape)
    if units.num_draws:
        raise ConfigError("preprocess: values on a grid beside periodic ones cannot be dequantised yet: leave it out")
    if num_others == 0:
        return OnCircles(event_shape, list(periods), None), Angles(event_shape, periods, None)
    return OnCircles(event_shape, list(periods), noise), Angles(event_shape, periods, units)
