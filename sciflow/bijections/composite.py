"""Bijections one after the other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

from torch import Tensor, nn

from sciflow.bijections.base import Bijection
from sciflow.errors import ShapeError
from sciflow.modes import in_evaluation_mode

__all__ = ["Composite"]


class Composite(Bijection):
    r"""Apply bijections in order, data to noise.

    .. math:: z = f_n \circ \dots \circ f_1 (x), \qquad \log |\det J| = \sum_i \log |\det J_i|

    Args:
        bijections: At least one, all of the same event shape; those that are conditioned, of the same context shape.

    Raises:
        ShapeError: There is none, or their shapes differ.

    Example:
        >>> import torch
        >>> from sciflow.bijections import Affine
        >>> shrink = Affine(mean=torch.zeros(1), log_scale=torch.ones(1))
        >>> Composite([shrink, shrink])(torch.zeros(1, 1))
        (tensor([[0.]]), tensor([-2.]))
    """

    def __init__(self, bijections: Sequence[Bijection]) -> None:
        if not bijections:
            raise ShapeError("a Composite needs at least one bijection; Identity(event_shape) changes nothing")
        event_shapes = {b.event_shape for b in bijections}
        context_shapes = {b.context_shape for b in bijections if b.context_shape is not None}
        if len(event_shapes) > 1 or len(context_shapes) > 1:
            shapes = ", ".join(f"{type(b).__name__}({b.extra_repr()})" for b in bijections)
            raise ShapeError(f"bijections of one Composite must agree on their shapes; got {shapes}")
        super().__init__(bijections[0].event_shape, next(iter(context_shapes), None))
        self.bijections = nn.ModuleList(bijections)

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        log_det = x.new_zeros(self.batch_shape(x))
        for bijection in self.bijections:
            x, term = bijection(x, context)
            log_det = log_det + term
        return x, log_det

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        log_det = z.new_zeros(self.batch_shape(z))
        for bijection in reversed(self.bijections):
            z, term = bijection.inverse(z, context)  # type: ignore[operator]
            log_det = log_det + term
        return z, log_det

    @property
    def num_draws(self) -> int:
        """Those of the first: dequantisation comes first."""
        return self.bijections[0].num_draws  # type: ignore[return-value]

    def draws(self, x: Tensor, num_draws: int) -> tuple[Tensor, Tensor]:
        z, log_det = self.bijections[0].draws(x, num_draws)  # type: ignore[operator]
        for bijection in self.bijections[1:]:
            z, term = bijection(z)
            log_det = log_det + term
        return z, log_det

    @property
    def is_fitted(self) -> bool:
        """Whether all of them are."""
        return all(bijection.is_fitted for bijection in self.bijections)

    def fit(self, x: Tensor) -> Self:
        """Fit each bijection on what those before it make of ``x``.

        They run in eval mode meanwhile: what is fitted is then a function of the rows alone, not of random noise.
        """
        self.batch_shape(x)
        with in_evaluation_mode(self):
            for bijection in self.bijections:
                bijection.fit(x)  # type: ignore[operator]
                x, _ = bijection(x)
        return self
