"""A density of what a linear regression on the context leaves over."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from sciflow.arguments import plain
from sciflow.bijections import context_preprocessing, preprocessing
from sciflow.density import checked_shape
from sciflow.families import build
from sciflow.inference.conditional.wrapped import Wrapped

__all__ = ["Regressed", "ridge"]

_PENALTIES = tuple(10.0**power for power in range(-6, 2))
_LEAST_VARIANCE = 1e-8


class Regressed(Wrapped):
    r"""Take off a vector event what a linear function of the context says, and model the rest.

    .. math:: u = L^{-1} \big( T(x) - A \, S(c) - b \big), \qquad
              \log p(x \mid c) = \log q(u \mid c) + \log |\det \partial T / \partial x| - \log |\det L|

    :math:`T` are the bijections of the event, :math:`S` those of the context; :math:`A, b` is the ridge regression of
    the training rows, whose penalty generalised cross-validation chooses, and :math:`L L^T` the covariance of what it
    leaves over. What is linear and Gaussian need then not be learned, and where parameters are told nearly exactly, or
    depend on each other, networks see numbers of size one all the same.

    Args:
        event_shape: Shape of one event, a vector.
        context_shape: Shape of its context, a vector.
        density: Family and arguments of :math:`q`.
        preprocess: Of the event, see :func:`sciflow.bijections.preprocessing`.

    Example:
        >>> model = Regressed((2,), (3,), density={"name": "maf", "num_transforms": 1}, preprocess="standardize")
        >>> x, c = torch.randn(50, 2), torch.randn(50, 3)
        >>> model.fit_preprocessing(x, c)
        >>> model.log_prob(x, c).shape, model.sample(4, c[0], seed=0).shape
        (torch.Size([50]), torch.Size([4, 2]))
    """

    family = "regressed"

    slopes: Tensor
    offset: Tensor
    scale: Tensor

    def __init__(
        self,
        event_shape: Sequence[int],
        context_shape: Sequence[int],
        *,
        density: Mapping[str, Any],
        preprocess: Any = "standardize",
    ) -> None:
        shape, given = checked_shape(event_shape, "event_shape"), checked_shape(context_shape, "context_shape")
        inner = build({"preprocess": "none", **density}, shape, given)
        super().__init__(
            shape,
            given,
            preprocess=preprocessing(preprocess, shape),
            preprocess_context=context_preprocessing(given),
            arguments={"density": plain("density", density), "preprocess": plain("preprocess", preprocess)},
        )
        (d,), (e,) = shape, given
        self.register_buffer("slopes", torch.zeros(d, e))
        self.register_buffer("offset", torch.zeros(d))
        self.register_buffer("scale", torch.eye(d))
        self._wrap(inner)

    def fit_preprocessing(self, x: Any, context: Any = None) -> None:
        """Fit the bijections and the regression."""
        rows, c = self._numbers(x), self._numbers(context)
        self.preprocess.fit(rows)  # type: ignore[operator]
        assert self.preprocess_context is not None
        self.preprocess_context.fit(c)  # type: ignore[operator]
        y, _ = self.preprocess(rows)
        slopes, offset, scale = ridge(self._features(c).double(), y.double())
        self.slopes.copy_(slopes)
        self.offset.copy_(offset)
        self.scale.copy_(scale)
        self.density.fit_preprocessing(self._inward(rows, c)[0], c)

    def _inward(self, x: Tensor, context: Any) -> tuple[Tensor, Tensor]:
        y, log_det = self.preprocess(x)
        off = y - self._expected(context)
        u = torch.linalg.solve_triangular(self.scale, off[..., None], upper=False)[..., 0]
        return u, log_det - self.scale.diagonal().log().sum()

    def _outward(self, u: Tensor, context: Any) -> Tensor:
        x, _ = self.preprocess.inverse(u @ self.scale.T + self._expected(context))  # type: ignore[operator]
        return torch.as_tensor(x)

    def _expected(self, context: Any) -> Tensor:
        return self._features(self._numbers(context)) @ self.slopes.T + self.offset

    def _features(self, context: Tensor) -> Tensor:
        assert self.preprocess_context is not None
        features: Tensor = self.preprocess_context(context)[0]
        # Far outside the training rows a line says nothing.
        return features.clamp(-5, 5)


def ridge(features: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Regress ``y`` ``[n, d]`` on ``features`` ``[n, e]``.

    Returns:
        Slopes ``[d, e]``, offset ``[d]``, and the Cholesky factor ``[d, d]`` of the covariance of what is left over.

    Example:
        >>> x = torch.linspace(-1, 1, 50, dtype=torch.float64)[:, None]
        >>> slopes, offset, scale = ridge(x, 3 * x + 1)
        >>> round(float(slopes), 2), round(float(offset), 2), float(scale) < 0.01
        (3.0, 1.0, True)
    """
    n = len(y)
    middle, mean = features.mean(0), y.mean(0)
    u, sizes, v = torch.linalg.svd(features - middle, full_matrices=False)
    along = u.T @ (y - mean)
    best = math.inf
    for penalty in _PENALTIES:
        shrink = sizes.square() / (sizes.square() + penalty * n)
        left = y - mean - u @ (shrink[:, None] * along)
        judged = float(left.square().mean() / (1 - float(shrink.sum()) / n) ** 2) if n > len(sizes) + 1 else penalty
        if judged < best:
            best, rest = judged, left
            slopes = (v.T @ ((sizes / (sizes.square() + penalty * n))[:, None] * along)).T
    covariance = rest.T @ rest / n
    covariance = covariance + torch.eye(y.shape[1], dtype=y.dtype) * (
        _LEAST_VARIANCE + 1e-6 * covariance.diagonal().mean()
    )
    return slopes, mean - slopes @ middle, torch.linalg.cholesky(covariance)
