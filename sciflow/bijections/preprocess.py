"""From data units to numbers near zero: bijections that are fitted by a formula, saved with the model, and counted."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any, Self

import torch
from torch import Tensor
from torch.nn import functional as F

from sciflow.bijections.base import Bijection
from sciflow.bijections.composite import Composite
from sciflow.bijections.identity import Identity
from sciflow.errors import ConfigError, DataError, nearest

__all__ = ["Dequantize", "Log1p", "Logit", "Preprocessor", "Standardize", "preprocessing"]


class Preprocessor(Bijection):
    """A bijection of every element by itself, with numbers that are learned from training rows.

    A kind gives the map, its inverse and ``_fit``. The numbers are buffers of fixed shape: they are saved, and
    broadcast to other workers, with the weights.

    Args:
        event_shape: Shape of one event.
    """

    fitted: Tensor

    def __init__(self, event_shape: Sequence[int]) -> None:
        super().__init__(event_shape)
        self.register_buffer("fitted", torch.tensor(False))

    def fit(self, x: Tensor) -> Self:
        """Learn the numbers from training rows.

        Args:
            x: ``[n, *event_shape]``, data units.

        Raises:
            DataError: There is no row, a value is not finite, or a value is outside the support of the map.
        """
        if len(self.batch_shape(x)) != 1 or len(x) == 0:
            raise DataError(f"{type(self).__name__} is fitted on rows [n, *event_shape], n >= 1; got {list(x.shape)}")
        self._refuse(x, ~torch.isfinite(x), "not finite; drop or fill them first")
        with torch.no_grad():
            self._fit(x)
        self.fitted.fill_(True)
        return self

    @property
    def is_fitted(self) -> bool:
        """Whether :meth:`fit` has been called, on this or on the model that this was loaded from."""
        return bool(self.fitted)

    @abstractmethod
    def _fit(self, x: Tensor) -> None:
        """Set the buffers, in place, from rows that are finite."""

    def _element(self, name: str, value: float) -> None:
        self.register_buffer(name, torch.full(self.event_shape, value))

    def _sum(self, terms: Tensor, batch: torch.Size) -> Tensor:
        return terms.reshape(*batch, -1).sum(-1)

    def _refuse(self, x: Tensor, bad: Tensor, what: str) -> None:
        if bad.any():
            row, *element = bad.nonzero()[0].tolist()
            raise DataError(
                f"{type(self).__name__}: {int(bad.sum())} of {x.numel()} values are {what}. "
                f"The first is {x[(row, *element)].item():g}, in row {row}, element {tuple(element)}"
            )


class Standardize(Preprocessor):
    r"""Bring every element to mean 0 and standard deviation 1 over the training rows.

    .. math:: z = (x - \mu) / \sigma, \qquad \log |\det J| = -\sum_i \log \sigma_i

    An element that never varies keeps its unit: :math:`\sigma = 1`.

    Args:
        event_shape: Shape of one event.

    Example:
        >>> standardize = Standardize((1,)).fit(torch.tensor([[101324.0], [101326.0]]))
        >>> standardize(torch.tensor([[101327.0]]))
        (tensor([[2.]]), tensor([-0.]))
    """

    mean: Tensor
    std: Tensor

    def __init__(self, event_shape: Sequence[int]) -> None:
        super().__init__(event_shape)
        self._element("mean", 0.0)
        self._element("std", 1.0)

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        batch = self.batch_shape(x)
        return (x - self.mean) / self.std, -self.std.log().sum().expand(batch)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        batch = self.batch_shape(z)
        return z * self.std + self.mean, self.std.log().sum().expand(batch)

    def _fit(self, x: Tensor) -> None:
        # In float64: the squares of 1e5 +- 1 have no digits left in float32.
        mean = x.mean(0, dtype=torch.float64)
        squares = torch.zeros_like(mean)
        for rows in x.split(65536):  # a float64 copy of a few rows at a time, not of all
            squares += (rows.double() - mean).square().sum(0)
        std = (squares / len(x)).sqrt()
        # Rounding of the mean alone can make a constant seem to vary.
        constant = (x.amin(0) == x.amax(0)) | (std < torch.finfo(self.std.dtype).tiny)
        self.mean.copy_(mean)
        self.std.copy_(std.masked_fill(constant, 1.0))


class Log1p(Preprocessor):
    r"""Take the logarithm of amounts that start at zero: rain, counts, concentrations, energies.

    .. math:: z = \log(1 + x / a), \qquad \log |\det J| = -\sum_i \log(a_i + x_i)

    The scale :math:`a` is the median of the positive training values. The training values must be 0 or more; the
    support of the map is :math:`x > -a`, so that the density keeps a total of 1 and a -1e-12 from somebody's packing
    is no impossibility. At and below :math:`-a`, log p is -inf.

    Args:
        event_shape: Shape of one event.

    Example:
        >>> log1p = Log1p((1,)).fit(torch.tensor([[0.0], [2.0], [2.0]]))
        >>> z, log_det = log1p(torch.tensor([[0.0], [-2.0]]))
        >>> z[0].item(), log_det
        (0.0, tensor([-0.6931,    -inf]))
    """

    scale: Tensor

    def __init__(self, event_shape: Sequence[int]) -> None:
        super().__init__(event_shape)
        self._element("scale", 1.0)

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        batch = self.batch_shape(x)
        outside = x <= -self.scale
        inner = x.masked_fill(outside, 0)
        z = torch.log1p(inner / self.scale)
        terms = (-(z + self.scale.log())).masked_fill(outside, -torch.inf)
        return z, self._sum(terms, batch)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        batch = self.batch_shape(z)
        return self.scale * torch.expm1(z), self._sum(z + self.scale.log(), batch)

    def _fit(self, x: Tensor) -> None:
        self._refuse(x, x < 0, "negative, and log1p is for amounts from 0; use standardize for such a variable")
        median = torch.where(x > 0, x, torch.nan).nanmedian(0).values
        self.scale.copy_(median.nan_to_num(nan=1.0))


class Logit(Preprocessor):
    r"""Open up a bounded range: fractions, humidity, angles within limits.

    .. math:: u = \frac{x - l}{h - l}, \qquad z = \log \frac{u}{1 - u}, \qquad
              \log |\det J| = -\sum_i \log\big((h_i - l_i) \, u_i (1 - u_i)\big)

    At and beyond the bounds log p is -inf, for no density of this kind can reach there. Bounds that are not given
    are the training extrema, widened by 5 % of their distance; a row beyond those is impossible to the model.

    Args:
        event_shape: Shape of one event.
        low: Lower bound of every element; None to fit it.
        high: Upper bound of every element; None to fit it.

    Raises:
        ConfigError: A bound is no finite number, or ``low`` is not below ``high``.

    Example:
        >>> z, log_det = Logit((1,), low=0.0, high=100.0)(torch.tensor([[50.0], [100.0]]))
        >>> z, log_det
        (tensor([[0.],
                [0.]]), tensor([-3.2189,    -inf]))
    """

    margin = 0.05

    low: Tensor
    high: Tensor

    def __init__(self, event_shape: Sequence[int], low: float | None = None, high: float | None = None) -> None:
        _require_numbers("logit", low=low, high=high)
        if low is not None and high is not None and not low < high:
            raise ConfigError(f"logit: low must be below high; got low={low}, high={high}")
        super().__init__(event_shape)
        self.given = (low, high)
        self._element("low", 0.0 if low is None else low)
        self._element("high", 1.0 if high is None else high)

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        batch = self.batch_shape(x)
        above, below = x - self.low, self.high - x
        outside = (above <= 0) | (below <= 0)
        half = (self.high - self.low) / 2
        log_above = torch.where(outside, half, above).log()
        log_below = torch.where(outside, half, below).log()
        terms = (self.high - self.low).log() - log_above - log_below
        return log_above - log_below, self._sum(terms.masked_fill(outside, -torch.inf), batch)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        batch = self.batch_shape(z)
        extent = self.high - self.low
        # From the nearer bound, where the digits are.
        step = extent * torch.sigmoid(-z.abs())
        x = torch.where(z < 0, self.low + step, self.high - step)
        terms = extent.log() + F.logsigmoid(z) + F.logsigmoid(-z)
        return x, self._sum(terms, batch)

    def _fit(self, x: Tensor) -> None:
        least, most = x.amin(0), x.amax(0)
        # A constant has no extent of its own; its margin must still be more than a rounding error of its value.
        extent = torch.where(most > least, most - least, least.abs().clamp_min(1.0))
        rounding = 4 * torch.finfo(x.dtype).eps * torch.maximum(least.abs(), most.abs())
        margin = torch.maximum(self.margin * extent, rounding)
        low, high = self.given
        self.low.copy_(least - margin if low is None else torch.full_like(least, low))
        self.high.copy_(most + margin if high is None else torch.full_like(most, high))
        self._refuse(
            x,
            (x <= self.low) | (x >= self.high),
            f"at or outside the bounds low={low}, high={high}, where log p is -inf; give wider bounds, or none",
        )


class Dequantize(Preprocessor):
    r"""Treat values on a grid as continuous: counts, rounded or packed measurements.

    .. math:: z = x + u, \quad u \sim \mathrm{Uniform}[0, \Delta), \qquad \log |\det J| = 0

    In training mode every row gets fresh noise, drawn from torch's own generator: without it a density would grow
    without limit at the grid values. The objective bounds the probability of the cell from below, Theis et al.,
    arXiv:1511.01844. In eval mode :math:`u = \Delta / 2`, so that log p is a function of the row alone: the log-density
    at the centre of its cell, in data units; add :math:`\log \Delta` for the (approximate) log-probability of the
    grid value. The inverse goes back to the grid.

    Args:
        event_shape: Shape of one event.
        step: Distance :math:`\Delta` of grid values; None to take the smallest gap of each element's training values.

    Raises:
        ConfigError: ``step`` is not positive, or no finite number.

    Example:
        >>> dequantize = Dequantize((1,), step=1.0).eval()
        >>> z, _ = dequantize(torch.tensor([[3.0]]))
        >>> z, dequantize.inverse(z + 0.4)[0]
        (tensor([[3.5000]]), tensor([[3.]]))
    """

    step: Tensor
    origin: Tensor

    def __init__(self, event_shape: Sequence[int], step: float | None = None) -> None:
        _require_numbers("dequantize", step=step)
        if step is not None and not step > 0:
            raise ConfigError(f"dequantize: step must be positive; got {step}")
        super().__init__(event_shape)
        self.given = step
        self._element("step", 1.0 if step is None else step)
        self._element("origin", 0.0)

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        batch = self.batch_shape(x)
        noise = torch.rand_like(x) if self.training else 0.5
        return x + noise * self.step, x.new_zeros(batch)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        batch = self.batch_shape(z)
        cell = torch.floor((z - self.origin) / self.step)
        return self.origin + cell * self.step, z.new_zeros(batch)

    def _fit(self, x: Tensor) -> None:
        self.origin.copy_(x.amin(0))
        if self.given is not None or len(x) == 1:
            return
        ordered = x.flatten(1).double().sort(0).values
        gaps = ordered.diff(dim=0)
        # The same grid value computed in two ways may differ in its last digits; that is no gap.
        rounding = 8 * torch.finfo(x.dtype).eps * ordered.abs().amax(0)
        gap = torch.where(gaps > rounding, gaps, torch.inf).amin(0)
        self.step.copy_(torch.where(gap.isfinite(), gap, 1.0).reshape(self.event_shape))


_KINDS: dict[str, type[Bijection]] = {
    "none": Identity,
    "standardize": Standardize,
    "log1p": Log1p,
    "logit": Logit,
    "dequantize": Dequantize,
}


def preprocessing(
    names: str | Mapping[str, Any] | Sequence[str | Mapping[str, Any]], event_shape: Sequence[int]
) -> Bijection:
    """Build the chain from data units that a workflow or model file names.

    Args:
        names: One name or several, applied in order: ``"standardize"``, ``"log1p"``, ``"logit"``, ``"dequantize"``,
            ``"none"``; with options, a mapping such as ``{"logit": {"low": 0, "high": 1}}``.
        event_shape: Shape of one event.

    Raises:
        ConfigError: A name or an option is unknown.

    Example:
        >>> len(preprocessing(["log1p", "standardize"], (3,)).bijections)
        2
        >>> preprocessing("standardise", (3,))
        Traceback (most recent call last):
        sciflow.errors.ConfigError: preprocess: unknown 'standardise'; did you mean standardize?
    """
    steps = [names] if isinstance(names, str | Mapping) or not isinstance(names, Sequence) else list(names)
    bijections = [_build(step, event_shape) for step in steps]
    if not bijections:
        return Identity(event_shape)
    return bijections[0] if len(bijections) == 1 else Composite(bijections)


def _build(step: str | Mapping[str, Any], event_shape: Sequence[int]) -> Bijection:
    if isinstance(step, Mapping):
        if len(step) != 1:
            raise ConfigError(f"preprocess: one name with its options expected; got {dict(step)}")
        name, options = next(iter(step.items()))
    else:
        name, options = step, {}
    if not isinstance(name, str) or name not in _KINDS:
        raise ConfigError(f"preprocess: unknown {name!r}; {nearest(str(name), _KINDS)}")
    try:
        return _KINDS[name](event_shape, **(options or {}))
    except TypeError:
        raise ConfigError(f"preprocess: {name} does not take {options}") from None


def _require_numbers(kind: str, **options: Any) -> None:
    """Refuse what float32, in which the numbers are kept, cannot hold: NaN, infinity, 1e39, and what is no number."""
    for name, value in options.items():
        number = isinstance(value, Real) and not isinstance(value, bool)
        if value is not None and not (number and abs(value) <= torch.finfo(torch.float32).max):
            raise ConfigError(f"{kind}: {name} must be a finite number; got {value!r}")
