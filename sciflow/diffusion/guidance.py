"""Guidance: a denoiser pushed towards what is asked for, more strongly than the data alone would have it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sciflow.errors import ConfigError

if TYPE_CHECKING:
    from sciflow.diffusion.diffusion import Diffusion

__all__ = ["Autoguidance", "ClassifierFree", "ClassifierGuidance", "Guidance", "guidance"]

Denoise = Callable[[Tensor, Tensor], Tensor]


class Guidance(ABC):
    """How the denoiser of a density is changed while events are drawn from it."""

    @abstractmethod
    def guided(self, density: Diffusion, context: Tensor | None) -> Denoise:
        """Return the denoiser to draw with.

        Args:
            density: What is drawn from.
            context: ``[n, *context_shape]``, normalised, or None.
        """


@dataclass(frozen=True)
class ClassifierFree(Guidance):
    r"""Go on in the direction in which the context moves the mean.

    .. math:: \hat x = \hat x(x_t) + w \, (\hat x(x_t \mid c) - \hat x(x_t))

    At 1 it is the conditional density as trained; at 0 the unconditional one; above 1 draws are more typical of the
    context, and less varied: they no longer follow p(x | c). Two evaluations, made as one of twice the rows; one where
    the scale is 0 or 1. The model must have been trained with ``context_dropout`` above 0. A density without a context
    is left as it is. Source: Ho and Salimans, arXiv:2207.12598.

    Args:
        scale: :math:`w`.
    """

    scale: float

    def guided(self, density: Diffusion, context: Tensor | None) -> Denoise:
        if context is None or self.scale == 1:
            return lambda x, t: density.denoiser(x, t, context)
        density.require_context_dropout()
        absent = torch.full_like(context, torch.nan)
        if self.scale == 0:
            return lambda x, t: density.denoiser(x, t, absent)

        def denoise(x: Tensor, t: Tensor) -> Tensor:
            both = density.denoiser(torch.cat((x, x)), torch.cat((t, t)), torch.cat((absent, context)))
            without, given = both.chunk(2)
            return torch.lerp(without, given, self.scale)

        return denoise


@dataclass(frozen=True)
class ClassifierGuidance(Guidance):
    r"""Follow the gradient of what a classifier of noisy events says.

    .. math:: \hat x = \hat x(x_t) + w \, \frac{\sigma^2}{\alpha} \, \nabla_{x_t} \log p(c \mid x_t)

    Source: Dhariwal and Nichol, arXiv:2105.05233.

    Args:
        log_prob: ``log_prob(x_t, t)`` of events in normalised units and times ``[n]``: nats, ``[n]``.
        scale: :math:`w`; 1 is Bayes' rule.
    """

    log_prob: Callable[[Tensor, Tensor], Tensor]
    scale: float = 1.0

    def guided(self, density: Diffusion, context: Tensor | None) -> Denoise:
        def denoise(x: Tensor, t: Tensor) -> Tensor:
            with torch.enable_grad():
                leaf = x.detach().requires_grad_()
                slope = torch.autograd.grad(self.log_prob(leaf, t).sum(), leaf)[0]
            alpha, sigma = density.schedule(t)
            step = (self.scale * sigma.square() / alpha).reshape(-1, *[1] * (x.ndim - 1)).to(x.dtype)
            return density.denoiser(x, t, context) + step * slope

        return denoise


@dataclass(frozen=True)
class Autoguidance(Guidance):
    r"""Go away from what a weaker version of the model says.

    .. math:: \hat x = \hat x'(x_t) + w \, (\hat x(x_t) - \hat x'(x_t))

    The weaker one is smaller, or was trained for less long, on the same data: where both err, it errs further in the
    same direction. Source: Karras et al., arXiv:2406.02507.

    Args:
        weaker: The other density, of the same events and contexts, with the same preprocessing.
        scale: :math:`w`; 1 leaves the denoiser as it is.
    """

    weaker: Diffusion
    scale: float = 2.0

    def guided(self, density: Diffusion, context: Tensor | None) -> Denoise:
        weaker = self.weaker
        if weaker.event_shape != density.event_shape or weaker.context_shape != density.context_shape:
            raise ConfigError("guidance: the weaker density must be of the same events and contexts")
        mine, theirs = density.preprocess.state_dict(), weaker.preprocess.state_dict()
        same = mine.keys() == theirs.keys() and all(torch.allclose(mine[k].to(theirs[k]), theirs[k]) for k in mine)
        if not same:
            raise ConfigError("guidance: the weaker density must be fitted on the same data: its units are others")

        def denoise(x: Tensor, t: Tensor) -> Tensor:
            mean = density.denoiser(x, t, context)
            return torch.lerp(weaker.mean_at(x, t, context, density.schedule), mean, self.scale)

        return denoise


def guidance(given: Any) -> Guidance:
    """Return guidance as it is; a number stands for :class:`ClassifierFree`.

    Raises:
        ConfigError: It is neither.

    Example:
        >>> guidance(2)
        ClassifierFree(scale=2.0)
    """
    if isinstance(given, Guidance):
        return given
    if isinstance(given, int | float) and not isinstance(given, bool) and abs(given) < 1e6:
        return ClassifierFree(float(given))
    raise ConfigError(f"guidance: a number such as 2.0, or an object such as Autoguidance(...), expected; got {given!r:.80}")
