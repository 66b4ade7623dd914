"""Noise for values on a grid that is learned with the density."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from torch import Tensor

from sciflow.bijections.composite import Composite
from sciflow.bijections.coupling import Coupling
from sciflow.bijections.preprocess.dequantize import Dequantize
from sciflow.bijections.preprocess.preprocessor import require_whole
from sciflow.bijections.preprocess.standardize import Standardize
from sciflow.bijections.univariate import Spline
from sciflow.errors import ConfigError
from sciflow.nets import ResidualMLP

__all__ = ["VariationalDequantize"]

_MOST_TRANSFORMS, _MOST_BINS, _MOST_WIDTH = 64, 256, 1 << 16


class VariationalDequantize(Dequantize):
    r"""Treat values on a grid as continuous, by noise whose distribution within the cell is learned.

    .. math:: z = x + \Delta v, \quad v \sim q(v \mid x) \text{ on } [0, 1)^D, \qquad \log |\det J| := -\log q(v \mid x)

    Uniform noise asks the density to be flat over every cell, with steps between them, which a flow does badly. Here a
    small conditional flow :math:`q` (couplings of splines on the unit cube, which read off :math:`x`) shapes the noise
    to what the density makes of the cell, and is trained with it, by the same loss: the variational bound

    .. math:: \log P(x) - \sum_i \log \Delta_i \;\ge\; \mathrm{E}_q[\log p(x + \Delta v) - \log q(v \mid x)].

    It starts with uniform noise. From Ho et al., Flow++, arXiv:1902.00275; see also Hoogeboom et al., arXiv:2001.11235.

    In training mode every row gets fresh noise, drawn from torch's own generator. In eval mode a density with this
    preprocessing averages over ``num_draws`` points of the cell, the same for every row, each weighted by
    :math:`p / q` (Burda et al., arXiv:1509.00519): ``log_prob(x)`` and ``likelihood(x)``, of kind "elbo" with its
    error, bound the log-density of the cell as a whole; add :math:`\sum_i \log \Delta_i` for the log-probability of the
    grid value. Far from all training rows :math:`q` is not trained, and may hardly draw from where :math:`p` is: there
    the bound may be nats below, and more than its error says. ``encode`` sees one point of the cell; the inverse goes
    back to the grid.

    Args:
        event_shape: Shape of one event.
        step: Distance :math:`\Delta` of grid values; None to find that of each element's training values.
        num_draws: Points of a cell in eval mode, 4 or more: each costs a pass, and more of them bring the bound closer.
        num_transforms: Couplings of :math:`q`.
        hidden_features: Hidden widths of their networks.
        num_bins: Bins of their splines.

    Raises:
        ConfigError: An argument is out of range.

    Example:
        >>> import torch
        >>> dequantize = VariationalDequantize((2,), step=1.0)
        >>> z, log_det = dequantize(torch.tensor([[3.0, 5.0]]))
        >>> z.detach().floor(), log_det.shape
        (tensor([[3., 5.]]), torch.Size([1]))
    """

    kind = "variational_dequantize"
    has_centre = False

    def __init__(
        self,
        event_shape: Sequence[int],
        step: float | None = None,
        num_draws: int = 16,
        num_transforms: int = 2,
        hidden_features: Sequence[int] = (32, 32),
        num_bins: int = 8,
    ) -> None:
        require_whole(self.kind, "num_transforms", num_transforms, 1, _MOST_TRANSFORMS)
        require_whole(self.kind, "num_bins", num_bins, 2, _MOST_BINS)
        if not isinstance(hidden_features, list | tuple) or not hidden_features:
            raise ConfigError(f"{self.kind}: hidden_features must be a list of widths; got {hidden_features!r}")
        for width in hidden_features:
            require_whole(self.kind, "hidden_features", width, 1, _MOST_WIDTH)
        super().__init__(event_shape, step, num_draws)
        self.condition = Standardize(event_shape)
        num_features = self.event_shape.numel()
        spline = Spline(num_bins, tail_bound=1.0)  # on [-1, 1], to which the unit cube is stretched
        network = partial(ResidualMLP, hidden_features=hidden_features)
        self.noise = Composite(
            [
                Coupling(num_features, spline, network, num_context=num_features, keep_last=i % 2 == 1)
                for i in range(num_transforms)
            ]
        )

    def _filled(self, x: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        condition, _ = self.condition(x)
        batch = self.batch_shape(x)
        v, log_det = self.noise.inverse((2 * noise - 1).flatten(len(batch)), condition.flatten(len(batch)))
        return x + (0.5 * v + 0.5).reshape(x.shape) * self.step, log_det

    def _fit(self, x: Tensor) -> None:
        super()._fit(x)
        self.condition.fit(x)
