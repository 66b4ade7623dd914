"""What a denoising network is told of the noise: its level, as features that are smooth in it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["NoiseLevelEmbedding"]

# Levels are about -2 to 2: the slowest wave hardly bends over that range, the fastest turns ten times.
_SLOWEST, _FASTEST, _NUM_FREQUENCIES = 0.25, 16.0, 32


class NoiseLevelEmbedding(nn.Module):
    r"""Map noise levels to vectors.

    .. math:: e = \sum_k \mathrm{mlp}_k\big(\cos(\omega l_k), \, \sin(\omega l_k)\big), \qquad
              l = \tfrac{1}{4} \log(\sigma / \alpha)

    The frequencies are fixed, evenly spaced in their logarithm. They stop where one wave spans a factor of five in the
    noise: faster ones, such as those of Song et al., arXiv:2011.13456, make the network rough in the level, and
    solvers and the training of consistency models pay for that (Lu & Song, arXiv:2410.11081).

    Of several levels, such as the two ends of a step, each has a perceptron of its own, and all but the first start
    at zero: a network of two levels begins as the one of one level that its weights may come from.

    Args:
        width: Length of the vectors.
        num_levels: How many levels a row has.

    Example:
        >>> embed = NoiseLevelEmbedding(128)
        >>> embed(torch.linspace(-2, 2, 5)).shape
        torch.Size([5, 128])
    """

    frequencies: Tensor

    def __init__(self, width: int, num_levels: int = 1) -> None:
        super().__init__()
        self.num_levels = num_levels
        frequencies = _SLOWEST * (_FASTEST / _SLOWEST) ** torch.linspace(0, 1, _NUM_FREQUENCIES)
        self.register_buffer("frequencies", frequencies, persistent=False)
        self.perceptrons = nn.ModuleList(_perceptron(width, zero=place > 0) for place in range(num_levels))

    def forward(self, level: Tensor) -> Tensor:
        """Return ``[n, width]``.

        Args:
            level: ``[n]``, or ``[n, num_levels]`` where there are several.
        """
        levels = level.unsqueeze(-1) if self.num_levels == 1 else level
        # Half precision would confuse levels that solvers tell apart; a float64 level keeps its digits up to here.
        with torch.autocast(level.device.type, enabled=False):
            angles = levels.unsqueeze(-1) * self.frequencies
            features = torch.cat((angles.cos(), angles.sin()), -1).to(self.frequencies.dtype)
            embedded = self.perceptrons[0](features[..., 0, :])
            for place, perceptron in enumerate(self.perceptrons[1:], start=1):
                embedded = embedded + perceptron(features[..., place, :])
            return embedded


def _perceptron(width: int, zero: bool) -> nn.Sequential:
    last = nn.Linear(width, width)
    if zero:
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
    return nn.Sequential(nn.Linear(2 * _NUM_FREQUENCIES, width), nn.SiLU(), last)
