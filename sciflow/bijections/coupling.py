"""Coupling: one half of the features decides what becomes of the other."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from sciflow.bijections.base import Bijection
from sciflow.bijections.univariate import Univariate

__all__ = ["Coupling"]


class Coupling(Bijection):
    r"""Map one half of the features by functions of one variable, whose parameters a network reads off the other half.

    .. math:: z_a = x_a, \qquad z_b = f(x_b; \, \mathrm{network}(x_a, c)), \qquad
              \log |\det J| = \sum_{i \in b} \log \partial z_i / \partial x_i

    Both directions cost one pass of the network. With a single feature nothing is left to read from: the parameters
    depend on the context alone or, without one, are learned as they are. From Dinh et al., arXiv:1605.08803.

    Args:
        num_features: Length of the vector event; ``num_features // 2`` of them stay as they are.
        univariate: The functions :math:`f`.
        network: Called as ``network(in_features, out_features)``, returns the conditioner.
        num_context: Length of the context vector; 0 for none.
        keep_last: Keep the last features and map the first ones, instead of the other way about.

    Example:
        >>> from sciflow.bijections import Spline
        >>> coupling = Coupling(3, Spline(), nn.Linear)
        >>> z, log_det = coupling(torch.tensor([[0.1, 0.2, 0.3]]))
        >>> z[0, 0].item() == torch.tensor(0.1).item(), log_det.shape
        (True, torch.Size([1]))
    """

    def __init__(
        self,
        num_features: int,
        univariate: Univariate,
        network: Callable[[int, int], nn.Module],
        num_context: int = 0,
        keep_last: bool = False,
    ) -> None:
        super().__init__((num_features,), (num_context,) if num_context else None)
        self.univariate = univariate
        self.keep_last = keep_last
        self.num_kept = num_features // 2
        self.num_mapped = num_features - self.num_kept
        num_inputs = self.num_kept + num_context
        num_outputs = univariate.num_parameters * self.num_mapped
        self.network = network(num_inputs, num_outputs) if num_inputs else None
        self.parameters_alone = None if num_inputs else nn.Parameter(torch.zeros(num_outputs))

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        kept, mapped, parameters = self._split(x, context)
        z, log_slope = self.univariate.forward(mapped, parameters)
        return self._join(kept, z), log_slope.sum(0)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        kept, mapped, parameters = self._split(z, context)
        x, log_slope = self.univariate.inverse(mapped, parameters)
        return self._join(kept, x), log_slope.sum(0)

    def _split(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Return what stays, what is mapped ``[num_mapped, *batch]``, and its parameters, a leading dimension more.

        Features first, because that is how the networks' last layers lay their outputs out: in one piece.
        """
        batch = self.batch_shape(x)
        if self.keep_last:
            mapped, kept = x.split((self.num_mapped, self.num_kept), dim=-1)
        else:
            kept, mapped = x.split((self.num_kept, self.num_mapped), dim=-1)
        context = self.broadcast_context(context, batch)
        if self.network is not None:
            flat = self.network(kept if context is None else torch.cat((kept, context), dim=-1))
        else:
            assert self.parameters_alone is not None
            flat = self.parameters_alone.expand(*batch, -1)
        return kept, mapped.movedim(-1, 0), flat.movedim(-1, 0).unflatten(0, (-1, self.num_mapped))

    def _join(self, kept: Tensor, mapped: Tensor) -> Tensor:
        mapped = mapped.movedim(0, -1)
        return torch.cat((mapped, kept) if self.keep_last else (kept, mapped), dim=-1)
