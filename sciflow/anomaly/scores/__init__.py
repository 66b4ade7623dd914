"""Scores of anomalies by name; a new one joins by one file and one line."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from sciflow.anomaly.scores.base import Score
from sciflow.anomaly.scores.complexity import ComplexityCorrected
from sciflow.anomaly.scores.denoising_error import DenoisingError
from sciflow.anomaly.scores.diffusion_time import DiffusionTime
from sciflow.anomaly.scores.ensemble import Ensemble
from sciflow.anomaly.scores.latent_norm import LatentNorm
from sciflow.anomaly.scores.likelihood_ratio import LikelihoodRatio
from sciflow.anomaly.scores.local_dimension import LocalDimension
from sciflow.anomaly.scores.local_outlier_factor import LocalOutlierFactor
from sciflow.anomaly.scores.mean_distance import MeanDistance
from sciflow.anomaly.scores.negative_log_prob import NegativeLogProb
from sciflow.anomaly.scores.score_norms import ScoreNorms
from sciflow.anomaly.scores.subspaces import SubspaceDistance
from sciflow.anomaly.scores.typicality import Typicality
from sciflow.density import Density
from sciflow.errors import ConfigError, nearest

__all__ = [
    "SCORES",
    "ComplexityCorrected",
    "DenoisingError",
    "DiffusionTime",
    "Ensemble",
    "LatentNorm",
    "LikelihoodRatio",
    "LocalDimension",
    "LocalOutlierFactor",
    "MeanDistance",
    "NegativeLogProb",
    "Score",
    "ScoreNorms",
    "SubspaceDistance",
    "Typicality",
    "build",
    "require_known",
]

SCORES: dict[str, type[Score]] = {
    score.name: score
    for score in (
        ComplexityCorrected,
        DenoisingError,
        DiffusionTime,
        Ensemble,
        LatentNorm,
        LikelihoodRatio,
        LocalDimension,
        LocalOutlierFactor,
        MeanDistance,
        NegativeLogProb,
        ScoreNorms,
        SubspaceDistance,
        Typicality,
    )
}


def build(wanted: Any, density: Callable[[str], Density]) -> Score:
    """Return the score that is asked for.

    Args:
        wanted: A score; a density, whose minus log p it is; a name, with options ``{"denoising_error": {"num_draws":
            8}}``; or a list of them, which are put together.
        density: Gives a trained density of a family, for those that are asked for by name.

    Raises:
        ConfigError: There is no such score or option, or it cannot be made by its name alone.

    Example:
        >>> from sciflow.flows import NSF
        >>> build("nll", lambda family: NSF((2,), num_transforms=1))
        NegativeLogProb(NSF, method=None)
    """
    require_known(wanted)
    if isinstance(wanted, Score):
        return wanted
    if isinstance(wanted, Density):
        return NegativeLogProb(wanted)
    if isinstance(wanted, list | tuple):
        return Ensemble([build(each, density) for each in wanted])
    name, options = _name_and_options(wanted)
    kind = SCORES[name]
    if kind is Ensemble:
        options = {**options, "scores": [build(each, density) for each in options["scores"]]}
    try:
        return kind(*([] if kind.needs is None else [density(kind.needs)]), **options)
    except TypeError as error:
        raise ConfigError(f"score {name!r}: {str(error).partition('__init__() ')[2] or error}") from None


def require_known(wanted: Any) -> None:
    """Refuse what :func:`build` could not make, before anything is trained for it.

    Args:
        wanted: As there.

    Raises:
        ConfigError: There is no such score, it has no such option, or it cannot be made by its name alone.

    Example:
        >>> require_known(["nll", {"diffusion_time": {"num_neighbours": 10}}])
        >>> require_known("nil")
        Traceback (most recent call last):
        ...
        sciflow.errors.ConfigError: score 'nil': did you mean nll?
    """
    if isinstance(wanted, Score | Density):
        return
    if isinstance(wanted, list | tuple):
        for each in wanted:
            require_known(each)
        return
    name, options = _name_and_options(wanted)
    if name not in SCORES:
        raise ConfigError(f"score {name!r:.80}: {nearest(str(name), SCORES)}")
    kind = SCORES[name]
    if kind is Ensemble:
        members = options.get("scores")
        if not isinstance(members, list | tuple):
            raise ConfigError(
                "score 'ensemble': give its members, as scores: [nll, diffusion_time], or a list in its place"
            )
        require_known(members)
    try:
        inspect.signature(kind).bind(*([] if kind.needs is None else [None]), **options)
    except TypeError as error:
        how = "; make it of objects: LikelihoodRatio(flow, background=other)" if kind is LikelihoodRatio else ""
        raise ConfigError(f"score {name!r}: {error}{how}") from None


def _name_and_options(wanted: Any) -> tuple[Any, Mapping[str, Any]]:
    if isinstance(wanted, str):
        return wanted, {}
    if isinstance(wanted, Mapping) and len(wanted) == 1:
        name, options = next(iter(wanted.items()))
        if not isinstance(options, Mapping):
            raise ConfigError(
                f"score {name!r}: give its options as a mapping, such as {{num_draws: 8}}; got {options!r}"
            )
        return name, options
    raise ConfigError(f"score {wanted!r:.80}: give a name ({', '.join(SCORES)}), a score, or a density")
