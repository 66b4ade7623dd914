"""Guidance: a denoiser pushed towards what is asked for, more strongly than the data alone would have it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from sciflow.arguments import is_number
from sciflow.diffusion.rows import over_events
from sciflow.errors import ConfigError, DataError, ShapeError, first_line
from sciflow.memory import is_out_of_memory

if TYPE_CHECKING:
    from sciflow.diffusion.diffusion import Diffusion

__all__ = ["Autoguidance", "ClassifierFree", "ClassifierGuidance", "Guidance", "guidance", "require_gradients", "slope"]

Denoise = Callable[[Tensor, Tensor], Tensor]
_MOST_SCALE = 1e6


class Guidance(ABC):
    """How the denoiser of a density is changed while events are drawn from it.

    Attributes:
        memory: How much more a call of the guided denoiser holds than one of the denoiser itself.
    """

    memory: ClassVar[int] = 1

    @abstractmethod
    def guided(self, density: Diffusion, context: Tensor | None) -> Denoise:
        """Return the denoiser to draw with.

        Args:
            density: What is drawn from.
            context: ``[n, *context_shape]``, normalised, or None.
        """

    def part(self, rows: range, total: int) -> Guidance:
        """Return the guidance of some of the draws; the same for all, where it does not differ between rows.

        Args:
            rows: Which, in the flattened shape of draws.
            total: How many draws there are.
        """
        return self


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
    memory = 2

    def __post_init__(self) -> None:
        object.__setattr__(self, "scale", _checked_scale(self.scale))

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
        log_prob: ``log_prob(x_t, t)`` of events in normalised units and times ``[n]``: nats, ``[n]``. It gets copies,
            in which it may work in place.
        scale: :math:`w`; 1 is Bayes' rule.

    Raises:
        ConfigError: While drawing: the classifier has no slope.
        DataError: While drawing: its slope is NaN or infinite.
        ShapeError: While drawing: it does not answer with one number a row.

    Example:
        >>> from sciflow.diffusion import ClassifierGuidance, Diffusion
        >>> def denoise(x, t):  # of a standard normal
        ...     return x / (1 + (80 * t[:, None]) ** 2)
        >>> model = Diffusion.from_denoiser(denoise, (1,), "edm")
        >>> def log_prob(x, t):  # of having read 3 off x, with an error of 1
        ...     variance = (80 * t) ** 2
        ...     return -((3 - x[:, 0] / (1 + variance)) ** 2) / (1 + variance / (1 + variance)) / 2
        >>> round(model.sample(4000, seed=0, guidance=ClassifierGuidance(log_prob)).mean().item(), 1)
        1.5
    """

    log_prob: Callable[[Tensor, Tensor], Tensor]
    scale: float = 1.0
    memory = 2

    def __post_init__(self) -> None:
        object.__setattr__(self, "scale", _checked_scale(self.scale))
        if not callable(self.log_prob):
            raise ConfigError(f"guidance: log_prob must be a function of x_t and t; got {self.log_prob!r:.80}")

    def guided(self, density: Diffusion, context: Tensor | None) -> Denoise:
        require_gradients()

        def denoise(x: Tensor, t: Tensor) -> Tensor:
            alpha, sigma = density.schedule(t.double())
            step = over_events(self.scale * sigma.square() / alpha, x).to(x.dtype)
            return density.denoiser(x, t, context) + step * self._slope(x, t)

        return denoise

    def _slope(self, x: Tensor, t: Tensor) -> Tensor:
        # Whoever asks for derivatives of the guided denoiser needs those of the slope, too.
        differentiable = torch.is_grad_enabled() and x.requires_grad
        with torch.enable_grad():
            leaf = x if differentiable else x.detach().requires_grad_()
            log_prob = self.log_prob(leaf.clone(), t.to(x.dtype, copy=True))
            if not isinstance(log_prob, Tensor) or log_prob.shape != x.shape[:1]:
                found = list(log_prob.shape) if isinstance(log_prob, Tensor) else type(log_prob).__name__
                raise ShapeError(
                    f"guidance: log_prob(x_t, t) must return nats of shape {list(x.shape[:1])}; got {found}"
                )
            derivative = slope("log_prob", log_prob, leaf, torch.ones_like(log_prob), create_graph=differentiable)
        if not torch.isfinite(derivative).all():
            raise DataError(
                "guidance: log_prob(x_t, t) has a slope that is NaN or infinite: it must be smooth at noisy events, too"
            )
        return derivative


@dataclass(frozen=True)
class Autoguidance(Guidance):
    r"""Go away from what a weaker version of the model says.

    .. math:: \hat x = \hat x'(x_t) + w \, (\hat x(x_t) - \hat x'(x_t))

    The weaker one is smaller, or was trained for less long, on the same data: where both err, it errs further in the
    same direction. Source: Karras et al., arXiv:2406.02507.

    Args:
        weaker: The other density, of the same events and contexts, with the same preprocessing; its schedule may be
            another.
        scale: :math:`w`; 1 leaves the denoiser as it is.

    Raises:
        ConfigError: The weaker density is none, or one of other events, contexts, units, dtype or device.
    """

    weaker: Diffusion
    scale: float = 2.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "scale", _checked_scale(self.scale))
        if not hasattr(self.weaker, "mean_at"):
            raise ConfigError(f"guidance: the weaker density must be a diffusion model; got {self.weaker!r:.80}")

    def guided(self, density: Diffusion, context: Tensor | None) -> Denoise:
        weaker = self.weaker
        if (
            weaker.event_shape != density.event_shape
            or weaker.arguments["context_shape"] != density.arguments["context_shape"]
        ):
            raise ConfigError("guidance: the weaker density must be of the same events and contexts")
        if (weaker.dtype, weaker.device) != (density.dtype, density.device):
            raise ConfigError(
                f"guidance: the weaker density is of {weaker.dtype} on {weaker.device}, this one of {density.dtype} on "
                f"{density.device}: bring one to the other by weaker.to(density.device, density.dtype)"
            )
        of_events, of_contexts = (
            _same(getattr(density, name), getattr(weaker, name)) for name in ("preprocess", "preprocess_context")
        )
        if not (of_events and of_contexts):
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
    if is_number(given):
        return ClassifierFree(float(given))
    raise ConfigError(
        f"guidance: a number such as 2.0, or an object such as Autoguidance(...), expected; got {given!r:.80}"
    )


def require_gradients() -> None:
    """Refuse to work where torch takes no derivatives, whoever asks for them.

    Raises:
        ConfigError: Inference mode is on.
    """
    if torch.is_inference_mode_enabled():
        raise ConfigError("guidance: derivatives are needed, which torch.inference_mode() forbids: use torch.no_grad()")


def slope(what: str, answer: Tensor, at: Tensor, direction: Tensor, create_graph: bool = False) -> Tensor:
    """Return the derivative of what a user's function answers, along a direction, in the shape of its argument.

    Args:
        what: What to call the function in messages.
        answer: What it gave.
        at: What it was given; it asks for gradients.
        direction: Of the answer's shape.
        create_graph: Whether derivatives of the derivative are wanted.

    Raises:
        ConfigError: There is no derivative: the answer is not made of the argument by torch's functions.

    Example:
        >>> x = torch.tensor([3.0], requires_grad=True)
        >>> slope("square", x**2, x, torch.ones(1))
        tensor([6.])
    """
    refusal = f"guidance: {what} must be made of what it is given by torch's functions, of which slopes are known"
    if not answer.requires_grad:
        raise ConfigError(refusal)
    try:
        (found,) = torch.autograd.grad(
            answer, at, direction, retain_graph=True, create_graph=create_graph, allow_unused=True
        )
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise
        raise ConfigError(f"{refusal}: {first_line(error)}") from error
    if found is None:
        raise ConfigError(refusal)
    return found


def _checked_scale(scale: Any) -> float:
    if not (is_number(scale) and abs(scale) < _MOST_SCALE):
        raise ConfigError(f"guidance: the scale must be a number, and below {_MOST_SCALE:g}; got {scale!r:.80}")
    return float(scale)


def _same(mine: nn.Module | None, theirs: nn.Module | None) -> bool:
    """Whether two preprocessings are one."""
    if mine is None or theirs is None:
        return mine is theirs
    numbers, others = mine.state_dict(), theirs.state_dict()
    return repr(mine) == repr(theirs) and all(torch.allclose(numbers[k].to(others[k]), others[k]) for k in others)
