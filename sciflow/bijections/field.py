"""Bijections of fields ``[channel, height, width]`` made of others: seen at half the size, at every place, in part."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Self

import torch
from torch import Tensor

from sciflow.bijections.base import Bijection
from sciflow.errors import ShapeError

__all__ = ["OnFirstChannels", "Pointwise", "Squeezed", "field_shape", "squeezed_shape"]


class _View(Bijection):
    """Another bijection, acting on a field seen in another shape; what it does not see stays as it is."""

    def __init__(self, bijection: Bijection, event_shape: Sequence[int], seen: Sequence[int]) -> None:
        super().__init__(event_shape, bijection.context_shape)
        if bijection.event_shape != torch.Size(seen):
            raise ShapeError(
                f"{type(self).__name__} of a field {list(event_shape)} shows it as {list(seen)}; "
                f"{type(bijection).__name__} is for {list(bijection.event_shape)}"
            )
        self.bijection = bijection

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._through(self.bijection, x, context)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._through(self.bijection.inverse, z, context)

    def fit(self, x: Tensor) -> Self:
        """Fit the other on what it sees of ``x``."""
        self.batch_shape(x)
        self.bijection.fit(self._seen(x))
        return self

    @property
    def is_fitted(self) -> bool:
        """Whether the other is."""
        return self.bijection.is_fitted

    def _through(
        self, way: Callable[..., tuple[Tensor, Tensor]], x: Tensor, context: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        self.batch_shape(x)
        y, log_det = way(self._seen(x), context)
        return self._restored(y, x), log_det

    @abstractmethod
    def _seen(self, x: Tensor) -> Tensor:
        """What the other sees."""

    @abstractmethod
    def _restored(self, y: Tensor, x: Tensor) -> Tensor:
        """The field ``x``, with ``y`` in place of what was seen."""


class Squeezed(_View):
    r"""Apply a bijection to the field at half the height and width, with four times the channels.

    Every block of 2 x 2 places becomes four channels of one place, after
    :math:`c \mapsto 4c, \dots, 4c + 3` in reading order; afterwards they go back. One within the other, these make a
    flow of several scales. From Dinh et al., arXiv:1605.08803.

    Args:
        bijection: Of events ``[4 * channel, height / 2, width / 2]``.
        event_shape: ``[channel, height, width]``, both sides even.

    Raises:
        ShapeError: A side is odd, or the bijection is for another shape.

    Example:
        >>> from sciflow.bijections import Permutation
        >>> Squeezed(Pointwise(Permutation(torch.tensor([3, 2, 1, 0])), (4, 1, 1)), (1, 2, 2))(
        ...     torch.tensor([[[[0.0, 1.0], [2.0, 3.0]]]])
        ... )[0].tolist()
        [[[[3.0, 2.0], [1.0, 0.0]]]]
    """

    def __init__(self, bijection: Bijection, event_shape: Sequence[int]) -> None:
        super().__init__(bijection, event_shape, squeezed_shape(event_shape))

    def _seen(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        blocks = x.unflatten(-1, (width // 2, 2)).unflatten(-3, (height // 2, 2))
        return blocks.movedim((-3, -1), (-4, -3)).flatten(-5, -3)

    def _restored(self, y: Tensor, x: Tensor) -> Tensor:
        blocks = y.unflatten(-3, (-1, 2, 2)).movedim((-4, -3), (-3, -1))
        return blocks.flatten(-2, -1).flatten(-3, -2)


class Pointwise(_View):
    """Apply one bijection of the channels at every place of the field.

    Of an :class:`LULinear`, this is the invertible 1 x 1 convolution of Glow, Kingma and Dhariwal, arXiv:1807.03039.

    Args:
        bijection: Of events ``[channel]``.
        event_shape: ``[channel, height, width]``.

    Raises:
        ShapeError: The bijection is for another number of channels.

    Example:
        >>> from sciflow.bijections import LULinear
        >>> convolution = Pointwise(LULinear(torch.tensor([1, 0])), (2, 3, 3))
        >>> z, log_det = convolution(torch.ones(5, 2, 3, 3))
        >>> z.shape, log_det.shape
        (torch.Size([5, 2, 3, 3]), torch.Size([5]))
    """

    def __init__(self, bijection: Bijection, event_shape: Sequence[int]) -> None:
        super().__init__(bijection, event_shape, field_shape(event_shape)[:1])

    def _through(
        self, way: Callable[..., tuple[Tensor, Tensor]], x: Tensor, context: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        context = self.broadcast_context(context, self.batch_shape(x))
        y, log_det = way(self._seen(x), None if context is None else context[..., None, None, :])
        return self._restored(y, x), log_det.sum((-2, -1))

    def _seen(self, x: Tensor) -> Tensor:
        return x.movedim(-3, -1)

    def _restored(self, y: Tensor, x: Tensor) -> Tensor:
        # In one piece: of fields that lie otherwise, torch's compiler mistakes what convolutions return.
        return y.movedim(-1, -3).contiguous()


class OnFirstChannels(_View):
    """Apply a bijection to the first channels, and leave the others as they are.

    Args:
        bijection: Of events ``[some, height, width]``.
        event_shape: ``[channel, height, width]``, with at least as many channels.

    Raises:
        ShapeError: The bijection is for other sides, or for more channels than there are.

    Example:
        >>> from sciflow.bijections import Affine
        >>> shift = Affine(mean=torch.ones(1, 1, 1), log_scale=torch.zeros(1, 1, 1))
        >>> OnFirstChannels(shift, (2, 1, 1))(torch.zeros(1, 2, 1, 1))[0].flatten().tolist()
        [-1.0, 0.0]
    """

    def __init__(self, bijection: Bijection, event_shape: Sequence[int]) -> None:
        channels, height, width = field_shape(event_shape)
        super().__init__(bijection, event_shape, (min(bijection.event_shape[0], channels), height, width))

    def _seen(self, x: Tensor) -> Tensor:
        return x.narrow(-3, 0, self.bijection.event_shape[0])

    def _restored(self, y: Tensor, x: Tensor) -> Tensor:
        return torch.cat((y, x[..., self.bijection.event_shape[0] :, :, :]), dim=-3)


def field_shape(event_shape: Sequence[int]) -> torch.Size:
    """Return the shape of a field, checked to be ``[channel, height, width]``.

    Raises:
        ShapeError: It has not three dimensions.

    Example:
        >>> field_shape((2, 4, 6))
        torch.Size([2, 4, 6])
    """
    shape = torch.Size(event_shape)
    if len(shape) != 3 or min(shape) < 1:
        raise ShapeError(f"a field is [channel, height, width]; got the event shape {list(shape)}")
    return shape


def squeezed_shape(event_shape: Sequence[int]) -> torch.Size:
    """Return the shape of a field with every block of 2 x 2 places made into four channels of one.

    Raises:
        ShapeError: A side is odd.

    Example:
        >>> squeezed_shape((2, 4, 6))
        torch.Size([8, 2, 3])
    """
    channels, height, width = field_shape(event_shape)
    odd = [f"{name} {size}" for name, size in (("height", height), ("width", width)) if size % 2]
    if odd:
        raise ShapeError(
            f"a field {list(event_shape)} cannot be squeezed, for its {' and its '.join(odd)} cannot be halved: "
            "crop or pad the field to even sides, or use fewer scales"
        )
    return torch.Size((4 * channels, height // 2, width // 2))
