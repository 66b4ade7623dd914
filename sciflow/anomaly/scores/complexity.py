"""Surprise less what the mere complexity of an event explains."""

from __future__ import annotations

import math
import zlib

import numpy as np
import torch
from torch import Tensor

from sciflow.anomaly.scores.base import Score
from sciflow.density import Density

__all__ = ["ComplexityCorrected"]

_LEVELS = 256


class ComplexityCorrected(Score):
    r"""Surprise less the length of the event when it is compressed, both in nats.

    .. math:: s(x) = -\log p(x) - L(x)

    Smooth fields are likely under any density of fields, whatever it was trained on; a general compressor knows that,
    too. Events are rounded to 256 steps between the extremes of normal rows and compressed by deflate, as they are and
    as differences along every axis; the shortest counts. Source: Serrà et al., arXiv:1909.11480.

    Args:
        density: Any trained density; of fields, series or long vectors.
    """

    name = "complexity_corrected"

    def __init__(self, density: Density) -> None:
        super().__init__(density)

    def _fit(self, x: Tensor, context: Tensor | None, reference: Tensor, reference_context: Tensor | None) -> None:
        self.found = {"low": x.amin(), "high": x.amax()}

    def _scores(self, x: Tensor, context: Tensor | None) -> Tensor:
        low, high = self.found["low"], self.found["high"]
        unit = ((x - low) / (high - low).clamp_min(torch.finfo(x.dtype).tiny)).nan_to_num(0.0).clamp(0, 1)
        steps = (unit * (_LEVELS - 1)).round().to(torch.uint8).cpu().numpy()
        lengths = torch.tensor([_compressed(event) for event in steps], dtype=torch.float64, device=x.device)
        return -self.densities[0].log_prob(x, context).double() - lengths


def _compressed(event: np.ndarray) -> float:
    """Nats of an event of bytes."""
    forms = [event, *(np.diff(event, axis=axis, prepend=np.uint8(0)) for axis in range(event.ndim))]
    return 8 * math.log(2) * min(len(zlib.compress(form.tobytes(), 9)) for form in forms)
