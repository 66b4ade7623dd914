"""Autoregressive maps: each feature bends by what came before it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from numbers import Real
from typing import Literal

import torch
from torch import Tensor

from sciflow.bijections.base import Bijection
from sciflow.bijections.univariate import Univariate
from sciflow.errors import ConfigError, nearest
from sciflow.kernels import repeated
from sciflow.nets.made import MADE

__all__ = ["Autoregressive", "inverse_by"]

Method = Literal["auto", "sequential", "parallel"]
METHODS = ("auto", "sequential", "parallel")


TOLERANCE = 1e-6

_chosen: ContextVar[tuple[str, float]] = ContextVar("inverse", default=("auto", TOLERANCE))


@contextmanager
def inverse_by(method: Method, tolerance: float = TOLERANCE) -> Iterator[None]:
    """Choose how autoregressive maps are inverted within.

    Args:
        method: ``"sequential"``, feature by feature, each hidden unit computed once: exact, and the cost of one pass
            through the network in many small steps. ``"parallel"``, all features at once again and again until they
            stay: passes as many as features at the most, fewer where dependence is short. ``"auto"``: sequential on a
            CPU, where it was the faster one at every size measured; elsewhere whichever took less time on the first
            batch of that size. Where gradients are recorded it is always sequential.
        tolerance: Of the parallel method: largest change in the last pass, relative to the largest value or 1.

    Raises:
        ConfigError: There is no such method, or the tolerance is none.

    Example:
        >>> from sciflow.bijections import Spline
        >>> autoregressive = Autoregressive(3, Spline(), hidden_features=(16,))
        >>> with torch.no_grad(), inverse_by("parallel"):
        ...     x, log_det = autoregressive.inverse(torch.zeros(5, 3))
    """
    if method not in METHODS:
        raise ConfigError(f"method of inversion: got {method!r}; {nearest(str(method), METHODS)}")
    kind: type = type(tolerance)
    if not (issubclass(kind, Real) and kind is not bool and 0 <= tolerance < 1):
        raise ConfigError(f"tolerance of inversion: from 0 to below 1; got {tolerance!r}")
    token = _chosen.set((method, tolerance))
    try:
        yield
    finally:
        _chosen.reset(token)


class Autoregressive(Bijection):
    r"""Map every feature by a function of one variable, whose parameters a network reads off the features before it.

    .. math:: z_i = f(x_i; \, \mathrm{MADE}_i(x_{<i}, c)), \qquad
              \log |\det J| = \sum_i \log \partial z_i / \partial x_i

    From data to noise is the fast direction, one pass of the network; the way back knows a feature when it knows those
    before, see :func:`inverse_by`. From Papamakarios et al., arXiv:1705.07057.

    Args:
        num_features: Length of the vector event.
        univariate: The functions :math:`f`.
        hidden_features: Hidden widths of the network.
        num_context: Length of the context vector; 0 for none.
        dropout: Of the network, while training.
        angles: Which features are angles: the network sees their cosine and sine.

    Example:
        >>> from sciflow.bijections import Spline
        >>> autoregressive = Autoregressive(3, Spline(), hidden_features=(64, 64))
        >>> z, log_det = autoregressive(torch.ones(5, 3))
        >>> x, _ = autoregressive.inverse(z)
        >>> torch.allclose(x, torch.ones(5, 3)), log_det.shape
        (True, torch.Size([5]))
    """

    def __init__(
        self,
        num_features: int,
        univariate: Univariate,
        hidden_features: Sequence[int] = (128, 128),
        num_context: int = 0,
        dropout: float = 0.0,
        angles: Sequence[int] = (),
    ) -> None:
        super().__init__((num_features,), (num_context,) if num_context else None)
        self.univariate = univariate
        self.network = MADE(num_features, univariate.num_parameters, hidden_features, num_context, dropout, angles)
        self._faster: dict[int, str] = {}

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        rows, given, batch = self._rows(x, context)
        z, log_slope = self.univariate.forward(rows.T, self.network(rows, given))
        return z.T.reshape(x.shape), log_slope.sum(0).reshape(batch)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        rows, given, batch = self._rows(z, context)
        x, log_slope = self._way_back(rows, given)(rows, given)
        return x.T.reshape(z.shape), log_slope.sum(0).reshape(batch)

    def _rows(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor | None, torch.Size]:
        batch = self.batch_shape(x)
        context = self.broadcast_context(context, batch)
        given = None if context is None else context.reshape(-1, context.shape[-1])
        return x.reshape(-1, x.shape[-1]), given, batch

    def _sequential(self, z: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return ``x`` and log-slopes, features first."""
        steps = self.network.steps(len(z), context)
        known: list[Tensor] = []
        log_slopes: list[Tensor] = []
        with repeated(z.shape[-1]):
            for feature, target in enumerate(z.unbind(-1)):
                parameters = steps.next(known[-1] if known else None)
                x, log_slope = self.univariate.of(feature).inverse(target, parameters)
                known.append(x)
                log_slopes.append(log_slope)
        return torch.stack(known), torch.stack(log_slopes)

    def _parallel(self, z: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        """Jacobi's iteration, Song et al., arXiv:2002.03629: after pass ``i`` the first ``i`` features are right."""
        target = x = z.T
        _, tolerance = _chosen.get()
        for _ in range(len(target) - 1 if len(z) else 0):
            before = x
            x, _ = self.univariate.inverse(target, self.network(x.T, context))
            if (x - before).abs().max() <= tolerance * x.abs().max().clamp_min(1):
                break
        return self.univariate.inverse(target, self.network(x.T, context))

    def _way_back(self, z: Tensor, context: Tensor | None) -> Callable[..., tuple[Tensor, Tensor]]:
        # A graph of gradients is to be that of the exact inverse.
        if torch.compiler.is_compiling() or torch.is_grad_enabled():
            return self._sequential
        method, _ = _chosen.get()
        if method == "auto" and z.device.type != "cpu":
            size = len(z).bit_length()
            if size not in self._faster:
                ways = {"sequential": self._sequential, "parallel": self._parallel}
                seconds = {name: _seconds(way, z, context) for name, way in ways.items()}
                self._faster[size] = min(seconds, key=seconds.__getitem__)
            method = self._faster[size]
        return self._parallel if method == "parallel" else self._sequential


def _seconds(way: Callable[..., object], z: Tensor, context: Tensor | None) -> float:
    """Time on an accelerator, the second time: the first one finds its kernels."""
    way(z, context)
    torch.accelerator.synchronize()
    began = time.perf_counter()
    way(z, context)
    torch.accelerator.synchronize()
    return time.perf_counter() - began
