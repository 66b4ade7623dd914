"""How unusual values are among normal ones, in nats: what puts scores of any unit on one scale."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["surprise"]

_TAIL = 0.1


def surprise(values: Tensor, normal: Tensor) -> Tensor:
    r"""Return minus the logarithm of the share of normal values that are as high.

    .. math:: u(s) = -\log \frac{\#\{s_i \ge s\} + 1}{n + 1} \quad \text{for } s \le s_{(n)}, \qquad
              u(s) = \log(n + 1) + \frac{s - s_{(n)}}{m} \quad \text{beyond}

    It goes on beyond the highest as an exponential tail does, with :math:`m` the mean by which the highest tenth
    exceeds the rest, so that values far out are still told apart.

    Args:
        values: ``[n]``.
        normal: Normal values, sorted, finite, one at least.

    Example:
        >>> surprise(torch.tensor([0.0, 99.0, 99.5]), torch.arange(100.0)).round(decimals=2)
        tensor([0.0000, 3.9200, 4.7200], dtype=torch.float64)
    """
    normal = normal.double()
    values = values.double()
    n = len(normal)
    as_high = n - torch.searchsorted(normal, values.contiguous(), right=False)
    start = normal[int((1 - _TAIL) * (n - 1))]
    excess = (normal[normal >= start] - start).mean()
    scale = excess.clamp_min(torch.finfo(torch.float64).tiny ** 0.5 + 1e-9 * normal[-1].abs())
    return -torch.log((as_high + 1) / (n + 1)) + (values - normal[-1]).clamp_min(0) / scale
