"""Embedded Runge-Kutta pairs: two solutions of different order from the same stages, and one between them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sciflow.errors import ConfigError, nearest

__all__ = ["PAIRS", "Pair", "pair"]

_Array = NDArray[np.float64]


@dataclass(frozen=True)
class Pair:
    r"""An explicit pair whose last stage is the first of the next step.

    .. math:: k_i = f\Big(t + c_i h, \; y + h \sum_{j < i} a_{ij} k_j\Big), \qquad
              y(t + \theta h) \approx y + h \sum_i w_i(\theta) \, k_i

    Attributes:
        name: As it is asked for.
        order: Of the solution that is kept; the other one is of a lower order, and tells the error.
        nodes: :math:`c`, of the stages and of those that only the solution inside a step asks for.
        matrix: :math:`a`, one row a stage.
        num_stages: How many of them a step needs; the last one is at its end.
        errors: Weights of the stages in the difference of two solutions, one row a difference.
        inside: Polynomials :math:`w_i(\theta)`, ``[stages, degree + 1]``, lowest power first.
        num_nodes: Of Gauss's rule inside a step, as many as integrate along the path as well as the path is known.
    """

    name: str
    order: int
    nodes: tuple[float, ...]
    matrix: tuple[tuple[float, ...], ...]
    num_stages: int
    errors: tuple[tuple[float, ...], ...]
    inside: _Array
    num_nodes: int

    def weights(self, share: Tensor) -> tuple[Tensor, Tensor]:
        """Return the weights of all stages for the solution inside a step, by its length, and for its slope.

        Args:
            share: ``[*]``, places in a step, 0 to 1, float64.

        Returns:
            Two tensors ``[*, stages]``, float64.
        """
        inside = torch.from_numpy(self.inside).to(share)
        powers = torch.arange(inside.shape[1], dtype=share.dtype, device=share.device)
        values = share[..., None] ** powers
        slopes = powers * share[..., None] ** (powers - 1).clamp_min(0)
        return values @ inside.mT, slopes @ inside.mT


def pair(name: str) -> Pair:
    """Return a pair by name.

    Args:
        name: ``"bosh3"`` (Bogacki and Shampine, 1989), ``"dopri5"`` (Dormand and Prince, 1980), ``"tsit5"`` (Tsitouras,
            2011) or ``"dop853"`` (Hairer, Norsett and Wanner, 1993, order 8).

    Raises:
        ConfigError: There is none of this name.

    Example:
        >>> pair("dopri5").order
        5
    """
    if not isinstance(name, str) or name not in PAIRS:
        raise ConfigError(f"solver: unknown {name!r:.80}; {nearest(str(name), PAIRS)}")
    return PAIRS[name]()


@cache
def _bosh3() -> Pair:
    matrix = ((), (1 / 2,), (0, 3 / 4), (2 / 9, 1 / 3, 4 / 9))
    errors = (2 / 9 - 7 / 24, 1 / 3 - 1 / 4, 4 / 9 - 1 / 3, -1 / 8)
    # Hermite's cubic: the states at both ends, and the slopes there.
    inside = np.outer([*matrix[-1], 0], [0, 0, 3, -2])
    inside[0] += [0, 1, -2, 1]
    inside[3] += [0, 0, -1, 1]
    return Pair("bosh3", 3, (0, 1 / 2, 3 / 4, 1), matrix, 4, (errors,), inside, 3)


@cache
def _dopri5() -> Pair:
    matrix = (
        (),
        (1 / 5,),
        (3 / 40, 9 / 40),
        (44 / 45, -56 / 15, 32 / 9),
        (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
        (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
        (35 / 384, 0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
    )
    errors = (71 / 57600, 0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40)
    # Shampine, Mathematics of Computation 46, 1986: of order 4.
    inside = [
        [0, 1, -8048581381 / 2820520608, 8663915743 / 2820520608, -12715105075 / 11282082432],
        [0, 0, 0, 0, 0],
        [0, 0, 131558114200 / 32700410799, -68118460800 / 10900136933, 87487479700 / 32700410799],
        [0, 0, -1754552775 / 470086768, 14199869525 / 1410260304, -10690763975 / 1880347072],
        [0, 0, 127303824393 / 49829197408, -318862633887 / 49829197408, 701980252875 / 199316789632],
        [0, 0, -282668133 / 205662961, 2019193451 / 616988883, -1453857185 / 822651844],
        [0, 0, 40617522 / 29380423, -110615467 / 29380423, 69997945 / 29380423],
    ]
    return Pair("dopri5", 5, (0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1, 1), matrix, 7, (errors,), np.array(inside), 4)


@cache
def _tsit5() -> Pair:
    # Tsitouras, Computers and Mathematics with Applications 62, 2011.
    matrix = (
        (),
        (0.161,),
        (-0.008480655492356989, 0.335480655492357),
        (2.8971530571054935, -6.359448489975075, 4.3622954328695815),
        (5.325864828439257, -11.748883564062828, 7.4955393428898365, -0.09249506636175525),
        (5.86145544294642, -12.92096931784711, 8.159367898576159, -0.071584973281401, -0.028269050394068383),
        (
            0.09646076681806523, 0.01, 0.4798896504144996,
            1.379008574103742, -3.290069515436081, 2.324710524099774,
        ),
    )  # fmt: skip
    errors = (
        -0.00178001105222577714, -0.0008164344596567469, 0.007880878010261995, -0.1447110071732629,
        0.5823571654525552, -0.45808210592918697, 1 / 66,
    )  # fmt: skip
    factors: list[tuple[Any, ...]] = [
        (-1.0530884977290216, (0, 1), (-1.3299890189751412, 1), (0.7139816917074209, -1.4364028541716351, 1)),
        (0.1017, (0, 0, 1), (1.2949852507374631, -2.1966568338249754, 1)),
        (2.490627285651252793, (0, 0, 1), (1.57803468208092486, -2.38535645472061657, 1)),
        (-16.54810288924490272, (0, 0, 1), (-1.21712927295533244, 1), (-0.61620406037800089, 1)),
        (47.37952196281928122, (0, 0, 1), (-1.203071208372362603, 1), (-0.658047292653547382, 1)),
        (-34.87065786149660974, (0, 0, 1), (-1.2, 1), (-2 / 3, 1)),
        (2.5, (0, 0, 1), (-1, 1), (-0.6, 1)),
    ]
    inside = [_product(scale, *polynomials) for scale, *polynomials in factors]
    return Pair("tsit5", 5, (0, 0.161, 0.327, 0.9, 0.9800255409045097, 1, 1), matrix, 7, (errors,), np.array(inside), 4)


@cache
def _dop853() -> Pair:
    from scipy import integrate

    given = integrate.DOP853  # its hundreds of digits are kept there
    stages = given.n_stages + 1
    extra = [tuple(row[: stages + place]) for place, row in enumerate(given.A_EXTRA.tolist())]
    matrix = (*(tuple(row[:place]) for place, row in enumerate(given.A.tolist())), tuple(given.B.tolist()), *extra)
    count = len(matrix)
    change = np.r_[given.B, np.zeros(count - len(given.B))]
    first, last = np.eye(count)[0], np.eye(count)[stages - 1]
    higher = np.pad(given.D, ((0, 0), (0, count - given.D.shape[1])))
    # Nested: each is multiplied by theta and by 1 - theta in turn, from the inside out.
    parts = [change, first - change, 2 * change - last - first, *higher]
    inside = np.zeros((count, 1))
    for place, part in reversed(list(enumerate(parts))):
        inside[:, 0] += part
        factor = (0, 1) if place % 2 == 0 else (1, -1)
        inside = np.stack([np.convolve(row, factor) for row in inside])
    nodes = (*given.C.tolist(), 1.0, *given.C_EXTRA.tolist())
    return Pair("dop853", 8, nodes, matrix, stages, (tuple(given.E5), tuple(given.E3)), inside, 6)


def _product(scale: float, *polynomials: tuple[float, ...]) -> _Array:
    product = np.array([scale])
    for polynomial in polynomials:
        product = np.convolve(product, polynomial)
    return product


PAIRS = {"bosh3": _bosh3, "dopri5": _dopri5, "tsit5": _tsit5, "dop853": _dop853}
