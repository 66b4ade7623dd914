"""The density of the noise that a flow maps events to."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sciflow.errors import ConfigError, nearest

__all__ = ["Base", "StandardNormal", "base_density"]


class Base(nn.Module, ABC):
    """A density over noise, of the shape of an event.

    Args:
        event_shape: Shape of one event.
    """

    def __init__(self, event_shape: Sequence[int]) -> None:
        super().__init__()
        self.event_shape = torch.Size(event_shape)

    @property
    @abstractmethod
    def specification(self) -> Any:
        """What :func:`base_density` builds it from, as JSON can hold it."""

    @abstractmethod
    def log_prob(self, z: Tensor) -> Tensor:
        """log p of noise ``[n, *event_shape]``, ``[n]``."""

    @abstractmethod
    def sample(self, n: int, generator: torch.Generator | None, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Draw noise ``[n, *event_shape]``."""


class StandardNormal(Base):
    r"""Independent normals of mean 0 and variance 1, :math:`\log p(z) = -\frac12 \sum_i (z_i^2 + \log 2 \pi)`.

    Example:
        >>> StandardNormal((2,)).log_prob(torch.zeros(1, 2))
        tensor([-1.8379])
    """

    @property
    def specification(self) -> str:
        return "normal"

    def log_prob(self, z: Tensor) -> Tensor:
        return -0.5 * (z.flatten(1).square().sum(-1) + self.event_shape.numel() * math.log(2 * math.pi))

    def sample(self, n: int, generator: torch.Generator | None, dtype: torch.dtype, device: torch.device) -> Tensor:
        return torch.randn(n, *self.event_shape, generator=generator, dtype=dtype, device=device)


_KINDS: dict[str, type[Base]] = {"normal": StandardNormal}


def base_density(base: Any, event_shape: Sequence[int]) -> Base:
    """Build the density of the noise that a workflow or model file names.

    Args:
        base: ``"normal"``, or a :class:`Base` of its own.
        event_shape: Shape of one event.

    Raises:
        ConfigError: There is no such density.

    Example:
        >>> base_density("normal", (3,)).specification
        'normal'
    """
    if isinstance(base, Base):
        return base
    if base not in _KINDS:
        raise ConfigError(f"base: unknown {base!r}; {nearest(str(base), _KINDS)}")
    return _KINDS[base](event_shape)
