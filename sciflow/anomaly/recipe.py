"""What a detector scores by where nothing is said."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sciflow.anomaly.scores import NegativeLogProb, Score
from sciflow.density import Density

__all__ = ["default_score"]


def default_score(density: Callable[[str], Density], rows: Any) -> Score:
    """Return the score that suits rows."""
    return NegativeLogProb(density("nsf"))
