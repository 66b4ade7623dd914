"""A network of the user's own: told of every row's level, and its answers are looked at."""

from __future__ import annotations

from torch import Tensor, nn

from sciflow.errors import SciflowError, ShapeError, first_line
from sciflow.memory import is_out_of_memory

__all__ = ["GivenNetwork"]


class GivenNetwork(nn.Module):
    """What lies between a network that the user brings and whoever asks it.

    Networks of ours take one level for all rows, and a user's need not know of that. An answer of another shape would
    be broadcast, and train as if it were right.

    Args:
        network: ``network(x, level, context)`` returns a tensor of ``x``'s shape.
        num_levels: Levels of a row that it is told of; where there are more, it is told of the first alone.

    Example:
        >>> import torch
        >>> class Mean(nn.Module):
        ...     def forward(self, x, level, context=None):
        ...         return torch.sigmoid(-level)[:, None] * x
        >>> GivenNetwork(Mean())(torch.ones(5, 2), torch.zeros(1)).shape
        torch.Size([5, 2])
    """

    def __init__(self, network: nn.Module, num_levels: int = 1) -> None:
        super().__init__()
        self.network = network
        self.num_levels = num_levels

    def forward(self, x: Tensor, level: Tensor, context: Tensor | None = None) -> Tensor:
        """Return a tensor of ``x``'s shape.

        Args:
            x: ``[n, *event_shape]``.
            level: ``[n]`` or ``[n, num_levels]``; of one row where all rows have the same.
            context: ``[n, contexts.size]`` or None.

        Raises:
            ShapeError: The network fails on them, or answers with something else.
        """
        if self.num_levels == 1 and level.ndim == 2:
            level = level[:, 0]
        level = level.expand(len(x), *level.shape[1:]).contiguous()
        if context is not None:
            context = context.clone()  # it may work in place, as x and level are its own
        try:
            answer = self.network(x, level, context)
        except (AttributeError, IndexError, RuntimeError, TypeError, ValueError) as error:
            if isinstance(error, SciflowError) or is_out_of_memory(error):
                raise  # whoever asks for so many rows is told of it elsewhere
            told = f"context {None if context is None else list(context.shape)}"
            raise ShapeError(
                f"{self._name}(x, level, context) fails where x is {list(x.shape)}, level {list(level.shape)} and "
                f"{told}: {first_line(error)}"
            ) from error
        if not isinstance(answer, Tensor) or answer.shape != x.shape or not answer.is_floating_point():
            found = f"{answer.dtype} of {list(answer.shape)}" if isinstance(answer, Tensor) else type(answer).__name__
            raise ShapeError(
                f"{self._name}(x, level, context) must return floating-point numbers of x's shape {list(x.shape)}; "
                f"got {found}"
            )
        return answer

    @property
    def _name(self) -> str:
        return f"network: {type(self.network).__name__}"
