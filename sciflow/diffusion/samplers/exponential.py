"""Weights of the means that a multistep sampler knows, in the exact solution of the probability-flow ODE."""

from __future__ import annotations

from functools import lru_cache
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from sciflow.errors import ConfigError, nearest

__all__ = ["Variable", "require_variable", "weights"]

Variable = Literal["signal", "log"]

# Gauss and Legendre's rule on [0, 1]: exact to rounding for steps of any length that a schedule allows.
_NODES, _SHARES = (numbers / 2 for numbers in np.polynomial.legendre.leggauss(48))
_NODES = _NODES + 0.5
_SIGNAL_SCALE = 1.5


@lru_cache(maxsize=1024)  # every batch of a long draw takes the same steps
def weights(
    start: float, end: float, places: tuple[float, ...], variable: Variable = "signal", strength: float = 1.0
) -> tuple[float, ...]:
    r"""Return the weights :math:`w_j` of means known at a few places, as of a polynomial through them.

    With :math:`\lambda = \log(\alpha / \sigma)` the probability-flow ODE is solved by

    .. math:: x_s = \frac{\sigma_s}{\sigma_t} x_t + \alpha_s \int_{\lambda_t}^{\lambda_s} e^{\lambda - \lambda_s} \,
                    \hat x_0(\lambda) \, d\lambda
                  \approx \frac{\sigma_s}{\sigma_t} x_t + \alpha_s \sum_j w_j \hat x_{0, j}

    for which :math:`\hat x_0` is taken to be a polynomial in :math:`\lambda` ("log", Lu et al., arXiv:2211.01095), or
    in :math:`(1 + (e^{-\lambda} / 1.5)^2)^{-1/2}` ("signal"): the correlation of a noisy event with a clean one of
    deviation 1.5. It is finite at both ends, and trajectories are smooth in it there, so that long steps do not
    overshoot; from two means on it is exact for normal events of that deviation, which suits features of variance 1
    that are correlated more or less. To integrate exactly in a variable of one's choice is from Zhang and Chen,
    arXiv:2204.13902.

    Args:
        start: :math:`\lambda_t`, where the step begins.
        end: :math:`\lambda_s`, where it ends.
        places: Where means are known, the start among them.
        variable: What the polynomial is one in.
        strength: Factor of the exponent; 2 for the reverse SDE.

    Example:
        >>> [round(weight, 4) for weight in weights(0.0, 1.0, (0.0,))]  # 1 - 1 / e
        [0.6321]
        >>> [round(weight, 4) for weight in weights(0.0, 1.0, (-1.0, 0.0), "log")]
        [-0.3161, 0.9482]
    """
    rate = strength * (end - start)
    total = -np.expm1(-rate)
    if variable == "log" and len(places) == 2:
        # As published: the polynomial's slope counts half of what its value does, B2 in UniPC's words.
        other = next(place for place in places if place != start)
        slope = total / 2 * (end - start) / (other - start)
        return tuple(float(total - slope if place == start else slope) for place in places)
    density = _SHARES * np.exp(-rate * (1 - _NODES))
    density *= total / density.sum()
    inside, known = (_place(np.asarray(at), variable) for at in (start + (end - start) * _NODES, places))
    # Lagrange's polynomials: each is 1 at its own place, and 0 at the others.
    found = []
    for j, own in enumerate(known):
        polynomial = density
        for other in (*known[:j], *known[j + 1 :]):
            polynomial = polynomial * (inside - other) / (own - other)
        found.append(float(polynomial.sum()))
    return tuple(found)


def require_variable(value: object) -> None:
    """Raise the error of a variable that is none."""
    if value not in get_args(Variable):
        raise ConfigError(f"sampler: variable: got {value!r:.80}; {nearest(str(value), get_args(Variable))}")


def _place(log_signal: NDArray[np.float64], variable: Variable) -> NDArray[np.float64]:
    if variable == "log":
        return log_signal
    level = np.exp(-log_signal) / _SIGNAL_SCALE
    root = np.hypot(1, level)
    return level / root * (level / (1 + root))  # 1 - 1 / root, with all of its digits
