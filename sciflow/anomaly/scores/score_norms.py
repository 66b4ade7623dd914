"""Norms of a diffusion model's score at several levels of noise, and how usual they are together (MSMA)."""

from __future__ import annotations

import torch
from torch import Tensor

from sciflow.anomaly.scores.noise import DiffusionScore
from sciflow.arguments import Arguments
from sciflow.diffusion import Diffusion

__all__ = ["ScoreNorms"]


class ScoreNorms(DiffusionScore):
    r"""Mahalanobis distance of the logarithms of score norms from those of normal rows.

    .. math:: v_l(x) = \log \left( k_l \| \nabla \log p_{k_l}(x) \| \right), \qquad
              s(x) = (v - \bar v)^T C^{-1} (v - \bar v)

    How steep the density is about a row, seen at several levels of noise :math:`k_l`, tells rows off the data at any
    scale. Source: Mahmood et al., arXiv:2010.13132, with one normal in the place of a mixture.

    Args:
        density: A trained diffusion model.
        num_levels: Levels of noise, from 0.02 to 2 deviations of events.
    """

    name = "score_norms"

    def __init__(self, density: Diffusion, num_levels: int = 8) -> None:
        checked = Arguments("ScoreNorms")
        checked.whole("num_levels", num_levels, 1, 1000)
        super().__init__(density, **checked.values)

    def _fit(self, x: Tensor, context: Tensor | None, reference: Tensor, reference_context: Tensor | None) -> None:
        norms = self._log_norms(reference, reference_context)
        norms = norms[norms.isfinite().all(1)]
        centre = norms.mean(0)
        off = norms - centre
        covariance = off.T @ off / max(1, len(norms) - 1)
        # As many rows as levels would have no covariance of their own: a share of what is on the diagonal is added.
        share = norms.shape[1] / (len(norms) + norms.shape[1])
        covariance = covariance + torch.diag((share * covariance.diagonal()).clamp_min(1e-9))
        self.found = {"centre": centre, "precision": torch.linalg.inv(covariance)}

    def _scores(self, x: Tensor, context: Tensor | None) -> Tensor:
        off = self._log_norms(x, context) - self.found["centre"]
        return ((off @ self.found["precision"]) * off).sum(1)

    def _log_norms(self, x: Tensor, context: Tensor | None) -> Tensor:
        """``[n, num_levels]``, float64."""
        y, c = self._normalised(x, context)
        norms = [
            (self._mean(y, level, c) - y).flatten(1).double().norm(dim=1) / level
            for level in self._levels(0.02, 2.0, self.arguments["num_levels"])
        ]
        return torch.stack(norms, 1).clamp_min(1e-12).log()
