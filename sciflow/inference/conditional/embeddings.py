"""Networks that read numbers off structured observations, by name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sciflow.arguments import MOST_FEATURES, Arguments, named
from sciflow.errors import ConfigError, ShapeError, first_line, nearest

__all__ = ["EMBEDDINGS", "Convolution", "Perceptron", "Rows", "embedding_network"]

_OPTIONS = ("hidden_features", "num_features")


class Perceptron(nn.Module):
    """Two layers over all numbers at once: for vectors with many of them.

    Args:
        x_shape: Shape of one observation.
        hidden_features: Width of the layers.
        num_features: How many numbers come out.
    """

    def __init__(self, x_shape: torch.Size, hidden_features: int, num_features: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), *_layers(x_shape.numel(), hidden_features, num_features))

    def forward(self, x: Tensor) -> Tensor:
        """From ``[n, *x_shape]`` to ``[n, num_features]``."""
        found: Tensor = self.layers(x)
        return found


class Rows(nn.Module):
    """Rows whose order does not matter, as draws of one distribution: ``[row, feature]``.

    Each goes through the same layers; what is read off is their mean. Source: Zaheer et al., arXiv:1703.06114.

    Args:
        x_shape: Shape of one observation: rows, then what each is made of.
        hidden_features: Width of the layers.
        num_features: How many numbers come out.
    """

    def __init__(self, x_shape: torch.Size, hidden_features: int, num_features: int) -> None:
        super().__init__()
        if len(x_shape) < 2:
            raise ConfigError(f"embedding: rows: observations [row, ...] expected; theirs have shape {list(x_shape)}")
        self.each = nn.Sequential(nn.Flatten(), *_layers(x_shape[1:].numel(), hidden_features, hidden_features))
        self.all = nn.Sequential(*_layers(hidden_features, hidden_features, num_features))

    def forward(self, x: Tensor) -> Tensor:
        """From ``[n, *x_shape]`` to ``[n, num_features]``."""
        each = self.each(x.flatten(0, 1)).unflatten(0, x.shape[:2])
        found: Tensor = self.all(each.mean(1))
        return found


class Convolution(nn.Module):
    """Series ``[channel, length]``, fields ``[channel, height, width]`` and volumes, by convolutions that halve them.

    Args:
        x_shape: Shape of one observation.
        hidden_features: Channels of the last convolution, and width of the layer after it.
        num_features: How many numbers come out.
    """

    def __init__(self, x_shape: torch.Size, hidden_features: int, num_features: int) -> None:
        super().__init__()
        kinds: dict[int, tuple[Any, Any]] = {
            2: (nn.Conv1d, nn.AdaptiveAvgPool1d),
            3: (nn.Conv2d, nn.AdaptiveAvgPool2d),
            4: (nn.Conv3d, nn.AdaptiveAvgPool3d),
        }
        if len(x_shape) not in kinds:
            raise ConfigError(
                "embedding: convolution: observations [channel, length], [channel, height, width] or volumes expected; "
                f"theirs have shape {list(x_shape)}"
            )
        convolution, pool = kinds[len(x_shape)]
        layers: list[nn.Module] = []
        before, side = x_shape[0], max(x_shape[1:])
        width = max(8, hidden_features // 4)
        while True:
            layers += [convolution(before, width, 3, padding=1, stride=2 if side > 4 else 1), nn.SiLU()]
            before, side, width = width, -(-side // 2), min(hidden_features, 2 * width)
            if side <= 4:
                break
        sides = tuple(min(4, size) for size in x_shape[1:])
        last = before * torch.Size(sides).numel()
        self.layers = nn.Sequential(*layers, pool(sides), nn.Flatten(), *_layers(last, hidden_features, num_features))

    def forward(self, x: Tensor) -> Tensor:
        """From ``[n, *x_shape]`` to ``[n, num_features]``."""
        found: Tensor = self.layers(x)
        return found


EMBEDDINGS: dict[str, type[nn.Module]] = {"mlp": Perceptron, "rows": Rows, "convolution": Convolution}


def embedding_network(given: Any, x_shape: Sequence[int]) -> tuple[nn.Module, int]:
    """Build a network that reads numbers off observations, or take the user's own.

    Args:
        given: ``"mlp"``, ``"rows"`` or ``"convolution"``; with sizes a mapping such as
            ``{"rows": {"hidden_features": 128, "num_features": 32}}``; or a module from ``[n, *x_shape]`` to
            ``[n, k]``.
        x_shape: Shape of one observation.

    Returns:
        The network, and how many numbers it gives.

    Raises:
        ConfigError: There is no such network, or it does not take such sizes.
        ShapeError: The user's own answers with another shape.

    Example:
        >>> network, size = embedding_network("convolution", (2, 40))
        >>> network(torch.zeros(5, 2, 40)).shape, size
        (torch.Size([5, 32]), 32)
    """
    shape = torch.Size(x_shape)
    if isinstance(given, nn.Module):
        network = given
    else:
        name, options = named("embedding", given, EMBEDDINGS)
        arguments = Arguments(f"embedding: {name}")
        for key in options:
            if key not in _OPTIONS:
                raise ConfigError(f"embedding: {name}: {key!r:.80}: unknown size; {nearest(str(key), _OPTIONS)}")
        hidden = arguments.whole("hidden_features", options.get("hidden_features", 64), 1, MOST_FEATURES)
        network = EMBEDDINGS[name](
            shape, hidden, arguments.whole("num_features", options.get("num_features", 32), 1, 4096)
        )
    try:
        like = next((p for p in network.parameters()), torch.zeros(()))
        with torch.no_grad():
            found = network(torch.zeros(2, *shape, dtype=like.dtype, device=like.device))
    except Exception as error:
        raise ShapeError(f"embedding: does not take observations {list(shape)}: {first_line(error)}") from error
    if found.ndim != 2 or len(found) != 2:
        raise ShapeError(f"embedding: numbers [n, k] expected; got {list(found.shape)} for 2 observations")
    return network, found.shape[1]


def _layers(before: int, hidden: int, after: int) -> list[nn.Module]:
    return [nn.Linear(before, hidden), nn.SiLU(), nn.Linear(hidden, after)]
