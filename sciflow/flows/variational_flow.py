"""The flow of variational inference: marginals, couplings that stretch and bend, and a mixture at the far end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Self

import torch
from torch import Tensor, nn

from sciflow.arguments import MOST_TRANSFORMS, Arguments, seeded
from sciflow.bijections import (
    Bijection,
    Composite,
    Coupling,
    Elementwise,
    InTurn,
    LULinear,
    Permutation,
    ShiftScale,
    Spline,
)
from sciflow.flows.base.full_mixture import FullGaussianMixture
from sciflow.flows.flow import Flow
from sciflow.nets import ResidualMLP

__all__ = ["VariationalFlow"]

_MARGINAL_BINS = 16
_TAIL_BOUND = 4.0
_STEPS, _BATCH, _RATE = 200, 512, 5e-3


class VariationalFlow(Flow):
    r"""A flow that is set up on particles of a posterior before it is trained.

    .. math:: f = \mathrm{coupling}_n \circ \mathrm{LU}_n \circ \dots \circ \mathrm{coupling}_1 \circ \mathrm{LU}_1
                  \circ \mathrm{marginals}, \qquad z \sim \sum_k w_k \, \mathcal{N}(\mu_k, L_k L_k^\top)

    Splines take the marginals' shapes, a linear map their correlations, couplings that stretch and then bend
    (:class:`sciflow.bijections.InTurn`) what depends on what, however much scales vary, as they do in a funnel; and
    what lies apart, as modes do, lies apart in the base. :meth:`set_up` fits all but the couplings to particles.
    With no couplings, no marginals and one component it is a Gaussian of full rank. Events are flattened.

    Args:
        event_shape: Shape of one event.
        num_transforms: Pairs of mixing and coupling; 0 for none.
        hidden_features: Hidden widths of each network; equal neighbours make residual blocks.
        num_bins: Bins of the splines in couplings; those of the marginals have 16.
        marginals: Whether there are splines for the marginals.
        num_components: Of the mixture.
        preprocess: Name or chain of the data-unit bijections, see :func:`sciflow.bijections.preprocessing`.
        seed: Of the initial weights and orders; None draws from torch's own generator.

    Raises:
        ConfigError: An argument is out of range.

    Example:
        >>> flow = VariationalFlow((3,), num_transforms=2, hidden_features=(32, 32), seed=0)
        >>> flow.log_prob(torch.zeros(5, 3)).shape, flow.sample(5, seed=1).shape
        (torch.Size([5]), torch.Size([5, 3]))
    """

    family = "variationalflow"
    base: FullGaussianMixture

    def __init__(
        self,
        event_shape: Sequence[int],
        context_shape: None = None,
        *,
        num_transforms: int = 4,
        hidden_features: Sequence[int] = (64, 64),
        num_bins: int = 8,
        marginals: bool = True,
        num_components: int = 1,
        preprocess: str | Mapping[str, Any] | Sequence[str | Mapping[str, Any]] = "standardize",
        seed: int | None = None,
    ) -> None:
        arguments = Arguments("VariationalFlow")
        arguments.require("context_shape", context_shape, context_shape is None, "left out: it has no context")
        shape = arguments.shape("event_shape", event_shape)
        size = shape.numel()
        count = arguments.whole("num_transforms", num_transforms, 0, MOST_TRANSFORMS)
        network = partial(ResidualMLP, hidden_features=arguments.widths("hidden_features", hidden_features))
        bent = InTurn([ShiftScale(), Spline(arguments.whole("num_bins", num_bins, 2, 256), _TAIL_BOUND)])
        shaped = InTurn([ShiftScale(), Spline(_MARGINAL_BINS, _TAIL_BOUND)])
        chain: list[Bijection] = []
        with seeded(arguments.seed(seed)):
            if arguments.flag("marginals", marginals):
                chain.append(Elementwise(size, shaped))
            order = torch.arange(size)
            for i in range(max(1, count)):
                turned = torch.randperm(size) if i else torch.arange(size)
                chain.append(LULinear(turned))
                order = order[turned]
                if count and size > 1:
                    chain.append(Coupling(size, bent, network, keep_last=i % 2 == 1))
            chain.append(Permutation(order.argsort()))
            base = FullGaussianMixture(shape, arguments.whole("num_components", num_components, 1, 4096))
        # The base is built of num_components anew, when it is loaded.
        super().__init__(Composite(chain), shape, base=base, preprocess=preprocess, arguments=arguments.values)
        self.arguments.pop("base")

    def set_up(self, x: Tensor, generator: torch.Generator) -> Self:
        """Fit units, marginals, correlations and base to rows ``[n, *event_shape]``; couplings stay as they are."""
        self.fit_preprocessing(x)
        with torch.no_grad():
            y = self.preprocess(x.to(self.dtype))[0].flatten(1)
        parts = self._chain()
        if isinstance(parts[0], Elementwise):
            _fit_marginals(parts[0], y, generator)
        with torch.no_grad():
            first = next(part for part in parts if isinstance(part, LULinear))
            first.whiten(parts[0](y)[0] if isinstance(parts[0], Elementwise) else y)
            z, _ = self.transform(y)
        self.base.fit(z.reshape(len(z), *self.event_shape), generator)
        return self

    def _chain(self) -> list[nn.Module]:
        assert isinstance(self.transform, Composite)
        return list(self.transform.bijections)


def _fit_marginals(marginals: Elementwise, y: Tensor, generator: torch.Generator) -> None:
    """Bring each feature to a normal, by maximum likelihood of its own."""
    optimizer = torch.optim.Adam(marginals.parameters(), _RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, _STEPS)
    with torch.enable_grad():
        for _ in range(_STEPS):
            rows = y[torch.randint(len(y), (min(_BATCH, len(y)),), generator=generator).to(y.device)]
            z, log_det = marginals(rows)
            optimizer.zero_grad()
            (0.5 * z.square().sum(-1) - log_det).mean().backward()
            optimizer.step()
            schedule.step()
    optimizer.zero_grad()
