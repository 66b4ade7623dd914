"""Diffusion and flow matching: a density whose noise is taken off step by step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from sciflow.arguments import Arguments, plain, seeded
from sciflow.bijections import Composite, Standardize, context_preprocessing, preprocessing
from sciflow.density import Density, Likelihood, Status, checked_shape
from sciflow.diffusion.denoiser import Denoiser, NetworkDenoiser
from sciflow.diffusion.elbo import elbo
from sciflow.diffusion.given_denoiser import GivenDenoiser, checked_mean, warn_of_centre, warn_of_sizes
from sciflow.diffusion.guidance import Guidance
from sciflow.diffusion.guidance import guidance as as_guidance
from sciflow.diffusion.inpainting import inpaint
from sciflow.diffusion.ode_likelihood import ode_likelihood, to_events, to_noise
from sciflow.diffusion.parametrization import PARAMETRIZATIONS
from sciflow.diffusion.rows import deviation, in_parts, over_events, require_given, some_left_out
from sciflow.diffusion.samplers import Spacing, times
from sciflow.diffusion.samplers import sampler as as_sampler
from sciflow.diffusion.sampling import Drawing, draw
from sciflow.diffusion.schedules import Schedule
from sciflow.diffusion.schedules import schedule as as_schedule
from sciflow.diffusion.weighting import Weighting
from sciflow.diffusion.weighting import weighting as as_weighting
from sciflow.errors import ConfigError
from sciflow.likelihood import error_of_mean
from sciflow.matching import PAIRINGS, paired, require_pairable, spread_evenly
from sciflow.model_file import require_saveable
from sciflow.nets.by_name import doubts_of_channels
from sciflow.nets.by_name import network as build_network
from sciflow.ode.options import checked_tolerance
from sciflow.progress import progress_bar
from sciflow.row_noise import RowNoise

__all__ = ["Diffusion"]

_GROUPS = 4  # of draws, independent of each other: they tell how far the bound is off
_DRAWS, _MOST_DRAWS = 64, 1 << 20
_VALIDATION_DRAWS = 8


class Diffusion(Density):
    r"""A diffusion model: a network that learns to take Gaussian noise off, at every level of noise.

    .. math:: x_t = \alpha(t) \, x_0 + \sigma(t) \, \varepsilon, \qquad
              L = E_{t, \varepsilon} \; w(t) \, \| \hat x_0(x_t, t, c) - x_0 \|^2

    The mean of the clean event that minimises it knows the score of noisy events, and so the way from noise to data. A
    schedule of straight paths makes it flow matching; what the network is asked for, and which noise counts how much,
    are choices apart from it. Source: Ho et al., arXiv:2006.11239; Song et al., arXiv:2011.13456; Karras et al.,
    arXiv:2206.00364; Lipman et al., arXiv:2210.02747.

    ``log_prob`` is a lower bound, estimated with 64 evaluations of the network; ``likelihood`` says how well, and takes
    ``num_draws`` (64 by default) and ``seed``. With a seed (0 by default) the noise of a row follows from the row's own
    numbers: its value is the same alone and among others, and errors of different rows are independent, so that means
    of many rows are known as well as their spread says. ``seed=None`` draws anew at every call.

    ``likelihood(x, method="ode")`` is log p itself, by the probability-flow ODE, with options as
    :func:`sciflow.ode.options.likelihood_options` has them; ``encode`` and ``decode`` follow the same ODE to noise and
    back, within a ``tolerance`` of log p (1e-5 nats by default).

    Args:
        event_shape: Shape of one event: a vector ``[d]``, a series ``[channel, length]``, a field
            ``[channel, height, width]`` or a volume.
        context_shape: What the density is conditioned on: a shape, a context, or several by name, see
            :mod:`sciflow.contexts`.
        schedule: How noise comes in: a name or an object, see :func:`sciflow.diffusion.schedule`.
        parametrization: What the network is asked for: ``"edm"``, ``"noise"``, ``"data"``, ``"v"``, ``"score"`` or
            ``"velocity"``, see :func:`sciflow.diffusion.parametrization.mean_from`.
        weighting: Which levels of noise are trained on, and how much they count: ``"wide"``, ``"edm"``,
            ``"simple"``, ``"min-snr"``, ``"likelihood"``, ``"logit-normal"``, see
            :func:`sciflow.diffusion.weighting.weighting`.
        network: ``"mlp"``, ``"unet"`` or ``"transformer"``, with sizes ``{"unet": {"channels": 32}}``; None for a
            perceptron for vectors and a U-Net for the rest; or a module; see
            :func:`sciflow.nets.by_name.network`.
        context_dropout: Probability with which the context of an event is left out while training, for
            classifier-free guidance.
        pairing: ``"independent"``, or ``"optimal-transport"`` within a batch, for straighter paths.
        preprocess: Name or chain of the data-unit bijections, see :func:`sciflow.bijections.preprocessing`; what comes
            out of a chain of yours is rescaled, as a whole, to standard deviation 1.
        seed: Of the initial weights; None draws from torch's own generator.

    Raises:
        ConfigError: An argument is unknown or out of range.

    Example:
        >>> model = Diffusion((3,), network={"mlp": {"hidden_features": (64, 64)}}, seed=0)
        >>> model.sample(5, num_steps=10, seed=1).shape
        torch.Size([5, 3])
        >>> model.likelihood(torch.zeros(5, 3)).kind
        'elbo'
    """

    family = "diffusion"
    objective = "objective"
    relative_steps = 3

    def __init__(
        self,
        event_shape: Sequence[int],
        context_shape: Any = None,
        *,
        schedule: str | Mapping[str, Any] | Schedule = "edm",
        parametrization: str = "edm",
        weighting: str | Mapping[str, Any] | Weighting = "wide",
        network: str | Mapping[str, Any] | nn.Module | None = None,
        context_dropout: float = 0.1,
        pairing: str = "independent",
        preprocess: str | Mapping[str, Any] | Sequence[str | Mapping[str, Any]] = "standardize",
        seed: int | None = None,
    ) -> None:
        arguments = Arguments("Diffusion")
        arguments.choice("parametrization", parametrization, tuple(PARAMETRIZATIONS))
        arguments.choice("pairing", pairing, PAIRINGS)
        arguments.fraction("context_dropout", context_dropout)
        seed = arguments.seed(seed)
        chosen = as_schedule(schedule)
        preprocess = plain("preprocess", preprocess)
        shape = checked_shape(event_shape, "event_shape")
        super().__init__(
            shape,
            context_shape,
            # Schedules, spacings and preconditioning are made for events about as large as the noise at k = 1.
            preprocess=preprocessing(preprocess, shape, unit_size=True),
            preprocess_context=context_preprocessing(context_shape),
            arguments={
                **arguments.values,
                "schedule": chosen.specification or chosen,
                "weighting": (weighting.specification or weighting)
                if isinstance(weighting, Weighting)
                else plain("weighting", weighting),
                "network": network if isinstance(network, nn.Module) else plain("network", network),
                "preprocess": preprocess,
            },
        )
        require_pairable("Diffusion", pairing, self.contexts)
        self.weighting = as_weighting(weighting)
        with seeded(seed):
            built = build_network(network, self.event_shape, self.contexts)
        self.denoiser: Denoiser = NetworkDenoiser(built, chosen, parametrization)

    @classmethod
    def from_denoiser(
        cls,
        denoise: Callable[..., Any],
        event_shape: Sequence[int],
        schedule: str | Mapping[str, Any] | Schedule,
        *,
        context_shape: Any = None,
        data_mean: Any = 0.0,
        data_std: float = 1.0,
        preprocess: str | Mapping[str, Any] | Sequence[str | Mapping[str, Any]] = "none",
    ) -> Self:
        """Wrap a denoiser that is there already: the mean of a known posterior, or a model trained elsewhere.

        Args:
            denoise: ``denoise(x_t, t, context=None)`` returns :math:`E[x_0 | x_t]`, ``[n, *event_shape]``, with ``t``
                ``[n]``; called without a context where there is none. A module's weights go along with the density.
            event_shape: Shape of one event.
            schedule: Of its times, see :func:`sciflow.diffusion.schedule`.
            context_shape: What it is conditioned on, or None.
            data_mean: Mean of its events, of a shape that broadcasts to theirs: draws begin from noise about it.
            data_std: Standard deviation of its events, where noise begins to matter: a rough figure will do.
            preprocess: From your units to those of the denoiser; by default they are the same.

        Returns:
            A density that samples and knows its likelihood; it is not trained, nor saved.

        Example:
            >>> def denoise(x, t, context=None):  # of a standard normal
            ...     alpha, sigma = vp(t)
            ...     return (alpha / (alpha**2 + sigma**2))[:, None] * x
            >>> from sciflow.diffusion import schedule
            >>> vp = schedule("vp")
            >>> model = Diffusion.from_denoiser(denoise, (2,), vp)
            >>> round(float(model.sample(4000, seed=0).std()), 1)
            1.0
        """
        if not callable(denoise):
            raise ConfigError(f"denoise must be a function of x_t and t; got {denoise!r:.80}")
        Arguments("Diffusion.from_denoiser").positive("data_std", data_std)
        density = cls.__new__(cls)
        chosen = as_schedule(schedule)
        shape = checked_shape(event_shape, "event_shape")
        centre = Standardize(shape)
        centre.mean.copy_(checked_mean(data_mean, shape))
        centre.fitted.fill_(True)
        Density.__init__(
            density,
            shape,
            context_shape,
            preprocess=Composite([preprocessing(preprocess, shape), centre]),
            preprocess_context=None,
            arguments={
                "denoise": denoise,
                "schedule": chosen.specification or chosen,
                "data_mean": centre.mean.tolist(),
                "data_std": float(data_std),
                "preprocess": plain("preprocess", preprocess),
            },
        )
        density.denoiser = GivenDenoiser(denoise, chosen, data_std, centre.mean.clone())
        warn_of_sizes(chosen, data_std)
        return density.eval()

    @property
    def schedule(self) -> Schedule:
        """How noise comes in."""
        return self.denoiser.schedule

    def sample(
        self,
        n: int | Sequence[int],
        context: Any = None,
        seed: int | torch.Generator | None = None,
        *,
        sampler: Any = "unipc3",
        num_steps: int = 20,
        guidance: Any = 1.0,
        spacing: Spacing = "sigmoid",
        least_noise: float = 2e-3,
        return_trajectory: bool = False,
        progress: bool = True,
        **options: Any,
    ) -> Tensor:
        """Draw events, in data units.

        Args:
            n: Number of draws, or a shape of draws.
            context: ``n`` draws for each of them; a part of NaN counts as not given.
            seed: A seed or a generator on the model's device; None draws from torch's own generator.
            sampler: A name, a mapping with options such as ``{"ddim": {"eta": 0.5}}``, or an object, see
                :func:`sciflow.diffusion.samplers.sampler`.
            num_steps: Steps, one evaluation of the network each unless the sampler says otherwise.
            guidance: A number for classifier-free guidance (1 for none), or see :mod:`sciflow.diffusion.guidance`.
            spacing: Where the steps fall, see :func:`sciflow.diffusion.samplers.times`.
            least_noise: Noise level, in units of the events' deviation, from which the last step goes to the event.
            return_trajectory: Return the noisy events on the way, too.
            progress: Show a progress bar on a terminal.

        Returns:
            ``[n, *context_batch, *event_shape]``, without gradient; with ``return_trajectory`` behind a dimension of
            ``num_steps + 1``, from noise to events.

        Raises:
            ConfigError: There is no such sampler or option, or a number is out of range.
        """
        if options:
            known = "sampler, num_steps, guidance, spacing, least_noise, return_trajectory, progress"
            raise ConfigError(f"sampling from {type(self).__name__} takes {known}; got {', '.join(options)}")
        data_std = float(self.denoiser.data_std)
        drawing = Drawing(as_sampler(sampler), times(self.schedule, num_steps, spacing, least_noise, data_std))
        return super().sample(
            n,
            context,
            seed,
            drawing=drawing,
            guided=as_guidance(guidance),
            return_trajectory=return_trajectory,
            progress=progress,
        )

    def inpaint(
        self,
        x: Any,
        known: Any = None,
        n: int | Sequence[int] = 1,
        context: Any = None,
        seed: int | torch.Generator | None = None,
        **sampling: Any,
    ) -> Tensor:
        """Fill in what is unknown, given the rest; see :class:`sciflow.diffusion.Inpainting`.

        Args:
            x: ``[*batch, *event_shape]``, data units; each row may have other values missing.
            known: Which values are known, of a shape that broadcasts to that of ``x``; None for those that are not NaN.
            n: How many draws of each row, or a shape of them.
            context: ``[*context_batch, *context_shape]``, broadcast over the batch.
            seed: A seed or a generator on the model's device; None draws from torch's own generator.
            **sampling: As :meth:`sample` takes it, and ``iterations`` of the solver.

        Returns:
            ``[n, *batch, *event_shape]``, without gradient, with the known values as they were given.

        Raises:
            ConfigError: There is no such sampler or option, or a number is out of range.
            DataError: A value is known, and NaN, infinite, or impossible to the density.
            ShapeError: ``known`` is of another shape than ``x``, or ``x`` of another than events.

        Example:
            >>> model = Diffusion((3,), network={"mlp": {"hidden_features": (16,)}}, seed=0)
            >>> x = model.inpaint(torch.tensor([[1.0, torch.nan, 2.0], [torch.nan, 0.0, 0.0]]), n=4, seed=0)
            >>> x.shape, x[0, 0, ::2]
            (torch.Size([4, 2, 3]), tensor([1., 2.]))
        """
        return inpaint(self, x, known, n, context, seed, **sampling)

    def fit_preprocessing(self, x: Any, context: Any = None) -> None:
        """Fit the data-unit bijections on training rows, and measure the deviation of what they give."""
        super().fit_preprocessing(x, context)
        self.denoiser.data_std.fill_(deviation(self.preprocess, self._rows(x, context)[0]))

    def save(self, path: str | Path) -> Path:
        """Write ``model.safetensors`` and ``model.json`` into the folder ``path``; see :func:`sciflow.load`."""
        require_saveable(path, "this density", self.arguments)
        return super().save(path)

    def doubts(self, layout: Any) -> list[str]:
        """Say so where a dimension of the grid would be taken for channels."""
        return doubts_of_channels(getattr(self.denoiser, "network", None), layout)

    def mean_at(self, x: Tensor, t: Tensor, context: Tensor | None, schedule: Schedule) -> Tensor:
        """Return the mean of the clean events, of noisy ones and times of another schedule.

        Two schedules are one, but for time and scale: at the same noise level, noisy events over their alpha are alike.
        """
        alpha, sigma = schedule(t.double())
        own = self.schedule.time(sigma / alpha)
        own_alpha, _ = self.schedule(own)
        scale = over_events(own_alpha / alpha, x).to(x.dtype)
        mean: Tensor = self.denoiser(scale * x, own, context)
        return mean

    def require_context_dropout(self) -> None:
        """Refuse to be asked without a context, where that was never trained.

        Raises:
            ConfigError: It was not.
        """
        if self.arguments.get("context_dropout") == 0:
            raise ConfigError(
                "guidance: this density was trained with context_dropout 0, so it knows nothing without a context: "
                "leave guidance out, or train with 0.1"
            )

    # What Density asks for. ------------------------------------------------------------------------------------

    def _log_prob(self, y: Tensor, context: Tensor | None) -> Tensor:
        return self._bounds(y, context, _DRAWS, seed=0).mean(0).to(y.dtype)

    def _likelihood(self, y: Tensor, context: Tensor | None, method: str | None, **options: Any) -> Likelihood:
        if method == "ode":
            return ode_likelihood(self.denoiser, y, context, options)
        if method not in (None, "elbo"):
            raise ConfigError(f"{type(self).__name__} knows its log p by methods 'elbo' and 'ode'; got {method!r}")
        num_draws, seed = options.pop("num_draws", _DRAWS), options.pop("seed", 0)
        if options:
            raise ConfigError(f"method 'elbo' takes num_draws and seed; got {', '.join(options)}")
        checked = Arguments("likelihood")
        checked.whole("num_draws", num_draws, 2 * _GROUPS, _MOST_DRAWS)
        bounds = self._bounds(y, context, num_draws, checked.seed(seed))
        return Likelihood(
            log_prob=bounds.mean(0).to(y.dtype),
            error=error_of_mean(bounds.detach(), 0).to(y.dtype),
            nfe=torch.full((len(y),), _GROUPS * (num_draws // _GROUPS), dtype=torch.int32, device=y.device),
            status=torch.full((len(y),), Status.OK, dtype=torch.int32, device=y.device),
            kind="elbo",
        )

    def _bounds(self, y: Tensor, context: Tensor | None, num_draws: int, seed: int | None) -> Tensor:
        """Independent estimates of the bound, ``[groups, n]``; with a seed those of a row do not depend on others."""
        each = max(1, num_draws // _GROUPS)
        of_unit_size = y.detach() / self.denoiser.data_std.to(y.dtype)
        randoms = [None if seed is None else RowNoise(of_unit_size, seed, group) for group in range(_GROUPS)]
        return torch.stack([elbo(self.denoiser, y, context, each, random) for random in randoms])

    def _loss(self, y: Tensor, context: Tensor | None, log_det: Tensor) -> Tensor:
        if not self.training:
            return -(elbo(self.denoiser, y, context, _VALIDATION_DRAWS).to(y.dtype) + log_det)
        if not isinstance(self.denoiser, NetworkDenoiser):
            raise ConfigError("a density made by from_denoiser is not trained: build Diffusion(event_shape, ...)")
        context = some_left_out(context, self.arguments["context_dropout"])
        noise = torch.randn_like(y)
        if self.arguments["pairing"] == "optimal-transport":
            noise = paired(noise, y)
        data_std = self.denoiser.data_std
        t = self.weighting.draw(spread_evenly(len(y), y.device), self.schedule, data_std)
        at = self.denoiser.levels(t, y)
        y_t = at.alpha.to(y.dtype) * y + at.sigma.to(y.dtype) * noise
        answer, skip, out = self.denoiser.answer(y_t, t, context)
        off = answer - (y - skip.to(y.dtype) * y_t) / out.to(y.dtype)
        weight = self.weighting.weight(at.alpha, at.sigma, out, at.data_std).to(y.dtype).flatten()
        loss = weight * off.flatten(1).square().mean(1)
        # A row outside the support, or with a context that is none, must be told of.
        return torch.where(torch.isfinite(log_det), loss, torch.nan)

    def _sample(self, n: int, context: Tensor | None, generator: torch.Generator | None, **options: Any) -> Tensor:
        require_given(self, context, self.arguments.get("context_dropout"), "this density")
        drawing: Drawing = options["drawing"]
        guidance: Guidance = options["guided"]
        return_trajectory: bool = options["return_trajectory"]
        if n and isinstance(self.denoiser, GivenDenoiser):
            warn_of_centre(self.denoiser, float(drawing.times[0]), self.event_shape, context)
        parts = in_parts(n, self.event_shape.numel() * guidance.memory, context)
        steps = count(1)
        drawn: list[Tensor] = []
        with progress_bar("drawing", len(drawing.times) * len(parts), options["progress"]) as update:
            for rows, c in parts:
                shape = (len(rows), *self.event_shape)
                noise = torch.randn(shape, generator=generator, dtype=self.dtype, device=self.device)
                denoise = guidance.part(rows, n).guided(self, c)
                drawn.append(
                    draw(
                        self.denoiser,
                        denoise,
                        drawing,
                        noise,
                        generator,
                        on_step=lambda: update(next(steps), ""),
                        return_trajectory=return_trajectory,
                    )
                )
        return torch.cat(drawn, dim=1 if return_trajectory else 0)

    def _encode(self, y: Tensor, context: Tensor | None, *, tolerance: float | None = None) -> Tensor:
        return to_noise(self.denoiser, y, context, checked_tolerance("encode", tolerance, y.dtype))

    def _decode(self, z: Tensor, context: Tensor | None, *, tolerance: float | None = None) -> Tensor:
        return to_events(self.denoiser, z, context, checked_tolerance("decode", tolerance, z.dtype))

    def __repr__(self) -> str:
        context = "" if self.contexts is None else f", {self.contexts!r}"
        return (
            f"{type(self).__name__}(event_shape={tuple(self.event_shape)}{context}, {self.schedule!r}, "
            f"{sum(p.numel() for p in self.parameters()):,} parameters)"
        )
