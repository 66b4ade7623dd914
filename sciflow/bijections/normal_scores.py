"""Normal scores: the ranks of the training values, on the scale of a normal."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sciflow.bijections.preprocess import Preprocessor

__all__ = ["NormalScores"]

_COLUMNS = 64  # sorted at a time, so that the float64 copies of a wide event stay small
_SHARE, _TAIL = 0.01, 5.0  # of the rows, and standard deviations: what makes an element uneven
_ROUNDING = 2e-5  # of z: no slope is so steep that the rounding of x becomes more than that


class NormalScores(Preprocessor):
    r"""Bring every element to a standard normal over the training rows, whatever its own distribution.

    .. math:: z = \Phi^{-1}(F_n(x)), \qquad \log |\det J| = \sum_i \log \frac{dz_i}{dx_i}

    with the share :math:`F_n` of training values below :math:`x`, and half of those equal to it. The map is linear
    between knots at equal distances of :math:`z`, and beyond the training values goes on as standardising would. Long
    tails come near, and values that many rows share stand apart as far as their shares are: a network reads such inputs
    more easily than standardised ones. Its slope has steps, so it is for contexts rather than for events, whose log p
    would have them too. From van der Waerden (1952), Indagationes Mathematicae 14.

    Args:
        event_shape: Shape of one event.
        num_knots: Of each element.
        uneven_only: Standardise elements that need no more: those of which no value comes back in more than a hundredth
            of the training rows, and none is further than 5 standard deviations from the mean.

    Raises:
        DataError: While fitting: an element varies, but by less than the model's dtype has digits for.

    Example:
        >>> amounts = torch.tensor([[0.0], [1.0], [10.0], [100.0]])
        >>> z, _ = NormalScores((1,)).fit(amounts)(amounts)
        >>> [round(score, 1) for score in z[:, 0].tolist()]
        [-1.2, -0.3, 0.3, 1.2]
    """

    knots: Tensor
    first: Tensor
    step: Tensor
    std: Tensor

    def __init__(self, event_shape: Sequence[int], num_knots: int = 64, uneven_only: bool = False) -> None:
        super().__init__(event_shape)
        self.uneven_only = uneven_only
        num_elements = self.event_shape.numel()
        # Before it is fitted, the identity.
        self.register_buffer("knots", torch.linspace(-3, 3, num_knots).repeat(num_elements, 1))
        self.register_buffer("first", torch.full((num_elements,), -3.0))
        self.register_buffer("step", torch.full((num_elements,), 6 / (num_knots - 1)))
        self.register_buffer("std", torch.ones(num_elements))

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        batch = self.batch_shape(x)
        columns = x.reshape(-1, len(self.knots)).T.contiguous()
        index = torch.searchsorted(self.knots, columns.detach())
        low, width = self._interval(index)
        height = self._height(index)
        slope = height / width
        start = self.first[:, None] + self.step[:, None] * (index - 1).clamp_min(0)
        z = start + (columns - low) * slope
        return z.T.reshape(x.shape), slope.log().sum(0).reshape(batch)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        batch = self.batch_shape(z)
        columns = z.reshape(-1, len(self.knots)).T.contiguous()
        place = (columns.detach() - self.first[:, None]) / self.step[:, None]
        index = place.ceil().clamp(0, self.knots.shape[1]).long()
        low, width = self._interval(index)
        slope = width / self._height(index)
        start = self.first[:, None] + self.step[:, None] * (index - 1).clamp_min(0)
        x = low + (columns - start) * slope
        return x.T.reshape(z.shape), slope.log().sum(0).reshape(batch)

    def _interval(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Where the interval that ends at knot ``index`` begins, and its width; of the tails, a standard deviation."""
        last = self.knots.shape[1] - 1
        low = self.knots.gather(1, (index - 1).clamp(0, last))
        width = self.knots.gather(1, index.clamp(0, last)) - low
        outside = (index == 0) | (index > last)
        return low, torch.where(outside, self.std[:, None], width)

    def _height(self, index: Tensor) -> Tensor:
        """How far apart the two ends of the interval are on the scale of the normal."""
        outside = (index == 0) | (index >= self.knots.shape[1])
        return torch.where(outside, 1.0, self.step[:, None])

    def _fit(self, x: Tensor) -> None:
        moments = [moment.reshape(-1, 1) for moment in self._moments(x, self.std.dtype)]
        elements = torch.arange(len(self.knots), device=x.device)
        for some, columns in zip(elements.split(_COLUMNS), x.flatten(1).T.split(_COLUMNS), strict=True):
            ordered = columns.double().sort(dim=1).values.contiguous()
            mean, std, straight = (moment[some] for moment in moments)
            scores, commonest = _scores(ordered)
            if self.uneven_only:
                tail = (ordered[:, [0, -1]] - mean).abs().amax(1, keepdim=True) / std
                straight = straight | ((commonest <= max(1, _SHARE * x.shape[0])) & (tail <= _TAIL))
            first = torch.where(straight, -3.0, scores[:, :1])
            last = torch.where(straight, 3.0, scores[:, -1:])
            at = first + (last - first) * torch.linspace(
                0, 1, self.knots.shape[1], dtype=torch.float64, device=x.device
            )
            knots = torch.where(straight, mean + std * at, _interpolated(at, scores, ordered))
            step = (last - first) / (self.knots.shape[1] - 1)
            info = torch.finfo(self.knots.dtype)
            least = (info.eps / _ROUNDING * knots.abs()).clamp_min(info.tiny)  # no slope is infinite, either
            self.knots[some] = _apart(knots, step * least).to(self.knots.dtype)
            self.first[some] = first[:, 0].to(self.first.dtype)
            self.step[some] = step[:, 0].to(self.step.dtype)
            self.std[some] = std[:, 0].to(self.std.dtype)


def _scores(ordered: Tensor) -> tuple[Tensor, Tensor]:
    """Normal scores of sorted rows ``[elements, n]``, and how often ``[elements, 1]`` the commonest value comes."""
    below = torch.searchsorted(ordered, ordered)
    up_to = torch.searchsorted(ordered, ordered, right=True)
    n = ordered.shape[1]
    return torch.special.ndtri((below + up_to).double() / (2 * n)), (up_to - below).amax(1, keepdim=True)


def _interpolated(at: Tensor, scores: Tensor, ordered: Tensor) -> Tensor:
    """The values whose scores are ``at``, on straight lines between those that there are."""
    index = torch.searchsorted(scores, at.contiguous()).clamp(0, scores.shape[1] - 1)
    before = (index - 1).clamp_min(0)
    low, high = scores.gather(1, before), scores.gather(1, index)
    share = ((at - low) / (high - low).clamp_min(1e-12)).clamp(0, 1)
    return ordered.gather(1, before).lerp(ordered.gather(1, index), share)


def _apart(knots: Tensor, least: Tensor) -> Tensor:
    """Knots each of which is ``least`` above the one before, at least."""
    steps = least.cumsum(1)
    return (knots - steps).cummax(1).values + steps
