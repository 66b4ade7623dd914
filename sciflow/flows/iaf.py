"""Inverse autoregressive flow: quick to sample from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sciflow.arguments import Arguments, seeded
from sciflow.bijections import Inverted, ShiftScale
from sciflow.contexts import ContextShape
from sciflow.flows.chains import autoregressive_chain
from sciflow.flows.flow import Flow
from sciflow.flows.sizes import Sizes

__all__ = ["IAF"]


class IAF(Flow):
    r"""Inverse autoregressive flow, Kingma et al., arXiv:1606.04934.

    .. math:: x_i = z_i \, e^{s_i(z_{<i}, c)} + t_i(z_{<i}, c)

    :class:`sciflow.flows.MAF` turned round. **Sampling is the fast direction**, one pass of each network; so is log p
    of what has just been drawn. log_prob of given events, and so training on them, goes feature by feature: take MAF
    for that, and this one where draws are what counts. It starts as a standard normal of the normalised event. Events
    and contexts of more than one dimension are flattened.

    Args:
        event_shape: Shape of one event.
        context_shape: What the density is conditioned on: a shape, a context, contexts by name, or None; see
            :mod:`sciflow.contexts`.
        num_transforms: Pairs of mixing and autoregressive map.
        hidden_features: Hidden widths of each network; equal neighbours make residual blocks.
        dropout: Of the networks, while training.
        base: Density of the noise, see :func:`sciflow.flows.base.base_density`.
        preprocess: Name or chain of the data-unit bijections, see :func:`sciflow.bijections.preprocessing`.
        seed: Of the initial weights and orders; None draws from torch's own generator.

    Raises:
        ConfigError: An argument is out of range.

    Example:
        >>> import torch
        >>> flow = IAF(event_shape=(3,), num_transforms=2, hidden_features=(64, 64), seed=0)
        >>> flow.log_prob(torch.zeros(5, 3)).shape, flow.sample(5, seed=1).shape
        (torch.Size([5]), torch.Size([5, 3]))
    """

    family = "iaf"
    one_pass = False

    def __init__(
        self,
        event_shape: Sequence[int],
        context_shape: ContextShape | None = None,
        *,
        num_transforms: int = 8,
        hidden_features: Sequence[int] = (128, 128),
        dropout: float = 0.0,
        base: Any = "normal",
        preprocess: str | Mapping[str, Any] | Sequence[str | Mapping[str, Any]] = "standardize",
        seed: int | None = None,
    ) -> None:
        arguments = Arguments("IAF")
        sizes = Sizes.checked(arguments, event_shape, context_shape, num_transforms, hidden_features, dropout)
        with seeded(arguments.seed(seed)):
            chain = autoregressive_chain(ShiftScale(), sizes)
        super().__init__(
            Inverted(chain),
            sizes.event_shape,
            sizes.context_shape,
            base=base,
            preprocess=preprocess,
            arguments=arguments.values,
        )
