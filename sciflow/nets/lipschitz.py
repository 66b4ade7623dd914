"""Networks that shrink distances: a bound below 1 on how far two outputs can be apart, whatever the weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sciflow.derivatives import differentiable_once

__all__ = ["Contraction", "LipschitzMLP", "spectral_norm_bound"]

_STEEPNESS = 10.0  # of the activations at first, for features of variance 1: from 1, training takes many times as long
_MAX_LOG_STEEPNESS = 6.0
# The slopes of swish(h) and swish(-h) are a and a - 1 with -0.0999 < a < 1.0999: their vector is never longer.
_CONCATENATED_SLOPE = 1.1044


class LipschitzMLP(nn.Module):
    r"""Map vectors to vectors of the same length, closer together than their arguments were.

    .. math:: \| g(x, c) - g(y, c) \| \le L \, \| x - y \|, \qquad L < 1

    for all weights, trained or not, and all contexts. Each of the :math:`n` linear layers is divided by a bound of its
    spectral norm (:func:`spectral_norm_bound`) wherever that is above :math:`L^{1/n}`; up to there its norm is learned.
    Between them stands the concatenation :math:`[\mathrm{swish}(h), \mathrm{swish}(-h)] / 1.1044` with a learned
    steepness for every unit, whose slope is a vector of length 0.64 to 1: smooth, as a log-determinant that is trained
    on needs it, and not flat anywhere. The context adds to every layer, and is not bounded.

    The last layer starts at zero, and so does the network. Nothing is remembered between calls: the bound is that of
    the weights as they are, in training too. From Behrmann et al., arXiv:1811.00995, and Chen et al.,
    arXiv:1906.02735; the concatenation is that of Perugachi-Diaz et al., arXiv:2102.02694.

    Args:
        num_features: Length of input and output.
        hidden_features: Width of each hidden layer.
        num_context: Length of the context vector; 0 for none.
        bound: :math:`L`, above 0 and below 1.

    Example:
        >>> net = LipschitzMLP(3, hidden_features=(64, 64))
        >>> net(torch.ones(7, 3)).shape
        torch.Size([7, 3])
    """

    def __init__(
        self,
        num_features: int,
        hidden_features: Sequence[int] = (128, 128),
        num_context: int = 0,
        bound: float = 0.97,
    ) -> None:
        super().__init__()
        self.num_features, self.num_context, self.bound = num_features, num_context, bound
        widths = [num_features, *hidden_features, num_features]
        self.layer_bound = bound ** (1 / (len(widths) - 1))
        # From the second on a layer takes the activation's two halves.
        self.layers = nn.ModuleList(
            nn.Linear(before if i == 0 else 2 * before, width) for i, (before, width) in enumerate(pairwise(widths))
        )
        self.log_steepness = nn.ParameterList(torch.full((width,), _STEEPNESS).log() for width in hidden_features)
        if num_context:
            self.embedding = nn.Linear(num_context, hidden_features[0])
            self.context_layers = nn.ModuleList(nn.Linear(hidden_features[0], w, bias=False) for w in widths[1:])
            nn.init.zeros_(self.context_layers[-1].get_parameter("weight"))
        for parameter in self.layers[-1].parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Map ``x`` of shape ``[n, num_features]``, under a context ``[n, num_context]``."""
        return self.given(context)(x)

    def given(self, context: Tensor | None = None) -> Contraction:
        """Return the function of ``x`` that is left once weights and context ``[n, num_context]`` are fixed."""
        weights = [self._bounded(layer.get_parameter("weight")) for layer in self.layers]
        offsets: list[Tensor] = [layer.get_parameter("bias") for layer in self.layers]
        if context is not None:
            embedded = F.silu(self.embedding(context))
            offsets = [offset + layer(embedded) for offset, layer in zip(offsets, self.context_layers, strict=True)]
        halves = [(weight / _CONCATENATED_SLOPE).chunk(2, dim=1) for weight in weights[1:]]
        return Contraction(
            first=weights[0],
            sums=[plus + minus for plus, minus in halves],
            minuses=[minus for _, minus in halves],
            offsets=offsets,
            steepness=[raw.clamp(-_MAX_LOG_STEEPNESS, _MAX_LOG_STEEPNESS).exp() for raw in self.log_steepness],
        )

    def _bounded(self, weight: Tensor) -> Tensor:
        return weight * (self.layer_bound / spectral_norm_bound(weight).clamp_min(self.layer_bound))


@dataclass(frozen=True)
class Contraction:
    """A :class:`LipschitzMLP` with weights and context fixed, as a function of ``x``.

    A layer :math:`W_+ \\mathrm{swish}(h) + W_- \\mathrm{swish}(-h)` is computed as
    :math:`(W_+ + W_-) \\mathrm{swish}(h) - W_- h`, since :math:`\\mathrm{swish}(-h) = \\mathrm{swish}(h) - h`.

    Attributes:
        first: Weight of the first layer, ``[width, num_features]``.
        sums: :math:`W_+ + W_-` of the others, ``[width, width_before]``.
        minuses: :math:`W_-` of the others.
        offsets: What every layer adds, ``[width]`` or, with a context, ``[n, width]``.
        steepness: Of every activation, ``[width]``.
    """

    first: Tensor
    sums: list[Tensor]
    minuses: list[Tensor]
    offsets: list[Tensor]
    steepness: list[Tensor]

    def __call__(self, x: Tensor) -> Tensor:
        """Map ``x`` of shape ``[n, num_features]``."""
        h = F.linear(x, self.first) + self.offsets[0]
        for total, minus, offset, steepness in self._later_layers():
            h = F.linear(h * torch.sigmoid(steepness * h), total) - F.linear(h, minus) + offset
        return h

    def linearise(self, x: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """Return the value at ``x`` and the product of its Jacobian there with vectors ``[n, m, num_features]``."""
        h = F.linear(x, self.first) + self.offsets[0]
        slopes = []
        for total, minus, offset, steepness in self._later_layers():
            gate = torch.sigmoid(steepness * h)
            swish = h * gate
            slopes.append((gate + steepness * swish * (1 - gate)).unsqueeze(-2))
            h = F.linear(swish, total) - F.linear(h, minus) + offset
        return h, partial(self._product, slopes)

    def rows(self, rows: Tensor | slice) -> Contraction:
        """Return the function of fewer rows."""
        return replace(self, offsets=[offset if offset.ndim == 1 else offset[rows] for offset in self.offsets])

    @property
    def width(self) -> int:
        """Length of the longest hidden layer."""
        return max(len(steepness) for steepness in self.steepness)

    def _product(self, slopes: list[Tensor], vectors: Tensor) -> Tensor:
        # Vectors that are the same for all rows stay one until the first activation.
        t = F.linear(vectors, self.first)
        for slope, total, minus in zip(slopes, self.sums, self.minuses, strict=True):
            t = F.linear(slope * t, total) - F.linear(t, minus)
        return t

    def _later_layers(self) -> zip[tuple[Tensor, Tensor, Tensor, Tensor]]:
        return zip(self.sums, self.minuses, self.offsets[1:], self.steepness, strict=True)


def spectral_norm_bound(weight: Tensor, num_squarings: int = 6) -> Tensor:
    r"""Bound the largest singular value of a matrix from above, closely.

    .. math:: \sigma_1 \le \Big( \sum_i \sigma_i^p \Big)^{1/p} = \Big( \mathrm{tr} \, G \, G^{2^k} \Big)^{1/p}, \qquad
              G = W^\top W, \; p = 2^{k+1} + 2

    A power iteration comes from below, and lags behind weights that change; this is a bound at every call, remembers
    nothing, and is smooth where two singular values cross. It is too large by a factor of at most :math:`r^{1/p}` for
    rank :math:`r` (1.04 for 128 singular values that are all the same), and mostly by far less. Powers by repeated
    squaring as in Delattre et al., arXiv:2305.16173.

    Args:
        weight: Matrix ``[out, in]``.
        num_squarings: :math:`k`.

    Returns:
        The bound, a scalar; it can be differentiated once, and raises an error where it is to be again.

    Example:
        >>> round(float(spectral_norm_bound(torch.diag(torch.tensor([3.0, 1.0])))), 4)
        3.0
    """
    tiny = torch.finfo(weight.dtype).tiny
    size = weight.detach().abs().amax().clamp_min(tiny)
    weight = weight / size
    gram = weight @ weight.T if weight.shape[0] < weight.shape[1] else weight.T @ weight
    with torch.no_grad():
        norm = torch.linalg.matrix_norm(gram).clamp_min(tiny)
        power, log_norm = gram / norm, norm.log()
        for _ in range(num_squarings):
            power = power @ power
            norm = torch.linalg.matrix_norm(power).clamp_min(tiny)
            power, log_norm = power / norm, 2 * log_norm + norm.log()
    half = differentiable_once(
        0.5 * (gram * power).sum().clamp_min(tiny).log(),
        "a bound of a spectral norm",
        "Second derivatives in the weights of a residual flow are not to be had; those in its events are",
    )
    # The gradient W G^(p/2 - 1) / tr G^(p/2) of the bound's logarithm is that of this half with the power held fixed.
    log_bound = (2 * half + log_norm) / (2 ** (num_squarings + 1) + 2)
    return size * torch.exp(half + (log_bound - half).detach())
