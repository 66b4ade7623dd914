"""The families of densities by name, as workflow and model files call them; a new family joins by one line."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_origin, get_type_hints

import torch
from pydantic import ConfigDict, TypeAdapter, ValidationError

from sciflow import model_file
from sciflow.conditions import Conditions
from sciflow.config import must_be
from sciflow.contexts import ContextShape
from sciflow.density import Density
from sciflow.diffusion import Diffusion, Student
from sciflow.errors import ConfigError, SciflowError, nearest
from sciflow.flows import (
    IAF,
    MAF,
    NICE,
    NSF,
    ContinuousFlow,
    Glow,
    MixtureOfFlows,
    RealNVP,
    ResidualFlow,
    TransformerFlow,
    VariationalFlow,
)

__all__ = ["FAMILIES", "build", "family_of", "load", "located"]

FAMILIES: dict[str, type[Density]] = {
    ContinuousFlow.family: ContinuousFlow,
    Diffusion.family: Diffusion,
    Glow.family: Glow,
    IAF.family: IAF,
    MAF.family: MAF,
    MixtureOfFlows.family: MixtureOfFlows,
    NICE.family: NICE,
    NSF.family: NSF,
    RealNVP.family: RealNVP,
    ResidualFlow.family: ResidualFlow,
    Student.family: Student,
    TransformerFlow.family: TransformerFlow,
    VariationalFlow.family: VariationalFlow,
}


def build(model: Mapping[str, Any], event_shape: Sequence[int], context_shape: ContextShape | None = None) -> Density:
    """Build a density from a workflow's ``model`` section: a family's name and its constructor's arguments.

    Args:
        model: ``{"name": "nsf", "num_transforms": 8}``. Its key ``context_shape`` says what the numbers of the data's
            context are, in order: ``{"season": {"label": 4}, "place": [2], "coarse": {"field": [1, 8, 8]}}``.
        event_shape: Shape of one event.
        context_shape: Shape of what it is conditioned on, or None.

    Raises:
        ConfigError: The family or an argument is unknown, or an argument's value is wrong, or the data's context has
            another size than that of the model.

    Example:
        >>> build({"name": "nsf", "num_transforms": 1}, (2,)).event_shape
        torch.Size([2])
        >>> build({"name": "nsf", "num_bin": 8}, (2,))
        Traceback (most recent call last):
        sciflow.errors.ConfigError: model.num_bin: unknown key; did you mean num_bins?
    """
    family = family_of(model)
    arguments = {key: value for key, value in model.items() if key != "name"}
    if "context_shape" in arguments:
        context_shape = _split(arguments.pop("context_shape"), context_shape)
    parameters = inspect.signature(family).parameters
    hints = get_type_hints(family.__init__)
    known = [key for key in parameters if key != "event_shape"]
    for key, value in arguments.items():
        if key not in known:
            raise ConfigError(f"model.{key}: unknown key; {nearest(str(key), known)}")
        _require_kind(key, value, hints[key])
    return family(event_shape, context_shape, **arguments)


def located(model: Mapping[str, Any]) -> dict[str, Any]:
    """Return a workflow's ``model`` section whose folders are found from any other: workers have one of their own.

    Example:
        >>> located({"name": "nsf", "num_bins": 8})
        {'name': 'nsf', 'num_bins': 8}
    """
    teacher = model.get("teacher")
    return {**model, "teacher": str(Path(teacher).absolute())} if isinstance(teacher, str) else dict(model)


def family_of(model: Mapping[str, Any]) -> type[Density]:
    """Return the class that a workflow's ``model`` section names.

    Raises:
        ConfigError: There is none of this name.

    Example:
        >>> family_of({"name": "real_nvp"}).__name__
        'RealNVP'
    """
    if not isinstance(model, Mapping):
        raise ConfigError(f"model: a mapping expected, such as {{name: nsf}}; got {model!r:.80}")
    # As the class is called, or with its words apart: RealNVP, real_nvp, real-nvp.
    plain = str(model.get("name")).lower().replace("_", "").replace("-", "")
    if plain not in FAMILIES:
        raise ConfigError(f"model.name: got {model.get('name')!r}; {nearest(plain, FAMILIES)}")
    return FAMILIES[plain]


def load(path: str | Path, device: str | torch.device = "cpu") -> Density:
    """Read a trained density back, in eval mode.

    Args:
        path: A folder that ``density.save`` wrote, or a run folder that holds one as ``model/``.
        device: Where to put it.

    Raises:
        ConfigError: There is no such device, or what is given is no path.
        ModelFileError: A file is missing, damaged, of an unknown kind, or would have to be unpickled.

    Example:
        >>> import tempfile
        >>> flow = NSF(event_shape=(2,), num_transforms=1)
        >>> load(flow.save(tempfile.mkdtemp())).event_shape
        torch.Size([2])
    """
    return model_file.load(path, FAMILIES, device)


def _split(declared: Any, context_shape: ContextShape | None) -> ContextShape | None:
    """What a workflow's model takes the data's context for."""
    if declared is None and context_shape is None:
        return None
    try:
        conditions = Conditions.of(declared)
    except SciflowError as error:
        raise ConfigError(f"model.{error}") from None
    found = Conditions.of(context_shape)
    if conditions is None or found is None or conditions.contexts.size != found.contexts.size:
        contexts = {} if conditions is None else conditions.contexts
        parts = ", ".join(f"{name} {part.shape.numel()}" for name, part in contexts.items()) or "none"
        size = "no context" if found is None else f"a context of {found.contexts.size} numbers"
        raise ConfigError(
            f"model.context_shape: the data have {size}, the model's is {parts}: name the parts of the data's context "
            "in their order, with sizes that add up to its own"
        )
    is_vector = not conditions.declared and len(conditions.shape) == 1
    return conditions.shape if is_vector else conditions.contexts


def _require_kind(key: str, value: Any, kind: Any) -> None:
    """Refuse what is of another kind than an argument, such as true for a number.

    Where there are several kinds to choose from, the constructor says best which they are.
    """
    if get_origin(kind) in (Union, UnionType):
        return
    try:
        TypeAdapter(kind, config=ConfigDict(strict=True)).validate_python(value)
    except ValidationError as error:
        problem = error.errors()[0]
        expected = "a list of whole numbers" if problem["type"] == "sequence_str" else must_be(problem)
        raise ConfigError(f"model.{key}: got {value!r}, it must be {expected}") from None
