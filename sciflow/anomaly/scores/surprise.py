"""How unusual values are among normal ones, in nats: what puts scores of any unit on one scale."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["surprise"]

_BODY = 0.9
_LEAST_IN_TAIL = 5
_HEAVIEST = 0.9
_ROUNDING = 1e-5


def surprise(values: Tensor, normal: Tensor) -> Tensor:
    r"""Return minus the logarithm of the share of normal values that are as high.

    .. math:: u(s) = -\log \frac{\#\{s_i > s\} + \frac12 \#\{s_i = s\} + \frac12}{n + 1}
              \quad \text{for } s \le q, \qquad
              u(s) = -\log \frac{m}{n + 1} + \frac1\xi \log \left( 1 + \xi \frac{s - q}{\beta} \right)
              \quad \text{beyond}

    with :math:`q` the value that nine in ten do not exceed: beyond it, where counts are few and at last there are none,
    the share is that of a generalised Pareto distribution, fitted to the :math:`m` values there by its first two
    L-moments (Hosking and Wallis, 1987, doi:10.2307/1269343), with a shape of 0 to 0.9. So values far out are still
    told apart, and no score with a long tail drowns the others. Values count as equal up to what single precision
    leaves open: the last digit, which depends on how many rows are scored at a time, decides nothing.

    Args:
        values: ``[n]``.
        normal: Normal values, sorted, finite, one at least.

    Example:
        >>> surprise(torch.tensor([0.0, 50.0, 99.0, 200.0]), torch.arange(100.0)).round(decimals=1)
        tensor([ 0.0000,  0.7000,  4.1000, 22.8000], dtype=torch.float64)
    """
    normal, values = normal.double(), values.double().contiguous()
    n = len(normal)
    near = _ROUNDING * values.abs().nan_to_num(0.0, 0.0).clamp_min(1.0)
    above = n - torch.searchsorted(normal, values + near, right=True)
    as_high = n - torch.searchsorted(normal, values - near, right=False)
    body = -torch.log(((above + as_high) / 2 + 0.5) / (n + 1))
    start = torch.quantile(normal, _BODY)
    beyond_start = _ROUNDING * start.abs().clamp_min(1.0)
    excess = normal[normal > start + beyond_start] - start
    m = len(excess)
    if m < _LEAST_IN_TAIL:
        return body
    first = excess.mean()
    second = (excess * torch.arange(m, dtype=torch.float64, device=excess.device) / (m - 1)).mean()
    # xi = 2 - first / (2 second - first), which has the sign of a light or a heavy tail.
    shape = (2 - first / (2 * second - first).clamp_min(1e-12 * first)).clamp(0, _HEAVIEST)
    beyond = (values - start).clamp_min(0) / (first * (1 - shape)).clamp_min(torch.finfo(torch.float64).tiny)
    log_share = torch.where(shape > 1e-6, torch.log1p(shape * beyond) / shape.clamp_min(1e-6), beyond)
    tail = log_share - torch.log(torch.tensor(m / (n + 1), dtype=torch.float64))
    return torch.where(values > start + beyond_start, tail, body)
