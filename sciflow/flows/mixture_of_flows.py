"""A mixture of flows: what no single bijection reaches from noise, as modes that lie apart, takes several."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

from sciflow.arguments import Arguments, named, plain, seeded
from sciflow.bijections import preprocessing
from sciflow.contexts import ContextShape
from sciflow.density import Likelihood, Status
from sciflow.errors import ConfigError, nearest
from sciflow.flows.base import FullGaussianMixture
from sciflow.flows.base.contract import PACE
from sciflow.flows.flow import Flow
from sciflow.flows.glow import Glow
from sciflow.flows.iaf import IAF
from sciflow.flows.maf import MAF
from sciflow.flows.nice import NICE
from sciflow.flows.nsf import NSF
from sciflow.flows.realnvp import RealNVP
from sciflow.flows.reparametrised import Draws, Reparametrised, frozen
from sciflow.flows.residual_flow import ResidualFlow
from sciflow.flows.transformer_flow import TransformerFlow
from sciflow.flows.variational_flow import VariationalFlow

__all__ = ["MixtureOfFlows"]

_COMPONENTS: dict[str, type[Flow]] = {
    family.family: family
    for family in (Glow, IAF, MAF, NICE, NSF, RealNVP, ResidualFlow, TransformerFlow, VariationalFlow)
}
_MOST_COMPONENTS = 256
_MOST_FEATURES, _MOST_ROWS = 32, 8192  # by which rows are told apart
_FEWEST_ROWS = 16  # that a component is set up on


class MixtureOfFlows(Reparametrised):
    r"""Several flows, each of its own weight.

    .. math:: \log q(x \mid c) = \log \sum_k w_k \, q_k(x \mid c), \qquad \sum_k w_k = 1

    One flow draws all modes from one bump of noise, and leaves bridges of density between them; here each mode has a
    flow of its own. A draw is one of a component that is chosen by weight. All are trained at once: the gradient of log
    q reaches each component by the share of a row that it answers for, as in expectation maximisation. Before, each is
    set up on a share of the rows that lie together, in units of its own. There is no one map to noise, and so neither
    :meth:`encode` nor :meth:`decode`; those of ``components`` are for their own draws.

    Args:
        event_shape: Shape of one event.
        context_shape: What the density is conditioned on: a shape, a context, contexts by name, or None; weights do
            not depend on it.
        component: What the components are: the name of a flow, such as ``"nsf"``; with options,
            ``{"nsf": {"num_transforms": 4}}``; or a list with one of these for each.
        num_components: How many, where they are alike; None for 2, or the length of the list.
        preprocess: Name or chain of the data-unit bijections before all components, see
            :func:`sciflow.bijections.preprocessing`.
        seed: Of the initial weights and orders; None draws from torch's own generator.

    Raises:
        ConfigError: An argument is out of range, or a component is no flow.

    Source:
        Pires and Figueiredo, Variational mixture of normalizing flows, arXiv:2009.00585.

    Example:
        >>> mixture = MixtureOfFlows((3,), component={"nsf": {"num_transforms": 1}}, num_components=2, seed=0)
        >>> mixture.log_prob(torch.zeros(5, 3)).shape, mixture.sample(5, seed=1).shape
        (torch.Size([5]), torch.Size([5, 3]))
    """

    family = "mixtureofflows"

    def __init__(
        self,
        event_shape: Sequence[int],
        context_shape: ContextShape | None = None,
        *,
        component: str | Mapping[str, Any] | Sequence[str | Mapping[str, Any]] = "nsf",
        num_components: int | None = None,
        preprocess: str | Mapping[str, Any] | Sequence[str | Mapping[str, Any]] = "standardize",
        seed: int | None = None,
    ) -> None:
        arguments = Arguments("MixtureOfFlows")
        shape = arguments.shape("event_shape", event_shape)
        component, preprocess = plain("component", component), plain("preprocess", preprocess)
        if isinstance(component, list):
            arguments.require("component", component, 1 <= len(component) <= _MOST_COMPONENTS, "a list of 1 to 256")
            count = len(component) if num_components is None else num_components
            arguments.require("num_components", count, count == len(component), "left out beside a list of components")
        else:
            count = 2 if num_components is None else num_components
        count = arguments.whole("num_components", count, 1, _MOST_COMPONENTS)
        super().__init__(
            shape,
            context_shape,
            preprocess=preprocessing(preprocess, shape),
            arguments={"component": component, "preprocess": preprocess, "seed": None, **arguments.values},
        )
        self.arguments["seed"] = arguments.seed(seed)
        each = component if isinstance(component, list) else [component] * count
        with seeded(seed):
            self.components = nn.ModuleList(_component(given, shape, context_shape) for given in each)
        self.raw_logits = nn.Parameter(torch.zeros(count))

    @classmethod
    def of(cls, flows: Sequence[Flow], log_weights: Tensor) -> Self:
        """Mix flows that are there, of the same events, dtype and device; they are copied.

        Args:
            flows: The components.
            log_weights: Logarithms of their weights, up to a constant, ``[num_components]``.

        Example:
            >>> flows = [NSF((2,), num_transforms=1, seed=seed) for seed in (0, 1)]
            >>> MixtureOfFlows.of(flows, torch.tensor([0.25, 0.75]).log()).log_weights.exp()
            tensor([0.2500, 0.7500], grad_fn=<ExpBackward0>)
        """
        first = flows[0]
        own = ("event_shape", "context_shape", "seed")
        options = [{key: value for key, value in flow.arguments.items() if key not in own} for flow in flows]
        component = [{flow.family: given} for flow, given in zip(flows, options, strict=True)]
        context = None if first.conditions is None else first.conditions.specification
        mixture = cls(first.event_shape, context, component=component, preprocess="none")
        mixture.to(first.device, first.dtype)
        for copy, flow in zip(mixture.components, flows, strict=True):
            copy.load_state_dict(flow.state_dict())
        mixture.set_log_weights(log_weights)
        return mixture.eval()

    @property
    def flows(self) -> list[Flow]:
        """The components."""
        return list(self.components)  # type: ignore[arg-type]

    @property
    def log_weights(self) -> Tensor:
        r""":math:`\log w`, ``[num_components]``."""
        return (PACE * self.raw_logits).log_softmax(0)

    @torch.no_grad()
    def set_log_weights(self, log_weights: Tensor) -> None:
        """Take weights by their logarithms ``[num_components]``, up to a constant."""
        self.raw_logits.copy_(log_weights.to(self.raw_logits).log_softmax(0) / PACE)

    def log_prob_of_each(self, x: Tensor, wide: float = 0.0) -> Tensor:
        r""":math:`\log q_k` of rows ``[n, *event_shape]`` in data units, without context, ``[n, num_components]``.

        Args:
            x: Rows.
            wide: Share of wide draws, see :meth:`draw`.
        """
        y, log_units = self.preprocess(x)
        return torch.stack([flow.log_prob_of_draws(y, wide) for flow in self.flows], 1) + log_units[:, None]

    def fit_preprocessing(self, x: Any, context: Any = None) -> None:
        """Fit units on training rows, of all and of each component, which begins where some rows lie together."""
        super().fit_preprocessing(x, context)
        rows, c, _ = self._rows(x, context)
        with torch.no_grad():
            y = self.preprocess(rows)[0]
        usable = torch.isfinite(y).flatten(1).all(1)
        y, c = y[usable], None if c is None else c[usable]
        labels = self._divided(y, torch.Generator().manual_seed(self.arguments["seed"] or 0))
        for k, flow in enumerate(self.flows):
            places = _places(labels, k)
            flow.fit_preprocessing(y[places], None if c is None else c[places])
        self._set_shares(labels)

    def set_up(self, x: Tensor, generator: torch.Generator, labels: Tensor | None = None) -> Self:
        """Set each component up on rows that lie together, and weights on how many they are.

        A :class:`VariationalFlow` is set up by its own way, of any other flow the units are.

        Args:
            x: Rows ``[n, *event_shape]``.
            generator: Of the set-up.
            labels: Which component each row is for, ``[n]``; None for what a mixture of Gaussians says.
        """
        super().fit_preprocessing(x)
        with torch.no_grad():
            y = self.preprocess(x.to(self.dtype))[0]
        labels = self._divided(y, generator) if labels is None else labels
        for k, flow in enumerate(self.flows):
            rows = y[_places(labels, k)]
            if isinstance(flow, VariationalFlow):
                flow.set_up(rows, generator)
            else:
                flow.fit_preprocessing(rows)
        self._set_shares(labels)
        return self

    def draw(self, n: int, generator: torch.Generator, wide: float = 0.0) -> Draws:
        chances = self.log_weights.detach().exp().cpu()
        counts = torch.bincount(_chosen(n, chances, generator), minlength=len(chances)).tolist()
        x = self._drawn(counts, generator, wide)
        # In any order: the first draws of several are draws of the mixture, too.
        order = torch.randperm(n, generator=generator, device=generator.device).to(x.device)
        labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts)).to(x.device)[order]
        chosen = self.log_weights[labels]
        log_q = torch.logsumexp(self.log_prob_of_each(x[order], wide) + self.log_weights, 1)
        return Draws(x[order], log_q, torch.exp(chosen - chosen.detach()) / n)

    def draw_along_paths(self, n: int, generator: torch.Generator, even: bool = False) -> Draws:
        count = len(self.components)
        if even:
            counts = [max(1, n // count + (k < n % count)) for k in range(count)]
            x = self._drawn(counts, generator)
            share = torch.cat([self.log_weights[k].exp().expand(size) / size for k, size in enumerate(counts)])
        else:
            drawn = self.draw(n, generator)
            x, share = drawn.x, drawn.share
        with frozen(self):
            return Draws(x, torch.logsumexp(self.log_prob_of_each(x) + self.log_weights, 1), share)

    def _drawn(self, counts: Sequence[int], generator: torch.Generator, wide: float = 0.0) -> Tensor:
        """So many draws of each component, one component after the other."""
        pairs = zip(self.flows, counts, strict=True)
        y = torch.cat([flow.draw(size, generator, wide).x for flow, size in pairs if size])
        return self.preprocess.inverse(y)[0]  # type: ignore[operator]

    def _log_prob(self, y: Tensor, context: Tensor | None) -> Tensor:
        each = []
        for flow in self.flows:
            rows, log_det = flow.preprocess(y)
            each.append(flow._log_prob(rows, flow._normalise_context(context)) + log_det)
        return torch.logsumexp(torch.stack(each, 1) + self.log_weights, 1)

    def _likelihood(self, y: Tensor, context: Tensor | None, method: str | None, **options: Any) -> Likelihood:
        if method not in (None, "exact"):
            raise ConfigError(f"MixtureOfFlows knows its log p by method 'exact' alone; got {method!r}")
        if options:
            raise ConfigError(f"method 'exact' takes no options; got {', '.join(options)}")
        log_prob = self._log_prob(y, context)
        return Likelihood(
            log_prob=log_prob,
            error=torch.zeros_like(log_prob),
            nfe=torch.full_like(log_prob, len(self.components), dtype=torch.int32),
            status=torch.full_like(log_prob, Status.OK, dtype=torch.int32),
            kind="exact",
        )

    def _sample(self, n: int, context: Tensor | None, generator: torch.Generator | None, **options: Any) -> Tensor:
        if options:
            raise ConfigError(f"sampling from MixtureOfFlows takes no options; got {', '.join(options)}")
        labels = _chosen(n, self.log_weights.exp().to("cpu" if generator is None else generator.device), generator)
        labels = labels.to(self.device)
        y = torch.empty(n, *self.event_shape, dtype=self.dtype, device=self.device)
        for k, flow in enumerate(self.flows):
            places = torch.nonzero(labels == k)[:, 0]
            c = None if context is None else flow._normalise_context(context[places])
            y[places] = flow.preprocess.inverse(flow._sample(len(places), c, generator))[0]  # type: ignore[operator]
        return y

    def _encode(self, y: Tensor, context: Tensor | None) -> Tensor:
        raise ConfigError("MixtureOfFlows: a mixture has no one map to noise: take that of one of its components")

    def _decode(self, z: Tensor, context: Tensor | None) -> Tensor:
        raise ConfigError("MixtureOfFlows: a mixture has no one map from noise: sample from it, or take a component's")

    def _divided(self, y: Tensor, generator: torch.Generator) -> Tensor:
        """Which component is to begin at each of the rows ``[n, *event_shape]``, ``[n]``, by a mixture of Gaussians."""
        count = len(self.components)
        rows = y.flatten(1)
        if rows.shape[1] > _MOST_FEATURES:
            # Rows that lie apart do so in nearly every projection.
            directions = torch.randn(rows.shape[1], _MOST_FEATURES, generator=generator, dtype=torch.float64)
            rows = rows @ directions.to(rows) / math.sqrt(rows.shape[1])
        if len(rows) < count * _FEWEST_ROWS:
            return torch.arange(len(rows), device=y.device) % count
        some = rows[torch.randperm(len(rows), generator=generator)[:_MOST_ROWS].to(rows.device)]
        shares = FullGaussianMixture((rows.shape[1],), count).to(rows).fit(some, generator).shares(rows)
        labels = shares.argmax(1)
        # One that has too few takes those that are the most its own.
        for k in range(count):
            if int((labels == k).sum()) < _FEWEST_ROWS:
                labels[shares[:, k].topk(_FEWEST_ROWS).indices] = k
        return labels

    def _set_shares(self, labels: Tensor) -> None:
        # As if each had a row more: none is lost for good.
        self.set_log_weights((torch.bincount(labels, minlength=len(self.components)) + 1.0).log())

    def __repr__(self) -> str:
        names = ", ".join(dict.fromkeys(type(flow).__name__ for flow in self.flows))
        return (
            f"MixtureOfFlows(event_shape={tuple(self.event_shape)}, {len(self.components)} of {names}, "
            f"{sum(p.numel() for p in self.parameters()):,} parameters)"
        )


def _component(given: Any, event_shape: torch.Size, context_shape: ContextShape | None) -> Flow:
    """One component, by name and options."""
    name, options = named("MixtureOfFlows: component", given, _COMPONENTS)
    family: Any = _COMPONENTS[name]
    # The seed is that of the mixture: components with one of their own would be alike.
    known = inspect.signature(family).parameters.keys() - {"event_shape", "context_shape", "seed"}
    for key in options:
        if key not in known:
            raise ConfigError(f"MixtureOfFlows: component {name}: {key!r:.80}: unknown option; {nearest(key, known)}")
    flow: Flow = family(event_shape, context_shape, **options)
    if flow.preprocess.num_draws:
        raise ConfigError(f"MixtureOfFlows: component {name}: values on a grid are dequantised once: by its preprocess")
    return flow


def _places(labels: Tensor, k: int) -> Tensor:
    """Which rows a component begins at, ``[n]`` true or false; all, where there are none for it."""
    own = labels == k
    return own if own.any() else torch.ones_like(own)


def _chosen(n: int, chances: Tensor, generator: torch.Generator | None) -> Tensor:
    """Places ``[n]`` of components, each drawn by its chance."""
    ends = chances.double().cumsum(0)
    uniform = torch.rand(n, generator=generator, dtype=torch.float64, device=ends.device)
    return torch.searchsorted(ends, uniform, right=True).clamp_max(len(ends) - 1)
