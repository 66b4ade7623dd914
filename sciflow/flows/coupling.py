"""What the flows by coupling have in common: their arguments, and couplings of vectors and of fields."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Literal

import torch

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
from sciflow.flows.arguments import MOST_TRANSFORMS, Arguments
from sciflow.nets import ResidualConvolution, ResidualMLP

__all__ = ["Couplings", "alternating"]

_DEFAULT_MOST_SCALES = 3


class Couplings:
    """The checked arguments of a flow by coupling, and the couplings that they describe.

    An event of three dimensions is a field ``[channel, height, width]``; any other is flattened to a vector.

    Args:
        family: Name of the class, which begins every error.
        univariate: What is coupled.
        event_shape: Shape of one event.
        context_shape: Shape of what the density is conditioned on, or None.
        num_transforms: Of a vector, or of every scale of a field.
        num_scales: How often a field is squeezed; None for as often as both sides can be halved, at most 3 times.
        hidden_features: Hidden widths of each network.
        dropout: Of the networks, while training.
        seed: Of the initial weights and orders.

    Raises:
        ConfigError: An argument is out of range, or the sides of the field cannot be halved as often.

    Example:
        >>> from sciflow.bijections import Shift
        >>> shared = Couplings("NICE", Shift(), (3, 8, 12), None, 4, None, (16,), 0.0, None)
        >>> shared.num_scales, shared.field((3, 8, 12), "channel").event_shape
        (2, torch.Size([3, 8, 12]))
    """

    def __init__(
        self,
        family: str,
        univariate: Univariate,
        event_shape: Sequence[int],
        context_shape: Sequence[int] | None,
        num_transforms: int,
        num_scales: int | None,
        hidden_features: Sequence[int],
        dropout: float,
        seed: int | None,
    ) -> None:
        checked = Arguments(family)
        self.univariate = univariate
        self.event_shape = checked.shape("event_shape", event_shape)
        self.context_shape = None if context_shape is None else checked.shape("context_shape", context_shape)
        self.num_context = 0 if self.context_shape is None else self.context_shape.numel()
        self.num_transforms = checked.whole("num_transforms", num_transforms, 1, MOST_TRANSFORMS)
        self.is_field = len(self.event_shape) == 3
        self.num_scales = _num_scales(checked, num_scales, self.event_shape)
        self.hidden_features = checked.widths("hidden_features", hidden_features)
        self.dropout = checked.fraction("dropout", dropout)
        self.seed = checked.seed(seed)
        self.values: dict[str, Any] = checked.values

    @property
    def shape(self) -> torch.Size:
        """Shape of the event as it is transformed: a field's own, or that of the flattened vector."""
        return self.event_shape if self.is_field else torch.Size((self.event_shape.numel(),))

    def vector(self, num_features: int, keep_last: bool = False) -> Coupling:
        """A coupling of a vector, by a residual network."""
        network = partial(ResidualMLP, hidden_features=self.hidden_features, dropout=self.dropout)
        return Coupling(num_features, self.univariate, network, self.num_context, keep_last)

    def field(
        self, shape: Sequence[int], mask: Literal["checkerboard", "channel"], keep_last: bool = False
    ) -> FieldCoupling:
        """A coupling of a field, by a residual convolutional network."""
        network = partial(ResidualConvolution, hidden_features=self.hidden_features, dropout=self.dropout)
        return FieldCoupling(shape, self.univariate, network, mask, self.num_context, keep_last)


def alternating(couplings: Couplings) -> list[Bijection]:
    """Couplings alone, as NICE and RealNVP chain them: what one keeps, the next maps.

    A vector is reordered at random before every pair. A field gets checkerboards for the first half of its
    couplings; then it is squeezed, and its channels take turns for the other half; and so on at every scale.

    Example:
        >>> from sciflow.bijections import Shift
        >>> len(alternating(Couplings("NICE", Shift(), (3,), None, 4, None, (16,), 0.0, None)))
        5
    """
    if couplings.is_field:
        return _alternating_scales(couplings, couplings.event_shape, couplings.num_scales)
    num_features = couplings.shape.numel()
    return list(
        _in_turns(
            couplings.num_transforms,
            partial(couplings.vector, num_features),
            lambda: Permutation(torch.randperm(num_features)),
        )
    )


def _alternating_scales(couplings: Couplings, shape: torch.Size, num_scales: int) -> list[Bijection]:
    by_channel = couplings.num_transforms // 2
    chain: list[Bijection] = [
        couplings.field(shape, "checkerboard", i % 2 == 1) for i in range(couplings.num_transforms - by_channel)
    ]
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


def _num_scales(checked: Arguments, num_scales: int | None, event_shape: torch.Size) -> int:
    if len(event_shape) != 3:
        checked.require("num_scales", num_scales, num_scales is None, "left out, but for fields [channel, height, width]")
        checked.values["num_scales"] = None
        return 0
    height, width = event_shape[1:]
    most = min(_times_halved(height), _times_halved(width))
    if num_scales is None:
        checked.values["num_scales"] = None
        return min(most, _DEFAULT_MOST_SCALES)
    chosen = checked.whole("num_scales", num_scales, 0, 64)
    limit = f"0 to {most} for a field {height} x {width}, whose sides must be even to be halved (crop or pad it)"
    checked.require("num_scales", num_scales, chosen <= most, limit)
    return chosen


def _times_halved(side: int) -> int:
    """How often a number is even, halved and halved again."""
    return (side & -side).bit_length() - 1
