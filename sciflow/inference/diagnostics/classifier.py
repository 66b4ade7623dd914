"""A classifier of truth and draws at the same x, with a closed form: trained a thousand times for little."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sciflow.report.drawing import Floats

__all__ = ["FeatureMap", "discriminants"]

# Directions of the data that are looked at, and random features beside the products.
_MOST_DATA, _NUM_RANDOM = 30, 100
_PENALTY = 3.0


@dataclass(frozen=True, eq=False)
class FeatureMap:
    """What the classifier sees of theta and x.

    Theta, its squares and products: means, widths and correlations; its products with x: how these follow the data; and
    cosines along random directions, for shapes.
    """

    theta_centre: Floats
    theta_scale: Floats
    x_centre: Floats
    x_scale: Floats
    axes: Floats
    directions: Floats
    phases: Floats

    @classmethod
    def of(cls, theta: Floats, x: Floats, rng: np.random.Generator) -> FeatureMap:
        """Fit it to parameters ``[..., d]``, truth and draws alike, and data ``[cases, k]``."""
        rows = theta.reshape(-1, theta.shape[-1])
        x_centre, x_scale = np.nanmean(x, axis=0), np.nanstd(x, axis=0)
        x_scale = np.where(x_scale > 0, x_scale, 1.0)
        axes = np.eye(x.shape[1])
        if x.shape[1] > _MOST_DATA:
            standard = _standard(x, x_centre, x_scale)
            axes = np.linalg.svd(standard, full_matrices=False)[2][:_MOST_DATA].T
            axes = axes / np.maximum((standard @ axes).std(0), 1e-12)
        num = rows.shape[1] + axes.shape[1]
        directions = 2 * rng.normal(size=(num, _NUM_RANDOM)) / np.sqrt(num)
        phases = rng.uniform(0, 2 * np.pi, size=_NUM_RANDOM)
        scale = np.where(rows.std(0) > 0, rows.std(0), 1.0)
        return cls(rows.mean(0), scale, x_centre, x_scale, axes, directions, phases)

    @property
    def num_data(self) -> int:
        """Numbers in one x."""
        return len(self.x_centre)

    def __call__(self, theta: Floats, x: Floats) -> Floats:
        """Features ``[n, f]`` of ``theta`` ``[n, d]`` and ``x`` ``[n, k]``."""
        a = np.clip((theta - self.theta_centre) / self.theta_scale, -6, 6)
        b = _standard(x, self.x_centre, self.x_scale) @ self.axes
        upper = np.triu_indices(a.shape[1])
        products = (a[:, :, None] * a[:, None, :])[:, upper[0], upper[1]]
        mixed = (a[:, :, None] * b[:, None, :]).reshape(len(a), -1)
        waves = np.cos(np.concatenate([a, b], axis=1) @ self.directions + self.phases)
        return np.concatenate([a, products, mixed, waves], axis=1)


def discriminants(features: Floats, truths: np.ndarray) -> tuple[Floats, Floats]:
    r"""Return Fisher's linear discriminants of one member of every case against its other ones, with a ridge.

    .. math:: w = (S + \lambda 1)^{-1} \,
        \frac{1}{n} \sum_i \Big(\phi_{i, k_i} - \frac{1}{K} \sum_{k \ne k_i} \phi_{i, k}\Big)

    S is the covariance of features within cases, and :math:`w \cdot \phi` then the log-ratio of the two classes at one
    x, up to a constant of that x. S does not know who is the truth, so that swaps need no new S.

    Args:
        features: ``[K + 1, cases, f]``, of a truth and K draws at the same x.
        truths: ``[m, cases]``, which member is taken for the truth, once for every discriminant.

    Returns:
        Scales of the features within cases ``[f]``, and weights ``[f, m]`` of features in units of these.
    """
    num_members, num_cases, num_features = features.shape
    centred = features - features.mean(0)
    scale = np.sqrt((centred**2).sum((0, 1)) / (num_cases * (num_members - 1)))
    scale = np.where(scale > 1e-9, scale, np.inf)
    centred = centred / scale
    rows = centred.reshape(-1, num_features)
    within = rows.T @ rows / (num_cases * (num_members - 1))
    # Less the mean of the others is, for what is centred, (K + 1) / K times the member itself.
    cases = np.arange(num_cases)
    apart = np.stack([centred[members, cases].mean(0) for members in truths], axis=1)
    apart *= num_members / (num_members - 1)
    return scale, np.linalg.solve(within + _PENALTY * np.eye(num_features), apart)


def _standard(x: Floats, centre: Floats, scale: Floats) -> Floats:
    """Standardised, with what is missing in the middle and outliers cut."""
    return np.clip(np.nan_to_num((x - centre) / scale, nan=0.0, posinf=4.0, neginf=-4.0), -4, 4)
