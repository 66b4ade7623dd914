"""From values on a grid to continuous ones: noise that fills each value's cell."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from sciflow.bijections.preprocess.preprocessor import Preprocessor, require_positive, require_whole

__all__ = ["Dequantize"]

_LEAST_DRAWS, _MOST_DRAWS = 4, 4096  # of three and fewer, Student's t has no standard deviation
_PASSES = 8  # each of which multiplies the distances that are counted in steps


class Dequantize(Preprocessor):
    r"""Treat values on a grid as continuous: counts, rounded or packed measurements.

    .. math:: z = x + u, \quad u \sim \mathrm{Uniform}[0, \Delta), \qquad \log |\det J| = 0

    In training mode every row gets fresh noise, drawn from torch's own generator: without it a density would grow
    without limit at the grid values. The objective bounds the probability of the cell from below, Theis et al.,
    arXiv:1511.01844.

    In eval mode a density with this preprocessing averages over ``num_draws`` points of the cell, the same for every
    row: ``log_prob(x)`` and ``likelihood(x)``, of kind "elbo" with its error, are the mean density of the cell, in
    data units; add :math:`\sum_i \log \Delta_i` for the log-probability of the grid value. With a single draw log p is
    the exact density at the centre of the cell, which need not be near its mean. ``encode`` sees the centre; the
    inverse goes back to the grid.

    Args:
        event_shape: Shape of one event.
        step: Distance :math:`\Delta` of grid values; None to find that of each element's training values.
        num_draws: Points of a cell in eval mode, 4 or more: each costs a pass, and more of them bring the mean closer.
            A single one is the centre.

    Raises:
        ConfigError: ``step`` is no positive number of float32's; ``num_draws`` is out of range.

    Example:
        >>> dequantize = Dequantize((1,), step=1.0).eval()
        >>> z, _ = dequantize(torch.tensor([[3.0]]))
        >>> z, dequantize.inverse(z + 0.4)[0]
        (tensor([[3.5000]]), tensor([[3.]]))
    """

    kind = "dequantize"
    has_centre = True  # which alone may stand for a cell

    step: Tensor
    origin: Tensor
    points: Tensor

    def __init__(self, event_shape: Sequence[int], step: float | None = None, num_draws: int = 16) -> None:
        require_positive(self.kind, step=step)
        if not (self.has_centre and type(num_draws) is int and num_draws == 1):
            name = "num_draws, unless 1," if self.has_centre else "num_draws"
            require_whole(self.kind, name, num_draws, _LEAST_DRAWS, _MOST_DRAWS)
        super().__init__(event_shape)
        self.given = step
        self._element("step", 1.0 if step is None else step, given=step is not None)
        self._element("origin", 0.0)
        self.register_buffer("points", latin_hypercube(num_draws, self.event_shape), persistent=False)

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        self.batch_shape(x)
        return self._filled(x, torch.rand_like(x) if self.training else torch.full_like(x, 0.5))

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        batch = self.batch_shape(z)
        cell = torch.floor((z - self.origin) / self.step)
        return self.origin + cell * self.step, z.new_zeros(batch)

    @property
    def num_draws(self) -> int:
        """Points of a cell that stand for a row in eval mode."""
        return len(self.points)

    def draws(self, x: Tensor, num_draws: int) -> tuple[Tensor, Tensor]:
        batch = self.batch_shape(x)
        points = self.points if num_draws == len(self.points) else latin_hypercube(num_draws, self.event_shape)
        points = points.to(x).reshape(num_draws, *[1] * len(batch), *self.event_shape)
        return self._filled(x.expand(num_draws, *x.shape), points.expand(num_draws, *x.shape))

    def _filled(self, x: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Go to a place in the cell of each value, by uniform noise of the shape of ``x``."""
        return x + noise * self.step, x.new_zeros(self.batch_shape(x))

    def _fit(self, x: Tensor) -> None:
        # The value nearest zero, from which no distance is rounded more than the values are.
        self.origin.copy_(x.gather(0, x.abs().argmin(0, keepdim=True))[0])
        if self.given is None:
            steps = [grid_step(values.unique()) for values in x.flatten(1).T]
            self.step.copy_(torch.stack(steps).reshape(self.event_shape))


def grid_step(values: Tensor) -> Tensor:
    """Return the distance of neighbours on the grid from which values are, in float64; 1 of a single value.

    The smallest gap tells it roughly, for both its ends are rounded. Longer distances tell it better, as long as it is
    beyond doubt how many steps they are: from the smallest gap on, more of them with every pass.

    Args:
        values: ``[n]``, ascending, each rounded as its dtype does.

    Example:
        >>> values = torch.tensor([281.37, 281.38, 281.41, 281.44, 295.09])
        >>> values.diff().amin(), grid_step(values)
        (tensor(0.0100), tensor(0.0100, dtype=torch.float64))
    """
    rounding = torch.finfo(values.dtype).eps / 2 * values.abs().double()
    gaps, doubt = values.double().diff(), rounding[1:] + rounding[:-1]
    # The same grid value computed in two ways may differ in its last digits; that is no gap.
    apart = torch.where(gaps > 4 * doubt, gaps, torch.inf)
    if not apart.isfinite().any():
        return gaps.new_ones(())
    smallest = apart.argmin()
    step, error = gaps[smallest], doubt[smallest]
    for _ in range(_PASSES):
        num_steps = torch.round(gaps / step)
        tolerance = num_steps * error + doubt
        sure = (tolerance < step / 2) & ((gaps - num_steps * step).abs() <= 2 * tolerance)
        total = num_steps[sure].sum()
        if total == 0:
            break
        step = gaps[sure].sum() / total
        # Of gaps side by side, only the outermost ends count.
        ends = F.pad(sure.double(), (1, 1)).diff().abs()
        error = (ends * rounding).sum() / total
    return step


def latin_hypercube(num_draws: int, event_shape: Sequence[int]) -> Tensor:
    """Return points of the unit cube ``[num_draws, *event_shape]``, always the same.

    Every edge is cut into ``num_draws`` slices, and one point lies in the middle of each: in one dimension a midpoint
    rule, and in any number of dimensions nearer to the mean over the cube than as many points at random.

    Example:
        >>> latin_hypercube(4, (1,)).sort(0).values.flatten()
        tensor([0.1250, 0.3750, 0.6250, 0.8750])
    """
    order = torch.rand(num_draws, *event_shape, generator=torch.Generator().manual_seed(0), device="cpu").argsort(0)
    return (order + 0.5) / num_draws
