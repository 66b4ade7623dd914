"""Draws and log p of parameters given observations, where a density knows them directly."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sciflow.density import Density
from sciflow.diffusion import Diffusion
from sciflow.errors import DataError
from sciflow.inference.conditional.prior import Prior
from sciflow.inference.conditional.randomness import child_seed
from sciflow.inference.conditional.regressed import Regressed
from sciflow.inference.conditional.wrapped import innermost

__all__ = ["Direct", "Leakage", "exact_log_prob"]

# Draws by which leakage is known: of one observation, of each of many, and of all of those together.
_LOOKED_AT, _LEAST_LOOKED_AT, _ALL_LOOKED_AT = 10_000, 1000, 100_000
_MOST_TRIES = 200
_AT_ONCE, _OBSERVATIONS = 1 << 16, 64


@dataclass(frozen=True)
class Leakage:
    """The share of a density that lies outside the prior's support.

    Attributes:
        share: From 0 to 1.
        error: Its standard error; 0 where nothing can leak.
    """

    share: float
    error: float


def exact_log_prob(density: Density, theta: Tensor, x: Tensor) -> Tensor:
    """Log p itself, not a bound: of a diffusion model by its ODE.

    Args:
        density: Of ``theta`` given ``x``, or the other way round.
        theta: ``[*batch, *event_shape]``.
        x: ``[*batch, *context_shape]``.
    """
    with torch.no_grad():
        inner = innermost(density)
        if isinstance(inner, Diffusion):
            return density.likelihood(theta, x, method="ode").log_prob
        return density.log_prob(theta, x)


@dataclass(frozen=True)
class Direct:
    r"""A mixture of densities of parameters given observations, cut to the support of the prior.

    .. math:: p(\theta \mid x) = \frac{1[\theta \in \mathrm{supp}]}{1 - l(x)} \; \frac1K \sum_k q_k(\theta \mid x)

    The leakage :math:`l` is nothing where there are no bounds, or the bijections of the densities open them up. Else it
    is estimated from draws.

    Attributes:
        densities: Fitted ones, which count the same.
        prior: None where it is not known: then nothing is cut.
    """

    densities: Sequence[Density]
    prior: Prior | None

    @property
    def can_leak(self) -> bool:
        """Whether draws may be outside the prior's support."""
        return self.prior is not None and not (self.prior.support.is_opened and _opened(self.densities, self.prior))

    def draw(self, n: int, x: Tensor, seed: int) -> Tensor:
        """Draws ``[n, cases, d]`` of the mixture for observations ``[cases, e]``, not cut.

        Each draw is of a member by chance, so that any part of them is as good as all.
        """
        generator = torch.Generator().manual_seed(child_seed(seed, 0))
        member = torch.randint(len(self.densities), (n,), generator=generator)
        first = self.densities[0]
        out = torch.empty(n, len(x), *first.event_shape, dtype=first.dtype)
        for number, density in enumerate(self.densities):
            places = torch.nonzero(member == number)[:, 0]
            step = max(1, _AT_ONCE // max(1, len(x)))
            for start in range(0, len(places), step):
                some = places[start : start + step]
                own = child_seed(seed, 1, number, start)
                out[some] = density.sample(len(some), x, seed=own).cpu()
        return out

    def sample(self, n: int, x: Tensor, seed: int) -> Tensor:
        """Draws ``[n, cases, d]`` for observations ``[cases, e]``, all of them possible to the prior.

        Raises:
            DataError: Hardly a draw is.
        """
        draws = self.draw(n, x, seed)
        if not self.can_leak:
            return draws
        assert self.prior is not None
        bad = ~self.prior.contains(draws)
        for number in range(1, _MOST_TRIES):
            if not bad.any():
                return draws
            cases = torch.nonzero(bad.any(0))[:, 0]
            fresh = self.draw(max(64, int(bad.sum(0).max())), x[cases], child_seed(seed, 2, number))
            good = self.prior.contains(fresh)
            for place, case in enumerate(cases.tolist()):
                rows = torch.nonzero(bad[:, case])[:, 0]
                found = fresh[good[:, place], place][: len(rows)]
                draws[rows[: len(found)], case] = found
                bad[rows[: len(found)], case] = False
        first = int(torch.nonzero(bad.any(0))[0])
        raise DataError(
            f"posterior: of observation {first} hardly a draw is within the prior's support: the density was not "
            "trained there; look at the observation, simulate more, or train longer"
        )

    def leakage(self, x: Tensor, seed: int = 0) -> list[Leakage]:
        """How much leaks for each of the observations ``[cases, e]``: by fewer draws, where they are many."""
        if not self.can_leak:
            return [Leakage(0.0, 0.0)] * len(x)
        assert self.prior is not None
        n = min(_LOOKED_AT, max(_LEAST_LOOKED_AT, _ALL_LOOKED_AT // max(1, len(x))))
        found = []
        for rows in x.split(_OBSERVATIONS):
            inside = self.prior.contains(self.draw(n, rows, seed)).double().mean(0)
            for share in (1 - inside).tolist():
                # Of a share that no draw has shown, the rule of three.
                error = math.sqrt(share * (1 - share) / n) if 0 < share < 1 else 1.5 / n
                found.append(Leakage(share, error))
        return found

    def log_prob_uncut(self, theta: Tensor, x: Tensor) -> Tensor:
        """Log p of the mixture ``[n]`` for rows ``[n, d]`` and ``[n, e]``, outside the prior's support too."""
        parts = []
        for some, given in zip(theta.split(_AT_ONCE), x.split(_AT_ONCE), strict=True):
            each = torch.stack([exact_log_prob(density, some, given).double().cpu() for density in self.densities])
            parts.append(torch.logsumexp(each, 0) - math.log(len(self.densities)))
        return torch.cat(parts) if parts else torch.empty(0, dtype=torch.float64)

    def log_prob(self, theta: Tensor, x: Tensor, leakage: Sequence[Leakage] | None = None) -> Tensor:
        """Log p ``[n, cases]`` of parameters ``[n, cases, d]`` given observations ``[cases, e]``, data units.

        Args:
            theta: Parameters.
            x: Observations.
            leakage: Of each observation, where it is known already.
        """
        n, cases = theta.shape[:2]
        found = self.log_prob_uncut(theta.flatten(0, 1), x.repeat(n, 1)).reshape(n, cases)
        if not self.can_leak:
            return found
        assert self.prior is not None
        inside = self.prior.contains(theta)
        shares = [leak.share for leak in (self.leakage(x) if leakage is None else leakage)]
        if any(share > 0.5 for share in shares):
            warnings.warn(
                f"{max(shares):.0%} of a density lies outside the prior's support: its log p is uncertain there; train "
                "it longer, or give a prior whose support is told",
                stacklevel=4,
            )
        kept = torch.log1p(-torch.tensor(shares, dtype=torch.float64).clamp_max(1 - 1 / _LOOKED_AT))
        return torch.where(inside, found - kept, -torch.inf)


def _opened(densities: Sequence[Density], prior: Prior) -> bool:
    """Whether the densities have the bijections that the support needs: a user's own may not."""
    needed = prior.support.opening
    return all(_preprocess_of(density)[: len(needed) - 1] == needed[:-1] for density in densities)


def _preprocess_of(density: Density) -> list[object]:
    outer = density if isinstance(density, Regressed) else innermost(density)
    steps = outer.arguments.get("preprocess")
    return list(steps) if isinstance(steps, list) else [steps]
