"""What is known of log p, and how well."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Literal

import torch
from torch import Tensor

__all__ = ["Likelihood", "Status", "concatenated", "error_of_mean", "importance_weighted"]

_PER_ROW = ("log_prob", "error", "nfe", "status")


class Status(IntEnum):
    """What became of a row.

    ``OK`` rows carry a log p to rely on. So do those with ``TARGET_MISSED``, whose error says how far: a target for it
    was asked for, and was not met within the budget.
    """

    OK = 0
    MAX_STEPS = 1
    UNDERFLOW = 2
    NON_FINITE = 3
    TARGET_MISSED = 4


@dataclass(frozen=True)
class Likelihood:
    """What is known of log p, one entry a row.

    Attributes:
        log_prob: ``[*batch]``, nats, in data units.
        error: ``[*batch]``, nats: two of these hold the truth for 95 % of rows; 0 (up to rounding) for an exact log p.
        nfe: ``[*batch]``, network evaluations spent on the row.
        status: ``[*batch]``, see :class:`Status`.
        kind: ``"exact"`` by change of variables, ``"ode"`` by the probability-flow ODE, ``"few-step"`` by fewer steps
            of it than its error asks for, which is biased, ``"elbo"`` for a lower bound.

    Example:
        >>> row = torch.zeros(3)
        >>> Likelihood(row - 1.5, row, row.int() + 1, row.int(), "exact")
        Likelihood(exact, 3 rows: log_prob -1.5 +- 0, error <= 0 nats, nfe 1..1, 3 ok)
    """

    log_prob: Tensor
    error: Tensor
    nfe: Tensor
    status: Tensor
    kind: Literal["exact", "ode", "few-step", "elbo"]

    def __len__(self) -> int:
        return self.log_prob.numel()

    def __repr__(self) -> str:
        status = self.status.reshape(-1)
        ok, missed = status == Status.OK, status == Status.TARGET_MISSED
        known, num_missed = ok | missed, int(missed.sum())
        if not known.any():
            return f"Likelihood({self.kind}, {len(self)} rows: none ok)"
        log_prob = self.log_prob.detach().reshape(-1)[known].double()
        spread = float(log_prob.std()) if len(log_prob) > 1 else 0.0
        nfe = self.nfe.reshape(-1)[known]
        of_missed = f", {num_missed} missed the target" if num_missed else ""
        return (
            f"Likelihood({self.kind}, {len(self)} rows: log_prob {float(log_prob.mean()):.4g} +- {spread:.2g}, "
            f"error <= {float(self.error.detach().reshape(-1)[known].max()):.2g} nats, "
            f"nfe {int(nfe.min())}..{int(nfe.max())}, {int(ok.sum())} ok{of_missed})"
        )

    def reshape(self, batch: Sequence[int]) -> Likelihood:
        """Return the same rows in another shape."""
        return replace(self, **{name: getattr(self, name).reshape(tuple(batch)) for name in _PER_ROW})


def concatenated(parts: Sequence[Likelihood]) -> Likelihood:
    """Return the rows of several records of one kind, one after the other."""
    columns = {name: torch.cat([getattr(part, name) for part in parts]) for name in _PER_ROW}
    return Likelihood(**columns, kind=parts[0].kind)


def importance_weighted(each: Likelihood) -> Likelihood:
    r"""Average densities over the first dimension, draws of a hidden variable that stand for one row.

    .. math:: \log p(x) \ge \mathrm{E} \log \frac1K \sum_{k=1}^K w_k, \qquad w_k = p(x, u_k) / q(u_k \mid x)

    From Burda et al., arXiv:1509.00519; one draw gives the ELBO, and many the truth.

    Where :math:`\log w_k` is itself an estimate that is right on average, by probes of a divergence or a
    log-determinant, with an error :math:`e_k`, its exponential is too large by :math:`e^{e_k^2 / 2}` on average, as for
    a normal error: that is taken off.

    Args:
        each: ``log_prob`` holds :math:`\log w_k`, ``[num_draws, *batch]``.

    Returns:
        A record ``[*batch]`` of kind "elbo". Its error puts together the standard error of the mean, widened as
        Student's t is wider than a normal; the errors of the weights themselves; and how far the mean is from that of
        a log-normal with the mean and variance of :math:`\log w_k`, give or take what the variance of so many draws
        is off: so much may lie in weights so rare that none was drawn. Of fewer than 4 draws it is infinite.

    Example:
        >>> row = torch.zeros(4, 2)
        >>> importance_weighted(Likelihood(row - 1.5, row, row.int() + 1, row.int(), "exact"))
        Likelihood(elbo, 2 rows: log_prob -1.5 +- 0, error <= 0 nats, nfe 4..4, 2 ok)
    """
    num_draws = len(each.log_prob)
    log_weights = each.log_prob
    if each.kind != "elbo":
        error = each.error.detach()
        log_weights = log_weights - torch.where(torch.isfinite(error), error, 0).square() / 2
    return Likelihood(
        log_prob=torch.logsumexp(log_weights, 0) - math.log(num_draws),
        error=_error_of_log_mean(log_weights.detach(), each.error.detach()),
        nfe=each.nfe.sum(0, dtype=each.nfe.dtype),
        status=_worst(each.status),
        kind="elbo",
    )


def _worst(status: Tensor) -> Tensor:
    """The worst of several :class:`Status`, ``[num_draws, *batch]``; to miss a target is less bad than to fail."""
    missed = status == int(Status.TARGET_MISSED)
    worst = status.masked_fill(missed, int(Status.OK)).amax(0)
    return worst.masked_fill((worst == int(Status.OK)) & missed.any(0), int(Status.TARGET_MISSED))


def error_of_mean(values: Tensor, dim: int) -> Tensor:
    """Return the standard error of the mean of 4 numbers or more, widened as Student's t is wider than a normal.

    Example:
        >>> error_of_mean(torch.tensor([1.0, 2.0, 3.0, 4.0]), dim=0)
        tensor(1.1180)
    """
    n = values.shape[dim]
    off = values - values.mean(dim, keepdim=True)
    return (off.square().sum(dim) / (n * (n - 3))).sqrt()


def _error_of_log_mean(log_weights: Tensor, errors: Tensor) -> Tensor:
    """The error of the logarithm of the mean weight, ``[*batch]``; of weights that are all zero it is certain."""
    n = len(log_weights)
    if n < 4:
        return torch.full_like(log_weights[0], torch.inf)
    largest = log_weights.amax(0)
    none = torch.isneginf(largest)
    relative = log_weights - torch.where(none, 0, largest)
    weights = torch.exp(relative)
    mean = weights.mean(0).masked_fill(none, 1)
    weights = weights / mean
    of_draws = error_of_mean(weights, dim=0).square()
    of_errors = (weights * errors).mean(0).square()  # as if it were the same mistake in all of them

    possible = ~torch.isneginf(relative)
    num_possible = possible.sum(0).clamp_min(1)
    relative = relative.masked_fill(~possible, 0)
    centre = relative.sum(0) / num_possible
    variance = (relative - centre).square().masked_fill(~possible, 0).sum(0) / (num_possible - 1).clamp_min(1)
    log_normal = centre + variance / 2 + torch.log(num_possible / n)
    of_tail = (log_normal - mean.log()).masked_fill(none, 0).square() + variance.square() / (2 * (n - 3))
    return (of_draws + of_errors + of_tail).sqrt()
