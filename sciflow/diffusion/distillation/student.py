"""A student: a density that draws in one to four evaluations what its teacher draws in many."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sciflow.arguments import Arguments, plain, seeded
from sciflow.bijections import context_preprocessing, preprocessing
from sciflow.density import Density, Likelihood, checked_shape
from sciflow.diffusion.diffusion import Diffusion
from sciflow.diffusion.distillation.consistency import Consistency, ConsistencyTraining
from sciflow.diffusion.distillation.flow_map import heun, jumped
from sciflow.diffusion.distillation.method import Lesson, Method
from sciflow.diffusion.distillation.progressive import Progressive
from sciflow.diffusion.distillation.shortcut import Shortcut
from sciflow.diffusion.distillation.taken_over import first_flow_map, record_of, shapes_of, teacher_from
from sciflow.diffusion.guidance import guidance as as_guidance
from sciflow.diffusion.rows import deviation, in_parts, over_events, require_given, some_left_out
from sciflow.errors import ConfigError
from sciflow.model_file import require_saveable

__all__ = ["METHODS", "MOST_STEPS", "Student"]

#: Ways to teach a student, by name.
METHODS: dict[str, type[Method]] = {
    "shortcut": Shortcut,
    "progressive": Progressive,
    "consistency": Consistency,
    "consistency-training": ConsistencyTraining,
}
MOST_STEPS = 4
_MOST_GUIDANCE = 1000
_REFERENCE_STEPS = 8


class Student(Density):
    r"""A student of a diffusion model: it jumps along the trajectories that its teacher follows step by step.

    .. math:: G(z, k, s) = \frac{s}{k} z + \Big(1 - \frac{s}{k}\Big) \, \hat x(z, k, s), \qquad
              z = x_t / \alpha, \quad k = \sigma / \alpha

    takes a noisy event from one noise level to another, see
    :class:`sciflow.diffusion.distillation.flow_map.FlowMap`. The network begins with the teacher's weights, as its
    teacher; training makes its jumps long. Methods:

    - ``"shortcut"``: a jump does what the student's own two of half its length do, from the teacher's steps up. Frans
      et al., arXiv:2410.12557; a teacher is optional.
    - ``"progressive"``: a jump does what two of the stage before did, or many of the teacher's. Salimans and Ho,
      arXiv:2202.00512. Draws in the one number of steps that it was made for.
    - ``"consistency"``: all points of a trajectory are mapped to one end. Song et al., arXiv:2303.01469.
    - ``"consistency-training"``: the same without a teacher's steps; a teacher is optional. Song and Dhariwal,
      arXiv:2310.14189.

    Shortcuts are the default because they need no teacher, draw in any number of steps, and map noise to events one to
    one. After 1,500 steps of training, a perceptron tells draws in 1, 2 and 4 evaluations from held-out rows with an
    accuracy of 0.536, 0.546 and 0.497 (rings), 0.520, 0.506 and 0.499 (checkerboard), 0.526, 0.514 and 0.509 (power
    plant); the teacher's in 20 with 0.502, 0.503 and 0.507. Consistency comes closer in one or two evaluations where
    there is much that is fine (0.515 and 0.505 on rings, 0.511 and 0.495 on the checkerboard), and not on the table
    (0.525 and 0.518); progressive distillation and consistency training are behind; see
    ``tests/benchmarks/distillation.py``.

    The likelihood is the teacher's, a lower bound, for a jump has none: the draws follow it as closely as the student
    has learned. The teacher's weights are kept with the student's. What training is judged by is no log p: it is minus
    the mean square of what its jumps are off from the teacher's way, over the events' variance; or, without a teacher,
    minus the energy score of draws (Gneiting and Raftery, doi:10.1198/016214506000001437) in normalised units.

    Args:
        event_shape: Shape of one event; None for the teacher's.
        context_shape: What it is conditioned on; None for what the teacher is.
        teacher: A :class:`~sciflow.diffusion.Diffusion`, or the folder of one (or of its run).
        method: How it is taught.
        num_steps: Evaluations that a draw takes, 1 to 4.
        guidance: Scale of the classifier-free guidance of the teacher that is learned.
        network: None for one like the teacher's, which begins as the teacher's; otherwise as
            :class:`~sciflow.diffusion.Diffusion` takes it, and it begins anew. A module is told of two levels,
            ``[n, 2]``.
        context_dropout: Probability with which a context is left out while training; None for the teacher's.
        preprocess: Of data units, where there is no teacher.
        seed: Of the initial weights; None draws from torch's own generator.

    Raises:
        ConfigError: An argument is unknown or out of range; there is no teacher in the folder, or there must be one.

    Example:
        >>> from sciflow.diffusion import Diffusion
        >>> teacher = Diffusion((3,), network={"mlp": {"hidden_features": (64, 64)}}, seed=0)
        >>> student = Student(teacher=teacher, num_steps=2)
        >>> student.sample(5, seed=1).shape, student.likelihood(torch.zeros(5, 3)).kind
        (torch.Size([5, 3]), 'elbo')
    """

    family = "student"
    objective = "objective"
    trained_steps: Tensor

    def __init__(
        self,
        event_shape: Sequence[int] | None = None,
        context_shape: Any = None,
        *,
        teacher: str | Path | Mapping[str, Any] | Diffusion | None = None,
        method: str = "shortcut",
        num_steps: int = 2,
        guidance: float = 1.0,
        network: str | Mapping[str, Any] | nn.Module | None = None,
        context_dropout: float | None = None,
        preprocess: str | Mapping[str, Any] | Sequence[str | Mapping[str, Any]] = "standardize",
        seed: int | None = None,
    ) -> None:
        arguments = Arguments("Student")
        arguments.choice("method", method, tuple(METHODS))
        arguments.whole("num_steps", num_steps, 1, MOST_STEPS)
        arguments.number("guidance", guidance, -_MOST_GUIDANCE, _MOST_GUIDANCE)
        if context_dropout is not None:
            context_dropout = arguments.fraction("context_dropout", context_dropout)
        seed = arguments.seed(seed)
        taught_by = None if teacher is None else teacher_from(teacher)
        if taught_by is None and METHODS[method].needs_teacher:
            raise ConfigError(
                f"Student: teacher: method {method!r} needs one: give a Diffusion, or the folder of one that is trained"
            )
        if taught_by is not None:
            shape, conditions = shapes_of(taught_by, event_shape, context_shape)
            units = copy.deepcopy((taught_by.preprocess, taught_by.preprocess_context))
        elif event_shape is not None:
            shape, conditions = checked_shape(event_shape, "event_shape"), context_shape
            units = (
                preprocessing(plain("preprocess", preprocess), shape, unit_size=True),
                context_preprocessing(context_shape),
            )
        else:
            raise ConfigError("Student: give a teacher, or event_shape where there is none")
        super().__init__(
            shape,
            conditions,
            preprocess=units[0],
            preprocess_context=units[1],
            arguments={
                **arguments.values,
                "teacher": None if taught_by is None else record_of(taught_by, teacher),
                "network": network if isinstance(network, nn.Module) else plain("network", network),
                "context_dropout": context_dropout,
                "preprocess": plain("preprocess", preprocess),
            },
        )
        self.method = METHODS[method]()
        self.num_steps: int = arguments.values["num_steps"]
        self.teacher = taught_by
        # A resumed training goes on where it was.
        self.register_buffer("trained_steps", torch.zeros((), dtype=torch.int64))
        with seeded(seed):
            self.flow_map = first_flow_map(
                taught_by, self.event_shape, self.contexts, network, self.method.needs_target
            )
        self.unit = "energy score" if taught_by is None else "squared deviations"
        if taught_by is not None:
            if guidance != 1 and self.contexts is not None:
                taught_by.require_context_dropout()
            taught_by.requires_grad_(False).eval()
            self.layout, self.context_columns = taught_by.layout, taught_by.context_columns
            self.to(device=taught_by.device, dtype=taught_by.dtype)

    def sample(
        self,
        n: int | Sequence[int],
        context: Any = None,
        seed: int | torch.Generator | None = None,
        *,
        num_steps: int | None = None,
        **options: Any,
    ) -> Tensor:
        """Draw events, in data units.

        Args:
            n: Number of draws, or a shape of draws.
            context: ``n`` draws for each of them; a part of NaN counts as not given.
            seed: A seed or a generator on the model's device; None draws from torch's own generator.
            num_steps: Evaluations of the network, 1 to 4; None for the number that the student was made for.

        Returns:
            ``[n, *context_batch, *event_shape]``, without gradient.

        Raises:
            ConfigError: There is no such option, the student does not draw in so many steps, or a context is not given
                and was never left out while training.
        """
        if options:
            raise ConfigError(f"sampling from a student takes num_steps; got {', '.join(options)}")
        chosen = self.num_steps if num_steps is None else num_steps
        Arguments("sampling from a student").whole("num_steps", chosen, 1, MOST_STEPS)
        if chosen != self.num_steps and not self.method.any_num_steps:
            raise ConfigError(
                f"num_steps: this student was taught to draw in {self.num_steps}, by method "
                f"{self.arguments['method']!r}; got {chosen}: distil one for that, or choose another method"
            )
        return super().sample(n, context, seed, num_steps=int(chosen))

    def fit_preprocessing(self, x: Any, context: Any = None) -> None:
        """Fit the data-unit bijections on training rows; those of a teacher stay as they are."""
        if self.teacher is None:
            super().fit_preprocessing(x, context)
            self.flow_map.data_std.fill_(deviation(self.preprocess, self._rows(x, context)[0]))
        else:
            self.blur = self._blur_for(self._rows(x, context)[0])

    def train(self, mode: bool = True) -> Student:
        """Go to training mode, but for the teacher."""
        super().train(mode)
        if self.teacher is not None:
            self.teacher.eval()
        return self

    def save(self, path: str | Path) -> Path:
        """Write ``model.safetensors`` and ``model.json`` into the folder ``path``, teacher included; see
        :func:`sciflow.load`."""
        for arguments in (self.arguments, {} if self.teacher is None else self.teacher.arguments):
            require_saveable(path, "this student or its teacher", arguments)
        return super().save(path)

    # What Density asks for. ------------------------------------------------------------------------------------

    def _log_prob(self, y: Tensor, context: Tensor | None) -> Tensor:
        return self._teacher_for("log p")._log_prob(y, context)

    def _likelihood(self, y: Tensor, context: Tensor | None, method: str | None, **options: Any) -> Likelihood:
        return self._teacher_for("log p")._likelihood(y, context, method, **options)

    def _encode(self, y: Tensor, context: Tensor | None, *, tolerance: float | None = None) -> Tensor:
        return self._teacher_for("the noise of an event")._encode(y, context, tolerance=tolerance)

    def _decode(self, z: Tensor, context: Tensor | None) -> Tensor:
        # With fresh noise in between there is no map: then in one jump.
        return self._drawn(z, context, 1 if self.method.renoises else self.num_steps, None)

    def _sample(self, n: int, context: Tensor | None, generator: torch.Generator | None, **options: Any) -> Tensor:
        require_given(self, context, self._context_dropout, "this student")
        drawn = [
            self._drawn(self._noise(len(rows), generator), c, options["num_steps"], generator)
            for rows, c in in_parts(n, self.event_shape.numel(), context)
        ]
        return torch.cat(drawn)

    def _loss(self, y: Tensor, context: Tensor | None, log_det: Tensor) -> Tensor:
        inside = torch.isfinite(log_det)
        if not self.training:
            error = self._energy_score(y, context) if self.teacher is None else self._off_teacher(y, context)
            # A row outside the support is impossible, as for log p.
            return error - torch.where(inside, 0, log_det)
        lesson = Lesson(
            flow_map=self.flow_map,
            teacher=self._mean if self.teacher is not None and self.method.asks_teacher else None,
            events=y,
            context=some_left_out(context, self._context_dropout),
            num_steps=self.num_steps,
            step=int(self.trained_steps),
        )
        self.trained_steps += 1
        return torch.where(inside, self.method.loss(lesson), torch.nan)

    # How it is done. -------------------------------------------------------------------------------------------

    def _noise(self, n: int, generator: torch.Generator | None) -> Tensor:
        return torch.randn((n, *self.event_shape), generator=generator, dtype=self.dtype, device=self.device)

    def _drawn(
        self, noise: Tensor, context: Tensor | None, num_steps: int, generator: torch.Generator | None
    ) -> Tensor:
        """Events that standard normal noise turns into, in so many jumps."""
        begins, ends = self.method.jumps(self.flow_map, num_steps)
        size = torch.sqrt(self.flow_map.data_std.double().square() + begins[0].square())
        z = size.to(noise.dtype) * noise
        for number, (begin, end) in enumerate(zip(begins, ends, strict=True)):
            if number and self.method.renoises:
                z = z + begin.to(z.dtype) * self._noise(len(z), generator)
            # Of one row, as all have the same: what a network makes of levels is often most of its work.
            level, target = begin[None], end[None]
            z = jumped(z, level, target, self.flow_map(z, level, target, context))
        return z

    def _mean(self, z: Tensor, level: Tensor, context: Tensor | None) -> Tensor:
        """The mean of clean events by the teacher, guided; without gradient."""
        teacher = self._teacher_for("the mean")
        t = teacher.schedule.time(level)
        alpha, _ = teacher.schedule(t)
        with torch.no_grad():
            denoise = as_guidance(self.arguments["guidance"]).guided(teacher, context)
            return denoise(over_events(alpha, z).to(z.dtype) * z, t)

    def _off_teacher(self, y: Tensor, context: Tensor | None) -> Tensor:
        """Mean squares of what the student's own jumps are off from the teacher's way, ``[n]``; a jump a row."""
        begins, ends = self.method.jumps(self.flow_map, self.num_steps)
        jump = torch.arange(len(y), device=y.device) % self.num_steps
        level, target = begins[jump], ends[jump]
        z = y + over_events(level, y).to(y.dtype) * torch.randn_like(y)
        mine = jumped(z, level, target, self.flow_map(z, level, target, context))
        theirs = heun(self._mean, z, self.flow_map.between(level, target, _REFERENCE_STEPS), context)
        return ((mine - theirs) / self.flow_map.data_std).flatten(1).square().mean(1)

    def _energy_score(self, y: Tensor, context: Tensor | None) -> Tensor:
        r"""Return :math:`E |X - y| - \frac12 E |X - X'|` of draws, by two a row; the data's own law has the lowest."""
        one, other = (self._drawn(self._noise(len(y), None), context, self.num_steps, None) for _ in range(2))
        distances = [(a - b).flatten(1).square().mean(1).sqrt() for a, b in ((one, y), (other, y), (one, other))]
        return (distances[0] + distances[1] - distances[2]) / (2 * self.flow_map.data_std)

    @property
    def _context_dropout(self) -> float:
        own = self.arguments["context_dropout"]
        if own is not None:
            return float(own)
        return 0.1 if self.teacher is None else float(self.teacher.arguments.get("context_dropout", 0.0))

    def _teacher_for(self, what: str) -> Diffusion:
        if self.teacher is None:
            raise ConfigError(f"this student has no teacher, and without one {what} is not known: it draws alone")
        return self.teacher

    def __repr__(self) -> str:
        taught = "no teacher" if self.teacher is None else f"teacher {self.teacher!r}"
        return (
            f"Student(method={self.arguments['method']!r}, num_steps={self.num_steps}, "
            f"event_shape={tuple(self.event_shape)}, {taught})"
        )
