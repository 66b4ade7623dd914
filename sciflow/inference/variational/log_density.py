"""What is asked of: an unnormalised log density, as users write it, over rows of unconstrained numbers."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from sciflow.devices import checked_device
from sciflow.errors import ConfigError, DataError, DerivativeError, SciflowError, ShapeError, first_line
from sciflow.inference.parameters import Parameters

__all__ = ["EVENT", "Counts", "LogDensity"]

EVENT = "x"  # the name of an event that has none

Form = Literal["rows", "one", "loop"]
_ROWS_AT_A_TIME = 1 << 15
_DRAWS = 1 << 14


@dataclass
class Counts:
    """How often a density was asked, and how often it had no answer.

    Attributes:
        asked: Rows.
        not_finite: Rows whose value was NaN or +inf.
        outside: Rows whose value was -inf: outside the support.
        no_gradient: Rows with a value whose gradient was not finite.
    """

    asked: int = 0
    not_finite: int = 0
    outside: int = 0
    no_gradient: int = 0

    def __str__(self) -> str:
        found = [
            f"{count:,} {what} ({count / max(1, self.asked):.2%})"
            for count, what in (
                (self.not_finite, "NaN or +inf"),
                (self.outside, "-inf"),
                (self.no_gradient, "with a gradient that was not finite"),
            )
            if count
        ]
        return f"{self.asked:,} evaluations" + (f", of which {', '.join(found)}" if found else "")


class LogDensity:
    r"""An unnormalised log density over unconstrained rows ``u``, with the Jacobian of the constraints.

    .. math:: \log \tilde p_U(u) = \log \tilde p(v(u)) + \log |\det \partial v / \partial u|

    The user's function takes one event, or a batch of them; which of the two is found out by asking. Where it has no
    finite value the row counts as outside the support: its value is -inf, and its gradient zero, so that one bad row
    does not spoil the others.

    Args:
        function: Of a tensor ``[*batch, *event_shape]``, or of the named parameters: by keyword, or as one mapping.
        event_shape: Shape of the event; None where there are parameters.
        parameters: Constraints by name; None where there is an event.
        dtype: Of the rows; None for float64, or float32 where the function does not take float64.
        device: Where rows are.

    Raises:
        ConfigError: Neither event nor parameters, or both.
        ShapeError: The function does not return one number an event.
        DerivativeError: What it returns has no gradient.
        DataError: It fails.

    Example:
        >>> density = LogDensity(lambda x: -0.5 * (x**2).sum(-1), event_shape=(3,))
        >>> density(torch.zeros(5, 3, dtype=torch.float64)).shape, density.form
        (torch.Size([5]), 'rows')
        >>> LogDensity(lambda mu, tau: -0.5 * (mu / tau) ** 2 - tau, parameters={"mu": "real", "tau": "positive"})
        LogDensity(mu, tau: 2 unconstrained numbers, float64)
    """

    def __init__(
        self,
        function: Callable[..., Any],
        event_shape: Any = None,
        parameters: Mapping[str, Any] | None = None,
        dtype: torch.dtype | None = None,
        device: str | torch.device = "cpu",
    ) -> None:
        if (event_shape is None) == (parameters is None):
            raise ConfigError("log_density: say what it is a function of: give event_shape, or parameters by name")
        if not callable(function):
            raise ConfigError(f"log_density: a function expected; got {function!r:.80}")
        self.function = function
        if dtype not in (None, torch.float32, torch.float64):
            raise ConfigError(f"log_density: dtype must be torch.float64 or torch.float32; got {dtype!r:.80}")
        if parameters is None:
            size = (event_shape,) if isinstance(event_shape, int) else event_shape
            from sciflow.density import checked_shape

            self.parameters = Parameters({EVENT: {"real": list(checked_shape(size, "event_shape"))}})
        else:
            self.parameters = parameters if isinstance(parameters, Parameters) else Parameters(parameters)
        self.by_name = parameters is not None
        self.device = checked_device(device)
        self.counts = Counts()
        self.notes: list[str] = []
        self._keywords = self.by_name and _takes_keywords(function, self.parameters.names)
        self.form, self.dtype = self._found_out(dtype)

    @property
    def num_features(self) -> int:
        """Length of a row."""
        return self.parameters.num_free

    @property
    def is_random(self) -> bool:
        """Whether :meth:`differentiable` is an estimate, another one at every call."""
        return False

    @property
    def exact(self) -> Callable[[Tensor], Tensor]:
        """What is not estimated: rows ``[n, num_features]`` to their log density ``[n]``."""
        return self

    def enough_draws(self) -> int:
        """How many draws are weighted in the end, where nothing else is asked for."""
        return _DRAWS

    def __call__(self, u: Tensor) -> Tensor:
        """Log density of rows ``[n, num_features]``, ``[n]``; -inf where there is no finite value. No gradient."""
        with torch.no_grad():
            return torch.cat([self._counted(part)[0] for part in u.split(_ROWS_AT_A_TIME)])

    def with_gradient(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Log density ``[n]`` and its gradient ``[n, num_features]``, which is zero where there is none."""
        with torch.enable_grad():
            rows = u.detach().requires_grad_()
            values, differentiable = self._counted(rows)
            (gradient,) = torch.autograd.grad(differentiable.sum(), rows)
        finite = torch.isfinite(gradient).all(-1)
        usable = torch.isfinite(values)
        self.counts.no_gradient += int((usable & ~finite).sum())
        return values.detach(), torch.where((finite & usable)[:, None], gradient, 0.0)

    def differentiable(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Log density ``[n]`` as a part of a larger graph, and which rows have one.

        Rows without a value are 0, and neither they nor gradients that are not finite reach what ``u`` was made from.
        """
        rows = u.clone()
        if rows.requires_grad:
            rows.register_hook(_finite_rows)
        values, differentiable = self._counted(rows)
        return differentiable, torch.isfinite(values)

    def values(self, u: Tensor) -> dict[str, Tensor]:
        """Constrained values by name of rows ``[n, num_features]``; of an event, ``{"x": [n, *event_shape]}``."""
        return self.parameters.unpack(u)[0]

    def __repr__(self) -> str:
        what = ", ".join(self.parameters.names)
        return f"LogDensity({what}: {self.num_features} unconstrained numbers, {str(self.dtype)[6:]})"

    def _counted(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Values, -inf where there are none; and the same with 0 there, through which gradients may go."""
        raw = self._raw(u)
        return self._masked(raw), torch.where(torch.isfinite(raw), raw, 0.0)

    def _raw(self, u: Tensor) -> Tensor:
        """Values as the function gives them, with the Jacobian."""
        constrained, log_det = self.parameters.unpack(u)
        try:
            found = self._ask(constrained, self.form)
        except (SciflowError, torch.cuda.OutOfMemoryError):
            raise
        except Exception as error:
            raise DataError(
                f"log_density fails at some of {len(u):,} places, though not near the origin of the unconstrained "
                f"numbers: {type(error).__name__}: {first_line(error)}. Let it return -inf where the density is zero, "
                "and NaN where it cannot be computed: such rows are left out, and counted"
            ) from error
        return found.to(u.dtype) + log_det

    def _masked(self, raw: Tensor) -> Tensor:
        """Values, -inf where there are none; and count those."""
        finite, outside = torch.isfinite(raw), torch.isneginf(raw)
        self.counts.asked += len(raw)
        self.counts.outside += int(outside.sum())
        self.counts.not_finite += int((~finite & ~outside).sum())
        return torch.where(finite, raw, -math.inf)

    def _ask(self, values: dict[str, Tensor], form: Form) -> Tensor:
        if form == "rows":
            return self._call(values)
        if form == "one":
            return torch.func.vmap(self._call, randomness="error")(values)
        count = len(next(iter(values.values())))
        return torch.stack([self._call({name: value[i] for name, value in values.items()}) for i in range(count)])

    def _call(self, values: dict[str, Tensor]) -> Tensor:
        if not self.by_name:
            return self.function(values[EVENT])
        return self.function(**values) if self._keywords else self.function(values)

    def _found_out(self, dtype: torch.dtype | None) -> tuple[Form, torch.dtype]:
        """Which form the function has, and which dtype it takes; asked with a few events near the origin."""
        said: list[str] = []
        for kind in (torch.float64, torch.float32) if dtype is None else (dtype,):
            rows = self._probes().to(self.device, kind)
            values, _ = self.parameters.unpack(rows)
            forms: list[Form] = ["rows", "one", "loop"]
            for form in forms:
                try:
                    found = self._ask(values, form)
                except SciflowError:
                    raise
                except Exception as error:
                    said.append(f"{_NAMES[form]}, {str(kind)[6:]}: {type(error).__name__}: {first_line(error)}")
                    continue
                if not isinstance(found, Tensor) or found.shape != (len(rows),):
                    shape = list(found.shape) if isinstance(found, Tensor) else type(found).__name__
                    said.append(f"{_NAMES[form]}: returned {shape}, not {[len(rows)]}")
                    continue
                if found.is_complex():
                    said.append(f"{_NAMES[form]}: returned complex numbers")
                    continue
                if form == "rows" and not self._row_by_row(values, found):
                    said.append("all events at once: the value of one depends on the others")
                    continue
                self._require_gradient(rows, form)
                if not torch.allclose(self._ask(values, form), found, rtol=1e-4, atol=1e-4, equal_nan=True):
                    self.notes.append(
                        "log_density gives other values when it is asked again for the same: draws of its own, such as "
                        "dropout or a subsample, belong into rows= or outside of it."
                    )
                return form, kind
        summary = "; ".join(dict.fromkeys(said))
        if self.by_name and not self._keywords:
            names = ", ".join(self.parameters.names)
            summary += f" (it was given one mapping, since it does not take {names} by keyword)"
        hint = "it must map one event to one number, or events [n, ...] to [n]"
        if any("returned" in line for line in said):
            raise ShapeError(f"log_density: {hint}. {summary}")
        raise DataError(f"log_density fails; {hint}. {summary}")

    def _probes(self) -> Tensor:
        """A few rows, of a number that is none of the event's sizes."""
        sizes = {size for constraint in self.parameters.values() for size in constraint.shape}
        count = next(n for n in range(3, 3 + len(sizes) + 1) if n not in sizes)
        generator = torch.Generator().manual_seed(0)
        return 0.1 * torch.randn(count, self.num_features, generator=generator, dtype=torch.float64)

    def _row_by_row(self, values: dict[str, Tensor], found: Tensor) -> bool:
        """Whether the value of an event is the same alone; a function of one event may return ``[n]`` by chance."""
        for i in range(len(found)):
            try:
                alone = self._call({name: value[i : i + 1] for name, value in values.items()})
            except Exception:
                return False
            if alone.shape != (1,) or not torch.allclose(alone[0], found[i], rtol=1e-3, atol=1e-3, equal_nan=True):
                return False
        return True

    def _require_gradient(self, rows: Tensor, form: Form) -> None:
        with torch.enable_grad():
            values, _ = self.parameters.unpack(rows.detach().requires_grad_())
            found = self._ask(values, form)
        if not found.requires_grad:
            raise DerivativeError(
                "log_density: what it returns has no gradient: write it in torch operations on what it is given, "
                "without detach(), numpy() or item()"
            )


_NAMES = {"rows": "all events at once", "one": "one event, mapped by torch.func.vmap", "loop": "one event"}


def _takes_keywords(function: Callable[..., Any], names: tuple[str, ...]) -> bool:
    """Whether the function takes the parameters by keyword, rather than as one mapping."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return True
    try:
        signature.bind(**dict.fromkeys(names))
    except TypeError as error:
        required = [
            p
            for p in signature.parameters.values()
            if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
        ]
        if len(required) == 1:
            return False
        raise ConfigError(f"log_density does not take the parameters {', '.join(names)}: {error}") from None
    return True


def _finite_rows(gradient: Tensor) -> Tensor:
    return torch.where(torch.isfinite(gradient).all(-1, keepdim=True), gradient, 0.0)
