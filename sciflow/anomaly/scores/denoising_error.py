"""How badly a diffusion model puts a row back together once there is noise on it."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from sciflow.anomaly.scores.noise import DiffusionScore
from sciflow.arguments import Arguments
from sciflow.diffusion import Diffusion
from sciflow.row_noise import RowNoise

__all__ = ["DenoisingError"]


class DenoisingError(DiffusionScore):
    r"""Error of denoising at several levels of noise, each in units of its median over normal rows.

    .. math:: s(x) = \frac1L \sum_{l=1}^L \log \left( 1 + \frac{E_\varepsilon \| \hat x_0(x + k_l \varepsilon) - x \|^2}
              {\operatorname{median}_l} \right)

    The noise of a row follows from its own numbers. Logarithms keep one level from drowning the others. Source: Graham
    et al., arXiv:2211.07740.

    Args:
        density: A trained diffusion model.
        num_levels: Levels of noise :math:`k_l`, from 0.1 to 2 deviations of events.
        num_draws: Draws of noise a level.
        seed: Of the noise.
    """

    name = "denoising_error"

    def __init__(self, density: Diffusion, num_levels: int = 6, num_draws: int = 4, seed: int = 0) -> None:
        checked = Arguments("DenoisingError")
        checked.whole("num_levels", num_levels, 1, 1000)
        checked.whole("num_draws", num_draws, 1, 1000)
        checked.seed(seed)
        super().__init__(density, **checked.values)

    def _fit(self, x: Tensor, context: Tensor | None, reference: Tensor, reference_context: Tensor | None) -> None:
        errors = self._errors(reference, reference_context)
        self.found = {"median": errors.nanmedian(0).values.clamp_min(1e-12)}

    def _scores(self, x: Tensor, context: Tensor | None) -> Tensor:
        return torch.log1p(self._errors(x, context) / self.found["median"]).mean(1)

    def attribution(self, x: Tensor, context: Tensor | None) -> Tensor:
        """Squared error of every element, in units of the noise and of their mean over normal rows, where fitted."""
        rows, c = self._rows(x, context)
        with self._evaluating():
            return torch.stack([square / median for square, median in self._squares(rows, c)]).mean(0)

    def _errors(self, x: Tensor, context: Tensor | None) -> Tensor:
        """Mean squared errors at every level, ``[n, num_levels]``, float64."""
        return torch.stack([square.flatten(1).mean(1) for square, _ in self._squares(x, context)], 1)

    def _squares(self, x: Tensor, context: Tensor | None) -> Iterator[tuple[Tensor, Tensor]]:
        """Squared errors of every element at every level, and the median of their mean, or that of noise; float64."""
        y, c = self._normalised(x, context)
        random = RowNoise(y / self.densities[0].denoiser.data_std.to(y.dtype), self.arguments["seed"])
        num_draws = self.arguments["num_draws"]
        levels = self._levels(0.1, 2.0, self.arguments["num_levels"])
        medians = self.found.get("median", levels.square())
        for number, (level, median) in enumerate(zip(levels, medians, strict=True)):
            total = torch.zeros(y.shape, dtype=torch.float64, device=y.device)
            for draw in range(num_draws):
                mean = self._mean(y, level, c, random.normal(number * num_draws + draw))
                # A network that loses a row far out knows no better than the mean of all events, which is 0.
                total += (mean.nan_to_num(0.0, 0.0, 0.0) - y).double().square()
            yield total / num_draws, median
