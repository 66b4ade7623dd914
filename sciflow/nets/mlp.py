"""A multilayer perceptron with residual blocks."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["FeaturesFirstLinear", "ResidualMLP"]


class ResidualMLP(nn.Module):
    r"""Map vectors to vectors.

    .. math:: h_1 = W_1 x + b_1, \qquad h_{i+1} = h_i + B_i(\mathrm{relu}(A_i(\mathrm{relu}(h_i)))), \qquad
              y = W_2 \, \mathrm{relu}(h_n) + b_2

    Blocks before the activation, as in He et al., arXiv:1603.05027. Where two widths differ, a plain layer stands in
    for the block. The last layer starts at zero, so that whatever the network steers starts at its neutral setting.

    Args:
        in_features: Length of the input.
        out_features: Length of the output.
        hidden_features: Width of each hidden state.
        dropout: Probability with which a unit inside a block is silenced while training.

    Example:
        >>> net = ResidualMLP(3, 5, hidden_features=(64, 64))
        >>> net(torch.ones(2, 7, 3)).shape
        torch.Size([2, 7, 5])
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        hidden_features: Sequence[int] = (128, 128),
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.first = nn.Linear(in_features, hidden_features[0])
        self.blocks = nn.ModuleList(
            _Block(width, dropout) if width == before else nn.Sequential(nn.ReLU(True), nn.Linear(before, width))
            for before, width in pairwise(hidden_features)
        )
        self.last = FeaturesFirstLinear(hidden_features[-1], out_features)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        for block in self.blocks:
            h = block(h)
        return self.last(h.relu_())


class FeaturesFirstLinear(nn.Linear):
    """A linear layer whose output ``[*batch, out_features]`` lies in memory as ``[out_features, *batch]``.

    What it steers works element by element on long rows of events: each parameter of theirs is then in one piece.

    Example:
        >>> FeaturesFirstLinear(3, 4)(torch.ones(2, 3)).stride()
        (1, 2)
    """

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, self.in_features)
        out = torch.addmm(self.bias[:, None], self.weight, rows.T)
        return out.unflatten(-1, x.shape[:-1]).movedim(0, -1) if x.ndim > 1 else out[:, 0]


class _Block(nn.Module):
    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.inner = nn.Linear(width, width)
        self.outer = nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, h: Tensor) -> Tensor:
        # In place, where no gradient needs what was there: on a CPU fresh memory costs more than the sum itself.
        return self.outer(self.dropout(self.inner(F.relu(h)).relu_())).add_(h)
