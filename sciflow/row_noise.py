"""Noise that follows from the numbers of a row: the same alone and among others, and another for every row."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["RowNoise"]

# The last digits of a row, which may hang on how many rows are computed together, must not choose its noise.
_CELLS = 64  # of a standard deviation
_MOST_CELLS = 2.0**52


class RowNoise:
    r"""Random numbers of every row of a batch, made of a seed, a stream and the row itself by a hash.

    No generator has a state: the numbers of a row depend on nothing else. Rows that differ by more than a 64th of a
    standard deviation somewhere have independent ones, so that errors of an estimate average out over rows.

    Source: the hash is the finaliser of SplitMix64, Steele et al., 2014, doi:10.1145/2660193.2660195.

    Args:
        y: ``[n, *event_shape]``, events of unit size.
        seed: Of all numbers.
        stream: Which of many independent sets of them.

    Example:
        >>> y = torch.tensor([[0.0, 1.0], [2.0, 3.0]])
        >>> both, alone = RowNoise(y, seed=0), RowNoise(y[1:], seed=0)
        >>> bool((both.normal(7)[1:] == alone.normal(7)).all()), both.uniform(0).shape
        (True, torch.Size([2]))
    """

    def __init__(self, y: Tensor, seed: int, stream: int = 0) -> None:
        self._like = y
        self._places = torch.arange(y.shape[1:].numel(), device=y.device)
        cells = (y.flatten(1).double() * _CELLS).round().clamp(-_MOST_CELLS, _MOST_CELLS).nan_to_num().long()
        of_row = _mixed(cells + _mixed(self._places)).sum(1)
        start = torch.tensor([seed, stream], device=y.device)
        self._keys = _mixed(of_row + _mixed(_mixed(start[0]) + start[1]))

    def uniform(self, draw: int) -> Tensor:
        """Numbers in (0, 1), ``[n]``, float64."""
        return _fraction(_mixed(self._keys + _mixed(torch.tensor(-1 - draw, device=self._keys.device))))

    def normal(self, draw: int) -> Tensor:
        """Standard normal numbers, of the shape and dtype of the events."""
        places = _mixed(draw * len(self._places) + self._places)
        fractions = _fraction(_mixed(self._keys[:, None] + places))
        normal = math.sqrt(2) * torch.erfinv(2 * fractions - 1)
        return normal.to(self._like.dtype).reshape(self._like.shape)

    def signs(self, draw: int) -> Tensor:
        """Numbers that are 1 or -1 with equal chance, of the shape and dtype of the events."""
        places = _mixed(draw * len(self._places) + self._places)
        signs = 1 - 2 * (_shifted(_mixed(self._keys[:, None] + places), 63))
        return signs.to(self._like.dtype).reshape(self._like.shape)


def _mixed(x: Tensor) -> Tensor:
    """Spread every bit of int64 over all others; products are meant to overflow."""
    x = x + _signed(0x9E3779B97F4A7C15)
    x = (x ^ _shifted(x, 30)) * _signed(0xBF58476D1CE4E5B9)
    x = (x ^ _shifted(x, 27)) * _signed(0x94D049BB133111EB)
    return x ^ _shifted(x, 31)


def _shifted(x: Tensor, bits: int) -> Tensor:
    """To the right, with zeros behind it whatever the sign."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _fraction(bits: Tensor) -> Tensor:
    """The upper 52 bits, as a number in (0, 1)."""
    return (_shifted(bits, 12).double() + 0.5) * 2.0**-52


def _signed(constant: int) -> int:
    return constant - (1 << 64)
