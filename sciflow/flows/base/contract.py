"""The contract of a base: a density over noise that can be evaluated, drawn from, and written down."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["PACE", "Base"]

# Learned numbers of a base are kept divided by this. Optimisers move a number by about the learning rate a step, and
# those of a base have several units to go, not the few hundredths of a network's weight.
PACE = 10.0


class Base(nn.Module, ABC):
    """A density over noise, of the shape of an event.

    Args:
        event_shape: Shape of one event.

    Attributes:
        angles: Places in the flattened event of what lives on a circle, in [-pi, pi].
    """

    angles: Sequence[int] = ()

    def __init__(self, event_shape: Sequence[int]) -> None:
        super().__init__()
        self.event_shape = torch.Size(event_shape)

    @property
    @abstractmethod
    def specification(self) -> Any:
        """What :func:`sciflow.flows.base.base_density` builds it from, as JSON can hold it."""

    @abstractmethod
    def log_prob(self, z: Tensor) -> Tensor:
        """log p of noise ``[n, *event_shape]``, ``[n]``."""

    @abstractmethod
    def sample(self, n: int, generator: torch.Generator | None, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Draw noise ``[n, *event_shape]``."""
