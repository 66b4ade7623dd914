"""Angles, and other quantities that come round again: times of day, longitudes, phases."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Self

import torch
from torch import Tensor

from sciflow.bijections.base import Bijection
from sciflow.bijections.preprocess.preprocessor import Exact

__all__ = ["Angles"]


class Angles(Exact):
    r"""Bring periodic elements to [-pi, pi), and leave the others to a bijection of their own.

    .. math:: z_i = 2 \pi x_i / P_i - 2 \pi k, \qquad \log |\det J| = \sum_i \log (2 \pi / P_i) + \dots

    :math:`x` and :math:`x + P` are the same point: log p is the same for both, and a density over all of one period
    has the total 1. The way back gives values from 0 to the period or, where training rows had negative ones, from
    minus half a period to half a period.

    Args:
        event_shape: Shape of one event.
        periods: Period of each periodic element, in data units, by its place in the flattened event.
        others: Bijection of a vector of all other elements; None where there are none.

    Example:
        >>> angles = Angles((1,), {0: 360.0}, None)
        >>> z, log_det = angles(torch.tensor([[90.0], [450.0]]))
        >>> z
        tensor([[1.5708],
                [1.5708]])
        >>> angles.inverse(z)[0]
        tensor([[90.],
                [90.]])
    """

    places: Tensor
    other_places: Tensor
    order: Tensor
    period: Tensor
    start: Tensor

    def __init__(self, event_shape: Sequence[int], periods: Mapping[int, float], others: Bijection | None) -> None:
        super().__init__(event_shape)
        places = sorted(periods)
        rest = [place for place in range(self.event_shape.numel()) if place not in periods]
        self.register_buffer("places", torch.tensor(places), persistent=False)
        self.register_buffer("other_places", torch.tensor(rest, dtype=torch.long), persistent=False)
        self.register_buffer("order", torch.tensor([*places, *rest]).argsort(), persistent=False)
        self._constant("period", torch.tensor([float(periods[place]) for place in places], dtype=torch.float64))
        self.register_buffer("start", torch.zeros(len(places)))
        self.others = others

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        batch = self.batch_shape(x)
        flat = x.flatten(len(batch))
        turns = flat[..., self.places] / self.period
        # As a share of a turn first: of large values, 2 pi times the whole turns would round the angle away.
        z = 2 * math.pi * (turns - torch.round(turns))
        log_det = (2 * math.pi / self.period).log().sum().expand(batch)
        if self.others is not None:
            others, term = self.others(flat[..., self.other_places])
            z, log_det = torch.cat((z, others), -1), log_det + term
        return z[..., self.order].reshape(x.shape), log_det

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        batch = self.batch_shape(z)
        flat = z.flatten(len(batch))
        turns = flat[..., self.places] / (2 * math.pi) - self.start
        x = self.period * (turns - torch.floor(turns) + self.start)
        log_det = (self.period / (2 * math.pi)).log().sum().expand(batch)
        if self.others is not None:
            others, term = self.others.inverse(flat[..., self.other_places])
            x, log_det = torch.cat((x, others), -1), log_det + term
        return x[..., self.order].reshape(z.shape), log_det

    @property
    def is_fitted(self) -> bool:
        """Whether that of the others is."""
        return self.others is None or self.others.is_fitted

    def fit(self, x: Tensor) -> Self:
        """Learn where a period begins, and whatever the others need."""
        self.batch_shape(x)
        flat = x.reshape(len(x), -1)
        self.start.copy_(torch.where(flat[:, self.places].amin(0) < 0, -0.5, 0.0))
        if self.others is not None:
            self.others.fit(flat[:, self.other_places])
        return self
