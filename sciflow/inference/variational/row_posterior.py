"""The posterior given the rows of a store that may be larger than memory: from batches of them, without bias."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sciflow.errors import DataError
from sciflow.inference.variational.given_rows import GivenRows
from sciflow.inference.variational.log_density import LogDensity
from sciflow.inference.variational.pathfinder import pathfinder
from sciflow.inference.variational.row_terms import RowTerms

__all__ = ["RowPosterior"]

_HELD = 1024  # rows that stay in memory; of as many or fewer, all are used every time
_BATCH = 512
_MOST_PASSES, _NEAR, _HALVINGS = 12, 1e-2, 8
_REACH = 4.0  # of the expansions, in standard deviations
_ASKED = 5e8  # terms of rows and draws that the last weighing may cost
_FEWEST = 1000


@dataclass(frozen=True)
class _Expansion:
    r"""A sum over rows to second order about the centre: :math:`T(\delta) = c + g\delta + \delta H \delta / 2`."""

    value: Tensor
    slope: Tensor
    curvature: Tensor

    def at(self, away: Tensor) -> Tensor:
        """``[n]``, at ``away`` ``[n, d]`` from the centre."""
        return self.value + away @ self.slope + 0.5 * ((away @ self.curvature) * away).sum(-1)


class RowPosterior(LogDensity):
    r"""An unnormalised posterior of parameters given rows, in the form of a log density.

    Few rows are all held, and all used. Of more, :meth:`differentiable` reads another batch :math:`B` at every
    call, and estimates the sum over all :math:`N` rows without bias,

    .. math:: \hat L(u) = w(\delta) \, T(\delta)
              + \frac{N}{|B|} \sum_{i \in B} \big( \ell_i(u) - w(\delta) \, T_i(\delta) \big), \qquad \delta = u - u^*

    where :math:`T_i` is the second-order expansion of a row's log likelihood at a centre :math:`u^*` near the mode, and
    :math:`T` its sum over all rows, known from one pass. In the bulk of the posterior little is left for the batch to
    be wrong in; far from it, where an expansion tells nothing, :math:`w` fades. Calls and :meth:`with_gradient` use
    rows that are held in the place of a batch, always the same, as ascents and particles need it. :attr:`exact` goes
    through all rows.

    Args:
        log_prior: Unnormalised log prior, as :class:`LogDensity` takes a density.
        log_likelihood: See :class:`~sciflow.inference.variational.row_terms.RowTerms`.
        rows: A store or its path, a split, or an array ``[n, *event_shape]``.
        event_shape: Of the event that the prior is of; None where there are parameters.
        parameters: Constraints by name; None where there is an event.
        dtype: Of the draws; None for float64, or float32 where the prior does not take float64.
        device: Where draws and batches are.
        batch_size: Rows of a batch; None for 512.
        seed: Of the rows that are held, and of the order of the others.

    Raises:
        ConfigError, ShapeError, DerivativeError, DataError: As for densities, of prior or likelihood; or values of rows
            are missing or infinite.

    Source:
        Control variates: Bardenet et al., arXiv:1505.02827; Quiroz et al., arXiv:1404.4178.

    Example:
        >>> x = torch.randn(5000, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 2
        >>> posterior = RowPosterior(lambda mu: -0.5 * mu**2, lambda rows, mu: -0.5 * (rows - mu) ** 2, x,
        ...                          parameters={"mu": "real"})
        >>> u = torch.tensor([[2.0], [2.01]], dtype=torch.float64)
        >>> bool((posterior.exact(u) - posterior.differentiable(u)[0]).abs().max() < 1e-6)
        True
    """

    def __init__(
        self,
        log_prior: Callable[..., Any],
        log_likelihood: Callable[..., Any],
        rows: Any,
        event_shape: Any = None,
        parameters: Mapping[str, Any] | None = None,
        dtype: torch.dtype | None = None,
        device: str | torch.device = "cpu",
        batch_size: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(log_prior, event_shape, parameters, dtype, device)
        self.rows = GivenRows(rows)
        self.notes += self.rows.notes
        held, numbers = self.rows.drawn(_HELD, seed)
        self._held = self._there(held)
        self._terms = RowTerms(log_likelihood, self.parameters, self.by_name, self._held[:7])
        self._require_numbers(numbers)
        self._centre: Tensor | None = None
        self._estimate: Callable[[Tensor], Tensor] = self._by_held
        if len(self.rows) > len(held):
            self._batches = self._shuffled(_BATCH if batch_size is None else batch_size, seed)
            self._settle(torch.Generator().manual_seed(seed))

    @property
    def is_random(self) -> bool:
        """Whether :meth:`differentiable` differs from call to call."""
        return self._centre is not None

    @property
    def exact(self) -> Callable[[Tensor], Tensor]:
        """The density by all rows, each read once for all draws that are asked for together."""
        return self if self._centre is None else self._by_all

    def enough_draws(self) -> int:
        """How many draws are weighted in the end: each of them costs a look at every row."""
        return int(min(max(_FEWEST, _ASKED // len(self.rows)), super().enough_draws()))

    def differentiable(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """As of any density, by the next batch of rows."""
        self._estimate = self._by_batch
        try:
            return super().differentiable(u)
        finally:
            self._estimate = self._by_held

    def __repr__(self) -> str:
        return super().__repr__().removesuffix(")") + f", given {len(self.rows):,} rows)"

    # Estimates of the sum over rows, for draws [n, d]. ---------------------------------------------------------

    def _raw(self, u: Tensor) -> Tensor:
        return super()._raw(u) + self._estimate(u).to(u.dtype)

    def _by_held(self, u: Tensor) -> Tensor:
        factor = len(self.rows) / len(self._held)
        total = factor * self._terms.total(self._held, u)
        return total if self._centre is None else total + self._left(u, self._of_held)

    def _by_batch(self, u: Tensor) -> Tensor:
        if self._centre is None:
            return self._by_held(u)
        batch, factor = next(self._batches)
        return factor * self._terms.total(batch, u) + self._left(u, self._expanded([batch], factor))

    @torch.no_grad()
    def _by_all(self, u: Tensor) -> Tensor:
        """Log density ``[n]``, float64; -inf where there is no finite value."""
        total = super()._raw(u).double()
        for block, _ in self.rows.in_order():
            total = total + self._terms.total(self._there(block), u)
        return self._masked(total)

    def _left(self, u: Tensor, expansion: _Expansion) -> Tensor:
        """What all rows' expansion has beyond that of a few of them, where expansions tell anything."""
        assert self._centre is not None
        away = (u - self._centre).double()
        # In units of the posterior given the rows held alone, whose mode must not become one of all rows'.
        squared = ((away @ self._precision) * away).sum(-1) * len(self._held) / len(self.rows)
        d = away.shape[1]
        return (self._of_all.at(away) - expansion.at(away)) / (
            1 + (squared / (_REACH**2 * (d + 3 * math.sqrt(2 * d)))) ** 4
        )

    # The centre. -----------------------------------------------------------------------------------------------

    def _settle(self, generator: torch.Generator) -> None:
        """Go from the mode by the rows held to that by all rows, by Newton's steps with the curvature of those held."""
        paths = pathfinder(self, generator)
        centre = paths.modes[paths.heights.argmax()]
        precision = self._curvature(centre)
        value, slope = self._all_with_gradient(centre)
        for _ in range(_MOST_PASSES):
            step = torch.linalg.solve(precision, slope)
            if float(slope @ step) < _NEAR:
                break
            for halving in range(_HALVINGS):
                new = centre + (step * 0.5**halving).to(centre.dtype)
                new_value, new_slope = self._all_with_gradient(new)
                if new_value > value:
                    centre, value, slope = new, new_value, new_slope
                    break
            else:
                break
        self._require_finite(centre, value)
        self._precision = precision
        factor = len(self.rows) / len(self._held)
        self._centre = centre
        self._of_held = self._expanded([self._held], factor)
        self._of_all = self._expanded((self._there(block) for block, _ in self.rows.in_order()), 1.0)

    def _curvature(self, centre: Tensor) -> Tensor:
        """Minus the Hessian by the rows held, ``[d, d]``, float64; as usual along what it does not curve down."""
        steps = self._steps(centre)
        _, up = self.with_gradient(centre + torch.diag(steps))
        _, down = self.with_gradient(centre - torch.diag(steps))
        hessian = (up - down).double() / (2 * steps[:, None].double())
        curvature, axes = torch.linalg.eigh(-(hessian + hessian.T) / 2)
        usual = curvature[curvature > 0].median() if (curvature > 0).any() else torch.ones_like(curvature[0])
        curvature = torch.where(curvature > 1e-8 * usual, curvature, usual)
        return (axes * curvature) @ axes.T

    def _all_with_gradient(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Log density of one draw ``[d]`` by all rows, and its gradient ``[d]``, float64."""
        with torch.enable_grad():
            draw = u[None].detach().requires_grad_()
            prior = super()._raw(draw).double()
            (gradient,) = torch.autograd.grad(prior.sum(), draw)
        value, slope = prior.detach()[0], gradient[0].double()
        for block, _ in self.rows.in_order():
            of_rows, of_slope = self._terms.with_gradient(self._there(block), u[None])
            value, slope = value + of_rows[0], slope + of_slope[0]
        return value, slope

    def _expanded(self, blocks: Iterable[Tensor], factor: float) -> _Expansion:
        """The expansion of ``factor`` times the sum over rows; linear in the rows, by differences of gradients."""
        assert self._centre is not None
        steps = self._steps(self._centre)
        d = len(steps)
        moves = torch.cat([torch.zeros_like(steps)[None], torch.diag(steps), -torch.diag(steps)])
        values = torch.zeros(2 * d + 1, dtype=torch.float64, device=steps.device)
        slopes = torch.zeros(2 * d + 1, d, dtype=torch.float64, device=steps.device)
        for block in blocks:
            of_values, of_slopes = self._terms.with_gradient(block, self._centre + moves)
            values, slopes = values + of_values, slopes + of_slopes
        hessian = (slopes[1 : d + 1] - slopes[d + 1 :]) / (2 * steps[:, None].double())
        return _Expansion(factor * values[0], factor * slopes[0], factor * (hessian + hessian.T) / 2)

    def _steps(self, centre: Tensor) -> Tensor:
        return torch.finfo(centre.dtype).eps ** (1 / 3) * (1 + centre.abs())

    # Rows. -----------------------------------------------------------------------------------------------------

    def _there(self, rows: Tensor) -> Tensor:
        return rows.to(self.device, self.dtype) if rows.is_floating_point() else rows.to(self.device)

    def _shuffled(self, batch_size: int, seed: int) -> Iterator[tuple[Tensor, float]]:
        for batch, _, number in self.rows.shuffled(batch_size, seed):
            yield self._there(batch), float(number)

    def _require_numbers(self, numbers: np.ndarray) -> None:
        """Rows whose likelihood is NaN for any parameters would spoil every sum."""
        with torch.no_grad():
            found = self._terms.each(self._held, self._probes().to(self._held.device, self.dtype))
        bad = torch.isnan(found).all(0).cpu().numpy()
        if bad.any():
            self._refuse(numbers[bad], "whatever the parameters")

    def _require_finite(self, centre: Tensor, value: Tensor) -> None:
        if torch.isfinite(value):
            return
        bad: list[int] = []
        with torch.no_grad():
            for block, numbers in self.rows.in_order():
                found = self._terms.each(self._there(block), centre[None])[0]
                bad += numbers[~torch.isfinite(found).cpu().numpy()].tolist()
        self._refuse(np.array(bad), "at the mode that some of the rows tell of")

    def _refuse(self, bad: np.ndarray, where: str) -> None:
        shown = self.rows.named(bad[:5].tolist()) + (", ..." if len(bad) > 5 else "")
        raise DataError(
            f"log_likelihood is not finite for {len(bad):,} rows, {where}: {shown}. Drop or mend these rows, or let "
            "the likelihood have room for them, such as by heavier tails"
        )
