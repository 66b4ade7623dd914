"""Spline flows of which some features are angles: points of circles, not of a line."""

from __future__ import annotations

from collections.abc import Container, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from sciflow.bijections import (
    Autoregressive,
    Bijection,
    Composite,
    Coupling,
    EachItsOwn,
    LULinear,
    OnSome,
    Permutation,
    Univariate,
)
from sciflow.flows.sizes import Sizes
from sciflow.nets import ResidualMLP

__all__ = ["circular_chain"]


def circular_chain(
    angles: Container[int], spline: Univariate, circle: Univariate, sizes: Sizes, autoregressive: bool
) -> Composite:
    """Maps by coupling or autoregression, each after a shuffle; only what is no angle is mixed linearly.

    Angles are in [-pi, pi], before and after; networks see their cosine and sine. From Rezende et al.,
    arXiv:2002.02428.

    Args:
        angles: Which features are angles.
        spline: Map of the others.
        circle: Map of an angle.
        sizes: Of the chain.
        autoregressive: Autoregressive maps, rather than couplings.

    Example:
        >>> from sciflow.bijections import CircularSpline, Spline
        >>> sizes = Sizes(torch.Size((3,)), None, num_transforms=2, hidden_features=(16,), dropout=0.0)
        >>> chain = circular_chain([0], Spline(), CircularSpline(), sizes, autoregressive=False)
        >>> z, _ = chain(torch.tensor([[3.0, 0.5, -0.5]]))
        >>> z.shape, bool(z[0, 0].abs() <= torch.pi)
        (torch.Size([1, 3]), True)
    """
    num_features = sizes.num_features
    features = torch.arange(num_features)  # which feature is at which place
    transforms: list[Bijection] = []
    for i in range(sizes.num_transforms):
        order = torch.randperm(num_features)
        features = features[order]
        transforms.append(Permutation(order))
        is_angle = [int(feature) in angles for feature in features]
        straight = [place for place, angle in enumerate(is_angle) if not angle]
        if len(straight) > 1:
            transforms.append(OnSome(LULinear(torch.arange(len(straight))), straight, num_features))
        kinds = [circle if angle else spline for angle in is_angle]
        transform = _autoregressive if autoregressive else partial(_coupling, keep_last=i % 2 == 1)
        transforms.append(transform(is_angle, kinds, sizes))
    return Composite([*transforms, Permutation(features.argsort())])


def _autoregressive(is_angle: list[bool], kinds: list[Univariate], sizes: Sizes) -> Autoregressive:
    angles = [place for place, angle in enumerate(is_angle) if angle]
    return Autoregressive(
        len(kinds), EachItsOwn(kinds), sizes.hidden_features, sizes.num_context, sizes.dropout, angles
    )


def _coupling(is_angle: list[bool], kinds: list[Univariate], sizes: Sizes, keep_last: bool) -> Coupling:
    num_mapped = len(kinds) - len(kinds) // 2
    if keep_last:
        mapped, kept = kinds[:num_mapped], is_angle[num_mapped:]
    else:
        mapped, kept = kinds[-num_mapped:], is_angle[:-num_mapped]
    angles = [place for place, angle in enumerate(kept) if angle]
    network = partial(_SeesAngles, angles, sizes.hidden_features, sizes.dropout)
    return Coupling(len(kinds), EachItsOwn(mapped), network, sizes.num_context, keep_last)


class _SeesAngles(nn.Module):
    """A residual network that sees the cosine and sine of some of its inputs."""

    def __init__(
        self, angles: list[int], hidden_features: Sequence[int], dropout: float, in_features: int, out_features: int
    ) -> None:
        super().__init__()
        self.angles = angles
        self.others = [i for i in range(in_features) if i not in angles]
        self.network = ResidualMLP(in_features + len(angles), out_features, hidden_features, dropout)

    def forward(self, x: Tensor) -> Tensor:
        angles = x[..., self.angles]
        return self.network(torch.cat((angles.cos(), angles.sin(), x[..., self.others]), -1))
