"""RealNVP: affine coupling, the plainest flow that is quick both ways."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sciflow.arguments import Arguments, seeded
from sciflow.bijections import Composite, ShiftScale
from sciflow.contexts import ContextShape
from sciflow.flows.coupling import Couplings, alternating, checked_scales
from sciflow.flows.flow import Flow
from sciflow.flows.sizes import Sizes

__all__ = ["RealNVP"]


class RealNVP(Flow):
    r"""Real-valued non-volume-preserving flow, Dinh et al., arXiv:1605.08803.

    .. math:: f = \mathrm{coupling}_n \circ \dots \circ \mathrm{coupling}_1, \qquad
              \mathrm{coupling}: \; z_a = x_a, \; z_b = x_b \, e^{s(x_a, c)} + t(x_a, c)

    A network reads scale and shift of one half of the event off the other half; the halves take turns, and every pair
    of couplings takes halves of its own, drawn at random. It starts as a standard normal of the normalised event. A
    single feature without context can only become a normal one; :class:`sciflow.flows.NSF` bends it.

    Fields ``[channel, height, width]`` keep their shape: the networks are convolutions, the halves are those of a
    checkerboard and then, of the squeezed field, its channels, at every scale; a context is flattened and adds a bias
    to the first layer of each network. No part of the field is left alone before the others, as the paper does to
    save memory. Events of any other shape are flattened to vectors.

    Args:
        event_shape: Shape of one event.
        context_shape: What the density is conditioned on: a shape, a context, contexts by name, or None; see
            :mod:`sciflow.contexts`.
        num_transforms: Couplings; of a field, at every scale.
        num_scales: How often a field is squeezed to half its height and width; None for as often as both sides can
            be halved, at most 3 times.
        hidden_features: Hidden widths of each network; equal neighbours make residual blocks.
        dropout: Of the networks, while training.
        base: Density of the noise, see :func:`sciflow.flows.base.base_density`.
        preprocess: Name or chain of the data-unit bijections, see :func:`sciflow.bijections.preprocessing`.
        seed: Of the initial weights and orders; None draws from torch's own generator.

    Raises:
        ConfigError: An argument is out of range.

    Example:
        >>> import torch
        >>> flow = RealNVP(event_shape=(3,), num_transforms=2, hidden_features=(64, 64), seed=0)
        >>> flow
        RealNVP(event_shape=(3,), context_shape=None, num_transforms=2, 17,416 parameters)
        >>> flow.log_prob(torch.zeros(5, 3)).shape, flow.sample(5, seed=1).shape
        (torch.Size([5]), torch.Size([5, 3]))
    """

    family = "realnvp"

    def __init__(
        self,
        event_shape: Sequence[int],
        context_shape: ContextShape | None = None,
        *,
        num_transforms: int = 8,
        num_scales: int | None = None,
        hidden_features: Sequence[int] = (128, 128),
        dropout: float = 0.0,
        base: Any = "normal",
        preprocess: str | Mapping[str, Any] | Sequence[str | Mapping[str, Any]] = "standardize",
        seed: int | None = None,
    ) -> None:
        arguments = Arguments("RealNVP")
        sizes = Sizes.checked(arguments, event_shape, context_shape, num_transforms, hidden_features, dropout)
        couplings = Couplings(ShiftScale(), sizes, checked_scales(arguments, num_scales, sizes.event_shape))
        with seeded(arguments.seed(seed)):
            chain = Composite(alternating(couplings))
        super().__init__(
            chain,
            sizes.event_shape,
            sizes.context_shape,
            base=base,
            preprocess=preprocess,
            arguments=arguments.values,
        )
