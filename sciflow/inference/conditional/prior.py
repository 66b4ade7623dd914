"""What is known of parameters before anything is observed: a distribution, or a function that draws."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution

from sciflow.arrays import numbers
from sciflow.errors import ConfigError, DataError, SciflowError, ShapeError, first_line
from sciflow.inference.conditional.randomness import seed_arguments, seeding
from sciflow.inference.conditional.support import Support

__all__ = ["Prior"]

_LOOKED_AT = 32


class Prior:
    """A prior as the rest needs it: draws by a seed, log p where it is known, bounds where they are.

    Args:
        given: Anything with ``sample((n,))``, as the distributions of torch, and with ``log_prob(theta)`` where that is
            known; or a function of the number of draws, which may ask for a ``seed``, a ``generator`` (torch's) or an
            ``rng`` (NumPy's) by that name. Draws are ``[n, d]``; those of one parameter may be ``[n]``.

    Raises:
        ConfigError: It is neither.
        DataError: It does not draw, or not finite numbers.
        ShapeError: What it draws are no vectors.

    Example:
        >>> from torch.distributions import Uniform
        >>> prior = Prior(Uniform(torch.zeros(2), torch.tensor([1.0, 5.0])))
        >>> prior.sample(3, seed=0).shape, prior.support.high
        (torch.Size([3, 2]), (1.0, 5.0))
        >>> prior.log_prob(torch.tensor([[0.5, 2.0], [0.5, 7.0]]))
        tensor([-1.6094,    -inf], dtype=torch.float64)
    """

    def __init__(self, given: Any) -> None:
        if not callable(getattr(given, "sample", None)) and not callable(given):
            raise ConfigError(
                f"prior: got {given!r:.80}; give a distribution, with sample((n,)) and log_prob(theta), or a function "
                "of the number of draws"
            )
        self.given = given
        first = self._drawn(_LOOKED_AT, 0)
        self.num_parameters = first.shape[1]
        self.support = Support.of(_constraint(given), self.num_parameters)

    @property
    def has_log_prob(self) -> bool:
        """Whether log p of parameters is known."""
        return callable(getattr(self.given, "log_prob", None))

    def sample(self, n: int, seed: int) -> Tensor:
        """Draw parameters ``[n, d]``, float64, none of them on a bound.

        Raises:
            DataError: A number is not finite.
            ShapeError: They have another shape.
        """
        theta = self._drawn(n, seed)
        if theta.shape[1] != self.num_parameters:
            raise ShapeError(f"prior: drew {theta.shape[1]} parameters, and {self.num_parameters} before")
        return self.support.within(theta)

    def log_prob(self, theta: Tensor) -> Tensor:
        """Return log p of parameters ``[*batch, d]`` in nats, float64; -inf outside the support.

        Raises:
            ConfigError: The prior is a function that draws.
        """
        if not self.has_log_prob:
            raise ConfigError(
                "prior: it draws, and does not know its own log_prob, which this needs: give a distribution, or an "
                "object with both sample and log_prob"
            )
        if not theta.numel():
            return torch.zeros(theta.shape[:-1], dtype=torch.float64)
        rows = theta.detach().double().reshape(-1, self.num_parameters)
        inside = torch.isfinite(rows).all(-1) & self._supported(rows)
        out = torch.full((len(rows),), -torch.inf, dtype=torch.float64)
        if inside.any():
            out[inside] = self._log_prob(rows[inside])
        return out.nan_to_num(nan=-torch.inf, neginf=-torch.inf).reshape(theta.shape[:-1])

    def contains(self, theta: Tensor) -> Tensor:
        """Which parameters ``[*batch, d]`` are possible, as far as the prior tells: ``[*batch]``."""
        if self.has_log_prob:
            return torch.isfinite(self.log_prob(theta))
        return self.support.contains(theta)

    def _drawn(self, n: int, seed: int) -> Tensor:
        with seeding(seed):
            try:
                theta = self._draws(n, seed)
            except SciflowError:
                raise
            except Exception as error:
                raise DataError(f"prior: it fails to draw {n} parameters: {_named(error)}") from error
        theta = torch.from_numpy(numbers(theta, "draws of the prior").astype("float64"))
        theta = theta[:, None] if theta.ndim == 1 else theta
        if theta.ndim != 2 or len(theta) != n or theta.shape[1] == 0:
            raise ShapeError(f"prior: draws of shape [{n}, d] expected, a vector each; got {list(theta.shape)}")
        if not torch.isfinite(theta).all():
            raise DataError("prior: it draws numbers that are not finite")
        return theta

    def _draws(self, n: int, seed: int) -> Any:
        sample = getattr(self.given, "sample", None)
        if callable(sample):
            return sample((n,))
        named = seed_arguments(self.given, seed)
        return self.given(n, **named) if named or not _takes_two(self.given) else self.given(n, seed)

    def _supported(self, rows: Tensor) -> Tensor:
        """Where log_prob may be asked: torch's distributions raise an error elsewhere."""
        constraint = _constraint(self.given)
        if constraint is None or not callable(getattr(constraint, "check", None)):
            return self.support.contains(rows)
        inside = constraint.check(rows if _is_vector(self.given) else rows[:, 0])
        return inside.reshape(len(rows), -1).all(-1) & self.support.contains(rows)

    def _log_prob(self, rows: Tensor) -> Tensor:
        event = rows if _is_vector(self.given) else rows[:, 0]
        try:
            with torch.no_grad():
                try:
                    found = self.given.log_prob(event)
                except RuntimeError:
                    found = self.given.log_prob(event.float())
        except Exception as error:
            raise DataError(f"prior: log_prob fails: {_named(error)}") from error
        found = torch.as_tensor(found, dtype=torch.float64).detach()
        # Independent parameters that are a batch to their distribution.
        found = found.sum(-1) if found.ndim == 2 else found
        if found.shape != (len(rows),):
            raise ShapeError(f"prior: log_prob of {len(rows)} rows has shape {list(found.shape)}: one number a row")
        return found


def _constraint(given: Any) -> Any:
    try:
        return getattr(given, "support", None)
    except NotImplementedError:
        return None


def _is_vector(given: Any) -> bool:
    """Whether rows are what it takes, not numbers."""
    return not isinstance(given, Distribution) or bool(given.event_shape or given.batch_shape)


def _takes_two(function: Callable[..., Any]) -> bool:
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return False
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return sum(parameter.kind in kinds and parameter.default is parameter.empty for parameter in parameters) == 2


def _named(error: Exception) -> str:
    return f"{type(error).__name__}: {first_line(error)}"
