"""The sizes that every flow is built from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from sciflow.flows.arguments import MOST_TRANSFORMS, Arguments

__all__ = ["Sizes"]


@dataclass(frozen=True)
class Sizes:
    """How large a flow is.

    Attributes:
        event_shape: Shape of one event.
        context_shape: Shape of what the density is conditioned on, or None.
        num_transforms: Maps in the chain.
        hidden_features: Hidden widths of each network.
        dropout: Of the networks, while training; 0 for those that have none.
    """

    event_shape: torch.Size
    context_shape: torch.Size | None
    num_transforms: int
    hidden_features: tuple[int, ...]
    dropout: float

    @classmethod
    def checked(
        cls,
        arguments: Arguments,
        event_shape: Sequence[int],
        context_shape: Sequence[int] | None,
        num_transforms: int,
        hidden_features: Sequence[int],
        dropout: float | None = None,
    ) -> Sizes:
        """Check what a constructor was given.

        Raises:
            ConfigError: One of them is out of range.

        Example:
            >>> Sizes.checked(Arguments("MAF"), (2, 3), None, 8, (64, 64), 0.0).num_features
            6
        """
        return cls(
            arguments.shape("event_shape", event_shape),
            None if context_shape is None else arguments.shape("context_shape", context_shape),
            arguments.whole("num_transforms", num_transforms, 1, MOST_TRANSFORMS),
            arguments.widths("hidden_features", hidden_features),
            0.0 if dropout is None else arguments.fraction("dropout", dropout),
        )

    @property
    def num_features(self) -> int:
        """Length of the flattened event."""
        return self.event_shape.numel()

    @property
    def num_context(self) -> int:
        """Length of the flattened context; 0 for none."""
        return 0 if self.context_shape is None else self.context_shape.numel()
