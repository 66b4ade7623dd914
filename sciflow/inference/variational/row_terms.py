"""What rows add to a log density: their log likelihoods, as users write them, summed over rows for many draws."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from sciflow.errors import ConfigError, DataError, DerivativeError, SciflowError, ShapeError, first_line
from sciflow.inference.parameters import Parameters
from sciflow.inference.variational.log_density import EVENT

__all__ = ["RowTerms"]

_MOST_TERMS = 1 << 21  # of rows and draws together, at a time


class RowTerms:
    r"""The sum of log likelihoods over rows, for unconstrained draws ``u``.

    .. math:: L(u) = \sum_i \log p(x_i \mid v(u))

    Args:
        function: ``log_likelihood(rows, **parameters)`` of one draw, or ``(rows, mapping)``; of an event
            ``(rows, x)``. It returns ``[m]`` for rows ``[m, *event_shape]``.
        parameters: Constraints by name.
        by_name: Whether the function takes parameters by name.
        rows: A few rows, by which it is tried.

    Raises:
        ShapeError: It does not return one number a row.
        DerivativeError: What it returns has no gradient.
        DataError: It fails.

    Example:
        >>> terms = RowTerms(lambda rows, mu: -0.5 * (rows - mu) ** 2, Parameters({"mu": "real"}), True, torch.ones(4))
        >>> terms.total(torch.ones(4), torch.tensor([[0.0], [1.0]]))
        tensor([-2.,  0.], dtype=torch.float64)
    """

    def __init__(self, function: Callable[..., Any], parameters: Parameters, by_name: bool, rows: Tensor) -> None:
        if not callable(function):
            raise ConfigError(f"log_likelihood: a function of rows and parameters expected; got {function!r:.80}")
        self.function, self.parameters, self.by_name = function, parameters, by_name
        self._keywords = by_name and _takes_keywords(function, parameters.names)
        self._mapped = True
        self._try(rows)

    def each(self, rows: Tensor, u: Tensor) -> Tensor:
        """Log likelihood of every row for every draw: ``[n, m]`` of ``u`` ``[n, d]`` and ``m`` rows."""
        values, _ = self.parameters.unpack(u)
        if self._mapped:
            found: Tensor = torch.func.vmap(lambda given: self._call(rows, given), randomness="error")(values)
            return found
        return torch.stack(
            [self._call(rows, {name: value[i] for name, value in values.items()}) for i in range(len(u))]
        )

    def total(self, rows: Tensor, u: Tensor) -> Tensor:
        """Sums over rows, ``[n]``, float64, with a gradient where ``u`` has one."""
        at_a_time = max(1, _MOST_TERMS // max(1, len(u)))
        parts = [self.each(part, u).double().sum(1) for part in rows.split(at_a_time)]
        return torch.stack(parts).sum(0)

    def with_gradient(self, rows: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        """Sums over rows ``[n]`` and their gradients ``[n, d]``, float64, in bounded memory."""
        total = torch.zeros(len(u), dtype=torch.float64, device=u.device)
        slope = torch.zeros(u.shape, dtype=torch.float64, device=u.device)
        at_a_time = max(1, _MOST_TERMS // max(1, len(u)))
        for part in rows.split(at_a_time):
            with torch.enable_grad():
                draws = u.detach().requires_grad_()
                found = self.each(part, draws).double().sum(1)
                (gradient,) = torch.autograd.grad(found.sum(), draws)
            total += found.detach()
            slope += gradient
        return total, slope

    def _call(self, rows: Tensor, values: Mapping[str, Tensor]) -> Tensor:
        if not self.by_name:
            return self.function(rows, values[EVENT])
        return self.function(rows, **values) if self._keywords else self.function(rows, values)

    def _try(self, rows: Tensor) -> None:
        """Whether draws can be mapped at once, and whether what comes back is one number a row, with a gradient."""
        generator = torch.Generator().manual_seed(0)
        u = 0.1 * torch.randn(2, self.parameters.num_free, generator=generator, dtype=torch.float64).to(rows)
        said = ""
        for mapped in (True, False):
            self._mapped = mapped
            try:
                with torch.enable_grad():
                    found = self.each(rows, u.requires_grad_())
                break
            except SciflowError:
                raise
            except Exception as error:
                said = f"{type(error).__name__}: {first_line(error)}"
        else:
            raise DataError(f"log_likelihood fails on {len(rows)} rows and the parameters of one draw: {said}")
        if not isinstance(found, Tensor):
            raise ShapeError(
                f"log_likelihood: a tensor expected, one number a row; got {type(found).__name__}"
                + ("" if self._keywords or not self.by_name else " (it was given one mapping of parameters by name)")
            )
        if found.shape != (2, len(rows)):
            raise ShapeError(
                f"log_likelihood: one number a row expected, {[len(rows)]}; got {list(found.shape[1:])}: leave the sum "
                "over rows out"
            )
        if not found.requires_grad:
            raise DerivativeError(
                "log_likelihood: what it returns has no gradient in the parameters: write it in torch operations on "
                "what it is given, without detach(), numpy() or item()"
            )


def _takes_keywords(function: Callable[..., Any], names: tuple[str, ...]) -> bool:
    """Whether the function takes the parameters by keyword after the rows, rather than as one mapping."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return True
    try:
        signature.bind(None, **dict.fromkeys(names))
    except TypeError as error:
        try:
            signature.bind(None, None)
        except TypeError:
            raise ConfigError(
                f"log_likelihood does not take rows and the parameters {', '.join(names)}: {error}"
            ) from None
        return False
    return True
