"""Five densities in the plane that are known exactly, to draw from and to hold a model against.

    >>> density = TOYS["pinwheel"]
    >>> rows = density.sample(1000, seed=0)
    >>> rows.shape, density.log_prob(rows).shape
    ((1000, 2), (1000,))

They are the shapes that papers on flows draw, defined so that log p has a closed form, or an integral of one variable
that quadrature gives to rounding: moons and rings are curves blurred by Gaussian noise, the pinwheel is a mixture of
Gaussians twisted by a map that keeps areas.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np
from scipy.special import i0e, logsumexp

__all__ = ["TOYS", "Checkerboard", "EightGaussians", "Pinwheel", "Rings", "Toy", "TwoMoons"]

Floats = np.ndarray


class Toy(ABC):
    """A density in the plane.

    Attributes:
        name: For titles.
        extent: Half the side of a square about the origin that holds all but a negligible part of it.
    """

    name: str
    extent: float

    def sample(self, n: int, seed: int = 0) -> Floats:
        """Draw ``n`` points ``[n, 2]``; the same seed, the same points."""
        return self._draw(n, np.random.default_rng(seed))

    @abstractmethod
    def log_prob(self, x: Floats) -> Floats:
        """Exact log p of points ``[n, 2]``, ``[n]``, in nats."""

    @abstractmethod
    def _draw(self, n: int, generator: np.random.Generator) -> Floats: ...


class TwoMoons(Toy):
    r"""Two half circles that reach into each other, blurred.

    .. math:: p(x) = \frac{1}{2 \pi} \sum_{m=1}^{2} \int_0^\pi
                     \mathcal{N}\big(x; \, c_m(\theta), \sigma^2 I\big) \, d\theta

    The integrals are by Gauss-Legendre quadrature of 200 nodes, over whose distance (0.016 at most) a Gaussian of width
    0.1 is smooth. The place and noise are those of scikit-learn's ``make_moons``, centred.
    """

    name, extent = "two moons", 2.5
    noise = 0.1

    def log_prob(self, x: Floats) -> Floats:
        nodes, weights = np.polynomial.legendre.leggauss(200)
        angles = np.pi / 2 * (nodes + 1)
        log_weights = np.log(weights / 2)
        arcs = [_log_normal(_distances(x, self._arc(angles, upper)), self.noise) for upper in (True, False)]
        return logsumexp(np.concatenate([arc + log_weights for arc in arcs], axis=1), axis=1) - np.log(2)

    def _draw(self, n: int, generator: np.random.Generator) -> Floats:
        angles = generator.uniform(0, np.pi, n)
        upper = generator.random(n) < 0.5
        points = np.where(upper[:, None], self._arc(angles, True), self._arc(angles, False))
        return points + self.noise * generator.standard_normal((n, 2))

    @staticmethod
    def _arc(angles: Floats, upper: bool) -> Floats:
        points = np.stack([np.cos(angles), np.sin(angles)], axis=1)
        return (points if upper else np.array([1.0, 0.5]) - points) - np.array([0.5, 0.25])


class Rings(Toy):
    r"""Four rings about one centre, each with a quarter of the mass, blurred.

    .. math:: p(x) = \frac14 \sum_{k=1}^{4} \frac{1}{2 \pi \sigma^2} \, e^{-(r^2 + r_k^2) / 2 \sigma^2} \,
                     I_0\!\left(\frac{r r_k}{\sigma^2}\right), \qquad r = |x|

    with the Bessel function :math:`I_0`, that of a circle's distance. Radii and noise as in FFJORD, arXiv:1810.01367.
    """

    name, extent = "rings", 4.0
    radii = (0.75, 1.5, 2.25, 3.0)
    noise = 0.08

    def log_prob(self, x: Floats) -> Floats:
        radius = np.linalg.norm(x, axis=1)[:, None]
        rings = np.array(self.radii)
        # i0e takes the exponential growth off the Bessel function, which leaves a Gaussian of the distance.
        terms = _log_normal((radius - rings) ** 2, self.noise) + np.log(i0e(radius * rings / self.noise**2))
        return logsumexp(terms, axis=1) - np.log(len(rings))

    def _draw(self, n: int, generator: np.random.Generator) -> Floats:
        radius = np.array(self.radii)[generator.integers(len(self.radii), size=n)]
        angles = generator.uniform(0, 2 * np.pi, n)
        points = radius[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)
        return points + self.noise * generator.standard_normal((n, 2))


class Checkerboard(Toy):
    r"""Uniform on every other one of 4 x 4 squares of side 2: :math:`p = 1/32` there, 0 elsewhere.

    Its edges are sharp: a smooth density must give away mass along them.
    """

    name, extent = "checkerboard", 4.5

    def log_prob(self, x: Floats) -> Floats:
        column, row = np.floor(x / 2).astype(int).T
        inside = (np.abs(x) < 4).all(1) & ((column + row) % 2 == 0)
        return np.where(inside, -np.log(32.0), -np.inf)

    def _draw(self, n: int, generator: np.random.Generator) -> Floats:
        column = generator.integers(-2, 2, n)
        row = 2 * generator.integers(-1, 1, n) + column % 2
        return 2 * (np.stack([column, row], axis=1) + generator.random((n, 2)))


class Pinwheel(Toy):
    r"""Five Gaussian blades, twisted.

    .. math:: p(x) = \frac15 \sum_{k=1}^{5} \mathcal{N}\Big(R\big(-\tfrac{2 \pi k}{5} - \omega |x|\big) \, x; \;
                     (\mu, 0), \, \mathrm{diag}(\sigma_r^2, \sigma_t^2)\Big)

    A rotation by an angle that depends on the distance from the centre alone keeps distances and areas: its Jacobian
    determinant is 1, and log p is that of the straight blades. (In the pinwheel of Johnson et al., arXiv:1603.06277,
    the angle depends on a coordinate along the blade, and no density is given.)
    """

    name, extent = "pinwheel", 4.5
    blades = 5
    centre, along, across, twist = 2.0, 0.6, 0.2, 0.8

    def log_prob(self, x: Floats) -> Floats:
        angles = self.twist * np.linalg.norm(x, axis=1)[:, None] + 2 * np.pi / self.blades * np.arange(self.blades)
        cosine, sine = np.cos(angles), np.sin(angles)
        outward = (cosine * x[:, :1] + sine * x[:, 1:] - self.centre) / self.along
        sideways = (cosine * x[:, 1:] - sine * x[:, :1]) / self.across
        log_scale = np.log(2 * np.pi * self.along * self.across * self.blades)
        return logsumexp(-0.5 * (outward**2 + sideways**2), axis=1) - log_scale

    def _draw(self, n: int, generator: np.random.Generator) -> Floats:
        straight = generator.standard_normal((n, 2)) * [self.along, self.across] + [self.centre, 0.0]
        angles = self.twist * np.linalg.norm(straight, axis=1)
        angles += 2 * np.pi / self.blades * generator.integers(self.blades, size=n)
        cosine, sine = np.cos(angles), np.sin(angles)
        x, y = straight.T
        return np.stack([cosine * x - sine * y, sine * x + cosine * y], axis=1)


class EightGaussians(Toy):
    """Eight equal Gaussians of standard deviation 0.5 on a circle of radius 4."""

    name, extent = "eight Gaussians", 6.5
    radius, scale = 4.0, 0.5

    def log_prob(self, x: Floats) -> Floats:
        return logsumexp(_log_normal(_distances(x, self._centres()), self.scale), axis=1) - np.log(8)

    def _draw(self, n: int, generator: np.random.Generator) -> Floats:
        centres = self._centres()[generator.integers(8, size=n)]
        return centres + self.scale * generator.standard_normal((n, 2))

    def _centres(self) -> Floats:
        angles = np.pi / 4 * np.arange(8)
        return self.radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)


TOYS: dict[str, Toy] = {
    "moons": TwoMoons(),
    "rings": Rings(),
    "checkerboard": Checkerboard(),
    "pinwheel": Pinwheel(),
    "gaussians": EightGaussians(),
}


def _distances(x: Floats, centres: Floats) -> Floats:
    """Squared distances ``[n, centres]``."""
    return ((x[:, None, :] - centres) ** 2).sum(-1)


def _log_normal(squared_distance: Floats, scale: float) -> Floats:
    """Log density of an isotropic normal in the plane."""
    return -0.5 * squared_distance / scale**2 - np.log(2 * np.pi * scale**2)
