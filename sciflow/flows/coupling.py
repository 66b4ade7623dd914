"""What the flows by coupling have in common: couplings of vectors and of fields, and chains of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch

from sciflow.arguments import Arguments
from sciflow.bijections import (
    Bijection,
    Composite,
    Coupling,
    FieldCoupling,
    Permutation,
    Pointwise,
    Squeezed,
    Univariate,
    squeezed_shape,
)
from sciflow.flows.sizes import Sizes
from sciflow.nets import ResidualConvolution, ResidualMLP

__all__ = ["Couplings", "alternating", "checked_scales"]

_DEFAULT_MOST_SCALES = 3


@dataclass(frozen=True)
class Couplings:
    """The couplings that a flow is chained of.

    An event of three dimensions is a field ``[channel, height, width]``; any other is flattened to a vector.

    Attributes:
        univariate: What is coupled.
        sizes: Of the flow; transforms are those of a vector, or of every scale of a field.
        num_scales: How often a field is squeezed.

    Example:
        >>> from sciflow.bijections import Shift
        >>> sizes = Sizes(torch.Size((3, 8, 12)), None, num_transforms=4, hidden_features=(16,), dropout=0.0)
        >>> Couplings(Shift(), sizes, 2).field((3, 8, 12), "channel").event_shape
        torch.Size([3, 8, 12])
    """

    univariate: Univariate
    sizes: Sizes
    num_scales: int

    @property
    def is_field(self) -> bool:
        """Whether the event is a field."""
        return len(self.sizes.event_shape) == 3

    @property
    def shape(self) -> torch.Size:
        """Shape of the event as it is transformed: a field's own, or that of the flattened vector."""
        return self.sizes.event_shape if self.is_field else torch.Size((self.sizes.num_features,))

    def vector(self, num_features: int, keep_last: bool = False) -> Coupling:
        """A coupling of a vector, by a residual network."""
        network = partial(ResidualMLP, hidden_features=self.sizes.hidden_features, dropout=self.sizes.dropout)
        return Coupling(num_features, self.univariate, network, self.sizes.num_context, keep_last)

    def field(
        self, shape: Sequence[int], mask: Literal["checkerboard", "channel"], keep_last: bool = False
    ) -> FieldCoupling:
        """A coupling of a field, by a residual convolutional network."""
        network = partial(ResidualConvolution, hidden_features=self.sizes.hidden_features, dropout=self.sizes.dropout)
        return FieldCoupling(shape, self.univariate, network, mask, self.sizes.num_context, keep_last)


def alternating(couplings: Couplings) -> list[Bijection]:
    """Couplings alone, as NICE and RealNVP chain them: what one keeps, the next maps.

    A vector is reordered at random before every pair. A field gets checkerboards for the first half of its
    couplings; then it is squeezed, and its channels take turns for the other half; and so on at every scale.

    Example:
        >>> from sciflow.bijections import Shift
        >>> sizes = Sizes(torch.Size((3,)), None, num_transforms=4, hidden_features=(16,), dropout=0.0)
        >>> len(alternating(Couplings(Shift(), sizes, 0)))
        5
    """
    if couplings.is_field:
        return _alternating_scales(couplings, couplings.shape, couplings.num_scales)
    num_features = couplings.sizes.num_features
    return list(
        _in_turns(
            couplings.sizes.num_transforms,
            partial(couplings.vector, num_features),
            lambda: Permutation(torch.randperm(num_features)),
        )
    )


def checked_scales(arguments: Arguments, num_scales: int | None, event_shape: torch.Size) -> int:
    """How often a field is squeezed; None for as often as both sides can be halved, at most 3 times.

    Raises:
        ConfigError: The sides cannot be halved as often, or the event is no field.

    Example:
        >>> checked_scales(Arguments("Glow"), None, torch.Size((1, 12, 8)))
        2
    """
    if len(event_shape) != 3:
        expected = "left out, but for fields [channel, height, width]"
        arguments.require("num_scales", num_scales, num_scales is None, expected)
        most = 0
    else:
        most = min(_times_halved(side) for side in event_shape[1:])
    if num_scales is None:
        arguments.values["num_scales"] = None
        return min(most, _DEFAULT_MOST_SCALES)
    chosen = arguments.whole("num_scales", num_scales, 0, 64)
    _, height, width = event_shape
    expected = f"0 to {most} for a field {height} x {width}, whose sides must be even to be halved (crop or pad it)"
    arguments.require("num_scales", num_scales, chosen <= most, expected)
    return chosen


def _alternating_scales(couplings: Couplings, shape: torch.Size, num_scales: int) -> list[Bijection]:
    by_channel = couplings.sizes.num_transforms // 2
    by_place = couplings.sizes.num_transforms - by_channel
    chain: list[Bijection] = [couplings.field(shape, "checkerboard", i % 2 == 1) for i in range(by_place)]
    inner_shape = shape if num_scales == 0 else squeezed_shape(shape)
    inner = list(
        _in_turns(
            by_channel,
            partial(couplings.field, inner_shape, "channel"),
            lambda: Pointwise(Permutation(torch.randperm(inner_shape[0])), inner_shape),
        )
    )
    if num_scales == 0:
        return chain + inner
    if num_scales > 1:
        inner += _alternating_scales(couplings, inner_shape, num_scales - 1)
    return [*chain, Squeezed(Composite(inner), shape)] if inner else chain


def _in_turns(
    number: int, coupling: Callable[[bool], Bijection], shuffle: Callable[[], Bijection]
) -> Iterator[Bijection]:
    """Couplings whose parts take turns, reordered between one pair and the next."""
    for i in range(number):
        if i % 2 == 0 and i > 0:
            yield shuffle()
        yield coupling(i % 2 == 1)


def _times_halved(side: int) -> int:
    """How often a number is even, halved and halved again."""
    return (side & -side).bit_length() - 1
