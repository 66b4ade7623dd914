"""Exact likelihood in one pass from a diffusion model: a flow that is taught its density."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sciflow.arguments import Arguments
from sciflow.data.store import Store, open_store
from sciflow.density import MOST_SEED, Density
from sciflow.diffusion import Diffusion
from sciflow.errors import ConfigError, DataError, SciflowError
from sciflow.families import load
from sciflow.flows.base import StandardNormal
from sciflow.flows.flow import Flow
from sciflow.modes import in_evaluation_mode
from sciflow.training.distill import require_trained
from sciflow.training.fit import fit

__all__ = ["METHODS", "distill_to_flow"]

#: Ways to teach a flow.
METHODS = ("likelihood", "regression", "both")
# What is left of the teacher's gain is a matter of how many draws there are; pairs take the longer to be made.
_DRAWS, _PAIRS, _VALUES = 200_000, 20_000, 1 << 26
_FEWEST_EVENTS, _MOST_EVENTS = 10, 1 << 30
_MANY_CONTEXTS = 30  # of which some can be spared
_ROWS_AT_A_TIME = 1 << 14


def distill_to_flow(
    teacher: Density | str | Path,
    flow: Flow,
    context: Any = None,
    *,
    method: str = "likelihood",
    num_events: int | None = None,
    regression: float = 1.0,
    sampling: Mapping[str, Any] | None = None,
    validation: Any = None,
    validation_context: Any = None,
    seed: int = 0,
    progress: bool = True,
    **training: Any,
) -> Flow:
    r"""Teach a flow the density of a diffusion model: its log p is then exact, and takes one pass.

    .. math:: L = -\log p(x) + \frac{w}{2} \, \| f(x) - z \|^2

    with :math:`x` drawn from the teacher, :math:`z` the noise that the teacher's probability flow turns into :math:`x`,
    and :math:`f` the flow's way from events to noise. Methods:

    - ``"likelihood"``: the first term alone. It is least where the flow's density is the teacher's, whichever way the
      flow takes to noise; any density that draws can be the teacher.
    - ``"regression"``: the second term alone, which asks for the teacher's own way. Rehman et al., arXiv:2506.01158.
    - ``"both"``.

    Likelihood is the default because it alone keeps what the teacher has gained over a flow that is trained on the
    data: all of it on 2,000 rows of rings (-2.82 nats, as the teacher; -2.98 directly) and on kin8nm (-8.17, -8.17;
    -8.44), nine tenths on energy's target given its features (-0.45, -0.42; -0.62). It takes many draws: with 20,000 of
    kin8nm instead of 200,000 a twentieth is kept. Regression tells little of the Jacobian. Where events are one number
    it does as well; where they are more, the flow ends below one that is trained on the data, alone (-8.76 on rings)
    and beside the likelihood (-3.27); see ``tests/benchmarks/distill_to_flow.py``.

    Args:
        teacher: A trained :class:`sciflow.diffusion.Diffusion`, or another density that draws, or the folder of one.
        flow: Of the teacher's events and contexts; trained in place, on the device where it is. Its ``preprocess`` may
            be another: it is fitted to the teacher's draws.
        context: Of a conditional teacher, what the flow is to know about: ``[n, *context_shape]``, or as
            :meth:`sciflow.Density.log_prob` takes it; or a store, whose training rows have it. Draws are dealt out to
            them evenly.
        method: How the flow is taught.
        num_events: Draws to train on; a tenth as many more are held out. None for 200,000, or fewer of events of more
            than 335 numbers; and a tenth of that for pairs, which take the longer to be made.
        regression: Weight :math:`w` of the second term, in method ``"both"``.
        sampling: Options of ``teacher.sample``, such as ``{"num_steps": 50, "guidance": 2.0}``, in method
            ``"likelihood"``.
        validation: Held-out events by whose log p early stopping goes, ``[n, *event_shape]``; None for draws of the
            teacher. Of 30 different contexts or more, a tenth is then kept for these.
        validation_context: The context of ``validation``.
        seed: Of draws, order and noise.
        progress: Show a progress bar on a terminal.
        **training: Any key of a workflow file's ``training`` section, such as ``max_steps=500``.

    Returns:
        The flow, in evaluation mode, with the teacher's layout: it scores the same stores, in the same units.
        ``flow.provenance`` says how it was taught.

    Raises:
        ConfigError: A setting is unknown or out of range; there is no such teacher, it is not trained, or its training
            has diverged; or the flow is of other events or contexts.
        DataError: A context is missing, or a label or token that there is not.
        ShapeError: There is no context, or it is of another shape.

    Example:
        >>> from sciflow.flows import NSF
        >>> rows = torch.randn(300, 2, generator=torch.Generator().manual_seed(0)) * 3 + 5
        >>> teacher = fit(Diffusion((2,), seed=0), rows, max_steps=20).density
        >>> flow = distill_to_flow(teacher, NSF((2,), num_transforms=1, seed=0), num_events=500, max_steps=20)
        >>> flow.likelihood(rows[:5]).kind
        'exact'
    """
    arguments = Arguments("distill_to_flow")
    arguments.choice("method", method, METHODS)
    if num_events is not None:
        num_events = arguments.whole("num_events", num_events, _FEWEST_EVENTS, _MOST_EVENTS)
    regression = arguments.positive("regression", regression)
    seed = arguments.whole("seed", seed, 0, MOST_SEED)
    teacher = _teacher_from(teacher)
    _require_alike(teacher, flow)
    by_pairs = method != "likelihood"
    if by_pairs:
        _require_way(teacher, flow, sampling)
    if validation is None and validation_context is not None:
        raise DataError("validation_context without validation: give both, or neither")
    if not isinstance(sampling, Mapping | None):
        raise ConfigError(f'sampling: options by name, such as {{"num_steps": 20}}; got {sampling!r:.80}')
    options = dict(sampling or {})
    if isinstance(teacher, Diffusion):
        options.setdefault("progress", progress)

    contexts = held_contexts = _contexts(teacher, context, "context")
    if validation is None and contexts is not None:
        contexts, held_contexts = _parted(contexts, seed)
    generator = torch.Generator(teacher.device).manual_seed(seed)

    def drawn(n: int, contexts: Tensor | None) -> tuple[Tensor, Tensor | None]:
        of_each = None if contexts is None else contexts[torch.arange(n) % len(contexts)]
        draw = _pairs if by_pairs else _events
        return draw(teacher, n, of_each, generator, options), of_each

    if num_events is None:
        num_events = min(_PAIRS if by_pairs else _DRAWS, max(_FEWEST_EVENTS, _VALUES // teacher.event_shape.numel()))
    rows, of_rows = drawn(num_events, contexts)
    if validation is None:
        held, of_held = drawn(max(1, num_events // 10), held_contexts)
    else:
        held, of_held = teacher._events(validation), _contexts(teacher, validation_context, "validation_context")
        if by_pairs:
            # Of them log p alone is asked for.
            held = torch.stack([held, torch.zeros_like(held)], 1)
    pupil = _Pupil(flow, float(method == "both"), regression) if by_pairs else flow
    fit(pupil, rows, held, context=of_rows, validation_context=of_held, seed=seed, progress=progress, **training)
    flow.layout, flow.context_columns = teacher.layout, teacher.context_columns
    taught = {"family": teacher.family, "method": method, "num_events": num_events, "provenance": teacher.provenance}
    flow.provenance = {**pupil.provenance, "teacher": taught}
    return flow.eval()


class _Pupil(Flow):
    r"""A flow while it is taught by pairs: its events ``[2, *event_shape]`` are the flow's, each with its noise.

    It shares all that the flow is made of. What it is judged by is the flow's log p.

    Args:
        flow: What is trained.
        likelihood: Weight of minus log p.
        regression: Weight of what noise is off.
    """

    objective = "objective"

    def __init__(self, flow: Flow, likelihood: float, regression: float) -> None:
        Density.__init__(
            self,
            (2, *flow.event_shape),
            flow.arguments["context_shape"],
            preprocess=flow.preprocess,
            preprocess_context=flow.preprocess_context,
            arguments=flow.arguments,
        )
        self.transform, self.base, self.features = flow.transform, flow.base, flow.features
        self.flow = flow
        self.likelihood_weight, self.regression_weight = likelihood, regression

    def fit_preprocessing(self, x: Any, context: Any = None) -> None:
        """Fit those of the flow, on the events."""
        self.flow.fit_preprocessing(x[:, 0], context)

    def loss(self, x: Any, context: Any = None) -> Tensor:
        """Of pairs ``[n, 2, *event_shape]``, ``[n]``; in evaluation mode minus log p of the events."""
        events, noise = x.unbind(1)
        if not self.training:
            return self.flow.loss(events, context)
        y, c, log_det, _ = self.flow._normalise(events, context, checked=False)
        z, volume = self.transform(self._shaped(y), c)
        z = z.reshape(y.shape)
        off = 0.5 * (z - noise).flatten(1).square().sum(1)
        log_prob = self.base.log_prob(z) + volume + log_det
        return self.regression_weight * off - self.likelihood_weight * log_prob


def _teacher_from(given: Any) -> Density:
    """The teacher, of which it is known that its numbers are."""
    if isinstance(given, str | Path):
        try:
            given = load(given)
        except SciflowError as error:
            raise ConfigError(f"teacher: {error}") from None
    if not isinstance(given, Density):
        raise ConfigError(f"teacher: give a trained Diffusion, or another density, or its folder; got {given!r:.80}")
    if not given.preprocess.is_fitted:
        raise ConfigError(f"teacher: this {type(given).__name__} is not trained: sf.fit(teacher, data) first")
    require_trained(given)
    return given


def _require_alike(teacher: Density, flow: Any) -> None:
    """Refuse what is no flow, or one of other events or contexts."""
    if not isinstance(flow, Flow):
        raise ConfigError(
            f"flow: give one whose log p is exact in one pass, such as NSF(teacher.event_shape); got {flow!r:.80}"
        )
    if flow is teacher:
        raise ConfigError("flow: it is the teacher itself: build another")
    if flow.event_shape != teacher.event_shape:
        raise ConfigError(
            f"flow: of events {list(flow.event_shape)}; those of the teacher are {list(teacher.event_shape)}"
        )
    if flow.context_shape != teacher.context_shape:
        mine, theirs = (
            "none" if shape is None else list(shape) for shape in (flow.context_shape, teacher.context_shape)
        )
        raise ConfigError(f"flow: of context_shape {mine}; that of the teacher is {theirs}")


def _require_way(teacher: Density, flow: Flow, sampling: Any) -> None:
    """Refuse where there is no noise of events that both know."""
    for whose, density in (("teacher", teacher), ("flow", flow)):
        if isinstance(density, Flow) and not isinstance(density.base, StandardNormal):
            raise ConfigError(
                f"{whose}: regression compares standard normal noise, and that of this {type(density).__name__} is "
                "another: choose method 'likelihood'"
            )
        if density.preprocess.num_draws:
            raise ConfigError(
                f"{whose}: values that noise dequantises have no noise of their own to compare: choose method "
                "'likelihood'"
            )
    if sampling:
        raise ConfigError("sampling: pairs are made by teacher.decode, which takes no options: leave it out")


def _contexts(teacher: Density, given: Any, what: str) -> Tensor | None:
    """Packed contexts ``[m, *context_shape]``."""
    if teacher.conditions is None and given is None:
        return None
    store = open_store(given) if isinstance(given, str | Path) else given
    if isinstance(store, Store):
        given = store.train.context[:]
    packed = teacher.pack_context(given)
    packed = packed.reshape(-1, *packed.shape[packed.ndim - len(teacher.context_shape or ()) :])
    if len(packed) == 0:
        raise DataError(f"{what}: there are 0 of them")
    if not teacher.knows(packed).all():
        raise DataError(f"{what}: some are missing or not finite; a flow must be given all of it: drop or fill them")
    return packed


def _parted(contexts: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Contexts to train on and to hold out: others, where there are many; the same, where there are few."""
    different, which = contexts.unique(dim=0, return_inverse=True)
    if len(different) < _MANY_CONTEXTS:
        return contexts, contexts
    order = torch.randperm(len(different), generator=torch.Generator().manual_seed(seed))
    held = torch.isin(which, order[: round(len(different) / 10)])
    return contexts[~held], contexts[held]


def _events(
    teacher: Density, n: int, contexts: Tensor | None, generator: torch.Generator, options: dict[str, Any]
) -> Tensor:
    """Draws ``[n, *event_shape]``, one of each context."""
    if contexts is None:
        return _finite(teacher.sample(n, seed=generator, **options))
    return _finite(teacher.sample(1, contexts, seed=generator, **options)[0])


def _pairs(
    teacher: Density, n: int, contexts: Tensor | None, generator: torch.Generator, options: dict[str, Any]
) -> Tensor:
    """Draws, each with the noise that the teacher makes it of, ``[n, 2, *event_shape]``."""
    noise = torch.randn(n, *teacher.event_shape, generator=generator, dtype=teacher.dtype, device=teacher.device)
    parts = noise.split(_ROWS_AT_A_TIME)
    of_parts = [None] * len(parts) if contexts is None else contexts.split(_ROWS_AT_A_TIME)
    with torch.no_grad(), in_evaluation_mode(teacher):
        events = torch.cat([teacher.decode(part, context) for part, context in zip(parts, of_parts, strict=True)])
    return torch.stack([_finite(events), noise], 1)


def _finite(draws: Tensor) -> Tensor:
    """Draws that are numbers, every one."""
    bad = int((~torch.isfinite(draws).flatten(1).all(1)).sum())
    if bad:
        raise ConfigError(
            f"teacher: {bad:,} of {len(draws):,} draws are not finite: its training has diverged, or its sampler's "
            "settings or the contexts are none for it"
        )
    return draws
