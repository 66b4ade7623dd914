"""What a variational fit lowers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sciflow.arguments import Arguments, named
from sciflow.flows import Reparametrised
from sciflow.inference.variational.log_density import LogDensity

__all__ = ["Objective", "objective_of"]

_LARGEST_ADVANTAGE = 20.0


@dataclass(frozen=True)
class Objective:
    r"""A divergence between a density that draws with a gradient, and the target.

    With :math:`w_i = \tilde p(x_i) / q(x_i)` over groups of draws of q, and :math:`\hat w \propto w^{1 - \alpha}`
    of sum 1 in a group, the gradient is

    .. math:: -\sum_i \left(\alpha \hat w_i + (1 - \alpha) \hat w_i^2\right) \,
              \frac{\partial \log w_i}{\partial x_i} \frac{\partial x_i}{\partial \theta}

    along the path of the draws alone, with no score term: at :math:`\alpha = 1` sticking the landing for the reverse KL
    (Roeder et al., arXiv:1703.09194), at 0 the doubly reparametrised one of the importance-weighted bound, between them
    that of Rényi's (Tucker et al., arXiv:1810.04152). It vanishes for every draw where q is right. Weights of
    components have no path: theirs is the gradient of the reverse KL by what each draw counts
    (:class:`~sciflow.flows.reparametrised.Draws`), which a mixture of flows knows exactly at :math:`\alpha = 1`, for it
    then draws from every component alike.

    Forward KL raises log q at particles of the density, which covers every mode they are in.

    Attributes:
        name: As users say it.
        alpha: Of the divergence; None for forward KL.
        group: Draws in a group.
        by: Where the particles of forward KL come from: ``"annealing"``, or ``"importance"``, the flow's own draws with
            their weights.
    """

    name: str
    alpha: float | None
    group: int = 1
    by: str = "annealing"

    def loss(
        self,
        flow: Reparametrised,
        density: LogDensity,
        size: int,
        generator: torch.Generator,
        particles: Callable[[], Tensor],
    ) -> Tensor:
        """A scalar whose gradient goes down the divergence.

        Args:
            flow: What is trained.
            density: Target.
            size: Rows of a batch.
            generator: Of the draws.
            particles: Gives a batch of particles of the target.
        """
        if self.alpha is None and self.by == "annealing":
            return -flow.log_prob(particles()).mean()
        if self.alpha is None:
            with torch.no_grad():
                drawn = flow.draw(size, generator)
            weights = torch.softmax(density(drawn.x) - drawn.log_q, 0)
            used = weights > 0
            return -(weights[used] * flow.log_prob(drawn.x[used])).sum()
        size = max(1, size // self.group) * self.group
        drawn = flow.draw_along_paths(size, generator, even=self.alpha == 1)
        log_p, usable = density.differentiable(drawn.x)
        usable = usable & torch.isfinite(drawn.log_q)
        log_w = torch.where(usable, log_p - drawn.log_q, 0.0)
        counts = self.group * self._counts(log_w.detach(), usable)
        return -(drawn.share.detach() * counts * log_w).sum() + _of_shares(drawn.share, log_w.detach(), usable)

    def _counts(self, log_w: Tensor, usable: Tensor) -> Tensor:
        """What each draw counts, of sum 1 in a group where alpha is 1; those without a density count nothing."""
        assert self.alpha is not None
        masked = torch.where(usable, (1 - self.alpha) * log_w, -torch.inf).reshape(-1, self.group)
        shares = torch.softmax(masked, 1).nan_to_num(0.0).flatten()
        return self.alpha * shares + (1 - self.alpha) * shares.square()


def objective_of(given: Any) -> Objective:
    """Return the objective of a name, or of a name with options.

    Args:
        given: ``"reverse_kl"``, ``"iw_elbo"``, ``"alpha"`` or ``"forward_kl"``; with options
            ``{"iw_elbo": {"group": 8}}``, ``{"alpha": {"alpha": 0.5, "group": 8}}``,
            ``{"forward_kl": {"by": "importance"}}``.

    Raises:
        ConfigError: There is no such objective, or option.

    Example:
        >>> objective_of({"alpha": {"alpha": 0.3}})
        Objective(name='alpha', alpha=0.3, group=8, by='annealing')
    """
    given = given.replace("-", "_").lower() if isinstance(given, str) else given
    kinds = {"reverse-kl": "reverse_kl", "iw-elbo": "iw_elbo", "alpha": "alpha", "forward-kl": "forward_kl"}
    name, options = named("objective", given, kinds)
    return _KINDS[kinds[name]](Arguments(f"objective {kinds[name]}"), options)


def _reverse_kl(arguments: Arguments, options: Mapping[str, Any]) -> Objective:
    _only(arguments, options)
    return Objective("reverse_kl", 1.0)


def _iw_elbo(arguments: Arguments, options: Mapping[str, Any]) -> Objective:
    _only(arguments, options, "group")
    return Objective("iw_elbo", 0.0, arguments.whole("group", options.get("group", 8), 2, 4096))


def _alpha(arguments: Arguments, options: Mapping[str, Any]) -> Objective:
    _only(arguments, options, "alpha", "group")
    alpha = arguments.number("alpha", options.get("alpha", 0.5), 0.0, 1.0)
    return Objective("alpha", alpha, arguments.whole("group", options.get("group", 8), 2, 4096))


def _forward_kl(arguments: Arguments, options: Mapping[str, Any]) -> Objective:
    _only(arguments, options, "by")
    by = arguments.choice("by", options.get("by", "annealing"), ["annealing", "importance"])
    return Objective("forward_kl", None, by=by)


_KINDS = {"reverse_kl": _reverse_kl, "iw_elbo": _iw_elbo, "alpha": _alpha, "forward_kl": _forward_kl}


def _only(arguments: Arguments, options: Mapping[str, Any], *known: str) -> None:
    expected = f"options {', '.join(known)}" if known else "left without options"
    arguments.require("it", dict(options), set(options) <= set(known), expected)


def _of_shares(share: Tensor, log_w: Tensor, usable: Tensor) -> Tensor:
    """The gradient of what each draw counts, about the mean of the batch."""
    held = torch.where(usable, share.detach(), 0.0)
    mean = (held * log_w).sum() / held.sum().clamp_min(torch.finfo(held.dtype).tiny)
    advantage = (log_w - mean).clamp(-_LARGEST_ADVANTAGE, _LARGEST_ADVANTAGE)
    return -(share * torch.where(usable, advantage, 0.0)).sum()
