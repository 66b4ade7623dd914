"""Networks of noisy events, by name, with their sizes."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn

from sciflow.arguments import MOST_FEATURES, MOST_TRANSFORMS, Arguments, named, plain
from sciflow.contexts import Contexts
from sciflow.errors import ConfigError, first_line, nearest
from sciflow.nets.denoising_mlp import DenoisingMLP
from sciflow.nets.diffusion_transformer import DiffusionTransformer
from sciflow.nets.given import GivenNetwork
from sciflow.nets.unet import UNet

__all__ = ["NETWORKS", "OneChannel", "doubts_of_channels", "network"]

NETWORKS: dict[str, type[nn.Module]] = {"mlp": DenoisingMLP, "unet": UNet, "transformer": DiffusionTransformer}


def _patch(arguments: Arguments, name: str, value: Any) -> int | tuple[int, ...]:
    """One side for all of a grid, or one for each."""
    check = arguments.whole if isinstance(value, int) else arguments.wholes
    return check(name, value, 1, MOST_FEATURES)


# One layer of that width holds a GiB. Of waves, float32 tells no more octaves apart.
_MOST_WIDTH, _MOST_OCTAVES, _MOST_LEVELS = 1 << 14, 24, 64
# What each size may be by itself; how they fit together and to the event, networks know.
_SIZES: dict[str, Callable[[Arguments, str, Any], Any]] = {
    "attention_levels": partial(Arguments.wholes, least=-_MOST_LEVELS, most=_MOST_LEVELS),
    "blocks_per_level": partial(Arguments.whole, least=1, most=MOST_TRANSFORMS),
    "channel_multipliers": partial(Arguments.wholes, least=1, most=_MOST_WIDTH // 4),
    "channels": partial(Arguments.whole, least=1, most=_MOST_WIDTH // 4),
    "dropout": Arguments.fraction,
    "embedding_features": partial(Arguments.whole, least=1, most=_MOST_WIDTH),
    "hidden_features": partial(Arguments.widths, most=_MOST_WIDTH),
    "num_frequencies": partial(Arguments.whole, least=0, most=_MOST_OCTAVES),
    "num_heads": partial(Arguments.whole, least=1, most=_MOST_WIDTH),
    "patch_size": _patch,
}


def network(given: Any, event_shape: Sequence[int], contexts: Contexts | None, num_levels: int = 1) -> nn.Module:
    """Build a network, or take the user's own.

    Args:
        given: None for a residual perceptron for vectors, and a U-Net for series and fields; ``"mlp"``, ``"unet"`` or
            ``"transformer"``; with sizes a mapping such as ``{"unet": {"channels": 32}}``; or a module of the user's,
            ``network(x, level, context)``. The first axis of an event counts channels. Where it has none, as a field
            of one variable, ``{"unet": {"grid_dims": 2}}`` says how many dimensions the grid has. A module is told of
            the level of every row, ``[n]``, or ``[n, num_levels]`` where there are several; the context is
            ``[n, contexts.size]``, or None.
        event_shape: Shape of one event.
        contexts: What it is conditioned on, or None.
        num_levels: Noise levels that it is told of: two for students that jump from one to another.

    Raises:
        ConfigError: There is no such network, or it does not take such sizes.
        ShapeError: When it is asked: the user's own answers with another shape than that of events.

    Example:
        >>> import torch
        >>> network({"mlp": {"hidden_features": (16, 16)}}, (2,), None)(torch.zeros(5, 2), torch.zeros(5)).shape
        torch.Size([5, 2])
    """
    if isinstance(given, nn.Module):
        return GivenNetwork(given, num_levels)
    usual = "mlp" if len(event_shape) == 1 else "unet"
    name, given_sizes = named("network", usual if given is None else given, NETWORKS)
    sizes = _checked(name, given_sizes)
    few, many = len(event_shape) - 1, len(event_shape)
    grid_dims = sizes.pop("grid_dims", None)
    if grid_dims is not None and (type(grid_dims) is not int or grid_dims not in (few, many)):
        raise ConfigError(f"network: grid_dims: events {list(event_shape)} have {few} or {many}; got {grid_dims!r:.80}")
    try:
        if grid_dims == many:
            return OneChannel(NETWORKS[name]((1, *event_shape), contexts, num_levels=num_levels, **sizes))
        return NETWORKS[name](event_shape, contexts, num_levels=num_levels, **sizes)
    except (MemoryError, RuntimeError) as error:
        raise ConfigError(
            f"network: {name}: of sizes {sizes!r:.200} it cannot be built: {first_line(error)}"
        ) from error


def doubts_of_channels(network: nn.Module | None, layout: Any) -> list[str]:
    """Say so where a network would take a dimension of the grid for channels, one sentence each.

    Args:
        network: What :func:`network` returned, or None.
        layout: Of the events, see :class:`sciflow.data.layout.Layout`; None where there is none.
    """
    network = network.network if isinstance(network, GivenNetwork) else network
    if layout is None or layout.has_variable_axis or not isinstance(network, UNet | DiffusionTransformer):
        return []
    names = [dim.name for dim in layout.event_dims]
    if len(names) < 2:
        return []
    return [
        f"events are of one variable over {' x '.join(names)}, of which the network takes {names[0]} for channels: "
        f'build it with network={{"unet": {{"grid_dims": {len(names)}}}}}'
    ]


def _checked(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """The sizes of one network as Python's own numbers."""
    own = ("event_shape", "contexts", "num_levels")
    usual = {key: p.default for key, p in inspect.signature(NETWORKS[name]).parameters.items() if key not in own}
    if name != "mlp":
        usual["grid_dims"] = None
    arguments, sizes = Arguments(f"network: {name}"), {}
    for key, value in given.items():
        if key not in usual:
            raise ConfigError(f"network: {name}: {key!r:.80}: unknown size; {nearest(str(key), usual)}")
        sizes[key] = plain(f"network: {name}: {key}", value)
        if key in _SIZES and not (value is None and usual[key] is None):
            sizes[key] = _SIZES[key](arguments, key, sizes[key])
    return sizes


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
