"""Heavy tails: Student's t, with degrees of freedom that are learned."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sciflow.arguments import Arguments
from sciflow.flows.base.contract import PACE, Base

__all__ = ["StudentT"]

_LEAST, _MOST = 1.0, 1e6  # degrees of freedom: below 1 there is no mean, far above it is the normal to every digit


class StudentT(Base):
    r"""Independent Student's t of learned degrees of freedom, one number an element.

    .. math:: \log p(z) = \sum_i \log \frac{\Gamma(\frac{\nu_i + 1}{2})}{\sqrt{\pi \nu_i} \, \Gamma(\frac{\nu_i}{2})}
              - \frac{\nu_i + 1}{2} \log\Big(1 + \frac{z_i^2}{\nu_i}\Big), \qquad
              \nu_i = 1 + \mathrm{softplus}(10 \, r_i)

    Far out log p falls by a logarithm, where a normal's falls by a square. A flow whose maps end in straight lines
    cannot make heavy tails of light ones (Jaini et al., arXiv:1907.04481): what a base has not, the density never gets.
    A row far out also pulls at the weights no harder than others do (Alexanderson and Henter, arXiv:2006.06599). There
    is no scale to learn: the flow has one.

    Args:
        event_shape: Shape of one event.
        degrees_of_freedom: Of every element at the start, above 1; less is heavier.

    Raises:
        ConfigError: ``degrees_of_freedom`` is no such number.

    Example:
        >>> StudentT((1,)).log_prob(torch.tensor([[0.0], [30.0]]))
        tensor([ -0.9686, -16.5641], grad_fn=<SubBackward0>)
    """

    def __init__(self, event_shape: Sequence[int], degrees_of_freedom: float = 5.0) -> None:
        checked = Arguments("base: student_t")
        initial = checked.positive("degrees_of_freedom", degrees_of_freedom)
        valid = _LEAST < initial <= _MOST
        checked.require("degrees_of_freedom", initial, valid, f"above {_LEAST:g} and at most {_MOST:,.0f}")
        super().__init__(event_shape)
        self.initial = initial
        above = self.initial - _LEAST
        raw = above + math.log(-math.expm1(-above))  # the inverse of softplus
        self.raw_degrees_of_freedom = nn.Parameter(torch.full(self.event_shape, raw / PACE))

    @property
    def degrees_of_freedom(self) -> Tensor:
        r""":math:`\nu`, of shape ``event_shape``."""
        return _LEAST + F.softplus(PACE * self.raw_degrees_of_freedom)

    @property
    def specification(self) -> dict[str, Any]:
        return {"student_t": {"degrees_of_freedom": self.initial}}

    def log_prob(self, z: Tensor) -> Tensor:
        df = self.degrees_of_freedom
        # The difference of two large numbers, and no more of them than an event has elements.
        half = 0.5 * df.double()
        log_height = (torch.lgamma(half + 0.5) - torch.lgamma(half) - 0.5 * torch.log(2 * math.pi * half)).to(df.dtype)
        fall = 0.5 * (df + 1) * torch.log1p(z.square() / df)
        return log_height.sum() - fall.flatten(1).sum(-1)

    def sample(self, n: int, generator: torch.Generator | None, dtype: torch.dtype, device: torch.device) -> Tensor:
        size = (n, *self.event_shape)
        normal = torch.randn(size, generator=generator, dtype=dtype, device=device)
        half = 0.5 * self.degrees_of_freedom.detach().to(device, dtype)
        gamma = torch._standard_gamma(half.expand(size), generator=generator)  # half a chi-square's
        return normal * (half / gamma.clamp_min(torch.finfo(dtype).tiny)).sqrt()
