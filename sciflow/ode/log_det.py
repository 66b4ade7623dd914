"""How log p changes along the paths of a flow, with the error of every row."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from sciflow.ode.divergence import Divergence
from sciflow.ode.path import Path
from sciflow.ode.quadrature import doubts, gauss
from sciflow.ode.solve import Dynamics, norms

__all__ = ["Change", "change_along", "log_normal"]

_VALUES_AT_A_TIME = 1 << 22
# A panel whose integral may be off by more than this share of the tolerance is cut in two, so many times.
_SHARE, _CUTS = 0.25, 6
# By how much the halves are better than the whole, at the least.
_GAIN = 10.0
_WIDER, _RESOLVED = 1.2, 2e-5
_LEAST_ROUGH, _MOST_ROUGH, _OF_NEIGHBOURS = 0.3, 30.0, 0.1


class Change(NamedTuple):
    r"""What paths do to log p: :math:`\log p_0(z_0) = \log p_1(z_1) + \Delta`.

    Attributes:
        log_det: ``[n, k]``, :math:`\Delta`, by every estimate of the divergence; float64.
        error: ``[n]``, how far it may be off, but for what estimates of the divergence are.
        nfe: ``[n]``, evaluations of the velocity that it took.
    """

    log_det: Tensor
    error: Tensor
    nfe: Tensor


def log_normal(z: Tensor) -> Tensor:
    """Return log p of standard normal noise ``[n, d]``, ``[n]``, float64.

    Example:
        >>> log_normal(torch.zeros(1, 2))
        tensor([-1.8379], dtype=torch.float64)
    """
    return -0.5 * (z.square().sum(1, dtype=torch.float64) + z.shape[1] * math.log(math.tau))


def change_along(path: Path, dynamics: Dynamics, divergence: Divergence, tolerance: float, cut: bool = True) -> Change:
    r"""Integrate the change of log p along paths, which need not be exact.

    Along any :math:`\hat z(u)`, with :math:`r = \hat z' - f(\hat z, u)` what it is off and :math:`s` the score,

    .. math:: \log p_0(\hat z_0) = \log p_1(\hat z_1) + \int \operatorname{tr} \frac{\partial f}{\partial z}
              - s \cdot r \; du

    since :math:`\partial_u \log p = -\operatorname{tr} \partial f / \partial z - s \cdot f`. The second term takes off
    what the solver is wrong, at no cost: the field is known at the nodes of the integral. A score that is none would do
    harm there: where the Jacobian is asymmetric by a share :math:`a`, it counts by :math:`1 - a^2`. Steps of the path
    are the panels of the integral; those where it is not known well enough are cut.

    The error puts together that of the integral; what is left of the solver's where :math:`s` is not quite the score:
    of a learned field whose Jacobian is asymmetric by a share, about that share of the correction; and rounding.

    Args:
        path: Of the states, with what lies along it.
        dynamics: The flow; its ``score`` is that of the densities on the way.
        divergence: How traces are found.
        tolerance: Error of the integral that is aimed at, in nats.
        cut: Whether panels may be cut.
    """
    steps = torch.arange(len(path.rows), device=path.rows.device)
    panels = _looked_at(
        _Panels(steps, torch.zeros_like(path.width), torch.ones_like(path.width)), path, dynamics, divergence
    )
    doubt = _doubt(panels, path)
    spent = [panels.steps]
    for _ in range(_CUTS if cut else 0):
        doubtful = doubt > _SHARE * tolerance
        if not bool(doubtful.any()):
            break
        whole = panels.chosen(doubtful)
        halves = [_looked_at(half, path, dynamics, divergence) for half in whole.halves()]
        spent += [half.steps for half in halves]
        better = halves[0].log_det(path) + halves[1].log_det(path)
        found = (whole.log_det(path) - better).detach().mean(1).abs() / _GAIN
        panels = _joined([panels.chosen(~doubtful), *halves])
        doubt = torch.cat([doubt[~doubtful], found / 2, found / 2])
    n = len(path.end)
    rows = path.rows[panels.steps]
    log_det = panels.log_det(path)
    with torch.no_grad():
        unknown = torch.hypot(_sums(doubt, rows, n), _uncorrected(panels, path))
        rounding = _sums(panels.rounding.amax(1).square() * panels.share, rows, n).sqrt()
        num_looks = panels.trace.shape[1] * torch.bincount(path.rows[torch.cat(spent)], minlength=n)
    return Change(_sums(log_det, rows, n), torch.hypot(unknown, rounding), num_looks.to(path.nfe.dtype))


class _Panels(NamedTuple):
    """Parts of steps, ``[panels]``, over which Gauss's rule is used, and what is known at its nodes.

    Attributes:
        steps: Whose parts they are.
        begin: Share of the step that lies before it.
        share: Share of the step that it is.
        trace: ``[panels, nodes, k]``, of the Jacobian.
        correction: ``[panels, nodes]``, score times what the path is off.
        asymmetry: ``[panels, nodes]``, of the Jacobian.
        rounding: ``[panels, nodes]``, what log p is off where the state is rounded.
    """

    steps: Tensor
    begin: Tensor
    share: Tensor
    trace: Tensor = torch.empty(0)
    correction: Tensor = torch.empty(0)
    asymmetry: Tensor = torch.empty(0)
    rounding: Tensor = torch.empty(0)

    def chosen(self, which: Tensor) -> _Panels:
        return _Panels(*(each[which] for each in self))

    def halves(self) -> list[_Panels]:
        half = self.share / 2
        return [_Panels(self.steps, begin, half) for begin in (self.begin, self.begin + half)]

    def integral(self, path: Path, values: Tensor) -> Tensor:
        """Integrate values ``[panels, nodes, *]``, each panel by itself."""
        _, weights = gauss(values.shape[1], path.width)
        return torch.einsum("pm...,m,p->p...", values, weights, self.share * path.width[self.steps])

    def log_det(self, path: Path) -> Tensor:
        return self.integral(path, self.trace - self.correction[..., None])


def _looked_at(panels: _Panels, path: Path, dynamics: Dynamics, divergence: Divergence) -> _Panels:
    """The same panels, with what is at their nodes."""
    num_nodes, d = path.pair.num_nodes, path.end.shape[1]
    nodes, _ = gauss(num_nodes, path.width)
    found = []
    # One at the least, which may be of no panels.
    for part in torch.arange(len(panels.steps)).split(max(1, _VALUES_AT_A_TIME // (num_nodes * d))):
        steps = panels.steps[part]
        share = panels.begin[part, None] + panels.share[part, None] * nodes
        times = (path.start[steps, None] + path.width[steps, None] * share).flatten()
        rows = path.rows[steps].repeat_interleave(num_nodes)
        states, slopes = (each.flatten(0, 1) for each in path.inside(steps, share))
        local = divergence(lambda z, some: dynamics.velocity(times[some], z, rows[some]), states, rows)  # noqa: B023
        score = dynamics.score(times, states, local.velocity)
        trusted = (1 - local.asymmetry.square()).clamp_min(0)
        correction = trusted * (score * (slopes - local.velocity)).sum(1, dtype=torch.float64)
        rounding = torch.finfo(states.dtype).eps / d**0.5 * norms(score.detach()) * norms(states.detach())
        columns = (local.trace, correction, local.asymmetry, rounding)
        found.append([each.reshape(len(steps), num_nodes, *each.shape[1:]) for each in columns])
    return _Panels(panels.steps, panels.begin, panels.share, *map(torch.cat, zip(*found, strict=True)))


def _doubt(panels: _Panels, path: Path) -> Tensor:
    """How far the integrals over whole steps may be off: between what the trace alone says, which is smooth from one
    step to the next, and what it says with the correction, which is not."""
    trace = panels.trace.detach().mean(2)
    both = torch.stack([trace, trace - panels.correction.detach()], 2)
    smooth, rough = doubts(both, path.rows, path.start, path.width).unbind(1)
    # Either may be small by accident, and both: then those of the neighbours are not.
    doubt = _WIDER * (smooth * rough.clamp(_LEAST_ROUGH * smooth, _MOST_ROUGH * smooth)).sqrt()
    same = path.rows[1:] == path.rows[:-1]
    before = functional.pad(torch.where(same, doubt[:-1], 0), (1, 0))
    after = functional.pad(torch.where(same, doubt[1:], 0), (0, 1))
    doubt = torch.maximum(doubt, _OF_NEIGHBOURS * torch.maximum(before, after))
    # Where a rule is far from the truth, what it is held against is, too.
    return doubt * (1 + (doubt / _RESOLVED).sqrt())


def _uncorrected(panels: _Panels, path: Path) -> Tensor:
    r"""What is left of the solver's error, ``[n]``: the share of its correction by which the score is none.

    Between :math:`\int a |s \cdot r|`, as if it were of one sign in all of a step, and
    :math:`\sum |\int a \, s \cdot r|` over steps, as if what is left changed sign where the correction does.
    """
    n, num_steps = len(path.end), len(path.rows)
    doubtful = panels.asymmetry * panels.correction
    everywhere = _sums(panels.integral(path, doubtful.abs()).abs(), path.rows[panels.steps], n)
    by_step = _sums(panels.integral(path, doubtful), panels.steps, num_steps).abs()
    return (everywhere * _sums(by_step, path.rows, n)).sqrt()


def _joined(parts: list[_Panels]) -> _Panels:
    return _Panels(*(torch.cat(columns) for columns in zip(*parts, strict=True)))


def _sums(values: Tensor, rows: Tensor, n: int) -> Tensor:
    return values.new_zeros(n, *values.shape[1:]).index_add(0, rows, values)
