"""Several scores as one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from sciflow.anomaly.overlap import are_known, row_hashes
from sciflow.anomaly.scores.base import Score
from sciflow.anomaly.scores.surprise import surprise
from sciflow.arguments import Arguments
from sciflow.errors import ConfigError

__all__ = ["Ensemble"]

_COMBINATIONS = ("mean", "max")


class Ensemble(Score):
    r"""Several scores, each turned into how unusual it is among normal rows, and put together.

    .. math:: s(x) = \frac1M \sum_m u_m(x) \quad \text{or} \quad \max_m u_m(x), \qquad
              u_m(x) = -\log \hat P[s_m \ge s_m(x)]

    by ranks among rows that no density was trained on, so that units do not matter; see
    :func:`sciflow.anomaly.scores.surprise.surprise`. The mean of minus logarithms is Fisher's way to combine p-values.

    Args:
        scores: Its members.
        combine: ``"mean"``, or ``"max"``, which listens to whoever is most alarmed.

    Example:
        >>> from sciflow.anomaly.scores import LatentNorm, NegativeLogProb
        >>> from sciflow.flows import NSF
        >>> flow, rows = NSF((2,), num_transforms=1), torch.randn(200, 2)
        >>> Ensemble([NegativeLogProb(flow), LatentNorm(flow)]).fit(rows)(rows[:5]).shape
        torch.Size([5])
    """

    name = "ensemble"
    needs = None

    def __init__(self, scores: Sequence[Score], combine: str = "mean") -> None:
        checked = Arguments("Ensemble")
        checked.choice("combine", combine, _COMBINATIONS)
        scores = list(scores)
        if not scores or not all(isinstance(score, Score) for score in scores):
            raise ConfigError(f"Ensemble: one score or more expected; got {scores!r:.80}")
        super().__init__(members=scores, **checked.values)

    @property
    def event_shape(self) -> torch.Size:
        return self.members[0].event_shape

    def __repr__(self) -> str:
        return f"Ensemble([{', '.join(map(repr, self.members))}], combine={self.arguments['combine']!r})"

    def _fit(self, x: Tensor, context: Tensor | None, reference: Tensor, reference_context: Tensor | None) -> None:
        for number, member in enumerate(self.members):
            member.fit(x, context, reference=reference, reference_context=reference_context)
            self.found[f"normal-{number}"] = member.normal_values(reference, reference_context)
        self.found["seen"] = torch.from_numpy(np.unique(row_hashes(x.cpu())).view(np.int64))

    @property
    def seen(self) -> np.ndarray:
        """Hashes of the rows that it was fitted on, sorted; see :func:`sciflow.anomaly.overlap.row_hashes`."""
        return self.found["seen"].cpu().numpy().view(np.uint64)

    def _scores(self, x: Tensor, context: Tensor | None) -> Tensor:
        each = [
            surprise(member(x, context), self.found[f"normal-{number}"]) for number, member in enumerate(self.members)
        ]
        together = torch.stack(each)
        score = together.mean(0) if self.arguments["combine"] == "mean" else together.amax(0)
        seen = torch.from_numpy(are_known(row_hashes(x.cpu()), self.seen))
        return score.masked_fill(seen.to(score.device), 0.0)
