"""Events cut into boxes, so that what is found out element by element costs no more of large events than of small."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

__all__ = ["Boxes"]

_MOST = 256


@dataclass(frozen=True)
class Boxes:
    """Boxes of the elements of an event, as even as can be, 256 at the most; of fewer elements each is its own.

    Attributes:
        number: ``[*event_shape]``, of the box that each element is in.

    Example:
        >>> Boxes.of(torch.Size([3])).number.tolist()
        [0, 1, 2]
        >>> boxes = Boxes.of(torch.Size([32, 32]))
        >>> boxes.count, boxes.means(torch.ones(5, 32, 32)).shape
        (256, torch.Size([5, 256]))
    """

    number: Tensor

    @classmethod
    def of(cls, event_shape: torch.Size, device: torch.device | str = "cpu") -> Boxes:
        """Cut events of a shape."""
        sizes = [1] * len(event_shape)
        while math.prod(-(-n // size) for n, size in zip(event_shape, sizes, strict=True)) > _MOST:
            # The axis that has most boxes along it.
            axis = int(np.argmax([-(-n // size) for n, size in zip(event_shape, sizes, strict=True)]))
            sizes[axis] += 1
        counts = [-(-n // size) for n, size in zip(event_shape, sizes, strict=True)]
        along = [torch.arange(n) // size for n, size in zip(event_shape, sizes, strict=True)]
        number = torch.zeros(tuple(event_shape), dtype=torch.long)
        for axis, place in enumerate(along):
            number = number * counts[axis] + place.reshape(-1, *[1] * (len(event_shape) - axis - 1))
        return cls(number.to(device))

    @property
    def count(self) -> int:
        """How many there are."""
        return int(self.number.max()) + 1

    def means(self, x: Tensor) -> Tensor:
        """Return the means of events ``[n, *event_shape]`` over each box, ``[n, num_boxes]``, float64."""
        number = self.number.flatten()
        sums = torch.zeros(len(x), self.count, dtype=torch.float64, device=x.device)
        return sums.index_add(1, number, x.flatten(1).double()) / number.bincount()

    def spread(self, values: Tensor) -> Tensor:
        """Give every element what its box has: ``[*batch, num_boxes]`` to ``[*batch, *event_shape]``."""
        return values[..., self.number]
