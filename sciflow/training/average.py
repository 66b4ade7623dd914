"""A running average of the weights: smoother than the weights themselves, and what is validated and kept."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

__all__ = ["WeightAverage"]


class WeightAverage:
    r"""Exponential moving average of a module's parameters.

    .. math:: \bar\theta_k = d_k \, \bar\theta_{k-1} + (1 - d_k) \, \theta_k, \qquad
              d_k = \min\left(d, \frac{1 + k}{10 + k}\right)

    The decay rises with the step, so that the start is soon forgotten. Source: Polyak and Juditsky, SIAM J. Control
    Optim. 30 (1992); the rise is that of Abadi et al., arXiv:1605.08695.

    Args:
        module: Its parameters are averaged, its buffers are not.
        decay: :math:`d`, in [0, 1); 0 is the weights themselves.

    Example:
        >>> module = nn.Linear(1, 1)
        >>> average = WeightAverage(module, decay=0.9)
        >>> with average.applied():
        ...     held = module.weight.item()
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self._parameters = dict(module.named_parameters())
        self._decay = decay
        self.tensors: dict[str, Tensor] = {}
        self.restore(self._parameters)

    def update(self, step: int) -> None:
        """Take in the weights after step ``step``, which counts from 1."""
        decay = min(self._decay, (1 + step) / (10 + step))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.tensors.values()), list(self._parameters.values()), 1 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Give the module the averaged weights for the time of the block."""
        own = {name: parameter.detach().clone() for name, parameter in self._parameters.items()}
        self._assign(self.tensors)
        try:
            yield
        finally:
            self._assign(own)

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Begin from these averages."""
        self.tensors = {name: tensors[name].detach().clone().to(p.device) for name, p in self._parameters.items()}

    def _assign(self, tensors: Mapping[str, Tensor]) -> None:
        with torch.no_grad():
            torch._foreach_copy_(list(self._parameters.values()), [tensors[name] for name in self._parameters])
