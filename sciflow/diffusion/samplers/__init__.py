"""Samplers: how to come from noise to events, in how many evaluations of the denoiser."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

from sciflow.arguments import named
from sciflow.diffusion.samplers.contract import Past, Point, Process, Sampler
from sciflow.diffusion.samplers.ddim import DDIM
from sciflow.diffusion.samplers.dpm import DPMSolver
from sciflow.diffusion.samplers.drive import trajectory
from sciflow.diffusion.samplers.edm import EDM
from sciflow.diffusion.samplers.euler import Euler, EulerMaruyama, Heun
from sciflow.diffusion.samplers.predictor_corrector import PredictorCorrector
from sciflow.diffusion.samplers.spacing import SPACINGS, Spacing, times
from sciflow.diffusion.samplers.unipc import UniPC
from sciflow.errors import ConfigError, nearest

__all__ = [
    "DDIM",
    "EDM",
    "SAMPLERS",
    "SPACINGS",
    "DPMSolver",
    "Euler",
    "EulerMaruyama",
    "Heun",
    "Past",
    "Point",
    "PredictorCorrector",
    "Process",
    "Sampler",
    "Spacing",
    "UniPC",
    "sampler",
    "times",
    "trajectory",
]

SAMPLERS: dict[str, Sampler] = {
    "ddpm": DDIM(eta=1.0),
    "ddim": DDIM(),
    "euler-maruyama": EulerMaruyama(),
    "predictor-corrector": PredictorCorrector(),
    "euler": Euler(),
    "heun": Heun(),
    "edm": EDM(),
    "dpm++": DPMSolver(),
    "dpm++3": DPMSolver(order=3),
    "unipc": UniPC(),
    "unipc3": UniPC(order=3),
}


def sampler(given: str | Mapping[str, Any] | Sampler) -> Sampler:
    """Return a sampler by name, or as it is.

    Args:
        given: A name of :data:`SAMPLERS`; with options a mapping, such as ``{"ddim": {"eta": 0.5}}``; or a
            :class:`Sampler`.

    Raises:
        ConfigError: There is no such sampler, or it does not take these options.

    Example:
        >>> sampler("ddpm"), sampler({"dpm++": {"order": 3}})
        (DDIM(eta=1.0), DPMSolver(order=3, variable='signal', eta=0.0))
        >>> sampler("dpm+")
        Traceback (most recent call last):
        sciflow.errors.ConfigError: sampler: unknown 'dpm+'; did you mean dpm++?
    """
    if isinstance(given, Sampler):
        return given
    name, options = named("sampler", given, SAMPLERS)
    found = SAMPLERS[name]
    known = [field.name for field in fields(found)]  # type: ignore[arg-type]
    for option in options:
        if option not in known:
            raise ConfigError(f"sampler: {name} does not take {option!r:.80}; {nearest(str(option), known)}")
    return replace(found, **options)  # type: ignore[type-var]
