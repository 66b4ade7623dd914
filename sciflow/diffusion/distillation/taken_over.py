"""What a student takes over from its teacher: shapes, units, and weights to begin with."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sciflow import model_file
from sciflow.conditions import Conditions
from sciflow.contexts import Contexts
from sciflow.density import checked_shape
from sciflow.diffusion.denoiser import NetworkDenoiser
from sciflow.diffusion.diffusion import Diffusion
from sciflow.diffusion.distillation.flow_map import FlowMap
from sciflow.diffusion.schedules import schedule as as_schedule
from sciflow.errors import ConfigError, SciflowError
from sciflow.nets.by_name import network as build_network

__all__ = ["first_flow_map", "record_of", "shapes_of", "teacher_from"]

_SAVED = {"arguments", "weights", "provenance"}


def teacher_from(given: Any) -> Diffusion:
    """The teacher as the student's own: what happens to the original later does not matter."""
    if isinstance(given, Diffusion):
        return copy.deepcopy(given)
    try:
        if isinstance(given, Mapping) and set(given) == _SAVED:
            teacher = Diffusion(**given["arguments"])
            teacher.provenance = given["provenance"]
            return teacher
        if isinstance(given, str | Path):
            family = model_file.family_of(given)
            if family != Diffusion.family:
                raise ConfigError(f"{given} holds a model of family {family!r}; a teacher must be a diffusion model")
            found = model_file.load(given, {Diffusion.family: Diffusion})
            assert isinstance(found, Diffusion)
            return found
    except SciflowError as error:
        raise ConfigError(f"teacher: {error}") from None
    raise ConfigError(f"teacher: give a Diffusion, or the folder of one; got {given!r:.80}")


def record_of(teacher: Diffusion, given: Any) -> dict[str, Any]:
    """What of a teacher is written down beside its weights."""
    if isinstance(given, Mapping):
        return dict(given)
    digest = hashlib.sha256()
    for name, tensor in sorted(teacher.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return {"arguments": teacher.arguments, "weights": digest.hexdigest(), "provenance": teacher.provenance}


def shapes_of(teacher: Diffusion, event_shape: Any, context_shape: Any) -> tuple[torch.Size, Any]:
    """Shapes of the teacher, which those of the data must be."""
    if event_shape is not None and checked_shape(event_shape, "event_shape") != teacher.event_shape:
        raise ConfigError(f"teacher: of events {list(teacher.event_shape)}; these are {list(event_shape)}")
    given = Conditions.of(context_shape)
    theirs = 0 if teacher.contexts is None else teacher.contexts.size
    if given is not None and given.contexts.size != theirs:
        raise ConfigError(f"teacher: of contexts of {theirs} numbers; these have {given.contexts.size}")
    return teacher.event_shape, None if teacher.conditions is None else teacher.conditions.specification


def first_flow_map(
    teacher: Diffusion | None, event_shape: torch.Size, contexts: Contexts | None, network: Any, needs_target: bool
) -> FlowMap:
    """Build a student's map as it is before training.

    Args:
        teacher: Whose weights it begins with; None where there is none.
        event_shape: Shape of one event.
        contexts: What it is conditioned on, or None.
        network: None for one like the teacher's; any other begins anew.
        needs_target: Whether the network must be told where a jump goes.

    Raises:
        ConfigError: There is no such network, or none to take over.
    """
    if teacher is None:
        return FlowMap(build_network(network, event_shape, contexts, num_levels=2), as_schedule("edm"), "edm")
    denoiser = teacher.denoiser
    parametrization = denoiser.parametrization if isinstance(denoiser, NetworkDenoiser) else "edm"
    if network is not None:
        built = build_network(network, event_shape, contexts, num_levels=2)
    elif not isinstance(denoiser, NetworkDenoiser):
        raise ConfigError(
            "teacher: made by from_denoiser, it has no network for the student to begin with: give network='mlp', or "
            "another, which begins anew"
        )
    elif isinstance(teacher.arguments["network"], nn.Module):
        if needs_target:
            raise ConfigError(
                "teacher: its network is your own, and knows of one noise level: choose method 'consistency' or "
                "'progressive', or give network=... for the student, which is told of two"
            )
        built = copy.deepcopy(denoiser.network)  # which is told of the first of two levels
    else:
        built = build_network(teacher.arguments["network"], event_shape, contexts, num_levels=2)
        own = built.state_dict()
        # What the teacher has not is what the second level starts with: nothing that shows.
        built.load_state_dict({**own, **denoiser.network.state_dict()})
    flow_map = FlowMap(built, teacher.schedule, parametrization)
    flow_map.data_std.copy_(denoiser.data_std)
    return flow_map
