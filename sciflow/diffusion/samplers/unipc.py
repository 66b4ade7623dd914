"""UniPC: a multistep predictor, and a corrector that costs nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from sciflow.diffusion.samplers.contract import Past, Point, Process, Sampler, combined, require
from sciflow.diffusion.samplers.exponential import Variable, require_variable, weights

__all__ = ["UniPC"]


@dataclass(frozen=True)
class UniPC(Sampler):
    r"""Take the last step again, now that the mean at its end is known; then predict the next.

    .. math:: x_t &\leftarrow \frac{\sigma_t}{\sigma_r} x_r + \alpha_t \sum_j c_j \, \hat x_{0, j}
                  \quad \text{with} \; \hat x_0(x_t) \; \text{among the means} \\
              x_s &= \frac{\sigma_s}{\sigma_t} x_t + \alpha_s \sum_j w_j \, \hat x_{0, j}

    The mean that corrects the step from r to t is the one that predicts the step from t to s: one evaluation a step.
    The corrector gains an order over the predictor. States of a trajectory are those predicted. Source: Zhao et al.,
    arXiv:2302.04867; ``variable="log"`` is theirs with B2(h).

    Args:
        order: Means that the predictor looks at: 1, 2 or 3; the corrector looks at one more.
        variable: In what the means are a polynomial, see :func:`~sciflow.diffusion.samplers.exponential.weights`.
    """

    order: int = 2
    variable: Variable = "signal"

    def __post_init__(self) -> None:
        require("order", self.order, 1, 3, whole=True)
        require_variable(self.variable)

    def step(self, process: Process, x: Tensor, t: float, s: float, past: Past) -> Tensor:
        here = Point(t, x, process.mean(x, t))
        if past.points:
            here = here._replace(x=self._solved(process, past.points[-1], t, [*past.points, here]))
        past.add(here, keep=past.order(self.order))
        return self._solved(process, here, s, past.points)

    def _solved(self, process: Process, start: Point, s: float, points: Sequence[Point]) -> Tensor:
        """The state at time ``s``, from ``start`` on, with the means of ``points``."""
        (_, sigma_t), (alpha_s, sigma_s) = process.levels(start.t), process.levels(s)
        places = tuple(process.log_signal(point.t) for point in points)
        shares = weights(process.log_signal(start.t), process.log_signal(s), places, self.variable)
        return sigma_s / sigma_t * start.x + alpha_s * combined(shares, points)
