"""Glow: affine coupling with learned mixing of the channels, at several scales of a field."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from sciflow.arguments import Arguments, seeded
from sciflow.bijections import (
    ActNorm,
    Bijection,
    Composite,
    LULinear,
    OnFirstChannels,
    Pointwise,
    ShiftScale,
    Squeezed,
    initialise,
    squeezed_shape,
)
from sciflow.contexts import ContextShape
from sciflow.flows.coupling import Couplings, checked_scales
from sciflow.flows.flow import Flow
from sciflow.flows.sizes import Sizes
from sciflow.modes import in_evaluation_mode

__all__ = ["Glow"]

# Of the rows that ActNorm begins from: enough for a mean and a variance, little beside a step's memory.
_MOST_ROWS, _MOST_VALUES, _LEAST_ROWS = 4096, 1 << 20, 32


class Glow(Flow):
    r"""Generative flow with invertible 1 x 1 convolutions, Kingma and Dhariwal, arXiv:1807.03039.

    .. math:: f = (\mathrm{coupling}_n \circ \mathrm{LU}_n \circ \mathrm{actnorm}_n) \circ \dots
                  \circ (\mathrm{coupling}_1 \circ \mathrm{LU}_1 \circ \mathrm{actnorm}_1)

    Each transform normalises the features, mixes them linearly in a random order, and then maps one half of them by
    :math:`x \, e^s + t`, with s and t read off the other half (and the context) by a network.

    Fields ``[channel, height, width]`` keep their shape, and networks are convolutions. At every scale the field is
    squeezed to half its height and width and four times its channels; then come the transforms, where the mixing is a
    1 x 1 convolution; then half of the channels are standardised by what a network makes of the other half, a learned
    conditional normal, and are done with; the other half goes on to the next scale. A field that is not squeezed, for
    a side is odd, gets the transforms alone. A context is flattened and adds a bias to the first layer of each
    network. Events of any other shape are flattened to vectors.

    The normalisation begins from the training rows: from those that :meth:`fit_preprocessing` is given, as
    :func:`sciflow.fit` and training on several workers do, or else from the first batch in training mode. Before
    that, the flow is a standard normal of the normalised event.

    Args:
        event_shape: Shape of one event.
        context_shape: What the density is conditioned on: a shape, a context, contexts by name, or None; see
            :mod:`sciflow.contexts`.
        num_transforms: Triples of normalisation, mixing and coupling; of a field, at every scale.
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
        >>> flow = Glow(event_shape=(2, 4, 4), num_transforms=2, hidden_features=(16, 16), seed=0)
        >>> flow
        Glow(event_shape=(2, 4, 4), context_shape=None, num_transforms=2, 26,024 parameters)
        >>> flow.log_prob(torch.zeros(5, 2, 4, 4)).shape, flow.sample(5, seed=1).shape
        (torch.Size([5]), torch.Size([5, 2, 4, 4]))
    """

    family = "glow"

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
        arguments = Arguments("Glow")
        sizes = Sizes.checked(arguments, event_shape, context_shape, num_transforms, hidden_features, dropout)
        couplings = Couplings(ShiftScale(), sizes, checked_scales(arguments, num_scales, sizes.event_shape))
        with seeded(arguments.seed(seed)):
            chain = _scales(couplings, couplings.shape, couplings.num_scales)
        super().__init__(
            chain,
            sizes.event_shape,
            sizes.context_shape,
            base=base,
            preprocess=preprocess,
            arguments=arguments.values,
        )

    def fit_preprocessing(self, x: Any, context: Any = None) -> None:
        """Fit the data-unit bijections on training rows, and let a new flow's normalisation begin from some of them."""
        super().fit_preprocessing(x, context)
        rows, c, _ = self._rows(x, context)
        most = min(_MOST_ROWS, max(_LEAST_ROWS, _MOST_VALUES // self.event_shape.numel()))
        # From all over the rows, and not at equal distances: they may be hours, and every 24th is the same of a day.
        some = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))[:most].to(rows.device)
        with torch.no_grad(), in_evaluation_mode(self):
            y, c, _ = self._normalise_rows(rows[some], None if c is None else c[some], 0)
            initialise(self.transform, self._shaped(y), c)


def _scales(couplings: Couplings, shape: torch.Size, num_scales: int) -> Bijection:
    """The transforms of one scale of a field ``shape``, and within them those of all smaller ones."""
    if num_scales == 0:
        return Composite(_transforms(couplings, shape))
    channels, height, width = squeezed = squeezed_shape(shape)
    chain = _transforms(couplings, squeezed)
    if num_scales > 1:
        kept = torch.Size((channels // 2, height, width))
        chain.append(couplings.field(squeezed, "channel"))
        chain.append(OnFirstChannels(_scales(couplings, kept, num_scales - 1), squeezed))
    return Squeezed(Composite(chain), shape)


def _transforms(couplings: Couplings, shape: torch.Size) -> list[Bijection]:
    chain: list[Bijection] = []
    for i in range(couplings.sizes.num_transforms):
        mixing = LULinear(torch.randperm(shape[0]))
        keep_last = i % 2 == 1
        chain.append(ActNorm(shape))
        if couplings.is_field:
            chain += [Pointwise(mixing, shape), couplings.field(shape, "channel", keep_last)]
        else:
            chain += [mixing, couplings.vector(shape[0], keep_last)]
    return chain
