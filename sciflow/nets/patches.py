"""Grids as series of patches, and back."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional as F

from sciflow.errors import ConfigError

__all__ = ["Patches"]

_MOST_TOKENS = 1 << 14
_DEFAULT_TOKENS = 256  # at the most, where a default patch is chosen


class Patches:
    """How grids are cut into patches, in C order; sides that patches do not divide are filled up with zeros.

    Args:
        sides: Of the grid.
        patch_size: Side of a patch, or one for each side of the grid; None chooses the least that makes at most 256.

    Raises:
        ConfigError: The patch is none of this grid, or there would be too many.

    Example:
        >>> import torch
        >>> patches = Patches((3, 6), patch_size=2)
        >>> x = torch.arange(36.0).reshape(1, 2, 3, 6)
        >>> patches.cut(x).shape, torch.equal(patches.joined(patches.cut(x)), x)
        (torch.Size([1, 6, 8]), True)
    """

    def __init__(self, sides: Sequence[int], patch_size: int | Sequence[int] | None = None) -> None:
        self.sides = tuple(sides)
        self.patch = _default(sides) if patch_size is None else _checked(patch_size, sides)
        self.grid = tuple(math.ceil(side / size) for side, size in zip(sides, self.patch, strict=True))
        if math.prod(self.grid) > _MOST_TOKENS:
            raise ConfigError(
                f"DiffusionTransformer: patch_size {list(self.patch)} makes {math.prod(self.grid):,} tokens; "
                f"take one that makes {_MOST_TOKENS:,} or fewer"
            )

    @property
    def num_cells(self) -> int:
        """Cells of the grid in one patch."""
        return math.prod(self.patch)

    def cut(self, x: Tensor) -> Tensor:
        """Return ``[n, num_patches, channels * num_cells]`` for ``x`` of shape ``[n, channels, *sides]``."""
        short = [size * count - side for side, size, count in zip(self.sides, self.patch, self.grid, strict=True)]
        if any(short):
            x = F.pad(x, [amount for missing in reversed(short) for amount in (0, missing)])
        pairs = [size for pair in zip(self.grid, self.patch, strict=True) for size in pair]
        axes = range(2, 2 + len(pairs))
        x = x.reshape(*x.shape[:2], *pairs).permute(0, *axes[::2], 1, *axes[1::2])
        return x.reshape(len(x), math.prod(self.grid), x.shape[1 + len(self.grid)] * self.num_cells)

    def joined(self, patches: Tensor) -> Tensor:
        """Undo :meth:`cut`."""
        num_sides = len(self.grid)
        channels = patches.shape[-1] // self.num_cells
        x = patches.reshape(len(patches), *self.grid, channels, *self.patch)
        axes = [axis for side in range(1, 1 + num_sides) for axis in (side, side + num_sides + 1)]
        full = [size * count for size, count in zip(self.patch, self.grid, strict=True)]
        x = x.permute(0, num_sides + 1, *axes).reshape(len(patches), channels, *full)
        for axis, side in enumerate(self.sides, start=2):
            x = x.narrow(axis, 0, side)
        return x


def _checked(patch_size: int | Sequence[int], sides: Sequence[int]) -> tuple[int, ...]:
    sizes = (patch_size,) * len(sides) if isinstance(patch_size, int) else tuple(patch_size)
    if len(sizes) != len(sides) or min(sizes) < 1:
        raise ConfigError(
            f"DiffusionTransformer: patch_size must be 1 or more, one for all of {list(sides)} or one for each; "
            f"got {patch_size!r}"
        )
    return tuple(min(size, side) for size, side in zip(sizes, sides, strict=True))


def _default(sides: Sequence[int]) -> tuple[int, ...]:
    """The same along every side, as far as the side goes."""
    candidates = (tuple(min(size, side) for side in sides) for size in itertools.count(1))
    return next(
        patch
        for patch in candidates
        if math.prod(math.ceil(side / size) for side, size in zip(sides, patch, strict=True)) <= _DEFAULT_TOKENS
    )
