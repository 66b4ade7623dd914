"""From a half-line or an interval to all real numbers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from sciflow.bijections.preprocess.preprocessor import Preprocessor, require_numbers
from sciflow.errors import ConfigError

__all__ = ["Log", "Log1p", "Logit"]


class Log(Preprocessor):
    r"""Take the logarithm of what is never zero or less: sizes, masses, times, prices.

    .. math:: z = \log(x - l), \qquad \log |\det J| = -\sum_i \log(x_i - l)

    The support is :math:`x > l`: no draw is below, and there log p is -inf. Where zeros occur, :class:`Log1p` keeps
    them.

    Args:
        event_shape: Shape of one event.
        low: The bound :math:`l`, data units.

    Raises:
        ConfigError: ``low`` is no finite number.

    Example:
        >>> z, log_det = Log((1,))(torch.tensor([[2.0], [-2.0]]))
        >>> z[0], log_det
        (tensor([0.6931]), tensor([-0.6931,    -inf]))
    """

    low: Tensor

    def __init__(self, event_shape: Sequence[int], low: float = 0.0) -> None:
        require_numbers("log", low=low)
        super().__init__(event_shape)
        self._element("low", low, given=True)

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        batch = self.batch_shape(x)
        outside = x <= self.low
        z = torch.log((x - self.low).masked_fill(outside, 1))
        return z, self._sum((-z).masked_fill(outside, -torch.inf), batch)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        batch = self.batch_shape(z)
        return self.low + torch.exp(z), self._sum(z, batch)

    def _fit(self, x: Tensor) -> None:
        low = float(self.low.flatten()[0])
        self._refuse(x, x <= self.low, f"not above low={low:g}, where log p is -inf; use log1p, or a lower bound")


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
        ConfigError: A bound is no finite number, or ``low`` is not below ``high``, in float32 too.

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
        require_numbers("logit", low=low, high=high)
        if low is not None and high is not None and not torch.tensor(float(low)) < torch.tensor(float(high)):
            raise ConfigError(f"logit: low must be below high, in float32 too; got low={low}, high={high}")
        super().__init__(event_shape)
        self.given = (low, high)
        self._element("low", 0.0 if low is None else low, given=low is not None)
        self._element("high", 1.0 if high is None else high, given=high is not None)

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
