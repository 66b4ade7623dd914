"""Residual flow: every feature moves by all the others at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from sciflow.arguments import MOST_FEATURES, Arguments, seeded
from sciflow.bijections import Bijection, Composite, LULinear, Residual
from sciflow.bijections.residual import NUM_ESTIMATES
from sciflow.contexts import ContextShape
from sciflow.density import MOST_SEED, Likelihood, Status
from sciflow.errors import ConfigError
from sciflow.flows.flow import Flow
from sciflow.flows.sizes import Sizes
from sciflow.likelihood import error_of_mean
from sciflow.nets import LipschitzMLP

__all__ = ["ResidualFlow"]


class ResidualFlow(Flow):
    r"""Invertible residual network, Behrmann et al., arXiv:1811.00995, and Chen et al., arXiv:1906.02735.

    .. math:: f = \mathrm{linear} \circ (\mathrm{residual}_n \circ \mathrm{linear}_n) \circ \dots
                  \circ (\mathrm{residual}_1 \circ \mathrm{linear}_1), \qquad
              \mathrm{residual}: \; z = x + g(x, c), \; \| g(x, c) - g(y, c) \| < \| x - y \|

    Each transform mixes the features by a learned matrix and then adds a network that can only shrink distances
    (:class:`sciflow.nets.LipschitzMLP`), which makes the sum invertible; no feature is kept or comes before another.
    The density is smooth. It starts as a standard normal of the normalised event. Events and contexts of more than one
    dimension are flattened.

    The log-determinant takes a product with the Jacobian for every feature, and is exact, up to ``exact_features``
    features while training and 16 times as many afterwards. Above, training takes an unbiased estimate, new at every
    step, and in eval mode log p is the mean of several, by draws that do not change: a function of the row alone.
    Sampling repeats the networks, 8 to 20 times as a rule, until every row has converged; it raises an error if one
    does not.

    Where it is estimated, ``likelihood`` gives the error, two of which hold the truth for 95 % of rows, and takes

    - ``num_estimates``, 4 or more (16): the error falls as its square root;
    - ``seed`` (0) of the draws, which are the same for all rows, so that the errors of rows are not independent;
    - ``method="exact"``: no estimates, in any dimension.

    Args:
        event_shape: Shape of one event.
        context_shape: What the density is conditioned on: a shape, a context, contexts by name, or None; see
            :mod:`sciflow.contexts`.
        num_transforms: Pairs of mixing and residual map.
        hidden_features: Hidden widths of each network.
        lipschitz: Bound on how far apart a network's outputs are, in units of how far its inputs are; above 0, below 1.
        exact_features: Up to this many features training takes the exact log-determinant; at 6 features its steps
            take 1.4 times as long as those with an estimate, at 21 features 3 times, at 43 features 6 times.
        base: Density of the noise, see :func:`sciflow.flows.base.base_density`.
        preprocess: Name or chain of the data-unit bijections, see :func:`sciflow.bijections.preprocessing`.
        seed: Of the initial weights; None draws from torch's own generator.

    Raises:
        ConfigError: An argument is out of range.

    Example:
        >>> flow = ResidualFlow(event_shape=(3,), num_transforms=2, hidden_features=(64, 64), seed=0)
        >>> flow.log_prob(torch.zeros(5, 3)).shape, flow.sample(5, seed=1).shape
        (torch.Size([5]), torch.Size([5, 3]))
        >>> wide = ResidualFlow(event_shape=(300,), num_transforms=1, seed=0)
        >>> wide.likelihood(torch.zeros(5, 300), num_estimates=64).error.shape
        torch.Size([5])
    """

    family = "residualflow"

    def __init__(
        self,
        event_shape: Sequence[int],
        context_shape: ContextShape | None = None,
        *,
        num_transforms: int = 8,
        hidden_features: Sequence[int] = (128, 128),
        lipschitz: float = 0.97,
        exact_features: int = 16,
        base: Any = "normal",
        preprocess: str | Mapping[str, Any] | Sequence[str | Mapping[str, Any]] = "standardize",
        seed: int | None = None,
    ) -> None:
        arguments = Arguments("ResidualFlow")
        sizes = Sizes.checked(arguments, event_shape, context_shape, num_transforms, hidden_features)
        lipschitz = arguments.fraction("lipschitz", lipschitz)
        arguments.require("lipschitz", lipschitz, lipschitz > 0, "above 0 and below 1")
        exact_features = arguments.whole("exact_features", exact_features, 0, MOST_FEATURES)
        as_it_is = torch.arange(sizes.num_features)
        with seeded(arguments.seed(seed)):
            transforms: list[Bijection] = []
            for _ in range(sizes.num_transforms):
                network = LipschitzMLP(sizes.num_features, sizes.hidden_features, sizes.num_context, lipschitz)
                transforms += [LULinear(as_it_is), Residual(network, exact_features)]
            transforms.append(LULinear(as_it_is))
        super().__init__(
            Composite(transforms),
            sizes.event_shape,
            sizes.context_shape,
            base=base,
            preprocess=preprocess,
            arguments=arguments.values,
        )

    def _log_prob(self, y: Tensor, context: Tensor | None) -> Tensor:
        if self.training or self._is_exact:
            return super()._log_prob(y, context)
        return self._likelihood(y, context, None).log_prob

    def _likelihood(self, y: Tensor, context: Tensor | None, method: str | None, **options: Any) -> Likelihood:
        estimated = method is None and not self._is_exact
        if options and method is None and not estimated:
            raise ConfigError(
                f"log p of {self.event_shape.numel()} features is exact here, and takes no options; got "
                f"{', '.join(options)}. A smaller exact_features ({self.arguments['exact_features']}) has it estimated"
            )
        if method not in (None, "exact") or (options and not estimated):
            return super()._likelihood(y, context, method, **options)  # which says what is wrong
        num_estimates, generator = _draws(**options)
        z, c = self._shaped(y), context
        log_dets = y.new_zeros(len(y), num_estimates if estimated else 1)
        num_products = y.new_zeros(len(y))
        for bijection in self._chain:
            if not isinstance(bijection, Residual):
                z, log_det = bijection(z, c)
                log_dets = log_dets + log_det.unsqueeze(-1)
            elif estimated:
                z, estimates, count = bijection.estimated(z, c, num_estimates, generator)
                log_dets, num_products = log_dets + estimates, num_products + count
            else:
                z, log_det = bijection.exact(z, c)
                log_dets, num_products = log_dets + log_det.unsqueeze(-1), num_products + z.shape[-1]
        log_prob = self.base.log_prob(z.reshape(y.shape)) + log_dets.mean(-1)
        error = error_of_mean(log_dets, dim=-1) if estimated else torch.zeros_like(log_prob)
        # One evaluation is that of all networks in turn, and so is one product with their Jacobians.
        nfe = 1 + num_products / self.arguments["num_transforms"]
        return Likelihood(
            log_prob=log_prob,
            error=error,
            nfe=nfe.ceil().to(torch.int32),
            status=torch.full_like(log_prob, Status.OK, dtype=torch.int32),
            kind="exact",
        )

    def _encode(self, y: Tensor, context: Tensor | None) -> Tensor:
        z, c = self._shaped(y), context
        for bijection in self._chain:
            z = bijection.moved(z, c) if isinstance(bijection, Residual) else bijection(z, c)[0]
        return z.reshape(y.shape)

    def _decode(self, z: Tensor, context: Tensor | None) -> Tensor:
        y, c = self._shaped(z), context
        for bijection in reversed(self._chain):
            y = bijection.solved(y, c) if isinstance(bijection, Residual) else bijection.inverse(y, c)[0]
        return y.reshape(z.shape)

    @property
    def _chain(self) -> list[Bijection]:
        return list(cast(Sequence[Bijection], self.transform.bijections))

    @property
    def _is_exact(self) -> bool:
        return all(bijection.is_exact for bijection in self._chain if isinstance(bijection, Residual))


def _draws(num_estimates: int = NUM_ESTIMATES, seed: int = 0, **unknown: Any) -> tuple[int, torch.Generator]:
    """The options of an estimated likelihood, checked."""
    if unknown:
        known = f"num_estimates ({NUM_ESTIMATES}), seed (0)"
        raise ConfigError(f"an estimated log-determinant takes the options {known}; got {', '.join(unknown)}")
    options = Arguments("ResidualFlow.likelihood")
    # Of three numbers or fewer, Student's t has no standard deviation.
    num_estimates = options.whole("num_estimates", num_estimates, 4, 1 << 20)
    return num_estimates, torch.Generator().manual_seed(options.whole("seed", seed, 0, MOST_SEED))
