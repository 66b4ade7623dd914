"""The posterior of one observation."""

from __future__ import annotations

import math
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sciflow.errors import ConfigError, ShapeError
from sciflow.inference.conditional.by_likelihood import ByLikelihood
from sciflow.inference.conditional.direct import Direct, Leakage
from sciflow.inference.conditional.labelled import posterior_tree
from sciflow.inference.conditional.randomness import child_seed, seed_of

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["ObservedPosterior", "checked_count", "checked_parameters"]

_CANDIDATES, _KEPT, _CLIMBS = 2000, 20, 200


class ObservedPosterior:
    """Parameters given one observation, in their own units; :meth:`ConditionalPosterior.posterior` makes one.

    Args:
        known: What knows it.
        x: The observation ``[e]``, flat.
        x_shape: Its shape.
        surprise: See the attribute.
        method: Name of the method.

    Attributes:
        x: The observation ``[*x_shape]``.
        surprise: Share of simulations that are as far from the others as the observation, a p-value; None where it is
            not known. Below 0.005 there was a warning.
    """

    def __init__(
        self, known: Direct | ByLikelihood, x: Tensor, x_shape: tuple[int, ...], surprise: float | None, method: str
    ) -> None:
        self._known, self._row, self._method = known, x, method
        self.x = x.reshape(x_shape)
        self.surprise = surprise

    @cached_property
    def leakage(self) -> Leakage:
        """The share of the density that lies outside the prior's support, which is cut off, with its standard error."""
        return self._known.leakage(self._row[None])[0]

    @cached_property
    def _evidence(self) -> float:
        """What prior times likelihood is divided by; 0 where log p is known as it is."""
        if isinstance(self._known, Direct):
            return 0.0
        return float(self.diagnostics["log_evidence"])

    @cached_property
    def diagnostics(self) -> dict[str, float]:
        """How well draws are known: of a likelihood's posterior, how the population went from prior to posterior.

        ``log_evidence`` and its ``error`` in nats, the ``steps`` of tempering, the ``acceptance`` of the last moves (a
        good one is 0.1 to 0.6), and the share of ``distinct`` draws (near 1).
        """
        if isinstance(self._known, Direct):
            return {"leakage": self.leakage.share, "leakage_error": self.leakage.error}
        found = self._known.population(1, self._row, 0)
        names = ("log_evidence", "error", "steps", "acceptance", "distinct")
        return {name: float(getattr(found, name)) for name in names}

    def sample(self, n: int, seed: int | torch.Generator | None = None) -> Tensor:
        """Draw parameters ``[n, d]``.

        Args:
            n: Number of draws.
            seed: A seed, a generator, or None for torch's own.
        """
        return self._known.sample(checked_count(n), self._row[None], seed_of(seed))[:, 0]

    def log_prob(self, theta: Any) -> Tensor:
        """Return log p of parameters ``[*batch, d]`` in nats: ``[*batch]``; -inf where the prior rules them out.

        What leaks is cut off, and the rest renormalised; the standard error of that is that of :attr:`leakage`. With a
        likelihood the evidence is estimated, and its error stands in :attr:`diagnostics`.
        """
        rows, batch = checked_parameters(theta, self._known)
        if isinstance(self._known, Direct):
            found = self._known.log_prob(rows[:, None], self._row[None], [self.leakage])[:, 0]
        else:
            found = self._known.log_prob_uncut(rows, self._row.expand(len(rows), -1)) - self._evidence
        return found.reshape(batch)

    def map(self, seed: int = 0) -> Tensor:
        """The parameters ``[d]`` of highest density that a search from the best of many draws finds.

        Args:
            seed: Of the search.
        """
        theta = self.sample(_CANDIDATES, seed)
        value = self.log_prob(theta)
        best = value.argsort(descending=True)[:_KEPT]
        spread = theta.std(0)
        theta, value = theta[best], value[best]
        generator = torch.Generator().manual_seed(child_seed(seed, 3))
        step = torch.full((len(theta), 1), 0.3, dtype=theta.dtype)
        for _ in range(_CLIMBS):
            proposed = theta + step * spread * torch.randn(theta.shape, generator=generator, dtype=theta.dtype)
            found = self.log_prob(proposed)
            better = found > value
            theta = torch.where(better[:, None], proposed, theta)
            value = torch.where(better, found, value)
            # The rule of one fifth.
            step = step * torch.where(better[:, None], math.exp(0.4), math.exp(-0.1))
        return theta[value.argmax()]

    def to_arviz(self, n: int = 1000, seed: int = 0) -> xr.DataTree:
        """Draws as an ``xarray.DataTree`` with groups ``posterior``, ``observed_data`` and ``sample_stats``.

        Args:
            n: Number of draws, one chain: they are independent.
            seed: Of the draws.
        """
        draws = self.sample(n, seed)
        attributes = {
            "inference_library": "sciflow",
            "method": self._method,
            **({} if self.surprise is None else {"surprise": self.surprise}),
            **self.diagnostics,
        }
        return posterior_tree(draws.numpy(), self.log_prob(draws).numpy(), self.x.numpy(), attributes)

    def __repr__(self) -> str:
        surprise = "" if self.surprise is None else f", surprise={self.surprise:.3g}"
        return f"ObservedPosterior({self._method}, x {list(self.x.shape)}{surprise})"


def checked_parameters(theta: Any, known: Direct | ByLikelihood) -> tuple[Tensor, torch.Size]:
    """Parameters as rows ``[n, d]``, and the shape of their batch.

    Raises:
        ShapeError: They are no vectors of the right length.
    """
    dtype = known.densities[0].dtype
    size = known.densities[0].event_shape[0] if isinstance(known, Direct) else known.prior.num_parameters
    rows = torch.as_tensor(theta, dtype=dtype).detach()
    if rows.ndim == 0 or rows.shape[-1] != size:
        raise ShapeError(f"theta: parameters [*batch, {size}] expected; got {list(rows.shape)}")
    return rows.reshape(-1, size), rows.shape[:-1]


def checked_count(n: Any) -> int:
    if isinstance(n, bool) or not isinstance(n, int) or n < 0:
        raise ConfigError(f"n {n!r:.80}: a number of draws expected, 0 or more")
    return n
