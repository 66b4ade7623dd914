"""Neural spline flow by coupling: expressive, and as fast to sample from as to evaluate."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from numbers import Real
from typing import Any

import torch

from sciflow.bijections import Bijection, Composite, LULinear, SplineCoupling, Standardize, preprocessing
from sciflow.density import MOST_SEED, checked_shape
from sciflow.errors import ConfigError
from sciflow.flows.flow import Flow
from sciflow.nets import ResidualMLP

__all__ = ["NSF"]

# Far above any use, and below what would be built for hours.
MOST_TRANSFORMS, MOST_FEATURES = 1000, 1 << 20


class NSF(Flow):
    r"""Rational-quadratic neural spline flow, RQ-NSF(C) of Durkan et al., arXiv:1906.04032.

    .. math:: f = \mathrm{LU} \circ (\mathrm{spline}_n \circ \mathrm{LU}_n) \circ \dots
                  \circ (\mathrm{spline}_1 \circ \mathrm{LU}_1)

    Every transform mixes the features linearly, in a random order, and then bends one half of them by splines that a
    residual network reads off the other half (and the context); the halves take turns. It starts as a standard normal
    of the normalised event. Events and contexts of more than one dimension are flattened.

    The defaults are those that did best on held-out rows of two tables of 10 and 8 columns (MAGIC gamma, HTRU2): fewer
    transforms do worse on both; wider networks gain on the one and overfit the other.

    Args:
        event_shape: Shape of one event.
        context_shape: Shape of what the density is conditioned on, or None.
        num_transforms: Pairs of mixing and coupling.
        hidden_features: Hidden widths of each network; equal neighbours make residual blocks.
        num_bins: Bins of each spline.
        tail_bound: The splines act within this many standard deviations; beyond, only the mixing does.
        dropout: Of the networks, while training.
        preprocess: Name or chain of the data-unit bijections, see :func:`sciflow.bijections.preprocessing`.
        seed: Of the initial weights and orders; None draws from torch's own generator.

    Raises:
        ConfigError: An argument is out of range.

    Example:
        >>> flow = NSF(event_shape=(3,), num_transforms=2, hidden_features=(64, 64), seed=0)
        >>> flow
        NSF(event_shape=(3,), context_shape=None, num_transforms=2, 22,921 parameters)
        >>> flow.log_prob(torch.zeros(5, 3)).shape, flow.sample(5, seed=1).shape
        (torch.Size([5]), torch.Size([5, 3]))
    """

    family = "nsf"

    def __init__(
        self,
        event_shape: Sequence[int],
        context_shape: Sequence[int] | None = None,
        *,
        num_transforms: int = 8,
        hidden_features: Sequence[int] = (128, 128),
        num_bins: int = 8,
        tail_bound: float = 3.0,
        dropout: float = 0.0,
        preprocess: str | Mapping[str, Any] | Sequence[str | Mapping[str, Any]] = "standardize",
        seed: int | None = None,
    ) -> None:
        num_transforms = _whole("num_transforms", num_transforms, 1, MOST_TRANSFORMS)
        hidden_features = _widths(hidden_features)
        num_bins = _whole("num_bins", num_bins, 2, 256)
        _check("tail_bound", tail_bound, _is_number(tail_bound) and 0 < tail_bound < math.inf, "a positive number")
        _check("dropout", dropout, _is_number(dropout) and 0 <= dropout < 1, "at least 0 and below 1")
        seed = None if seed is None else _whole("seed", seed, 0, MOST_SEED)
        event_shape = _shape("event_shape", event_shape)
        context_shape = None if context_shape is None else _shape("context_shape", context_shape)
        num_features = event_shape.numel()
        num_context = 0 if context_shape is None else context_shape.numel()
        network = partial(ResidualMLP, hidden_features=hidden_features, dropout=dropout)

        with torch.random.fork_rng(devices=[], enabled=seed is not None):
            if seed is not None:
                torch.default_generator.manual_seed(seed)  # torch.manual_seed would reach for the GPUs' generators too
            transforms: list[Bijection] = []
            for i in range(num_transforms):
                transforms.append(LULinear(torch.randperm(num_features)))
                transforms.append(
                    SplineCoupling(num_features, network, num_context, num_bins, tail_bound, keep_last=i % 2 == 1)
                )
            transforms.append(LULinear(torch.randperm(num_features)))

        super().__init__(
            Composite(transforms),
            event_shape,
            context_shape,
            preprocess=preprocessing(preprocess, event_shape),
            preprocess_context=None if context_shape is None else Standardize(context_shape),
            arguments={
                "num_transforms": num_transforms,
                "hidden_features": list(hidden_features),
                "num_bins": num_bins,
                "tail_bound": float(tail_bound),
                "dropout": float(dropout),
                "preprocess": preprocess,
                "seed": seed,
            },
        )

    def _summary(self) -> str:
        return f"num_transforms={self.arguments['num_transforms']}, "


def _check(name: str, value: object, valid: bool, expected: str) -> None:
    if not valid:
        raise ConfigError(f"NSF: {name} must be {expected}; got {value!r}")


def _whole(name: str, value: Any, least: int, most: int) -> int:
    """A whole number as Python's own, which JSON can hold; NumPy's are taken."""
    _check(name, value, _is_whole(value) and least <= value <= most, f"{least} to {most:,}")
    return operator.index(value)


def _widths(value: Any) -> tuple[int, ...]:
    widths = tuple(value) if isinstance(value, Iterable) else (value,)
    valid = len(widths) > 0 and all(_is_whole(width) and 1 <= width <= MOST_FEATURES for width in widths)
    _check("hidden_features", value, valid, f"whole widths of 1 to {MOST_FEATURES:,}")
    return tuple(map(operator.index, widths))


def _shape(name: str, shape: Any) -> torch.Size:
    sizes = tuple(shape) if isinstance(shape, Iterable) else (shape,)
    _check(name, shape, all(map(_is_whole, sizes)), "whole numbers")
    return checked_shape(shape, name)


def _is_whole(value: Any) -> bool:
    try:
        return operator.index(value) == value and not isinstance(value, bool)
    except TypeError:
        return False


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)
