"""The network of a diffusion model, by name, with its sizes."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from sciflow.contexts import Contexts
from sciflow.errors import ConfigError, nearest
from sciflow.nets.denoising_mlp import DenoisingMLP
from sciflow.nets.diffusion_transformer import DiffusionTransformer
from sciflow.nets.unet import UNet

__all__ = ["NETWORKS", "network"]

NETWORKS: dict[str, type[nn.Module]] = {"mlp": DenoisingMLP, "unet": UNet, "transformer": DiffusionTransformer}


def network(given: Any, event_shape: Sequence[int], contexts: Contexts | None, num_levels: int = 1) -> nn.Module:
    """Build a network, or take the user's own.

    Args:
        given: None for a residual perceptron for vectors, and a U-Net for series and fields; ``"mlp"``, ``"unet"`` or
            ``"transformer"``; with sizes a mapping such as ``{"unet": {"channels": 32}}``; or a module of the user's,
            ``network(x, level, context)``.
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
    name: Any = ("mlp" if len(event_shape) == 1 else "unet") if given is None else given
    sizes: Any = {}
    if isinstance(given, Mapping) and len(given) == 1:
        name, sizes = next(iter(given.items()))
    if isinstance(name, str):
        name = name.lower()
    if not isinstance(name, str) or name not in NETWORKS:
        raise ConfigError(f"network: unknown {given!r:.80}; {nearest(str(name), NETWORKS)}")
    if not isinstance(sizes, Mapping):
        raise ConfigError(f"network: {name} takes its sizes by name; got {sizes!r:.200}")
    own = ("event_shape", "contexts", "num_levels")
    known = [key for key in inspect.signature(NETWORKS[name]).parameters if key not in own]
    for key in sizes:
        if key not in known:
            raise ConfigError(f"network: {name}: {key!r:.80}: unknown size; {nearest(str(key), known)}")
    return NETWORKS[name](event_shape, contexts, num_levels=num_levels, **sizes)
