"""Options of a density's sampler: what is wrong with them is told before anything is written."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from inspect import signature
from typing import TYPE_CHECKING, Any

from torch import Tensor

from sciflow.density import Density
from sciflow.diffusion.guidance import Denoise, Guidance
from sciflow.errors import ConfigError, SciflowError, ShapeError

if TYPE_CHECKING:
    from sciflow.diffusion import Diffusion

__all__ = ["require_blocks", "require_events", "sampled"]

# What an option of a sampler cannot be called.
NOT_OPTIONS = ("self", "n", "context", "generator", "seed", "progress")


def sampled(
    density: Density, n: int, context: Tensor | None, seed: int, options: Mapping[str, Any], progress: bool = False
) -> Tensor:
    """Draw events, with a progress bar where the sampler has one.

    Args:
        density: What is drawn from.
        n: Number of draws.
        context: One context for all of them, ``[*context_shape]``, or None.
        seed: Of the draws.
        options: Of the sampler.
        progress: Show its progress bar.

    Returns:
        ``[n, *event_shape]``.
    """
    # Samplers that take long show how far they are.
    shown = {"progress": progress} if "progress" in signature(density.sample).parameters else {}
    return density.sample(n, context, seed=seed, **options, **shown)


def require_events(density: Density, context: Tensor | None, options: Mapping[str, Any]) -> None:
    """Draw nothing, with these options: what is wrong with one, the density itself tells.

    Raises:
        ConfigError: The sampler has no such option, or makes more than one event a draw of it.

    Example:
        >>> from sciflow.flows import NSF
        >>> require_events(NSF((2,), num_transforms=1), None, {"seed": 3})
        Traceback (most recent call last):
        ...
        sciflow.errors.ConfigError: option seed: not one of a sampler; what is drawn has places of its own
    """
    for name in NOT_OPTIONS:
        if name in options:
            raise ConfigError(f"option {name}: not one of a sampler; what is drawn has places of its own")
    if not _makes_more(density, context, options):
        return
    guilty = []
    for name in options:
        with suppress(SciflowError):  # one that does nothing without another
            guilty += [name] if _makes_more(density, context, {name: options[name]}) else []
    raise ConfigError(f"{', '.join(guilty or options)}: one event a draw can be written, and this makes more of it")


def require_blocks(density: Density, context: Tensor | None, options: Mapping[str, Any], sizes: Iterable[int]) -> None:
    """Refuse guidance with one observation a row, where blocks of draws are no multiple of its rows.

    Args:
        density: What is drawn from.
        context: One context for all draws, ``[*context_shape]``, or None.
        options: Of the sampler; they have passed :func:`require_events`.
        sizes: Numbers of draws that blocks have.

    Raises:
        ShapeError: They are none.
    """
    guidance = options.get("guidance")
    if not isinstance(guidance, Guidance):
        return
    for size in sizes:
        try:
            sampled(density, 0, context, 0, {**options, "guidance": _OfBlock(guidance, size)})
        except ShapeError as error:
            raise ShapeError(
                f"guidance: its rows go round in every block of draws; n and block_rows must be multiples of their "
                f"number, and a block has {size:,} draws ({error})"
            ) from None


class _OfBlock(Guidance):
    """Guidance of none of the draws of a block, which has looked at how many there are."""

    def __init__(self, guidance: Guidance, size: int) -> None:
        self._guidance, self._size = guidance, size

    def part(self, rows: range, total: int) -> Guidance:
        return self._guidance.part(range(0), self._size)

    def guided(self, density: Diffusion, context: Tensor | None) -> Denoise:
        return self._guidance.guided(density, context)


def _makes_more(density: Density, context: Tensor | None, options: Mapping[str, Any]) -> bool:
    return sampled(density, 0, context, 0, options).shape != (0, *density.event_shape)
