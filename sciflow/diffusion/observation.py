"""Draws that agree with an observation: posterior sampling with a diffusion model as the prior."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from sciflow.arguments import Arguments
from sciflow.arrays import as_tensor
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

    A draw costs ``1 + 1.5 * iterations`` times an unguided one or so. Observations that are many, precise, and of
    values that vary together want more iterations; one is the gradient of diffusion posterior sampling (Chung et al.,
    arXiv:2209.14687) with the length that fits best. Source: Rozet et al., arXiv:2405.13712; Boys et al.,
    arXiv:2310.06721; see :func:`sciflow.diffusion.posterior.posterior_mean`.

    Args:
        operator: From events ``[n, *event_shape]`` to observations ``[n, *observation_shape]``, both in data units;
            a differentiable function of torch's. Stations that are missing are left out by it.
        value: What was observed: ``[*observation_shape]``; or ``[*rows, *observation_shape]``, an observation for each
            of the rows with which the shape of the draws ends, such as ``sample((n, *rows))``.
        std: Standard deviation of the noise, which broadcasts to ``value``. To hold values as they are, use
            :class:`~sciflow.diffusion.Inpainting`.
        iterations: How many, to solve for the shift.
        prior: Guidance of the prior's own, such as a number for classifier-free guidance.

    Raises:
        ConfigError: ``std`` is not positive, or another argument is out of range.
        DataError: ``value`` is NaN or infinite somewhere.
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
    rows: tuple[range, int] | None = None  # which of how many draws; see of_rows
    memory = 8

    def __post_init__(self) -> None:
        arguments = Arguments("Observation")
        if not callable(self.operator):
            raise ConfigError(f"Observation: operator must be a function of events; got {self.operator!r:.80}")
        arguments.whole("iterations", self.iterations, 1, MOST_ITERATIONS)
        value, std = as_tensor(self.value, "value"), as_tensor(self.std, "std")
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
        def observe(y: Tensor) -> Tensor:
            return self._observed(_in_data_units(density.preprocess, y)).flatten(1)

        with torch.no_grad():
            one = self._observed(_in_data_units(density.preprocess, _zeros(density, 1)), flat=False)
        shape = one.shape[1:]
        num_dims = self.value.ndim - len(shape)
        if num_dims < 0 or self.value.shape[num_dims:] != shape or shape.numel() == 0:
            raise ShapeError(
                f"Observation: the operator makes observations of shape {list(shape)} of events; value is of shape "
                f"{list(self.value.shape)}"
            )
        numbers = [
            of_rows(given.reshape(-1, shape.numel()), self.rows, "value").to(one) for given in (self.value, self.std)
        ]
        return posterior_mean(self.prior.guided(density, context), density.schedule, observe, *numbers, self.iterations)

    def _observed(self, x: Tensor) -> Tensor:
        found = self.operator(x)
        if not isinstance(found, Tensor) or found.ndim == 0 or len(found) != len(x):
            got = list(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise ShapeError(f"Observation: the operator must keep the rows of events {list(x.shape)}; got {got}")
        return found
