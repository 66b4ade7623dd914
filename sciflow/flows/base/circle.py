"""Uniform noise on circles, beside other noise elsewhere."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sciflow.flows.base.contract import Base

__all__ = ["OnCircles"]


class OnCircles(Base):
    r"""Uniform on [-pi, pi) for the elements that are angles, and a base of their own for the others.

    Args:
        event_shape: Shape of one event.
        places: Places of the angles in the flattened event.
        others: Density of a vector of all other elements; None where there are none.

    Example:
        >>> OnCircles((1,), [0], None).log_prob(torch.zeros(1, 1))
        tensor([-1.8379])
    """

    other_places: Tensor
    order: Tensor

    def __init__(self, event_shape: Sequence[int], places: Sequence[int], others: Base | None) -> None:
        super().__init__(event_shape)
        rest = [place for place in range(self.event_shape.numel()) if place not in places]
        self.angles = tuple(places)
        self.register_buffer("other_places", torch.tensor(rest, dtype=torch.long), persistent=False)
        self.register_buffer("order", torch.tensor([*places, *rest]).argsort(), persistent=False)
        self.others = others

    @property
    def specification(self) -> Any:
        return "normal" if self.others is None else self.others.specification

    def log_prob(self, z: Tensor) -> Tensor:
        flat = z.flatten(1)
        log_prob = flat.new_full((len(flat),), -len(self.angles) * math.log(2 * math.pi))
        return log_prob if self.others is None else log_prob + self.others.log_prob(flat[:, self.other_places])

    def sample(self, n: int, generator: torch.Generator | None, dtype: torch.dtype, device: torch.device) -> Tensor:
        turns = torch.rand(n, len(self.angles), generator=generator, dtype=dtype, device=device)
        z = (2 * turns - 1) * math.pi
        if self.others is not None:
            z = torch.cat((z, self.others.sample(n, generator, dtype, device)), -1)
        return z[:, self.order].reshape(n, *self.event_shape)
