"""Named parameters with constraints, as one row of unconstrained numbers."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from sciflow.arrays import as_tensor
from sciflow.errors import ConfigError, ShapeError, nearest
from sciflow.inference.constraints import Constraint, as_constraint

__all__ = ["Parameters"]


class Parameters(Mapping[str, Constraint]):
    r"""What a density is of: parameters by name, each with its constraint, in the order given.

    .. math:: v = (g_1(u_1), \dots, g_m(u_m)), \qquad
              \log |\det \partial v / \partial u| = \sum_i \log |\det \partial v_i / \partial u_i|

    Unconstrained numbers are rows ``[*batch, num_free]``; constrained ones are mappings from names to
    ``[*batch, *shape]``, or flat rows ``[*batch, num_values]``.

    Args:
        constraints: From names to constraints, or to what :func:`~sciflow.inference.constraints.as_constraint` reads.

    Raises:
        ConfigError: There is no parameter, a name cannot be that of an argument, or a constraint is none.

    Example:
        >>> from sciflow.inference.constraints import positive, simplex
        >>> parameters = Parameters({"mu": "real", "tau": positive, "p": simplex(3)})
        >>> parameters.num_free, parameters.num_values, parameters.labels
        (4, 5, ['mu', 'tau', 'p[0]', 'p[1]', 'p[2]'])
        >>> values, log_det = parameters.unpack(torch.zeros(7, 4))
        >>> values["tau"].shape, values["p"].shape, log_det.shape
        (torch.Size([7]), torch.Size([7, 3]), torch.Size([7]))
    """

    def __init__(self, constraints: Mapping[str, Any]) -> None:
        if not isinstance(constraints, Mapping) or not constraints:
            raise ConfigError(f"parameters: give a mapping from names to constraints; got {constraints!r:.80}")
        for name in constraints:
            if not isinstance(name, str) or not name.isidentifier():
                raise ConfigError(f"parameters: a name is made of letters, digits and underlines; got {name!r:.80}")
        self._constraints = {name: as_constraint(given, f"parameter {name}") for name, given in constraints.items()}
        self._free_sizes = [constraint.num_free for constraint in self._constraints.values()]
        self._value_sizes = [constraint.shape.numel() for constraint in self._constraints.values()]

    def __getitem__(self, name: str) -> Constraint:
        return self._constraints[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._constraints)

    def __len__(self) -> int:
        return len(self._constraints)

    def __repr__(self) -> str:
        return f"Parameters({self._constraints!r})"

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the parameters, in order."""
        return tuple(self._constraints)

    @property
    def num_free(self) -> int:
        """How many unconstrained numbers there are."""
        return sum(self._free_sizes)

    @property
    def num_values(self) -> int:
        """How many constrained numbers there are."""
        return sum(self._value_sizes)

    @property
    def labels(self) -> list[str]:
        """A label for each constrained number, such as ``theta[3]``; indices count from 0."""
        return [
            name + (f"[{','.join(map(str, place))}]" if place else "")
            for name, constraint in self.items()
            for place in itertools.product(*map(range, constraint.shape))
        ]

    def reach(self, dtype: torch.dtype) -> Tensor:
        """How far out each unconstrained number stands for a value that floats hold, ``[num_free]``."""
        return torch.cat([constraint.reach(dtype) for constraint in self.values()])

    def unpack(self, free: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Map unconstrained rows to values by name.

        Args:
            free: ``[*batch, num_free]``.

        Returns:
            Values ``[*batch, *shape]`` by name, and ``log |d values / d free|`` of shape ``[*batch]``.

        Raises:
            ShapeError: ``free`` has another shape.
        """
        parts = self._split(free, self._free_sizes, "unconstrained numbers")
        pairs = [constraint.from_free(part) for constraint, part in zip(self.values(), parts, strict=True)]
        log_det = torch.stack([term for _, term in pairs]).sum(0)
        return dict(zip(self, (value for value, _ in pairs), strict=True)), log_det

    def pack(self, values: Mapping[str, Any], dtype: torch.dtype | None = None) -> Tensor:
        """Map values by name, such as a start, to unconstrained rows.

        Args:
            values: ``[*batch, *shape]`` of every parameter, or anything that NumPy takes; batches broadcast.
            dtype: Of the rows; by default that of the tensors among ``values``, or torch's own default.

        Returns:
            ``[*batch, num_free]``.

        Raises:
            ConfigError: A parameter is missing or unknown, or its value does not fit its constraint.
            ShapeError: A value has another shape, or the batches do not broadcast.

        Example:
            >>> Parameters({"mu": "real", "tau": "positive"}).pack({"mu": 0.5, "tau": -1.0})
            Traceback (most recent call last):
            sciflow.errors.ConfigError: parameter tau = -1.0 does not fit positive: it must be finite and above 0.0
        """
        tensors = self._checked(values, dtype)
        free = []
        for (name, constraint), value in zip(self.items(), tensors, strict=True):
            constraint.require(value, f"parameter {name}")
            free.append(constraint.to_free(value)[0])
        return _joined(free)

    def flatten(self, values: Mapping[str, Any], dtype: torch.dtype | None = None) -> Tensor:
        """Join values by name to rows ``[*batch, num_values]``, in the order of :attr:`labels`.

        Args:
            values: As for :meth:`pack`, but for the constraints, which are not looked at.
            dtype: As for :meth:`pack`.

        Raises:
            ConfigError: A parameter is missing or unknown.
            ShapeError: A value has another shape, or the batches do not broadcast.
        """
        rows = []
        for (name, constraint), value in zip(self.items(), self._checked(values, dtype), strict=True):
            batch = value.ndim - len(constraint.shape)
            if batch < 0 or value.shape[batch:] != constraint.shape:
                raise ShapeError(f"parameter {name} must have shape {list(constraint.shape)}; got {list(value.shape)}")
            rows.append(value.reshape(*value.shape[:batch], -1))
        return _joined(rows)

    def unflatten(self, rows: Tensor) -> dict[str, Tensor]:
        """Split rows ``[*batch, num_values]`` into values ``[*batch, *shape]`` by name: what undoes :meth:`flatten`.

        Raises:
            ShapeError: ``rows`` has another shape.
        """
        parts = self._split(rows, self._value_sizes, "constrained numbers")
        return {
            name: part.reshape(*part.shape[:-1], *constraint.shape)
            for (name, constraint), part in zip(self.items(), parts, strict=True)
        }

    def to_json(self) -> dict[str, Any]:
        """Return what :meth:`from_json` reads, in what JSON can hold."""
        return {name: constraint.to_json() for name, constraint in self.items()}

    @classmethod
    def from_json(cls, given: Mapping[str, Any]) -> Parameters:
        """Return the parameters that :meth:`to_json` wrote.

        Raises:
            ConfigError: It is something else.

        Example:
            >>> parameters = Parameters({"rho": ("interval", -1, 1)})
            >>> Parameters.from_json(parameters.to_json()) == parameters
            True
        """
        return cls(given)

    def _split(self, rows: Tensor, sizes: list[int], what: str) -> tuple[Tensor, ...]:
        if rows.ndim < 1 or rows.shape[-1] != sum(sizes):
            raise ShapeError(f"parameters are made of [*batch, {sum(sizes)}] {what}; got {list(rows.shape)}")
        return rows.split(sizes, -1)

    def _checked(self, values: Mapping[str, Any], dtype: torch.dtype | None) -> list[Tensor]:
        """Values in order, all there, of one dtype."""
        if not isinstance(values, Mapping):
            raise ConfigError(f"give values by name: {', '.join(self)}; got {values!r:.80}")
        for name in values:
            if name not in self:
                raise ConfigError(f"unknown parameter {name!r}; {nearest(str(name), self)}")
        missing = [name for name in self if name not in values]
        if missing:
            raise ConfigError(f"no value of parameter {', '.join(missing)}")
        given = [value for value in values.values() if isinstance(value, Tensor) and value.is_floating_point()]
        if dtype is None:
            dtype = max((value.dtype for value in given), key=lambda d: d.itemsize, default=torch.get_default_dtype())
        device = given[0].device if given else "cpu"
        return [as_tensor(values[name], f"parameter {name}", dtype=dtype, device=device) for name in self]


def _joined(parts: list[Tensor]) -> Tensor:
    try:
        batch = torch.broadcast_shapes(*(part.shape[:-1] for part in parts))
    except RuntimeError:
        shapes = ", ".join(str(list(part.shape[:-1])) for part in parts)
        raise ShapeError(f"the batches of the parameters do not broadcast: {shapes}") from None
    return torch.cat([part.expand(*batch, -1) for part in parts], -1)
