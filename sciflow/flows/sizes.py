"""The sizes that every flow is built from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from sciflow.arguments import MOST_FEATURES, MOST_TRANSFORMS, Arguments
from sciflow.contexts import Contexts, ContextShape
from sciflow.flows.context_features import num_context_features

__all__ = ["Sizes"]


@dataclass(frozen=True)
class Sizes:
    """How large a flow is.

    Attributes:
        event_shape: Shape of one event.
        context_shape: What the density is conditioned on: a plain shape, contexts by name, or None.
        num_transforms: Maps in the chain.
        hidden_features: Hidden widths of each network.
        dropout: Of the networks, while training; 0 for those that have none.
    """

    event_shape: torch.Size
    context_shape: torch.Size | Contexts | None
    num_transforms: int
    hidden_features: tuple[int, ...]
    dropout: float

    @classmethod
    def checked(
        cls,
        arguments: Arguments,
        event_shape: Sequence[int],
        context_shape: ContextShape | None,
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
        contexts = Contexts.of(context_shape)
        if contexts is not None:
            expected = f"such that networks read {MOST_FEATURES:,} numbers at most, one for each class of a label"
            arguments.require("context_shape", contexts, num_context_features(contexts) <= MOST_FEATURES, expected)
        plain = (
            None if context_shape is None or contexts is not None else arguments.shape("context_shape", context_shape)
        )
        return cls(
            arguments.shape("event_shape", event_shape),
            plain if contexts is None else contexts,
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
        """How many numbers networks read of the context; 0 for none."""
        if isinstance(self.context_shape, Contexts):
            return num_context_features(self.context_shape)
        return 0 if self.context_shape is None else self.context_shape.numel()
