"""Chains of maps with a linear mixing of the features, in a random order, before each and after the last."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from sciflow.bijections import Autoregressive, Bijection, Composite, Coupling, LULinear, Univariate
from sciflow.flows.sizes import Sizes
from sciflow.nets import ResidualMLP

__all__ = ["autoregressive_chain", "coupling_chain"]


def autoregressive_chain(univariate: Univariate, sizes: Sizes) -> Composite:
    """Autoregressive maps.

    Example:
        >>> from sciflow.bijections import ShiftScale
        >>> sizes = Sizes(torch.Size((3,)), None, num_transforms=2, hidden_features=(16,), dropout=0.0)
        >>> len(autoregressive_chain(ShiftScale(), sizes).bijections)
        5
    """
    return _mixed(
        sizes,
        lambda _: Autoregressive(
            sizes.num_features, univariate, sizes.hidden_features, sizes.num_context, sizes.dropout
        ),
    )


def coupling_chain(univariate: Univariate, sizes: Sizes) -> Composite:
    """Couplings, of which one keeps what the next one maps.

    Example:
        >>> from sciflow.bijections import Spline
        >>> sizes = Sizes(torch.Size((3,)), None, num_transforms=2, hidden_features=(16,), dropout=0.0)
        >>> len(coupling_chain(Spline(), sizes).bijections)
        5
    """
    network = partial(ResidualMLP, hidden_features=sizes.hidden_features, dropout=sizes.dropout)
    return _mixed(
        sizes,
        lambda i: Coupling(sizes.num_features, univariate, network, sizes.num_context, keep_last=i % 2 == 1),
    )


def _mixed(sizes: Sizes, transform: Callable[[int], Bijection]) -> Composite:
    transforms: list[Bijection] = []
    for i in range(sizes.num_transforms):
        transforms += [LULinear(torch.randperm(sizes.num_features)), transform(i)]
    return Composite([*transforms, LULinear(torch.randperm(sizes.num_features))])
