"""Coupling: one half of the features decides what becomes of the other."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from sciflow.bijections.base import Bijection
from sciflow.bijections.spline import (
    num_spline_parameters,
    rational_quadratic_spline,
    rational_quadratic_spline_inverse,
)

__all__ = ["SplineCoupling"]


class SplineCoupling(Bijection):
    r"""Bend one half of the features by splines whose shapes a network reads off the other half.

    .. math:: z_a = x_a, \qquad z_b = \mathrm{spline}(x_b; \, \mathrm{network}(x_a, c)), \qquad
              \log |\det J| = \sum_{i \in b} \log \partial z_i / \partial x_i

    Both directions cost one pass of the network. With a single feature nothing is left to read from: the splines
    depend on the context alone or, without one, are parameters of their own. From Durkan et al., arXiv:1906.04032.

    Args:
        num_features: Length of the vector event; ``num_features // 2`` of them stay as they are.
        network: Called as ``network(in_features, out_features)``, returns the conditioner.
        num_context: Length of the context vector; 0 for none.
        num_bins: Bins of each spline.
        tail_bound: The splines act on [-tail_bound, tail_bound] and leave the rest alone.
        keep_last: Keep the last features and bend the first ones, instead of the other way about.

    Example:
        >>> coupling = SplineCoupling(3, nn.Linear)
        >>> z, log_det = coupling(torch.tensor([[0.1, 0.2, 0.3]]))
        >>> z[0, 0].item() == torch.tensor(0.1).item(), log_det.shape
        (True, torch.Size([1]))
    """

    def __init__(
        self,
        num_features: int,
        network: Callable[[int, int], nn.Module],
        num_context: int = 0,
        num_bins: int = 8,
        tail_bound: float = 3.0,
        keep_last: bool = False,
    ) -> None:
        super().__init__((num_features,), (num_context,) if num_context else None)
        self.tail_bound = tail_bound
        self.keep_last = keep_last
        self.num_kept = num_features // 2
        self.num_bent = num_features - self.num_kept
        num_inputs = self.num_kept + num_context
        num_outputs = num_spline_parameters(num_bins) * self.num_bent
        self.network = network(num_inputs, num_outputs) if num_inputs else None
        self.spline = None if num_inputs else nn.Parameter(torch.zeros(num_outputs))

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        kept, bent, parameters = self._split(x, context)
        bent, log_slope = rational_quadratic_spline(bent, parameters, self.tail_bound)
        return self._join(kept, bent), log_slope.sum(-1)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        kept, bent, parameters = self._split(z, context)
        bent, log_slope = rational_quadratic_spline_inverse(bent, parameters, self.tail_bound)
        return self._join(kept, bent), log_slope.sum(-1)

    def _split(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Return what stays, what is bent, and the splines to bend it by: ``[num_parameters, *batch, num_bent]``."""
        batch = self.batch_shape(x)
        if self.keep_last:
            bent, kept = x.split((self.num_bent, self.num_kept), dim=-1)
        else:
            kept, bent = x.split((self.num_kept, self.num_bent), dim=-1)
        context = self.broadcast_context(context, batch)
        if self.network is not None:
            flat = self.network(kept if context is None else torch.cat((kept, context), dim=-1))
        else:
            assert self.spline is not None
            flat = self.spline.expand(*batch, -1)
        return kept, bent, flat.unflatten(-1, (-1, self.num_bent)).movedim(-2, 0)

    def _join(self, kept: Tensor, bent: Tensor) -> Tensor:
        return torch.cat((bent, kept) if self.keep_last else (kept, bent), dim=-1)
