"""Activation normalisation: a learned shift and scale that begin where the data are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

from sciflow.bijections.base import Bijection
from sciflow.errors import DataError, TrainingError
from sciflow.modes import in_evaluation_mode

__all__ = ["ActNorm", "initialise"]

_MOST_LOG_SCALE = 50.0  # e^50 = 5e21: far beyond any use, and no overflow
_LEAST_SPREAD = 1e-6  # of the root mean square; below, a feature varies by rounding alone


class ActNorm(Bijection):
    r"""Shift and scale every feature of a vector, or every channel of a field, by learned numbers.

    .. math:: z = (x - \mu) \, e^{-s}, \qquad \log |\det J| = -n \sum_i s_i

    with :math:`n` places a channel. The first rows decide where :math:`\mu` and :math:`s` begin: every feature comes
    out with mean 0 and variance 1, which keeps deep chains of couplings trainable. These are the rows given to
    :meth:`fit` or :func:`initialise`, or else the first batch in training mode; until then it changes nothing.
    ``initialised`` is saved with the weights: a loaded map never begins again.

    Values that are not finite do not count, a feature that never varies keeps its unit, and a batch with a single
    value of each feature is not enough to begin from. From Kingma and Dhariwal, arXiv:1807.03039.

    Args:
        event_shape: Shape of one event, features or channels first.

    Example:
        >>> actnorm = ActNorm((1,))
        >>> actnorm(torch.tensor([[281.0], [283.0]]))[0].tolist()
        [[-1.0], [1.0]]
        >>> actnorm(torch.tensor([[282.0]]))
        (tensor([[0.]], grad_fn=<MulBackward0>), tensor([-0.], grad_fn=<ExpandBackward0>))
    """

    initialised: Tensor

    def __init__(self, event_shape: Sequence[int]) -> None:
        super().__init__(event_shape)
        shape = (self.event_shape[0], *[1] * (len(self.event_shape) - 1))
        self.num_places = self.event_shape[1:].numel()
        self.mean = nn.Parameter(torch.zeros(shape))
        self.log_scale = nn.Parameter(torch.zeros(shape))
        self.register_buffer("initialised", torch.tensor(False))
        # What the buffer says, as Python's own: no step waits for the device to tell, and no compiled graph breaks.
        self._ready = False
        self.register_load_state_dict_post_hook(_read_flag)

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        batch = self.batch_shape(x)
        if self.training and not self._ready:
            _require_one_process()
            self._initialise(x)
        log_scale = self.log_scale.clamp(-_MOST_LOG_SCALE, _MOST_LOG_SCALE)
        return (x - self.mean) * torch.exp(-log_scale), (-self.num_places * log_scale.sum()).expand(batch)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        batch = self.batch_shape(z)
        log_scale = self.log_scale.clamp(-_MOST_LOG_SCALE, _MOST_LOG_SCALE)
        return z * torch.exp(log_scale) + self.mean, (self.num_places * log_scale.sum()).expand(batch)

    def fit(self, x: Tensor) -> Self:
        """Begin from training rows, whether or not it has begun before.

        Args:
            x: ``[n, *event_shape]``, with two values of each feature at the least.

        Raises:
            DataError: There are fewer.
        """
        self.batch_shape(x)
        if not self._initialise(x):
            raise DataError(f"ActNorm is fitted on two values of each feature or more; got rows {list(x.shape)}")
        return self

    @property
    def is_fitted(self) -> bool:
        """Whether it has begun, here or in the model that this was loaded from."""
        return self._ready

    @torch.no_grad()
    def _initialise(self, x: Tensor) -> bool:
        """Begin from ``x``, and say whether it was enough."""
        # In float64: the squares of 1e5 +- 1 have no digits left in float32.
        values = x.movedim(-len(self.event_shape), 0).flatten(1).double()
        if values.shape[1] < 2:
            return False
        finite = values.isfinite()
        values = values.masked_fill(~finite, 0.0)
        count = finite.sum(1).clamp_min(1)
        mean = values.sum(1) / count
        variance = (values - mean[:, None]).masked_fill(~finite, 0.0).square().sum(1) / count
        constant = variance <= _LEAST_SPREAD**2 * (variance + mean.square())
        log_scale = 0.5 * variance.masked_fill(constant, 1.0).log()
        self.mean.copy_(mean.reshape(self.mean.shape))
        self.log_scale.copy_(log_scale.clamp(-_MOST_LOG_SCALE, _MOST_LOG_SCALE).reshape(self.mean.shape))
        self.initialised.fill_(True)
        self._ready = True
        return True


@torch.no_grad()
def initialise(bijection: Bijection, x: Tensor, context: Tensor | None = None) -> None:
    """Let every :class:`ActNorm` within a bijection begin from rows; one that has begun is left as it is.

    Each begins from what those before it make of the rows, in eval mode: a function of the rows alone, the same in
    every process that is given the same rows.

    Args:
        bijection: Any that holds some, or none.
        x: ``[n, *event_shape]``; a single row may be too few, and then the first training batch decides.
        context: ``[n, *context_shape]``, where the bijection has one.

    Example:
        >>> from sciflow.bijections import Composite
        >>> chain = Composite([ActNorm((1,)), ActNorm((1,))])
        >>> initialise(chain, torch.tensor([[1.0], [3.0]]))
        >>> chain.is_fitted
        True
    """

    def begin(module: nn.Module, given: tuple[Any, ...]) -> None:
        assert isinstance(module, ActNorm)
        module._initialise(given[0])

    waiting = [module for module in bijection.modules() if isinstance(module, ActNorm) and not module.is_fitted]
    if not waiting:
        return
    hooks = [module.register_forward_pre_hook(begin) for module in waiting]
    try:
        with in_evaluation_mode(bijection):
            bijection(x, context)
    finally:
        for hook in hooks:
            hook.remove()


def _read_flag(module: nn.Module, incompatible_keys: Any) -> None:
    assert isinstance(module, ActNorm)
    module._ready = bool(module.initialised)


def _require_one_process() -> None:
    """Refuse to begin from the rows of one process, when others see other rows and would begin elsewhere."""
    distributed = torch.distributed
    if distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1:
        raise TrainingError(
            "ActNorm would begin differently in each process, from the rows of that process: call "
            "fit_preprocessing(rows), or initialise(bijection, rows), on the same rows in all of them before training"
        )
