"""The network of a diffusion model, by name, with its sizes."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from sciflow.arguments import named
from sciflow.contexts import Contexts
from sciflow.errors import ConfigError, nearest
from sciflow.nets.denoising_mlp import DenoisingMLP
from sciflow.nets.diffusion_transformer import DiffusionTransformer
from sciflow.nets.unet import UNet

__all__ = ["NETWORKS", "OneChannel", "network"]

NETWORKS: dict[str, type[nn.Module]] = {"mlp": DenoisingMLP, "unet": UNet, "transformer": DiffusionTransformer}


def network(given: Any, event_shape: Sequence[int], contexts: Contexts | None, num_levels: int = 1) -> nn.Module:
    """Build a network, or take the user's own.

    Args:
        given: None for a residual perceptron for vectors, and a U-Net for series and fields; ``"mlp"``, ``"unet"`` or
            ``"transformer"``; with sizes a mapping such as ``{"unet": {"channels": 32}}``; or a module of the user's,
            ``network(x, level, context)``. The first axis of an event counts channels. Where it has none, as a field
            of one variable, ``{"unet": {"grid_dims": 2}}`` says how many dimensions the grid has.
        event_shape: Shape of one event.
        contexts: What it is conditioned on, or None.
        num_levels: Noise levels that it is told of: two for students that jump from one to another.

    Raises:
        ConfigError: There is no such network, or it does not take such sizes.

    Example:
        >>> import torch
        >>> network({"mlp": {"hidden_features": (16, 16)}}, (2,), None)(torch.zeros(5, 2), torch.zeros(5)).shape
        torch.Size([5, 2])
    """
    if isinstance(given, nn.Module):
        return given
    usual = "mlp" if len(event_shape) == 1 else "unet"
    name, given_sizes = named("network", usual if given is None else given, NETWORKS)
    own = ("event_shape", "contexts", "num_levels")
    known = [key for key in inspect.signature(NETWORKS[name]).parameters if key not in own]
    if name != "mlp":
        known.append("grid_dims")
    for key in given_sizes:
        if key not in known:
            raise ConfigError(f"network: {name}: {key!r:.80}: unknown size; {nearest(str(key), known)}")
    sizes = dict(given_sizes)
    grid_dims = sizes.pop("grid_dims", None)
    if grid_dims not in (None, len(event_shape) - 1, len(event_shape)) or isinstance(grid_dims, bool):
        few, many = len(event_shape) - 1, len(event_shape)
        raise ConfigError(f"network: grid_dims: events {list(event_shape)} have {few} or {many}; got {grid_dims!r:.80}")
    if grid_dims == len(event_shape):
        return OneChannel(NETWORKS[name]((1, *event_shape), contexts, num_levels=num_levels, **sizes))
    return NETWORKS[name](event_shape, contexts, num_levels=num_levels, **sizes)


class OneChannel(nn.Module):
    """A network of events that have a grid alone, and no channels.

    Args:
        network: Of the same with one channel.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, level: Tensor, context: Tensor | None = None) -> Tensor:
        """Return a tensor of ``x``'s shape."""
        answer: Tensor = self.network(x[:, None], level, context)
        return answer[:, 0]
