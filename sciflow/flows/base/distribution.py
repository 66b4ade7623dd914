"""Any distribution of ``torch.distributions`` as a base."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, Self

import torch
from torch import Tensor
from torch.distributions import Distribution, Transform, VonMises, constraints

from sciflow.arguments import GENERATORS
from sciflow.errors import ConfigError, ShapeError
from sciflow.flows.base.contract import Base
from sciflow.flows.base.description import described

__all__ = ["TorchDistribution"]


class TorchDistribution(Base):
    """A distribution of ``torch.distributions`` over all real numbers, with its parameters as they are.

    Batch and event dimensions of the distribution together are the event, or broadcast to it: ``Laplace(0.0, 1.0)``
    stands for independent Laplace noise in every element. The parameters are not learned (the flow moves and scales
    what they are not); they go with the flow to its device and its dtype.

    Args:
        distribution: The distribution.
        event_shape: Shape of one event.

    Raises:
        ConfigError: It is discrete, lives on a part of the real numbers, or cannot be drawn from or evaluated.
        ShapeError: Its shape does not broadcast to that of an event.

    Example:
        >>> TorchDistribution(torch.distributions.Laplace(0.0, 1.0), (3,)).log_prob(torch.zeros(1, 3))
        tensor([-2.0794])
    """

    anchor: Tensor

    def __init__(self, distribution: Distribution, event_shape: Sequence[int]) -> None:
        super().__init__(event_shape)
        _require_real(distribution)
        self.given = _mapped(distribution, Tensor.detach)
        self.expanded = _expanded(self.given, self.event_shape)
        # It has no value of its own: it shows where the model is, and in which dtype.
        self.register_buffer("anchor", torch.zeros(()), persistent=False)
        self._follow()
        self._try_out()

    @property
    def specification(self) -> Any:
        """Its class and parameters; the distribution itself where those do not tell all, which no file can hold."""
        description = described(self.given)
        return self.given if description is None else {"distribution": description}

    def log_prob(self, z: Tensor) -> Tensor:
        if len(z) == 0:
            return z.new_zeros(0)  # which some of torch's own cannot shape
        # Those of vectors multiply matrices, which autocast would do in half precision.
        with torch.autocast(z.device.type, enabled=False):
            terms = self.distribution.log_prob(z)
        return terms.reshape(len(z), self.expanded.batch_shape.numel()).sum(-1)

    def sample(self, n: int, generator: torch.Generator | None, dtype: torch.dtype, device: torch.device) -> Tensor:
        size = (max(1, n),)  # some of torch's own cannot draw nothing
        if generator is None:
            return self.distribution.sample(size)[:n].to(device, dtype)
        # Distributions draw from torch's own generators: these are set for the while, and put back.
        seed = int(torch.randint(2**63 - 1, (), generator=generator, device=generator.device))
        with GENERATORS, torch.random.fork_rng([] if device.type == "cpu" else [device]):
            if device.type == "cpu":
                torch.default_generator.manual_seed(seed)
            else:
                with torch.cuda.device(device):
                    torch.cuda.manual_seed(seed)
            return self.distribution.sample(size)[:n].to(device, dtype)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """What ``to``, ``double`` and ``cuda`` come down to."""
        super()._apply(fn, recurse)
        self._follow()
        return self

    def _follow(self) -> None:
        """Bring the parameters to where the model is: each time from those given, which lose no digits."""

        def move(t: Tensor) -> Tensor:
            return t.to(self.anchor) if t.is_floating_point() else t.to(self.anchor.device)

        self.distribution = _mapped(self.expanded, move)

    def _try_out(self) -> None:
        generator = torch.Generator().manual_seed(0)
        try:
            log_prob = self.log_prob(self.sample(2, generator, self.anchor.dtype, self.anchor.device))
        except (NotImplementedError, RuntimeError, ValueError) as error:
            raise ConfigError(f"base: {_name(self.given)} cannot be drawn from and evaluated: {error}") from None
        if not log_prob.isfinite().all():
            raise ConfigError(f"base: {self.given}: log p of its own draws is {log_prob.tolist()}")


def _require_real(distribution: Distribution) -> None:
    if not isinstance(distribution, Distribution):
        raise ConfigError(f"base: an instance of torch.distributions.Distribution expected; got {distribution!r}")
    try:
        support: Any = distribution.support
    except NotImplementedError:
        raise ConfigError(f"base: {_name(distribution)} does not tell its support: it must define `support`") from None
    if getattr(support, "is_discrete", False):
        raise ConfigError(f"base: {_name(distribution)} is discrete; noise must have a density")
    while hasattr(support, "base_constraint"):
        support = support.base_constraint
    # That of von Mises says real numbers, and is a circle.
    if support is not constraints.real or isinstance(distribution, VonMises):
        raise ConfigError(
            f"base: {_name(distribution)} does not live on all real numbers, which a flow maps events to; "
            "for bounded or positive events use preprocess=logit or log1p"
        )


def _expanded(distribution: Distribution, event_shape: torch.Size) -> Distribution:
    num_batch_dims = len(event_shape) - len(distribution.event_shape)
    lead = event_shape[: max(0, num_batch_dims)]
    shape = [*distribution.batch_shape, *distribution.event_shape]
    problem = f"base: {_name(distribution)} of shape {shape} does not broadcast to events of shape {list(event_shape)}"
    if num_batch_dims < 0 or distribution.event_shape != event_shape[num_batch_dims:]:
        raise ShapeError(problem)
    if distribution.batch_shape == lead:
        return distribution
    try:
        if torch.broadcast_shapes(distribution.batch_shape, lead) != lead:
            raise ShapeError(problem)
        return distribution.expand(lead)
    except (RuntimeError, NotImplementedError):
        raise ShapeError(problem) from None


def _mapped(value: Any, move: Callable[[Tensor], Tensor], done: dict[int, Any] | None = None) -> Any:
    """Copy a distribution, and map every tensor in it.

    The copy does not check what it is given: that would look at every value, and stop a compiler.
    """
    done = {} if done is None else done
    if isinstance(value, Tensor):
        return move(value)
    if isinstance(value, Distribution | Transform):
        if id(value) not in done:  # a transform and its inverse hold each other
            done[id(value)] = twin = copy.copy(value)
            for name, attribute in vars(value).items():
                twin.__dict__[name] = _mapped(attribute, move, done)
            if isinstance(value, Distribution):
                twin.__dict__["_validate_args"] = False
        return done[id(value)]
    if type(value) in (list, tuple):
        return type(value)(_mapped(item, move, done) for item in value)
    return value


def _name(distribution: Distribution) -> str:
    return type(distribution).__name__
