"""Draws that agree with an observation: posterior sampling with a diffusion model as the prior."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from sciflow.arguments import Arguments
from sciflow.arrays import as_tensor, require_values
from sciflow.bijections import Composite
from sciflow.diffusion.guidance import Denoise, Guidance
from sciflow.diffusion.guidance import guidance as as_guidance
from sciflow.diffusion.posterior import posterior_mean
from sciflow.errors import ConfigError, DataError, ShapeError

if TYPE_CHECKING:
    from sciflow.diffusion.diffusion import Diffusion

__all__ = ["Observation", "checked_prior", "of_rows"]

MOST_ITERATIONS = 1000


@dataclass(frozen=True, eq=False)
class Observation(Guidance):
    r"""Draw from the posterior of an event of which something was measured.

    .. math:: y = A(x) + \mathrm{std} \cdot \varepsilon, \qquad
              E[x_0 \mid x_t, y] \approx \hat x + V A^T (R + A V A^T)^{-1} (y - A(\hat x))

    with :math:`V = \operatorname{Cov}[x_0 \mid x_t]`, which the denoiser's derivative tells: draws are those of a model
    that was never trained for it, given stations, averages, or a coarser field. The model is the prior.

    Exact for a Gaussian prior and a linear operator, up to the sampler's error; else what the posterior was where the
    prior, given the noisy event, is taken for Gaussian, and the operator for linear: better the less noise there is,
    and so better with samplers that add noise on the way, such as ``sampler="ddpm", num_steps=100``.

    A draw costs ``2 + iterations`` times an unguided one or so. Observations that are many, precise, and of
    values that vary together want more iterations; one is the gradient of diffusion posterior sampling (Chung et al.,
    arXiv:2209.14687) with the length that fits best. Source: Rozet et al., arXiv:2405.13712; Boys et al.,
    arXiv:2310.06721; see :func:`sciflow.diffusion.posterior.posterior_mean`.

    Args:
        operator: From events ``[n, *event_shape]`` to observations ``[n, *observation_shape]``, both in data units;
            a function of torch's, differentiable twice, and finite at any mean of events that the model comes by on the
            way from noise. It gets a copy, in which it may work in place. Stations that are missing are left out by it.
        value: What was observed: ``[*observation_shape]``; or ``[*rows, *observation_shape]``, an observation for each
            of the rows with which the shape of the draws ends, such as ``sample((n, *rows))``.
        std: Standard deviation of the noise, which broadcasts to ``value``. To hold values as they are, use
            :class:`~sciflow.diffusion.Inpainting`.
        iterations: How many, to solve for the shift.
        prior: Guidance of the prior's own, such as a number for classifier-free guidance.

    Raises:
        ConfigError: ``std`` is not positive, or another argument is out of range.
        DataError: ``value`` is NaN or infinite somewhere; or, while drawing, what the operator gives is.
        ShapeError: While drawing: the operator's observation is of another shape than ``value``.

    Example:
        >>> from sciflow.diffusion import Diffusion
        >>> def denoise(x, t):  # of a standard normal
        ...     return x / (1 + (80 * t[:, None]) ** 2)
        >>> model = Diffusion.from_denoiser(denoise, (2,), "edm")
        >>> total = Observation(lambda x: x.sum(-1), value=4.0, std=0.1)
        >>> x = model.sample(1000, seed=0, guidance=total)
        >>> [round(number) for number in (x.mean(0)[0].item(), x.sum(1).mean().item())]
        [2, 4]
    """

    operator: Callable[[Tensor], Tensor]
    value: Any
    std: Any
    iterations: int = 5
    prior: Any = 1.0
    rows: tuple[range, int] | None = None  # set while drawing, see of_rows
    memory = 8

    def __post_init__(self) -> None:
        arguments = Arguments("Observation")
        if not callable(self.operator):
            raise ConfigError(f"Observation: operator must be a function of events; got {self.operator!r:.80}")
        arguments.whole("iterations", self.iterations, 1, MOST_ITERATIONS)
        value, std = as_tensor(self.value, "Observation: value"), as_tensor(self.std, "Observation: std")
        if not torch.isfinite(value).all():
            raise DataError("Observation: value is NaN or infinite somewhere: leave missing ones out by the operator")
        if not ((std > 0) & torch.isfinite(std)).all():
            raise ConfigError("Observation: std must be positive; to hold values as they are, use Inpainting")
        try:
            std = std.expand(value.shape)
        except RuntimeError:
            shapes = f"{list(value.shape)}; got {list(std.shape)}"
            raise ShapeError(f"Observation: std must broadcast to the shape of value, {shapes}") from None
        # Checked once, and no more the caller's.
        object.__setattr__(self, "value", value.detach().clone())
        object.__setattr__(self, "std", std.detach().clone())
        object.__setattr__(self, "prior", checked_prior(self.prior))

    def part(self, rows: range, total: int) -> Guidance:
        return replace(self, rows=(rows, total), prior=self.prior.part(rows, total))

    def guided(self, density: Diffusion, context: Tensor | None) -> Denoise:
        def observed(y: Tensor, checked: bool = True) -> Tensor:
            x = _in_data_units(density.preprocess, y)
            found = self.operator(x.clone())
            if not isinstance(found, Tensor) or found.ndim == 0 or len(found) != len(x):
                got = list(found.shape) if isinstance(found, Tensor) else type(found).__name__
                raise ShapeError(f"Observation: the operator must keep the rows of events {list(x.shape)}; got {got}")
            require_values(found, "what the operator gives")
            if checked:
                _require_finite(found, x)
            return found.to(x)

        with torch.no_grad():
            one = torch.zeros(1, *density.event_shape, dtype=density.dtype, device=density.device)
            one = observed(one, checked=False)  # for its shape: no draw need ever pass there
        shape = one.shape[1:]
        num_rows = self.value.ndim - len(shape)
        if num_rows < 0 or self.value.shape[num_rows:] != shape or shape.numel() == 0:
            raise ShapeError(
                f"Observation: of one event the operator makes an observation of shape {list(shape)}; value is of "
                f"shape {list(self.value.shape)}"
            )
        lead = self.value.shape[:num_rows].numel()
        value, std = (
            of_rows(given.reshape(lead, shape.numel()), self.rows, "Observation: value").to(one)
            for given in (self.value, self.std)
        )
        return posterior_mean(
            density,
            self.prior.guided(density, context),
            lambda y: observed(y).reshape(len(y), shape.numel()),
            value,
            std,
            self.iterations,
        )


def of_rows(values: Tensor, rows: tuple[range, int] | None, what: str) -> Tensor:
    """Return the values that belong to some of the draws: those of trailing dimensions of the shape of all draws.

    Args:
        values: ``[k, ...]``, one for each of the last ``k`` draws, and again for each ``k`` before them.
        rows: Which draws, of how many; None where ``values`` are those of the draws, or one for all.
        what: What to call them in messages.

    Raises:
        ShapeError: The number of draws is no multiple of theirs.

    Example:
        >>> of_rows(torch.tensor([[1.0], [2.0]]), (range(3, 6), 8), "value").flatten()
        tensor([2., 1., 2.])
    """
    if rows is None or len(values) == 1:
        return values
    some, total = rows
    if total % max(1, len(values)) or (total and not len(values)):
        raise ShapeError(
            f"{what}: {len(values)} rows of it do not match {total} draws: give one for all draws, or draw "
            f"sample((n, {len(values)}))"
        )
    return values[torch.tensor(some, dtype=torch.long, device=values.device) % max(1, len(values))]


def checked_prior(prior: Any) -> Guidance:
    """Return the guidance of a prior as an object.

    Raises:
        ConfigError: It is none, or one that has a prior of its own.
    """
    given = as_guidance(prior)
    if hasattr(given, "prior"):
        raise ConfigError(
            "guidance: one observation within another is not exact: give one operator, whose observations are side by "
            "side, such as lambda x: torch.cat((x[:, :3], x[:, 5:].mean(1, keepdim=True)), 1)"
        )
    return given


def _require_finite(found: Tensor, x: Tensor) -> None:
    """Refuse what an operator gives of finite events ``[n, ...]`` where it is not finite itself."""
    broken, lost = (~torch.isfinite(values).unsqueeze(-1).flatten(1).all(1) for values in (found, x))
    if (broken & ~lost).any():
        event = x[broken & ~lost][0].flatten().tolist()
        raise DataError(
            f"Observation: the operator gives NaN or infinity for an event on the way of draws, {event!s:.80}: make it "
            "finite for all events, such as by x.clamp_min(0) before a root"
        )


def _in_data_units(preprocess: nn.Module, y: Tensor) -> Tensor:
    """Events of normalised ones; where they have a grid, between its values, too: rounding has no slope."""
    if not preprocess.num_draws:
        return preprocess.inverse(y)[0]  # type: ignore[operator]
    chain: list[Any] = list(preprocess.bijections) if isinstance(preprocess, Composite) else [preprocess]
    for bijection in reversed(chain[1:]):
        y, _ = bijection.inverse(y)
    return y - chain[0].step / 2
